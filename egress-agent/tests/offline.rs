//! `explain`, `simulate` and `plan` from objects alone.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use egress_fixture::Fixture;
use serde_json::{Value, json};
use tempfile::TempDir;

fn objects() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let pod = |namespace: &str, name: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIP": ip},
        })
    };
    let policy = json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy", "metadata": {"name": "mesh"},
        "spec": {
            "subjects": [{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}],
            "allow": {"to": [{"cidr": "198.51.100.0/24", "ports": [{"protocol": "TCP", "port": 443}]}]},
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "data", "name": "db"},
        "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 5432, "targetPort": 5432}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "data", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"port": 5432, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.0.9"], "conditions": {"ready": true}}],
    });
    let items = json!([
        namespace("shop"),
        namespace("data"),
        policy,
        service,
        slice,
        pod("shop", "web", "10.1.0.1"),
        pod("data", "db", "10.1.0.9"),
    ]);
    fs::write(
        dir.path().join("all.json"),
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string(),
    )
    .unwrap();
    dir
}

fn agent(dir: &TempDir, words: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(words)
        .arg("--source")
        .arg(format!("file:{}", dir.path().display()))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn explain_says_allowed_by_0_and_denied_by_1_and_why() {
    let dir = objects();
    let explain =
        |to: &str| agent(&dir, &["explain", "--from", "shop/web/app", "--to", to, "--output", "json"], "");
    let allowed = explain("198.51.100.7:443/TCP");
    let value: Value = serde_json::from_slice(&allowed.stdout).unwrap();
    assert_eq!(allowed.status.code(), Some(0), "{value}");
    assert_eq!((&value["action"], &value["reason"]), (&json!("allow"), &json!("Allowed")));
    assert_eq!(
        (&value["policy"], &value["rule"]),
        (&json!("EgressGatewayPolicy mesh"), &json!("spec.allow.to[0]"))
    );
    assert_eq!((&value["from"], &value["to"]), (&json!("shop/web/app"), &json!("198.51.100.7:443/TCP")));

    let denied = explain("198.51.100.7:80/TCP");
    let value: Value = serde_json::from_slice(&denied.stdout).unwrap();
    assert_eq!((denied.status.code(), &value["action"]), (Some(1), &json!("deny")));
    assert_eq!(value["policy"], "EgressGatewayPolicy mesh");
    assert_eq!(value["tiers"][0]["rule"], Value::Null);

    let service = explain("10.96.0.7:5432/TCP");
    let value: Value = serde_json::from_slice(&service.stdout).unwrap();
    assert_eq!(value["backends"], json!([{"address": "10.1.0.9", "port": 5432}]));
    assert_eq!(
        (&value["backend_verdicts"][0]["action"], &value["destination"]),
        (&json!("allow"), &json!("service data/db"))
    );

    assert_eq!(explain("198.51.100.7/ICMP").status.code(), Some(1));
    assert_eq!(explain("198.51.100.7:443/FTP").status.code(), Some(2));
    let text = agent(&dir, &["explain", "--from", "shop/web", "--to", "10.96.0.7:5432/TCP"], "");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for word in [
        "allow Allowed",
        "service data/db",
        "backend 10.1.0.9:5432 pod data/db: allow",
        "spec.allow.inCluster",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

/// Rules that would allow it and containers that look like the proxy are what people ask about.
#[test]
fn explain_says_why_a_rule_or_a_name_does_not_count() {
    let dir = objects();
    let lock = json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy", "metadata": {"name": "lock"},
        "spec": {
            "subjects": [{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}],
            "proxy": {"containers": ["istio-proxy"]},
            "gateways": [{"addresses": ["198.51.100.9/32"], "clients": []}],
        },
    });
    let pod = |name: &str, kind: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name},
            "spec": {"nodeName": "n1", "containers": [{"name": "app"}], kind: [{"name": "istio-proxy"}]},
            "status": {"phase": "Running", "podIP": "10.1.0.77"},
        })
    };
    let write = |name: &str, value: &Value| fs::write(dir.path().join(name), value.to_string()).unwrap();
    let explain = |from: &str| {
        let words = ["explain", "--from", from, "--to", "198.51.100.9:443/TCP"];
        let output = agent(&dir, &words, "");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        [&output.stdout[..], &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
    };
    write("lock.json", &lock);
    let gateway = "a gateway of EgressGatewayPolicy lock: spec.gateways alone leads there";
    let none = "istio-proxy is no proxy: no init or ephemeral container is";
    write("debug.json", &pod("debug", "ephemeralContainers"));
    let debug = explain("shop/debug/istio-proxy");
    assert!(debug.contains("SidecarBypass") && debug.contains(none) && !debug.contains(gateway), "{debug}");
    write("debug.json", &pod("debug", "initContainers"));
    let sidecar = json!([{"name": "istio-proxy", "restartPolicy": "Always"}]);
    assert!(explain("shop/debug/istio-proxy").contains(none));
    assert!(explain("shop/debug/app").contains("as istio-proxy: deny SidecarBypass"));
    let mut with = pod("debug", "initContainers");
    with["spec"]["initContainers"] = sidecar;
    write("debug.json", &with);
    let proxy = explain("shop/debug/istio-proxy");
    assert!(proxy.contains("NotAllowed") && proxy.contains(gateway) && !proxy.contains(none), "{proxy}");
    assert!(explain("shop/debug/app").contains("as istio-proxy: deny NotAllowed"));
}

