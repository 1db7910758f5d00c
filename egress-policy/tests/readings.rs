//! Where the documents can be read in more than one way: what is meant, by hand.
//!
//! In these points the reference evaluator was once moved to what the compiler says, so that its agreement shows nothing.

mod common;

use common::{egp, json, labels, lock, mesh, namespace, node, np, pod, service, set, slice};

/// `addresses` are a way out for whoever lists them, also where another policy has a gateway there.
#[test]
fn a_gateways_addresses_may_hold_another_gateways_pods() {
    let mut other = egp(
        "other",
        json!({"subjects": [{"namespaces": labels("kubernetes.io/metadata.name", "other")}],
            "gateways": [{"addresses": ["10.0.2.0/24"], "ports": [{"port": 8443}]}]}),
    );
    let world = mesh().with(lock(json!({}))).with(other.clone());
    assert!(world.allows("other/free", "10.0.2.1", "tcp/8443"), "listed by its own policy");
    assert!(!world.allows("other/free", "10.0.2.1", "tcp/443"), "on another port");
    // `allow` never leads to a gateway, whatever prefix it has.
    other["spec"]["gateways"] = json!([]);
    other["spec"]["allow"] = json!({"to": [{"cidr": "10.0.2.0/24"}]});
    let world = mesh().with(lock(json!({}))).with(other);
    assert!(!world.allows("other/free", "10.0.2.1", "tcp/8443"));
    assert!(world.allows("other/free", "10.0.2.77", "tcp/8443"), "what the prefix is for");
}

/// An entry with `destinations` restricts the pods it means, whatever another entry leaves out.
#[test]
fn one_entry_with_destinations_restricts() {
    let entry = |destinations: Option<&str>| {
        let mut entry = json!({"namespaces": labels("kubernetes.io/metadata.name", "gw"), "pods": labels("istio", "egressgateway")});
        if let Some(cidr) = destinations {
            entry["destinations"] = json!([{"cidr": cidr}]);
        }
        entry
    };
    let world = |entries: &[common::Value]| mesh().with(lock(json!({"gateways": entries})));
    let free = world(&[entry(None), entry(None)]);
    assert!(free.allows("gw/gate", "198.51.100.1", "tcp/443"));
    let mixed = world(&[entry(None), entry(Some("203.0.113.0/24"))]);
    assert!(
        !mixed.allows("gw/gate", "198.51.100.1", "tcp/443")
            && mixed.allows("gw/gate", "203.0.113.1", "tcp/443")
    );
    let both = world(&[entry(Some("198.51.100.0/24")), entry(Some("203.0.113.0/24"))]);
    assert!(
        both.allows("gw/gate", "198.51.100.1", "tcp/443") && both.allows("gw/gate", "203.0.113.1", "tcp/443")
    );
    assert!(!both.allows("gw/gate", "192.0.2.1", "tcp/443"));
}

/// The API server is its endpoints on their ports, not all of the machines it runs on.
#[test]
fn the_api_server_is_reached_on_its_own_port() {
    let world = mesh().with(lock(json!({"allow": {"apiServer": true}})));
    assert!(
        world.allows("app/web", "192.168.0.9", "tcp/6443") && world.allows("app/web", "10.96.0.1", "tcp/443")
    );
    for other in ["tcp/22", "tcp/443", "udp/6443", "icmp"] {
        assert!(!world.allows("app/web", "192.168.0.9", other), "{other}");
    }
    assert!(!mesh().with(lock(json!({}))).allows("app/web", "192.168.0.9", "tcp/6443"), "the default");
}

/// An address that two pods say they have is open where it would be open for each of them.
#[test]
fn a_shared_address_is_open_where_both_owners_are() {
    let rule = |pods: common::Value| {
        let twin = set(
            pod("app/twin", "10.0.1.2", json!({"app": "twin", "both": "yes"})),
            "/spec/nodeName",
            json!("far"),
        );
        let db = set(
            pod("app/db", "10.0.1.2", json!({"app": "db", "both": "yes"})),
            "/spec/nodeName",
            json!("far"),
        );
        let policy = np(
            "app/p",
            json!({"podSelector": labels("app", "web"), "egress": [{"to": [{"podSelector": pods}]}]}),
        );
        mesh().with(db).with(twin).with(policy)
    };
    assert!(rule(labels("both", "yes")).allows("app/web", "10.0.1.2", "tcp/5432"));
    assert!(!rule(labels("app", "db")).allows("app/web", "10.0.1.2", "tcp/5432"));
    assert!(!rule(labels("app", "twin")).allows("app/web", "10.0.1.2", "tcp/5432"));
}

