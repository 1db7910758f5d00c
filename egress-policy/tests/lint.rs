//! What weakens the mesh's exit: each check, and the nearest lawful object, which is no finding.
#![expect(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "tests take literals, and fail by panic"
)]

mod common;

use std::collections::BTreeSet;

use common::{Value, World, egp, json, labels, namespace, node, np, pod, set, slice, world};
use egress_policy::compile::PodState;
use egress_policy::lint::{Check, Finding, Severity, lint};
use egress_policy::object::{Read, Workload, by_themselves, read};

/// A pod with an application beside a proxy.
fn meshed(name: &str, ip: &str, labels: Value) -> Value {
    containers(pod(name, ip, labels), json!([{"name": "app"}, {"name": "istio-proxy"}]))
}

fn containers(pod: Value, containers: Value) -> Value {
    set(pod, "/spec/containers", containers)
}

fn web() -> Value {
    meshed("app/web", "10.0.1.1", json!({"app": "web"}))
}

fn gate() -> Value {
    containers(
        pod("gw/gate", "10.0.2.1", json!({"istio": "egressgateway"})),
        json!([{"name": "istio-proxy", "securityContext": {"runAsUser": 1337}}]),
    )
}

fn spec(extra: Value) -> Value {
    let mut spec = json!({
        "subjects": [{"namespaces": labels("mesh", "on")}],
        "gateways": [{"name": "out", "namespaces": labels("kubernetes.io/metadata.name", "gw"),
            "pods": labels("istio", "egressgateway"), "destinations": [{"cidr": "198.51.100.0/24"}]}]});
    for (field, value) in extra.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

/// A mesh without a flaw: `app/web` locked down with its proxy, `gw/gate` its gateway, `other/free` in no mesh.
fn clean() -> World {
    world([
        namespace("app", json!({"mesh": "on"})),
        namespace("gw", json!({})),
        namespace("other", json!({})),
        node("node-b", "192.168.0.2"),
        web(),
        gate(),
        pod("other/free", "10.0.1.3", json!({})),
        egp("mesh", spec(json!({}))),
    ])
}

fn findings(world: &World) -> Vec<String> {
    lint(&world.index, &[])
        .iter()
        .map(|Finding { check, object, detail }| format!("{check} {object}: {detail}"))
        .collect()
}

/// What an object, put into the clean mesh, is told.
#[track_caller]
fn finds(object: Value, expected: &[&str]) {
    assert_eq!(findings(&clean().with(object)), expected);
}

#[track_caller]
fn lawful(object: Value) {
    finds(object, &[]);
}

fn annotated(key: &str, value: &str) -> Value {
    set(web(), "/metadata/annotations", json!({key: value}))
}

fn policy(extra: Value) -> Value {
    egp("mesh", spec(extra))
}

/// The gateway's entry with some fields changed; null takes one away.
fn entry(extra: Value) -> Value {
    let mut gateway = spec(json!({}))["gateways"][0].clone();
    for (field, value) in extra.as_object().unwrap() {
        match value {
            Value::Null => drop(gateway.as_object_mut().unwrap().remove(field)),
            value => gateway[field] = value.clone(),
        }
    }
    policy(json!({"gateways": [gateway]}))
}

#[test]
fn a_mesh_without_a_flaw_has_no_finding() {
    assert_eq!(findings(&clean()), Vec::<String>::new());
    assert_eq!(findings(&World { index: egress_policy::Index::default(), ..clean() }), Vec::<String>::new());
}

#[test]
fn names_are_distinct_and_every_check_says_what_to_do() {
    let names: BTreeSet<_> = Check::ALL.iter().map(|check| check.name()).collect();
    assert_eq!(names.len(), Check::ALL.len());
    for check in Check::ALL {
        assert!(check.name().chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{check}");
        assert!(!check.describe().is_empty() && !check.advice().is_empty(), "{check}");
    }
}

#[test]
fn annotations_that_exclude_traffic() {
    for (key, value) in [
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "0.0.0.0/0"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "5432"),
        ("traffic.sidecar.istio.io/excludeInterfaces", "net1"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", ""),
        ("sidecar.istio.io/interceptionMode", "NONE"),
        ("config.linkerd.io/skip-outbound-ports", "443"),
        ("config.linkerd.io/skip-subnets", "10.0.0.0/8"),
    ] {
        finds(annotated(key, value), &[&format!("mesh-exclusion Pod app/web: {key} is {value:?}")]);
    }
    for (key, value) in [
        ("traffic.sidecar.istio.io/excludeOutboundPorts", ""),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "*"),
        ("traffic.sidecar.istio.io/includeOutboundPorts", "443"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "15020"),
        ("sidecar.istio.io/interceptionMode", "REDIRECT"),
    ] {
        lawful(annotated(key, value));
    }
}

#[test]
fn pods_that_ask_for_no_proxy() {
    let bare = |pod| containers(pod, json!([{"name": "app"}]));
    for (key, value) in [("sidecar.istio.io/inject", "false"), ("linkerd.io/inject", "disabled")] {
        let detail = format!("injection-disabled Pod app/web: annotation {key} is {value:?}");
        finds(bare(annotated(key, value)), &[&detail]);
        lawful(annotated(key, value));
    }
    let label = set(web(), "/metadata/labels", json!({"sidecar.istio.io/inject": "false"}));
    let detail = "injection-disabled Pod app/web: label sidecar.istio.io/inject is \"false\"";
    finds(bare(label), &[detail]);
    let both = set(
        annotated("sidecar.istio.io/inject", "false"),
        "/metadata/labels",
        json!({"sidecar.istio.io/inject": "true"}),
    );
    finds(bare(both), &["no-proxy Pod app/web: no container istio-proxy or linkerd-proxy"]);
}

#[test]
fn subjects_without_a_proxy() {
    let missing = "no-proxy Pod app/web: no container istio-proxy or linkerd-proxy";
    let bare = containers(web(), json!([{"name": "app"}]));
    finds(bare.clone(), &[missing]);
    lawful(containers(web(), json!([{"name": "app"}, {"name": "linkerd-proxy"}])));
    let init = |container: Value| set(bare.clone(), "/spec/initContainers", json!([container]));
    lawful(init(json!({"name": "istio-proxy", "restartPolicy": "Always"})));
    finds(init(json!({"name": "istio-proxy"})), &[missing]);

    let ambient = |value: &str| json!({"istio.io/dataplane-mode": value});
    lawful(set(bare.clone(), "/metadata/labels", ambient("ambient")));
    let space = namespace("app", json!({"mesh": "on", "istio.io/dataplane-mode": "ambient"}));
    assert_eq!(findings(&clean().with(bare.clone()).with(space.clone())), Vec::<String>::new());
    let out = set(bare.clone(), "/metadata/labels", ambient("none"));
    assert_eq!(findings(&clean().with(space).with(out)), [missing]);

    lawful(set(bare, "/status/phase", json!("Succeeded")));
}

#[test]
fn containers_that_run_as_the_proxy() {
    let app = |context: Value| {
        containers(web(), json!([{"name": "app", "securityContext": context}, {"name": "istio-proxy"}]))
    };
    let found = |who: &str| format!("proxy-user Pod app/web: container app runs as {who}'s proxy");
    finds(app(json!({"runAsUser": 1337})), &[&found("user 1337, which is Istio")]);
    finds(app(json!({"runAsUser": 2102})), &[&found("user 2102, which is Linkerd")]);
    finds(
        app(json!({"runAsGroup": 1337})),
        &["proxy-user Pod app/web: container app runs as group 1337, which is Istio's proxy"],
    );
    lawful(app(json!({"runAsUser": 1338, "runAsGroup": 2102})));
    // The pod's user is the container's unless that says otherwise.
    let of_pod = |pod| set(pod, "/spec/securityContext", json!({"runAsUser": 1337, "runAsGroup": 1337}));
    assert_eq!(findings(&clean().with(of_pod(app(json!({}))))).len(), 2);
    lawful(of_pod(app(json!({"runAsUser": 1000, "runAsGroup": 1000}))));
    let init = |name: &str| {
        set(web(), "/spec/initContainers", json!([{"name": name, "securityContext": {"runAsUser": 1337}}]))
    };
    lawful(init("istio-validation"));
    assert_eq!(findings(&clean().with(init("migrate"))).len(), 1);
}

#[test]
fn containers_that_can_change_the_redirect_or_own_the_node() {
    let app = |context: Value| {
        containers(web(), json!([{"name": "app", "securityContext": context}, {"name": "istio-proxy"}]))
    };
    let with = |names: &[&str]| app(json!({"capabilities": {"add": names}}));
    let net = |what: &str| format!("net-capability Pod app/web: container app has {what}");
    finds(with(&["NET_ADMIN"]), &[&net("NET_ADMIN")]);
    finds(with(&["cap_net_raw", "Net_Admin"]), &[&net("NET_ADMIN and NET_RAW")]);
    lawful(with(&["NET_BIND_SERVICE", "CHOWN"]));
    lawful(app(json!({"capabilities": {"drop": ["NET_RAW"]}})));

    let owner = |what: &str| format!("node-capability Pod app/web: container app {what}");
    finds(app(json!({"privileged": true})), &[&owner("is privileged")]);
    finds(with(&["all"]), &[&owner("has ALL")]);
    finds(with(&["CAP_SYS_ADMIN"]), &[&owner("has SYS_ADMIN")]);
    lawful(app(json!({"privileged": false})));
    finds(with(&["SYS_MODULE"]), &[&owner("has SYS_MODULE")]);
    lawful(with(&["SYS_PTRACE"]));
    let sees_all = set(with(&["SYS_PTRACE"]), "/spec/hostPID", json!(true));
    finds(sees_all, &[&owner("has SYS_PTRACE, and hostPID is true")]);
    let mounts = |path: &str| set(web(), "/spec/volumes", json!([{"name": "v", "hostPath": {"path": path}}]));
    for path in
        ["/", "/sys/fs/bpf", "/var/run/docker.sock", "/run//containerd/", "/etc", "/var/lib/kubelet/pods"]
    {
        finds(mounts(path), &[&format!("node-capability Pod app/web: it mounts {path} of its node")]);
    }
    for path in ["/var/log", "/system", "/srv/data", "/var/run/secrets"] {
        lawful(mounts(path));
    }
    lawful(set(
        web(),
        "/spec/volumes",
        json!([{"name": "v", "emptyDir": {}}, {"name": "w", "hostPath": null}]),
    ));

    let both = json!({"privileged": true, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}});
    let init =
        |name: &str| set(web(), "/spec/initContainers", json!([{"name": name, "securityContext": both}]));
    lawful(init("istio-init"));
    lawful(init("linkerd-init"));
    assert_eq!(findings(&clean().with(init("setup"))).len(), 2);
    // By its name alone a container is no init container.
    let regular = json!([{"name": "istio-init", "securityContext": both}, {"name": "istio-proxy"}]);
    assert_eq!(findings(&clean().with(containers(web(), regular))).len(), 2);
    // A proxy in TPROXY mode has both, but is not privileged.
    let proxy = |context: Value| {
        containers(web(), json!([{"name": "app"}, {"name": "istio-proxy", "securityContext": context}]))
    };
    lawful(proxy(json!({"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}, "runAsUser": 1337})));
    finds(
        proxy(json!({"privileged": true})),
        &["node-capability Pod app/web: container istio-proxy is privileged"],
    );
}

#[test]
fn subjects_on_the_host_network() {
    let host = |name: &str| set(pod(name, "192.168.0.1", json!({})), "/spec/hostNetwork", json!(true));
    finds(host("app/agent"), &["host-network Pod app/agent: hostNetwork is true"]);
    lawful(host("other/agent"));
}

#[test]
fn debug_containers() {
    let debug = |pod| set(pod, "/spec/ephemeralContainers", json!([{"name": "debugger"}]));
    finds(debug(web()), &["debug-container Pod app/web: container debugger is ephemeral"]);
    lawful(debug(pod("other/free", "10.0.1.3", json!({}))));
}

#[test]
fn gateways_without_a_policy() {
    for (key, value) in [
        ("istio", "egressgateway"),
        ("app", "istio-egressgateway"),
        ("gateway.networking.k8s.io/gateway-name", "shared-egress"),
    ] {
        let stray = pod("other/gate", "10.0.2.2", json!({key: value}));
        let detail = format!(
            "gateway-without-policy Pod other/gate: label {key} is {value:?}, but no policy's gateways name it"
        );
        finds(stray, &[&detail]);
    }
    for (key, value) in [
        ("istio", "ingressgateway"),
        ("app", "istio-ingressgateway"),
        ("gateway.networking.k8s.io/gateway-name", "public"),
    ] {
        lawful(pod("other/gate", "10.0.2.2", json!({key: value})));
    }
    // The only gateway is one that no policy can name.
    let host = set(gate(), "/spec/hostNetwork", json!(true));
    let found = findings(&clean().with(host));
    assert!(found[0].ends_with("as none can: it is on the host network"), "{found:?}");
}

#[test]
fn gateways_without_destinations() {
    let of = |name: &str| {
        [format!(
            "gateway-unrestricted EgressGatewayPolicy {name}: spec.gateways[0] (out) has no destinations"
        )]
    };
    assert_eq!(findings(&clean().with(entry(json!({"destinations": null})))), of("mesh"));
    // Nothing is allowed, which is a restriction.
    lawful(entry(json!({"destinations": []})));
    let wide = "gateway-unrestricted EgressGatewayPolicy mesh: spec.gateways[0] (out) has destinations[1] wider than any private network";
    finds(entry(json!({"destinations": [{"cidr": "192.0.2.0/24"}, {"cidr": "0.0.0.0/0"}]})), &[wide]);
    // The first policy's destinations restrict the pods for both.
    lawful(egp(
        "second",
        spec(json!({"gateways": entry(json!({"destinations": null}))["spec"]["gateways"]})),
    ));
    // Addresses are no pods of ours.
    let addresses = json!([{"name": "far", "addresses": ["192.0.2.0/24"]}]);
    lawful(egp("second", spec(json!({"gateways": addresses}))));
}

#[test]
fn gateways_that_exempt_applications() {
    let broad = |namespace: &str| {
        entry(json!({"namespaces": labels("kubernetes.io/metadata.name", namespace), "pods": {}}))
    };
    let found = findings(&clean().with(broad("app")));
    let exempts = "gateway-exempts-subjects EgressGatewayPolicy mesh: spec.gateways[0] (out) exempts 1 subject: app/web";
    assert!(found.contains(&exempts.to_owned()), "{found:#?}");
    // A gateway in a namespace of subjects is exempt by design: it runs nothing but a proxy.
    let gateway = namespace("gw", json!({"mesh": "on"}));
    lawful(gateway.clone());
    // Its labels are no evidence, for anybody can write them.
    let posing = meshed("gw/posing", "10.0.2.3", json!({"istio": "egressgateway"}));
    let found = findings(&clean().with(gateway).with(posing.clone()));
    let exempts = "gateway-exempts-subjects EgressGatewayPolicy mesh: spec.gateways[0] (out) exempts 1 subject: gw/posing";
    assert_eq!(found, [exempts]);
    lawful(posing);
    let many = (1..=5).map(|i| meshed(&format!("app/w{i}"), &format!("10.0.4.{i}"), json!({})));
    let mut world = clean().with(broad("app"));
    for pod in many {
        world.add(pod);
    }
    let found = findings(&world);
    assert!(
        found.iter().any(|f| f.ends_with("exempts 6 subjects: app/w1, app/w2, app/w3 and 3 more")),
        "{found:#?}"
    );
}

#[test]
fn gateways_of_any_namespace() {
    let any = "gateway-any-namespace EgressGatewayPolicy mesh: spec.gateways[0] (out) takes pods of every namespace";
    finds(entry(json!({"namespaces": null})), &[any]);
    finds(entry(json!({"namespaces": {}})), &[any]);
    lawful(entry(json!({"namespaces": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["gw", "gw-2"]}]}})));
}

#[test]
fn gateways_that_another_policys_lock_does_not_cover() {
    let lock = json!({"proxy": {"containers": ["istio-proxy"]}});
    let locked = clean().with(policy(lock.clone()));
    assert_eq!(findings(&locked), Vec::<String>::new());
    let finding = "lock-opened EgressGatewayPolicy more: spec.gateways[0] (out) is open to every container of 1 subject that mesh \
                   locks: app/web";
    assert_eq!(findings(&locked.with(egp("more", spec(json!({}))))), [finding]);
    let world = || clean().with(policy(lock.clone()));
    assert_eq!(findings(&world().with(egp("more", spec(lock.clone())))), Vec::<String>::new());
    // It is not for those that are locked, or opens nothing.
    let mut others = spec(json!({}));
    others["gateways"][0]["clients"] = json!([{"pods": {"matchLabels": {"app": "other"}}}]);
    let nobody = "likely-mistake EgressGatewayPolicy more: spec.gateways[0] (out): clients name none of the policy's subjects";
    assert_eq!(findings(&world().with(egp("more", others))), [nobody]);
    assert_eq!(findings(&world().with(egp("more", spec(json!({"gateways": []}))))), Vec::<String>::new());
    // And nobody is locked.
    assert_eq!(findings(&clean().with(egp("more", spec(json!({}))))), Vec::<String>::new());
}

#[test]
fn audits_beside_what_enforces() {
    let audit = json!({"enforcement": "Audit", "gateways": [], "allow": {"to": [{"cidr": "192.0.2.0/24"}]}});
    let alone = |f: &String| f.starts_with("policy-audits");
    let found = findings(&clean().with(egp("next", spec(audit.clone()))));
    let finding = "audit-opens EgressGatewayPolicy next: its rules allow, also 1 subject of policies that enforce: app/web";
    assert!(
        found.contains(&finding.to_owned()) && found.iter().filter(|f| !alone(f)).count() == 1,
        "{found:#?}"
    );
    let found =
        findings(&clean().with(policy(json!({"enforcement": "Audit"}))).with(egp("next", spec(audit))));
    assert!(found.iter().all(alone) && found.len() == 2, "{found:#?}");
}

/// What the agents warn of is a finding, too.
#[test]
fn objects_that_do_not_say_what_they_seem_to() {
    let web = np("app/p", json!({"podSelector": {"matchLabels": {"app": "other"}}, "egress": []}));
    lawful(web.clone());
    let annotated =
        set(web.clone(), "/metadata/annotations", json!({"egress-enforcer.io/enforcement": "audit"}));
    let finding = "likely-mistake NetworkPolicy app/p: metadata.annotations[egress-enforcer.io/enforcement]: \"audit\" is \
                   not Audit or Enforce; enforced";
    finds(annotated, &[finding]);
    let invalid = set(web, "/spec/egress", json!([{"to": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]));
    let found = findings(&clean().with(invalid));
    assert!(
        found.len() == 1 && found[0].starts_with("policy-invalid NetworkPolicy app/p: spec.egress"),
        "{found:#?}"
    );
}

#[test]
fn what_is_written_and_counts_for_nothing() {
    let one = |path: &str, why: &str| format!("likely-mistake EgressGatewayPolicy mesh: {path}: {why}");
    finds(entry(json!({"clients": []})), &[&one("spec.gateways[0]", "clients is empty: nobody may use it")]);
    let to = policy(json!({"allow": {"to": [{"cidr": "10.0.0.0/8", "ports": []}]}}));
    finds(to, &[&one("spec.allow.to[0]", "ports is empty: nothing is allowed")]);
    let mut twice = entry(json!({}));
    let second = twice["spec"]["gateways"][0].clone();
    twice["spec"]["gateways"].as_array_mut().unwrap().push(second);
    finds(twice, &[&one("spec.gateways[1]", "has the name of spec.gateways[0], \"out\"")]);

    let other = |extra: Value| {
        let mut policy = np("other/p", json!({"podSelector": {}, "egress": [{}]}));
        policy["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        policy
    };
    lawful(other(json!({})));
    lawful(other(json!({"policyTypes": ["Ingress", "Egress"]})));
    let of = |path: &str, why: &str| format!("likely-mistake NetworkPolicy other/p: {path}: {why}");
    let ingress = other(json!({"policyTypes": ["Ingress"]}));
    let why = "has no Egress: the rules of spec.egress do not count, and the pods stay open";
    finds(ingress, &[&of("spec.policyTypes", why)]);
    lawful(other(json!({"policyTypes": ["Ingress"], "egress": []})));
    let key = "egress-enforcer.io/enforcment";
    let annotated = set(other(json!({})), "/metadata/annotations", json!({key: "Audit"}));
    let why = "does not count; is egress-enforcer.io/enforcement meant?";
    finds(annotated, &[&of(&format!("metadata.annotations[{key}]"), why)]);
    let nowhere = np("nowhere/p", json!({"podSelector": {}, "egress": [{}]}));
    finds(
        nowhere,
        &[
            "likely-mistake NetworkPolicy nowhere/p: metadata.namespace: there is no Namespace nowhere among the objects",
        ],
    );
}

/// A list that is longer than a row denies what it seems to allow, whoever sends where.
#[test]
fn more_ports_than_there_is_room_for() {
    let ports = |count: u16| (0..count).map(|i| json!({"port": 1000 + 2 * i})).collect::<Vec<_>>();
    let touching =
        (0..100).map(|i| json!({"port": 1000 + 2 * i, "endPort": 1001 + 2 * i})).collect::<Vec<_>>();
    let to = |ports| policy(json!({"allow": {"to": [{"cidr": "10.0.0.0/8", "ports": ports}]}}));
    let out = |ports| entry(json!({"ports": ports}));
    let bound = |ports| entry(json!({"destinations": [{"cidr": "203.0.113.0/24", "ports": ports}]}));
    let other = |ports| np("other/p", json!({"podSelector": {}, "egress": [{"ports": ports}]}));
    let why = "65 ranges of ports: to one destination a pod has at most 64, and the narrowest are denied";
    let mesh = |path: &str| format!("likely-mistake EgressGatewayPolicy mesh: {path}: {why}");
    lawful(to(ports(64)));
    lawful(to(touching.clone()));
    finds(to(ports(65)), &[&mesh("spec.allow.to[0]")]);
    lawful(other(touching));
    finds(other(ports(65)), &[&format!("likely-mistake NetworkPolicy other/p: spec.egress: {why}")]);
    let has = |policy: Value, wanted: String| {
        let found = findings(&clean().with(policy));
        assert!(found.contains(&wanted), "{wanted}: {found:#?}");
    };
    has(out(ports(65)), mesh("spec.gateways[0].ports"));
    has(bound(ports(65)), mesh("spec.gateways[0].destinations[0]"));
}

/// Who asks for no proxy is told so, with a lock and without; and where there is no mesh, nobody has one.
#[test]
fn who_has_no_proxy() {
    let bare = |labels: Value| pod("app/web", "10.0.1.1", labels);
    let wish = json!({"app": "web", "sidecar.istio.io/inject": "false"});
    let locked = || policy(json!({"proxy": {"containers": ["istio-proxy"]}}));
    let asks = "injection-disabled Pod app/web: label sidecar.istio.io/inject is \"false\"";
    finds(bare(wish.clone()), &[asks]);
    assert_eq!(findings(&clean().with(locked()).with(bare(wish))), [asks]);
    let by_lock = "no-proxy Pod app/web: no container istio-proxy, by which alone its policies let it out";
    assert_eq!(findings(&clean().with(locked()).with(bare(json!({"app": "web"})))), [by_lock]);
    let no_mesh = clean().with(bare(json!({"app": "web"}))).without("Pod gw/gate");
    let no_proxy = "no-proxy Pod app/web: no container istio-proxy or linkerd-proxy";
    assert!(!findings(&no_mesh).iter().any(|one| one == no_proxy), "{:#?}", findings(&no_mesh));
}

#[test]
fn containers_that_share_their_processes() {
    let shares = |containers: Value| {
        let pod = set(pod("app/two", "10.0.1.77", json!({"app": "two"})), "/spec/containers", containers);
        clean().with(set(pod, "/spec/shareProcessNamespace", json!(true)))
    };
    let found = findings(&shares(json!([{"name": "app"}, {"name": "istio-proxy"}])));
    assert_eq!(found, ["shared-processes Pod app/two: shareProcessNamespace is true"]);
    let found = findings(&shares(json!([{"name": "app"}])));
    assert!(found.iter().all(|f| !f.starts_with("shared")), "{found:#?}");
    // A debug container sees those of the one that it is given.
    let debugged = |target: &str| {
        let containers = json!([{"name": "app"}, {"name": "istio-proxy"}]);
        let pod = set(pod("app/two", "10.0.1.77", json!({"app": "two"})), "/spec/containers", containers);
        let debug = json!([{"name": "debugger", "targetContainerName": target}]);
        let found = findings(&clean().with(set(pod, "/spec/ephemeralContainers", debug)));
        found.into_iter().filter(|f| f.starts_with("shared")).collect::<Vec<_>>()
    };
    let finding =
        "shared-processes Pod app/two: container debugger is ephemeral, and its target is istio-proxy";
    assert_eq!(debugged("istio-proxy"), [finding]);
    assert!(debugged("app").is_empty() && debugged("").is_empty());
}

#[test]
fn gateways_without_a_ready_pod() {
    let out = |what: &str| format!("no-way-out EgressGatewayPolicy mesh: spec.gateways[0] (out) {what}");
    assert_eq!(findings(&clean().without("Pod gw/gate")), [out("matches no pod")]);
    let not_ready = |ready: bool| {
        let slice = slice("gw/gate", &["10.0.2.1"], json!([{"name": "https", "port": 8443}]));
        set(slice, "/endpoints/0/conditions", json!({"ready": ready}))
    };
    finds(not_ready(false), &[&out("matches 1 pod, none of them ready")]);
    lawful(not_ready(true));
    finds(set(gate(), "/status/phase", json!("Failed")), &[&out("matches no pod")]);
    let addresses = entry(json!({"addresses": ["192.0.2.0/24"]}));
    assert_eq!(findings(&clean().without("Pod gw/gate").with(addresses)), Vec::<String>::new());
    assert_eq!(
        findings(&clean().without("Pod gw/gate").with(policy(json!({"gateways": []})))),
        Vec::<String>::new()
    );
}

#[test]
fn exits_that_are_open() {
    let open = |field: &str, cidr: &str| {
        format!("open-exit EgressGatewayPolicy mesh: {field} is {cidr}, wider than any private network")
    };
    let to = |peer: Value| policy(json!({"allow": {"to": [peer]}}));
    for cidr in ["0.0.0.0/0", "128.0.0.0/1", "8.0.0.0/7", "::/0", "2000::/3"] {
        finds(to(json!({"cidr": cidr})), &[&open("spec.allow.to[0]", cidr)]);
        finds(entry(json!({"addresses": [cidr]})), &[&open("spec.gateways[0] (out).addresses[0]", cidr)]);
    }
    for cidr in ["10.0.0.0/8", "203.0.113.7/32", "fc00::/7", "2001:db8::/32"] {
        lawful(to(json!({"cidr": cidr})));
        lawful(entry(json!({"addresses": [cidr]})));
    }
    // In a prefix that one entry has are pods of another one, or its address.
    let second = |gateways: Value| egp("second", spec(json!({"gateways": gateways})));
    let holds = |what: &str| {
        format!(
            "open-exit EgressGatewayPolicy second: spec.gateways[0].addresses[0] holds {what}: whom that entry's clients and ports keep out gets there all the same"
        )
    };
    finds(second(json!([{"addresses": ["10.0.2.0/24"]}])), &[&holds("spec.gateways[0] (out) of mesh")]);
    lawful(second(json!([{"addresses": ["10.0.2.1/32"]}])));
    lawful(second(json!([{"addresses": ["10.0.9.0/24"]}])));
    let far = json!([{"addresses": ["192.0.2.0/24"]}, {"name": "far", "addresses": ["192.0.2.7/32"]}]);
    finds(second(far), &[&holds("spec.gateways[1] (far) of second")]);
    let db = || to(json!({"service": {"namespace": "other", "name": "db"}}));
    finds(
        db(),
        &[
            "likely-mistake EgressGatewayPolicy mesh: spec.allow.to[0]: there is no Service other/db among the objects",
        ],
    );
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "other", "name": "db"}, "spec": {}});
    assert_eq!(findings(&clean().with(db()).with(service)), Vec::<String>::new());
}

