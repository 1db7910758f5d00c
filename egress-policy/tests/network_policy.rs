//! NetworkPolicy egress, as upstream defines it.
#![expect(clippy::needless_pass_by_value, reason = "test helpers take literals and fail by panic")]

mod common;

use common::{Value, World, json, labels, mesh, np, pod, set};
use egress_policy::compile::PodState;

fn egress(rules: serde_json::Value) -> World {
    mesh().with(np("app/p", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": rules})))
}

#[test]
fn no_rules_deny_all_and_an_empty_rule_allows_all() {
    let none = egress(json!([]));
    assert!(!none.allows("app/web", "10.0.1.2", "tcp/80"));
    assert!(!none.allows("app/web", "1.1.1.1", "icmp"));
    assert!(none.allows("other/free", "1.1.1.1", "tcp/80"), "another namespace");
    let all = egress(json!([{}]));
    for to in ["10.0.1.2", "1.1.1.1", "192.168.0.1", "10.96.0.10"] {
        assert!(all.allows("app/web", to, "udp/53"), "{to}");
    }
    assert!(all.allows("app/web", "1.1.1.1", "icmp"));
    assert!(egress(json!([{"to": [], "ports": []}])).allows("app/web", "1.1.1.1", "tcp/80"));
    let absent = np("app/p", json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    assert!(!mesh().with(absent).allows("app/web", "1.1.1.1", "tcp/80"));
}

#[test]
fn policy_types_and_their_default() {
    let web = |spec| mesh().with(np("app/p", spec)).allows("app/web", "1.1.1.1", "tcp/80");
    let rule = json!([{"to": [{"podSelector": {}}]}]);
    assert!(web(json!({"podSelector": {}})), "absent, no rules: ingress only");
    assert!(web(json!({"podSelector": {}, "egress": []})), "absent, empty: ingress only");
    assert!(!web(json!({"podSelector": {}, "egress": rule})), "absent, rules");
    assert!(web(json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": rule})));
    assert!(!web(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})));
}

#[test]
fn the_pod_selector_and_the_union_of_policies() {
    let one = np(
        "app/a",
        json!({"podSelector": labels("app", "web"), "egress": [{"to": [{"ipBlock": {"cidr": "1.0.0.0/8"}}]}]}),
    );
    let two =
        np("app/b", json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "2.0.0.0/8"}}]}]}));
    let world = mesh().with(one).with(two);
    assert!(world.allows("app/web", "1.1.1.1", "tcp/80"));
    assert!(world.allows("app/web", "2.1.1.1", "tcp/80"));
    assert!(!world.allows("app/web", "3.1.1.1", "tcp/80"));
    assert!(!world.allows("app/db", "1.1.1.1", "tcp/80"));
    assert!(world.allows("app/db", "2.1.1.1", "tcp/80"));
    assert_eq!(world.rule("app/web", "2.1.1.1", "tcp/80"), "NetworkPolicy app/b spec.egress[0]");
}

#[test]
fn pod_and_namespace_selectors() {
    let to = |peer| egress(json!([{"to": [peer]}]));
    let own = to(json!({"podSelector": labels("app", "db")}));
    assert!(own.allows("app/web", "10.0.1.2", "tcp/80"));
    assert!(!own.allows("app/web", "10.0.1.3", "tcp/80"));
    let everyone = pod("other/db", "10.0.1.4", json!({"app": "db"}));
    assert!(!own.with(everyone.clone()).allows("app/web", "10.0.1.4", "tcp/80"), "the own namespace only");
    let space = to(json!({"namespaceSelector": labels("kubernetes.io/metadata.name", "other")}));
    assert!(space.allows("app/web", "10.0.1.3", "tcp/80"));
    assert!(!space.allows("app/web", "10.0.1.2", "tcp/80"));
    let both = to(json!({"namespaceSelector": {}, "podSelector": labels("app", "db")})).with(everyone);
    assert!(both.allows("app/web", "10.0.1.4", "tcp/80"));
    assert!(both.allows("app/web", "10.0.1.2", "tcp/80"));
    assert!(!both.allows("app/web", "10.0.1.3", "tcp/80"));
}

