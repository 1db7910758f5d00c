//! The verdict: one function, called by the kernel, the host tests, `explain` and `simulate`.
//!
//! Invariant: every way out of [`decide`] that lets a packet pass is one of the reasons whose action is allow, or an
//! audit of an endpoint or rule that is marked so; `tests/decide.rs` counts them.

use crate::packet::{self, Bytes, ETHERTYPE_ARP, Flow, icmp, protocol, tcp};
use crate::reason::{Action, Reason};
use crate::subject::{self, Subject};
use crate::view::{Hook, LOOPBACK_IFINDEX, Meta, Owner, Socket, View};
use crate::wire::{
    ABI, APPROVAL_AUDIT, APPROVAL_LOCKED, APPROVAL_LOOPBACK, Approval, Config, IDENTITY_WORLD, PROTOCOL_ANY,
    ROW_ENTRIES, RowKey, VERDICT_ALLOW, VERDICT_AUDIT,
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
    #[inline(always)]
    pub(crate) const fn of(reason: Reason) -> Self {
        Self { action: reason.action(), reason, rule: NO_RULE }
    }

    /// The same, with a deny turned into an audit where `audit` says so.
    #[inline(always)]
    const fn audited(reason: Reason, audit: bool) -> Self {
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
    /// The container's cgroup, 0 where the pod has no lock.
    pub container: u64,
    /// The policy that applied, 0 for none.
    pub policy: u64,
    /// The destination's identity, 0 where the verdict came before it.
    pub identity: u64,
    /// The revision that applied.
    pub revision: u64,
    /// The flow was read to its end, and it is the pod's socket that a verdict on it belongs to.
    pub whole: bool,
    /// The verdict is one that was kept with the socket.
    pub kept: bool,
    /// The source is not known to be the pod's own: the packet passes, but it witnesses nothing.
    pub forged: bool,
}

impl Decision {
    /// What to keep with the socket: its next packet of this flow need not be judged again. Only what passes the first hook
    /// is kept.
    #[must_use]
    #[inline(always)]
    pub const fn approval(&self, meta: Meta) -> Option<Approval> {
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
        if !self.whole || !matches!(meta.hook, Hook::Socket) {
            return None;
        }
        let flow = &self.flow;
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
            reserved: [0; 8],
        })
    }
}

/// Gives a packet its verdict.
///
/// `packet` starts at the IP header. Never panics and never allocates; the number of lookups is constant.
#[inline(always)]
pub fn decide<V, O, B>(view: &V, owner: &O, packet: &B, meta: Meta) -> Decision
where
    V: View,
    O: Owner,
    B: Bytes + ?Sized,
{
    let mut decision = Decision {
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
    };
    decision.verdict = judge(view, owner, packet, meta, &mut decision);
    decision
}

#[inline(always)]
fn judge<V, O, B>(view: &V, owner: &O, packet: &B, meta: Meta, decision: &mut Decision) -> Verdict
where
    V: View,
    O: Owner,
    B: Bytes + ?Sized,
{
    let Some(config) = view.config() else {
        return Verdict::of(Reason::NotReady);
    };
    if config.abi != ABI {
        return Verdict::of(Reason::NotReady);
    }
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
    let kept = owner.approval();
    // The socket's word is about what is in the packet, not about a tag that the frame got on its way.
    if refused.is_none()
        && !meta.vlan
        && let Some(kept) = kept
        && let Some(reason) = approved(kept, config, decision, veth, loopback)
    {
        decision.cgroup = kept.cgroup;
        decision.kept = true;
        return Verdict::of(reason);
    }

    let subject = if veth {
        subject::behind(view, owner, config, decision)
    } else {
        subject::sending(view, owner, config, decision)
    };
    decision.policy = subject.policy;
    let flow = &decision.flow;
    if let Some(reason) = subject.settled {
        decision.forged = veth && !subject.owns(flow.version, &flow.source);
        return Verdict::of(reason);
    }
    if veth {
        if matches!(owner.socket(), Socket::Packet) {
            return Verdict::audited(Reason::PacketSocket, subject.audit);
        }
        if meta.vlan || (flow.version == 0 && !is_ip(meta.ethertype)) {
            let arp = !meta.vlan && meta.ethertype == ETHERTYPE_ARP;
            return if arp {
                Verdict::of(Reason::Neighbour)
            } else {
                Verdict::audited(Reason::NotIp, subject.audit)
            };
        }
        if refused.is_none() && is_neighbour(packet, flow, &subject) {
            return Verdict::of(Reason::Neighbour);
        }
    }
    if loopback && subject.owns(flow.version, &flow.destination) {
        return Verdict::of(Reason::Loopback);
    }
    let cgroup = decision.cgroup;
    if let Some(reason) = subject.closed {
        let answers = refused.is_none()
            && !matches!(reason, Reason::BadEntry)
            && witness::reply(view, owner, kept, flow, meta, cgroup);
        return Verdict::of(if answers { Reason::WitnessedReply } else { reason });
    }
    if let Some(reason) = refused {
        if veth && matches!(reason, Reason::Fragment) && witness::follows(view, flow, cgroup) {
            return Verdict::of(Reason::FollowsFragment);
        }
        return Verdict::audited(reason, subject.audit);
    }
    // 127.0.0.0/8 on a wire reaches the node's own services where route_localnet is set (CVE-2020-8558).
    let to = &flow.destination;
    if to.is_loopback() || to.is_unspecified() || (flow.version == 6 && to.is_v4()) {
        return Verdict::audited(Reason::MartianAddress, subject.audit);
    }
    if subject.source_is_judged() && !subject.owns(flow.version, &flow.source) {
        return Verdict::audited(Reason::SpoofedSource, subject.audit);
    }

    let identity = match view.address(to) {
        Some(identity) => identity,
        None => view.prefix(to).unwrap_or(IDENTITY_WORLD),
    };
    decision.identity = identity;
    let key = RowKey { policy: subject.policy, identity };
    let said = view.said(&key, flow.protocol, flow.destination_port);
    let verdict = by_row(said, &subject);
    if matches!(verdict.action, Action::Allow) {
        return verdict;
    }
    if witness::reply(view, owner, kept, flow, meta, cgroup) {
        return Verdict::of(Reason::WitnessedReply);
    }
    if subject.lock == 0 || !matches!(verdict.reason, Reason::NotAllowed) {
        return verdict;
    }
    // Denied in any case; what is left to find out is whether it would have been the proxy's to send.
    let key = RowKey { policy: subject.lock, identity };
    let covered = view.said(&key, flow.protocol, flow.destination_port).verdict != VERDICT_ALLOW;
    if covered { Verdict { reason: Reason::SidecarBypass, ..verdict } } else { verdict }
}

