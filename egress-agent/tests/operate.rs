//! What somebody who runs the agent sees of it: metrics, health, flow log, live answers. Real agent, real kernel.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/scrape.rs"]
mod scrape;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use common::{Stand, denied, eventually, outside, passes, pinned_hash, pod_object, policy, udp};
use egress_common::wire::{Endpoint, Keyed};
use egress_topology::{Agent, CgroupDriver, Container, ContainerKind, Exec, PodSpec, kubernetes};
use scrape::{Scrape, parse};
use serde_json::{Value, json};

const LISTEN: &str = "127.0.0.1:9464";

/// A stand whose agent listens.
fn stand(more: &[&str]) -> Stand {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.agent = stand.agent.arguments(&[&["--listen", LISTEN], more].concat());
    stand
}

fn try_get(stand: &Stand, path: &str, accept: &str) -> std::io::Result<(u16, String)> {
    let address: SocketAddr = LISTEN.parse().unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nAccept: {accept}\r\n\r\n");
    let answer = stand.topology.node().run(|| {
        let answer = || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(request.as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        Ok(answer())
    });
    let text: String = answer.unwrap()?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Ok((head[9..12].parse().unwrap(), body.to_owned()))
}

fn get(stand: &Stand, path: &str) -> (u16, String) {
    try_get(stand, path, "*/*").unwrap()
}

fn scrape(stand: &Stand) -> Scrape {
    let (code, text) = try_get(stand, "/metrics", "application/openmetrics-text; version=1.0.0").unwrap();
    assert_eq!(code, 200);
    assert!(!text.contains("a/pod") && !text.contains("b/free"), "no names of pods: {text}");
    parse(&text, true)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a command of the running agent prints, with its exit code.
fn ask(stand: &Stand, words: &[&str]) -> (Option<i32>, Value) {
    let output = stand.agent.ask(&[words, &["--output", "json"]].concat()).unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}")))
}

/// The proxy's container of a pod, once the agent knows it.
fn proxy(stand: &Stand, app: &Container) -> Container {
    let proxy = app.pod().add_container_of_kind("istio-proxy", ContainerKind::Sidecar).unwrap();
    stand.write(pod_object(stand, app.pod()));
    eventually("the proxy is known", || {
        common::endpoints(&stand.agent).iter().any(|one| one["proxies"] == json!(["istio-proxy"]))
    });
    proxy
}

/// A lock for the proxy, and what else is allowed.
fn locked() -> Value {
    json!({"proxy": {"containers": ["istio-proxy"]}, "allow": {"to": [{"cidr": "198.51.100.10/32"}]}})
}

#[test]
fn counters_move_with_what_is_denied_and_not_with_what_passes() {
    let mut stand = stand(&[]);
    stand.lock_down(locked());
    let (app, free) = (stand.pod(PodSpec::new("a", "pod")), stand.pod(PodSpec::new("b", "free")));
    stand.start();
    let proxy = proxy(&stand, &app);
    let deny = |scrape: &Scrape| scrape.sum("verdicts_total", &[("action", "deny")]);
    let bypass = |scrape: &Scrape| scrape.sum("bypass_attempts_total", &[("action", "deny")]);
    let of_policy = |scrape: &Scrape| {
        let labels =
            [("policy", "EgressGatewayPolicy lock"), ("reason", "SidecarBypass"), ("action", "deny")];
        scrape.sum("policy_denials_total", &labels)
    };
    let before = scrape(&stand);
    assert_eq!(before.value("ready", &[]), Some(1.0));
    assert_eq!(before.value("bypass_attempts_total", &[("action", "deny"), ("hook", "socket")]), Some(0.0));

    passes(&free, &outside()[0]);
    passes(&proxy, &outside()[0]);
    std::thread::sleep(Duration::from_millis(1500));
    let lawful = scrape(&stand);
    assert_eq!((deny(&lawful), bypass(&lawful)), (deny(&before), 0.0), "nothing was denied");
    let allowed = |scrape: &Scrape| scrape.sum("verdicts_total", &[("action", "allow"), ("hook", "socket")]);
    assert!(allowed(&lawful) > allowed(&before));

    denied(&app, &outside()[0]);
    eventually("the attempt is counted", || bypass(&scrape(&stand)) > 0.0);
    let after = scrape(&stand);
    assert!(deny(&after) > deny(&before) && of_policy(&after) > 0.0);
    assert_eq!(
        bypass(&after),
        after.sum("verdicts_total", &[("reason", "SidecarBypass"), ("action", "deny")])
    );
    assert_eq!(after.sum("policy_denials_total", &[("policy", "none")]), 0.0);

    assert_eq!(after.value("endpoints", &[("state", "Isolated")]), Some(1.0));
    assert_eq!(after.value("endpoints", &[("state", "Unselected")]), Some(1.0));
    assert_eq!(after.value("endpoints_covered", &[("coverage", "both")]), Some(2.0));
    assert_eq!(after.value("map_entries", &[("map", "egress_endpoint")]), Some(2.0));
    assert!(after.value("map_capacity", &[("map", "egress_endpoint")]).unwrap() > 2.0);
    assert_eq!(after.value("hook_attached", &[("program", "egress_socket")]), Some(1.0));
    assert!(after.value("memory_bytes", &[]).unwrap() > 1e6);
    // A policy that audits counts what it would deny as audited.
    let mut audit = locked();
    audit["enforcement"] = json!("Audit");
    stand.lock_down(audit);
    eventually("it audits", || scrape(&stand).value("endpoints", &[("state", "Audited")]) == Some(1.0));
    passes(&app, &outside()[0]);
    let audited = || scrape(&stand).sum("bypass_attempts_total", &[("action", "audit")]);
    eventually("it is counted as audited", || audited() > 0.0);
    // The kernel's counters go on where they were; those of the agent begin anew.
    stand.agent.kill().unwrap();
    stand.start();
    let anew = scrape(&stand);
    assert!(bypass(&anew) >= bypass(&after));
    assert_eq!(of_policy(&anew), 0.0);
    // Both formats, as Prometheus and as everybody else gets them.
    let (code, plain) = get(&stand, "/metrics");
    assert_eq!(code, 200);
    assert!(parse(&plain, false).value("verdicts_total", &[]).is_none() && plain.contains("verdicts_total{"));
}

#[test]
fn histograms_count_the_applies() {
    let mut stand = stand(&[]);
    stand.write(kubernetes::node(&stand.topology));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let applies = |scrape: &Scrape| scrape.value("apply_duration_seconds_count", &[]).unwrap();
    let enforced = |scrape: &Scrape| scrape.value("event_to_enforced_seconds_count", &[]).unwrap();
    let revision = |scrape: &Scrape| scrape.value("revision", &[]).unwrap();
    let first = scrape(&stand);
    assert_eq!(applies(&first), revision(&first), "the maps are new");
    for round in 1..=3_u32 {
        stand.lock_down(json!({"allow": {"node": true, "to": [{"cidr": format!("192.0.2.{round}/32")}]}}));
        eventually("it is applied", || revision(&scrape(&stand)) >= revision(&first) + f64::from(round));
        assert!(scrape(&stand).value("revision_age_seconds", &[]).unwrap() < 5.0);
    }
    denied(&pod, &outside()[0]);
    // What no source tells of is an event as well.
    stand.topology.node().add_address("cni0", "10.244.1.254".parse().unwrap(), 32).unwrap();
    eventually("it is applied", || revision(&scrape(&stand)) >= revision(&first) + 4.0);
    let last = scrape(&stand);
    assert_eq!(applies(&last), revision(&last));
    assert_eq!(enforced(&last) - enforced(&first), applies(&last) - applies(&first));
    eventually("nothing waits", || scrape(&stand).value("behind_seconds", &[]) == Some(0.0));
    // Policies waited for the directory to come to rest (but one that a tick came across), and none for the tick.
    let whole = last.value("event_to_enforced_seconds_sum", &[]).unwrap()
        - first.value("event_to_enforced_seconds_sum", &[]).unwrap();
    assert!((0.03..3.0).contains(&whole), "{whole}");
    // What is no object of ours is an event, but changes nothing.
    stand
        .write(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "a", "name": "c"}}));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(applies(&scrape(&stand)), applies(&last));
}

