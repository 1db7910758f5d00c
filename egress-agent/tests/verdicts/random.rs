//! Random maps, packets, and what was seen of them.

use std::collections::BTreeMap;

use egress_common::Hook;
use egress_common::connection;
use egress_common::packet::{Flow, icmp, protocol, read, tcp};
use egress_common::wire::{
    ABI, Addr, Approval, Cidr, Config, Endpoint, IDENTITY_WORLD, OWNER_NODE, PROXIES, Ports, Proxy,
    ROW_ENTRIES, Row, RowKey, WITNESS_TTL, Witness, WitnessKey,
};
use egress_common::witness::{self, FIRST, SECOND};
use egress_policy::plan::State;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const POLICY: u64 = 7;
const UNKNOWN: u64 = 8;
const PROXY: u64 = 9;
const LOCK: u64 = 10;
const V4: [u8; 4] = [10, 244, 1, 5];
const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];

/// A packet to be tried.
#[derive(Clone, Debug)]
pub struct Try {
    pub hook: Hook,
    /// Of the frame.
    pub ethertype: u16,
    /// Which of the devices, or loopback.
    pub device: Option<u8>,
    pub packet: Vec<u8>,
    pub seen: Option<Seen>,
    /// Times that it is sent, by the same socket.
    pub times: u32,
}

/// What was seen of a packet's flow, whatever the packet is.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub cgroup: u64,
    kind: u8,
    /// Nanoseconds; below zero it is told by the clock of another processor.
    age: i64,
    /// Bits that differ in the other end's port.
    near: u16,
    /// Which of the flow's places it is in.
    choice: usize,
}

impl Seen {
    /// What is to be found in the map.
    pub fn of(self, ethertype: u16, packet: &[u8], now: u64) -> (WitnessKey, Witness) {
        let mut flow = Flow::default();
        let _refused = read(packet, ethertype, &mut flow);
        let fragment = (flow.protocol != protocol::TCP).then(|| witness::datagram(&flow));
        let begin = match flow.protocol {
            protocol::TCP => tcp::SYN,
            protocol::ICMPV6 => icmp::ECHO_V6,
            _ => icmp::ECHO_V4,
        };
        let asked = Flow {
            source: flow.destination,
            destination: flow.source,
            source_port: flow.destination_port,
            destination_port: flow.source_port,
            kind: begin,
            ..flow
        };
        let like = Approval {
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            cgroup: self.cgroup,
            ..Approval::default()
        };
        let half = match self.kind {
            4 => fragment,
            _ => witness::came_in(&asked),
        }
        .unwrap_or_else(|| connection::half(&like, self.kind));
        let (_, value) = half.entry(self.cgroup, now);
        let key = half.key(self.choice);
        let seen = now.saturating_add_signed(-self.age);
        (key, Witness { seen, kind: self.kind, remote_port: value.remote_port ^ self.near, ..value })
    }
}

/// `pods` are the cgroups that may be behind the device.
fn seen(pods: [u64; 2]) -> impl Strategy<Value = Option<Seen>> {
    let long_ago = i64::try_from(WITNESS_TTL).unwrap() + 10_000_000_000;
    (
        select(vec![pods[0], pods[0], pods[0], pods[0], pods[1], 1, 0]),
        prop_oneof![6 => 1u8..=4, 1 => any::<u8>()],
        select(vec![0, 0, 500_000_000, 30_000_000_000, long_ago, -1_000_000_000]),
        prop_oneof![7 => Just(0u16), 1 => any::<u16>()],
        select(vec![FIRST, SECOND]),
    )
        .prop_map(|(cgroup, kind, age, near, choice)| Seen { cgroup, kind, age, near, choice })
        .prop_map(Some)
}

pub fn tries(pods: [u64; 2], count: usize) -> impl Strategy<Value = Vec<Try>> {
    let device = prop_oneof![12 => Just(Some(0u8)), 1 => Just(Some(1)), 3 => Just(None)];
    let seen = prop_oneof![1 => Just(None), 1 => seen(pods)];
    let times = prop_oneof![7 => Just(1u32), 1 => Just(2)];
    let one = (select(Hook::OF_PACKETS.to_vec()), packet(), device, seen, times).prop_map(
        |(hook, (ethertype, packet), device, seen, times)| Try {
            hook,
            ethertype,
            device,
            packet,
            seen,
            times,
        },
    );
    vec(one, count)
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
        [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ])
}

fn port() -> impl Strategy<Value = u16> {
    select(vec![0, 53, 79, 80, 81, 443, 65534, 65535])
}

/// Bytes after the IP header: ports, or type and code of ICMP, and where TCP has its length and flags.
fn transport() -> impl Strategy<Value = Vec<u8>> {
    let kinds = select(vec![0u8, 8, 128, 129, 131, 133, 135, 136, 143]);
    let first = prop_oneof![
        2 => (port(), port()).prop_map(|(source, destination)| (source, destination)),
        1 => (kinds, port()).prop_map(|(kind, rest)| (u16::from(kind) << 8, rest)),
    ];
    let flags = prop_oneof![select(vec![2u8, 16, 18, 4, 17]), any::<u8>()];
    let words = prop_oneof![4 => Just(0x50u8), 1 => any::<u8>()];
    (first, prop_oneof![3 => 16usize..24, 1 => 0usize..24], flags, words, port()).prop_map(
        |((source, destination), rest, flags, words, echo)| {
            let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
            bytes.extend(echo.to_be_bytes());
            bytes.resize(20, 0);
            (bytes[12], bytes[13]) = (words, flags);
            bytes.resize(4 + rest, 0);
            bytes
        },
    )
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![6 => select(vec![6u8, 17, 132, 1, 58]), 1 => any::<u8>()]
}

