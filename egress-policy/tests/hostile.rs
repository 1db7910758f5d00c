//! Anything that can be read is survived, at a cost that is bounded by its size: no panic, nothing quadratic.
//!
//! The cost is [`Compiler::work`], which does not depend on the machine; twice the input may cost little more than twice
//! the work.
mod common;

use common::{NODE, Value, World, egp, json, labels, lock, mesh, namespace, np, pod, service, set, slice};
use egress_common::Action;
use egress_policy::compile::{Compiler, Node, UnknownPods};
use egress_policy::index::{Dirty, Event, Index};
use egress_policy::object::{Kind, ObjectRef, Read, read};
use egress_policy::plan::{State, diff};
use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

/// The work of compiling a world from nothing.
fn work(world: &World) -> u64 {
    let node = Node {
        name: NODE,
        pod_root_level: 2,
        unknown_pods: world.unknown,
        incomplete: false,
        pods: &world.local,
    };
    let mut compiler = Compiler::default();
    compiler.update(&world.index, &node, Dirty::default());
    compiler.work()
}

/// Checks that a world of `size`, and one of twice that, cost at most `each` per unit, and little more than twice as much.
#[track_caller]
fn linear(each: u64, size: usize, make: impl Fn(usize) -> World) {
    let base = work(&make(1));
    let (one, two) = (work(&make(size)).abs_diff(base), work(&make(2 * size)).abs_diff(base));
    assert!(one <= each * size as u64, "{one} for {size}");
    assert!(two <= one * 5 / 2 + 100, "{one} for {size}, {two} for twice that");
}

fn cidr(i: usize) -> String {
    format!("{}.{}.{}.0/24", 20 + i / 65_536, i / 256 % 256, i % 256)
}

#[test]
fn ten_thousand_prefixes_in_one_policy() {
    let policy = |n: usize| {
        let to: Vec<Value> = (0..n).map(|i| json!({"ipBlock": {"cidr": cidr(i)}})).collect();
        np("app/many", json!({"podSelector": {}, "egress": [{"to": to}]}))
    };
    linear(20, 5_000, |n| mesh().with(policy(n)));
    let world = mesh().with(policy(10_000));
    assert!(
        world.allows("app/web", "20.39.15.9", "tcp/1") && !world.allows("app/web", "20.39.16.9", "tcp/1")
    );
}

#[test]
fn ten_thousand_exceptions_of_one_prefix() {
    let policy = |n: usize| {
        let except: Vec<String> = (0..n).map(cidr).collect();
        np(
            "app/many",
            json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": except}}]}]}),
        )
    };
    linear(20, 5_000, |n| mesh().with(policy(n)));
    let world = mesh().with(policy(10_000));
    assert!(
        !world.allows("app/web", "20.39.15.9", "tcp/1") && world.allows("app/web", "20.39.16.9", "tcp/1")
    );
}

#[test]
fn every_port_there_is() {
    let policy = |n: usize| {
        let ports: Vec<Value> = (0..n).map(|i| json!({"port": 1 + i * 65_534 / n.max(1)})).collect();
        np("app/many", json!({"podSelector": {}, "egress": [{"ports": ports}]}))
    };
    linear(40, 16_000, |n| mesh().with(policy(n)));
    // All of them are one range; every other one does not fit and is denied, which is said.
    let all = mesh().with(policy(65_534));
    assert!(all.allows("app/web", "198.51.100.1", "tcp/40000") && all.diagnostics().is_empty());
    let odd = mesh().with(policy(32_767));
    assert!(odd.diagnostics().contains("more than 64 port ranges"), "{}", odd.diagnostics());
    assert!(!odd.allows("app/web", "198.51.100.1", "tcp/60000"));
}

#[test]
fn thousands_of_rules_selectors_and_policies() {
    let selectors = |n: usize| -> Vec<Value> {
        (0..n).map(|i| json!({"to": [{"podSelector": labels(&format!("key-{i}"), "v"), "namespaceSelector": labels(&format!("ns-{i}"), "v")}]})).collect()
    };
    linear(20, 2_000, |n| mesh().with(np("app/many", json!({"podSelector": {}, "egress": selectors(n)}))));
    // Each leads to every pod.
    let expressions = |n: usize| -> Vec<Value> {
        (0..n).map(|i| json!({"to": [{"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": format!("k{i}"), "operator": "DoesNotExist"}]}}]})).collect()
    };
    linear(20, 1_000, |n| mesh().with(np("app/many", json!({"podSelector": {}, "egress": expressions(n)}))));
    linear(40, 500, |n| {
        (0..n).fold(mesh(), |mut world, i| {
            world.add(np(
                &format!("app/p{i}"),
                json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": cidr(i)}}]}]}),
            ));
            world
        })
    });
    linear(40, 500, |n| {
        (0..n).fold(mesh(), |mut world, i| {
            let gateways = json!([{"name": format!("g{i}"), "addresses": [cidr(i)]}]);
            world.add(egp(
                &format!("e{i}"),
                json!({"subjects": [{"namespaces": labels("mesh", "on")}], "gateways": gateways}),
            ));
            world
        })
    });
}

