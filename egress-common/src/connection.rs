//! TCP connections that came in: what tells it when they are established, also where netfilter in the pod led them to another port.
//!
//! Invariant: as in [`witness`](crate::witness). Tested by `tests/witness.rs`, and by `threats/redirected.rs` of the agent.

use crate::packet::{Flow, protocol, tcp};
use crate::view::View;
use crate::wire::{Approval, WITNESS_CAME_IN, WITNESS_TRANSLATED, WITNESS_TTL};
use crate::witness::{FIRST, Half, SECOND, answered};

/// The cgroup of the pod that a TCP connection, which has just been established, came in to, and its port there as packets have it: its
/// SYN was seen a short time ago.
#[must_use]
#[inline(always)]
pub fn came_in_to<V: View>(view: &V, kept: &Approval) -> Option<(u64, u16)> {
    let direct = half(kept, WITNESS_CAME_IN);
    if let Some((cgroup, _)) = latest(view, &direct) {
        return Some((cgroup, kept.source_port));
    }
    // Led, within the pod, to the socket that listens at the port it has.
    latest(view, &Half { began: 2, ..half(kept, WITNESS_TRANSLATED) })
}

/// The pod and [`Witness::wire_port`] of what was seen last of a flow, of one kind.
#[inline(always)]
fn latest<V: View>(view: &V, half: &Half) -> Option<(u64, u16)> {
    let now = view.now();
    let of = |choice| {
        let seen = view.witness(&half.key(choice))?;
        let lately = now.saturating_sub(seen.seen) <= WITNESS_TTL;
        (seen.kind == half.kind && half.is_flow(seen) && lately).then_some(seen)
    };
    // Where the address was another pod's a moment ago, and the client's port is the same, that one's may still be there.
    let seen = match (of(FIRST), of(SECOND)) {
        (Some(first), Some(second)) if second.seen > first.seen => second,
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => return None,
    };
    Some((seen.cgroup, seen.wire_port))
}

/// What to remember where the socket that listens at `port` says, by a SYN-ACK, that a connection stands which came in to another port:
/// netfilter in the pod leads it there, as that of a mesh does, and the accepted socket will know the port of the listening one only.
#[must_use]
#[inline(always)]
pub fn leads_to<V: View>(view: &V, flow: &Flow, cgroup: u64, port: u16) -> Option<Half> {
    if port == flow.source_port || flow.protocol != protocol::TCP || !flow.has(tcp::SYN | tcp::ACK, 0) {
        return None;
    }
    let mut half = answered(flow);
    let found = view.found(&half, cgroup);
    if found.kind != WITNESS_CAME_IN || !found.recent {
        return None;
    }
    (half.local_port, half.began, half.kind) = (port, 2, WITNESS_TRANSLATED);
    Some(half)
}

/// What to remember of a lawful connection that was closed, or that stood before us.
#[must_use]
#[inline(always)]
pub fn half(kept: &Approval, kind: u8) -> Half {
    Half {
        local: kept.source,
        remote: kept.destination,
        remote_port: kept.destination_port,
        local_port: kept.source_port,
        protocol: protocol::TCP,
        began: 0,
        kind,
        reserved: 0,
    }
}
