//! Every prefix of every plan is safe both ways.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{egp, json, judge, judge_from, labels, lock, mesh, np, pod};
use egress_common::wire::{
    ABI, Addr, Config, Endpoint, FLAG_AUDIT, FLAG_HOST_NETWORK, IDENTITY_WORLD, PROXIES, Ports, Proxy, Row,
    RowKey, STATE_ISOLATED, UNKNOWN_POLICY, VERDICT_ALLOW,
};
use egress_common::{Action, Reason};
use egress_policy::object::masked;
use egress_policy::plan::{Plan, State, Step, diff};
use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

const CGROUPS: std::ops::Range<u64> = 1..5;
const PORTS: [&str; 4] = ["tcp/80", "tcp/443", "udp/53", "icmp"];

/// What a policy says about an identity in these tests: a function of the key, as for the real ones.
fn row(key: RowKey) -> Option<Row> {
    let entry = |protocol, port| Ports { protocol, verdict: VERDICT_ALLOW, rule: 0, low: port, high: port };
    let kind = (key.policy * 7 + key.identity * 5 + key.policy * key.identity * 3) % 11;
    match kind {
        0..=3 => None,
        4 => Row::new(&[entry(0, 0)]),
        5 | 6 => Row::new(&[entry(6, 80)]),
        7 => Row::new(&[entry(6, 443)]),
        8 => Row::new(&[entry(6, 80), entry(17, 53)]),
        _ => Row::new(&[entry(6, 80), entry(6, 443)]),
    }
}

/// An address among 16, all in 10.0.0.0/28.
fn addr(last: u8) -> Addr {
    Addr::v4([10, 0, 0, last % 16])
}

fn states(live: bool) -> impl Strategy<Value = State> {
    let identity = || prop_oneof![1 => Just(IDENTITY_WORLD), 5 => 2_u64..8];
    let proxy = (101_u64..104, 20_u64..25).prop_map(|(cgroup, policy)| Proxy { cgroup, policy });
    let lock = (prop_oneof![2 => Just(0_u64), 1 => 20_u64..25], vec(proxy, 0..3));
    let endpoint =
        (20_u64..25, 0_u32..5, any::<bool>(), lock).prop_map(|(policy, state, audit, (lock, listed))| {
            let mut proxies = [Proxy::default(); PROXIES];
            // A container is listed once, and without a lock there are none.
            let listed: BTreeMap<u64, u64> =
                listed.iter().map(|proxy| (proxy.cgroup, proxy.policy)).collect();
            for (place, (cgroup, policy)) in
                proxies.iter_mut().zip(listed).take(if lock == 0 { 0 } else { PROXIES })
            {
                *place = Proxy { cgroup, policy };
            }
            let flags = FLAG_HOST_NETWORK | if audit { FLAG_AUDIT } else { 0 };
            // Isolated and enforced more often than not.
            let (state, flags) =
                if state == 4 { (STATE_ISOLATED, FLAG_HOST_NETWORK) } else { (state, flags) };
            Endpoint { policy, lock, proxies, state, flags, ..Endpoint::default() }
        });
    let abi = if live { Just(ABI).boxed() } else { prop_oneof![Just(ABI), Just(0)].boxed() };
    (
        btree_map(CGROUPS, endpoint, 0..4),
        btree_map(0_u8..16, identity(), 0..6),
        btree_map((prop_oneof![Just(0_u32), Just(96), 120_u32..128], 0_u8..16), identity(), 0..6),
        (abi, 0_u32..4, 20_u64..25, 0_u64..9),
    )
        .prop_map(|(endpoints, addresses, cidrs, (abi, unknown, unknown_policy, revision))| {
            let config = Config { abi, pod_root_level: 2, revision, unknown_policy, unknown, reserved: 0 };
            let addresses = addresses.into_iter().map(|(last, identity)| (addr(last), identity)).collect();
            let cidrs = cidrs.into_iter().map(|((bits, last), id)| (masked(addr(last), bits), id)).collect();
            close(State { config, endpoints, addresses, cidrs, rows: BTreeMap::new() })
        })
}

/// Writes the rows of every policy with every identity in use.
fn close(mut state: State) -> State {
    let identities: BTreeSet<u64> =
        state.addresses.values().chain(state.cidrs.values()).copied().chain([IDENTITY_WORLD]).collect();
    let of_endpoint =
        |e: &Endpoint| e.proxies.iter().map(|p| p.policy).chain([e.policy, e.lock]).collect::<Vec<_>>();
    let mut policies: BTreeSet<u64> =
        state.endpoints.values().flat_map(of_endpoint).filter(|p| *p != 0).collect();
    policies.insert(state.config.unknown_policy);
    for policy in policies {
        for identity in &identities {
            let key = RowKey { policy, identity: *identity };
            state.rows.extend(row(key).map(|row| (key, row)));
        }
    }
    state
}

/// Which of all probes pass.
fn passing(state: &State) -> BTreeSet<(u64, u64, u8, &'static str)> {
    let mut found = BTreeSet::new();
    for (cgroup, container) in
        CGROUPS.chain([99]).flat_map(|cgroup| [0, 101, 102, 103].map(move |one| (cgroup, one)))
    {
        for last in 0..18_u8 {
            for port in PORTS {
                let to = if last == 17 { "11.0.0.1".to_owned() } else { format!("10.0.0.{last}") };
                if judge_from(2, state, (cgroup, container), &to, port).action != Action::Deny {
                    found.insert((cgroup, container, last, port));
                }
            }
        }
    }
    found
}

