//! The verdict: one function, called by the kernel, the host tests, `explain` and `simulate`.
//!
//! Invariant: every way out of [`decide`] that lets a packet pass is one of the reasons whose action is allow, or an
//! audit of an endpoint or rule that is marked so; `tests/decide.rs` counts them.

use crate::established::established;
use crate::neighbour;
use crate::packet::{self, Bytes, ETHERTYPE_ARP, Flow, protocol};
use crate::reason::{Action, Reason};
use crate::subject::{self, Subject};
use crate::view::{Hook, LOOPBACK_IFINDEX, Meta, Owner, Socket, View};
use crate::wire::{
    ABI, APPROVAL_AUDIT, APPROVAL_CAME_IN, APPROVAL_LOCKED, APPROVAL_LOOPBACK, Approval, Config,
    IDENTITY_WORLD, PROTOCOL_ANY, ROW_ENTRIES, RowKey, VERDICT_ALLOW, VERDICT_AUDIT, read,
};
use crate::witness;

/// What to do, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict {
    /// What the hook does.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// Index of the rule within the policy, [`NO_RULE`] where none decided.
    pub rule: u16,
}

/// [`Verdict::rule`] where no rule decided.
pub const NO_RULE: u16 = u16::MAX;

impl Verdict {
    /// The natural action of a reason, by no rule.
    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        Self { action: reason.action(), reason, rule: NO_RULE }
    }

    /// The same, with a deny turned into an audit where `audit` says so.
    #[inline(always)]
    pub(crate) const fn audited(reason: Reason, audit: bool) -> Self {
        match reason.action() {
            Action::Deny if audit => Self { action: Action::Audit, reason, rule: NO_RULE },
            action => Self { action, reason, rule: NO_RULE },
        }
    }
}

/// A verdict with everything that was found on the way to it, for the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// The packet, as far as it was parsed.
    pub flow: Flow,
    /// The pod's cgroup; the deepest cgroup at pod level where the pod is not known; 0 before that.
    pub cgroup: u64,
    /// The container's cgroup, 0 where the pod has no lock: events find it out for themselves.
    pub container: u64,
    /// The policy that applied, 0 for none.
    pub policy: u64,
    /// The destination's identity, 0 where the verdict came before it.
    pub identity: u64,
    /// The revision that applied.
    pub revision: u64,
    /// The flow was read to its end, and it is the pod's socket that a verdict on it belongs to.
    pub whole: bool,
    /// The verdict is one that was kept with the socket; nothing but the cgroup was looked for besides.
    pub kept: bool,
    /// The source is not known to be the pod's own: the packet may pass, but it witnesses nothing.
    pub forged: bool,
}

impl Decision {
    /// Of nothing that was looked at: a deny.
    #[inline(always)]
    pub fn none() -> Self {
        Self {
            verdict: Verdict::of(Reason::NotReady),
            flow: Flow::default(),
            cgroup: 0,
            container: 0,
            policy: 0,
            identity: 0,
            revision: 0,
            whole: false,
            kept: false,
            forged: false,
        }
    }

    /// The packet passes by the pod's own right, so that what comes back answers it.
    #[must_use]
    #[inline(always)]
    pub const fn begins(&self, meta: Meta) -> bool {
        let right = match self.verdict.action {
            Action::Deny => false,
            Action::Audit => true,
            Action::Allow => {
                matches!(
                    self.verdict.reason,
                    Reason::Allowed | Reason::Unselected | Reason::UnknownPodAllowed
                )
            }
        };
        right && self.whole && !self.forged && meta.ifindex != LOOPBACK_IFINDEX
    }

    /// What to keep with the socket from `now` on: its next packet of this flow need not be judged again. Only what passes the first hook
    /// is kept.
    #[must_use]
    #[inline(always)]
    pub const fn approval(&self, meta: Meta, now: u64) -> Option<Approval> {
        let mut flags = if meta.ifindex == LOOPBACK_IFINDEX { APPROVAL_LOOPBACK } else { 0 };
        flags |= if self.container == 0 { 0 } else { APPROVAL_LOCKED };
        let reason = match self.verdict.action {
            Action::Deny => return None,
            Action::Allow => self.verdict.reason,
            Action::Audit => {
                flags |= APPROVAL_AUDIT;
                Reason::Allowed
            }
        };
        let flow = &self.flow;
        if matches!(reason, Reason::WitnessedReply) && flow.protocol == protocol::TCP {
            // Whatever told that it came in may be forgotten; the socket remembers.
            flags |= APPROVAL_CAME_IN;
        }
        // What answers a datagram is to do so only as long as the table remembers that one.
        let renewed = matches!(reason, Reason::WitnessedReply) && flow.protocol != protocol::TCP;
        if renewed || !self.whole || !matches!(meta.hook, Hook::Socket) {
            return None;
        }
        Some(Approval {
            revision: self.revision,
            cgroup: self.cgroup,
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            protocol: flow.protocol,
            version: flow.version,
            reason: reason as u8,
            flags,
            given: now,
        })
    }
}

