//! The loaded programs of both hooks against `decide()` on the host: the same random maps, the same random packets, the same
//! verdict, reason and event. `BPF_PROG_TEST_RUN` runs a program as a socket of the calling process's cgroup.
//!
//! `VERDICT_PACKETS` sets the number of packets, 30000 where it is not set. A million take some minutes.
//!
//! One test, because it moves its own process into a pod's cgroup.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::allow_attributes, unreachable_pub, reason = "the modules are seen by this file alone")]

#[path = "verdicts/random.rs"]
mod random;
#[path = "verdicts/stage.rs"]
mod stage;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;

use aya::maps::{HashMap as BpfHash, Map, MapData, PerCpuHashMap, RingBuf};
use egress_agent::datapath::pins::Pins;
use egress_agent::datapath::{DEVICES, Datapath};
use egress_common::reason::counter_slot;
use egress_common::wire::{
    ABI, Addr, Config, Denial, DenialKey, Device, Endpoint, FlowEvent, Row, RowKey, Witness, WitnessKey,
};
use egress_common::witness::{self, FIRST, Half, SECOND, place};
use egress_common::{Action, Decision, Hook, Meta, Owner as _, Reason, View, decide};
use egress_policy::plan::{State, Step, diff};
use nix::time::{ClockId, clock_gettime};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config as Cases, TestRunner};
use random::{Try, owners, state, tries};
use stage::{Sender, Stage, passes};

/// Packets that are tried with the same maps.
const TRIES: u32 = 20;

/// The maps as the host has them.
struct Host {
    state: State,
    devices: BTreeMap<u32, u64>,
    owners: BTreeMap<Addr, u64>,
    witnesses: BTreeMap<WitnessKey, Witness>,
}

impl Host {
    /// Remembers as the programs do.
    fn remember(&mut self, half: &Half, cgroup: u64, now: u64) {
        let [first, second] = [FIRST, SECOND].map(|choice| self.witnesses.get(&half.key(choice)));
        let (_, new) = half.entry(cgroup, now);
        if let Some(choice) = place(&new, first, second) {
            self.witnesses.insert(half.key(choice), new);
        }
    }
}

impl View for Host {
    fn config(&self) -> Option<&Config> {
        self.state.config()
    }
    fn endpoint(&self, cgroup: u64) -> Option<(&u64, &Endpoint)> {
        self.state.endpoint(cgroup)
    }
    fn address(&self, addr: &Addr) -> Option<u64> {
        self.state.address(addr)
    }
    fn prefix(&self, addr: &Addr) -> Option<u64> {
        self.state.prefix(addr)
    }
    fn row(&self, key: &RowKey) -> Option<(&RowKey, &Row)> {
        self.state.row(key)
    }
    fn device(&self, ifindex: u32) -> Option<u64> {
        self.devices.get(&ifindex).copied()
    }
    fn owner(&self, addr: &Addr) -> u64 {
        self.owners.get(addr).copied().unwrap_or(0)
    }
    fn witness(&self, key: &WitnessKey) -> Option<&Witness> {
        self.witnesses.get(key)
    }
    fn now(&self) -> u64 {
        now()
    }
}

/// `bpf_ktime_get_ns`.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(time.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap()
}

/// The programs and maps as the kernel has them.
struct Kernel {
    datapath: Datapath,
    ring: RingBuf<MapData>,
    devices: BpfHash<MapData, u32, Device>,
    witnesses: BpfHash<MapData, WitnessKey, Witness>,
    denials: PerCpuHashMap<MapData, DenialKey, Denial>,
}

impl Kernel {
    fn load(stage: &Stage) -> anyhow::Result<Self> {
        let mut datapath = Datapath::open(stage.bpffs.path())?;
        let lacks = datapath.lacks();
        // It judges no packets.
        assert!(lacks.iter().all(|lack| lack.contains("packet sockets of pods")), "{lacks:?}");
        let pins = Pins::new(stage.bpffs.path(), ABI);
        let pinned = |name: &str| MapData::from_pin(pins.map(name)).and_then(Map::from_map_data);
        Ok(Self {
            ring: datapath.take_events().unwrap(),
            devices: pinned(DEVICES)?.try_into()?,
            witnesses: pinned("egress_inbound")?.try_into()?,
            denials: pinned("egress_denials")?.try_into()?,
            datapath,
        })
    }

