//! What a lock-down allows besides the gateways.
#![expect(clippy::needless_pass_by_value, reason = "test helpers take literals and fail by panic")]

mod common;

use common::{UNKNOWN, World, json, labels, lock, mesh, pod, service, set, slice};
use egress_common::Reason;
use egress_policy::compile::UnknownPods;

fn allow(allow: serde_json::Value) -> World {
    mesh().with(lock(json!({ "allow": allow })))
}

#[test]
fn dns_is_the_clusters_on_port_53_only() {
    let world = allow(json!({"inCluster": false}));
    for port in ["udp/53", "tcp/53"] {
        assert!(world.allows("app/web", "10.96.0.10", port));
        assert!(world.allows("app/web", "10.0.3.1", port));
    }
    assert!(world.allows("app/web", "10.0.3.1", "udp/5353"), "behind the service");
    assert!(!world.allows("app/web", "10.96.0.10", "tcp/9153"));
    assert!(!world.allows("app/web", "10.0.3.1", "tcp/9153"));
    assert!(!world.allows("app/web", "10.0.1.2", "udp/53"));
    let none = allow(json!({"inCluster": false, "dns": "None"}));
    assert!(!none.allows("app/web", "10.96.0.10", "udp/53"));
    assert!(!none.allows("app/web", "10.0.3.1", "udp/53"));
}

#[test]
fn in_cluster_is_pods_and_services_and_on_by_default() {
    let world = mesh().with(lock(json!({})));
    assert!(world.allows("app/web", "10.0.1.3", "tcp/80"));
    assert!(world.allows("app/web", "10.0.1.3", "icmp"));
    assert!(world.allows("app/web", "10.96.0.10", "tcp/9153"));
    assert!(!world.allows("app/web", "192.168.0.2", "tcp/80"), "a node");
    assert!(!world.allows("app/web", "10.96.0.1", "tcp/443"), "the API server");
    assert!(!allow(json!({"inCluster": false})).allows("app/web", "10.0.1.3", "tcp/80"));
    assert_eq!(world.rule("app/web", "10.0.1.3", "tcp/80"), "EgressGatewayPolicy mesh spec.allow.inCluster");
}

#[test]
fn the_api_server_by_vip_and_by_endpoint() {
    let world = allow(json!({"apiServer": true}));
    assert!(world.allows("app/web", "10.96.0.1", "tcp/443"));
    assert!(world.allows("app/web", "192.168.0.9", "tcp/6443"));
    assert!(!world.allows("app/web", "192.168.0.9", "tcp/22"));
    assert!(!allow(json!({})).allows("app/web", "192.168.0.9", "tcp/6443"));
}

#[test]
fn the_own_node_only() {
    let world = allow(json!({"node": true}));
    assert!(world.allows("app/web", "192.168.0.1", "tcp/10250"));
    assert!(!world.allows("app/web", "192.168.0.2", "tcp/10250"));
    assert!(!allow(json!({"node": false})).allows("app/web", "192.168.0.1", "tcp/10250"));
}

#[test]
fn further_peers() {
    let to = |peer| allow(json!({"inCluster": false, "to": [peer]}));
    let world = to(json!({"cidr": "10.50.0.0/16", "except": ["10.50.9.0/24"], "ports": [{"port": 5432}]}));
    assert!(world.allows("app/web", "10.50.0.1", "tcp/5432"));
    assert!(!world.allows("app/web", "10.50.0.1", "tcp/5433"));
    assert!(!world.allows("app/web", "10.50.9.1", "tcp/5432"));
    let world = to(json!({"namespaces": labels("mesh", "on"), "pods": labels("app", "db")}));
    assert!(world.allows("app/web", "10.0.1.2", "tcp/1"));
    assert!(!world.allows("app/web", "10.0.1.3", "tcp/1"));
    let world =
        to(json!({"service": {"namespace": "kube-system", "name": "kube-dns"}, "ports": [{"port": 9153}]}));
    assert!(world.allows("app/web", "10.96.0.10", "tcp/9153"));
    assert!(world.allows("app/web", "10.0.3.1", "tcp/9153"));
    assert!(!world.allows("app/web", "10.0.3.1", "tcp/80"));
    assert!(!to(json!({"cidr": "10.50.0.0/16", "ports": []})).allows("app/web", "10.50.0.1", "tcp/5432"));
}

#[test]
fn all_of_ipv6_is_not_all_of_ipv4() {
    let world = allow(json!({"to": [{"cidr": "::/0"}]})).with(pod("app/web", "10.0.1.1,fd00::1", json!({})));
    assert!(world.allows("app/web", "2001:db8::1", "tcp/1"));
    assert!(!world.allows("app/web", "1.1.1.1", "tcp/1"));
    let world =
        allow(json!({"to": [{"cidr": "0.0.0.0/0"}]})).with(pod("app/web", "10.0.1.1,fd00::1", json!({})));
    assert!(!world.allows("app/web", "2001:db8::1", "tcp/1"));
    assert!(world.allows("app/web", "1.1.1.1", "tcp/1"));
}