/// The length that a packet says it has: mostly its own.
fn length() -> impl Strategy<Value = Option<u16>> {
    prop_oneof![8 => Just(None), 1 => Just(Some(0)), 1 => (0u16..60).prop_map(Some)]
}

fn packet4() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![8 => Just(0x45u8), 1 => any::<u8>()];
    let fragment = prop_oneof![8 => Just(0u16), 1 => Just(0x2000), 1 => any::<u16>()];
    (first, fragment, protocol(), (addr4(), addr4()), transport(), length()).prop_map(
        |(first, fragment, protocol, (from, to), rest, length)| {
            let [high, low] = fragment.to_be_bytes();
            let mut packet = vec![first, 0, 0, 0, 0, 0, high, low, 64, protocol, 0, 0];
            packet.extend(from);
            packet.extend(to);
            packet.extend(rest);
            let length = length.unwrap_or(u16::try_from(packet.len()).unwrap());
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet
        },
    )
}

fn packet6() -> impl Strategy<Value = Vec<u8>> {
    let hops = select(vec![64u8, 255, 255, 1]);
    let header =
        (select(vec![0u8, 60, 44, 43, 51, 59]), 0u8..3, prop_oneof![4 => Just(0u8), 1 => any::<u8>()]);
    let headers = prop_oneof![3 => Just(Vec::new()), 2 => vec(header, 1..7)];
    (headers, protocol(), addr6(), addr6(), (hops, transport(), length())).prop_map(
        |(headers, protocol, from, to, (hops, rest, length))| {
            let next = |index: usize| headers.get(index).map_or(protocol, |(number, ..)| *number);
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, next(0), hops];
            packet.extend(from);
            packet.extend(to);
            for (index, (number, units, word)) in headers.iter().enumerate() {
                let units = if *number == 44 { 0 } else { *units };
                let mut bytes = vec![0; 8 * (usize::from(units) + 1)];
                (bytes[0], bytes[1], bytes[2]) = (next(index + 1), units, *word);
                packet.extend(bytes);
            }
            packet.extend(rest);
            let length = length.unwrap_or(u16::try_from(packet.len() - 40).unwrap());
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet
        },
    )
}

/// Neighbour discovery, or what is almost that.
fn discovery() -> impl Strategy<Value = Vec<u8>> {
    let kind = select(vec![131u8, 132, 133, 134, 135, 136, 137, 143]);
    let mut beside = V6;
    beside[15] = 0x77;
    let mut on_link = [0; 16];
    (on_link[0], on_link[1], on_link[15]) = (0xff, 2, 1);
    let to = select(vec![on_link, beside, [0xfe; 16]]);
    (kind, select(vec![1u8, 255, 255, 64]), to).prop_map(|(kind, hops, to)| {
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, 58, hops];
        packet.extend(V6);
        packet.extend(to);
        packet.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        packet
    })
}

/// A packet with the type of its frame; sometimes cut short, sometimes of the wrong type. `BPF_PROG_TEST_RUN` takes no packet
/// shorter than the IP header of its type (`bpf_prog_test_run_skb`), so those are left to the tests of `egress-common`.
pub fn packet() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let cut = prop_oneof![9 => Just(usize::MAX), 1 => 20usize..60];
    let ethertype =
        prop_oneof![12 => Just(None), 1 => select(vec![Some(0x0800u16), Some(0x86dd), Some(0x0806)])];
    (prop_oneof![8 => packet4(), 8 => packet6(), 1 => discovery()], cut, ethertype).prop_map(
        |(mut packet, cut, ethertype)| {
            let own = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
            let ethertype = ethertype.unwrap_or(own);
            let least = if ethertype == 0x86dd { 40 } else { 20 };
            packet.truncate(cut.max(least));
            packet.resize(packet.len().max(least), 0);
            (ethertype, packet)
        },
    )
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

/// Whose some of the addresses are.
pub fn owners(pods: [u64; 2]) -> impl Strategy<Value = BTreeMap<Addr, u64>> {
    let owner = select(vec![None, Some(OWNER_NODE), Some(pods[0]), Some(pods[1]), Some(99)]);
    let mut other = V6;
    other[15] = 9;
    let known =
        [Addr::v4(V4), Addr::v4([10, 244, 1, 6]), Addr::v4([198, 51, 100, 10]), Addr(V6), Addr(other)];
    vec(owner, known.len()).prop_map(move |owners| {
        known.into_iter().zip(owners).filter_map(|(addr, owner)| Some((addr, owner?))).collect()
    })
}

/// What the maps say about a sender whose pod is known by one of the cgroups at pod level, or by none.
pub fn state(level: u32, pods: [u64; 2], container: u64) -> impl Strategy<Value = State> {
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
