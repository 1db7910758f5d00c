//! Replies: what may leave because it answers something that came in.
//!
//! Invariant: nothing counts as a reply because of how it looks. What came in was seen on the node's side of the pod's
//! veth, for this very pod and flow; what begins a connection is never a reply, nor is what a raw or packet socket sends.

use crate::decide::Said;
use crate::packet::{Flow, icmp, protocol, tcp};
use crate::view::{Hook, Meta, Owner, Socket, View};
use crate::wire::{
    APPROVAL_CAME_IN, Addr, POLICY_SENT_ON, RowKey, WITNESS_BEGAN, WITNESS_CAME_IN, WITNESS_CLOSED,
    WITNESS_FRAGMENT, WITNESS_SLOTS, WITNESS_STOOD, WITNESS_TTL, Witness, WitnessKey,
};

/// The two slots of a flow among those of its local address. They spread, no more: a flow finds no place only where both hold
/// others, and takes that of the one that was written longer ago, which has to come in again then. With one slot each, a server
/// that is far from its clients would lose handshakes to one another: of 1,000 at once about one in 16, now one in 270.
#[must_use]
#[inline(always)]
pub const fn slots(remote: &Addr, remote_port: u16, local_port: u16, protocol: u8) -> [u32; 2] {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let ports = (remote_port as u64) << 24 | (local_port as u64) << 8 | protocol as u64;
    let mixed = (remote.high().wrapping_mul(MIX) ^ remote.low()).wrapping_mul(MIX) ^ ports;
    let mixed = mixed.wrapping_mul(MIX);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(MIX);
    [(mixed >> 48) as u32 % WITNESS_SLOTS, (mixed >> 32) as u32 % WITNESS_SLOTS]
}

/// A flow as it was seen coming in, or as an answer to it would be looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Half {
    /// The pod's address.
    pub local: Addr,
    /// The other end's address.
    pub remote: Addr,
    /// The other end's port; an echo's identifier.
    pub remote_port: u16,
    /// The pod's port; 0 for an echo.
    pub local_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`WitnessKey::began`].
    pub began: u8,
    /// [`Witness::kind`] where it is to be remembered; does not count where it is looked up.
    pub kind: u8,
    /// Zero.
    pub reserved: u8,
}

/// What was seen of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// [`Witness::kind`], 0 for nothing.
    pub kind: u8,
    /// It is not as long ago as [`Witness::limit`].
    pub recent: bool,
}

/// Looks up what was seen of a flow for the pod of `cgroup`; nothing where that was another flow or another pod's.
#[inline(always)]
pub fn find<V: View>(view: &V, half: &Half, cgroup: u64) -> Found {
    // One key for both: there is no room for two on the stacks of programs.
    let mut key = half.key(FIRST);
    let first = at(view, &key, half, cgroup);
    if first.kind != 0 {
        return first;
    }
    key.slot = half.slot(SECOND);
    at(view, &key, half, cgroup)
}

#[inline(always)]
fn at<V: View>(view: &V, key: &WitnessKey, half: &Half, cgroup: u64) -> Found {
    const NOTHING: Found = Found { kind: 0, recent: false };
    let Some(seen) = view.witness(key) else {
        return NOTHING;
    };
    if cgroup == 0 || !half.is_of(seen, cgroup) {
        return NOTHING;
    }
    // Two processors' clocks may differ by a little, so that what was seen "later" is now.
    let age = view.now().saturating_sub(seen.seen);
    Found { kind: seen.kind, recent: age < seen.limit() }
}

/// One of a flow's places, see [`slots`].
pub const FIRST: usize = 0;
/// The other one.
pub const SECOND: usize = 1;

/// Where to write what was seen of a flow, given what is in its first and second place: where the same flow is, else where nothing is,
/// else where what was written longer ago is. Nothing where the same was written a short time ago.
#[must_use]
#[inline(always)]
pub fn place(new: &Witness, first: Option<&Witness>, second: Option<&Witness>) -> Option<usize> {
    let suits = |old| match old {
        None => EMPTY,
        Some(old) => suits(new, old),
    };
    let (first, second) = (suits(first), suits(second));
    if first == WRITTEN || second == WRITTEN {
        return None;
    }
    Some(if second > first { SECOND } else { FIRST })
}

/// The same is there, and was written a short time ago.
const WRITTEN: u64 = u64::MAX;
/// The same flow is there.
const SAME: u64 = u64::MAX - 1;
/// Nothing is there.
const EMPTY: u64 = u64::MAX - 2;

/// How well an entry would stand where an old one is: better the higher. By itself for the stacks of programs.
#[inline(never)]
fn suits(new: &Witness, old: &Witness) -> u64 {
    let age = new.seen.saturating_sub(old.seen);
    let same = old.is_of_flow(new);
    let equal = old.kind == new.kind && old.wire_port == new.wire_port;
    // Of fragments there may be another datagram in a moment, with the same number.
    let again = if new.kind == WITNESS_FRAGMENT { 0 } else { WITNESS_TTL / 8 };
    if same && equal && age < again {
        WRITTEN
    } else if same {
        SAME
    } else if old.kind == WITNESS_STOOD {
        // Nobody will see it come in again.
        0
    } else {
        age
    }
}

