//! What finds addresses on a link: ARP, and neighbour discovery of IPv6.
//!
//! Invariant: it passes in the forms that kernels send, of the pod's own address, and carries nothing of the sender's choice but
//! what is asked for.

use crate::packet::{
    self, Bytes, ETHERTYPE_ARP, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, Flow, icmp, protocol,
};
use crate::subject::owns;
use crate::view::{Meta, View};
use crate::wire::{Addr, Endpoint};

/// Whether a frame says of an address that it is the pod's, though on this node it is known to be somebody else's: by its source, or as
/// neighbours believe it (ARP, and advertisements of IPv6); or hides that, as a frame with two VLAN tags does. Not while no address of
/// the pod is known.
#[must_use]
#[inline(always)]
pub fn claims<V: View, B: Bytes + ?Sized>(
    view: &V,
    packet: &B,
    flow: &Flow,
    meta: &Meta,
    endpoint: Option<&Endpoint>,
    cgroup: u64,
) -> bool {
    let Some(endpoint) = endpoint else { return false };
    let claimed = if flow.version == 0 {
        // Under a second tag anything can be: a kernel takes off all that name no VLAN (`__netif_receive_skb_core`).
        if meta.ethertype == ETHERTYPE_VLAN || meta.ethertype == ETHERTYPE_SERVICE_VLAN {
            return !(endpoint.v4.is_zero() && endpoint.v6.is_zero());
        }
        if meta.ethertype != ETHERTYPE_ARP {
            return false;
        }
        match packet.words::<7>(0) {
            Some([_, _, _, a, b, _, _]) => of_sender(a, b),
            None => return false,
        }
    } else if flow.protocol == protocol::ICMPV6 && flow.kind == icmp::NEIGHBOUR_ADVERTISEMENT {
        let Some([_, second]) = packet.words::<2>(0) else { return false };
        if packet::byte(second, 2) != protocol::ICMPV6 {
            // Behind other headers no kernel sends one.
            return true;
        }
        match packet.words::<4>(48) {
            Some(target) => Addr::of(target),
            None => return false,
        }
    } else {
        flow.source
    };
    let own = endpoint.own(if claimed.is_v4() { 4 } else { 6 });
    if own.is_zero() || claimed.same(own) {
        return false;
    }
    let owner = view.owner(&claimed);
    owner != 0 && owner != cgroup
}

/// The sender's address in the fourth and fifth word of ARP.
#[inline(always)]
const fn of_sender(fourth: u32, fifth: u32) -> Addr {
    let (a, b) = (fourth.to_ne_bytes(), fifth.to_ne_bytes());
    Addr::v4([a[2], a[3], b[0], b[1]])
}

/// Whether this is what IPv4 says on an Ethernet link to find addresses (RFC 826), and no more; of the pod's own address, or of
/// none yet (RFC 5227).
///
/// `length` is that of the packet, `endpoint` the pod, where it is known. By itself, for the stacks of the kernel's programs.
#[inline(never)]
pub(crate) fn is_arp<B: Bytes + ?Sized>(packet: &B, length: u32, endpoint: Option<&Endpoint>) -> bool {
    /// Ethernet, IPv4, and the lengths of their addresses; a request or an answer.
    const KIND: u32 = 0x0001_0800_u32.to_be();
    const OPERATIONS: [u32; 2] = [0x0604_0001_u32.to_be(), 0x0604_0002_u32.to_be()];
    /// The shortest payload of an Ethernet frame.
    const PADDED: u32 = 46;
    let Some([first, second, _, a, b, _, _]) = packet.words::<7>(0) else {
        return false;
    };
    let own = of_sender(a, b);
    length <= PADDED
        && first == KIND
        && (second == OPERATIONS[0] || second == OPERATIONS[1])
        && (own.is_unspecified() || says_itself(endpoint, 4, &own))
}

