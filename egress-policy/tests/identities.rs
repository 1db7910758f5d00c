//! Numbers come from meaning: stable, shared where nothing tells apart, and independent of order.
#![expect(clippy::unwrap_used, reason = "test helpers take literals and fail by panic")]

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::{World, json, labels, lock, mesh, np, pod};
use egress_common::wire::{IDENTITY_WORLD, RowKey};
use egress_policy::index::{Event, Index};
use egress_policy::object::{Kind, Object, address};
use proptest::prelude::{Just, Strategy, proptest};

fn identity(world: &World, ip: &str) -> u64 {
    let ip: IpAddr = ip.parse().unwrap();
    world.compile().desired.addresses.get(&address(ip)).copied().unwrap_or(IDENTITY_WORLD)
}

fn full() -> World {
    mesh()
        .with(lock(json!({"allow": {"to": [{"cidr": "10.0.0.0/24"}, {"cidr": "8.0.0.0/6", "except": ["9.0.0.0/8"]}]}})))
        .with(np("app/p", json!({"podSelector": {}, "egress": [{"to": [{"podSelector": labels("app", "db")}]}, {}]})))
}

fn objects(world: &World) -> Vec<Object> {
    world.index.objects().map(|object| world.index.get(&object).unwrap().clone()).collect()
}

proptest! {
    #[test]
    fn the_order_of_events_does_not_count(objects in Just(objects(&full())).prop_shuffle()) {
        let world = full();
        let mut shuffled = World { index: Index::default(), ..world.clone() };
        for object in objects {
            shuffled.index.apply(Event::Upsert(object));
        }
        assert_eq!(shuffled.compile(), world.compile());
    }
}

#[test]
fn labels_that_no_policy_asks_for_make_no_identity() {
    let world = full();
    let other = world.with(pod("other/more", "10.0.1.30", json!({"app": "free", "version": "7"})));
    assert_eq!(identity(&other, "10.0.1.30"), identity(&other, "10.0.1.3"));
    assert_ne!(identity(&other, "10.0.1.2"), identity(&other, "10.0.1.3"));
    assert_eq!(other.compile().desired.rows, world.compile().desired.rows);
}

#[test]
fn numbers_do_not_change_with_what_they_do_not_mean() {
    let world = full();
    let before = world.compile().desired;
    let after = world.with(pod("other/new", "10.0.1.77", json!({"app": "db"}))).compile().desired;
    for (addr, identity) in before.addresses.iter() {
        assert_eq!(after.addresses.get(&addr), Some(identity));
    }
    assert!(before.rows.iter().all(|(key, row)| after.rows.get(key) == Some(row)));
}

#[test]
fn replicas_share_a_policy_and_another_policy_has_another_number() {
    let world = full().with(pod("app/web2", "10.0.1.40", json!({"app": "web"})));
    let compiled = world.compile();
    let policy = |name: &str| compiled.desired.endpoints[&world.cgroup(name)].policy;
    assert_eq!(policy("app/web"), policy("app/web2"));
    assert_ne!(policy("app/web"), 0);
    let changed = full().with(lock(json!({"allow": {"node": true}}))).compile();
    assert_ne!(changed.desired.endpoints[&world.cgroup("app/web")].policy, policy("app/web"));
    assert_eq!(compiled.provenance.policies(policy("app/web")).len(), 2);
}

#[test]
fn nothing_is_written_that_nobody_asks_for() {
    let mut world = mesh();
    world.unknown = egress_policy::compile::UnknownPods::Deny;
    let desired = world.compile().desired;
    assert!(desired.cidrs.is_empty() && desired.rows.is_empty());
    assert_eq!(desired.endpoints.len(), 5);
    // Which addresses are the cluster's is told from the start, so that the first lock-down need not: pods', and nodes'.
    let identities: BTreeSet<u64> = desired.addresses.values().copied().collect();
    assert_eq!((desired.addresses.len(), identities.len()), (7, 2), "{:?}", desired.addresses);
}

#[test]
fn every_identity_in_use_has_its_rows_or_denies() {
    let desired = full().compile().desired;
    let used: BTreeSet<u64> =
        desired.addresses.values().chain(desired.cidrs.values()).copied().chain([IDENTITY_WORLD]).collect();
    for RowKey { identity, .. } in desired.rows.keys() {
        assert!(used.contains(identity));
    }
}

#[test]
fn the_index_tells_what_changed() {
    let world = full();
    let mut index = world.index.clone();
    let all = objects(&world);
    assert!(all.iter().all(|object| index.apply(Event::Upsert(object.clone())).is_empty()));
    let policy = world.index.objects().find(|object| object.kind == Kind::NetworkPolicy).unwrap();
    assert!(!index.apply(Event::Delete(policy.clone())).is_empty());
    assert!(index.apply(Event::Delete(policy)).is_empty());
}

#[test]
fn names_of_addresses() {
    let index = full().index;
    let name = |ip: &str| index.address_name(ip.parse().unwrap(), (6, 443));
    assert_eq!(name("10.0.1.1").as_deref(), Some("pod app/web"));
    assert_eq!(name("10.96.0.9").as_deref(), Some("service gw/gate"));
    assert_eq!(name("192.168.0.1").as_deref(), Some("node node-a"));
    assert_eq!(name("1.1.1.1"), None);
}

#[test]
fn reports_are_json() {
    let compiled = full().compile();
    let info = serde_json::to_value(&compiled.endpoints).unwrap();
    assert_eq!(info["1000"]["state"], "Isolated");
    assert_eq!(info["1000"]["policies"][0], "EgressGatewayPolicy mesh");
    let plan = egress_policy::diff(&compiled.desired, &egress_policy::State::default());
    let steps = serde_json::to_value(&plan).unwrap();
    assert!(steps["steps"][0].as_str().unwrap().starts_with("put row "));
}
