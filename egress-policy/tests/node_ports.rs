//! Ports of nodes that lead out: who may reach its node does not leave through it.
#![expect(clippy::needless_pass_by_value, reason = "test helpers take literals")]

mod common;

use common::{Value, World, json, lock, mesh, np, pod, service, set, slice};
use egress_policy::compile::{Backend, Compiler, chain};
use egress_policy::index::Dirty;
use egress_policy::object::read;

const NODE: &str = "192.168.0.1";

/// The mesh with a lock-down whose subjects may reach their node; its gateway is for `clients`.
fn by_node(clients: Value, allow: Value) -> World {
    let mut policy = lock(json!({"allow": allow}));
    policy["spec"]["gateways"][0]["clients"] = clients;
    mesh().with(policy)
}

fn nobody() -> World {
    by_node(json!([]), json!({"node": true}))
}

/// A service whose port 443 all nodes have at 30443.
fn node_port(name: &str, ip: &str) -> Value {
    service(name, ip, json!([{"name": "https", "port": 443, "nodePort": 30443}]))
}

fn ports(target: u16) -> Value {
    json!([{"name": "https", "port": target}])
}

#[test]
fn a_gateways_node_port_is_for_its_clients() {
    let gate = node_port("gw/gate", "10.96.0.9");
    let client = by_node(json!([{"pods": {"matchLabels": {"app": "web"}}}]), json!({"node": true}));
    let (client, other) = (client.with(gate.clone()), nobody().with(gate.clone()));
    assert!(client.allows("app/web", "10.96.0.9", "tcp/443"), "the same by the service's address");
    assert!(client.allows("app/web", NODE, "tcp/30443"));
    assert!(!other.allows("app/web", "10.96.0.9", "tcp/443"));
    assert!(!other.allows("app/web", NODE, "tcp/30443"));
    for port in ["tcp/30442", "tcp/30444", "udp/30443", "tcp/10250", "icmp"] {
        assert!(other.allows("app/web", NODE, port), "{port}");
    }
    // Nobody else's node is allowed, on no port.
    assert!(!client.allows("app/web", "192.168.0.2", "tcp/30443"));
    // Without the node, the gateway alone is not enough.
    let without = by_node(json!([{"pods": {"matchLabels": {"app": "web"}}}]), json!({})).with(gate);
    assert!(!without.allows("app/web", NODE, "tcp/30443"));
}

#[test]
fn a_node_port_with_the_outside_behind_it_is_outside() {
    let world = |allow, ip| {
        by_node(json!([]), allow).with(node_port("app/trick", "10.96.0.66")).with(slice(
            "app/trick",
            &[ip],
            ports(443),
        ))
    };
    let node = json!({"node": true});
    assert!(!world(node.clone(), "203.0.113.9").allows("app/web", NODE, "tcp/30443"));
    assert!(world(node.clone(), "203.0.113.9").allows("app/web", NODE, "tcp/30444"));
    // A pod that is no gateway is no way out, whoever may reach it.
    assert!(world(node.clone(), "10.0.1.2").allows("app/web", NODE, "tcp/30443"));
    let granted = json!({"node": true, "to": [{"cidr": "203.0.113.9/32"}]});
    assert!(world(granted, "203.0.113.9").allows("app/web", NODE, "tcp/30443"));
    // A service's address behind a node port is translated once, and leads past that service.
    assert!(!world(node, "10.96.0.9").allows("app/web", NODE, "tcp/30443"));
}

#[test]
fn another_service_in_front_of_the_node_leads_no_further() {
    let world = nobody().with(node_port("gw/gate", "10.96.0.9"));
    let front = |world: &World, port: u16| {
        let front = world.with(service("app/front", "10.96.0.77", json!([{"name": "https", "port": 443}])));
        front.with(slice("app/front", &[NODE], ports(port))).allows("app/web", "10.96.0.77", "tcp/443")
    };
    assert!(front(&world, 30444));
    assert!(!front(&world, 30443));
    assert!(front(&nobody(), 30443));
}

