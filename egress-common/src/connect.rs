//! What a process asks for, judged before any packet: a connection, so that who asks is told at once; a packet socket, where nobody
//! would see what it sends.
//!
//! Invariant: nothing is let pass here that a packet would not be; what may still be changed on its way, or is not known yet, is
//! left to the packets where these are judged.

use crate::decide::{Decision, Verdict, by_rows, ready};
use crate::packet::protocol;
use crate::reason::{Action, Reason};
use crate::subject;
use crate::view::{Owner, View};
use crate::wire::Addr;

/// What would deny a connection to `to`; nothing where it may pass, or is nobody's business.
///
/// `owner` is the process. A deny here is one of the packets only if nothing in the pod sends them elsewhere.
#[inline(always)]
pub fn connect<V, O>(view: &V, owner: &O, to: &Addr, protocol: u8, port: u16) -> Option<Decision>
where
    V: View,
    O: Owner,
{
    let mut decision = Decision::none();
    decision.flow.destination = *to;
    decision.flow.destination_port = port;
    decision.flow.protocol = protocol;
    decision.flow.version = if to.is_v4() { 4 } else { 6 };
    let Some(config) = ready(view) else {
        return Some(decision);
    };
    decision.revision = config.revision;
    let subject = subject::sending(view, owner, config, &mut decision);
    decision.policy = subject.policy;
    // A connection to the unspecified address is one to the loopback address (RFC 1122, section 3.2.1.3).
    let inside = to.is_loopback() || to.is_unspecified() || subject.owns(decision.flow.version, to);
    if subject.settled.is_some() || inside {
        return None;
    }
    decision.verdict = match subject.closed {
        Some(reason) => Verdict::of(reason),
        None => by_rows(view, &subject, &mut decision),
    };
    if matches!(decision.verdict.action, Action::Allow) { None } else { Some(decision) }
}

/// What denies a process a packet socket (`AF_PACKET`, `AF_XDP`), which no hook on sockets judges; nothing where it may have one: no
/// policy selects its pod, or the veth hook judges the frames of all the pod's devices, as `covered` tells of a pod's cgroup.
///
/// `owner` is the process.
#[inline(always)]
pub fn packet_socket<V, O>(view: &V, owner: &O, covered: impl FnOnce(u64) -> bool) -> Option<Decision>
where
    V: View,
    O: Owner,
{
    let mut decision = Decision::none();
    let Some(config) = ready(view) else {
        return Some(decision);
    };
    decision.revision = config.revision;
    let subject = subject::sending(view, owner, config, &mut decision);
    decision.policy = subject.policy;
    if subject.settled.is_some() || covered(decision.cgroup) {
        return None;
    }
    decision.verdict = Verdict::audited(Reason::PacketSocket, subject.audit);
    Some(decision)
}

/// Whether anything that the process sends may be denied or reported.
#[must_use]
#[inline(always)]
pub fn concerns<V: View, O: Owner>(view: &V, owner: &O) -> bool {
    match ready(view) {
        Some(config) => subject::sending(view, owner, config, &mut Decision::none()).settled.is_none(),
        None => true,
    }
}

/// Whether a process can be refused what `decision` says: a pod that is not known yet may be in a moment, and a
/// datagram may answer one that came in.
#[must_use]
#[inline(always)]
pub const fn is_sure(decision: &Decision) -> bool {
    decision.flow.protocol == protocol::TCP
        && matches!(decision.verdict.action, Action::Deny)
        && matches!(
            decision.verdict.reason,
            Reason::NotAllowed | Reason::SidecarBypass | Reason::InvalidPolicy
        )
}
