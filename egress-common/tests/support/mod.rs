//! Maps, senders and packets for the host tests.
#![allow(
    clippy::allow_attributes,
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part, and none is seen from outside"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod packets;

use std::collections::BTreeMap;

use egress_common::wire::{
    ABI, Addr, Approval, Cidr, Config, Endpoint, Ports, Row, RowKey, STATE_ISOLATED, UNKNOWN_DENY,
    VERDICT_ALLOW, Witness, WitnessKey,
};
use egress_common::{Decision, Hook, Meta, Owner, Reason, Socket, View, decide};

pub const POD: u64 = 100;
pub const POLICY: u64 = 0xaaaa;
pub const PEER: u64 = 0xbbbb;
pub const V4: [u8; 4] = [10, 244, 1, 5];
pub const PEER_V4: [u8; 4] = [10, 244, 2, 9];
pub const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
pub const PEER_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
pub const ETH0: u32 = 2;
pub const LO: u32 = 1;
/// The node's end of the pod's veth.
pub const VETH: u32 = 50;

/// The maps as ordinary maps.
#[derive(Clone, Debug)]
pub struct Maps {
    pub config: Option<Config>,
    pub endpoints: BTreeMap<u64, Endpoint>,
    pub addresses: BTreeMap<Addr, u64>,
    pub cidrs: BTreeMap<Cidr, u64>,
    pub rows: BTreeMap<RowKey, Row>,
    pub devices: BTreeMap<u32, u64>,
    pub owners: BTreeMap<Addr, u64>,
    pub witnesses: BTreeMap<WitnessKey, Witness>,
    pub now: u64,
    /// Whose the memory of a pod or a row is by the time that it was read.
    pub taken: (Option<u64>, Option<RowKey>),
}

impl Maps {
    /// One isolated pod that may send TCP to port 443 of one peer.
    pub fn new() -> Self {
        let endpoint = Endpoint {
            policy: POLICY,
            state: STATE_ISOLATED,
            v4: Addr::v4(V4),
            v6: Addr(V6),
            ..Endpoint::default()
        };
        let ports = Ports { protocol: 6, verdict: VERDICT_ALLOW, rule: 3, low: 443, high: 443 };
        Self {
            config: Some(Config {
                abi: ABI,
                pod_root_level: 1,
                revision: 9,
                unknown: UNKNOWN_DENY,
                ..Config::default()
            }),
            endpoints: [(POD, endpoint)].into(),
            addresses: [(Addr::v4(PEER_V4), PEER), (Addr(PEER_V6), PEER)].into(),
            cidrs: BTreeMap::new(),
            rows: [(RowKey { policy: POLICY, identity: PEER }, Row::new(&[ports]).unwrap())].into(),
            devices: [(VETH, POD)].into(),
            owners: BTreeMap::new(),
            witnesses: BTreeMap::new(),
            now: 1_000_000_000_000,
            taken: (None, None),
        }
    }

    pub fn endpoint_mut(&mut self) -> &mut Endpoint {
        self.endpoints.get_mut(&POD).unwrap()
    }

    pub fn set_row(&mut self, policy: u64, identity: u64, ports: &[Ports]) {
        self.rows.insert(RowKey { policy, identity }, Row::new(ports).unwrap());
    }

    /// The verdict of a packet of the pod that leaves by `eth0`.
    pub fn judge(&self, packet: &[u8]) -> Decision {
        self.judge_from(Sender::NESTED, packet, ETH0)
    }

    pub fn judge_from(&self, sender: Sender, packet: &[u8], ifindex: u32) -> Decision {
        decide(self, &sender, packet, meta(packet, Hook::Socket, ifindex))
    }

    /// Why a hook lets a packet of the pod pass or not, sent by this kind of socket.
    pub fn reason_of(&self, hook: Hook, socket: Socket, packet: &[u8]) -> Reason {
        let sender = Sender::NESTED.socket(socket);
        let decision = match hook {
            Hook::Socket | Hook::Connect => self.judge_from(sender, packet, ETH0),
            Hook::Veth => self.judge_veth(sender, packet),
        };
        decision.verdict.reason
    }

