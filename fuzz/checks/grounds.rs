//! Why a packet may pass, told plainly and without regard for the order in which `decide` asks.

use egress_common::packet::Flow;
use egress_common::wire::{
    ABI, APPROVAL_AUDIT, APPROVAL_CAME_IN, APPROVAL_LOOPBACK, Addr, Approval, Config, DATAGRAM_TTL, Endpoint,
    FRAGMENT_TTL, IDENTITY_WORLD, PROTOCOL_ANY, Ports, RowKey, WITNESS_CAME_IN, WITNESS_CLOSED,
    WITNESS_FRAGMENT, WITNESS_STOOD, WITNESS_TTL, Witness,
};
use egress_common::{Action, Decision, Hook, Owner as _, Reason, Socket, View as _};

use super::packet::plainly;
use super::scenario::Scenario;

/// Panics where a packet passes without a ground.
pub fn check(scenario: &Scenario, decision: &Decision) {
    let verdict = decision.verdict;
    match verdict.action {
        Action::Deny => assert_eq!(verdict.reason.action(), Action::Deny),
        Action::Audit => assert_eq!(verdict.reason.action(), Action::Deny),
        Action::Allow => assert_eq!(verdict.reason.action(), Action::Allow),
    }
    if verdict.action == Action::Deny {
        return;
    }
    let config = scenario.maps.config.filter(|config| config.abi == ABI);
    let config = config.expect("a configuration of this version");
    let case = Case { scenario, config, flow: plainly(&scenario.packet, scenario.meta.ethertype) };
    if scenario.meta.hook == Hook::Veth {
        let cgroup = scenario.maps.devices.get(&scenario.meta.ifindex).copied();
        assert_eq!(Some(decision.cgroup), cgroup, "the device's pod");
        assert_ne!(decision.cgroup, 0);
    }
    let grounded = match verdict.action {
        Action::Audit => case.audits(decision.cgroup),
        _ if decision.kept => case.keeps(verdict.reason),
        _ => case.allows(verdict.reason, decision.cgroup),
    };
    assert!(grounded, "{decision:?} {scenario:?}");
}

struct Case<'a> {
    scenario: &'a Scenario,
    config: Config,
    /// The packet, where it can be read to its end.
    flow: Option<Flow>,
}