impl Half {
    /// Whether something was seen of this flow, for the pod of `cgroup`.
    #[must_use]
    #[inline(always)]
    pub fn is_of(&self, seen: &Witness, cgroup: u64) -> bool {
        seen.cgroup == cgroup && self.is_flow(seen)
    }

    /// Whether something was seen of this flow, for whichever pod had the address.
    #[inline(always)]
    pub(crate) fn is_flow(&self, seen: &Witness) -> bool {
        seen.remote.same(&self.remote)
            && seen.remote_port == self.remote_port
            && seen.local_port == self.local_port
            && seen.protocol == self.protocol
    }

    /// Its [`FIRST`] or [`SECOND`] place.
    #[must_use]
    #[inline(always)]
    pub fn key(&self, choice: usize) -> WitnessKey {
        WitnessKey { local: self.local, slot: self.slot(choice), began: u32::from(self.began) }
    }

    /// The slot of that place.
    #[must_use]
    #[inline(always)]
    pub const fn slot(&self, choice: usize) -> u32 {
        let slots = slots(&self.remote, self.remote_port, self.local_port, self.protocol);
        if choice == FIRST { slots[FIRST] } else { slots[SECOND] }
    }

    /// What to write, and its first place.
    #[must_use]
    #[inline(always)]
    pub fn entry(&self, cgroup: u64, now: u64) -> (WitnessKey, Witness) {
        let mut witness = Witness::default();
        self.write(&mut witness, cgroup, now);
        (self.key(FIRST), witness)
    }

    /// Writes what is to be remembered, in place: copies would not fit the stacks of programs.
    #[inline(always)]
    pub fn write(&self, to: &mut Witness, cgroup: u64, now: u64) {
        to.cgroup = cgroup;
        to.seen = now;
        to.remote = self.remote;
        to.remote_port = self.remote_port;
        to.local_port = self.local_port;
        to.protocol = self.protocol;
        to.kind = self.kind;
    }
}

/// The flow by which an outgoing packet would answer.
#[inline(always)]
pub(crate) fn answered(flow: &Flow) -> Half {
    let echo = flow.protocol == protocol::ICMP || flow.protocol == protocol::ICMPV6;
    Half {
        local: flow.source,
        remote: flow.destination,
        remote_port: if echo { flow.echo } else { flow.destination_port },
        local_port: if echo { 0 } else { flow.source_port },
        protocol: flow.protocol,
        began: 0,
        kind: 0,
        reserved: 0,
    }
}

/// The datagram that a fragment belongs to: what to remember of it.
#[must_use]
#[inline(always)]
pub fn datagram(flow: &Flow) -> Half {
    Half {
        local: flow.source,
        remote: flow.destination,
        remote_port: (flow.fragment >> 16) as u16,
        local_port: flow.fragment as u16,
        protocol: flow.protocol,
        began: 0,
        kind: WITNESS_FRAGMENT,
        reserved: 0,
    }
}

/// What to remember of a packet on its way into the pod of `cgroup`; nothing of one that begins nothing, nor of one whose answer would be
/// sent on. What answers datagrams that the pod began to send is one more reason to remember that, and no more.
#[must_use]
#[inline(always)]
pub fn arrived<V: View>(view: &V, flow: &Flow, cgroup: u64) -> Option<Half> {
    let mut half = came_in(flow)?;
    if is_datagram(flow.protocol) {
        half.began = 1;
        let found = view.found(&half, cgroup);
        if found.kind == WITNESS_BEGAN && found.recent {
            half.kind = WITNESS_BEGAN;
            return Some(half);
        }
        half.began = 0;
    }
    if is_sent_on(view, flow) { None } else { Some(half) }
}

/// Whether what is sent to the source of a packet goes on to somebody else, whom a service leads to that has this address and port: netfilter
/// knows an answer as one only as long as it remembers the question, which is less than we do.
#[inline(always)]
fn is_sent_on<V: View>(view: &V, flow: &Flow) -> bool {
    if flow.protocol != protocol::TCP && !is_datagram(flow.protocol) {
        return false;
    }
    let Some(identity) = view.address(&flow.source) else { return false };
    let key = RowKey { policy: POLICY_SENT_ON, identity };
    view.said(&key, flow.protocol, flow.source_port).verdict != Said::NOTHING
}

/// Whether a packet that the pod of `cgroup` sends by its own right begins something, the other end not having begun it. Of
/// datagrams only: how a connection began is seen in its first packet.
#[must_use]
#[inline(always)]
pub fn begins<V: View>(view: &V, flow: &Flow, cgroup: u64) -> bool {
    if !is_datagram(flow.protocol) {
        return false;
    }
    let found = view.found(&answered(flow), cgroup);
    !(found.kind == WITNESS_CAME_IN && found.recent)
}