#[test]
fn policies_that_are_invalid_or_audit_or_select_nothing() {
    let second = |extra: Value| egp("second", spec(extra));
    finds(
        second(json!({"enforcement": "Audit"})),
        &[
            "audit-opens EgressGatewayPolicy second: its rules allow, also 1 subject of policies that enforce: app/web",
            "policy-audits EgressGatewayPolicy second: spec.enforcement is Audit",
        ],
    );
    lawful(second(json!({"enforcement": "Enforce"})));
    finds(
        second(json!({"alow": {}})),
        &["policy-invalid EgressGatewayPolicy second: spec.alow: unknown field"],
    );
    let nobody = json!({"subjects": [{"pods": labels("app", "nobody")}]});
    finds(
        second(nobody),
        &["policy-without-subjects EgressGatewayPolicy second: spec.subjects select no pod"],
    );
    lawful(second(json!({"subjects": [{"pods": labels("app", "web")}]})));
    let found =
        findings(&clean().with(second(json!({"subjects": [{"pods": labels("istio", "egressgateway")}]}))));
    let none = "policy-without-subjects EgressGatewayPolicy second: spec.subjects select pods of gateways alone, which are no subjects";
    assert!(found.contains(&none.to_owned()), "{found:#?}");
    // What has finished was a subject.
    let job = set(pod("other/job", "10.0.1.4", json!({"app": "job"})), "/status/phase", json!("Succeeded"));
    let of_job = second(json!({"subjects": [{"pods": labels("app", "job")}]}));
    assert_eq!(findings(&clean().with(job).with(of_job)), Vec::<String>::new());
    // Whom a policy means that names nobody: everybody.
    let found = findings(&clean().with(egp("second", json!({"subject": []}))));
    let first = "no-proxy Pod other/free: no container istio-proxy or linkerd-proxy";
    assert!(found.contains(&first.to_owned()), "{found:#?}");
    assert!(
        found.iter().any(|f| f.contains("every pod outside kube-system and egress-enforcer")),
        "{found:#?}"
    );
}

