//! Maps, a sender and a packet out of bytes. What there is to choose from is little, so that things meet.

use egress_common::connection;
use egress_common::packet::{Flow, read};
use egress_common::wire::{
    ABI, Addr, Approval, Cidr, Config, DATAGRAM_TTL, Endpoint, PROXIES, Ports, Proxy, ROW_ENTRIES, Row,
    RowKey, Witness,
};
use egress_common::{Hook, Meta, Socket, witness};

use crate::support::packets::{Ends, OUTSIDE_V4, OUTSIDE_V6};
use crate::support::{ETH0, LO, Maps, PEER, PEER_V4, PEER_V6, POD, POLICY, Sender, V4, V6, VETH};

/// Everything that a verdict depends on.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub maps: Maps,
    pub sender: Sender,
    pub meta: Meta,
    pub packet: Vec<u8>,
}

/// Bytes to choose by; zeroes when they are used up.
struct Draw<'a>(&'a [u8]);

impl Draw<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// One of these.
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// True for one byte in `share`.
    fn rarely(&mut self, share: u8) -> bool {
        self.byte() % share == share - 1
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn addr(&mut self) -> Addr {
        let mut one = [0; 16];
        one[15] = 1;
        let mut beside = V6;
        beside[15] = 0x77;
        let on_link = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        self.of(&[
            Addr::v4(V4),
            Addr::v4(PEER_V4),
            Addr::v4(OUTSIDE_V4),
            Addr(V6),
            Addr(PEER_V6),
            Addr(OUTSIDE_V6),
            Addr(beside),
            Addr(on_link),
            Addr::v4([127, 0, 0, 1]),
            Addr(one),
            Addr::v4([0; 4]),
            Addr([0; 16]),
        ])
    }

    /// An address of the other version is none of the packet's.
    fn addr_like(&mut self, other: Addr) -> Addr {
        let addr = self.addr();
        if addr.is_v4() == other.is_v4() { addr } else { other }
    }

    fn port(&mut self) -> u16 {
        self.of(&[443, 80, 8080, 50_000, 0, 65_535])
    }

    fn cgroup(&mut self) -> u64 {
        self.of(&[POD, POD, POD, POD + 1, 1000, 77, 0])
    }

    fn policy(&mut self) -> u64 {
        self.of(&[POLICY, 2, 3, 4, 0])
    }

    fn identity(&mut self) -> u64 {
        self.of(&[PEER, egress_common::wire::IDENTITY_WORLD, 2])
    }

    fn protocol(&mut self) -> u8 {
        self.of(&[6, 17, 132, 1, 58, 0, 47, 44, 60])
    }

    fn flags(&mut self) -> u32 {
        self.of(&[0, 0, 0, 1, 2, 3, 255])
    }

    fn endpoint(&mut self) -> Endpoint {
        let mut endpoint = Endpoint {
            policy: self.policy(),
            lock: self.of(&[0, 0, 4, 3]),
            state: self.of(&[2, 2, 2, 2, 1, 3, 0, 9]),
            flags: self.flags(),
            v4: self.of(&[Addr::v4(V4), Addr::v4(V4), Addr::default()]),
            v6: self.of(&[Addr(V6), Addr(V6), Addr::default()]),
            ..Endpoint::default()
        };
        if endpoint.lock != 0 {
            let at = usize::from(self.byte()) % PROXIES;
            endpoint.proxies[at] = Proxy { cgroup: self.of(&[1000, 1001, 0]), policy: self.policy() };
        }
        endpoint
    }

    fn row(&mut self) -> Row {
        let entries: Vec<_> = (0..self.byte() % 4)
            .map(|_| {
                let (low, high) = (self.port(), self.port());
                let verdict = self.of(&[1, 1, 1, 2, 0, 254, 255]);
                Ports { protocol: self.of(&[6, 17, 132, 0]), verdict, rule: self.word(), low, high }
            })
            .collect();
        let mut row = Row::new(&entries).unwrap();
        if self.rarely(16) {
            row.len = self.of(&[0, 1, ROW_ENTRIES as u32, ROW_ENTRIES as u32 + 1, u32::MAX]);
        }
        row
    }

    fn maps(&mut self) -> Maps {
        let config = Config {
            abi: if self.rarely(32) { self.of(&[0, ABI + 1]) } else { ABI },
            pod_root_level: 1,
            revision: 9,
            unknown_policy: self.policy(),
            unknown: self.of(&[0, 1, 2, 7]),
            reserved: 0,
        };
        let mut maps = Maps::new();
        maps.config = if self.rarely(64) { None } else { Some(config) };
        maps.endpoints.clear();
        for _ in 0..1 + self.byte() % 2 {
            let cgroup = self.cgroup();
            maps.endpoints.insert(cgroup, self.endpoint());
        }
        maps.addresses.clear();
        for _ in 0..self.byte() % 4 {
            let addr = self.addr();
            maps.addresses.insert(addr, self.identity());
        }
        for _ in 0..self.byte() % 4 {
            let (addr, bits) = (self.addr(), self.of(&[0u32, 8, 64, 96, 104, 120, 127, 128]));
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            let addr = Addr((u128::from_be_bytes(addr.0) & mask).to_be_bytes());
            maps.cidrs.insert(Cidr { bits, addr }, self.identity());
        }
        maps.rows.clear();
        for _ in 0..self.byte() % 6 {
            let key = RowKey { policy: self.policy(), identity: self.identity() };
            maps.rows.insert(key, self.row());
        }
        if self.rarely(8) {
            maps.devices = [(VETH, self.cgroup())].into();
        }
        maps
    }

    fn socket(&mut self) -> Socket {
        let socket = Socket::Inet;
        self.of(&[socket, socket, Socket::None, Socket::Listening, Socket::Raw, Socket::Packet])
    }

    fn sender(&mut self) -> Sender {
        let ancestors = self.of(&[
            [1, 10, 20, POD, 1000, 0],
            [1, 10, 20, POD, 1001, 0],
            [1, 10, POD, 1000, 0, 0],
            [1, 10, 20, POD + 1, 1000, 0],
            [1, 10, 20, 77, 1000, 0],
            [1, 10, 20, 30, POD, 1000],
            [0; 6],
        ]);
        Sender(ancestors, self.socket(), None)
    }

    /// A packet that is put together, or the bytes that are left.
    fn packet(&mut self) -> Vec<u8> {
        if self.rarely(16) {
            return std::mem::take(&mut self.0).iter().copied().take(200).collect();
        }
        let from = self.addr();
        let (to, from_port, to_port) = (self.addr_like(from), self.port(), self.port());
        let ends = Ends { from, from_port, to, to_port };
        let flags = self.of(&[2, 16, 18, 4, 17, 0, 0x42]);
        let mut packet = match self.protocol() {
            6 => ends.tcp(flags, self.of(&[0, 0, 4, 20])),
            17 => ends.udp(),
            132 => ends.sctp(),
            1 | 58 => {
                let kind = self.of(&[0u8, 8, 128, 129, 131, 133, 135, 136, 143]);
                ends.icmp(kind, self.port())
            }
            other => ends.packet(other, &[self.of(&[6, 17, 58]); 40]),
        };
        // Fragments, options, hop limits; then anything anywhere, and an end that is missing.
        if self.rarely(4) {
            let at = self.of(&[0usize, 6, 7, 7, 4, 5, 9, 33, 53, 32]);
            let byte = self.byte();
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        if self.rarely(16) {
            packet.truncate(usize::from(self.byte()));
        }
        packet
    }

    /// What was seen, or kept, of the packet's flow, one field of it changed now and then.
    fn memory(&mut self, scenario: &mut Scenario) {
        let mut flow = Flow::default();
        let _refused = read(scenario.packet.as_slice(), scenario.meta.ethertype, &mut flow);
        let cgroup = self.cgroup();
        let mut kept = Approval {
            revision: self.of(&[9, 9, 9, 8]),
            cgroup,
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            protocol: flow.protocol,
            version: flow.version,
            reason: self.of(&[1, 5, 2, 3, 4, 6, 7, 29, 0]),
            flags: self.of(&[0, 0, 0, 1, 2, 4, 8, 255]),
            given: scenario.maps.now,
        };
        match self.byte() % 16 {
            // The kernel keeps what was read, in which addresses of IPv4 have but one form.
            8 => kept.source = of(kept.version, self.addr()),
            9 => kept.destination = of(kept.version, self.addr()),
            10 => kept.source_port = self.port(),
            11 => kept.destination_port = self.port(),
            12 => kept.protocol = self.protocol(),
            13 => kept.version = self.byte(),
            14 => kept.given -= DATAGRAM_TTL,
            _ => {}
        }
        if self.rarely(2) {
            scenario.sender.2 = Some(kept);
        }
        for _ in 0..self.byte() % 3 {
            let cgroup = self.cgroup();
            let asked = Flow {
                source: flow.destination,
                destination: flow.source,
                source_port: flow.destination_port,
                destination_port: flow.source_port,
                kind: if flow.version == 6 { 128 } else { 8 },
                ..flow
            };
            let begin = Flow { kind: 2, ..asked };
            let asked = if flow.protocol == 6 { begin } else { asked };
            let parted = Flow { parted: true, ..flow };
            let now = scenario.maps.now;
            let drawn = match self.byte() % 4 {
                0 | 1 => witness::came_in(&asked),
                2 => witness::is_first_fragment(&parted).then(|| witness::datagram(&parted)),
                _ => None,
            };
            let half = drawn.unwrap_or_else(|| connection::half(&kept, 2 + self.byte() % 2));
            let (key, mut seen) = half.entry(cgroup, now);
            seen.seen = now.saturating_add_signed(self.of(&[
                0,
                -1_500_000_000,
                -119_000_000_000,
                -120_000_000_000,
                9,
            ]));
            self.change(&mut seen);
            scenario.maps.witnesses.insert(key, seen);
        }
    }

    fn change(&mut self, seen: &mut Witness) {
        match self.byte() % 16 {
            8 => seen.cgroup = self.cgroup(),
            9 => seen.remote = self.addr(),
            10 => seen.remote_port = self.port(),
            11 => seen.local_port = self.port(),
            12 => seen.protocol = self.protocol(),
            13 => seen.kind = self.byte(),
            _ => {}
        }
    }
}

impl Scenario {
    pub fn of(data: &[u8]) -> Self {
        let draw = &mut Draw(data);
        let hook = draw.of(&Hook::OF_PACKETS);
        let ifindex = match hook {
            Hook::Socket | Hook::Connect => draw.of(&[ETH0, ETH0, LO]),
            Hook::Veth => draw.of(&[VETH, VETH, VETH, ETH0]),
        };
        let (maps, sender) = (draw.maps(), draw.sender());
        let vlan = hook == Hook::Veth && draw.rarely(8);
        let changed =
            draw.of(&[None, None, None, None, Some(0x0800), Some(0x86dd), Some(0x0806), Some(0x88cc)]);
        // What is drawn last is what is changed most easily without changing the rest.
        let mut later = Draw(draw.0);
        let packet = later.packet();
        let own = if packet.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let meta = Meta { hook, ethertype: changed.unwrap_or(own), ifindex, length, vlan };
        let mut scenario = Self { maps, sender, meta, packet };
        later.memory(&mut scenario);
        scenario
    }
}

fn of(version: u8, addr: Addr) -> Addr {
    let [.., a, b, c, d] = addr.0;
    if version == 4 { Addr::v4([a, b, c, d]) } else { addr }
}