/// What to remember of a packet that `begins` something.
#[must_use]
#[inline(always)]
pub fn begun(flow: &Flow) -> Half {
    // Not by way of `answered`: there is no room for a copy on the stacks of programs.
    Half {
        local: flow.source,
        remote: flow.destination,
        remote_port: flow.destination_port,
        local_port: flow.source_port,
        protocol: flow.protocol,
        began: 1,
        kind: WITNESS_BEGAN,
        reserved: 0,
    }
}

/// Whether a protocol is one of messages that may come from either end at any time, as far as we look.
#[inline(always)]
pub(crate) const fn is_datagram(protocol: u8) -> bool {
    protocol == protocol::UDP || protocol == protocol::SCTP
}

/// What to remember of a packet on its way in, where nothing is known of its flow; nothing of one that begins nothing.
#[must_use]
#[inline(always)]
pub fn came_in(flow: &Flow) -> Option<Half> {
    let begins = match flow.protocol {
        protocol::TCP => flow.has(tcp::SYN, tcp::ACK),
        protocol::UDP | protocol::SCTP => true,
        protocol::ICMP => flow.kind == icmp::ECHO_V4,
        protocol::ICMPV6 => flow.kind == icmp::ECHO_V6,
        _ => false,
    };
    if !begins {
        return None;
    }
    let echo = flow.protocol == protocol::ICMP || flow.protocol == protocol::ICMPV6;
    Some(Half {
        local: flow.destination,
        remote: flow.source,
        remote_port: if echo { flow.echo } else { flow.source_port },
        local_port: if echo { 0 } else { flow.destination_port },
        protocol: flow.protocol,
        began: 0,
        kind: WITNESS_CAME_IN,
        reserved: 0,
    })
}

/// Whether later fragments may follow a packet that passes. TCP is left out: a later fragment could put other flags in the place
/// of those that were judged (RFC 1858, section 3.2).
#[must_use]
#[inline(always)]
pub const fn is_first_fragment(flow: &Flow) -> bool {
    flow.parted && flow.protocol != protocol::TCP
}

/// Whether a later fragment follows one that has passed.
#[inline(never)]
pub(crate) fn follows<V: View>(view: &V, flow: &Flow, cgroup: u64) -> bool {
    if flow.protocol == protocol::TCP {
        return false;
    }
    let found = view.found(&datagram(flow), cgroup);
    found.kind == WITNESS_FRAGMENT && found.recent
}

/// Whether a packet answers what came in; `cgroup` is the pod's.
#[must_use]
#[inline(always)]
pub fn reply<V, O>(view: &V, owner: &O, flow: &Flow, meta: &Meta, cgroup: u64) -> bool
where
    V: View,
    O: Owner,
{
    // Everything but a TCP connection is answered from the table alone; of that, the socket knows more.
    let socket = owner.socket();
    if flow.protocol == protocol::TCP {
        // A connection that the pod begins.
        if flow.has(tcp::SYN, tcp::ACK) {
            return false;
        }
        if let Some(kept) = owner.approval()
            && kept.flags & APPROVAL_CAME_IN != 0
            && kept.cgroup == cgroup
            && flow.same(kept)
        {
            return true;
        }
    }
    let Found { kind, recent } = view.found(&answered(flow), cgroup);
    match (flow.protocol, meta.hook) {
        (protocol::TCP, hook) => match (socket, hook) {
            (Socket::Inet, _) => kind == WITNESS_STOOD && !flow.has(tcp::SYN, 0),
            // Resets as well: since 6.13 they have the socket that they speak for, here one that is asked about a connection which it
            // does not know any more, or not yet.
            (Socket::Listening, Hook::Socket) => {
                let resets = flow.has(tcp::RST, tcp::SYN) && u32::from(flow.payload) == meta.length;
                recent
                    && (kind == WITNESS_CAME_IN && flow.has(tcp::SYN | tcp::ACK, 0)
                        || (kind == WITNESS_CAME_IN || kind == WITNESS_CLOSED) && resets)
            }
            // What the kernel says without a full socket: SYN-ACKs, resets, the last acknowledgements.
            (Socket::None | Socket::Listening | Socket::Raw, Hook::Veth) => {
                (kind == WITNESS_CAME_IN || kind == WITNESS_CLOSED)
                    && recent
                    && u32::from(flow.payload) == meta.length
            }
            _ => false,
        },
        (protocol::UDP | protocol::SCTP, Hook::Socket) => {
            kind == WITNESS_CAME_IN && recent && matches!(socket, Socket::Inet)
        }
        (protocol::UDP | protocol::SCTP, Hook::Veth) => kind == WITNESS_CAME_IN && recent,
        (protocol::ICMP, Hook::Veth) => kind == WITNESS_CAME_IN && recent && flow.kind == icmp::ECHO_REPLY_V4,
        (protocol::ICMPV6, Hook::Veth) => {
            kind == WITNESS_CAME_IN && recent && flow.kind == icmp::ECHO_REPLY_V6
        }
        _ => false,
    }
}