    /// Brings the maps to hold the same as the host's.
    fn bring(&mut self, host: &mut Host) -> Result<(), TestCaseError> {
        // The revision of a plan counts on; here it is to be as it was drawn.
        let mut plan = diff(&host.state, self.datapath.observed());
        for step in &mut plan.steps {
            if let Step::PutConfig(config) = step {
                config.revision = host.state.config.revision;
            }
        }
        self.datapath.apply(&plan).map_err(|errors| TestCaseError::fail(format!("{errors:?}")))?;
        host.state.config = self.datapath.observed().config;
        assert_eq!(&host.state, self.datapath.observed());
        self.datapath.own(&host.owners).unwrap();
        for index in self.devices.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            self.devices.remove(&index).unwrap();
        }
        for (index, cgroup) in &host.devices {
            let device = Device { index: *index, reserved: 0, cgroup: *cgroup };
            self.devices.insert(index, device, 0).unwrap();
        }
        for key in self.witnesses.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            self.witnesses.remove(&key).unwrap();
        }
        for (key, value) in &host.witnesses {
            self.witnesses.insert(key, value, 0).unwrap();
        }
        Ok(())
    }

    fn next_event(&mut self) -> Option<FlowEvent> {
        let record = self.ring.next()?;
        assert_eq!(record.len(), size_of::<FlowEvent>());
        // SAFETY: plain data of this size.
        Some(unsafe { record.as_ptr().cast::<FlowEvent>().read_unaligned() })
    }

    /// Runs the program of a hook on a packet, and compares with what was to be expected.
    fn decides(&mut self, expected: &Decision, container: u64, meta: Meta, packet: &[u8], times: u32) {
        let (verdict, hook) = (expected.verdict, meta.hook);
        if verdict.action != Action::Allow {
            // Each packet is the first of its second.
            let slot = counter_slot(hook, verdict.action, verdict.reason);
            let _none_yet = self.denials.remove(&DenialKey { cgroup: expected.cgroup, slot, reserved: 0 });
        }
        let passed = passes(&mut self.datapath, hook, meta.ethertype, meta.ifindex, packet, times);
        assert_eq!(passed, verdict.action != Action::Deny, "{expected:?} {meta:?} {packet:02x?}");
        // One of those that repeat their flow, and another one if meanwhile a second has passed.
        let (least, most) = match verdict.action {
            Action::Allow => (0, 0),
            _ if expected.flow.source_port != 0 => (1, times),
            _ => (times, times),
        };
        for number in 0..most {
            match self.next_event() {
                Some(event) => same_event(&event, expected, container, meta),
                None if number >= least => return,
                None => panic!("{expected:?} gave no event"),
            }
        }
        let more = self.next_event();
        assert!(more.is_none(), "{expected:?} gave {more:?}");
    }

    /// Checks that the kernel has seen what the host has, but for the time.
    fn has_seen(&self, host: &Host) {
        let timeless = |(key, value): (WitnessKey, Witness)| (key, Witness { seen: 0, ..value });
        let seen: BTreeMap<_, _> = self.witnesses.iter().map(|entry| timeless(entry.unwrap())).collect();
        let expected = host.witnesses.iter().map(|(key, value)| timeless((*key, *value)));
        assert_eq!(seen, expected.collect());
    }
}

#[track_caller]
fn same_event(event: &FlowEvent, expected: &Decision, container: u64, meta: Meta) {
    assert_eq!(
        (event.action, event.reason),
        (expected.verdict.action as u8, expected.verdict.reason as u8),
        "{event:?}"
    );
    assert_eq!((event.rule, event.cgroup), (expected.verdict.rule, expected.cgroup));
    assert_eq!(event.container, container);
    assert_eq!(
        (event.policy, event.identity, event.revision),
        (expected.policy, expected.identity, expected.revision)
    );
    assert_eq!((event.source, event.destination), (expected.flow.source, expected.flow.destination));
    let ports = (expected.flow.source_port, expected.flow.destination_port);
    assert_eq!((event.source_port, event.destination_port), ports);
    assert_eq!((event.protocol, event.version), (expected.flow.protocol, expected.flow.version));
    assert_eq!((event.ifindex, event.length, event.hook), (meta.ifindex, meta.length, meta.hook as u8));
}

