//! Packets between two ends, of either IP version, and what they witness where they come in.

use egress_common::connection;
use egress_common::packet::{Flow, read, tcp};
use egress_common::wire::{Addr, Approval, WITNESS_STOOD, Witness, WitnessKey};
use egress_common::witness;

use super::{Maps, POD, V4, V6, ipv4, ipv6};

/// Somewhere outside that no row allows.
pub const OUTSIDE_V4: [u8; 4] = [198, 51, 100, 10];
pub const OUTSIDE_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

/// Two ends: packets go from the first to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub from: Addr,
    pub from_port: u16,
    pub to: Addr,
    pub to_port: u16,
}

impl Ends {
    /// From the pod's port 8080 to port 50000 outside, once for each IP version.
    pub fn answers() -> [Self; 2] {
        let ends = |from, to| Self { from, from_port: 8080, to, to_port: 50_000 };
        [ends(Addr::v4(V4), Addr::v4(OUTSIDE_V4)), ends(Addr(V6), Addr(OUTSIDE_V6))]
    }

    /// The other direction.
    pub fn back(self) -> Self {
        Self { from: self.to, from_port: self.to_port, to: self.from, to_port: self.from_port }
    }

    /// A TCP segment with these flags and some bytes after its header.
    pub fn tcp(self, flags: u8, payload: usize) -> Vec<u8> {
        let mut rest = vec![0; 16 + payload];
        (rest[8], rest[9]) = (0x50, flags);
        self.with_ports(6, &rest)
    }

    pub fn udp(self) -> Vec<u8> {
        self.with_ports(17, &[0; 8])
    }

    pub fn sctp(self) -> Vec<u8> {
        self.with_ports(132, &[0; 12])
    }

    /// ICMP or ICMPv6 of a type, with the identifier of an echo.
    pub fn icmp(self, kind: u8, identifier: u16) -> Vec<u8> {
        let [high, low] = identifier.to_be_bytes();
        self.packet(if self.from.is_v4() { 1 } else { 58 }, &[kind, 0, 0, 0, high, low, 0, 1])
    }

    pub fn echo(self, identifier: u16) -> Vec<u8> {
        self.icmp(if self.from.is_v4() { 8 } else { 128 }, identifier)
    }

    pub fn echo_reply(self, identifier: u16) -> Vec<u8> {
        self.icmp(if self.from.is_v4() { 0 } else { 129 }, identifier)
    }

    fn with_ports(self, protocol: u8, rest: &[u8]) -> Vec<u8> {
        let ports = [self.from_port.to_be_bytes(), self.to_port.to_be_bytes()].concat();
        self.packet(protocol, &[&ports, rest].concat())
    }

    pub fn packet(self, protocol: u8, transport: &[u8]) -> Vec<u8> {
        if self.from.is_v4() {
            let last = |addr: Addr| [addr.0[12], addr.0[13], addr.0[14], addr.0[15]];
            ipv4(protocol, last(self.from), last(self.to), transport)
        } else {
            ipv6(protocol, self.from.0, self.to.0, transport)
        }
    }

    /// What a socket keeps of a TCP connection of these ends.
    pub fn kept(self, maps: &Maps) -> Approval {
        Approval {
            revision: maps.config.unwrap().revision,
            cgroup: POD,
            source: self.from,
            destination: self.to,
            source_port: self.from_port,
            destination_port: self.to_port,
            protocol: 6,
            version: if self.from.is_v4() { 4 } else { 6 },
            ..Approval::default()
        }
    }
}

/// A packet as the parser reads it.
pub fn flow(packet: &[u8]) -> Flow {
    let mut flow = Flow::default();
    let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    assert_eq!(read(packet, ethertype, &mut flow), None, "{packet:02x?}");
    flow
}

/// What is written down of a packet that comes in to [`POD`] now.
pub fn came_in(maps: &Maps, packet: &[u8]) -> (WitnessKey, Witness) {
    witness::came_in(&flow(packet)).unwrap().entry(POD, maps.now)
}

/// What is written down of a connection between these ends, `from` being the pod's.
pub fn connection(maps: &Maps, ends: Ends, kind: u8) -> (WitnessKey, Witness) {
    // What stood before us has no time of its own.
    let now = if kind == WITNESS_STOOD { 0 } else { maps.now };
    connection::half(&ends.kept(maps), kind).entry(POD, now)
}

pub const SYN: u8 = tcp::SYN;
pub const ACK: u8 = tcp::ACK;
pub const RST: u8 = tcp::RST;
pub const FIN: u8 = tcp::FIN;
pub const SYN_ACK: u8 = SYN | ACK;

pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// What a neighbour is asked for by.
pub const ASKED: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 1, 2, 3];

/// ICMPv6 of a type and hop limit, from the pod.
pub fn neighbour(kind: u8, hops: u8, to: [u8; 16]) -> Vec<u8> {
    said(kind, hops, V6, to, &[ASKED])
}

/// The same from any address, a report being of these groups.
pub fn said(kind: u8, hops: u8, from: [u8; 16], to: [u8; 16], groups: &[[u8; 16]]) -> Vec<u8> {
    let alert = [58, 0, 5, 2, 0, 0, 1, 0];
    let mut packet = match kind {
        131 | 132 => ipv6(0, from, to, &[&alert[..], &[kind, 0, 0, 0, 0, 0, 0, 0], &groups[0]].concat()),
        143 => {
            let records: Vec<u8> =
                groups.iter().flat_map(|group| [&[4, 0, 0, 0], &group[..]].concat()).collect();
            let count = groups.len() as u8;
            ipv6(0, from, to, &[&alert[..], &[kind, 0, 0, 0, 0, 0, 0, count], &records].concat())
        }
        135 | 136 => {
            let target = if from == [0; 16] { V6 } else { from };
            ipv6(58, from, to, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target].concat())
        }
        _ => ipv6(58, from, to, &[kind, 0, 0, 0, 0, 0, 0, 0]),
    };
    packet[7] = hops;
    packet
}

/// An ARP packet from this address.
pub fn arp_from(own: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
    packet.extend(own);
    packet.extend([0; 6]);
    packet.extend([10, 244, 1, 1]);
    packet
}