#[test]
fn without_pods_only_policies_are_judged() {
    let lonely = world([egp("mesh", spec(json!({})))]);
    assert_eq!(findings(&lonely), Vec::<String>::new());
}

#[test]
fn pods_of_the_mesh_that_nothing_locks_down() {
    let detail = "not-locked-down Namespace other: 1 pod is a subject of no policy: free";
    for (key, value) in
        [("istio-injection", "enabled"), ("istio.io/rev", "stable"), ("istio.io/dataplane-mode", "ambient")]
    {
        finds(namespace("other", json!({key: value})), &[detail]);
        lawful(namespace("kube-system", json!({key: value})));
    }
    lawful(namespace("other", json!({"istio-injection": "disabled"})));
    finds(meshed("other/free", "10.0.1.3", json!({})), &[detail]);
    // A gateway for what comes in has nothing but a proxy.
    lawful(containers(pod("other/ingress", "10.0.1.5", json!({})), json!([{"name": "istio-proxy"}])));
    let system = meshed("kube-system/dns", "10.0.3.1", json!({}));
    lawful(system);
    let mut world = clean().with(namespace("other", json!({"istio-injection": "enabled"})));
    for i in 1..=4 {
        world.add(pod(&format!("other/p{i}"), &format!("10.0.5.{i}"), json!({})));
    }
    let many = "not-locked-down Namespace other: 5 pods are subjects of no policy: free, p1, p2 and 2 more";
    assert_eq!(findings(&world), [many]);
}

