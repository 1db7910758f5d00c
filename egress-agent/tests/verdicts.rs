//! The loaded program against `decide()` on the host: the same random maps, the same random packets, the same verdict,
//! reason and event. `BPF_PROG_TEST_RUN` runs a `cgroup_skb` program as a socket of the calling process's cgroup.
//!
//! One test, because it moves its own process into a pod's cgroup.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use aya::programs::{TestRun as _, TestRunOptions};
use egress_agent::datapath::Datapath;
use egress_common::reason::REASON_SLOTS;
use egress_common::wire::{
    ABI, Addr, Approval, Cidr, Config, Endpoint, FlowEvent, IDENTITY_WORLD, PROXIES, Ports, Proxy,
    ROW_ENTRIES, Row, RowKey,
};
use egress_common::{Action, Decision, Meta, Owner, Reason, Socket, decide};
use egress_policy::plan::{State, diff};
use egress_topology::{CgroupDriver, CgroupRoot, Netns, PodRoot, Qos, cgroup_id, mount_bpffs};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config as Cases, TestRunner};

const POLICY: u64 = 7;
const UNKNOWN: u64 = 8;
const PROXY: u64 = 9;
const LOCK: u64 = 10;
const V4: [u8; 4] = [10, 244, 1, 5];
const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];

/// Cgroup ids by level, as the kernel would find them.
#[derive(Clone)]
struct Ancestors(Vec<u64>);

impl Owner for Ancestors {
    fn cgroup(&self, level: u32) -> u64 {
        self.0.get(level as usize).copied().unwrap_or(0)
    }

    fn socket(&self) -> Socket {
        Socket::Inet
    }

    fn approval(&self) -> Option<&Approval> {
        None
    }
}

/// Ids of a cgroup and all above it, from the root on.
fn ancestors(mount: &Path, path: &Path) -> Ancestors {
    let below = path.strip_prefix(mount).unwrap();
    let mut at = mount.to_owned();
    let mut ids = vec![cgroup_id(&at).unwrap()];
    for part in below {
        at.push(part);
        ids.push(cgroup_id(&at).unwrap());
    }
    Ancestors(ids)
}

/// Moves this process into a cgroup, and back when dropped.
struct Inside {
    back: std::path::PathBuf,
}

impl Inside {
    fn enter(mount: &Path, cgroup: &Path) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        Self { back: mount.join(own) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = fs::write(self.back.join("cgroup.procs"), "0");
    }
}

fn addr4() -> impl Strategy<Value = [u8; 4]> {
    select(vec![
        V4,
        [10, 244, 1, 6],
        [198, 51, 100, 10],
        [198, 51, 101, 1],
        [127, 0, 0, 1],
        [127, 9, 9, 9],
        [0; 4],
        [0, 1, 2, 3],
        [224, 0, 0, 1],
        [255; 4],
    ])
}

fn addr6() -> impl Strategy<Value = [u8; 16]> {
    let mut other = V6;
    other[15] = 9;
    let mut loopback = [0; 16];
    loopback[15] = 1;
    select(vec![
        V6,
        other,
        loopback,
        [0; 16],
        Addr::v4([198, 51, 100, 10]).0,
        Addr::v4([127, 0, 0, 1]).0,
        [0xfe; 16],
    ])
}

fn port() -> impl Strategy<Value = u16> {
    select(vec![0, 53, 79, 80, 81, 443, 65534, 65535])
}

fn transport() -> impl Strategy<Value = Vec<u8>> {
    (port(), port(), 0usize..24).prop_map(|(source, destination, rest)| {
        let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        bytes.resize(4 + rest, 0);
        bytes
    })
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![6 => select(vec![6u8, 17, 132, 1, 58]), 1 => any::<u8>()]
}

fn packet4() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![8 => Just(0x45u8), 1 => any::<u8>()];
    let fragment = prop_oneof![8 => Just(0u16), 1 => any::<u16>()];
    (first, fragment, protocol(), addr4(), addr4(), transport()).prop_map(
        |(first, fragment, protocol, from, to, rest)| {
            let [high, low] = fragment.to_be_bytes();
            let mut packet = vec![first, 0, 0, 0, 0, 0, high, low, 64, protocol, 0, 0];
            packet.extend(from);
            packet.extend(to);
            packet.extend(rest);
            packet
        },
    )
}