impl Case<'_> {
    fn veth(&self) -> bool {
        self.scenario.meta.hook == Hook::Veth
    }

    /// It leaves by the pod's loopback device.
    fn on_loopback(&self) -> bool {
        !self.veth() && self.scenario.meta.ifindex == 1
    }

    fn pod(&self, cgroup: u64) -> Option<&Endpoint> {
        // At the socket it is the sender's, at one of the two levels of pods.
        let level = self.config.pod_root_level;
        let sender = &self.scenario.sender;
        let own = self.veth() || [level + 1, level + 2].iter().any(|level| sender.cgroup(*level) == cgroup);
        self.scenario.maps.endpoints.get(&cgroup).filter(|_| own)
    }

    fn allows(&self, reason: Reason, cgroup: u64) -> bool {
        let socket = self.scenario.sender.1;
        let pod = self.pod(cgroup);
        let unknown = !self.scenario.maps.endpoints.contains_key(&cgroup);
        let ordinary = !self.veth() || (socket != Socket::Packet && !self.scenario.meta.vlan);
        match reason {
            Reason::Allowed => {
                ordinary
                    && pod.is_some_and(|pod| {
                        pod.state == 2 && self.lawful_source(pod) && self.row_of(pod, cgroup, 1)
                    })
            }
            Reason::Unselected => pod.is_some_and(|pod| pod.state == 1),
            Reason::UnknownPodAllowed if self.config.unknown == 2 => unknown,
            Reason::UnknownPodAllowed => {
                unknown && ordinary && self.config.unknown == 1 && self.row(self.config.unknown_policy, 1)
            }
            Reason::Loopback => self.on_loopback() && self.to_itself(pod),
            Reason::WitnessedReply => {
                ordinary && self.replies(cgroup) && pod.is_none_or(|pod| pod.state <= 3)
            }
            Reason::Neighbour => self.veth() && ordinary && self.on_link(pod),
            Reason::FollowsFragment => self.veth() && ordinary && self.follows(cgroup),
            _ => false,
        }
    }

    /// The pod audits, or a rule of it.
    fn audits(&self, cgroup: u64) -> bool {
        let pod = self.pod(cgroup);
        let rule = || match pod {
            Some(pod) => self.row_of(pod, cgroup, 2),
            None => self.config.unknown == 1 && self.row(self.config.unknown_policy, 2),
        };
        pod.is_some_and(|pod| pod.state == 2 && pod.flags & 1 != 0)
            || (pod.is_none_or(|pod| pod.state == 2) && rule())
    }

    fn lawful_source(&self, pod: &Endpoint) -> bool {
        let own = |flow: Flow| {
            let own = if flow.version == 4 { pod.v4 } else { pod.v6 };
            own != Addr::default() && own == flow.source
        };
        let none = pod.v4 == Addr::default() && pod.v6 == Addr::default();
        pod.flags & 2 != 0 || none || self.flow.is_some_and(own)
    }

    /// A row says this of the packet, for the pod or for one of its proxies that sends it.
    fn row_of(&self, pod: &Endpoint, cgroup: u64, verdict: u8) -> bool {
        let sender = &self.scenario.sender;
        let level = self.config.pod_root_level;
        let containers = [level + 1, level + 2].into_iter().filter(|level| sender.cgroup(*level) == cgroup);
        let containers: Vec<u64> = containers.map(|level| sender.cgroup(level + 1)).collect();
        let proxies = pod
            .proxies
            .iter()
            .filter(|proxy| pod.lock != 0 && proxy.cgroup != 0 && containers.contains(&proxy.cgroup));
        self.row(pod.policy, verdict) || proxies.into_iter().any(|proxy| self.row(proxy.policy, verdict))
    }

    fn row(&self, policy: u64, verdict: u8) -> bool {
        let maps = &self.scenario.maps;
        let Some(flow) = self.flow else { return false };
        let to = flow.destination;
        let mut prefixes: Vec<_> = maps
            .cidrs
            .iter()
            .filter(|(cidr, _)| {
                let differ = u128::from_be_bytes(cidr.addr.0) ^ u128::from_be_bytes(to.0);
                differ.leading_zeros() >= cidr.bits
            })
            .collect();
        prefixes.sort();
        let longest = prefixes.last().map_or(IDENTITY_WORLD, |(_, identity)| **identity);
        let identity = maps.addresses.get(&to).copied().unwrap_or(longest);
        let port = flow.destination_port;
        let matches = |one: &Ports| {
            one.protocol == PROTOCOL_ANY
                || (one.protocol == flow.protocol && (one.low..=one.high).contains(&port))
        };
        let on_a_wire = !is_martian(&flow);
        let row = maps.rows.get(&RowKey { policy, identity });
        on_a_wire
            && row.is_some_and(|row| {
                row.ports().iter().find(|one| matches(one)).is_some_and(|one| one.verdict == verdict)
            })
    }

    /// Its destination is loopback, or the pod.
    fn to_itself(&self, pod: Option<&Endpoint>) -> bool {
        let packet = &self.scenario.packet;
        let to = match self.scenario.meta.ethertype {
            0x0800 => packet.get(16..20).and_then(|to| Some(Addr::v4(to.try_into().ok()?))),
            0x86dd => packet.get(24..40).and_then(|to| Some(Addr(to.try_into().ok()?))),
            _ => None,
        };
        let loopback = |to: Addr| to.is_loopback();
        let own = |to: Addr| pod.is_some_and(|pod| to != Addr::default() && (to == pod.v4 || to == pod.v6));
        to.is_some_and(|to| loopback(to) || own(to))
    }

    /// The socket's word for this very flow.
    fn keeps(&self, reason: Reason) -> bool {
        let (Some(flow), Some(kept)) = (self.flow, self.scenario.sender.2) else { return false };
        let device = self.scenario.maps.devices.get(&self.scenario.meta.ifindex);
        let here = if self.veth() {
            device == Some(&kept.cgroup)
                && !self.scenario.meta.vlan
                && !matches!(reason, Reason::Unselected | Reason::UnknownPodAllowed)
        } else {
            kept.flags & APPROVAL_AUDIT == 0
        };
        let age = self.scenario.maps.now.saturating_sub(kept.given);
        here && kept.revision == self.config.revision
            && (!matches!(kept.protocol, 17 | 132) || age < DATAGRAM_TTL)
            && kept.reason == reason as u8
            && same(&flow, &kept)
            && (kept.flags & APPROVAL_LOOPBACK != 0) == self.on_loopback()
            && !(reason == Reason::WitnessedReply && begins(&flow))
            && !matches!(reason, Reason::Neighbour | Reason::FollowsFragment)
    }

    /// It answers what was seen, or what its socket knows to have come in.
    fn replies(&self, cgroup: u64) -> bool {
        let Some(flow) = self.flow else { return false };
        if begins(&flow) {
            return false;
        }
        let socket = self.scenario.sender.1;
        let came_in = |kept: &Approval| {
            kept.flags & APPROVAL_CAME_IN != 0
                && kept.cgroup == cgroup
                && same(&flow, kept)
                && flow.protocol == 6
        };
        if self.scenario.sender.2.as_ref().is_some_and(came_in) {
            return true;
        }
        let bare = usize::from(flow.payload) == self.scenario.packet.len();
        let echo = matches!(flow.protocol, 1 | 58);
        self.scenario.maps.witnesses.iter().any(|(key, seen)| {
            let ends = (seen.remote, key.local) == (flow.destination, flow.source);
            let ports = if echo {
                (seen.remote_port, seen.local_port) == (flow.echo, 0)
                    && matches!(flow.kind, 0 | 129)
                    && self.veth()
            } else {
                (seen.remote_port, seen.local_port) == (flow.destination_port, flow.source_port)
            };
            let kind = match (seen.kind, flow.protocol) {
                (WITNESS_STOOD, 6) => socket == Socket::Inet && flow.kind & 2 == 0,
                (WITNESS_CAME_IN | WITNESS_CLOSED, 6) if !self.veth() => {
                    let shakes = seen.kind == WITNESS_CAME_IN && flow.kind & 18 == 18;
                    let resets = bare && flow.kind & 6 == 4;
                    socket == Socket::Listening && (shakes || resets)
                }
                (WITNESS_CAME_IN | WITNESS_CLOSED, 6) => bare && socket != Socket::Inet,
                (WITNESS_CAME_IN, _) => self.veth() || socket == Socket::Inet,
                _ => false,
            };
            let recent = seen.kind == WITNESS_STOOD || self.age(seen) < WITNESS_TTL;
            ends && ports
                && kind
                && recent
                && seen.protocol == flow.protocol
                && seen.cgroup == cgroup
                && cgroup != 0
        })
    }

    fn age(&self, seen: &Witness) -> u64 {
        self.scenario.maps.now().saturating_sub(seen.seen)
    }

    fn follows(&self, cgroup: u64) -> bool {
        self.scenario.maps.witnesses.values().any(|seen| {
            seen.kind == WITNESS_FRAGMENT
                && seen.cgroup == cgroup
                && seen.protocol != 6
                && self.age(seen) < FRAGMENT_TTL
        })
    }

    /// ARP, or what finds neighbours on the link.
    fn on_link(&self, pod: Option<&Endpoint>) -> bool {
        if self.scenario.meta.ethertype == 0x0806 {
            return true;
        }
        let Some(flow) = self.flow.filter(|flow| flow.protocol == 58) else { return false };
        let (to, hops) = (flow.destination.0, self.scenario.packet[7]);
        let link = (to[0] == 0xff && to[1] == 2) || (to[0] == 0xfe && to[1] & 0xc0 == 0x80);
        let beside = pod.is_some_and(|pod| pod.v6 != Addr::default() && pod.v6.0[..8] == to[..8]);
        match flow.kind {
            131 | 132 | 143 => hops == 1 && link,
            133 => hops == 255 && link,
            135 | 136 => hops == 255 && self.scenario.packet.len() >= 64 && (link || beside),
            _ => false,
        }
    }
}

fn begins(flow: &Flow) -> bool {
    flow.protocol == 6 && flow.kind & 18 == 2
}

fn is_martian(flow: &Flow) -> bool {
    let to = flow.destination.0;
    match flow.version {
        4 => matches!(to[12], 0 | 127),
        _ => to[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] || (to[..15] == [0; 15] && to[15] < 2),
    }
}

fn same(flow: &Flow, kept: &Approval) -> bool {
    (flow.source, flow.destination, flow.source_port, flow.destination_port)
        == (kept.source, kept.destination, kept.source_port, kept.destination_port)
        && (flow.protocol, flow.version) == (kept.protocol, kept.version)
}