#[test]
fn without_a_configuration_of_the_cluster_nobody_is_kept_waiting() {
    let start = Instant::now();
    let words = [
        "explain",
        "--from",
        "a/b",
        "--to",
        "192.0.2.1:1/TCP",
        "--source",
        "kube",
        "--kubeconfig",
        "/nowhere",
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_egress-agent")).args(words).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && stderr.contains("cannot read the kubeconfig /nowhere"),
        "{output:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(20), "{output:?}");
}

const CSV: &str = "from,to,port,protocol
shop/web,198.51.100.7,443,TCP
shop/web/app,203.0.113.9,443,TCP
data/db,203.0.113.9,443,TCP
shop/web,svc:data/db,5432,TCP
shop/web,data/db,,ICMP
shop/gone,203.0.113.9,443,TCP
";

/// A proxy that tunnels (RFC 9110, section 9.3.6), and how often it was asked to.
fn proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, tunnels) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = tunnels.clone();
    thread::spawn(move || {
        for client in listener.incoming().map(Result::unwrap) {
            let count = count.clone();
            thread::spawn(move || tunnel(client, &count));
        }
    });
    (address, tunnels)
}

fn tunnel(client: TcpStream, count: &AtomicUsize) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head:?}");
    }
    let to = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap();
    count.fetch_add(1, Ordering::SeqCst);
    let mut server = TcpStream::connect(to).unwrap();
    let (mut answers, mut back) = (server.try_clone().unwrap(), client);
    back.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let copied = thread::spawn(move || std::io::copy(&mut answers, &mut back));
    let _ = std::io::copy(&mut reader, &mut server);
    let _ = server.shutdown(Shutdown::Both);
    let _ = copied.join();
}

/// As on a machine from which clusters are reached by a proxy only.
#[test]
fn a_cluster_is_read_through_the_proxy_that_is_configured_and_past_it_where_it_says_so() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(async { Fixture::start() }).unwrap();
    fixture.install_definition();
    let (address, tunnels) = proxy();
    let dir = tempfile::tempdir().unwrap();
    let lint = |proxy_url: Option<String>, variables: &[(&str, &str)]| {
        let cluster = json!({"server": fixture.url(), "proxy-url": proxy_url});
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        });
        let file = dir.path().join("kubeconfig");
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_egress-agent"));
        command.args(["lint", "--source", "kube", "--kubeconfig"]).arg(&file).env_clear();
        command.envs(variables.iter().copied()).output().unwrap()
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    fixture.apply_manifest("namespaces", &namespace);
    let url = format!("http://{address}");
    let told = |output: &Output| (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned());
    let fine = (Some(0), "no findings in 0 pods, 0 policies\n".to_owned());

    let output = lint(None, &[("HTTPS_PROXY", &url), ("NO_PROXY", "127.0.0.1")]);
    assert_eq!((told(&output), tunnels.load(Ordering::SeqCst)), (fine.clone(), 0), "{output:?}");
    let output = lint(None, &[("HTTPS_PROXY", &url)]);
    assert_eq!(told(&output), fine, "{output:?}");
    let by_variable = tunnels.load(Ordering::SeqCst);
    assert!(by_variable > 0);
    let output = lint(Some(url), &[]);
    assert_eq!(told(&output), fine, "{output:?}");
    assert!(tunnels.load(Ordering::SeqCst) > by_variable);
}

