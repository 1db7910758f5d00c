//! The compiler and `decide()` say what the reference evaluator says, over random clusters.
//!
//! `REFERENCE_CASES` sets the number of clusters, `REFERENCE_PROBES` the number of probes for each pod.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod random;

use std::env;

use common::{NODE, World, json, lock, mesh, node, np, pod, service, slice, world};
use egress_policy::compile::UnknownPods;
use egress_policy::index::{Event, Index};
use egress_policy::object::{Kind, Object, ObjectRef, read};
use egress_policy::plan::diff;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use random::RandomCluster;
use random::probe::{Edges, Tally, compare};
use random::strategy::cluster;
use serde_json::Value;

fn setting(name: &str, default: u32) -> u32 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A case that fails is kept in `reference.regressions` beside this file, and tried first from then on.
fn config(share: u32) -> ProptestConfig {
    ProptestConfig {
        cases: setting("REFERENCE_CASES", 2000) / share,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn the_compiler_agrees_with_the_reference(data in cluster(3)) {
        let (world, objects) = (data.world(), data.objects());
        let probes = Edges::of(&objects).probes();
        let budget = setting("REFERENCE_PROBES", 150) as usize;
        let compared = compare(&world, &probes, budget, data.seed);
        prop_assert!(compared.is_ok(), "{}", compared.unwrap_err());
    }
}

/// The objects as the index takes them.
fn stored(objects: &[Value]) -> Vec<Object> {
    let read = objects.iter().flat_map(|object| read(object.clone()).unwrap());
    read.filter_map(|read| match read.event() {
        Some(Event::Upsert(object)) => Some(object),
        _ => None,
    })
    .collect()
}

/// Brings an index to hold these objects and no others, by single events or a kind at a time, as lists bring them.
fn bring(index: &mut Index, objects: &[Object], order: &[u16], relist: bool) {
    if relist {
        let at = |i: usize| order.get(i).copied().unwrap_or_default();
        let mut kinds: Vec<(u16, Kind)> =
            Kind::ALL.into_iter().enumerate().map(|(i, k)| (at(i), k)).collect();
        kinds.sort();
        for (_, kind) in kinds {
            let listed: Vec<_> = objects.iter().filter(|object| object.object_ref().kind == kind).collect();
            let known = index.objects().filter(|object| object.kind == kind);
            let gone = known.filter(|object| !listed.iter().any(|one| one.object_ref() == *object));
            let events = gone.map(Event::Delete).collect::<Vec<_>>().into_iter();
            for event in events.chain(listed.into_iter().cloned().map(Event::Upsert)) {
                index.apply(event);
            }
        }
        return;
    }
    let wanted: Vec<ObjectRef> = objects.iter().map(Object::object_ref).collect();
    let gone = index.objects().filter(|object| !wanted.contains(object)).map(Event::Delete);
    let events = gone.chain(objects.iter().cloned().map(Event::Upsert)).collect::<Vec<_>>();
    let key = |i: usize| (order[i % order.len()].rotate_left(u32::try_from(i % 16).unwrap()), i);
    let mut events: Vec<_> = events.into_iter().enumerate().map(|(i, event)| (key(i), event)).collect();
    events.sort_by_key(|(key, _)| *key);
    for (_, event) in events {
        index.apply(event);
    }
}

fn state(data: &RandomCluster, index: Index) -> egress_policy::State {
    let world = World { index, ..data.world() };
    world.compile().desired
}

proptest! {
    #![proptest_config(config(2))]

    #[test]
    fn every_order_of_events_ends_in_the_same_state(
        data in cluster(2),
        before in cluster(2),
        order in vec(any::<u16>(), 7..40),
        relists in any::<[bool; 2]>(),
    ) {
        let objects = stored(&data.objects());
        let direct = data.world();
        let desired = direct.compile().desired;
        let mut index = Index::default();
        bring(&mut index, &stored(&before.objects()), &order, relists[0]);
        bring(&mut index, &objects, &order, relists[1]);
        prop_assert_eq!(&index, &direct.index);
        let after = state(&data, index);
        prop_assert!(after == desired);
        prop_assert!(diff(&after, &desired).steps.is_empty());
    }

    #[test]
    fn what_is_deleted_and_comes_again_leaves_no_trace(
        data in cluster(2),
        chosen in vec(any::<u16>(), 1..6),
    ) {
        let objects = stored(&data.objects());
        let world = data.world();
        let before = world.compile();
        let mut index = world.index.clone();
        let chosen: Vec<&Object> =
            chosen.iter().filter_map(|i| objects.get(usize::from(*i) % objects.len())).collect();
        for object in &chosen {
            index.apply(Event::Delete(object.object_ref()));
        }
        // What is compiled in between has no influence either.
        let between = World { index: index.clone(), ..data.world() }.compile();
        for object in chosen.iter().rev() {
            index.apply(Event::Upsert((*object).clone()));
        }
        let after = World { index, ..data.world() }.compile();
        prop_assert!(after.desired == before.desired);
        prop_assert_eq!(&after.diagnostics, &before.diagnostics);
        prop_assert!(between.desired != before.desired || diff(&after.desired, &between.desired).steps.is_empty());
    }
}

/// Random clusters that reach no policy, or one verdict only, would show nothing.
#[test]
fn random_clusters_reach_every_answer() {
    let mut runner = TestRunner::deterministic();
    let mut sum = Tally::default();
    for _ in 0..100 {
        let data = cluster(3).new_tree(&mut runner).unwrap().current();
        let tally = compare(&data.world(), &Edges::of(&data.objects()).probes(), 60, data.seed).unwrap();
        sum.allowed += tally.allowed;
        sum.denied += tally.denied;
        sum.audited += tally.audited;
        sum.skipped += tally.skipped;
    }
    let all = sum.allowed + sum.denied + sum.audited + sum.skipped;
    assert!(all > 5_000 && sum.skipped * 100 < all, "{sum:?}");
    assert!([sum.allowed, sum.denied, sum.audited].into_iter().all(|one| one * 50 > all), "{sum:?}");
}

/// Compares by every probe there is.
fn agree(world: &World, objects: &[Value]) {
    if let Err(difference) = compare(world, &Edges::of(objects).probes(), usize::MAX, 0) {
        panic!("{difference}");
    }
}

/// A rule without `to` leads through services, also where there is no other rule and unknown pods need no rows.
#[test]
fn a_rule_for_any_destination_leads_through_services_by_itself() {
    let objects = [
        pod("app/web", "10.0.1.1", json!({})),
        pod("app/db", "10.0.1.2", json!({})),
        service("app/db", "10.96.1.1", json!([{"name": "http", "port": 80}])),
        slice("app/db", &["10.0.1.2"], json!([{"name": "http", "port": 8080}])),
        np("app/p", json!({"podSelector": {}, "egress": [{"ports": [{"port": 8080}]}]})),
    ];
    let mut world = world(objects.clone());
    for unknown in [UnknownPods::Deny, UnknownPods::Allow, UnknownPods::DenyOutside] {
        world.unknown = unknown;
        agree(&world, &objects);
        assert!(world.allows("app/web", "10.96.1.1", "tcp/80"), "{unknown:?}");
        assert!(!world.allows("app/web", "10.96.1.1", "tcp/8080"), "{unknown:?}");
    }
}

/// A node's address that is a service's as well: on other ports, and without ports, it is the node's.
#[test]
fn a_node_is_reached_without_ports_where_a_service_port_is_denied() {
    let mut at_node = service("app/db", "10.96.1.1", json!([{"name": "http", "port": 80}]));
    at_node["spec"]["externalIPs"] = json!(["192.168.0.1"]);
    let objects = [
        node(NODE, "192.168.0.1"),
        pod("app/web", "10.0.1.1", json!({})),
        at_node,
        np(
            "app/p",
            json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "192.168.0.0/16"}}]}]}),
        ),
    ];
    let world = world(objects.clone());
    agree(&world, &objects);
    assert!(
        world.allows("app/web", "192.168.0.1", "icmp") && world.allows("app/web", "192.168.0.1", "tcp/22")
    );
    assert!(!world.allows("app/web", "192.168.0.1", "tcp/80"), "nothing is behind it");
}

