//! The ways out: by pod, by service, by address, for whom, and how far gateways themselves reach.
#![expect(
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    reason = "test helpers take literals and fail by panic"
)]

mod common;

use common::{World, egp, json, labels, lock, mesh, node, pod, service, set, slice};
use egress_policy::compile::PodState;

fn gateway(extra: serde_json::Value) -> World {
    let mut policy = lock(json!({}));
    for (field, value) in extra.as_object().unwrap() {
        policy["spec"]["gateways"][0][field] = value.clone();
    }
    mesh().with(policy)
}

#[test]
fn a_gateway_is_reached_on_its_ports_by_pod_and_by_service() {
    let world = gateway(json!({}));
    assert!(world.allows("app/web", "10.0.2.1", "tcp/443"));
    assert!(world.allows("app/web", "10.96.0.9", "tcp/443"), "the service's port");
    assert!(world.allows("app/web", "10.0.2.1", "tcp/8443"), "its target port");
    assert!(!world.allows("app/web", "10.96.0.9", "tcp/8443"), "the target port at the VIP");
    assert!(!world.allows("app/web", "10.0.2.1", "tcp/80"));
    assert!(!world.allows("app/web", "10.0.2.1", "udp/443"));
    assert!(!world.allows("app/web", "10.0.2.1", "icmp"));
    assert_eq!(
        world.rule("app/web", "10.0.2.1", "tcp/443"),
        "EgressGatewayPolicy mesh spec.gateways[0] (out)"
    );
}

#[test]
fn absent_ports_are_all_and_empty_ports_are_none() {
    let mut policy = lock(json!({}));
    policy["spec"]["gateways"][0].as_object_mut().unwrap().remove("ports");
    let world = mesh().with(policy);
    assert!(world.allows("app/web", "10.0.2.1", "udp/9999"));
    assert!(world.allows("app/web", "10.0.2.1", "icmp"));
    let world = gateway(json!({"ports": []}));
    assert!(!world.allows("app/web", "10.0.2.1", "tcp/443"));
    assert!(!world.allows("app/web", "10.96.0.9", "tcp/443"));
}

#[test]
fn a_service_of_another_namespace_opens_no_port() {
    let ports = json!([{"name": "x", "port": 443}]);
    let foreign = service("app/trick", "10.96.0.66", ports);
    let world = gateway(json!({})).with(foreign);
    let world = world.with(slice("app/trick", &["10.0.2.1"], json!([{"name": "x", "port": 15000}])));
    assert!(!world.allows("app/web", "10.0.2.1", "tcp/15000"));
    assert!(!world.allows("app/web", "10.96.0.66", "tcp/443"));
    assert!(world.allows("app/web", "10.96.0.9", "tcp/443"));
}

#[test]
fn the_gateway_follows_the_cluster_and_none_is_no_way_out() {
    let world = gateway(json!({}));
    assert!(!world.without("Pod gw/gate").allows("app/web", "10.0.2.1", "tcp/443"));
    assert!(!world.without("EndpointSlice gw/gate-4").allows("app/web", "10.96.0.9", "tcp/443"));
    let second = pod("gw/second", "10.0.2.2", json!({"istio": "egressgateway"}));
    assert!(!world.allows("app/web", "10.0.2.2", "tcp/443"));
    assert!(world.with(second).allows("app/web", "10.0.2.2", "tcp/443"));
    let finished =
        set(pod("gw/gate", "10.0.2.1", json!({"istio": "egressgateway"})), "/status/phase", json!("Failed"));
    assert!(!world.with(finished).allows("app/web", "10.0.2.1", "tcp/443"));
}

