//! A compiler that follows events says at every step what compiling from nothing says, and touches no more than it must.
//!
//! `REFERENCE_CASES` sets the number of histories.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod random;

use std::env;

use common::{NODE, json, lock, mesh, namespace, np, pod, service, set, slice};
use egress_common::wire::{Endpoint, STATE_INVALID, STATE_ISOLATED};
use egress_policy::compile::{Compiler, LocalPod, Node, PodState, UnknownPods, compile};
use egress_policy::index::{Dirty, Event, Index};
use egress_policy::object::{Object, read};
use egress_policy::plan::{State, diff, diff_at};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::{FileFailurePersistence, TestCaseError};
use random::strategy::cluster;
use serde_json::Value;

fn stored(objects: &[Value]) -> Vec<Object> {
    let read = objects.iter().flat_map(|object| read(object.clone()).unwrap());
    read.filter_map(|read| match read.event() {
        Some(Event::Upsert(object)) => Some(object),
        _ => None,
    })
    .collect()
}

/// One step of a history.
#[derive(Clone, Debug)]
enum Change {
    /// An object of one of two clusters comes, in the form it has there.
    Put(bool, u16),
    /// An object goes.
    Delete(bool, u16),
    /// A cgroup comes or goes.
    Cgroup(u16),
    /// What unknown pods may do changes, or whether objects are missing.
    Setting(u8),
    /// The compiler is brought up to date.
    Update,
}

fn history() -> impl Strategy<Value = Vec<Change>> {
    let change = proptest::prop_oneof![
        8 => (any::<bool>(), any::<u16>()).prop_map(|(which, at)| Change::Put(which, at)),
        3 => (any::<bool>(), any::<u16>()).prop_map(|(which, at)| Change::Delete(which, at)),
        2 => any::<u16>().prop_map(Change::Cgroup),
        1 => any::<u8>().prop_map(Change::Setting),
        8 => proptest::strategy::Just(Change::Update),
    ];
    vec(change, 1..60)
}

struct Follower {
    index: Index,
    dirty: Dirty,
    compiler: Compiler,
    local: Vec<LocalPod>,
    unknown: UnknownPods,
    incomplete: bool,
    /// What the maps hold.
    observed: State,
}

impl Follower {
    fn new() -> Self {
        Self {
            index: Index::default(),
            dirty: Dirty::default(),
            compiler: Compiler::default(),
            local: Vec::new(),
            unknown: UnknownPods::DenyOutside,
            incomplete: false,
            observed: State::default(),
        }
    }

    fn apply(&mut self, event: Event) {
        self.dirty |= self.index.apply(event);
    }

    fn update(&mut self) -> Result<usize, TestCaseError> {
        let node = Node {
            name: NODE,
            pod_root_level: 2,
            unknown_pods: self.unknown,
            incomplete: self.incomplete,
            pods: &self.local,
        };
        let before = self.compiler.compiled().desired.endpoints.clone();
        let keys = self.compiler.update(&self.index, &node, std::mem::take(&mut self.dirty));
        let followed = self.compiler.compiled();
        // What was locked down and cannot be judged any more: from nothing that is known by what an earlier agent left.
        let mut pods = self.local.clone();
        for pod in &mut pods {
            let state = followed.endpoints.get(&pod.cgroup).map(|info| &info.state);
            if matches!(state, Some(PodState::Invalid { reasons }) if reasons[0].ends_with("before and is closed"))
            {
                pod.left = before.get(&pod.cgroup).copied();
                let was = pod.left.map(|left| left.state);
                prop_assert!(matches!(was, Some(STATE_ISOLATED | STATE_INVALID)), "{:?}", was);
            }
        }
        let direct = compile(&self.index, &Node { pods: &pods, ..node });
        prop_assert_eq!(&followed.endpoints, &direct.endpoints);
        prop_assert_eq!(&followed.desired, &direct.desired);
        prop_assert_eq!(&followed.provenance, &direct.provenance);
        prop_assert_eq!(&followed.diagnostics, &direct.diagnostics);
        let agents = self.index.nodes().filter(|node| node.has_agent).count();
        prop_assert_eq!(self.index.nodes_with_agent(), agents);
        let plan = diff_at(&followed.desired, &self.observed, keys);
        prop_assert_eq!(&plan, &diff(&followed.desired, &self.observed));
        for step in &plan.steps {
            self.observed.apply(step);
        }
        Ok(plan.steps.len())
    }