#[test]
fn simulate_prints_a_line_per_flow_in_their_order_from_csv_and_json() {
    let dir = objects();
    let from_csv = lines(&agent(&dir, &["simulate", "--flows", "-", "--output", "json"], CSV));
    let verdicts: Vec<_> = from_csv
        .iter()
        .map(|line| (line["action"].as_str().unwrap(), line["reason"].as_str().unwrap()))
        .collect();
    let expected = [
        ("allow", "Allowed"),
        ("deny", "NotAllowed"),
        ("allow", "Unselected"),
        ("allow", "Allowed"),
        ("allow", "Allowed"),
        ("deny", "UnknownPod"),
    ];
    assert_eq!(verdicts, expected);
    let json = CSV.lines().skip(1).map(|line| {
        let parts: Vec<&str> = line.split(',').collect();
        let mut flow = json!({"from": parts[0], "to": parts[1], "protocol": parts[3]});
        if let Ok(port) = parts[2].parse::<u16>() {
            flow["port"] = json!(port);
        }
        flow.to_string() + "\n"
    });
    let json: String = json.collect();
    assert_eq!(lines(&agent(&dir, &["simulate", "--flows", "-", "--output", "json"], &json)), from_csv);
}

#[test]
fn simulate_with_a_policy_prints_what_would_change() {
    let dir = objects();
    let with = tempfile::tempdir().unwrap();
    let file = with.path().join("new.yaml");
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: data, name: deny}\nspec: {podSelector: {}, policyTypes: [Egress]}\n";
    fs::write(&file, policy).unwrap();
    let words = ["simulate", "--flows", "-", "--output", "json", "--with", file.to_str().unwrap()];
    let changed = lines(&agent(&dir, &words, CSV));
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(
        (&changed[0]["from"], &changed[0]["was"], &changed[0]["action"]),
        (&json!("data/db"), &json!("allow"), &json!("deny"))
    );
    fs::write(&file, "kind: [").unwrap();
    assert_eq!(agent(&dir, &words, CSV).status.code(), Some(2));
    fs::write(&file, "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\n").unwrap();
    let output = agent(&dir, &words, CSV);
    assert_eq!(output.status.code(), Some(2), "nothing in it counts");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no object in it counts (ConfigMap)"));
}

#[test]
fn simulate_looks_at_every_address_of_a_destination() {
    let dir = tempfile::tempdir().unwrap();
    let pod = |name: &str, ips: [&str; 2]| {
        let ips = ips.map(|ip| json!({"ip": ip}));
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "a", "name": name},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips},
        })
    };
    let policy = |name: &str, cidr: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "a", "name": name},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": cidr}}]}]},
        })
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    let (one, two) = (pod("one", ["10.1.0.1", "fd00::1"]), pod("two", ["10.1.0.2", "fd00::2"]));
    let items = json!([namespace, one, two, policy("v4", "10.1.0.0/16")]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    fs::write(dir.path().join("all.json"), list).unwrap();
    let flows = "from,to,port,protocol\na/one,a/two,80,TCP\na/one,10.1.0.2,80,TCP\n";
    let words = ["simulate", "--flows", "-", "--output", "json"];
    let [named, address] = &lines(&agent(&dir, &words, flows))[..] else { panic!("a line for each flow") };
    assert_eq!((&named["action"], &named["address"]), (&json!("deny"), &json!("fd00::2")));
    assert_eq!((&address["action"], &address["address"]), (&json!("allow"), &Value::Null));
    let table = agent(&dir, &words[..3], flows);
    assert!(String::from_utf8_lossy(&table.stdout).contains("a/one -> a/two (fd00::2) 80/TCP"), "{table:?}");

    let with = tempfile::tempdir().unwrap();
    let file = with.path().join("new.json");
    fs::write(&file, policy("v6", "fd00::/64").to_string()).unwrap();
    let changed = lines(&agent(&dir, &[&words[..], &["--with", file.to_str().unwrap()]].concat(), flows));
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(
        (&changed[0]["was"], &changed[0]["action"], &changed[0]["address"]),
        (&json!("deny"), &json!("allow"), &json!("fd00::2"))
    );
}