#[test]
fn a_node_port_with_a_node_behind_it_is_that_node() {
    let world = |address: &str, port: u16| {
        let world = nobody().with(node_port("gw/gate", "10.96.0.9"));
        let service =
            service("app/t", "10.96.0.66", json!([{"name": "https", "port": 443, "nodePort": 30444}]));
        world.with(service).with(slice("app/t", &[address], ports(port))).allows("app/web", NODE, "tcp/30444")
    };
    assert!(world(NODE, 10250), "its own node is allowed");
    assert!(!world("192.168.0.2", 10250), "another one is not");
    assert!(!world(NODE, 30443), "by way of the gateway's port");
    assert!(world(NODE, 30444), "to itself, and to nothing else");
}

#[test]
fn a_gateways_host_port_is_for_its_clients_on_its_own_node() {
    let gate = |node: &str| {
        let gate = pod("gw/gate", "10.0.2.1", json!({"istio": "egressgateway"}));
        let ports = json!([{"containerPort": 8443, "hostPort": 443}]);
        set(
            set(gate, "/spec/nodeName", json!(node)),
            "/spec/containers",
            json!([{"name": "c", "ports": ports}]),
        )
    };
    let world = nobody().with(gate("node-a"));
    assert!(!world.allows("app/web", NODE, "tcp/443"));
    assert!(world.allows("app/web", NODE, "tcp/8443"));
    assert!(world.allows("app/web", NODE, "udp/443"));
    assert!(world.with(gate("node-b")).allows("app/web", NODE, "tcp/443"), "it moved");
    assert!(world.without("Pod gw/gate").allows("app/web", NODE, "tcp/443"), "it is gone");
    let client = by_node(json!([{"pods": {"matchLabels": {"app": "web"}}}]), json!({"node": true}));
    assert!(client.with(gate("node-a")).allows("app/web", NODE, "tcp/443"));
}

#[test]
fn it_follows_the_cluster() {
    let world = nobody().with(node_port("gw/gate", "10.96.0.9"));
    assert!(!world.allows("app/web", NODE, "tcp/30443"));
    let moved = service("gw/gate", "10.96.0.9", json!([{"name": "https", "port": 443, "nodePort": 30555}]));
    assert!(world.with(moved.clone()).allows("app/web", NODE, "tcp/30443"));
    assert!(!world.with(moved).allows("app/web", NODE, "tcp/30555"));
    assert!(world.with(service("gw/gate", "10.96.0.9", ports(443))).allows("app/web", NODE, "tcp/30443"));
    assert!(world.without("Service gw/gate").allows("app/web", NODE, "tcp/30443"));
    assert!(
        world.without("EndpointSlice gw/gate-4").allows("app/web", NODE, "tcp/30443"),
        "nothing is behind it"
    );
    let plain = pod("gw/gate", "10.0.2.1", json!({}));
    assert!(world.with(plain).allows("app/web", NODE, "tcp/30443"), "a gateway no more");
    // What is behind a port is nobody's until its pod is known.
    assert!(!world.without("Pod gw/gate").allows("app/web", NODE, "tcp/30443"));
}

#[test]
fn explain_says_what_is_behind_it() {
    let world = nobody().with(node_port("gw/gate", "10.96.0.9"));
    let backends =
        |port| chain(&world.index, ("app", "web"), None, NODE.parse().unwrap(), (6, port)).backends;
    let gate = Backend { address: "10.0.2.1".parse().unwrap(), port: 8443 };
    assert_eq!(backends(30443).into_iter().collect::<Vec<_>>(), [gate]);
    assert!(backends(30444).is_empty());
}