/// Who translates at connect time shows the backend: connections to one that drains go on.
#[test]
fn a_gateway_that_drains_stays_what_it_was() {
    let mut draining = slice("gw/gate", &["10.0.2.1", "10.0.2.2"], json!([{"name": "https", "port": 8443}]));
    draining["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    let world = mesh()
        .with(lock(json!({"allow": {"inCluster": false}})))
        .with(pod("gw/gate2", "10.0.2.2", json!({"istio": "egressgateway"})))
        .with(draining);
    assert!(world.allows("app/web", "10.0.2.1", "tcp/8443"), "drains");
    assert!(world.allows("app/web", "10.0.2.2", "tcp/8443"));
    assert!(world.allows("app/web", "10.96.0.9", "tcp/443"));
}

/// A service of one's own in front of another service's address is no way around the clients of the gateway behind it.
#[test]
fn a_service_in_front_of_a_service_leads_nowhere() {
    let mut gateway = service("gw/gate", "10.96.0.9", json!([{"name": "https", "port": 443}]));
    gateway["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
    let mut lock = lock(json!({"allow": {"to": [{"cidr": "198.51.100.0/24"}]}}));
    lock["spec"]["gateways"][0]["clients"] = json!([]);
    let world = mesh()
        .with(gateway)
        .with(lock)
        .with(service("app/trick", "10.96.1.1", json!([{"name": "x", "port": 443}])))
        .with(slice("app/trick", &["198.51.100.1"], json!([{"name": "x", "port": 443}])));
    assert!(!world.allows("app/web", "198.51.100.1", "tcp/443"));
    assert!(!world.allows("app/web", "10.96.1.1", "tcp/443"));
    assert!(world.allows("app/web", "198.51.100.2", "tcp/443"), "what the prefix is for");
}