#[test]
fn services_with_thousands_of_ports_and_backends() {
    let ports = |n: usize| -> Vec<Value> {
        (0..n).map(|i| json!({"name": format!("p{i}"), "port": 1 + i})).collect()
    };
    let many = |ports: &[Value], backends: usize| {
        let addresses: Vec<String> = (0..backends).map(|i| format!("10.7.{}.{}", i / 256, i % 256)).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        mesh().with(lock(json!({}))).with(service("app/s", "10.96.7.7", json!(ports))).with(slice(
            "app/s",
            &addresses,
            json!(ports),
        ))
    };
    linear(60, 1_000, |n| many(&ports(n), 2));
    linear(40, 2_000, |n| many(&ports(2), n));
}

#[test]
fn services_that_stand_behind_each_other() {
    let mut world = mesh().with(lock(json!({})));
    let vip = |i: usize| format!("10.96.8.{i}");
    for i in 0..200 {
        let port = json!([{"name": "x", "port": 80}]);
        world.add(service(&format!("app/s{i}"), &vip(i), port.clone()));
        world.add(slice(&format!("app/s{i}"), &[&vip((i + 1) % 200), &vip(i)], port));
    }
    assert!(work(&world) < 5_000);
    assert!(!world.allows("app/web", &vip(7), "tcp/80"), "a circle leads nowhere");
}

