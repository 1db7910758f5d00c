//! Prefixes that overlap: what is sane is cheap, and what is not is refused.
#![expect(clippy::needless_pass_by_value, reason = "test helpers take literals")]

mod common;

use common::{Value, World, egp, error_of, json, labels, mesh, np};
use egress_policy::compile::{Compiler, Node, PodState};
use egress_policy::index::Dirty;

fn cidr(number: u32, bits: u32) -> String {
    let step = number << (32 - bits);
    format!("10.{}.{}.{}/{bits}", step >> 16 & 255, step >> 8 & 255, step & 255)
}

/// Rules for every destination, each on a port of its own.
fn everywhere(rules: u32) -> Vec<Value> {
    let to = json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]);
    (0..rules).map(|i| json!({"to": to, "ports": [{"port": 1 + i}]})).collect()
}

/// One rule with prefixes that do not overlap.
fn apart(prefixes: u32, bits: u32) -> Value {
    let to: Vec<Value> = (0..prefixes).map(|i| json!({"ipBlock": {"cidr": cidr(i, bits)}})).collect();
    json!({"to": to, "ports": [{"port": 60000}]})
}

/// One rule for every destination, again and again, but for one part each time.
fn except(times: u32) -> Value {
    let block = |i| json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": [cidr(i, 31)]}});
    json!({"to": (0..times).map(block).collect::<Vec<_>>(), "ports": [{"port": 60000}]})
}

fn policy(egress: Vec<Value>) -> Value {
    np("app/p", json!({"podSelector": labels("app", "web"), "policyTypes": ["Egress"], "egress": egress}))
}

/// What compiling costs, in what the compiler counts.
fn work(world: &World) -> u64 {
    let mut compiler = Compiler::default();
    let pods = &world.local;
    let node =
        Node { name: common::NODE, pod_root_level: 2, unknown_pods: world.unknown, incomplete: false, pods };
    compiler.update(&world.index, &node, Dirty::default());
    compiler.work()
}