#[test]
fn pods_that_cannot_be_judged_are_told() {
    let detail = "namespace-missing Namespace other: it has no object: 1 pod could not be looked at";
    assert_eq!(findings(&clean().without("Namespace other")), [detail]);
    // The name is known without the object.
    let by_name = policy(json!({"subjects": [{"namespaces": labels("kubernetes.io/metadata.name", "app")}]}));
    assert_eq!(findings(&clean().without("Namespace other").with(by_name)), Vec::<String>::new());
    lawful(pod("kube-system/dns", "10.0.3.1", json!({})));
}

#[test]
fn what_cannot_be_judged_is_not_taken_for_nothing() {
    // Whether the policy has subjects, or the gateway pods, is not known.
    let missing = |name: &str| {
        format!("namespace-missing Namespace {name}: it has no object: 1 pod could not be looked at")
    };
    assert_eq!(findings(&clean().without("Namespace app")), [missing("app")]);
    // A gateway is exempt, whatever its namespace's labels.
    assert_eq!(findings(&clean().without("Namespace gw")), Vec::<String>::new());
    let by_label = entry(json!({"namespaces": labels("role", "exit")}));
    let space = namespace("gw", json!({"role": "exit"}));
    let world = clean().with(by_label).with(space);
    assert_eq!(findings(&world), Vec::<String>::new());
    let found = findings(&world.without("Namespace gw"));
    assert!(
        found.contains(&missing("gw")) && !found.iter().any(|f| f.starts_with("no-way-out")),
        "{found:#?}"
    );
}