/// Nothing else leads there than the entry does, to its clients and through their proxies: as with pods.
#[test]
fn a_gateways_single_address_is_the_gateways_alone() {
    let more = json!({"inCluster": true, "node": true, "to": [{"cidr": "203.0.113.0/24"}, {"namespaces": {}, "pods": {}}]});
    let policy = |address: &str, clients: serde_json::Value, proxy: serde_json::Value| {
        let mut gateway = json!({"addresses": [address], "ports": [{"port": 80}]});
        if !clients.is_null() {
            gateway["clients"] = clients;
        }
        let mut policy = lock(json!({"gateways": [gateway], "allow": more}));
        if !proxy.is_null() {
            policy["spec"]["proxy"] = proxy;
        }
        mesh()
            .with(set(
                set(
                    service("app/lb", "10.96.0.77", json!([{"name": "x", "port": 80}])),
                    "/spec/type",
                    json!("LoadBalancer"),
                ),
                "/status",
                json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.66", "ipMode": "VIP"}]}}),
            ))
            .with(slice("app/lb", &["10.0.1.2"], json!([{"name": "x", "port": 80}])))
            .with(policy)
    };
    // Outside, a load balancer's, a cluster IP, a pod's, the node's.
    for address in ["203.0.113.7", "203.0.113.66", "10.96.0.77", "10.0.1.2", "192.168.0.1"] {
        let single = format!("{address}/32");
        let all = policy(&single, json!(null), json!(null));
        assert!(all.allows("app/web", address, "tcp/80"), "{address}");
        let nobody = policy(&single, json!([]), json!(null));
        assert!(!nobody.allows("app/web", address, "tcp/80"), "{address}");
        let elsewhere = policy("192.0.2.1/32", json!([]), json!(null));
        assert!(elsewhere.allows("app/web", address, "tcp/80"), "{address} is no gateway there");
        // The application's container, of a pod whose proxy may.
        let locked = policy(&single, json!(null), json!({"containers": ["istio-proxy"], "scope": "Egress"}));
        assert!(!locked.allows("app/web", address, "tcp/80"), "{address}");
    }
    // By way of a service, its backend is a gateway as well.
    assert!(!policy("10.0.1.2/32", json!([]), json!(null)).allows("app/web", "10.96.0.77", "tcp/80"));
    // A block is not: it may hold what is the cluster's.
    assert!(policy("10.0.0.0/8", json!([]), json!(null)).allows("app/web", "10.0.1.2", "tcp/80"));
}

/// On a port that a service lacks nobody is at its address, a gateway's or not; where kube-proxy leaves that to routes, it leads out.
#[test]
fn a_gateways_address_that_is_a_services_has_the_services_ports_alone() {
    let service = service("app/np", "10.96.0.77", json!([{"name": "x", "port": 80}]));
    let world = |address: &str| {
        let mut policy = lock(json!({}));
        policy["spec"]["gateways"][0] =
            json!({"addresses": [address, "203.0.113.7/32"], "destinations": [{"cidr": "10.96.0.0/16"}]});
        mesh().with(service.clone()).with(policy)
    };
    let ready = slice("app/np", &["203.0.113.7"], json!([{"name": "x", "port": 8080}]));
    let single = world("10.96.0.77/32");
    let led = single.with(ready);
    assert!(led.allows("app/web", "10.96.0.77", "tcp/80"));
    for port in ["tcp/81", "udp/80", "icmp"] {
        assert!(!led.allows("app/web", "10.96.0.77", port), "{port}");
        assert!(led.allows("app/web", "203.0.113.7", port), "{port}");
    }
    assert!(!single.allows("app/web", "10.96.0.77", "tcp/80"), "nothing is behind it");
    assert!(!world("10.96.0.78/32").allows("app/web", "10.96.0.77", "tcp/80"), "nor without it");
}