#[test]
fn what_is_sane_is_allowed() {
    let nested: Vec<String> = (1..=24).map(|bits| format!("10.0.0.0/{}", 8 + bits)).collect();
    let nested = json!([{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": nested}}]}]);
    let siblings: Vec<String> = (0..64).map(|i| cidr(i, 24)).collect();
    let siblings =
        json!([{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": siblings}}], "ports": [{"port": 1}]}]);
    let state = |egress: Vec<Value>| mesh().with(policy(egress)).state("app/web");
    let isolated = PodState::Isolated { audit: false };
    for egress in [nested, siblings.clone()] {
        assert_eq!(state(egress.as_array().cloned().unwrap_or_default()), isolated);
    }
    let mut all = everywhere(200);
    all.push(apart(5000, 32));
    all.extend(siblings.as_array().cloned().unwrap_or_default());
    let world = mesh().with(policy(all));
    assert_eq!(world.state("app/web"), isolated);
    assert!(
        world.allows("app/web", "10.0.0.7", "tcp/60000") && !world.allows("app/web", "11.0.0.7", "tcp/60000")
    );
    assert_eq!(state(vec![except(1000)]), isolated);
}

/// What a rule excepts is told from what it does not, and not each exception from the others: rows would be as many for each other policy.
#[test]
fn exceptions_cost_no_rows() {
    let rows = |times: u32| {
        // From 10.128.0.0 on, where no pod is.
        let except: Vec<String> = (0..times).map(|i| cidr((1 << 21) + 2 * i, 30)).collect();
        let block = |cidr: &str| json!([{"to": [{"ipBlock": {"cidr": cidr, "except": except}}]}]);
        let everywhere = json!({"podSelector": {}, "egress": [{"ports": [{"port": 1}]}]});
        let world = mesh()
            .with(policy(block("0.0.0.0/0").as_array().cloned().unwrap_or_default()))
            .with(np("other/everywhere", everywhere));
        assert!(world.allows("app/web", "11.0.0.4", "tcp/1"));
        assert_eq!(world.allows("app/web", "10.128.0.8", "tcp/1"), times < 2);
        world.compile().desired.rows.len()
    };
    let (none, few, many) = (rows(0), rows(3), rows(3000));
    assert!(none <= few && few == many && many < none + 4, "{none}, {few}, {many}");
}

#[test]
fn what_is_not_is_refused_and_closes() {
    let mut many = everywhere(2500);
    many.extend([apart(2500, 31), json!({})]);
    for egress in [many, vec![except(1300)]] {
        let policy = policy(egress);
        assert!(error_of(policy.clone()).contains("spec.egress: too many overlapping prefixes"));
        let world = mesh().with(policy);
        assert!(matches!(world.state("app/web"), PodState::Invalid { .. }));
        assert!(!world.allows("app/web", "10.0.1.2", "tcp/1") && world.allows("app/db", "10.0.1.3", "tcp/1"));
        assert!(world.diagnostics().contains("too many overlapping prefixes"));
        assert!(work(&world) < 1000);
    }
    // Exceptions that overlap, which a NetworkPolicy may have, do not make it less.
    let mut egress = everywhere(2500);
    egress.push(apart(2500, 31));
    let nested: Vec<String> = (9..=32).map(|bits| format!("10.0.0.0/{bits}")).collect();
    let again = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": nested}});
    egress.push(json!({"to": vec![again; 100]}));
    assert!(error_of(policy(egress)).contains("too many overlapping prefixes"));
}

#[test]
fn a_lock_down_is_bounded_as_well() {
    let blocks = |times| -> Vec<Value> {
        (0..times).map(|i| json!({"cidr": "0.0.0.0/0", "except": [cidr(i, 31)]})).collect()
    };
    let gateway = |times| {
        let gateway = json!({"namespaces": labels("kubernetes.io/metadata.name", "gw"), "pods": {}, "destinations": blocks(times)});
        egp("mesh", json!({"subjects": [{"namespaces": labels("mesh", "on")}], "gateways": [gateway]}))
    };
    let allow = |times| {
        egp(
            "mesh",
            json!({"subjects": [{"namespaces": labels("mesh", "on")}], "allow": {"to": blocks(times)}}),
        )
    };
    for (good, bad) in [(gateway(100), gateway(1300)), (allow(100), allow(1300))] {
        assert_eq!(mesh().with(good).state("app/web"), PodState::Isolated { audit: false });
        assert!(error_of(bad.clone()).contains("spec: too many overlapping prefixes"));
        let world = mesh().with(bad);
        assert!(matches!(world.state("app/web"), PodState::Invalid { .. }) && work(&world) < 1000);
    }
    assert!(matches!(mesh().with(gateway(1300)).state("gw/gate"), PodState::Invalid { .. }));
    assert_eq!(mesh().with(gateway(100)).state("gw/gate"), PodState::Isolated { audit: false });
}

/// Rules that lead to one peer are one peer in all parts of the address space.
#[test]
fn rules_for_one_peer_tell_addresses_apart_once() {
    let identities = |rules: u32| {
        let mut egress = everywhere(rules);
        egress.push(apart(50, 31));
        let compiled = mesh().with(policy(egress)).compile();
        let cidrs = compiled.desired.cidrs;
        (cidrs.len(), cidrs.into_values().collect::<std::collections::BTreeSet<u64>>())
    };
    // The ports are the policy's: who asks for others is in no other place.
    assert_eq!(identities(1), identities(40));
    let world = mesh().with(policy(everywhere(40)));
    assert!(
        world.allows("app/web", "198.51.100.1", "tcp/40")
            && !world.allows("app/web", "198.51.100.1", "tcp/41")
    );
    assert_eq!(world.rule("app/web", "198.51.100.1", "tcp/7"), "NetworkPolicy app/p spec.egress[6]");
}