#[test]
fn readyz_names_what_is_missing_and_healthz_does_not_mind() {
    let mut stand = stand(&[]);
    let path = stand.agent.objects().join("lock.yaml");
    let whole = policy(json!({})).to_string();
    fs::write(&path, format!("{whole}]")).unwrap();
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.agent.spawn(&stand.topology).unwrap();
    stand.agent.wait("it is held", |status| status["pending"].to_string().contains("policy")).unwrap();
    let (code, body) = get(&stand, "/readyz");
    assert_eq!(code, 503);
    assert!(body.starts_with("not ready\n- ") && body.contains("may be a policy"), "{body}");
    assert_eq!(get(&stand, "/healthz"), (200, "ok\n".to_owned()));
    std::thread::sleep(Duration::from_millis(1100));
    let held = scrape(&stand);
    assert_eq!((held.value("ready", &[]), held.value("pending", &[])), (Some(0.0), Some(1.0)));
    assert_eq!(held.value("source_errors", &[]), Some(1.0));
    assert!(held.value("behind_seconds", &[]).unwrap() > 0.5);
    fs::write(&path, &whole).unwrap();
    stand.agent.wait("it is read", |status| status["ready"] == true).unwrap();
    assert_eq!(get(&stand, "/readyz"), (200, "ready\n".to_owned()));
    eventually("nothing waits", || scrape(&stand).value("behind_seconds", &[]) == Some(0.0));
    denied(&pod, &outside()[0]);
    // A policy that cannot be understood is enforced by closing; that is ready, and counted.
    stand.lock_down(json!({"allow": {"to": [{"cidr": "198.51.100.10/24"}]}}));
    fs::remove_file(&path).unwrap();
    eventually("it is counted", || scrape(&stand).value("invalid_policies", &[]) == Some(1.0));
    assert_eq!(scrape(&stand).value("endpoints", &[("state", "Invalid")]), Some(1.0));
    assert_eq!(get(&stand, "/readyz").0, 200);
    assert_eq!(get(&stand, "/").0, 404);
}

