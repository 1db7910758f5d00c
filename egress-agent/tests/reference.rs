//! The loaded program says what the reference evaluator says, over random clusters: from the objects through compiler, plan and
//! maps to the verdict of a packet, beside an evaluator that shares nothing with them but the objects.
//!
//! `REFERENCE_CASES` sets the number of clusters, 40 where it is not set.
//!
//! One test, because it moves its own process into the cgroups of pods.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::allow_attributes, unreachable_pub, reason = "the modules are seen by this file alone")]

#[path = "../../egress-policy/tests/common/mod.rs"]
mod common;
#[path = "../../egress-policy/tests/random/mod.rs"]
mod random;
#[path = "verdicts/stage.rs"]
mod stage;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::PathBuf;

use aya::maps::{MapData, RingBuf};
use common::{NODE, World, packet};
use egress_agent::datapath::Datapath;
use egress_common::wire::FlowEvent;
use egress_common::{Action, Hook, Reason, Verdict};
use egress_policy::compile::{Compiled, Node, compile};
use egress_policy::plan::diff;
use egress_topology::cgroup_id;
use proptest::prelude::TestCaseError;
use proptest::test_runner::{Config as Cases, TestRunner};
use random::probe::{Edges, Tally, compare_by};
use random::strategy::cluster;
use stage::{Stage, passes};

/// Probes of each container.
const PROBES: usize = 40;
/// Most pods of a node, and containers of a pod.
const PODS: usize = 8;
const CONTAINERS: usize = 4;

/// The cgroups of the node by their ids.
type Cgroups = BTreeMap<u64, PathBuf>;

/// Gives a world's pods and containers cgroups that there are.
fn settle(world: &mut World, pods: &[(u64, Vec<u64>)]) {
    assert!(world.local.len() <= pods.len(), "{}", world.local.len());
    for (local, (pod, containers)) in world.local.iter_mut().zip(pods) {
        local.cgroup = *pod;
        assert!(local.containers.len() <= containers.len(), "{}", local.containers.len());
        for (container, cgroup) in local.containers.iter_mut().zip(containers) {
            container.cgroup = *cgroup;
        }
    }
}

/// Makes cgroups of pods and containers.
fn cgroups(stage: &Stage) -> (Vec<(u64, Vec<u64>)>, Cgroups) {
    let mut paths = Cgroups::new();
    let mut pods = Vec::new();
    for pod in 0..PODS {
        let uid = format!("0c5e7b2e-0000-4000-8000-00000000000{pod}");
        let mut containers = Vec::new();
        for container in 0..CONTAINERS {
            let path = stage.container(&uid, &format!("{container:02}").repeat(32));
            containers.push(cgroup_id(&path).unwrap());
            paths.insert(containers[container], path);
        }
        let path = paths[&containers[0]].parent().unwrap().to_owned();
        let own = cgroup_id(&path).unwrap();
        paths.insert(own, path);
        pods.push((own, containers));
    }
    (pods, paths)
}

/// The program and its events, and the cgroup that it is run in.
struct Kernel<'a> {
    stage: &'a Stage,
    datapath: Datapath,
    ring: RingBuf<MapData>,
    paths: &'a Cgroups,
    inside: u64,
}

impl Kernel<'_> {
    /// Compiles a world and writes what comes of it to the maps.
    fn bring(&mut self, world: &World) -> Result<Compiled, TestCaseError> {
        let node = Node {
            name: NODE,
            pod_root_level: self.stage.level(),
            unknown_pods: world.unknown,
            incomplete: false,
            pods: &world.local,
        };
        let compiled = compile(&world.index, &node);
        let plan = diff(&compiled.desired, self.datapath.observed());
        self.datapath.apply(&plan).map_err(|errors| TestCaseError::fail(format!("{errors:?}")))?;
        Ok(compiled)
    }

    /// The verdict of a packet that a container's process sends, or a process of the pod in none.
    fn judge(&mut self, device: u32, (pod, container): (u64, u64), packet: &[u8]) -> Verdict {
        let cgroup = if container == 0 { pod } else { container };
        if self.inside != cgroup {
            std::fs::write(self.paths[&cgroup].join("cgroup.procs"), "0").unwrap();
            self.inside = cgroup;
        }
        // Each packet is the first of its second, so that there is an event of it.
        self.datapath.seen().forget_all_but(&BTreeSet::new());
        let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
        let device = if device == 1 { 1 } else { self.stage.devices[0] };
        let passed = passes(&mut self.datapath, Hook::Socket, ethertype, device, packet, 1);
        let event = self.next_event();
        let (action, reason) = match (passed, &event) {
            (true, None) => (Action::Allow, Reason::Allowed),
            (_, Some(event)) => {
                let action = Action::from_wire(event.action).unwrap();
                assert_eq!(passed, action == Action::Audit, "{event:?}");
                assert_eq!(event.cgroup, pod, "{event:?}");
                (action, Reason::from_wire(event.reason).unwrap())
            }
            (false, None) => panic!("denied without an event: {packet:02x?}"),
        };
        Verdict { action, reason, rule: 0 }
    }

    fn next_event(&mut self) -> Option<FlowEvent> {
        let record = self.ring.next()?;
        assert_eq!(record.len(), size_of::<FlowEvent>());
        // SAFETY: plain data of this size.
        Some(unsafe { record.as_ptr().cast::<FlowEvent>().read_unaligned() })
    }
}

#[test]
fn the_kernel_agrees_with_the_reference() {
    let cases = env::var("REFERENCE_CASES").map_or(40, |text| text.parse().unwrap());
    let stage = Stage::new("reference");
    let (pods, paths) = cgroups(&stage);
    let _back = stage.enter(&paths[&pods[0].0]);
    let sum = stage
        .netns
        .run(|| {
            let sum = RefCell::new(Tally::default());
            let mut datapath = Datapath::open(stage.bpffs.path())?;
            let ring = datapath.take_events().unwrap();
            let kernel =
                RefCell::new(Kernel { stage: &stage, datapath, ring, paths: &paths, inside: pods[0].0 });
            let mut runner = TestRunner::new(Cases { cases, failure_persistence: None, ..Cases::default() });
            runner
                .run(&cluster(3), |data| {
                    let mut kernel = kernel.borrow_mut();
                    let mut world = data.world();
                    settle(&mut world, &pods);
                    let compiled = kernel.bring(&world)?;
                    let probes = Edges::of(&data.objects()).probes();
                    let judge = |device, sender: (u64, u64), to: &str, protocol: &str| {
                        let endpoint = compiled.desired.endpoints.get(&sender.0).copied().unwrap_or_default();
                        kernel.judge(device, sender, &packet(&endpoint, to.parse().unwrap(), protocol))
                    };
                    let tally = compare_by(&world, &compiled, (&probes, PROBES, data.seed), judge)
                        .map_err(TestCaseError::fail)?;
                    let mut sum = sum.borrow_mut();
                    sum.allowed += tally.allowed;
                    sum.denied += tally.denied;
                    sum.audited += tally.audited;
                    sum.skipped += tally.skipped;
                    Ok(())
                })
                .unwrap();
            Ok(sum.into_inner())
        })
        .unwrap();
    println!("{sum:?}");
    let all = sum.allowed + sum.denied + sum.audited + sum.skipped;
    assert!(all > u64::from(cases) * 20 && sum.skipped * 50 < all, "{sum:?}");
    assert!([sum.allowed, sum.denied, sum.audited].into_iter().all(|one| one > 0), "{sum:?}");
}