#[test]
fn a_subject_is_who_the_compiler_locks_down() {
    let names = ["app/web", "gw/gate", "other/free", "kube-system/dns", "egress-enforcer/agent", "gone/pod"];
    let all = json!({"namespaces": {}, "systemNamespaces": true});
    for subjects in [
        json!([{"namespaces": labels("mesh", "on")}]),
        json!([{"namespaces": {}}]),
        json!([all]),
        json!([{"pods": labels("app", "web")}, {"serviceAccounts": ["payer"]}]),
        json!([{"serviceAccounts": ["default"], "namespaces": labels("mesh", "on")}]),
        json!([{"nonsense": {}}]),
        json!([]),
    ] {
        // A gateway without destinations is not selected at all.
        let gateway = json!([{"pods": labels("app", "gate")}]);
        let mut world = clean().with(policy(json!({"subjects": subjects, "gateways": gateway})));
        for (i, name) in names.iter().enumerate() {
            let (_, app) = name.split_once('/').unwrap();
            let pod = pod(name, &format!("10.0.9.{i}"), json!({"app": app}));
            world.add(set(pod, "/spec/ephemeralContainers", json!([{"name": "debugger"}])));
        }
        let (compiled, found) = (world.compile(), lint(&world.index, &[]));
        for name in names {
            let endpoint = compiled.endpoints.get(&world.cgroup(name));
            let locked_down = endpoint.is_some_and(|endpoint| endpoint.state != PodState::Unselected);
            let mut debugged = found.iter().filter(|f| f.check == Check::DebugContainer);
            let told = debugged.any(|f| f.object.to_string() == format!("Pod {name}"));
            assert_eq!(told, locked_down, "{name} under {subjects}");
        }
    }
}