/// Whether this is what IPv6 says on a link to find addresses, and no more. It goes no further than the link, or to an address of
/// the pod's own /64 (a neighbour that is asked whether it is still there); a router would have lowered the hop limit of 255
/// (RFC 4861, section 7.1), and listener reports have 1 (RFC 3810, section 5).
#[must_use]
#[inline(always)]
pub fn is_neighbour<B: Bytes + ?Sized>(
    packet: &B,
    flow: &Flow,
    length: u32,
    endpoint: Option<&Endpoint>,
) -> bool {
    /// IPv6, ICMPv6 and a target, with options for a link address and a nonce (RFC 3971, section 5.3.2).
    const LONGEST: u32 = 40 + 8 + 16 + 8 + 8;
    /// With a target, and no options.
    const SHORTEST: u32 = 40 + 8 + 16;
    if flow.protocol != protocol::ICMPV6 {
        return false;
    }
    let Some([_, second]) = packet.words::<2>(0) else {
        return false;
    };
    let (first_header, hops) = (packet::byte(second, 2), packet::byte(second, 3));
    let (from, to) = (&flow.source, &flow.destination);
    if !(from.is_link_scope() || from.is_unspecified() || says_itself(endpoint, 6, from)) {
        return false;
    }
    let on_link = to.is_link_scope();
    // Behind other headers no kernel sends these.
    let plain = first_header == protocol::ICMPV6 && length <= LONGEST && hops == 255;
    match flow.kind {
        icmp::NEIGHBOUR_SOLICITATION => plain && length >= SHORTEST && (on_link || shares_link(endpoint, to)),
        icmp::NEIGHBOUR_ADVERTISEMENT => {
            plain && (on_link || shares_link(endpoint, to)) && is_of_itself(packet, endpoint)
        }
        icmp::ROUTER_SOLICITATION => plain && on_link,
        // Listener reports come with an option that says "router alert".
        icmp::LISTENER_V2 => first_header == 0 && hops == 1 && on_link && reports_neighbours(packet, length),
        kind if kind == icmp::LISTENER_V1[0] || kind == icmp::LISTENER_V1[1] => {
            first_header == 0 && hops == 1 && on_link && length == 72 && asks_for_neighbours(packet, 56)
        }
        _ => false,
    }
}

/// Whether a report (RFC 3810, section 5.2) is of groups alone by which neighbours are found, or that have a short number on the link:
/// any other is of the sender's choice, to the last bit. A kernel reports all its groups at once.
#[inline(always)]
fn reports_neighbours<B: Bytes + ?Sized>(packet: &B, length: u32) -> bool {
    /// IPv6, an option, and the fixed part of the report; then records of this size.
    const FIXED: u32 = 56;
    const RECORD: u32 = 20;
    const MOST: u32 = 4;
    let Some([_, counted]) = packet.words::<2>(48) else {
        return false;
    };
    let count = u32::from_be(counted) & 0xffff;
    if count > MOST || length != FIXED + count * RECORD {
        return false;
    }
    let mut i = 0;
    while i < MOST {
        if i < count {
            let at = FIXED + i * RECORD;
            let Some([header]) = packet.words::<1>(at) else {
                return false;
            };
            // No auxiliary data and no sources.
            if u32::from_be(header) & 0x00ff_ffff != 0 || !asks_for_neighbours(packet, at + 4) {
                return false;
            }
        }
        i += 1;
    }
    true
}

/// Whether the address at an offset is a solicited-node multicast address (RFC 4291, section 2.7.1), or one of `ff02::/112`, as mDNS has.
#[inline(always)]
fn asks_for_neighbours<B: Bytes + ?Sized>(packet: &B, at: u32) -> bool {
    match packet.words::<4>(at) {
        Some(words) => {
            let group = Addr::of(words);
            group.is_solicited_node() || group.is_short_link_group()
        }
        None => false,
    }
}

/// Whether an advertisement is of an address that the pod may call its own: of another one's, it would be sent what is the other's.
#[inline(always)]
fn is_of_itself<B: Bytes + ?Sized>(packet: &B, endpoint: Option<&Endpoint>) -> bool {
    match packet.words::<4>(48) {
        Some(words) => {
            let target = Addr::of(words);
            target.is_link_scope() || says_itself(endpoint, 6, &target)
        }
        None => false,
    }
}

/// Whether the pod may call this address its own on a link: it is, or none of this version is known.
#[inline(always)]
fn says_itself(endpoint: Option<&Endpoint>, version: u8, addr: &Addr) -> bool {
    endpoint.is_none_or(|endpoint| endpoint.own(version).is_zero() || owns(endpoint, version, addr))
}

/// Whether an address is one of the pod's own /64.
#[inline(always)]
fn shares_link(endpoint: Option<&Endpoint>, addr: &Addr) -> bool {
    endpoint.is_some_and(|endpoint| !endpoint.v6.is_zero() && endpoint.v6.high() == addr.high())
}
