//! Service VIPs: allowed where every backend is.

mod common;

use common::{Value, World, json, labels, lock, mesh, node, np, pod, service, set, slice};
use egress_common::packet::protocol;
use egress_common::wire::{IDENTITY_WORLD, POLICY_SENT_ON, PROTOCOL_ANY, RowKey};
use egress_policy::compile::Compiler;
use egress_policy::index::{Dirty, Event};
use egress_policy::object::{Kind, ObjectRef, address};

/// A service at 10.96.1.1, port 80 -> 8080, with these backends; `app/web` may reach `app=db` on 8080.
fn cluster(backends: &[&str]) -> World {
    let port = json!([{"name": "http", "port": 80}]);
    let rule = json!([{"to": [{"podSelector": labels("app", "db")}], "ports": [{"port": 8080}]}]);
    mesh()
        .with(np("app/p", json!({"podSelector": labels("app", "web"), "egress": rule})))
        .with(pod("app/db2", "10.0.1.4", json!({"app": "db"})))
        .with(service("app/db", "10.96.1.1", port))
        .with(slice("app/db", backends, json!([{"name": "http", "port": 8080}])))
}

#[test]
fn a_vip_passes_where_every_backend_does() {
    let world = cluster(&["10.0.1.2", "10.0.1.4"]);
    assert!(world.allows("app/web", "10.96.1.1", "tcp/80"));
    assert!(!world.allows("app/web", "10.96.1.1", "tcp/8080"));
    assert!(!world.allows("app/web", "10.96.1.1", "udp/80"));
    assert!(!world.allows("app/web", "10.96.1.1", "icmp"));
    assert!(
        !cluster(&["10.0.1.2", "10.0.1.3"]).allows("app/web", "10.96.1.1", "tcp/80"),
        "one is not allowed"
    );
    assert!(!cluster(&[]).allows("app/web", "10.96.1.1", "tcp/80"), "there is none");
    assert!(!cluster(&["8.8.8.8"]).allows("app/web", "10.96.1.1", "tcp/80"), "no pod");
}

#[test]
fn only_backends_that_can_be_chosen_count() {
    let conditions = |conditions| {
        let mut backends =
            slice("app/db", &["10.0.1.2", "10.0.1.3"], json!([{"name": "http", "port": 8080}]));
        backends["endpoints"][1]["conditions"] = conditions;
        cluster(&[]).with(backends).allows("app/web", "10.96.1.1", "tcp/80")
    };
    assert!(!conditions(json!({})), "absent is ready");
    assert!(conditions(json!({"ready": false})));
    assert!(!conditions(json!({"ready": false, "serving": true, "terminating": true})), "to some node alone");
    assert!(conditions(json!({"ready": false, "serving": false, "terminating": true})));
    let mut draining = slice("app/db", &["10.0.1.2"], json!([{"name": "http", "port": 8080}]));
    draining["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    assert!(
        cluster(&[]).with(draining.clone()).allows("app/web", "10.96.1.1", "tcp/80"),
        "nothing else is left"
    );
    draining["endpoints"][0]["conditions"] = json!({"ready": false});
    assert!(!cluster(&[]).with(draining).allows("app/web", "10.96.1.1", "tcp/80"));
}

#[test]
fn a_prefix_around_the_vip_is_not_its_backends() {
    let all = |cidr: &str| {
        let rule = json!([{"to": [{"ipBlock": {"cidr": cidr}}]}]);
        cluster(&["10.0.1.3"]).with(np("app/all", json!({"podSelector": {}, "egress": rule})))
    };
    assert!(!all("10.96.0.0/16").allows("app/web", "10.96.1.1", "tcp/80"));
    assert!(all("10.0.0.0/8").allows("app/web", "10.96.1.1", "tcp/80"), "the backend is in it");
    assert!(all("10.96.0.0/16").allows("app/web", "10.96.77.1", "tcp/80"), "no service");
}