#[test]
fn the_worst_comes_first_and_the_order_of_objects_does_not_matter() {
    let objects = || {
        vec![
            annotated("traffic.sidecar.istio.io/excludeOutboundPorts", "5432"),
            set(pod("app/bare", "10.0.1.9", json!({})), "/spec/ephemeralContainers", json!([{"name": "d"}])),
            policy(json!({"enforcement": "Audit", "allow": {"to": [{"cidr": "0.0.0.0/0"}]}})),
        ]
    };
    let of = |objects: Vec<Value>| {
        let mut world = clean();
        for object in objects {
            world.add(object);
        }
        lint(&world.index, &[])
    };
    let found = of(objects());
    let checks: Vec<_> = found.iter().map(|f| f.check.name()).collect();
    let expected = ["mesh-exclusion", "open-exit", "no-proxy", "debug-container", "policy-audits"];
    assert_eq!(checks, expected);
    assert!(found.is_sorted_by_key(|f| f.check.severity()) && found[0].check.severity() == Severity::Error);
    assert_eq!(found, of(objects().into_iter().rev().collect()));
    let line = serde_json::to_value(&found[0]).unwrap();
    assert_eq!(
        line,
        json!({"check": "mesh-exclusion", "severity": "error", "object": "Pod app/web",
            "detail": "traffic.sidecar.istio.io/excludeOutboundPorts is \"5432\"",
            "advice": Check::MeshExclusion.advice()})
    );
}

