//! Whether labels, addresses and ports are meant.

use std::net::IpAddr;

use super::{Protocol, Target};
use crate::object::{CidrPeer, Labels, Port, Ports, Requirement, Selector};

/// `metav1.LabelSelector`: every requirement holds.
pub(super) fn labels_match(selector: &Selector, labels: &Labels) -> bool {
    for requirement in &selector.0 {
        let holds = match requirement {
            Requirement::In(key, values) => match labels.get(key) {
                Some(value) => values.contains(value),
                None => false,
            },
            Requirement::NotIn(key, values) => match labels.get(key) {
                Some(value) => !values.contains(value),
                None => true,
            },
            Requirement::Exists(key) => labels.get(key).is_some(),
            Requirement::DoesNotExist(key) => labels.get(key).is_none(),
        };
        if !holds {
            return false;
        }
    }
    true
}

/// The label that a requirement is about.
pub(super) fn label_of(requirement: &Requirement) -> &str {
    match requirement {
        Requirement::In(key, _)
        | Requirement::NotIn(key, _)
        | Requirement::Exists(key)
        | Requirement::DoesNotExist(key) => key,
    }
}

/// Whether a prefix holds an address that none of its exceptions holds.
pub(super) fn prefix_holds(peer: &CidrPeer, address: IpAddr) -> bool {
    let holds = |bits: u32, network: [u8; 16]| {
        let (network, address) = (bit_string(network), bit_string(on_the_wire(address)));
        network.iter().zip(&address).take(bits as usize).all(|(a, b)| a == b)
    };
    holds(peer.cidr.bits, peer.cidr.addr.0)
        && !peer.except.iter().any(|except| holds(except.bits, except.addr.0))
}

/// The form in which the objects hold prefixes: IPv4 as IPv4-mapped IPv6.
fn on_the_wire(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn bit_string(octets: [u8; 16]) -> Vec<bool> {
    octets.iter().flat_map(|octet| (0..8).map(move |bit| octet & (0x80 >> bit) != 0)).collect()
}

/// Whether a number is that of a protocol which has ports.
pub(super) fn is_protocol(number: u8, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp => number == 6,
        Protocol::Udp => number == 17,
        Protocol::Sctp => number == 132,
        Protocol::Icmp => false,
    }
}

/// Whether ports hold the one of the target; those by name are looked up in its pod.
pub(super) fn ports_hold(ports: &Ports, target: Target<'_>) -> bool {
    let listed = match ports {
        Ports::All => return true,
        Ports::Listed(listed) => listed,
    };
    listed.iter().any(|port| match port {
        Port::Range(range) => {
            is_protocol(range.protocol, target.protocol)
                && range.low <= target.port
                && target.port <= range.high
        }
        Port::Named(number, name) => {
            is_protocol(*number, target.protocol)
                && target.pod.is_some_and(|pod| {
                    pod.spec.named_ports.iter().any(|named| {
                        named.name == *name && named.protocol == *number && named.port == target.port
                    })
                })
        }
    })
}

/// Whether ports by number hold a port of a service.
pub(super) fn ports_hold_number(ports: &Ports, number: u8, port: u16) -> bool {
    match ports {
        Ports::All => true,
        Ports::Listed(listed) => listed.iter().any(|one| match one {
            Port::Range(range) => range.protocol == number && (range.low..=range.high).contains(&port),
            Port::Named(..) => false,
        }),
    }
}