    /// Changes nothing, whenever it comes.
    fn pack(&mut self) -> Result<(), TestCaseError> {
        let before = (self.index.clone(), self.compiler.compiled().desired.clone(), self.observed.clone());
        self.index.pack();
        self.compiler.pack();
        self.observed.pack();
        let after = (self.index.clone(), self.compiler.compiled().desired.clone(), self.observed.clone());
        prop_assert_eq!(before, after);
        Ok(())
    }
}

/// A history that fails is kept in `incremental.regressions` beside this file, and tried first from then on.
fn config() -> ProptestConfig {
    let cases = env::var("REFERENCE_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(1000),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn following_events_is_compiling_from_nothing(
        clusters in [cluster(3), cluster(3)],
        history in history(),
    ) {
        let objects = clusters.each_ref().map(|data| stored(&data.objects()));
        let cgroups: Vec<LocalPod> = clusters.iter().flat_map(|data| data.world().local).collect();
        let mut follower = Follower::new();
        for object in &objects[0] {
            follower.apply(Event::Upsert(object.clone()));
        }
        follower.local = clusters[0].world().local;
        follower.update()?;
        follower.pack()?;
        for change in history {
            match change {
                Change::Put(which, at) => {
                    let of = &objects[usize::from(which)];
                    follower.apply(Event::Upsert(of[usize::from(at) % of.len()].clone()));
                }
                Change::Delete(which, at) => {
                    let of = &objects[usize::from(which)];
                    follower.apply(Event::Delete(of[usize::from(at) % of.len()].object_ref()));
                }
                Change::Cgroup(at) => {
                    let Some(pod) = cgroups.get(usize::from(at) % cgroups.len().max(1)) else { continue };
                    match follower.local.iter().position(|one| one.cgroup == pod.cgroup) {
                        Some(at) => drop(follower.local.remove(at)),
                        None => follower.local.push(pod.clone()),
                    }
                }
                Change::Setting(to) => {
                    follower.incomplete = to & 4 != 0;
                    follower.unknown = match to % 4 {
                        0 => UnknownPods::Deny,
                        1 => UnknownPods::Allow,
                        _ => UnknownPods::DenyOutside,
                    };
                }
                Change::Update => drop(follower.update()?),
            }
        }
        follower.update()?;
        // Nothing happened since: nothing is to be done.
        prop_assert_eq!(follower.update()?, 0);
    }
}

/// The mesh, followed; what an event brings about is told by the steps and the work.
struct Mesh(Follower);

impl Mesh {
    fn new() -> Self {
        let world = mesh().with(lock(json!({"allow": {"inCluster": false}}))).with(np(
            "app/p",
            json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}]},
                {"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}]}),
        ));
        let mut follower =
            Follower { index: world.index.clone(), local: world.local.clone(), ..Follower::new() };
        // Many that are none of the node's business.
        for i in 0..500 {
            let name = format!("far/p{i}");
            let far = pod(&name, &format!("10.9.{}.{}", i / 250, i % 250 + 1), json!({"app": "far"}));
            follower.apply(Event::Upsert(stored(&[far]).remove(0)));
        }
        follower.update().unwrap();
        Self(follower)
    }

    /// Steps and work that an event costs.
    fn cost(&mut self, object: Value) -> (usize, u64) {
        self.0.apply(Event::Upsert(stored(&[object]).remove(0)));
        let before = self.0.compiler.work();
        let steps = self.0.update().unwrap();
        (steps, self.0.compiler.work() - before)
    }

    /// Steps and work that it costs when an object goes.
    fn cost_of_its_end(&mut self, object: &Value) -> (usize, u64) {
        self.0.apply(Event::Delete(stored(std::slice::from_ref(object)).remove(0).object_ref()));
        let before = self.0.compiler.work();
        let steps = self.0.update().unwrap();
        (steps, self.0.compiler.work() - before)
    }
}

#[test]
fn an_event_that_changes_nothing_costs_nothing() {
    let mut mesh = Mesh::new();
    let far = pod("far/p7", "10.9.0.8", json!({"app": "far"}));
    assert_eq!(mesh.cost(far.clone()), (0, 0));
    assert_eq!(mesh.cost(set(far, "/status/phase", json!("Pending"))), (0, 0), "nothing that counts");
    assert_eq!(mesh.cost(namespace("app", json!({"mesh": "on"}))), (0, 0));
}