/// Gives a packet its verdict: the one that is kept with its socket where that holds, or else a fresh one. The hooks call
/// the two halves by themselves.
///
/// `packet` starts at the IP header. Never panics and never allocates; the number of lookups is constant.
#[inline(always)]
pub fn decide<V, O, B>(view: &V, owner: &O, packet: &B, meta: Meta) -> Decision
where
    V: View,
    O: Owner,
    B: Bytes + ?Sized,
{
    match established(view, owner, packet, meta) {
        Some(reason) => {
            let cgroup = owner.approval().map_or(0, |kept| kept.cgroup);
            Decision { verdict: Verdict::of(reason), cgroup, kept: true, ..Decision::none() }
        }
        None => {
            let mut decision = Decision::none();
            judge(view, owner, packet, meta, &mut decision);
            decision
        }
    }
}

/// Judges a packet afresh. `decision` is [`Decision::none`] before, and says afterwards what was found on the way: in place, as the
/// stacks of the kernel's programs have no room for a second one.
#[inline(always)]
pub fn judge<V, O, B>(view: &V, owner: &O, packet: &B, meta: Meta, decision: &mut Decision)
where
    V: View,
    O: Owner,
    B: Bytes + ?Sized,
{
    decision.verdict = evaluate(view, owner, packet, meta, decision);
}

#[inline(always)]
fn evaluate<V, O, B>(view: &V, owner: &O, packet: &B, meta: Meta, decision: &mut Decision) -> Verdict
where
    V: View,
    O: Owner,
    B: Bytes + ?Sized,
{
    let Some(config) = ready(view) else {
        return Verdict::of(Reason::NotReady);
    };
    decision.revision = config.revision;
    let veth = matches!(meta.hook, Hook::Veth);
    if veth {
        decision.cgroup = match view.device(meta.ifindex) {
            Some(cgroup) if cgroup != 0 => cgroup,
            _ => return Verdict::of(Reason::NotReady),
        };
    }
    let loopback = !veth && meta.ifindex == LOOPBACK_IFINDEX;

    let refused = packet.read(meta.ethertype, &mut decision.flow);
    if loopback && decision.flow.version != 0 && decision.flow.destination.is_loopback() {
        return Verdict::of(Reason::Loopback);
    }
    decision.whole = refused.is_none();

    let subject = if veth {
        subject::behind(view, owner, config, decision)
    } else {
        subject::sending(view, owner, config, decision)
    };
    decision.policy = subject.policy;
    let flow = &decision.flow;
    // Also of a pod that nothing selects: what answers it would come to the other one as if that had been asked.
    if veth && owner.claims(view, packet, flow, &meta, subject.endpoint, decision.cgroup) {
        let hidden = flow.version == 0 && meta.ethertype != ETHERTYPE_ARP;
        return Verdict::of(if hidden { Reason::NotIp } else { Reason::SpoofedSource });
    }
    if let Some(reason) = subject.settled {
        decision.forged = !subject.owns(flow.version, &flow.source);
        return Verdict::of(reason);
    }
    // Whatever comes of it, it may be audited, and pass.
    decision.forged = subject.source_is_judged() && !subject.owns(flow.version, &flow.source);
    if veth {
        if matches!(owner.socket(), Socket::Packet) {
            return Verdict::audited(Reason::PacketSocket, subject.audit);
        }
        if meta.vlan || (flow.version == 0 && !is_ip(meta.ethertype)) {
            let arp = !meta.vlan && meta.ethertype == ETHERTYPE_ARP;
            return if arp && neighbour::is_arp(packet, meta.length, subject.endpoint) {
                Verdict::of(Reason::Neighbour)
            } else {
                Verdict::audited(Reason::NotIp, subject.audit)
            };
        }
        if refused.is_none() && packet.is_neighbour(flow, meta.length, subject.endpoint) {
            return Verdict::of(Reason::Neighbour);
        }
    }
    if loopback && subject.owns(flow.version, &flow.destination) {
        return Verdict::of(Reason::Loopback);
    }
    let cgroup = decision.cgroup;
    if let Some(reason) = subject.closed {
        if matches!(reason, Reason::BadEntry) {
            return Verdict::of(reason);
        }
        return Verdict::of(match refused {
            None if owner.replies(view, flow, &meta, cgroup) => Reason::WitnessedReply,
            Some(refused) if veth && follows(view, refused, flow, cgroup) => Reason::FollowsFragment,
            _ => reason,
        });
    }
    if let Some(reason) = refused {
        if veth && follows(view, reason, flow, cgroup) {
            return Verdict::of(Reason::FollowsFragment);
        }
        return Verdict::audited(reason, subject.audit);
    }
    // 127.0.0.0/8 on a wire reaches the node's own services where route_localnet is set (CVE-2020-8558).
    let to = &flow.destination;
    if to.is_loopback() || to.is_unspecified() || (flow.version == 6 && to.is_v4()) {
        return Verdict::audited(Reason::MartianAddress, subject.audit);
    }
    if decision.forged {
        return Verdict::audited(Reason::SpoofedSource, subject.audit);
    }

    let verdict = by_rows(view, &subject, decision);
    if matches!(verdict.action, Action::Allow) {
        return verdict;
    }
    if owner.replies(view, &decision.flow, &meta, cgroup) {
        return Verdict::of(Reason::WitnessedReply);
    }
    verdict
}