#[test]
fn all_forms_of_vips() {
    let mut svc = service("app/db", "10.96.1.1", json!([{"name": "http", "port": 80}]));
    svc["spec"]["externalIPs"] = json!(["198.51.100.1"]);
    svc["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.2", "ipMode": "VIP"},
        {"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}});
    let world = cluster(&["10.0.1.2"]).with(svc.clone());
    assert!(world.allows("app/web", "10.96.1.1", "tcp/80"));
    assert!(world.allows("app/web", "198.51.100.2", "tcp/80"));
    // Whoever wrote the service chose it: what is outside stays outside.
    assert!(!world.allows("app/web", "198.51.100.1", "tcp/80"));
    let block = json!([{"to": [{"ipBlock": {"cidr": "198.51.100.1/32"}}]}]);
    let allowed = world.with(np("app/block", json!({"podSelector": {}, "egress": block})));
    assert!(allowed.allows("app/web", "198.51.100.1", "tcp/80"));
    let elsewhere = allowed.with(slice("app/db", &["10.0.1.3"], json!([{"name": "http", "port": 8080}])));
    assert!(
        !elsewhere.allows("app/web", "198.51.100.1", "tcp/80"),
        "and what is behind it has to be allowed"
    );
    assert!(!world.allows("app/web", "198.51.100.3", "tcp/80"), "really leaves");
    svc["spec"] =
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]});
    svc["status"] = json!({});
    assert!(!world.with(svc).allows("app/web", "10.96.1.1", "tcp/80"), "headless");
}

#[test]
fn each_family_has_its_own_backends() {
    let mut svc = service("app/db", "10.96.1.1", json!([{"name": "http", "port": 80}]));
    svc["spec"]["clusterIPs"] = json!(["10.96.1.1", "fd96::1"]);
    let world = cluster(&["10.0.1.2"])
        .with(svc)
        .with(pod("app/web", "10.0.1.1,fd00::1", json!({"app": "web"})))
        .with(pod("app/db", "10.0.1.2,fd00::2", json!({"app": "db"})));
    assert!(world.allows("app/web", "10.96.1.1", "tcp/80"));
    assert!(!world.allows("app/web", "fd96::1", "tcp/80"), "no backend of IPv6");
    let world = world.with(slice("app/db", &["fd00::2"], json!([{"name": "http", "port": 8080}])));
    assert!(world.allows("app/web", "fd96::1", "tcp/80"));
}

#[test]
fn two_services_on_one_address_keep_their_ports_apart() {
    let share = |port| {
        let svc = set(
            service("app/share", "10.96.1.2", json!([{"name": "x", "port": port}])),
            "/spec/externalIPs",
            json!(["10.96.1.1"]),
        );
        cluster(&["10.0.1.2"]).with(svc).with(slice(
            "app/share",
            &["10.0.1.3"],
            json!([{"name": "x", "port": 8080}]),
        ))
    };
    assert!(share(81).allows("app/web", "10.96.1.1", "tcp/80"));
    assert!(!share(81).allows("app/web", "10.96.1.1", "tcp/81"));
    assert!(!share(80).allows("app/web", "10.96.1.1", "tcp/80"), "either may be chosen");
}

#[test]
fn a_vip_on_a_nodes_address_needs_both() {
    let svc = set(
        service("app/db", "10.96.1.1", json!([{"name": "http", "port": 80}])),
        "/spec/externalIPs",
        json!(["192.168.0.2"]),
    );
    let world = cluster(&["10.0.1.2"]).with(node("node-b", "192.168.0.2")).with(svc);
    assert!(!world.allows("app/web", "192.168.0.2", "tcp/80"));
    let rule = json!([{"to": [{"ipBlock": {"cidr": "192.168.0.2/32"}}]}]);
    let world = world.with(np("app/node", json!({"podSelector": {}, "egress": rule})));
    assert!(world.allows("app/web", "192.168.0.2", "tcp/80"));
    assert!(world.allows("app/web", "192.168.0.2", "tcp/22"), "other ports are the node's");
    let denied = world.with(slice("app/db", &["10.0.1.3"], json!([{"name": "http", "port": 8080}])));
    assert!(!denied.allows("app/web", "192.168.0.2", "tcp/80"));
    assert!(denied.allows("app/web", "192.168.0.2", "tcp/22"));
}