#[test]
fn a_port_that_is_taken_is_said_before_anything_is_touched() {
    let mut stand = stand(&[]);
    let holder = stand.topology.node().run(|| Ok(std::net::TcpListener::bind(LISTEN)?)).unwrap();
    let run = |stand: &Stand| {
        let process = stand.topology.node_exec(&stand.agent.run(&stand.topology)).unwrap();
        process.finish(Duration::from_secs(10)).unwrap()
    };
    let finished = run(&stand);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains(LISTEN) && finished.stderr.contains("in use"), "{finished:?}");
    assert!(stand.agent.pins().unwrap().iter().all(|path| path.is_dir()), "nothing is pinned");
    drop(holder);
    stand.start();
    assert_eq!(get(&stand, "/readyz").0, 200);
    // Without the flag no port is open.
    stand.agent.stop().unwrap();
    stand.agent = Agent::new(common::agent_binary(), stand.bpffs.path(), stand.dir.path());
    stand.start();
    assert!(try_get(&stand, "/healthz", "*/*").is_err());
}

#[test]
fn many_slow_clients_of_one_address_leave_room_for_others() {
    let mut stand = stand(&[]);
    stand.agent = stand.agent.arguments(&["--listen", "0.0.0.0:9464"]);
    let pod = stand.pod(PodSpec::new("b", "free"));
    stand.start();
    let address: SocketAddr = "10.244.1.1:9464".parse().unwrap();
    // From another address than the node's own, as pods would.
    let open = || {
        let connect = || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"GET /metrics HT")?;
            Ok(stream)
        };
        pod.pod().netns().run(|| (0..20).map(|_| connect()).collect::<anyhow::Result<Vec<_>>>()).unwrap()
    };
    let slow = open();
    assert_eq!(get(&stand, "/healthz").0, 200, "the node's own are answered");
    eventually("the others were refused", || {
        scrape(&stand).value("http_refused_total", &[]).unwrap() >= 12.0
    });
    drop(slow);
}

#[test]
fn the_log_is_json_where_that_is_asked_for() {
    let mut stand = stand(&["--log-format", "json"]);
    stand.lock_down(json!({}));
    stand.start();
    let log = stand.agent.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let enforcing = lines.iter().find(|line| line["message"] == "enforcing").unwrap();
    assert_eq!((&enforcing["node"], &enforcing["level"]), (&json!("node-1"), &json!("INFO")));
}