#[test]
fn one_more_of_many_services_in_front_of_the_same_backends() {
    let backends: Vec<String> = (1..21).map(|i| format!("198.51.100.{i}")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let port = json!([{"name": "x", "port": 80}]);
    let cost = |n: usize| {
        let add = |world: &mut World, i: usize| {
            world.add(service(
                &format!("app/s{i}"),
                &format!("10.97.{}.{}", i / 250, i % 250 + 1),
                port.clone(),
            ));
            world.add(slice(&format!("app/s{i}"), &backends, port.clone()));
        };
        let mut world = mesh().with(lock(json!({})));
        (0..n).for_each(|i| add(&mut world, i));
        let mut compiler = Compiler::default();
        let local = world.local.clone();
        let node = |pods| Node {
            name: NODE,
            pod_root_level: 2,
            unknown_pods: UnknownPods::DenyOutside,
            incomplete: false,
            pods,
        };
        compiler.update(&world.index, &node(&local), Dirty::default());
        let before = compiler.work();
        let one = slice(&format!("app/s{}", n / 2), &backends[..19], port.clone());
        let events = read(one).unwrap_or_default().into_iter().filter_map(Read::event);
        let mut dirty = Dirty::default();
        events.for_each(|event| dirty |= world.index.apply(event));
        compiler.update(&world.index, &node(&local), dirty);
        compiler.work() - before
    };
    let (one, two) = (cost(100), cost(200));
    assert!(one > 20 && two <= one * 5 / 2, "{one} among 100, {two} among 200");
    // Not the backends of each of the services again.
    assert!(one < 100 * 20 * 2, "{one}");
}

#[test]
fn one_address_of_a_thousand_pods() {
    let pods = |n: usize| {
        (0..n).fold(mesh().with(lock(json!({}))), |mut world, i| {
            world.add(set(
                pod(&format!("other/p{i}"), "10.0.7.7", json!({"i": format!("{i}")})),
                "/spec/nodeName",
                json!("far"),
            ));
            world
        })
    };
    linear(20, 500, pods);
}

#[test]
fn names_and_labels_may_be_anything() {
    let odd =
        ["", " ", "ünï-cødé", "日本", "a/b", "..", "\u{0}", "\u{202e}", "\u{10ffff}\u{10ffff}", "'; --"];
    let mut world = mesh().with(lock(json!({})));
    for (i, name) in odd.into_iter().filter(|name| !name.is_empty()).enumerate() {
        world.add(namespace(name, json!({"x": name, name: name})));
        let mut pod = pod("ns/name", &format!("10.0.8.{i}"), json!({"x": name, name: "y"}));
        pod["metadata"]["namespace"] = json!(name);
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["uid"] = json!(format!("uid-{i}"));
        world.add(pod);
        let mut policy = np("ns/name", json!({"podSelector": labels("x", name), "policyTypes": ["Egress"]}));
        policy["metadata"]["namespace"] = json!(name);
        policy["metadata"]["name"] = json!(name);
        world.add(policy);
    }
    let compiled = world.compile();
    let of_last = world.index.pods().filter(|pod| *pod.namespace == *"\u{10ffff}\u{10ffff}");
    assert_eq!(of_last.count(), 1);
    for local in &world.local {
        let known = compiled.endpoints.get(&local.cgroup);
        assert!(known.is_some_and(|endpoint| endpoint.namespace.len() < 40), "{local:?}");
    }
    // Every one of them is isolated by the policy of its own namespace.
    assert!(
        !world.allows("日本/日本", "198.51.100.1", "tcp/1")
            && world.allows("other/free", "198.51.100.1", "tcp/1")
    );
}

#[test]
fn objects_of_another_kind_and_deletes_of_what_is_not_there_change_nothing() {
    let world = mesh().with(lock(json!({})));
    let before = world.compile();
    let mut index = world.index.clone();
    for kind in Kind::ALL {
        for (namespace, name) in [(None, "web"), (Some("app"), "nobody"), (Some(""), ""), (None, "")] {
            let object = ObjectRef { kind, namespace: namespace.map(Into::into), name: name.into() };
            assert!(index.apply(Event::Delete(object)).is_empty());
        }
    }
    assert_eq!(World { index, ..world }.compile(), before);
}

#[test]
fn of_what_has_one_name_twice_the_last_or_the_first_counts_and_nothing_breaks() {
    let twin = |label: &str| {
        let read = read(pod("app/db", "10.0.1.2", json!({"app": label}))).unwrap_or_default().pop();
        match read.and_then(Read::event) {
            Some(Event::Upsert(object)) => object,
            other => panic!("{other:?}"),
        }
    };
    let mut world = mesh();
    let pods: Vec<_> = world.index.objects().filter(|object| object.kind == Kind::Pod).collect();
    let gone = pods.into_iter().map(Event::Delete);
    for event in gone.chain([twin("one"), twin("db"), twin("two")].map(Event::Upsert)) {
        world.index.apply(event);
    }
    assert_eq!(world.index.pods().filter_map(|pod| pod.labels.get("app")).collect::<Vec<_>>(), ["two"]);
    // Two gateways and two ports of one name, and a slice that has a port twice.
    let port = |name: &str, port: u16| json!({"name": name, "port": port});
    let mut policy = lock(json!({}));
    let gateways = policy["spec"]["gateways"].as_array().cloned().unwrap_or_default();
    policy["spec"]["gateways"] = json!([gateways[0], gateways[0]]);
    let world = mesh()
        .with(policy)
        .with(service("gw/gate", "10.96.0.9", json!([port("x", 443), port("x", 443)])))
        .with(slice("gw/gate", &["10.0.2.1", "10.0.2.1"], json!([port("x", 8443), port("x", 9443)])));
    assert!(
        world.allows("app/web", "10.96.0.9", "tcp/443") && world.allows("app/web", "10.0.2.1", "tcp/8443")
    );
    assert!(!world.allows("app/web", "10.0.2.1", "tcp/9443"), "the first one counts");
}

fn value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just("Egress"),
        Just("TCP"),
        Just("10.0.0.0/8"),
        Just("0.0.0.0/0"),
        Just("::/0"),
        Just("In"),
        Just("app"),
        Just(""),
        Just("é"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![any::<i64>(), -1_i64..70_000].prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let field = prop_oneof![
        Just("podSelector"),
        Just("egress"),
        Just("to"),
        Just("ports"),
        Just("ipBlock"),
        Just("cidr"),
        Just("except"),
        Just("policyTypes"),
        Just("subjects"),
        Just("gateways"),
        Just("allow"),
        Just("proxy"),
        Just("containers"),
        Just("scope"),
        Just("namespaces"),
        Just("pods"),
        Just("addresses"),
        Just("clients"),
        Just("destinations"),
        Just("port"),
        Just("endPort"),
        Just("protocol"),
        Just("matchLabels"),
        Just("matchExpressions"),
        Just("key"),
        Just("operator"),
        Just("values"),
        Just("clusterIP"),
        Just("selector"),
        Just("endpoints"),
        Just("podIPs"),
        Just("ip"),
        Just("nodeName"),
        Just("surprise"),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(field.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever stands in an object, it is read or refused with a field and a reason, and a policy that cannot be read closes
    /// and never opens: nothing outside is allowed that was not before.
    #[test]
    fn objects_of_any_shape_are_survived(kind in 0..Kind::ALL.len(), spec in value(), status in value()) {
        let kind = Kind::ALL[kind];
        let object = json!({"apiVersion": kind.api_version(), "kind": kind.name(),
            "metadata": {"namespace": "app", "name": "any"}, "spec": spec, "status": status, "endpoints": spec, "ports": status});
        let mut world = mesh().with(lock(json!({})));
        for read in read(object).unwrap() {
            if let Read::Invalid { error, .. } = &read {
                assert!(!error.path.is_empty() && !error.reason.is_empty(), "{error:?}");
            }
            if let Some(event) = read.event() {
                world.index.apply(event);
            }
        }
        let compiled = world.compile();
        let mut observed = State::default();
        diff(&compiled.desired, &observed).steps.iter().for_each(|step| observed.apply(step));
        if kind == Kind::NetworkPolicy {
            for to in ["198.51.100.1", "2001:db8::1"] {
                assert_eq!(world.action("app/web", to, "tcp/443"), Action::Deny, "{:?}", world.index.objects().last());
            }
        }
    }
}

/// Not a test of the compiler: what this file calls work is work.
#[test]
fn work_is_counted() {
    let small = work(&mesh());
    assert!(small > 5 && work(&mesh().with(lock(json!({})))) > small);
    assert_eq!(Index::default().len(), 0);
}