/// Whether a packet that was refused is the rest of a datagram whose first fragment has passed.
#[inline(always)]
fn follows<V: View>(view: &V, refused: Reason, flow: &Flow, cgroup: u64) -> bool {
    matches!(refused, Reason::Fragment) && witness::follows(view, flow, cgroup)
}

/// The configuration, where it is of this version.
#[inline(always)]
pub(crate) fn ready<V: View>(view: &V) -> Option<&Config> {
    view.config().filter(|config| config.abi == ABI)
}

/// The verdict on a destination by the subject's rows.
#[inline(always)]
pub(crate) fn by_rows<V: View>(view: &V, subject: &Subject<'_>, decision: &mut Decision) -> Verdict {
    let flow = &decision.flow;
    let identity = match view.address(&flow.destination) {
        Some(identity) => identity,
        None => view.prefix(&flow.destination).unwrap_or(IDENTITY_WORLD),
    };
    decision.identity = identity;
    let key = RowKey { policy: subject.policy, identity };
    let verdict = by_row(view.said(&key, flow.protocol, flow.destination_port), subject);
    if subject.lock == 0 || !matches!(verdict.reason, Reason::NotAllowed) {
        return verdict;
    }
    // Denied in any case; what is left to find out is whether it would have been the proxy's to send.
    let key = RowKey { policy: subject.lock, identity };
    let covered = view.said(&key, flow.protocol, flow.destination_port).verdict != VERDICT_ALLOW;
    if covered { Verdict { reason: Reason::SidecarBypass, ..verdict } } else { verdict }
}

#[inline(always)]
const fn is_ip(ethertype: u16) -> bool {
    ethertype == packet::ETHERTYPE_IPV4 || ethertype == packet::ETHERTYPE_IPV6
}

/// The verdict of what a row says.
#[inline(always)]
fn by_row(said: Said, subject: &Subject<'_>) -> Verdict {
    match said.verdict {
        Said::NOTHING => Verdict::audited(subject.denied(), subject.audit),
        VERDICT_ALLOW => Verdict { rule: said.rule, ..Verdict::of(subject.allowed()) },
        VERDICT_AUDIT => Verdict { rule: said.rule, ..Verdict::audited(subject.denied(), true) },
        _ => Verdict::of(Reason::BadEntry),
    }
}

/// What a row says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// [`Ports::verdict`](crate::wire::Ports::verdict) of the entry that matches; [`Self::NOTHING`] where none does or there is no
    /// row, [`Self::UNREADABLE`] where the row cannot be read.
    pub verdict: u8,
    /// Index of the rule within the policy.
    pub rule: u16,
}

impl Said {
    /// No entry matches.
    pub const NOTHING: u8 = 0xfe;
    /// The row has more entries than a row can have, or is another one's by now.
    pub const UNREADABLE: u8 = 0xff;
}

/// Looks up what a policy says about an identity, and in that the entry that matches the packet.
#[inline(always)]
pub fn look_up<V: View>(view: &V, key: &RowKey, protocol: u8, port: u16) -> Said {
    let Some((held, row)) = view.row(key) else {
        return Said { verdict: Said::NOTHING, rule: NO_RULE };
    };
    if row.len as usize > ROW_ENTRIES {
        return Said { verdict: Said::UNREADABLE, rule: NO_RULE };
    }
    let mut i = 0;
    while i < ROW_ENTRIES {
        if i >= row.len as usize {
            break;
        }
        let ports = &row.entries[i];
        let matches = ports.protocol == PROTOCOL_ANY
            || (ports.protocol == protocol && ports.low <= port && port <= ports.high);
        if matches {
            let (verdict, rule) = (read(&ports.verdict), read(&ports.rule));
            // What is no verdict is not to be mistaken for what we say about rows.
            let whole = verdict < Said::NOTHING && read(&held.policy) == key.policy;
            let whole = whole && read(&held.identity) == key.identity;
            return Said { verdict: if whole { verdict } else { Said::UNREADABLE }, rule };
        }
        i += 1;
    }
    Said { verdict: Said::NOTHING, rule: NO_RULE }
}