/// Tries packets with the same maps, and counts the verdicts of each hook and reason.
fn compare(
    kernel: &mut Kernel,
    host: &mut Host,
    sender: &Sender,
    devices: [u32; 2],
    tries: &[Try],
    seen: &mut BTreeMap<(u8, Reason), u64>,
) -> Result<(), TestCaseError> {
    let now = now();
    let witnesses = tries.iter().filter_map(|one| Some(one.seen?.of(one.ethertype, &one.packet, now)));
    host.witnesses = witnesses.collect();
    kernel.bring(host)?;
    for Try { hook, ethertype, device, packet, times, .. } in tries {
        let meta = Meta {
            hook: *hook,
            ethertype: *ethertype,
            ifindex: device.map_or(1, |at| devices[usize::from(at)]),
            length: u32::try_from(packet.len()).unwrap(),
            vlan: false,
        };
        let expected = decide(host, &sender.of(*ethertype), packet.as_slice(), meta);
        let container = sender.container_in(expected.cgroup, host.state.config.pod_root_level);
        assert!(expected.container == 0 || expected.container == container);
        let passed_veth = *hook == Hook::Veth && expected.verdict.action != Action::Deny;
        let judged = expected.policy != 0 && !expected.forged;
        let parts = passed_veth && judged && witness::is_first_fragment(&expected.flow);
        // What is remembered of a datagram may take the place of what it answers.
        let times = if parts { 1 } else { *times };
        kernel.decides(&expected, container, meta, packet, times);
        *seen.entry((*hook as u8, expected.verdict.reason)).or_default() += u64::from(times);
        if expected.begins(meta) && witness::begins(host, &expected.flow, expected.cgroup) {
            host.remember(&witness::begun(&expected.flow), expected.cgroup, now);
        }
        if parts {
            host.remember(&witness::datagram(&expected.flow), expected.cgroup, now);
        }
    }
    kernel.has_seen(host);
    Ok(())
}

#[test]
fn the_kernel_decides_as_the_host_does() {
    let packets: u32 = env::var("VERDICT_PACKETS").map_or(30_000, |text| text.parse().unwrap());
    let stage = Stage::new("verdicts");
    let container = stage.container("0c5e7b2e-0000-4000-8000-000000000001", &"ab".repeat(32));
    let (sender, level) = (stage.sender(&container), stage.level());
    let pods = [sender.cgroup(level + 2), sender.cgroup(level + 1)];
    let own = sender.cgroup(level + 3);
    let _inside = stage.enter(&container);
    let behind = prop_oneof![5 => Just(Some(pods[0])), 2 => Just(Some(pods[1])), 1 => select(vec![None, Some(0), Some(9)])];
    let mut seen = BTreeMap::new();
    stage
        .netns
        .run(|| {
            let mut kernel = Kernel::load(&stage)?;
            let cell = RefCell::new((&mut kernel, &mut seen));
            let cases = packets.div_ceil(TRIES);
            let mut runner = TestRunner::new(Cases { cases, failure_persistence: None, ..Cases::default() });
            runner
                .run(
                    &(state(level, pods, own), behind, owners(pods), tries(pods, TRIES as usize)),
                    |(state, behind, owners, tries)| {
                        let (kernel, seen) = &mut *cell.borrow_mut();
                        let devices = behind.map(|cgroup| (stage.devices[0], cgroup)).into_iter().collect();
                        let mut host = Host { state, devices, owners, witnesses: BTreeMap::new() };
                        compare(kernel, &mut host, &sender, stage.devices, &tries, seen)
                    },
                )
                .unwrap();
            let again = Datapath::open(stage.bpffs.path())?;
            assert_eq!(again.observed(), kernel.datapath.observed(), "the mirror is what the kernel holds");
            let totals = kernel.datapath.counted().counters()?;
            for total in &totals {
                println!("{:>8} {} {} {}", total.packets, total.hook, total.action, total.reason);
            }
            let counted: u64 = totals.iter().map(|total| total.packets).sum();
            assert_eq!(counted, seen.values().sum::<u64>(), "every packet is counted once: {totals:?}");
            assert_eq!(kernel.datapath.counted().lost()?, 0);
            Ok(())
        })
        .unwrap();
    let came = |hook: Hook, reason| seen.contains_key(&(hook as u8, reason));
    let missing: Vec<_> = Hook::OF_PACKETS
        .iter()
        .flat_map(|hook| Reason::ALL.iter().map(move |reason| (*hook, *reason)))
        .filter(|(hook, reason)| !came(*hook, *reason) && !elsewhere(*hook, *reason))
        .collect();
    assert!(missing.is_empty(), "no packet came to {missing:?}");
    let exempt: Vec<_> =
        seen.keys().filter(|key| Hook::from_wire(key.0).is_some_and(|hook| elsewhere(hook, key.1))).collect();
    assert!(exempt.is_empty(), "{exempt:?} can be reached");
}

/// What a hook never says, or not in a test run.
fn elsewhere(hook: Hook, reason: Reason) -> bool {
    match (hook, reason) {
        // Only the veth hook says so.
        (
            Hook::Socket,
            Reason::Neighbour | Reason::FollowsFragment | Reason::PacketSocket | Reason::NotIp,
        ) => true,
        // Nothing that comes out of a veth is loopback traffic.
        (Hook::Veth, Reason::Loopback) => true,
        // A frame that is not IP is given a socket of no family, which is one of those that make frames; and a tag beside the
        // bytes cannot be set.
        (Hook::Veth, Reason::NotIp) => true,
        _ => false,
    }
}