/// Addresses are read alike by both, and what has a name is asked where the sender can send to.
#[test]
fn explain_and_simulate_give_the_same_verdict() {
    let dir = objects();
    let both = |address: &str, to: &str| {
        let flow = json!({"from": "shop/web", "to": address, "port": 443, "protocol": "TCP"}).to_string();
        let simulated =
            lines(&agent(&dir, &["simulate", "--flows", "-", "--output", "json"], &flow)).remove(0);
        let words = ["explain", "--from", "shop/web", "--to", to, "--output", "json"];
        let explained: Value = serde_json::from_slice(&agent(&dir, &words, "").stdout).unwrap();
        let verdict = |value: &Value| ["action", "reason"].map(|key| value[key].as_str().unwrap().to_owned());
        assert_eq!(verdict(&simulated), verdict(&explained), "{address}");
        verdict(&simulated).join(" ")
    };
    assert_eq!(both("198.51.100.7", "198.51.100.7:443/TCP"), "allow Allowed");
    assert_eq!(both("::ffff:198.51.100.7", "[::ffff:198.51.100.7]:443/TCP"), "allow Allowed");
    assert_eq!(both("::ffff:192.0.2.7", "[::ffff:192.0.2.7]:443/TCP"), "deny NotAllowed");
    assert_eq!(both("0.0.0.0", "0.0.0.0:443/TCP"), "allow Loopback");
    assert_eq!(both("[::]", "[::]:443/TCP"), "allow Loopback");
    assert_eq!(both("[2001:db8::1]", "[2001:db8::1]:443/TCP"), both("2001:db8::1", "[2001:db8::1]:443/TCP"));

    let second = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "data", "name": "two"}, "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIP": "10.1.0.8", "podIPs": [{"ip": "10.1.0.8"}, {"ip": "fd00::8"}]},
    });
    fs::write(dir.path().join("two.json"), second.to_string()).unwrap();
    let flows = "from,to,port,protocol\nshop/web,data/two,80,TCP\nshop/web,fd00::8,80,TCP\n";
    let [named, address] = &lines(&agent(&dir, &["simulate", "--flows", "-", "--output", "json"], flows))[..]
    else {
        panic!()
    };
    assert_eq!((&named["action"], &named["address"]), (&json!("allow"), &json!("10.1.0.8")));
    assert_eq!(address["action"], "deny");
    let output = agent(&dir, &["explain", "--from", "shop/web", "--to", "[fd00::8]:80/TCP"], "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("shop/web has no IPv6 address to send from"), "{output:?}");
    let flows = "from,to,port,protocol\nsvc:data/db,data/two,80,TCP\n";
    assert_eq!(agent(&dir, &["simulate", "--flows", "-"], flows).status.code(), Some(2), "no sender");
}

/// Of a service's address that leads nowhere no rule is the reason.
#[test]
fn explain_says_what_a_service_lacks() {
    let dir = objects();
    let said = |to: &str| {
        let output = agent(&dir, &["explain", "--from", "shop/web", "--to", to], "");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(said("10.96.0.7:5432/TCP"), "");
    assert!(said("10.96.0.7:80/TCP").contains("service data/db has no port 80/TCP"));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "data", "name": "void"},
        "spec": {"clusterIP": "10.96.0.8", "externalIPs": ["192.0.2.8"], "ports": [{"port": 80}]},
    });
    fs::write(dir.path().join("void.json"), service.to_string()).unwrap();
    assert!(said("10.96.0.8:80/TCP").contains("service data/void has no backend that may be chosen"));
    assert!(said("192.0.2.8:80/TCP").contains("192.0.2.8 is an external address of service data/void"));
}

#[test]
fn explain_says_that_behind_a_service_a_pod_is_no_other_than_any() {
    let dir = objects();
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "data", "name": "none"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": []},
    });
    fs::write(dir.path().join("none.json"), policy.to_string()).unwrap();
    let itself = agent(&dir, &["explain", "--from", "data/db", "--to", "10.1.0.9:5432/TCP"], "");
    assert_eq!(itself.status.code(), Some(0), "{itself:?}");
    let service = agent(&dir, &["explain", "--from", "data/db", "--to", "10.96.0.7:5432/TCP"], "");
    let (out, notes) = (String::from_utf8_lossy(&service.stdout), String::from_utf8_lossy(&service.stderr));
    assert_eq!(service.status.code(), Some(1), "{service:?}");
    assert!(out.contains("10.1.0.9:5432 pod data/db: deny, which denies the service's port"), "{out}");
    assert!(notes.contains("a pod reaches itself by its own address"), "{notes}");
}