/// The reason for which a socket's flow was let pass, where that still holds.
#[inline(always)]
fn approved(
    kept: &Approval,
    config: &Config,
    decision: &Decision,
    veth: bool,
    loopback: bool,
) -> Option<Reason> {
    const ALLOWED: u8 = Reason::Allowed as u8;
    const LOOPBACK: u8 = Reason::Loopback as u8;
    const UNSELECTED: u8 = Reason::Unselected as u8;
    const UNKNOWN: u8 = Reason::UnknownPodAllowed as u8;
    const REPLY: u8 = Reason::WitnessedReply as u8;
    if kept.revision != config.revision || !decision.flow.same(kept) {
        return None;
    }
    // The second hook takes the first one's word for its own pod; what is audited the first one is to report each time.
    let here = if veth { kept.cgroup == decision.cgroup } else { kept.flags & APPROVAL_AUDIT == 0 };
    if !here || (kept.flags & APPROVAL_LOOPBACK != 0) != loopback {
        return None;
    }
    match kept.reason {
        ALLOWED => Some(Reason::Allowed),
        // A socket that was called can be disconnected, and call back itself.
        REPLY if !decision.flow.has(tcp::SYN, tcp::ACK) => Some(Reason::WitnessedReply),
        LOOPBACK => Some(Reason::Loopback),
        // Who may send anything may forge its source, too: the second hook has to look.
        UNSELECTED if !veth => Some(Reason::Unselected),
        UNKNOWN if !veth => Some(Reason::UnknownPodAllowed),
        _ => None,
    }
}

#[inline(always)]
const fn is_ip(ethertype: u16) -> bool {
    ethertype == packet::ETHERTYPE_IPV4 || ethertype == packet::ETHERTYPE_IPV6
}

/// Whether this is what IPv6 says on a link to find addresses. It goes no further than the link, or to an address of the
/// pod's own /64 (a neighbour that is asked whether it is still there); a router would have lowered the hop limit of 255
/// (RFC 4861, section 7.1), and listener reports have 1 (RFC 3810, section 5).
#[inline(always)]
fn is_neighbour<B: Bytes + ?Sized>(packet: &B, flow: &Flow, subject: &Subject<'_>) -> bool {
    if flow.protocol != protocol::ICMPV6 {
        return false;
    }
    let Some(hops) = packet.load::<1>(7) else {
        return false;
    };
    let to = &flow.destination;
    let on_link = to.is_link_scope();
    match flow.kind {
        icmp::NEIGHBOUR_SOLICITATION | icmp::NEIGHBOUR_ADVERTISEMENT => {
            hops[0] == 255 && (on_link || subject.shares_link(to))
        }
        icmp::ROUTER_SOLICITATION => hops[0] == 255 && on_link,
        icmp::LISTENER_V2 => hops[0] == 1 && on_link,
        kind if kind == icmp::LISTENER_V1[0] || kind == icmp::LISTENER_V1[1] => hops[0] == 1 && on_link,
        _ => false,
    }
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
    /// The row has more entries than a row can have.
    pub const UNREADABLE: u8 = 0xff;
}

/// Looks up what a policy says about an identity, and in that the entry that matches the packet.
#[inline(always)]
pub fn look_up<V: View>(view: &V, key: &RowKey, protocol: u8, port: u16) -> Said {
    let Some(row) = view.row(key) else {
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
            // What is no verdict is not to be mistaken for what we say about rows.
            let verdict = if ports.verdict >= Said::NOTHING { Said::UNREADABLE } else { ports.verdict };
            return Said { verdict, rule: ports.rule };
        }
        i += 1;
    }
    Said { verdict: Said::NOTHING, rule: NO_RULE }
}