#[test]
fn what_is_behind_a_node_is_followed() {
    let gate = set(
        pod("gw/gate", "10.0.2.1", json!({"istio": "egressgateway"})),
        "/spec/containers",
        json!([{"name": "c", "ports": [{"containerPort": 8443, "hostPort": 443}]}]),
    );
    // An address of a service, too, in front of a node that leads to it.
    let mut twice = service("app/t", "10.96.0.66", ports(443));
    twice["spec"]["externalIPs"] = json!(["10.0.2.1"]);
    for exposed in [node_port("gw/gate", "10.96.0.9"), gate] {
        let front = service("app/front", "10.96.0.77", ports(443));
        let mut world = nobody().with(exposed).with(twice.clone()).with(front);
        for port in [30443, 443] {
            let mut slice = slice("app/front", &[NODE], ports(port));
            slice["metadata"]["name"] = json!(format!("front-{port}"));
            world = world.with(slice);
        }
        let before = world.clone();
        let node = before.node();
        let mut compiler = Compiler::default();
        compiler.update(&world.index, &node, Dirty::default());
        // Leads to the gateway, and to no node.
        let to = json!([{"ipBlock": {"cidr": "10.0.2.0/24"}}]);
        let policy =
            np("app/out", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": to}]}));
        for read in read(policy).unwrap() {
            let dirty = world.index.apply(read.event().unwrap());
            compiler.update(&world.index, &node, dirty);
        }
        assert_eq!(compiler.compiled().desired, world.compile().desired);
    }
}

/// The node that has the backend translates once more.
#[test]
fn a_node_port_to_a_pod_whose_address_is_a_services_leads_where_that_does() {
    let to = json!([{"podSelector": {"matchLabels": {"app": "db"}}}]);
    let world = by_node(json!([]), json!({"node": true, "to": [{"pods": {"matchLabels": {"app": "db"}}}]}))
        .with(np("app/db", json!({"podSelector": {}, "egress": [{"to": to}, {"to": [{"ipBlock": {"cidr": "192.168.0.0/16"}}]}]})))
        .with(node_port("app/np", "10.96.0.77"))
        .with(slice("app/np", &["10.0.1.2"], ports(8443)));
    assert!(world.allows("app/web", NODE, "tcp/30443"));
    let hijacked = |port, behind: &str| {
        let service = service("other/hij", "10.96.0.78", ports(port));
        let service = set(service, "/spec/externalIPs", json!(["10.0.1.2"]));
        world.clone().with(service).with(slice("other/hij", &[behind], ports(443)))
    };
    assert!(!hijacked(8443, "203.0.113.7").allows("app/web", NODE, "tcp/30443"));
    assert!(hijacked(8444, "203.0.113.7").allows("app/web", NODE, "tcp/30443"));
    assert!(hijacked(8443, "10.0.1.2").allows("app/web", NODE, "tcp/30443"));
}

/// kube-proxy looks at the addresses of services before it looks at ports of nodes.
#[test]
fn what_is_behind_a_node_port_does_not_stand_for_what_is_behind_a_service_at_that_port() {
    let outside = slice("app/np", &["203.0.113.7"], ports(443));
    let external = |backends: &[&str]| {
        let external = service("app/ext", "10.96.0.78", json!([{"name": "https", "port": 30443}]));
        let behind = slice("app/ext", backends, ports(443));
        let to = json!([{"cidr": "203.0.113.0/24"}]);
        by_node(json!([]), json!({"node": true, "to": to}))
            .with(node_port("app/np", "10.96.0.77"))
            .with(outside.clone())
            .with(set(external, "/spec/externalIPs", json!([NODE])))
            .with(behind)
    };
    assert!(external(&["203.0.113.8"]).allows("app/web", NODE, "tcp/30443"));
    assert!(!external(&[]).allows("app/web", NODE, "tcp/30443"), "nothing is behind the service");
    assert!(!external(&["198.51.100.1"]).allows("app/web", NODE, "tcp/30443"));
    assert!(external(&[]).allows("app/web", NODE, "tcp/30444"));
}