/// What a node sends to a backend on another node, that node translates again where a service has the backend's address.
#[test]
fn a_backend_that_a_service_leads_elsewhere_is_not_where_packets_end() {
    let again = |name: &str, at: &str, port: u16, behind: &[&str]| {
        let service = service(name, "10.96.1.66", json!([{"name": "x", "port": port}]));
        let target = json!([{"name": "x", "port": 8080}]);
        (set(service, "/spec/externalIPs", json!([at])), slice(name, behind, target))
    };
    let with = |world: World, (service, slice): (Value, Value)| world.with(service).with(slice);
    let passes = |world: &World| world.allows("app/web", "10.96.1.1", "tcp/80");
    let plain = cluster(&["10.0.1.2"]);
    assert!(passes(&plain));
    for outside in ["203.0.113.7", "10.0.1.3"] {
        assert!(!passes(&with(plain.clone(), again("other/hij", "10.0.1.2", 8080, &[outside]))));
    }
    assert!(!passes(&with(plain.clone(), again("other/hij", "10.0.1.2", 8080, &[]))), "nobody answers");
    // On another port, and to what is allowed.
    assert!(passes(&with(plain.clone(), again("other/hij", "10.0.1.2", 8081, &["203.0.113.7"]))));
    let on = with(plain.clone(), again("other/hij", "10.0.1.2", 8080, &["10.0.1.4"]));
    assert!(passes(&on));
    // And once more, on a third node; and back.
    assert!(!passes(&with(on.clone(), again("other/third", "10.0.1.4", 8080, &["203.0.113.7"]))));
    assert!(passes(&with(on, again("other/third", "10.0.1.4", 8080, &["10.0.1.2"]))));
    // What cannot be read may have that port.
    let (mut unread, slice) = again("other/hij", "10.0.1.2", 8081, &["10.0.1.4"]);
    unread["spec"]["ports"] = json!("all");
    assert!(!passes(&with(plain, (unread, slice))));
}

/// Otherwise a chain of services, each of which has the backend of the one before, would cost as much as its square.
#[test]
fn a_long_chain_of_services_is_not_followed_to_its_end() {
    let chain = |length: u8| {
        (0..length).fold(cluster(&["10.0.9.0"]), |world, i| {
            let (at, next) = (format!("10.0.9.{i}"), format!("10.0.9.{}", i + 1));
            let name = format!("other/s{i}");
            let service = service(&name, &format!("10.96.3.{i}"), json!([{"name": "x", "port": 8080}]));
            world
                .with(pod(&format!("app/p{i}"), &at, json!({"app": "db"})))
                .with(set(service, "/spec/externalIPs", json!([at])))
                .with(slice(&name, &[&next], json!([{"name": "x", "port": 8080}])))
        })
    };
    let ends =
        |length: u8| chain(length).with(pod("app/last", &format!("10.0.9.{length}"), json!({"app": "db"})));
    assert!(ends(60).allows("app/web", "10.96.1.1", "tcp/80"));
    assert!(!chain(60).allows("app/web", "10.96.1.1", "tcp/80"), "the last one is nobody's");
    assert!(!ends(70).allows("app/web", "10.96.1.1", "tcp/80"));
}