#[test]
fn a_subject_without_the_proxy_that_its_lock_names() {
    let with = |name: &str| {
        let web = containers(pod("app/web", "10.0.1.1", json!({})), json!([{"name": "app"}, {"name": name}]));
        let world = world([namespace("app", json!({"mesh": "on"})), namespace("gw", json!({})), gate(), web]);
        let world = world.with(egp("mesh", spec(json!({"proxy": {"containers": ["envoy"]}}))));
        lint(&world.index, &[]).iter().filter(|finding| finding.check == Check::NoProxy).count()
    };
    assert_eq!((with("istio-proxy"), with("envoy")), (1, 0));
}

/// The workloads that an object is read as.
fn workloads(objects: &[Value]) -> Vec<Workload> {
    let reads = objects.iter().flat_map(|object| read(object.clone()).unwrap());
    reads
        .map(|one| match one {
            Read::Workload { makes, .. } => *makes.unwrap(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn deployment(name: &str, labels: Value, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": namespace, "name": name},
        "spec": {"template": {"metadata": {"labels": labels}, "spec": spec}},
    })
}

/// What the clean mesh without its pods is told with these workloads.
fn of_workloads(objects: &[Value]) -> Vec<String> {
    let world = world([
        namespace("app", json!({"mesh": "on"})),
        namespace("gw", json!({})),
        namespace("other", json!({})),
        egp("mesh", spec(json!({}))),
    ]);
    lint(&world.index, &workloads(objects))
        .iter()
        .map(|one| format!("{} {}: {}", one.check, one.object, one.detail))
        .collect()
}

fn gateway() -> Value {
    deployment("gw/gate", json!({"istio": "egressgateway"}), json!({"containers": [{"name": "istio-proxy"}]}))
}

#[test]
fn a_workload_is_looked_at_as_the_pods_that_it_will_make() {
    let plain = json!({"containers": [{"name": "app"}]});
    let lawful = deployment("app/web", json!({"app": "web"}), plain.clone());
    assert_eq!(of_workloads(&[lawful.clone(), gateway()]), Vec::<String>::new());

    let bad = json!({"containers": [{"name": "app", "securityContext": {"runAsUser": 1337, "capabilities": {"add": ["NET_ADMIN"]}}}]});
    assert_eq!(
        of_workloads(&[deployment("app/web", json!({}), bad), gateway()]),
        [
            "proxy-user Deployment app/web: container app runs as user 1337, which is Istio's proxy",
            "net-capability Deployment app/web: container app has NET_ADMIN",
        ]
    );
    let annotations = json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "443"});
    let excludes = set(lawful.clone(), "/spec/template/metadata/annotations", annotations);
    assert_eq!(
        of_workloads(&[excludes, gateway()]),
        ["mesh-exclusion Deployment app/web: traffic.sidecar.istio.io/excludeOutboundPorts is \"443\""]
    );
    let host = json!({"hostNetwork": true, "containers": [{"name": "app"}]});
    assert_eq!(
        of_workloads(&[deployment("app/web", json!({}), host), gateway()]),
        ["host-network Deployment app/web: hostNetwork is true"]
    );
    // No gateway's template, and none that anybody named.
    assert_eq!(
        of_workloads(std::slice::from_ref(&lawful)),
        ["no-way-out EgressGatewayPolicy mesh: spec.gateways[0] (out) matches no pod"]
    );
    let elsewhere = deployment("other/gate", json!({"istio": "egressgateway"}), plain);
    assert_eq!(
        of_workloads(&[lawful, gateway(), elsewhere]),
        [
            "gateway-without-policy Deployment other/gate: label istio is \"egressgateway\", but no policy's gateways name it"
        ]
    );
}

#[test]
fn a_workload_hides_no_gateway_that_is_not_ready() {
    let none = set(gateway(), "/spec/replicas", json!(0));
    assert_eq!(
        of_workloads(&[deployment("app/web", json!({}), json!({"containers": [{"name": "app"}]})), none]),
        [
            "no-way-out EgressGatewayPolicy mesh: spec.gateways[0] (out) matches 1 workload, which has no replicas"
        ]
    );
    // Its pods are there, and none of them is ready.
    let backend = slice("gw/out", &["10.0.2.1"], json!([{"port": 443}]));
    let unready = clean().with(set(backend, "/endpoints/0/conditions/ready", json!(false)));
    let told = |workloads: &[Workload]| {
        let found = lint(&unready.index, workloads);
        found.iter().map(|one| format!("{} {}", one.check, one.detail)).collect::<Vec<_>>()
    };
    assert_eq!(told(&[]), ["no-way-out spec.gateways[0] (out) matches 1 pod, none of them ready"]);
    assert_eq!(told(&workloads(&[gateway()])), told(&[]));
}