#[test]
fn match_expressions() {
    let to = |expression| egress(json!([{"to": [{"podSelector": {"matchExpressions": [expression]}}]}]));
    let db = |world: &World| world.allows("app/web", "10.0.1.2", "tcp/80");
    assert!(db(&to(json!({"key": "app", "operator": "In", "values": ["db", "x"]}))));
    assert!(!db(&to(json!({"key": "app", "operator": "In", "values": ["x"]}))));
    assert!(db(&to(json!({"key": "app", "operator": "NotIn", "values": ["x"]}))));
    assert!(!db(&to(json!({"key": "app", "operator": "NotIn", "values": ["db"]}))));
    assert!(
        db(&to(json!({"key": "none", "operator": "NotIn", "values": ["x"]}))),
        "NotIn holds for absent labels"
    );
    assert!(db(&to(json!({"key": "app", "operator": "Exists"}))));
    assert!(!db(&to(json!({"key": "none", "operator": "Exists"}))));
    assert!(db(&to(json!({"key": "none", "operator": "DoesNotExist"}))));
    assert!(!db(&to(json!({"key": "app", "operator": "DoesNotExist"}))));
}

#[test]
fn ip_blocks_also_where_the_address_is_a_pods() {
    let block = |block| egress(json!([{"to": [{"ipBlock": block}]}]));
    let world = block(json!({"cidr": "10.0.0.0/16", "except": ["10.0.1.3/32", "10.0.3.0/24"]}));
    assert!(world.allows("app/web", "10.0.1.2", "tcp/80"));
    assert!(world.allows("app/web", "10.0.9.9", "tcp/80"));
    assert!(!world.allows("app/web", "10.0.1.3", "tcp/80"));
    assert!(!world.allows("app/web", "10.0.3.1", "udp/53"));
    assert!(!world.allows("app/web", "10.0.3.77", "udp/53"));
    assert!(!world.allows("app/web", "10.1.0.1", "tcp/80"));
    assert!(block(json!({"cidr": "192.168.0.0/24"})).allows("app/web", "192.168.0.2", "tcp/80"), "a node");
    let nested = egress(json!([{"to": [
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/16"]}}, {"ipBlock": {"cidr": "10.0.7.0/24"}}]}]));
    assert!(nested.allows("app/web", "10.0.7.1", "tcp/80"));
    assert!(!nested.allows("app/web", "10.0.8.1", "tcp/80"));
    assert!(nested.allows("app/web", "10.7.8.1", "tcp/80"));
}

#[test]
fn ports_ranges_and_protocols() {
    let ports = |ports| egress(json!([{ "ports": ports }]));
    let world = ports(
        json!([{"port": 80}, {"protocol": "UDP", "port": 5000, "endPort": 5010}, {"protocol": "SCTP"}]),
    );
    for (port, expected) in [
        ("tcp/80", true),
        ("tcp/81", false),
        ("udp/80", false),
        ("udp/4999", false),
        ("udp/5000", true),
        ("udp/5010", true),
        ("udp/5011", false),
        ("sctp/1", true),
        ("sctp/65535", true),
        ("icmp", false),
    ] {
        assert_eq!(world.allows("app/web", "1.1.1.1", port), expected, "{port}");
        assert_eq!(world.allows("app/web", "10.0.1.2", port), expected, "{port}");
    }
    let all = ports(json!([{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]));
    assert!(all.allows("app/web", "1.1.1.1", "tcp/65535"));
    assert!(!all.allows("app/web", "1.1.1.1", "icmp"), "all ports are not all protocols");
}

#[test]
fn named_ports_are_each_destinations_own() {
    let named = |name: &str, ip: &str, ports| {
        set(pod(name, ip, json!({"app": "db"})), "/spec/containers", json!([{"name": "c", "ports": ports}]))
    };
    let world = |to| {
        egress(json!([{"to": to, "ports": [{"port": "http"}]}]))
            .with(named("app/db", "10.0.1.2", json!([{"name": "http", "containerPort": 8080}])))
            .with(named("app/db2", "10.0.1.4", json!([{"name": "http", "containerPort": 9090}])))
            .with(named(
                "app/db3",
                "10.0.1.5",
                json!([{"name": "http", "containerPort": 80, "protocol": "UDP"}]),
            ))
    };
    for to in [json!([{"podSelector": {}}]), json!([]), json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}])] {
        let world = world(to);
        assert!(world.allows("app/web", "10.0.1.2", "tcp/8080"));
        assert!(!world.allows("app/web", "10.0.1.2", "tcp/9090"));
        assert!(world.allows("app/web", "10.0.1.4", "tcp/9090"));
        assert!(!world.allows("app/web", "10.0.1.4", "tcp/8080"));
        assert!(!world.allows("app/web", "10.0.1.5", "udp/80"), "the protocol must match");
        assert!(!world.allows("app/web", "10.9.9.9", "tcp/8080"), "no pod, no names");
    }
}

#[test]
fn host_network_pods_are_their_node() {
    let host = |name, ip| set(pod(name, ip, json!({"app": "db"})), "/spec/hostNetwork", json!(true));
    let world = egress(json!([{"to": [{"podSelector": {}}]}])).with(host("app/host", "192.168.0.1"));
    assert!(!world.allows("app/web", "192.168.0.1", "tcp/80"));
    assert!(world.allows("app/web", "10.0.1.2", "tcp/80"));
    assert_eq!(world.state("app/host"), PodState::Unselected);
}

#[test]
fn dual_stack() {
    let world = egress(json!([{"to": [{"podSelector": labels("app", "db")}]}]))
        .with(pod("app/web", "10.0.1.1,fd00::1", json!({"app": "web"})))
        .with(pod("app/db", "10.0.1.2,fd00::2", json!({"app": "db"})));
    for to in ["10.0.1.2", "fd00::2"] {
        assert!(world.allows("app/web", to, "tcp/80"));
        assert!(world.allows("app/web", to, "icmp"));
    }
    assert!(!world.allows("app/web", "fd00::3", "tcp/80"));
}

#[test]
fn a_row_holds_what_fits_and_prefers_ports_to_exact_rules() {
    let policy = |ports: &[u16]| {
        let rules: Vec<Value> = ports
            .iter()
            .map(|port| json!({"to": [{"podSelector": labels("app", "db")}], "ports": [{"port": port}]}))
            .collect();
        mesh().with(np("app/p", json!({"podSelector": labels("app", "web"), "egress": rules})))
    };
    // As many as there is room for, each with its own rule.
    let (apart, next): (Vec<u16>, Vec<u16>) =
        ((0..32).map(|i| 1000 + 2 * i).collect(), (0..32).map(|i| 1000 + i).collect());
    for ports in [apart, next] {
        let world = policy(&ports);
        assert_eq!(world.diagnostics(), "");
        for (i, port) in ports.iter().enumerate() {
            assert_eq!(
                world.rule("app/web", "10.0.1.2", &format!("tcp/{port}")),
                format!("NetworkPolicy app/p spec.egress[{i}]")
            );
        }
    }
    // More than that, next to each other: one range, and not each its own rule.
    for count in [65, 70, 90] {
        let ports: Vec<u16> = (0..count).map(|i| 1000 + i).collect();
        let world = policy(&ports);
        assert_eq!(world.diagnostics(), "");
        assert!(ports.iter().all(|port| world.allows("app/web", "10.0.1.2", &format!("tcp/{port}"))));
        assert!(
            !world.allows("app/web", "10.0.1.2", "tcp/999")
                && !world.allows("app/web", "10.0.1.2", &format!("tcp/{}", 1000 + count))
        );
    }
    // One too many that cannot be put together is denied, and said.
    let world = policy(&(0..65).map(|i| 1000 + 2 * i).collect::<Vec<_>>());
    assert!(
        world.diagnostics().contains("more than 64 port ranges to one destination; 1 are denied"),
        "{}",
        world.diagnostics()
    );
    assert!(
        world.allows("app/web", "10.0.1.2", "tcp/1126") && !world.allows("app/web", "10.0.1.2", "tcp/1128")
    );
}