/// What is answered to such a port may be sent on as well (`egress_common::witness::arrived`).
#[test]
fn the_maps_say_at_which_ports_of_a_pod_packets_do_not_end() {
    let sent_on = |world: &World, ip: &str| {
        let desired = world.compile().desired;
        let identity =
            desired.addresses.get(&address(ip.parse().unwrap())).copied().unwrap_or(IDENTITY_WORLD);
        let row = desired.rows.get(&RowKey { policy: POLICY_SENT_ON, identity });
        row.map(|row| row.ports().iter().map(|one| (one.protocol, one.low, one.high)).collect::<Vec<_>>())
    };
    let world = cluster(&["10.0.1.2"]);
    let count = |world: &World| {
        world.compile().desired.rows.keys().filter(|key| key.policy == POLICY_SENT_ON).count()
    };
    assert_eq!((count(&world), sent_on(&world, "10.0.1.2")), (0, None), "nobody asks from a cluster address");
    let ports =
        |number: u16| (0..number).map(|i| json!({"name": format!("p{i}"), "port": 2 * i + 7})).collect();
    let hijacked = |number| {
        let service = service("other/hij", "10.96.1.66", Value::Array(ports(number)));
        world.clone().with(set(service, "/spec/externalIPs", json!(["10.0.1.2"])))
    };
    assert_eq!(sent_on(&hijacked(2), "10.0.1.2"), Some(vec![(protocol::TCP, 7, 7), (protocol::TCP, 9, 9)]));
    assert_eq!(sent_on(&hijacked(2), "10.0.1.4"), None);
    // Where there is no room for all, those between the nearest ones are among them, and no others: kubelet asks from high ports.
    let many = sent_on(&hijacked(70), "10.0.1.2").unwrap();
    assert_eq!((many.len(), many[0].1, many[63].2), (64, 7, 145));
    assert!((0..70).all(|i| many.iter().any(|(_, low, high)| (*low..=*high).contains(&(2 * i + 7)))));
    let mut apart: Vec<Value> =
        (0..64).map(|i| json!({"name": format!("p{i}"), "port": 100 * i + 7})).collect();
    apart.push(json!({"name": "near", "port": 10}));
    let crowded = set(
        service("other/hij", "10.96.1.66", Value::Array(apart)),
        "/spec/externalIPs",
        json!(["10.0.1.2"]),
    );
    let apart = sent_on(&world.clone().with(crowded), "10.0.1.2").unwrap();
    assert_eq!((apart.len(), apart[0].1, apart[0].2), (64, 7, 10), "the nearest come together");
    let unread = hijacked(1).with(set(
        set(service("other/hij", "10.96.1.66", json!([])), "/spec/externalIPs", json!(["10.0.1.2"])),
        "/spec/ports",
        json!("all"),
    ));
    assert_eq!(sent_on(&unread, "10.0.1.2"), Some(vec![(PROTOCOL_ANY, 0, u16::MAX)]));
    // When the service goes, so does the row.
    let mut index = hijacked(2).index.clone();
    let node = world.node();
    let mut compiler = Compiler::default();
    compiler.update(&index, &node, Dirty::default());
    let gone = index.apply(Event::Delete(ObjectRef {
        kind: Kind::Service,
        namespace: Some("other".into()),
        name: "hij".into(),
    }));
    compiler.update(&index, &node, gone);
    assert_eq!(compiler.compiled().desired, world.compile().desired);
}

#[test]
fn an_address_of_two_pods_needs_both() {
    let twin = |labels| cluster(&["10.0.1.2"]).with(pod("app/twin", "10.0.1.2", labels));
    assert!(twin(json!({"app": "db"})).allows("app/web", "10.0.1.2", "tcp/8080"));
    let other = twin(json!({"app": "else"}));
    assert!(!other.allows("app/web", "10.0.1.2", "tcp/8080"));
    assert!(!other.allows("app/web", "10.96.1.1", "tcp/80"));
    assert!(other.diagnostics().contains("several owners"));
}

#[test]
fn too_many_ranges_are_denied_and_said() {
    let ports = |count: u16| -> Vec<_> { (0..count).map(|i| json!({"port": 1000 + 2 * i})).collect() };
    let world =
        |count| mesh().with(np("app/p", json!({"podSelector": {}, "egress": [{"ports": ports(count)}]})));
    assert!(world(64).allows("app/web", "1.1.1.1", "tcp/1126"));
    assert!(world(64).diagnostics().is_empty());
    assert!(!world(65).allows("app/web", "1.1.1.1", "tcp/1128"));
    assert!(world(65).allows("app/web", "1.1.1.1", "tcp/1126"));
    assert!(world(65).diagnostics().contains("1 are denied"));
    // Rather a narrow one than a wide one, wherever that is.
    let mut wide = ports(64);
    wide.push(json!({"port": 30000, "endPort": 40000}));
    let world_of = |ports| mesh().with(np("app/p", json!({"podSelector": {}, "egress": [{"ports": ports}]})));
    assert!(world_of(wide.clone()).allows("app/web", "1.1.1.1", "tcp/35000"));
    assert!(!world_of(wide).allows("app/web", "1.1.1.1", "tcp/1126"));
    let row = world(64).compile().desired.rows.into_values().find(|row| row.len == 64).unwrap();
    assert!(row.ports().iter().all(|entry| entry.protocol == protocol::TCP));
}