fn lines(path: &PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_flow_log_has_names_and_follows_its_file() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let path = stand.dir.path().join("flows.jsonl");
    stand.agent = stand.agent.arguments(&["--flow-log", path.to_str().unwrap()]);
    let peer = stand.peer();
    stand.write(kubernetes::node(&stand.topology));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "echo"},
        "spec": {"clusterIP": "10.96.0.50", "clusterIPs": ["10.96.0.50"],
            "ports": [{"port": common::UDP, "protocol": "UDP"}]},
    });
    stand.write(service);
    let proxy = json!({"containers": ["istio-proxy"]});
    stand.lock_down(json!({"proxy": proxy, "allow": {"inCluster": false, "dns": "None"}}));
    let (pod, free) = (stand.pod(PodSpec::new("a", "pod")), stand.pod(PodSpec::new("b", "free")));
    stand.start();
    passes(&free, peer.pod().v4());
    denied(&pod, peer.pod().v4());
    denied(&pod, "10.96.0.50");
    denied(&pod, "198.51.100.1");
    denied(&pod, &outside()[0]);
    let to = |address: &str| {
        let address = format!("{address}:{}", common::UDP);
        lines(&path).into_iter().find(|line| line["destination"] == *address)
    };
    eventually("the last one is written", || to("198.51.100.10").is_some());
    for line in lines(&path) {
        assert_eq!(
            (&line["pod"], &line["container"], &line["node"]),
            (&json!("a/pod"), &json!("app"), &json!("node-1")),
            "{line}"
        );
        assert_eq!((&line["uid"], &line["action"]), (&json!(pod.pod().uid()), &json!("deny")));
        assert!(line["process"]["command"].is_string(), "{line}");
    }
    let names = |address: &str| {
        let line = to(address).unwrap();
        ["destination_pod", "destination_service", "destination_node"].map(|key| line[key].clone())
    };
    let peer_name = format!("default/{}", peer.pod().name());
    assert_eq!(names(&peer.pod().v4().to_string()), [json!(peer_name), Value::Null, json!("node-1")]);
    assert_eq!(names("10.96.0.50"), [Value::Null, json!("default/echo"), Value::Null]);
    assert_eq!(names("198.51.100.1"), [Value::Null, Value::Null, json!("node-1")]);
    assert_eq!(names("198.51.100.10"), [Value::Null, Value::Null, Value::Null]);

    let old = path.with_extension("1");
    fs::rename(&path, &old).unwrap();
    let before = lines(&old).len();
    denied(&pod, &outside()[0]);
    eventually("it is opened anew", || !lines(&path).is_empty());
    assert_eq!(lines(&old).len(), before);
    // What was seen before the end is there after it.
    denied(&pod, &outside()[1]);
    eventually("the agent has seen it", || {
        stand.agent.flows().unwrap().iter().any(|flow| flow["destination"].to_string().contains("2001:db8"))
    });
    stand.agent.stop().unwrap();
    assert!(lines(&path).iter().any(|line| line["destination"].to_string().contains("2001:db8")));
}

#[test]
fn flows_are_chosen_by_pod_container_action_and_reason() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(locked());
    let app = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let proxy = proxy(&stand, &app);
    denied(&app, &outside()[0]);
    denied(&proxy, &outside()[1]);
    let count = |words: &[&str]| {
        let output = stand.agent.ask(&[&["flows"], words].concat()).unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout).lines().count()
    };
    eventually("both are there", || {
        count(&["--container", "istio-proxy"]) > 0 && count(&["--container", "app"]) > 0
    });
    let all = count(&[]);
    assert_eq!(count(&["--container", "app"]) + count(&["--container", "istio-proxy"]), all);
    assert_eq!(count(&["--reason", "SidecarBypass"]), count(&["--container", "app", "--action", "deny"]));
    assert_eq!(count(&["--reason", "SidecarBypass", "--container", "istio-proxy"]), 0);
    assert_eq!((count(&["--action", "deny"]), count(&["--action", "audit"])), (all, 0));
    for wrong in [["--reason", "Nonsense"], ["--action", "allow"]] {
        assert_eq!(stand.agent.ask(&["flows", wrong[0], wrong[1]]).unwrap().status.code(), Some(2));
    }
}