/// As with a gateway's pod: who may reach its node does not come by a port of the node.
#[test]
fn a_gateways_address_is_not_reached_by_ports_of_nodes() {
    let world = |address: &str| {
        let gateways = json!([{"addresses": [address], "clients": []}]);
        let db = pod("app/db", "10.0.1.2", json!({"app": "db"}));
        let db = set(db, "/spec/containers/0/ports", json!([{"containerPort": 80, "hostPort": 8080}]));
        mesh()
            .with(set(db, "/spec/nodeName", json!("node-a")))
            .with(service("app/np", "10.96.0.77", json!([{"name": "x", "port": 80, "nodePort": 30080}])))
            .with(slice("app/np", &["10.0.1.2"], json!([{"name": "x", "port": 80}])))
            .with(lock(json!({"gateways": gateways, "allow": {"node": true}})))
    };
    let (gateway, other) = (world("10.0.1.2/32"), world("10.0.1.9/32"));
    for port in ["tcp/30080", "tcp/8080"] {
        assert!(other.allows("app/web", "192.168.0.1", port), "{port}");
        assert!(!gateway.allows("app/web", "192.168.0.1", port), "{port}");
    }
    assert!(gateway.allows("app/web", "192.168.0.1", "tcp/10250"));
}

/// Who may write slices in that namespace names no API server of his own.
#[test]
fn the_api_server_is_where_its_own_slice_says() {
    let ports = json!([{"name": "https", "port": 6443}]);
    let own = slice("default/kubernetes", &["192.168.0.9"], ports.clone());
    let own = set(own, "/metadata/name", json!("kubernetes"));
    let another = slice("default/kubernetes", &["203.0.113.7"], ports);
    let another = set(another, "/metadata/name", json!("mine"));
    let world = mesh().with(lock(json!({"allow": {"apiServer": true}}))).with(another);
    assert!(world.allows("app/web", "203.0.113.7", "tcp/6443"), "without one of its own, any");
    let world = world.with(own);
    assert!(world.allows("app/web", "192.168.0.9", "tcp/6443"));
    assert!(!world.allows("app/web", "203.0.113.7", "tcp/6443"));
    assert!(!world.allows("app/web", "10.96.0.1", "tcp/443"), "one of two behind it is outside");
}

/// The address of a node may be the API server's as well, on a port of its own.
#[test]
fn a_gateways_address_may_be_the_api_servers_too() {
    let world = |api: bool| {
        let gateways = json!([{"addresses": ["192.168.0.1/32"], "ports": [{"port": 15443}], "clients": []}]);
        mesh()
            .with(service("default/kubernetes", "10.96.0.1", json!([{"name": "https", "port": 443}])))
            .with(slice("default/kubernetes", &["192.168.0.1"], json!([{"name": "https", "port": 6443}])))
            .with(lock(json!({"gateways": gateways, "allow": {"apiServer": api, "node": true}})))
    };
    for (address, port) in [("192.168.0.1", "tcp/6443"), ("10.96.0.1", "tcp/443")] {
        assert!(world(true).allows("app/web", address, port), "{address}");
        assert!(!world(false).allows("app/web", address, port), "{address}");
    }
    assert!(!world(true).allows("app/web", "192.168.0.1", "tcp/15443"));
}

#[test]
fn addresses_are_gateways_too() {
    let world = gateway(json!({"addresses": ["203.0.113.0/24", "2001:db8::/64"]}));
    assert!(world.allows("app/web", "203.0.113.7", "tcp/443"));
    assert!(!world.allows("app/web", "203.0.113.7", "tcp/80"));
    assert!(!world.allows("app/web", "203.0.114.7", "tcp/443"));
    let web = pod("app/web", "10.0.1.1,fd00::1", json!({}));
    assert!(world.with(web.clone()).allows("app/web", "2001:db8::5", "tcp/443"));
    assert!(!world.with(web).allows("app/web", "2001:db8:1::5", "tcp/443"));
}

#[test]
fn only_clients_may_use_it() {
    let clients = |list| gateway(json!({ "clients": list }));
    let world = clients(json!([{"namespaces": labels("mesh", "on"), "pods": labels("app", "web")}]));
    assert!(world.allows("app/web", "10.0.2.1", "tcp/443"));
    assert!(!world.allows("app/db", "10.0.2.1", "tcp/443"));
    assert!(!world.allows("app/db", "10.96.0.9", "tcp/443"));
    assert!(!clients(json!([])).allows("app/web", "10.0.2.1", "tcp/443"));
    let world = clients(json!([{"serviceAccounts": ["payer"]}]));
    assert!(!world.allows("app/web", "10.0.2.1", "tcp/443"));
    let payer = set(pod("app/web", "10.0.1.1", json!({})), "/spec/serviceAccountName", json!("payer"));
    assert!(world.with(payer).allows("app/web", "10.0.2.1", "tcp/443"));
}

