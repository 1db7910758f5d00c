//! The fast path: the verdict that is kept with a packet's socket, as long as it holds.
//!
//! Invariant: whatever is not plainly the packet of the flow that was judged, under the revision that judged it, is judged
//! afresh. So this answers no packet that [`judge`](crate::decide::judge) need not have seen the like of.

use crate::decide::ready;
use crate::packet::{Bytes, ETHERTYPE_IPV4, ETHERTYPE_IPV6, byte, protocol, tcp};
use crate::reason::Reason;
use crate::view::{Hook, LOOPBACK_IFINDEX, Meta, Owner, View};
use crate::wire::{APPROVAL_AUDIT, APPROVAL_LOOPBACK, Approval, DATAGRAM_TTL};
use crate::witness::is_datagram;

/// The reason for which the socket's flow was let pass, where this is a packet of it and that still holds.
#[must_use]
#[inline(always)]
pub fn established<V, O, B>(view: &V, owner: &O, packet: &B, meta: Meta) -> Option<Reason>
where
    V: View,
    O: Owner,
    B: Bytes + ?Sized,
{
    let kept = owner.approval()?;
    let config = ready(view)?;
    if kept.revision != config.revision || kept.cgroup == 0 {
        return None;
    }
    let veth = matches!(meta.hook, Hook::Veth);
    if veth {
        // The second hook takes the first one's word for its own pod.
        if meta.vlan || view.device(meta.ifindex) != Some(kept.cgroup) {
            return None;
        }
    } else if kept.flags & APPROVAL_AUDIT != 0 {
        // What is audited the first hook is to report each time.
        return None;
    }
    let loopback = !veth && meta.ifindex == LOOPBACK_IFINDEX;
    if (kept.flags & APPROVAL_LOOPBACK != 0) != loopback || !is_of(kept, packet, meta) {
        return None;
    }
    if is_datagram(kept.protocol) && view.now().saturating_sub(kept.given) >= DATAGRAM_TTL {
        return None;
    }
    const ALLOWED: u8 = Reason::Allowed as u8;
    const LOOPBACK: u8 = Reason::Loopback as u8;
    const UNSELECTED: u8 = Reason::Unselected as u8;
    const UNKNOWN: u8 = Reason::UnknownPodAllowed as u8;
    const REPLY: u8 = Reason::WitnessedReply as u8;
    match kept.reason {
        ALLOWED => Some(Reason::Allowed),
        REPLY => Some(Reason::WitnessedReply),
        LOOPBACK => Some(Reason::Loopback),
        // Who may send anything may forge its source, too: the second hook has to look.
        UNSELECTED if !veth => Some(Reason::Unselected),
        UNKNOWN if !veth => Some(Reason::UnknownPodAllowed),
        _ => None,
    }
}

/// Whether this is a whole packet of the flow, of the plainest form: no options, extension headers or fragments, and no SYN
/// that begins it again.
#[inline(always)]
fn is_of<B: Bytes + ?Sized>(kept: &Approval, packet: &B, meta: Meta) -> bool {
    match (kept.version, meta.ethertype) {
        (4, ETHERTYPE_IPV4) => {
            let Some([first, second, third, source, destination, ports, _]) = packet.head::<7>() else {
                return false;
            };
            byte(first, 0) == 0x45
                // Neither "more fragments" nor an offset.
                && second & const { 0x3fff_u32.to_be() } == 0
                && source == kept.source.word(3)
                && destination == kept.destination.word(3)
                && is_transport(kept, byte(third, 1), ports)
                && is_whole::<B, 9>(kept, packet, meta, 20)
        }
        (6, ETHERTYPE_IPV6) => {
            let Some([first, second, a, b, c, d, e, f, g, h, ports, _]) = packet.head::<12>() else {
                return false;
            };
            let (from, to) = (&kept.source, &kept.destination);
            byte(first, 0) >> 4 == 6
                && (a == from.word(0) && b == from.word(1) && c == from.word(2) && d == from.word(3))
                && (e == to.word(0) && f == to.word(1) && g == to.word(2) && h == to.word(3))
                && is_transport(kept, byte(second, 2), ports)
                && is_whole::<B, 14>(kept, packet, meta, 40)
        }
        _ => false,
    }
}

#[inline(always)]
fn is_transport(kept: &Approval, protocol: u8, ports: u32) -> bool {
    protocol == kept.protocol
        && u32::from_be(ports) == u32::from(kept.source_port) << 16 | u32::from(kept.destination_port)
}

/// Whether the transport header is whole, the last of the first `HEAD` words being that of TCP's flags, and TCP does not begin
/// anew.
#[inline(always)]
fn is_whole<B: Bytes + ?Sized, const HEAD: usize>(
    kept: &Approval,
    packet: &B,
    meta: Meta,
    start: u32,
) -> bool {
    match kept.protocol {
        protocol::UDP => true,
        protocol::SCTP => meta.length >= start + 12,
        protocol::TCP if meta.length >= start + 20 => match packet.head::<HEAD>() {
            Some(head) => byte(head[HEAD - 1], 1) & (tcp::SYN | tcp::ACK) != tcp::SYN,
            None => false,
        },
        _ => false,
    }
}