/// The proxy is injected when pods are made, but for those that ask for none.
#[test]
fn a_template_need_not_have_the_proxy_that_is_injected() {
    let meshed = namespace("app", json!({"mesh": "on", "istio-injection": "enabled"}));
    let world = world([
        meshed,
        namespace("gw", json!({})),
        egp("mesh", spec(json!({"proxy": {"containers": ["istio-proxy"]}}))),
    ]);
    let told = |object: Value| -> Vec<String> {
        let all = workloads(&[object, gateway()]);
        lint(&world.index, &all)
            .iter()
            .map(|one| format!("{} {}: {}", one.check, one.object, one.detail))
            .collect()
    };
    let shared = json!({"shareProcessNamespace": true, "containers": [{"name": "app"}]});
    let plain = json!({"containers": [{"name": "app"}]});
    assert_eq!(told(deployment("app/web", json!({}), plain.clone())), Vec::<String>::new());
    assert_eq!(
        told(deployment("app/web", json!({}), shared)),
        ["shared-processes Deployment app/web: shareProcessNamespace is true"]
    );
    assert_eq!(
        told(deployment("app/web", json!({"sidecar.istio.io/inject": "false"}), plain)),
        ["injection-disabled Deployment app/web: label sidecar.istio.io/inject is \"false\""]
    );
    // Also where nothing else shows that there is a mesh.
    let without = json!({"containers": [{"name": "app"}]});
    let elsewhere =
        deployment("gw/gate", json!({"istio": "egressgateway"}), json!({"containers": [{"name": "squid"}]}));
    assert_eq!(
        of_workloads(&[
            deployment("app/web", json!({"sidecar.istio.io/inject": "false"}), without),
            elsewhere
        ]),
        ["injection-disabled Deployment app/web: label sidecar.istio.io/inject is \"false\""]
    );
}

#[test]
fn whatever_has_a_template_of_pods_is_a_workload_but_what_another_one_controls() {
    let pod = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"serviceAccountName": "sa", "containers": [{"name": "app"}]}});
    let object = |version: &str, kind: &str, extra: Value| {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}});
        object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        object
    };
    for (version, kind, extra) in [
        ("apps/v1", "StatefulSet", json!({"spec": {"template": pod}})),
        ("batch/v1", "CronJob", json!({"spec": {"jobTemplate": {"spec": {"template": pod}}}})),
        ("v1", "PodTemplate", json!({"template": pod})),
        ("serving.knative.dev/v1", "Service", json!({"spec": {"template": pod}})),
    ] {
        let [found] = &workloads(&[object(version, kind, extra)])[..] else { panic!("{kind}") };
        assert_eq!(found.to_string(), format!("{kind} default/a"));
        assert_eq!(
            (&*found.pod.spec.service_account, found.pod.labels.get("app")),
            ("sa", Some("a")),
            "{kind}"
        );
    }
    // Of what has the template of its controller, that tells; of another one, as an operator's object without a template, nobody else.
    let owned_with = |kind: &str, spec: Value| {
        let owners = json!([{"kind": kind, "name": "a", "controller": true}]);
        set(object("apps/v1", "ReplicaSet", json!({"spec": spec})), "/metadata/ownerReferences", owners)
    };
    let owned = |kind: &str| {
        let hashed = set(pod.clone(), "/metadata/labels/pod-template-hash", json!("abc"));
        owned_with(kind, json!({"template": hashed}))
    };
    let deployment = object("apps/v1", "Deployment", json!({"spec": {"template": pod}}));
    let left = |objects: &[Value]| {
        let left = by_themselves(workloads(objects));
        left.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(left(&[owned("Deployment"), deployment.clone()]), ["Deployment default/a"]);
    assert_eq!(left(&[owned("Deployment")]), ["ReplicaSet default/a"]);
    // One of a rollout that is not over makes other pods; one that is over makes none.
    let others =
        ["/spec/serviceAccountName", "/metadata/labels/app", "/metadata/labels/sidecar.istio.io~1inject"];
    for template in others.map(|at| set(pod.clone(), at, json!("false"))) {
        let [runs, is_over] = [2, 0]
            .map(|replicas| owned_with("Deployment", json!({"replicas": replicas, "template": template})));
        assert_eq!(left(&[runs, deployment.clone()]), ["ReplicaSet default/a", "Deployment default/a"]);
        assert_eq!(left(&[is_over, deployment.clone()]), ["Deployment default/a"]);
    }
    assert_eq!(left(&[owned("Gateway"), deployment]), ["ReplicaSet default/a", "Deployment default/a"]);
    // Nor does one that makes none, but controls one that does.
    let scaled = owned_with("StatefulSet", json!({"replicas": 0, "template": pod}));
    let between = set(scaled, "/kind", json!("DaemonSet"));
    let above = object(
        "apps/v1",
        "StatefulSet",
        json!({"spec": {"template": set(pod.clone(), "/metadata/labels/app", json!("x"))}}),
    );
    let all = [owned("DaemonSet"), between, above];
    assert_eq!(left(&all), ["DaemonSet default/a", "StatefulSet default/a"]);
    // Nor does who says that it controls itself, alone or with another one, tell of itself.
    assert_eq!(left(&[owned("ReplicaSet")]), ["ReplicaSet default/a"]);
    let other = set(owned("ReplicaSet"), "/kind", json!("DaemonSet"));
    assert_eq!(left(&[owned("DaemonSet"), other]), ["ReplicaSet default/a", "DaemonSet default/a"]);
    // What is wrong with a template is said, with its place.
    let wrong = object(
        "apps/v1",
        "Deployment",
        json!({"spec": {"template": {"spec": {"containers": [{"name": 7}]}}}}),
    );
    let [Read::Workload { makes: Err(error), .. }] = &read(wrong).unwrap()[..] else { panic!() };
    assert_eq!(error.path, "spec.template.spec.containers[0].name");
}