fn check(old: &State, new: &State) -> Plan {
    let plan = diff(new, old);
    let (before, after) = (passing(old), passing(new));
    let mut now = old.clone();
    for (i, step) in plan.steps.iter().enumerate() {
        now.apply(step);
        let passing = passing(&now);
        for probe in &passing {
            assert!(
                before.contains(probe) || after.contains(probe),
                "leak {probe:?} after step {i} of\n{plan}"
            );
        }
        for probe in before.intersection(&after) {
            assert!(passing.contains(probe), "dropped {probe:?} after step {i} of\n{plan}");
        }
    }
    if !plan.steps.is_empty() {
        let revision = old.config.revision + 1;
        assert_eq!(now, State { config: Config { revision, ..new.config }, ..new.clone() }, "\n{plan}");
    }
    plan
}

proptest! {
    #[test]
    fn every_prefix_of_a_plan_is_safe(old in states(false), new in states(true)) {
        check(&old, &new);
    }

    #[test]
    fn a_plan_that_stops_is_taken_up_again(old in states(true), new in states(true), stop in 0_usize..30) {
        let plan = diff(&new, &old);
        let mut now = old;
        plan.steps.iter().take(stop).for_each(|step| now.apply(step));
        check(&now, &new);
    }

    #[test]
    fn no_difference_is_no_plan(state in states(false), revision in 0_u64..9) {
        let mut other = state.clone();
        other.config.revision = revision;
        assert_eq!(diff(&state, &other), Plan::default());
    }
}

#[test]
fn the_revision_goes_up_once_everything_leads_where_it_should() {
    let world = mesh();
    let old = world.compile().desired;
    let new = world.with(lock(json!({}))).compile().desired;
    let plan = check(&old, &new);
    let bumps =
        plan.steps.iter().enumerate().filter(|(_, s)| matches!(s, Step::PutConfig(c) if c.revision == 1));
    let bumps: Vec<usize> = bumps.map(|(i, _)| i).collect();
    assert_eq!(bumps.len(), 1);
    assert!(plan.steps[bumps[0] + 1..].iter().all(|step| matches!(step, Step::DeleteRow(_))), "{plan}");
    assert!(new.rows.len() > 1);
    assert_eq!(diff(&new, &new), Plan::default());
    assert!(check(&State::default(), &new).to_string().contains("put endpoint 1000: isolated by"));
}

#[test]
fn real_changes_are_safe_too() {
    let base = mesh();
    let deny = np("app/deny", json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    let to_db =
        np("app/db", json!({"podSelector": {}, "egress": [{"to": [{"podSelector": labels("app", "db")}]}]}));
    let cidr = |cidr: &str| lock(json!({"allow": {"inCluster": false, "to": [{"cidr": cidr}]}}));
    // Of two that except what the other does, or more, the smallest prefix around an address is another one each time.
    let but = |cidr: &str, except: &str| {
        let to = json!([{"ipBlock": {"cidr": cidr, "except": [except]}}]);
        np("app/but", json!({"podSelector": {}, "egress": [{"to": to}]}))
    };
    let worlds = [
        base.clone(),
        base.with(but("0.0.0.0/1", "10.0.1.2/31")),
        base.with(but("10.0.0.0/8", "10.0.0.0/15")),
        base.with(but("10.0.0.0/8", "10.0.1.0/24")).with(cidr("10.0.0.0/16")),
        base.with(lock(json!({}))),
        base.with(cidr("10.0.0.0/8")),
        base.with(cidr("10.0.0.0/29")).with(to_db.clone()),
        base.with(deny).with(lock(json!({"enforcement": "Audit"}))),
        base.with(to_db).with(pod("app/db", "10.0.0.7", json!({"app": "db"}))).without("Pod other/free"),
        base.with(egp("broken", json!({"subjects": [{"pods": labels("app", "web")}], "gatways": []}))),
    ];
    let states: Vec<State> = worlds.iter().map(|world| world.compile().desired).collect();
    for old in &states {
        for new in &states {
            let plan = diff(new, old);
            let probes = |state: &State| {
                let mut found = BTreeSet::new();
                for cgroup in 1000..1006 {
                    for to in
                        ["10.0.0.7", "10.0.1.2", "10.0.1.3", "10.0.2.1", "10.96.0.9", "10.96.0.10", "1.1.1.1"]
                    {
                        for port in ["tcp/443", "udp/53", "icmp"] {
                            if judge(state, cgroup, to, port).action != Action::Deny {
                                found.insert((cgroup, to, port));
                            }
                        }
                    }
                }
                found
            };
            let (before, after, mut now) = (probes(old), probes(new), old.clone());
            for step in &plan.steps {
                now.apply(step);
                let passing = probes(&now);
                assert!(
                    passing.iter().all(|p| before.contains(p) || after.contains(p)),
                    "leak at {step}\n{plan}"
                );
                assert!(before.intersection(&after).all(|p| passing.contains(p)), "drop at {step}\n{plan}");
            }
        }
    }
}

#[test]
fn nothing_written_denies() {
    assert_eq!(judge(&State::default(), 1000, "10.0.0.1", "tcp/80").reason, Reason::NotReady);
    let config = Config { abi: ABI, pod_root_level: 2, unknown: UNKNOWN_POLICY, ..Config::default() };
    let state = State { config, ..State::default() };
    assert_eq!(judge(&state, 1000, "10.0.0.1", "tcp/80").reason, Reason::UnknownPod);
}