fn packet6() -> impl Strategy<Value = Vec<u8>> {
    let header =
        (select(vec![0u8, 60, 44, 43, 51, 59]), 0u8..3, prop_oneof![4 => Just(0u8), 1 => any::<u8>()]);
    let headers = prop_oneof![3 => Just(Vec::new()), 2 => vec(header, 1..7)];
    (headers, protocol(), addr6(), addr6(), transport()).prop_map(|(headers, protocol, from, to, rest)| {
        let next = |index: usize| headers.get(index).map_or(protocol, |(number, ..)| *number);
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next(0), 64];
        packet.extend(from);
        packet.extend(to);
        for (index, (number, units, word)) in headers.iter().enumerate() {
            let units = if *number == 44 { 0 } else { *units };
            let mut bytes = vec![0; 8 * (usize::from(units) + 1)];
            (bytes[0], bytes[1], bytes[2]) = (next(index + 1), units, *word);
            packet.extend(bytes);
        }
        packet.extend(rest);
        packet
    })
}

/// A packet with the type of its frame; sometimes cut short, sometimes of the wrong type. `BPF_PROG_TEST_RUN` takes no packet
/// shorter than the IP header of its type (`bpf_prog_test_run_skb`), so those are left to the tests of `egress-common`.
fn packet() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let cut = prop_oneof![9 => Just(usize::MAX), 1 => 20usize..60];
    let ethertype =
        prop_oneof![12 => Just(None), 1 => select(vec![Some(0x0800u16), Some(0x86dd), Some(0x0806)])];
    (prop_oneof![packet4(), packet6()], cut, ethertype).prop_map(|(mut packet, cut, ethertype)| {
        let own = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
        let ethertype = ethertype.unwrap_or(own);
        let least = if ethertype == 0x86dd { 40 } else { 20 };
        packet.truncate(cut.max(least));
        packet.resize(packet.len().max(least), 0);
        (ethertype, packet)
    })
}

fn row() -> impl Strategy<Value = Row> {
    let ports = (
        select(vec![0u8, 6, 17, 132]),
        prop_oneof![4 => Just(1u8), 2 => Just(2u8), 1 => any::<u8>()],
        any::<u16>(),
        port(),
        port(),
    )
        .prop_map(|(protocol, verdict, rule, a, b)| Ports {
            protocol,
            verdict,
            rule,
            low: a.min(b),
            high: a.max(b),
        });
    (vec(ports, 0..=ROW_ENTRIES), prop_oneof![20 => Just(None), 1 => any::<u32>().prop_map(Some)]).prop_map(
        |(ports, len)| {
            let mut row = Row::new(&ports).unwrap();
            row.len = len.unwrap_or(row.len);
            row
        },
    )
}