    /// The verdict of a packet that comes out of the pod's veth.
    pub fn judge_veth(&self, sender: Sender, packet: &[u8]) -> Decision {
        decide(self, &sender, packet, meta(packet, Hook::Veth, VETH))
    }
}

impl View for Maps {
    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }
    fn endpoint(&self, cgroup: u64) -> Option<(&u64, &Endpoint)> {
        let (key, endpoint) = self.endpoints.get_key_value(&cgroup)?;
        Some((self.taken.0.as_ref().unwrap_or(key), endpoint))
    }
    fn address(&self, addr: &Addr) -> Option<u64> {
        self.addresses.get(addr).copied()
    }
    fn prefix(&self, addr: &Addr) -> Option<u64> {
        let bits = u128::from_be_bytes(addr.0);
        let holds = |cidr: &Cidr| {
            let mask = if cidr.bits == 0 { 0 } else { u128::MAX << (128 - cidr.bits) };
            bits & mask == u128::from_be_bytes(cidr.addr.0)
        };
        self.cidrs.iter().filter(|(cidr, _)| holds(cidr)).max_by_key(|(cidr, _)| cidr.bits).map(|(_, id)| *id)
    }
    fn row(&self, key: &RowKey) -> Option<(&RowKey, &Row)> {
        let (key, row) = self.rows.get_key_value(key)?;
        Some((self.taken.1.as_ref().unwrap_or(key), row))
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
        self.now
    }
}

pub fn meta(packet: &[u8], hook: Hook, ifindex: u32) -> Meta {
    let ethertype = if packet.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
    Meta { hook, ethertype, ifindex, length: packet.len() as u32, vlan: false }
}

/// The sender's socket: ancestors of its cgroup by level, its kind, and what is kept with it.
#[derive(Clone, Copy, Debug)]
pub struct Sender(pub [u64; 6], pub Socket, pub Option<Approval>);

impl Sender {
    /// A container of a Burstable pod: root, pod root, QoS class, pod, container.
    pub const NESTED: Self = Self([1, 10, 20, POD, 1000, 0], Socket::Inet, None);
    /// A container of a Guaranteed pod: root, pod root, pod, container.
    pub const DIRECT: Self = Self([1, 10, POD, 1000, 0, 0], Socket::Inet, None);
    /// A container of a pod that is in no map.
    pub const STRANGER: Self = Self([1, 10, 20, 77, 1000, 0], Socket::Inet, None);
    /// Nobody: a packet without a socket.
    pub const NOBODY: Self = Self([0; 6], Socket::None, None);

    /// The same, with another kind of socket.
    pub fn socket(self, socket: Socket) -> Self {
        Self(self.0, socket, self.2)
    }

    /// The same, with what is kept.
    pub fn keeping(self, approval: Option<Approval>) -> Self {
        Self(self.0, self.1, approval)
    }
}

impl Owner for Sender {
    fn cgroup(&self, level: u32) -> u64 {
        self.0.get(level as usize).copied().unwrap_or(0)
    }
    fn socket(&self) -> Socket {
        self.1
    }
    fn approval(&self) -> Option<&Approval> {
        self.2.as_ref()
    }
}

/// A TCP segment over IPv4.
pub fn tcp4(from: [u8; 4], to: [u8; 4], port: u16) -> Vec<u8> {
    let mut transport = vec![0; 20];
    transport[..4].copy_from_slice(&[0x80, 0, (port >> 8) as u8, port as u8]);
    ipv4(6, from, to, &transport)
}

/// A TCP segment over IPv6.
pub fn tcp6(from: [u8; 16], to: [u8; 16], port: u16) -> Vec<u8> {
    let mut transport = vec![0; 20];
    transport[..4].copy_from_slice(&[0x80, 0, (port >> 8) as u8, port as u8]);
    ipv6(6, from, to, &transport)
}

pub fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let [high, low] = (20 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(from);
    packet.extend(to);
    packet.extend(payload);
    packet
}

pub fn ipv6(next: u8, from: [u8; 16], to: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, high, low, next, 64];
    packet.extend(from);
    packet.extend(to);
    packet.extend(payload);
    packet
}