/// What the agents have denied is what a new policy is tried with.
#[test]
fn the_flow_log_can_be_simulated() {
    let dir = objects();
    let line = |pod: Value, container: Value, destination: &str, protocol: &str| {
        json!({"time": "2026-01-01T00:00:00Z", "pod": pod, "container": container, "source": "10.1.0.1:1", "action": "deny",
            "destination": destination, "protocol": protocol, "reason": "NotAllowed"})
        .to_string()
            + "\n"
    };
    let log = [
        line(json!("shop/web"), json!("app"), "198.51.100.7:443", "TCP"),
        line(json!("shop/web"), Value::Null, "198.51.100.7:80", "TCP"),
        // It tried again.
        line(json!("shop/web"), json!("app"), "198.51.100.7:443", "TCP"),
        line(Value::Null, Value::Null, "198.51.100.7:80", "TCP"),
        line(json!("shop/web"), Value::Null, "198.51.100.7:0", "ICMP"),
        line(json!("shop/web"), Value::Null, "198.51.100.7:0", "253"),
        // Where the log of flows is the pod's, the agent says more in it.
        json!({"timestamp": "2026-01-01T00:00:00Z", "level": "INFO", "message": "applied", "target": "egress_agent"}).to_string() + "\n",
    ];
    let output = agent(&dir, &["simulate", "--flows", "-", "--output", "json"], &log.concat());
    let told: Vec<_> = lines(&output);
    let told: Vec<_> =
        told.iter().map(|line| (line["from"].as_str().unwrap(), line["action"].as_str().unwrap())).collect();
    assert_eq!(told, [("shop/web/app", "allow"), ("shop/web", "deny"), ("shop/web", "deny")]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("3 lines of the flow log left out"), "{stderr}");
    assert!(stderr.contains("1 lines of the flow log left out: they tell of flows"), "{stderr}");
}

/// A name that is written wrongly is an unknown pod's, which may be allowed what nobody has allowed it.
#[test]
fn who_is_not_among_the_objects_is_named() {
    let dir = objects();
    let flows = "from,to,port,protocol\nshop/wbe,10.1.0.9,5432,TCP\nshop/web/side,10.1.0.9,5432,TCP\nshop/web,10.1.0.9,5432,TCP\n";
    let output = agent(&dir, &["simulate", "--flows", "-"], flows);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("not among the objects, and judged as unknown pods: shop/wbe\n"), "{stderr}");
    assert!(stderr.contains("no such container is in the pod's spec: shop/web/side\n"), "{stderr}");
    let explain = |more: &[&str]| {
        let words = ["explain", "--from", "shop/wbe", "--to", "10.1.0.9:5432/TCP"];
        let output = agent(&dir, &[&words, more].concat(), "");
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (out, err) = explain(&[]);
    assert!(out.contains("the objects have no such pod: judged as an unknown pod"), "{out}");
    assert!(err.contains("shop/wbe"), "{err}");
    let value: Value = serde_json::from_str(&explain(&["--output", "json"]).0).unwrap();
    assert_eq!((&value["unknown"], &value["policy"]), (&json!("the objects have no such pod"), &Value::Null));
    // Its namespace is there; what is not is known.
    fs::write(dir.path().join("broken.yaml"), "kind: NetworkPolicy\nspec: [").unwrap();
    let output = agent(&dir, &["explain", "--from", "data/db", "--to", "198.51.100.7:443/TCP"], "");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.contains("what could not be read may be one: judged as an unknown pod"), "{out}");
}

#[test]
fn flows_that_cannot_be_read_are_named() {
    let dir = objects();
    for (input, word) in [
        ("from,to,port,protocol\nshop/web,nowhere,1,TCP\n", "flow 1"),
        ("from,to,port,protocol\nshop/web,svc:a/b,1,TCP\n", "no service a/b"),
        ("from,to,port,protocol\nshop/web,10.0.0.1,,TCP\n", "needs a port"),
        ("from,to,port,protocol\nshop/web,10.0.0.1,0,TCP\n", "needs a port"),
        ("from,to,port,protocol\nshop/web,10.0.0.1,http,TCP\n", "line 2, column port: invalid digit"),
        ("from,to,port,protocol\nshop/web,10.0.0.0/8,1,TCP\n", "is a prefix"),
        ("{\"from\": 1}\n", ":1"),
        ("{\"from\": \"a/b\", \"action\": \"deny\"}\n", "unknown field `action`"),
        ("", "no flows"),
    ] {
        let output = agent(&dir, &["simulate", "--flows", "-"], input);
        assert_eq!(output.status.code(), Some(2), "{input}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{word}: {output:?}");
    }
}

#[test]
fn plan_prints_the_writes_in_their_order() {
    let dir = objects();
    let output = agent(&dir, &["plan", "--node-name", "n1"], "");
    let text = String::from_utf8(output.stdout).unwrap();
    let place = |word: &str| text.find(word).unwrap_or_else(|| panic!("{word}: {text}"));
    assert!(
        place("put row") < place("put endpoint") && place("put endpoint") < place("put config"),
        "{text}"
    );
    let output = agent(&dir, &["plan", "--node-name", "n-1"], "");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("neither a node \"n-1\" nor a pod on it"), "{stderr}");
}