/// What the maps say about a sender whose pod is known by one of the cgroups at pod level, or by none.
fn state(level: u32, pods: [u64; 2], container: u64) -> impl Strategy<Value = State> {
    let config = (
        prop_oneof![20 => Just(ABI), 1 => any::<u32>()],
        prop_oneof![5 => Just(1u32), 1 => 0u32..4],
        any::<u64>(),
    )
        .prop_map(move |(abi, unknown, revision)| Config {
            abi,
            unknown,
            revision,
            pod_root_level: level,
            unknown_policy: UNKNOWN,
            reserved: 0,
        });
    let own = |some: bool, addr: Addr| if some { addr } else { Addr::default() };
    let endpoint = (
        prop_oneof![8 => Just(2u32), 2 => 0u32..5],
        0u32..4,
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.9),
        (select(vec![0, 0, LOCK]), vec(select(vec![0, 1, container, container]), PROXIES)),
    )
        .prop_map(move |(state, flags, v4, v6, (lock, listed))| Endpoint {
            policy: POLICY,
            lock,
            proxies: std::array::from_fn(|at| Proxy { cgroup: listed[at], policy: PROXY }),
            state,
            flags,
            v4: own(v4, Addr::v4(V4)),
            v6: own(v6, Addr(V6)),
        });
    let endpoints = prop_oneof![6 => Just(Some(0usize)), 3 => Just(Some(1)), 1 => Just(None)];
    let identity = select(vec![IDENTITY_WORLD, 100, 101, 102]);
    let addresses =
        vec((prop_oneof![addr4().prop_map(Addr::v4), addr6().prop_map(Addr)], identity.clone()), 0..6);
    let cidrs = vec(
        (prop_oneof![addr4().prop_map(Addr::v4), addr6().prop_map(Addr)], 0u32..=128, identity.clone()),
        0..6,
    );
    let rows = vec((select(vec![POLICY, POLICY, UNKNOWN, PROXY, LOCK]), identity, row()), 0..10);
    (config, endpoint, endpoints, addresses, cidrs, rows).prop_map(
        move |(config, endpoint, at, addresses, cidrs, rows)| State {
            config,
            endpoints: at.map(|at| (pods[at], endpoint)).into_iter().collect(),
            addresses: addresses.into_iter().collect(),
            cidrs: cidrs
                .into_iter()
                .map(|(addr, bits, identity)| (Cidr { bits, addr: masked(addr, bits) }, identity))
                .collect(),
            rows: rows
                .into_iter()
                .map(|(policy, identity, row)| (RowKey { policy, identity }, row))
                .collect(),
        },
    )
}

fn masked(addr: Addr, bits: u32) -> Addr {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    Addr((u128::from_be_bytes(addr.0) & mask).to_be_bytes())
}

/// Runs the loaded program on a packet.
fn kernel(datapath: &mut Datapath, ethertype: u16, ifindex: u32, packet: &[u8]) -> u32 {
    // `struct __sk_buff` up to `ifindex`, the eleventh of its words; loopback must be left out.
    let mut context = [0u8; 44];
    if ifindex > 1 {
        context[40..].copy_from_slice(&ifindex.to_ne_bytes());
    }
    let frame = [&[0; 12], &ethertype.to_be_bytes()[..], packet].concat();
    let options = TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::new() };
    datapath.socket_program().unwrap().test_run(options).unwrap().return_value
}

fn next_event(ring: &mut RingBuf<MapData>) -> Option<FlowEvent> {
    let record = ring.next()?;
    assert_eq!(record.len(), size_of::<FlowEvent>());
    // SAFETY: plain data of this size.
    Some(unsafe { record.as_ptr().cast::<FlowEvent>().read_unaligned() })
}

#[track_caller]
fn same_event(event: &FlowEvent, expected: &Decision, ifindex: u32, length: usize) {
    assert_eq!(
        (event.action, event.reason),
        (expected.verdict.action as u8, expected.verdict.reason as u8),
        "{event:?}"
    );
    assert_eq!((event.rule, event.cgroup), (expected.verdict.rule, expected.cgroup));
    assert_eq!(event.container, expected.container);
    assert_eq!(
        (event.policy, event.identity, event.revision),
        (expected.policy, expected.identity, expected.revision)
    );
    assert_eq!((event.source, event.destination), (expected.flow.source, expected.flow.destination));
    let ports = (expected.flow.source_port, expected.flow.destination_port);
    assert_eq!((event.source_port, event.destination_port), ports);
    assert_eq!((event.protocol, event.version), (expected.flow.protocol, expected.flow.version));
    assert_eq!((event.ifindex, event.length as usize, event.hook), (ifindex, length, 1));
}

