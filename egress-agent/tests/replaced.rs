//! Entries that are replaced while the programs read them: the kernel gives the memory of an entry that goes to the next one that comes
//! at once, whoever still reads it (`kernel/bpf/memalloc.c`). No pod may get what is another one's by that.
//!
//! One test, because it moves its own process into a pod's cgroup.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::allow_attributes, unreachable_pub, reason = "the modules are seen by this file alone")]

#[path = "verdicts/stage.rs"]
mod stage;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap as BpfHash, LpmTrie, Map, MapData};
use egress_agent::datapath::pins::Pins;
use egress_agent::datapath::{DEVICES, Datapath};
use egress_common::wire::{
    ABI, Addr, Config, Device, Endpoint, Keyed, Ports, Row, RowKey, STATE_ISOLATED, STATE_UNSELECTED,
    VERDICT_ALLOW,
};
use egress_common::{Action, Hook, Owner as _};
use stage::{Stage, passes};

/// How long each map is written while a program reads it.
const LASTS: Duration = Duration::from_secs(3);
/// Runs of a call.
const RUNS: u32 = 100_000;

/// The pod's own address.
const POD: Addr = Addr::v4([10, 0, 0, 1]);
/// A server outside.
const THERE: Addr = Addr::v4([198, 51, 100, 7]);
/// The pod's policy, and another one.
const POLICIES: [u64; 2] = [100, 200];
/// An identity that the pod may not send to, and one that it may.
const IDENTITIES: [u64; 2] = [1_000, 2_000];
/// The cgroup of a pod that may send anything.
const FREE: u64 = 7;

/// A map whose values have their keys before them.
struct Written<K, V>(BpfHash<MapData, K, Keyed<K, V>>)
where
    K: aya::Pod,
    Keyed<K, V>: aya::Pod;

impl<K, V> Written<K, V>
where
    K: aya::Pod,
    Keyed<K, V>: aya::Pod,
{
    fn put(&mut self, key: K, value: V) {
        self.0.insert(key, Keyed { key, value }, 0).unwrap();
    }
}

/// A row that denies everything.
fn nothing() -> Row {
    Row::default()
}

fn everything() -> Row {
    Row::new(&[Ports { verdict: VERDICT_ALLOW, ..Ports::default() }]).unwrap()
}

fn isolated() -> Endpoint {
    Endpoint { policy: POLICIES[0], state: STATE_ISOLATED, v4: POD, ..Endpoint::default() }
}

/// IPv4 and UDP, from the pod to a server.
fn datagram() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&POD.0[12..]);
    packet.extend_from_slice(&THERE.0[12..]);
    packet.extend_from_slice(&[0x9c, 0x40, 0x01, 0xbb, 0, 8, 0, 0]);
    packet
}

/// One of many keys, in turn. So many that memory comes back to an entry it has been in only after thousands of others: who is kept from
/// going on for so long between two reads of one entry would take the second one for the first.
fn other(round: u64) -> u32 {
    1_000 + u32::try_from(round % 10_000).unwrap()
}

/// Packets that were judged, and those of them that passed.
#[derive(Clone, Copy, Debug)]
struct Judged {
    all: u64,
    passed: u64,
}

impl Judged {
    fn read(datapath: &Datapath) -> Self {
        let totals = datapath.counted().counters().unwrap();
        let passed = totals.iter().filter(|one| one.action != Action::Deny.name());
        Self { all: totals.iter().map(|one| one.packets).sum(), passed: passed.map(|one| one.packets).sum() }
    }
}

/// What can be raced for, once the pod may send nothing.
struct Race<'a> {
    datapath: &'a mut Datapath,
    hook: Hook,
    device: u32,
}

impl Race<'_> {
    fn passes(&mut self, runs: u32) -> bool {
        passes(self.datapath, self.hook, 0x0800, self.device, &datagram(), runs)
    }

    /// Lets the program judge what the pod may not send, while entries are replaced as fast as that goes: none passes.
    fn run(&mut self, what: &str, mut replace: impl FnMut(u64) + Send) {
        let before = Judged::read(self.datapath);
        let ends = AtomicBool::new(false);
        let mut rounds = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    replace(rounds);
                    rounds += 1;
                }
            });
            let begin = Instant::now();
            while begin.elapsed() < LASTS {
                self.passes(RUNS);
            }
            ends.store(true, Ordering::Relaxed);
        });
        let after = Judged::read(self.datapath);
        let (all, passed) = (after.all - before.all, after.passed - before.passed);
        println!("{what} were replaced {rounds} times: {passed} of {all} packets passed");
        assert!(rounds > 1_000 && all > 100_000, "there was no race");
        assert_eq!(passed, 0, "{what}");
        assert!(!self.passes(1));
    }
}