#[test]
fn following_goes_on_with_the_next_agent_and_shows_nothing_twice() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    denied(&pod, &outside()[0]);
    let path = stand.dir.path().join("followed");
    let mut follower = std::process::Command::new(common::agent_binary())
        .args(["flows", "--follow", "--output", "json", "--socket"])
        .arg(stand.agent.socket())
        .stdout(fs::File::create(&path).unwrap())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let shown = |part: &str| {
        lines(&path).iter().filter(|flow| flow["destination"].to_string().contains(part)).count()
    };
    eventually("what was remembered is shown", || shown("198.51.100.10") == 1);
    stand.agent.kill().unwrap();
    // Seen while no agent ran, and read by the next one.
    denied(&pod, "198.51.100.11");
    stand.start();
    denied(&pod, &outside()[1]);
    eventually("the next agent's are shown", || shown("2001:db8") == 1 && shown("198.51.100.11") == 1);
    assert_eq!(shown("198.51.100.10"), 1);
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn explain_says_what_the_objects_and_what_the_kernel_say() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    stand.lock_down(locked());
    let app = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let _proxy = proxy(&stand, &app);
    let explain = |from: &str, to: &str| ask(&stand, &["explain", "--from", from, "--to", to]);
    let out = format!("198.51.100.10:{}/UDP", common::UDP);

    // As offline, and as the kernel does.
    let (code, told) = explain("a/pod/istio-proxy", &out);
    assert_eq!(
        (code, &told["action"], &told["rule"]),
        (Some(0), &json!("allow"), &json!("spec.allow.to[0]")),
        "{told}"
    );
    assert_eq!(
        (&told["kernel"]["action"], &told["kernel"]["node"]),
        (&json!("allow"), &json!("node-1")),
        "{told}"
    );
    assert_eq!(told["kernel"]["differs"], json!([]), "{told}");
    let (code, told) = explain("a/pod/app", &out);
    assert_eq!((code, &told["reason"]), (Some(1), &json!("SidecarBypass")), "{told}");
    assert_eq!(told["kernel"]["reason"], "SidecarBypass", "{told}");
    denied(&app, &outside()[0]);
    let source = format!("file:{}", stand.agent.objects().display());
    let offline =
        stand.agent.ask(&["explain", "--from", "a/pod/app", "--to", &out, "--source", &source, "-o", "json"]);
    let offline: Value = serde_json::from_slice(&offline.unwrap().stdout).unwrap();
    for (key, value) in offline.as_object().unwrap() {
        assert_eq!(&told[key], value, "{key}");
    }
    let inside = format!("{}:{}/UDP", peer.pod().v4(), common::UDP);
    assert_eq!(explain("a/pod/app", &inside).0, Some(0));
    passes(&app, peer.pod().v4());
    let table = stand.agent.ask(&["explain", "--from", "a/pod/app", "--to", &out]).unwrap();
    let table = text(&table.stdout);
    assert!(
        table.contains("deny SidecarBypass: a/pod/app") && table.contains("the kernel of node-1, revision"),
        "{table}"
    );

    // A pod of another node, and none at all.
    let mut other = pod_object(&stand, app.pod());
    other["metadata"] =
        json!({"namespace": "a", "name": "far", "uid": "0c5e7b2e-0000-4000-8000-0000000000bb"});
    other["spec"]["nodeName"] = json!("node-2");
    other["status"]["podIPs"] = json!([{"ip": "10.244.9.9"}]);
    other["status"]["podIP"] = json!("10.244.9.9");
    stand.write(other);
    eventually("it is known", || explain("a/far", &out).1["not_here"].to_string().contains("is on node-2"));
    let (code, told) = explain("a/far", &out);
    assert_eq!((code, &told["kernel"], &told["action"]), (Some(1), &Value::Null, &json!("deny")), "{told}");
    assert_eq!(explain("a/far/istio-proxy", &out).0, Some(0));
    let (code, told) = explain("a/nobody", &out);
    assert_eq!((code, &told["reason"]), (Some(1), &json!("UnknownPod")), "{told}");
    assert!(told["not_here"].to_string().contains("no pod of that name"), "{told}");

    // Somebody takes the pod's entry away: the objects still allow, the kernel does not, and both are said.
    let mut map = pinned_hash::<u64, Keyed<u64, Endpoint>>(&stand, "egress_endpoint");
    let endpoints = common::endpoints(&stand.agent);
    let cgroup = endpoints.iter().find(|one| one["name"] == "pod").unwrap()["cgroup"].as_u64().unwrap();
    map.remove(&cgroup).unwrap();
    let output =
        stand.agent.ask(&["explain", "--from", "a/pod/istio-proxy", "--to", &out, "-o", "json"]).unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["action"], &told["kernel"]["reason"]),
        (&json!("allow"), &json!("UnknownPod")),
        "{told}"
    );
    assert!(told["kernel"]["differs"][0]["compiled"].as_str().unwrap().starts_with("endpoint"), "{told}");
    assert_eq!(told["kernel"]["differs"][0]["kernel"], Value::Null, "{told}");
    assert!(text(&output.stderr).contains("another verdict"), "{output:?}");
    // And plan says what it would take.
    let plan = stand.agent.ask(&["plan"]).unwrap();
    assert!(text(&plan.stdout).contains(&format!("put endpoint {cgroup}")), "{plan:?}");
}