#[test]
fn the_kernel_decides_as_the_host_does() {
    assert!(nix::unistd::geteuid().is_root(), "this test loads BPF: run it as root");
    let dir = tempfile::tempdir().unwrap();
    let bpffs = mount_bpffs(&dir.path().join("bpf")).unwrap();
    let cgroups = CgroupRoot::find_or_mount().unwrap();
    let root = PodRoot::create(&cgroups, "egress-test", CgroupDriver::Cgroupfs).unwrap();
    let pod = root.pod_directory(Qos::Burstable, "0c5e7b2e-0000-4000-8000-000000000001");
    let container = root.container_directory(&pod, &"ab".repeat(32));
    fs::create_dir_all(&container).unwrap();
    let owner = ancestors(cgroups.path(), &container);
    let level = u32::try_from(ancestors(cgroups.path(), root.path()).0.len() - 1).unwrap();
    let pods = [owner.cgroup(level + 2), owner.cgroup(level + 1)];
    let own = owner.cgroup(level + 3);
    let netns = Netns::new("verdicts").unwrap();
    netns.ip(&["link add v0 type veth peer name v1"]).unwrap();
    let eth = netns.interface_index("v0").unwrap();
    let _inside = Inside::enter(cgroups.path(), &container);

    let mut seen = [0u32; REASON_SLOTS as usize];
    netns
        .run(|| {
            let mut datapath = Datapath::open(bpffs.path())?;
            let mut ring = datapath.take_events().unwrap();
            let tries = vec((packet(), select(vec![1, eth])), 20);
            let cell = std::cell::RefCell::new((&mut datapath, &mut ring, &mut seen));
            let mut runner =
                TestRunner::new(Cases { cases: 1500, failure_persistence: None, ..Cases::default() });
            runner
                .run(&(state(level, pods, own), tries), |(state, tries)| {
                    let (datapath, ring, seen) = &mut *cell.borrow_mut();
                    // The revision of a plan counts on; here it is to be as it was drawn.
                    let mut plan = diff(&state, datapath.observed());
                    for step in &mut plan.steps {
                        if let egress_policy::plan::Step::PutConfig(config) = step {
                            config.revision = state.config.revision;
                        }
                    }
                    datapath.apply(&plan).map_err(|errors| TestCaseError::fail(format!("{errors:?}")))?;
                    let mut state = state;
                    state.config = datapath.observed().config;
                    assert_eq!(&state, datapath.observed());
                    for ((ethertype, packet), ifindex) in tries {
                        let length = u32::try_from(packet.len()).unwrap();
                        let meta = Meta { ethertype, ifindex, length, ..Meta::default() };
                        let expected = decide(&state, &owner, packet.as_slice(), meta);
                        // Each packet is the first of its second.
                        datapath.seen().forget_all_but(&BTreeSet::new());
                        let passed = kernel(datapath, ethertype, ifindex, &packet);
                        let passes = expected.verdict.action != Action::Deny;
                        assert_eq!(passed, u32::from(passes), "{expected:?} {meta:?} {packet:02x?}");
                        match (expected.verdict.action, next_event(ring)) {
                            (Action::Allow, None) => {}
                            (Action::Deny | Action::Audit, Some(event)) => {
                                same_event(&event, &expected, ifindex, packet.len());
                            }
                            (action, event) => panic!("{action:?} gave {event:?}"),
                        }
                        seen[expected.verdict.reason as usize] += 1;
                    }
                    Ok(())
                })
                .unwrap();
            let again = Datapath::open(bpffs.path())?;
            assert_eq!(again.observed(), datapath.observed(), "the mirror is what the kernel holds");
            let totals = datapath.counted().counters()?;
            let counted: u64 = totals.iter().map(|total| total.packets).sum();
            assert_eq!(
                counted,
                u64::from(seen.iter().sum::<u32>()),
                "every packet is counted once: {totals:?}"
            );
            Ok(())
        })
        .unwrap();
    // What only the other hook or an inbound flow leads to is tried with real packets.
    let elsewhere = |reason: &&Reason| {
        matches!(
            reason,
            Reason::WitnessedReply
                | Reason::Neighbour
                | Reason::FollowsFragment
                | Reason::NotIp
                | Reason::PacketSocket
        )
    };
    for &reason in Reason::ALL.iter().filter(|reason| !elsewhere(reason)) {
        println!("{:>6} {}", seen[reason as usize], reason.name());
        assert!(seen[reason as usize] > 0, "no packet came to {reason:?}");
    }
}