#[test]
fn a_service_opens_its_backends_ports_to_gateways_alone() {
    let world = mesh()
        .with(service("app/db", "10.96.1.1", json!([{"name": "sql", "port": 5432}])))
        .with(slice("app/db", &["10.0.1.2"], json!([{"name": "sql", "port": 15432}])));
    let to_db = json!([{"to": [{"podSelector": labels("app", "db")}], "ports": [{"port": 5432}]}]);
    let world = world.with(np("app/p", json!({"podSelector": labels("app", "web"), "egress": to_db})));
    assert!(world.allows("app/web", "10.0.1.2", "tcp/5432"));
    assert!(!world.allows("app/web", "10.0.1.2", "tcp/15432"), "the service's port is no port of the pod");
    assert!(!world.allows("app/web", "10.96.1.1", "tcp/5432"), "for its backend's port is not allowed");
    let to_target = json!([{"to": [{"podSelector": labels("app", "db")}], "ports": [{"port": 15432}]}]);
    let world = world.with(np("app/p", json!({"podSelector": labels("app", "web"), "egress": to_target})));
    assert!(
        world.allows("app/web", "10.96.1.1", "tcp/5432") && world.allows("app/web", "10.0.1.2", "tcp/15432")
    );
}

#[test]
fn a_named_port_has_name_and_protocol() {
    let db = set(
        pod("app/db", "10.0.1.2", json!({"app": "db"})),
        "/spec/containers",
        json!([{"name": "c", "ports": [{"name": "sql", "containerPort": 5432},
            {"name": "sql-udp", "containerPort": 5433, "protocol": "UDP"}, {"name": "web", "containerPort": 80}]}]),
    );
    let rule = json!([{"to": [{"podSelector": {}}], "ports": [{"port": "sql"}]}]);
    let world =
        mesh().with(db).with(np("app/p", json!({"podSelector": labels("app", "web"), "egress": rule})));
    assert!(world.allows("app/web", "10.0.1.2", "tcp/5432"));
    for other in ["tcp/80", "udp/5432", "udp/5433", "tcp/5433"] {
        assert!(!world.allows("app/web", "10.0.1.2", other), "{other}");
    }
}

#[test]
fn what_kube_proxy_leaves_alone_is_no_part_of_the_cluster() {
    let external = |label: &str| {
        let mut service = service("app/t", "10.96.0.66", json!([{"name": "x", "port": 443}]));
        service["spec"]["externalIPs"] = json!(["203.0.113.9"]);
        service["metadata"]["labels"] = json!({label: ""});
        let world = mesh().with(lock(json!({}))).with(service);
        world.with(slice("app/t", &["10.0.1.2"], json!([{"name": "x", "port": 443}])))
    };
    // Also of one that counts, the address itself has to be allowed: not all nodes translate it yet.
    assert!(!external("app").allows("app/web", "203.0.113.9", "tcp/443"));
    let cidr = json!({"allow": {"to": [{"cidr": "203.0.113.9/32"}]}});
    assert!(external("app").with(lock(cidr)).allows("app/web", "203.0.113.9", "tcp/443"));
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        assert!(!external(label).allows("app/web", "203.0.113.9", "tcp/443"), "{label}");
    }
}