#[test]
fn plan_simulate_and_lint_ask_the_running_agent() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let ask = |words: &[&str]| -> Output { stand.agent.ask(words).unwrap() };
    let plan = ask(&["plan"]);
    assert!(
        plan.status.success() && !text(&plan.stdout).contains("put "),
        "nothing is to be written: {plan:?}"
    );
    assert!(text(&plan.stderr).contains("nothing to write"), "{plan:?}");

    let flows = stand.dir.path().join("flows.csv");
    fs::write(&flows, "from,to,port,protocol\na/pod,198.51.100.10,443,TCP\nb/free,198.51.100.10,443,TCP\n")
        .unwrap();
    let flows = flows.to_str().unwrap();
    let simulated = ask(&["simulate", "--flows", flows]);
    let lines: Vec<_> = text(&simulated.stdout).lines().map(str::to_owned).collect();
    assert!(lines.len() == 2 && lines[0].starts_with("deny"), "{simulated:?}");
    let with = stand.dir.path().join("more.json");
    fs::write(&with, policy(json!({"allow": {"to": [{"cidr": "198.51.100.0/24"}]}})).to_string()).unwrap();
    let changed = ask(&["simulate", "--flows", flows, "--with", with.to_str().unwrap()]);
    assert!(text(&changed.stdout).contains("(was deny)"), "{changed:?}");
    assert!(text(&changed.stderr).contains("1 of 2 flows would change"), "{changed:?}");
    fs::write(&with, "kind: [").unwrap();
    assert_eq!(ask(&["simulate", "--flows", flows, "--with", with.to_str().unwrap()]).status.code(), Some(2));
    denied(&pod, &outside()[0]);

    stand.lock_down(json!({"allow": {"to": [{"cidr": "0.0.0.0/0"}]}}));
    eventually("an open exit is a finding", || ask(&["lint"]).status.code() == Some(1));
    let source = format!("file:{}", stand.agent.objects().display());
    let (live, offline) = (ask(&["lint", "-o", "json"]), ask(&["lint", "-o", "json", "--source", &source]));
    assert_eq!((live.status.code(), text(&live.stdout)), (offline.status.code(), text(&offline.stdout)));
    assert!(text(&live.stdout).contains("open-exit"), "{live:?}");
}

#[test]
fn a_flood_is_counted_whole_and_what_was_not_told_is_told() {
    let mut stand = stand(&[]);
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    for _ in 0..3 {
        assert!(!udp(&pod, &outside()[0]).succeeded());
    }
    let reasons = [("reason", "NotAllowed"), ("hook", "socket")];
    let suppressed = || scrape(&stand).sum("suppressed_events_total", &reasons);
    let denials = || scrape(&stand).sum("policy_denials_total", &reasons);
    eventually("they are counted", || denials() >= 3.0);
    assert_eq!(suppressed(), 0.0, "each was told");
    let words = ["flood", "198.51.100.10:9999", "--count", "1000", "--for-ms", "5000"];
    let _flood = pod.spawn(&Exec::probe(words)).unwrap();
    eventually("the rest is counted", || denials() >= 1003.0 && suppressed() > 0.0);
    assert_eq!(denials(), 1003.0);
    // One flow is told once in a window by each CPU, however many packets it has.
    let flows = stand.agent.flows().unwrap();
    let flood = flows
        .iter()
        .filter(|flow| flow["suppressed"] != 0 || flow["destination"] == "198.51.100.10:9999")
        .count();
    assert!(flood < 64, "{flood} events");
    // A ping socket's process is not known, its container is.
    assert!(!pod.attempt(&["ping", "198.51.100.10", "--timeout-ms", "200"]).unwrap().succeeded());
    let icmp = |flow: &Value| flow["protocol"] == "ICMP";
    eventually("the echo request is told", || stand.agent.flows().unwrap().iter().any(icmp));
    let flows = stand.agent.flows().unwrap();
    assert!(flows.iter().all(|flow| flow["container"] == "app"), "{flows:?}");
}