/// Two services at one address: what either can choose on a port has to be allowed; a port of one is the other's not.
#[test]
fn services_at_one_address_are_one_pool() {
    let port = |number: u16| json!([{"name": "x", "port": number}]);
    let world = mesh()
        .with(service("app/one", "10.96.5.5", port(80)))
        .with(slice("app/one", &["10.0.1.2"], port(80)))
        .with(service("app/two", "10.96.5.5", json!([{"name": "x", "port": 80}, {"name": "y", "port": 81}])))
        .with(slice("app/two", &["10.0.1.3"], json!([{"name": "x", "port": 80}, {"name": "y", "port": 81}])));
    let to = |label: &str| {
        let rule = json!([{"to": [{"namespaceSelector": {}, "podSelector": labels("app", label)}]}]);
        np("app/p", json!({"podSelector": labels("app", "web"), "egress": rule}))
    };
    assert!(!world.with(to("db")).allows("app/web", "10.96.5.5", "tcp/80"), "the other may be chosen");
    assert!(!world.with(to("free")).allows("app/web", "10.96.5.5", "tcp/80"));
    assert!(world.with(to("free")).allows("app/web", "10.96.5.5", "tcp/81"), "one service's alone");
    assert!(!world.with(to("db")).allows("app/web", "10.96.5.5", "tcp/81"));
}

/// A node's addresses are those of its Node object. A pod on the host network is no witness for them.
#[test]
fn a_nodes_addresses_are_its_objects() {
    let host = set(pod("kube-system/agent", "192.168.0.77", json!({})), "/spec/hostNetwork", json!(true));
    let world = mesh().with(host).with(lock(json!({"allow": {"node": true}})));
    assert!(world.allows("app/web", "192.168.0.1", "tcp/10250"));
    assert!(!world.allows("app/web", "192.168.0.77", "tcp/10250"), "only the pod says so");
    assert!(!world.allows("app/web", "192.168.0.2", "tcp/10250"), "another node");
    let named = mesh().with(lock(json!({"allow": {"node": true}}))).with(node(common::NODE, "192.168.0.77"));
    assert!(named.allows("app/web", "192.168.0.77", "tcp/10250"));
}

/// The cluster's DNS is what `kube-system` calls so, by name or by label, and on port 53.
#[test]
fn which_service_is_the_clusters_dns() {
    let with = |name: &str, label: common::Value, port: u16| {
        let mut dns = service(name, "10.96.7.7", json!([{"name": "dns", "port": port, "protocol": "UDP"}]));
        dns["metadata"]["labels"] = label;
        let backends = slice(name, &["10.0.1.3"], json!([{"name": "dns", "port": 5353, "protocol": "UDP"}]));
        mesh()
            .with(namespace("kube-system", json!({})))
            .with(dns)
            .with(backends)
            .with(lock(json!({"allow": {"inCluster": false}})))
    };
    let allows = |world: common::World, port: &str| world.allows("app/web", "10.96.7.7", port);
    assert!(allows(with("kube-system/coredns", json!({}), 53), "udp/53"));
    assert!(allows(with("kube-system/any", json!({"k8s-app": "kube-dns"}), 53), "udp/53"));
    assert!(!allows(with("kube-system/any", json!({}), 53), "udp/53"), "neither name nor label");
    assert!(!allows(with("app/kube-dns", json!({"k8s-app": "kube-dns"}), 53), "udp/53"), "another namespace");
    assert!(!allows(with("kube-system/coredns", json!({}), 5300), "udp/5300"), "another port");
}

/// The cluster's DNS is pods, or nodes: what else a slice names is outside, and who writes it would choose it.
#[test]
fn dns_outside_is_not_the_clusters() {
    let at = |address: &str| {
        let dns = service(
            "kube-system/coredns",
            "10.96.7.7",
            json!([{"name": "dns", "port": 53, "protocol": "UDP"}]),
        );
        let backends =
            slice("kube-system/coredns", &[address], json!([{"name": "dns", "port": 53, "protocol": "UDP"}]));
        let world = mesh().with(namespace("kube-system", json!({}))).with(node("node-b", "192.168.0.2"));
        let world = world.with(dns).with(backends).with(lock(json!({"allow": {"inCluster": false}})));
        [address, "10.96.7.7"].map(|to| world.allows("app/web", to, "udp/53"))
    };
    assert_eq!(at("10.0.1.3"), [true; 2]);
    assert_eq!(at("192.168.0.2"), [true; 2], "a pod of the node's network");
    assert_eq!(at("203.0.113.53"), [false; 2]);
}

/// The old name of a pod's account is its account.
#[test]
fn an_account_may_have_its_old_name() {
    let of = |account: common::Value| {
        let mut old = pod("app/old", "10.0.1.9", json!({}));
        old["spec"] = json!({"nodeName": "node-a"});
        account.as_object().unwrap().iter().for_each(|(key, value)| old["spec"][key] = value.clone());
        let policy = egp("old", json!({"subjects": [{"serviceAccounts": ["old"]}], "gateways": []}));
        mesh().with(old).with(policy).allows("app/old", "198.51.100.1", "tcp/443")
    };
    assert!(!of(json!({"serviceAccount": "old"})));
    assert!(!of(json!({"serviceAccount": "old", "serviceAccountName": ""})));
    assert!(of(json!({"serviceAccount": "old", "serviceAccountName": "new"})));
}