#[test]
fn unknown_pods_stay_inside() {
    let mut world = mesh().with(lock(json!({})));
    let verdict = world.verdict(UNKNOWN, "10.0.1.3", "tcp/80");
    assert_eq!(verdict.reason, Reason::UnknownPodAllowed);
    assert!(world.allows(UNKNOWN, "10.96.0.10", "udp/53"));
    assert!(world.allows(UNKNOWN, "10.96.0.1", "tcp/443"));
    assert!(!world.allows(UNKNOWN, "10.0.2.1", "tcp/443"), "a gateway");
    assert!(!world.allows(UNKNOWN, "1.1.1.1", "tcp/443"));
    // Answers to kubelet's probes; no server of the node's, and no node port.
    for port in ["tcp/32768", "tcp/60999"] {
        assert!(world.allows(UNKNOWN, "192.168.0.1", port), "{port}");
        assert!(!world.allows(UNKNOWN, "192.168.0.2", port), "{port}");
    }
    for port in ["tcp/10250", "tcp/30000", "tcp/32767", "tcp/61000", "udp/40000", "sctp/40000"] {
        assert!(!world.allows(UNKNOWN, "192.168.0.1", port), "{port}");
    }
    world.unknown = UnknownPods::Deny;
    assert!(!world.allows(UNKNOWN, "10.0.1.3", "tcp/80"));
    world.unknown = UnknownPods::Allow;
    assert!(world.allows(UNKNOWN, "1.1.1.1", "tcp/80"));
}

#[test]
fn a_finished_pod_owns_no_address_and_a_terminating_one_does() {
    let world = mesh().with(lock(json!({})));
    let terminating =
        set(pod("other/free", "10.0.1.3", json!({})), "/metadata/deletionTimestamp", json!("now"));
    assert!(world.with(terminating).allows("app/web", "10.0.1.3", "tcp/80"));
    let finished = set(pod("other/free", "10.0.1.3", json!({})), "/status/phase", json!("Succeeded"));
    assert!(!world.with(finished).allows("app/web", "10.0.1.3", "tcp/80"));
}

/// Who may write the status of pods gives one that waits for a node any address; on a node kubelet writes it.
#[test]
fn a_pod_without_a_node_owns_no_address() {
    let out = "198.51.100.10";
    let claims = |node: serde_json::Value, ip: &str, labels: serde_json::Value| {
        set(pod("app/claims", ip, labels), "/spec/nodeName", node)
    };
    let world = mesh().with(lock(json!({}))).with(service("app/t", "10.96.0.88", json!([{"port": 80}])));
    let world = world.with(slice("app/t", &[out], json!([{"port": 80}])));
    for node in [json!(null), json!("")] {
        let world = world.with(claims(node.clone(), out, json!({})));
        assert!(!world.allows("app/web", out, "tcp/80") && !world.allows("app/web", "10.96.0.88", "tcp/80"));
        // Nor is it a gateway's, nor does it take from others what is theirs.
        let gate = set(
            claims(node.clone(), out, json!({"istio": "egressgateway"})),
            "/metadata/namespace",
            json!("gw"),
        );
        assert!(!world.with(gate).allows("app/web", out, "tcp/443"));
        let taken = world.with(set(claims(node, "10.0.1.3", json!({})), "/metadata/namespace", json!("gw")));
        assert!(taken.allows("app/web", "10.0.1.3", "tcp/80") && !taken.diagnostics().contains("several"));
    }
    let world = world.with(claims(json!("node-b"), out, json!({})));
    assert!(world.allows("app/web", out, "tcp/80") && world.allows("app/web", "10.96.0.88", "tcp/80"));
    let gone = world.with(claims(json!(null), out, json!({})));
    assert!(!gone.allows("app/web", out, "tcp/80"), "it was on a node");
}

/// Who may write its slices chooses what is behind it.
#[test]
fn a_service_that_is_allowed_leads_nowhere_outside() {
    let to = json!([{"service": {"namespace": "app", "name": "two"}}]);
    let world = |behind: &[&str], more: serde_json::Value| {
        let mut to = to.as_array().unwrap().clone();
        to.extend(more.as_array().unwrap().clone());
        allow(json!({"inCluster": false, "to": to}))
            .with(service("app/two", "10.96.0.88", json!([{"name": "a", "port": 80}])))
            .with(slice("app/two", behind, json!([{"name": "a", "port": 80}])))
    };
    assert!(world(&["10.0.1.2"], json!([])).allows("app/web", "10.96.0.88", "tcp/80"));
    let outside = world(&["203.0.113.7"], json!([]));
    assert!(!outside.allows("app/web", "203.0.113.7", "tcp/80"));
    assert!(!outside.allows("app/web", "10.96.0.88", "tcp/80"));
    assert!(!world(&["10.0.1.2", "203.0.113.7"], json!([])).allows("app/web", "10.96.0.88", "tcp/80"));
    let allowed = world(&["203.0.113.7"], json!([{"cidr": "203.0.113.7/32"}]));
    assert!(
        allowed.allows("app/web", "203.0.113.7", "tcp/80")
            && allowed.allows("app/web", "10.96.0.88", "tcp/80")
    );
}