#[test]
fn an_event_touches_what_depends_on_it_and_nothing_else() {
    let mut mesh = Mesh::new();
    let (steps, work) = mesh.cost(pod("far/new", "10.9.9.9", json!({"app": "far"})));
    assert!(steps == 2 && (1..=2).contains(&work), "one address, one revision: {steps}, {work}");
    let (steps, work) = mesh.cost(pod("app/db2", "10.0.1.9", json!({"app": "db"})));
    assert!(steps <= 4 && work < 20, "a pod that a policy means: {steps}, {work}");
    let (steps, work) = mesh.cost(service("far/s", "10.96.3.3", json!([{"name": "x", "port": 80}])));
    assert!(steps <= 4 && work < 20, "a service: {steps}, {work}");
    let (steps, work) = mesh.cost(slice("far/s", &["10.9.0.1"], json!([{"name": "x", "port": 80}])));
    assert!(steps <= 4 && work < 20, "its backends: {steps}, {work}");
    let (steps, work) = mesh.cost(namespace("other", json!({"team": "b"})));
    assert!(steps == 0 && work < 5, "a label that nobody asks for: {steps}, {work}");
    let rules =
        json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}]}]});
    let (steps, work) = mesh.cost(np("app/p", rules));
    assert!(steps < 40 && (1..200).contains(&work), "a policy: {steps}, {work}");
}