#[test]
fn neither_in_cluster_nor_further_peers_lead_to_a_gateway() {
    let to =
        json!([{"cidr": "10.0.0.0/8"}, {"namespaces": {}}, {"service": {"namespace": "gw", "name": "gate"}}]);
    let mut policy = lock(json!({"allow": {"to": to}}));
    policy["spec"]["gateways"][0]["clients"] = json!([]);
    let world = mesh().with(policy);
    assert!(!world.allows("app/web", "10.0.2.1", "tcp/443"));
    assert!(!world.allows("app/web", "10.96.0.9", "tcp/443"));
    assert!(world.allows("app/web", "10.0.1.3", "tcp/443"));
    assert!(world.allows("app/web", "10.9.9.9", "tcp/443"));
}

#[test]
fn a_gateway_is_no_subject() {
    let policy = |destinations: Option<serde_json::Value>| {
        let mut policy = lock(json!({"subjects": [{"namespaces": {}}]}));
        if let Some(destinations) = destinations {
            policy["spec"]["gateways"][0]["destinations"] = destinations;
        }
        mesh().with(policy)
    };
    let free = policy(None);
    assert!(free.allows("gw/gate", "1.1.1.1", "tcp/443"));
    assert_eq!(free.state("gw/gate"), PodState::Unselected);
    assert!(!free.allows("other/free", "1.1.1.1", "tcp/443"));
    let bound =
        policy(Some(json!([{"cidr": "1.1.1.0/24", "except": ["1.1.1.128/25"], "ports": [{"port": 443}]}])));
    assert!(bound.allows("gw/gate", "1.1.1.1", "tcp/443"));
    assert!(!bound.allows("gw/gate", "1.1.1.1", "tcp/80"));
    assert!(!bound.allows("gw/gate", "1.1.1.200", "tcp/443"));
    assert!(!bound.allows("gw/gate", "2.2.2.2", "tcp/443"));
    for inside in ["10.0.1.1", "10.0.3.1", "192.168.0.2"] {
        assert!(bound.allows("gw/gate", inside, "tcp/80"), "{inside}");
    }
    assert!(bound.allows("gw/gate", "10.96.0.10", "udp/53"));
    assert!(bound.allows("gw/gate", "10.96.0.1", "tcp/443"));
    let none = policy(Some(json!([])));
    assert!(!none.allows("gw/gate", "1.1.1.1", "tcp/443"));
    assert!(none.allows("gw/gate", "10.0.1.1", "tcp/80"));
}

#[test]
fn destinations_of_several_entries_are_united() {
    let entry = |cidr: &str| {
        let gateway = json!({"pods": labels("istio", "egressgateway"), "destinations": [{"cidr": cidr}]});
        json!({"subjects": [{"pods": labels("app", "web")}], "gateways": [gateway]})
    };
    let world =
        mesh().with(egp("a", entry("1.1.1.0/24"))).with(egp("b", entry("2.2.2.0/24"))).with(lock(json!({})));
    assert!(world.allows("gw/gate", "1.1.1.1", "tcp/1"));
    assert!(world.allows("gw/gate", "2.2.2.2", "tcp/1"));
    assert!(!world.allows("gw/gate", "3.3.3.3", "tcp/1"));
}

#[test]
fn a_host_network_pod_is_no_gateway_by_its_labels() {
    let host = set(
        pod("gw/host", "192.168.0.7", json!({"istio": "egressgateway"})),
        "/spec/hostNetwork",
        json!(true),
    );
    let world = gateway(json!({})).with(node("node-c", "192.168.0.7")).with(host);
    assert!(!world.allows("app/web", "192.168.0.7", "tcp/443"));
    assert!(world.diagnostics().contains("host network"));
}