/// kube-proxy leaves it out (`pkg/proxy/endpointslicecache.go`). Of others that are none, see `tests/unread.rs`.
#[test]
fn a_port_of_a_slice_that_is_zero_does_not_keep_the_others_back() {
    let front = |address: &str, ports: Value| {
        let service = service("app/t", "10.96.0.66", json!([{"name": "x", "port": 443}]));
        let world = mesh().with(lock(json!({}))).with(service);
        let world = world.with(slice("app/t", &["10.0.1.2"], json!([{"name": "x", "port": 443}])));
        assert!(world.allows("app/web", "10.96.0.66", "tcp/443"));
        world.with(slice("app/t", &[address], ports)).allows("app/web", "10.96.0.66", "tcp/443")
    };
    for unusable in [json!({"name": "y", "port": 0}), json!({"name": "y"})] {
        let ports = json!([unusable, {"name": "x", "port": 443}]);
        assert!(!front("203.0.113.9", ports.clone()), "{ports}");
        assert!(front("10.0.1.3", ports));
    }
}

#[test]
fn what_terminates_may_be_chosen_beside_what_is_ready() {
    let world = |policy: &str, label: &str, endpoints: Value| {
        let mut service = service("app/t", "10.96.0.66", json!([{"name": "x", "port": 443}]));
        service["spec"]["internalTrafficPolicy"] = json!(policy);
        let mut out = slice("app/t", &[], json!([{"name": "x", "port": 443}]));
        out["endpoints"] = endpoints;
        let mut other = slice("app/t", &["10.0.1.3"], json!([{"name": "x", "port": 443}]));
        other["metadata"]["name"] = json!("other");
        other["metadata"]["labels"][label] = json!("");
        mesh().with(lock(json!({}))).with(service).with(out).with(other).allows(
            "app/web",
            "10.96.0.66",
            "tcp/443",
        )
    };
    let serving = json!([{"addresses": ["203.0.113.9"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    let silent = json!([{"addresses": ["203.0.113.9"], "conditions": {"ready": false, "terminating": true}}]);
    let unready = json!([{"addresses": ["203.0.113.9"], "conditions": {"ready": false, "serving": false, "terminating": true}}]);
    // Another backend is ready, but not to every node for sure.
    for policy in ["Cluster", "Local"] {
        assert!(!world(policy, "app", serving.clone()));
        assert!(!world(policy, "app", silent.clone()), "absent is serving");
        assert!(world(policy, "app", unready.clone()));
    }
    // Nobody takes that other backend from a slice of another proxy.
    let label = "service.kubernetes.io/service-proxy-name";
    assert!(!world("Cluster", label, serving));
    assert!(!world("Cluster", label, silent));
}

/// kube-proxy keeps one entry for each address and port. One that is ready in a slice and not ready in another may be not ready to it, so
/// that it falls back to what terminates.
#[test]
fn what_terminates_counts_where_another_slice_makes_a_ready_address_unready() {
    let part = |name: &str, endpoints: Value| {
        let mut part = slice("app/t", &[], json!([{"name": "x", "port": 443}]));
        part["metadata"]["name"] = json!(name);
        part["endpoints"] = endpoints;
        part
    };
    let unready = json!({"addresses": ["10.0.1.3"], "conditions": {"ready": false, "serving": false}});
    let ends = |ip: &str| json!({"addresses": [ip], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let world = |others: Value| {
        let service = service("app/t", "10.96.0.66", json!([{"name": "x", "port": 443, "nodePort": 30443}]));
        let ready = json!([{"addresses": ["10.0.1.3"], "conditions": {"ready": true}}]);
        let world = mesh().with(lock(json!({"allow": {"node": true}}))).with(service);
        world.with(part("t-a", ready)).with(part("t-b", others))
    };
    let allows = |others: Value| {
        let world = world(others);
        let by = |to, port| world.allows("app/web", to, port);
        (by("10.96.0.66", "tcp/443"), by("192.168.0.1", "tcp/30443"))
    };
    assert_eq!(allows(json!([unready, ends("198.51.100.10")])), (false, false));
    // What terminates inside of the cluster is allowed as what is ready there.
    assert_eq!(allows(json!([unready, ends("10.0.1.2")])), (true, true));
    assert_eq!(allows(json!([unready])), (true, true));
}