/// A policy for most pods by labels changes their identities; of those each other policy is asked for the few that it leads to.
#[test]
fn a_policy_for_most_addresses_does_not_cost_policies_times_identities() {
    const PAIRS: usize = 60;
    let mut world = mesh();
    for i in 0..PAIRS {
        let label = |name: &str| json!({"app": format!("{name}{i}")});
        let (here, there) = (format!("10.0.1.{}", 100 + i), format!("10.9.0.{}", 1 + i));
        let to = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": label("there")}}]);
        let rules = json!({"podSelector": {"matchLabels": label("here")}, "egress": [{"to": to}]});
        world = world
            .with(pod(&format!("app/here{i}"), &here, label("here")))
            .with(pod(&format!("far/there{i}"), &there, label("there")))
            .with(np(&format!("app/p{i}"), rules));
    }
    let mut follower = Follower { index: world.index.clone(), local: world.local.clone(), ..Follower::new() };
    follower.update().unwrap();
    let mut mesh = Mesh(follower);
    let pods = json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]});
    let to = json!([{"namespaceSelector": {}, "podSelector": pods}]);
    let most =
        np("app/most", json!({"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{"to": to}]}));
    let (steps, work) = mesh.cost(most.clone());
    // As many addresses and rows change as there are pairs, some of each.
    assert!(steps > PAIRS && work < 20 * PAIRS as u64, "{steps}, {work}");
    let (steps, work) = mesh.cost_of_its_end(&most);
    assert!(steps > PAIRS && work < 20 * PAIRS as u64, "{steps}, {work}");
}

/// What most pods are is known of them before a policy asks: addresses are neither judged nor written for the first that does.
#[test]
fn the_first_policy_for_every_address_costs_no_address() {
    let block = |cidr: &str, except: &[&str]| json!([{"ipBlock": {"cidr": cidr, "except": except}}]);
    let peers = [
        block("0.0.0.0/0", &["198.51.100.7/32"]),
        block("0.0.0.0/0", &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]),
        block("::/0", &["fd00:10:244::/56", "fc00::/7"]),
        block("10.0.0.0/8", &[]),
        block("0.0.0.0/1", &["100.51.100.7/32"]),
        block("8.0.0.0/5", &[]),
        json!([{"namespaceSelector": {}}]),
    ];
    // Of a pod that no lock-down is about.
    let of_free = |to| np("other/every", json!({"podSelector": {}, "egress": [{"to": to}]}));
    let mut policies = peers.map(of_free).to_vec();
    let to = json!({"to": [{"cidr": "10.0.0.0/8", "except": ["10.77.0.0/16"]}]});
    let lock_downs =
        [json!({"allow": to}), json!({"allow": to, "proxy": {"containers": ["envoy"], "scope": "Egress"}})];
    policies.extend(lock_downs.map(|spec| set(lock(spec), "/metadata/name", json!("more"))));
    for policy in policies {
        let mut mesh = Mesh::new();
        let rows = mesh.0.observed.rows.clone();
        let (steps, work) = mesh.cost(policy.clone());
        assert!((2..80).contains(&steps) && work < 100, "{policy}: {steps}, {work}");
        assert!(mesh.0.observed.rows != rows, "it says something: {policy}");
        let (steps, work) = mesh.cost_of_its_end(&policy);
        assert!((2..80).contains(&steps) && work < 100, "{policy}: {steps}, {work}");
    }
}

/// The cluster is told apart from what is outside before anything is locked down, and after.
#[test]
fn the_first_lock_down_costs_no_more_than_another() {
    let lock = lock(
        json!({"proxy": {"containers": ["istio-proxy"], "scope": "Egress"}, "allow": {"inCluster": true}}),
    );
    for unknown in [UnknownPods::Deny, UnknownPods::Allow, UnknownPods::DenyOutside] {
        let mut mesh = Mesh::new();
        mesh.0.unknown = unknown;
        mesh.cost_of_its_end(&lock);
        for _ in 0..2 {
            let (steps, work) = mesh.cost(lock.clone());
            assert!((5..40).contains(&steps) && (1..100).contains(&work), "{unknown:?}: {steps}, {work}");
            assert!(!mesh.0.observed.rows.is_empty());
            let (steps, work) = mesh.cost_of_its_end(&lock);
            assert!((5..40).contains(&steps) && (1..100).contains(&work), "{unknown:?}: {steps}, {work}");
        }
    }
}

/// A pod that was locked down may less than an unknown one: when its Namespace object goes and its processes run on, it is closed.
#[test]
fn a_pod_whose_namespace_goes_stays_closed() {
    let world = mesh().with(lock(json!({})));
    let web = world.cgroup("app/web");
    let mut follower = Follower { index: world.index.clone(), local: world.local.clone(), ..Follower::new() };
    follower.update().unwrap();
    let locked = follower.observed.endpoints[&web];
    assert_eq!(locked.state, STATE_ISOLATED);
    let app = || namespace("app", json!({"mesh": "on"}));
    for _ in 0..2 {
        follower.apply(Event::Delete(stored(&[app()]).remove(0).object_ref()));
        follower.update().unwrap();
        let closed = Endpoint { state: STATE_INVALID, v4: locked.v4, ..Endpoint::default() };
        assert_eq!(follower.observed.endpoints[&web], closed);
        let said = &follower.compiler.compiled().diagnostics;
        assert!(
            said.iter().any(|one| one.to_string().contains("Pod app/web: metadata.namespace")),
            "{said:?}"
        );
        // It stays closed by what else changes: another cgroup of it, another object.
        follower.local.iter_mut().for_each(|local| local.containers.clear());
        follower.apply(Event::Upsert(stored(&[namespace("other", json!({"x": "y"}))]).remove(0)));
        follower.update().unwrap();
        assert_eq!(follower.observed.endpoints[&web], closed);
        // With its Namespace it may again what it might.
        follower.apply(Event::Upsert(stored(&[app()]).remove(0)));
        follower.update().unwrap();
        assert_eq!(follower.observed.endpoints[&web], locked);
    }
    // One that was not locked down is unknown, as is one that was never known.
    let mut follower = Follower { index: world.index.clone(), local: world.local.clone(), ..Follower::new() };
    let free = world.cgroup("other/free");
    follower.update().unwrap();
    follower.apply(Event::Delete(stored(&[namespace("other", json!({}))]).remove(0).object_ref()));
    follower.update().unwrap();
    assert!(!follower.observed.endpoints.contains_key(&free));
    assert!(!world.without("Namespace app").compile().desired.endpoints.contains_key(&web));
    // Nor is what another pod left in a cgroup of this number its own.
    let other = follower.local.iter_mut().find(|local| local.cgroup == web).unwrap();
    other.uid = "uid-other-free".to_owned();
    follower.local.retain(|local| local.cgroup != free);
    follower.update().unwrap();
    assert!(!follower.observed.endpoints.contains_key(&web));
}