#[test]
fn an_entry_that_is_replaced_gives_nobody_what_is_anothers() {
    let stage = Stage::new("replaced");
    let container = stage.container("0c5e7b2e-0000-4000-8000-000000000002", &"cd".repeat(32));
    let level = stage.level();
    let pod = stage.sender(&container).cgroup(level + 2);
    let _inside = stage.enter(&container);
    stage.netns.run(|| race(&stage, level, pod)).unwrap();
}

fn race(stage: &Stage, level: u32, pod: u64) -> anyhow::Result<()> {
    let mut datapath = Datapath::open(stage.bpffs.path())?;
    let pins = Pins::new(stage.bpffs.path(), ABI);
    let pinned = |name: &str| MapData::from_pin(pins.map(name)).and_then(Map::from_map_data);
    let mut config: Array<_, Config> = pinned("egress_config")?.try_into()?;
    let mut endpoints = Written::<u64, Endpoint>(pinned("egress_endpoint")?.try_into()?);
    let mut addresses = Written::<Addr, u64>(pinned("egress_ipcache")?.try_into()?);
    let mut rows = Written::<RowKey, Row>(pinned("egress_rows")?.try_into()?);
    let mut owners = Written::<Addr, u64>(pinned("egress_owners")?.try_into()?);
    let mut prefixes: LpmTrie<_, Addr, u64> = pinned("egress_cidrs")?.try_into()?;
    let mut devices: BpfHash<_, u32, Device> = pinned(DEVICES)?.try_into()?;

    let free = Endpoint { state: STATE_UNSELECTED, ..Endpoint::default() };
    let [device, _] = stage.devices;
    let denied = RowKey { policy: POLICIES[0], identity: IDENTITIES[0] };
    // Where an address is not known, it is as all around it, and the pod may send there.
    prefixes.insert(&Key::new(0, THERE), IDENTITIES[1], 0)?;
    config.set(0, Config { abi: ABI, pod_root_level: level, revision: 1, ..Config::default() }, 0)?;
    endpoints.put(pod, isolated());
    endpoints.put(FREE, free);
    addresses.put(THERE, IDENTITIES[0]);
    rows.put(denied, nothing());
    rows.put(RowKey { policy: POLICIES[0], identity: IDENTITIES[1] }, everything());
    devices.insert(device, Device { index: device, reserved: 0, cgroup: pod }, 0)?;

    let mut socket = Race { datapath: &mut datapath, hook: Hook::Socket, device: 0 };
    socket.run("pods", |round| {
        endpoints.put(pod, isolated());
        // As large as no cgroup's: the parent of the pod's is looked for, too, where the pod is missed.
        endpoints.put(u64::from(other(round)) << 32, free);
    });
    socket.run("rows", |round| {
        rows.put(denied, nothing());
        rows.put(RowKey { policy: POLICIES[1], identity: u64::from(other(round)) }, everything());
    });
    socket.run("addresses", |round| {
        addresses.put(THERE, IDENTITIES[0]);
        addresses.put(Addr::v4(other(round).to_be_bytes()), IDENTITIES[1]);
    });
    let mut veth = Race { datapath: &mut datapath, hook: Hook::Veth, device };
    veth.run("devices", |round| {
        devices.insert(device, Device { index: device, reserved: 0, cgroup: pod }, 0).unwrap();
        let index = other(round);
        devices.insert(index, Device { index, reserved: 0, cgroup: FREE }, 0).unwrap();
    });
    // What a pod that may send anything sends in another one's name.
    endpoints.put(pod, Endpoint { v4: Addr::v4([10, 0, 0, 2]), ..free });
    owners.put(POD, FREE);
    veth.run("owners", |round| {
        owners.put(POD, FREE);
        owners.put(Addr::v4(other(round).to_be_bytes()), pod);
    });
    owners.put(POD, pod);
    assert!(veth.passes(1), "it may send in its own");
    endpoints.put(pod, isolated());
    addresses.put(THERE, IDENTITIES[1]);
    let mut socket = Race { datapath: &mut datapath, hook: Hook::Socket, device: 0 };
    assert!(socket.passes(1), "what the pod may send passes");
    Ok(())
}
