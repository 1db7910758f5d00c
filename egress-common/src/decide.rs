//! The verdict: one function, called by the kernel, the host tests, `explain` and `simulate`.
//!
//! Invariant: every way out of [`decide`] that lets a packet pass is one of the four reasons whose action is
//! allow, or an audit of an endpoint or rule that is marked so; `tests/decide.rs` counts them.

use crate::packet::{self, Bytes, Flow};
use crate::reason::{Action, Reason};
use crate::wire::{
    ABI, Addr, Config, Endpoint, FLAG_AUDIT, FLAG_HOST_NETWORK, IDENTITY_WORLD, PROTOCOL_ANY, PROXIES,
    ROW_ENTRIES, Row, RowKey, STATE_INVALID, STATE_ISOLATED, STATE_UNSELECTED, UNKNOWN_ALLOW, UNKNOWN_POLICY,
    VERDICT_ALLOW, VERDICT_AUDIT,
};

/// Index of the loopback device, the same in every network namespace (`LOOPBACK_IFINDEX`, `include/net/flow.h`).
const LOOPBACK_IFINDEX: u32 = 1;

/// The program that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// `cgroup_skb/egress` on the pod root: sees packets of sockets, after the pod's netfilter.
    Socket = 1,
}

impl Hook {
    /// The hook of a number on the wire; `None` for a number that is not one.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Socket),
            _ => None,
        }
    }

    /// The word used in flow log, metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
        }
    }
}

/// The maps, as [`decide`] reads them. A lookup that fails for any cause is `None`.
pub trait View {
    /// The one entry of `CONFIG`.
    fn config(&self) -> Option<&Config>;
    /// The pod of a cgroup id.
    fn endpoint(&self, cgroup: u64) -> Option<&Endpoint>;
    /// The identity of exactly this address (`IPCACHE`).
    fn address(&self, addr: &Addr) -> Option<u64>;
    /// The identity of the longest prefix that holds this address (`CIDRS`).
    fn prefix(&self, addr: &Addr) -> Option<u64>;
    /// What a policy says about an identity.
    fn row(&self, key: &RowKey) -> Option<&Row>;
}

/// Who sends the packet.
pub trait Owner {
    /// Id of the ancestor at `level` of the sender's cgroup (or itself); 0 where it is not that deep.
    fn cgroup(&self, level: u32) -> u64;
}

/// What the hook knows of the packet besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Type of the frame the packet will be sent in, host byte order.
    pub ethertype: u16,
    /// Index of the device it leaves by.
    pub ifindex: u32,
}

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
    const fn of(reason: Reason) -> Self {
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
    };
    decision.verdict = judge(view, owner, packet, meta, &mut decision);
    decision
}

/// How a pod is to be judged.
struct Subject<'a> {
    policy: u64,
    /// The rows of what only the proxy may send and this container may not are those that this policy does not allow; 0
    /// for the proxy and where there is no lock.
    lock: u64,
    /// Denies of this subject pass with an event.
    audit: bool,
    /// The pod, where it is known.
    endpoint: Option<&'a Endpoint>,
    /// Denied whatever the rows say; loopback still passes.
    closed: Option<Reason>,
}

impl Subject<'_> {
    /// Whether this is the pod's own address of this IP version.
    #[inline(always)]
    fn owns(&self, version: u8, addr: &Addr) -> bool {
        match self.endpoint {
            Some(endpoint) => {
                let own = if version == 4 { &endpoint.v4 } else { &endpoint.v6 };
                !own.is_zero() && addr.same(own)
            }
            None => false,
        }
    }

    /// Whether the source address must be the pod's own: not on the host network, and not while no address of the pod is
    /// known, as in its first moments; its rows apply all the same.
    #[inline(always)]
    fn source_is_judged(&self) -> bool {
        match self.endpoint {
            Some(endpoint) => {
                endpoint.flags & FLAG_HOST_NETWORK == 0 && !(endpoint.v4.is_zero() && endpoint.v6.is_zero())
            }
            None => false,
        }
    }

    /// The reason where a row allows.
    #[inline(always)]
    fn allowed(&self) -> Reason {
        if self.endpoint.is_some() { Reason::Allowed } else { Reason::UnknownPodAllowed }
    }

    /// The reason where no row allows.
    #[inline(always)]
    fn denied(&self) -> Reason {
        if self.endpoint.is_some() { Reason::NotAllowed } else { Reason::UnknownPod }
    }
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

    let subject = match subject(view, owner, config, decision) {
        Ok(subject) => subject,
        Err(verdict) => return verdict,
    };
    decision.policy = subject.policy;

    let flow = &mut decision.flow;
    let network = match packet::network(packet, meta.ethertype, flow) {
        Ok(network) => network,
        Err(reason) => return Verdict::audited(reason, subject.audit),
    };
    let loopback = meta.ifindex == LOOPBACK_IFINDEX;
    if loopback && (flow.destination.is_loopback() || subject.owns(flow.version, &flow.destination)) {
        return Verdict::of(Reason::Loopback);
    }
    if let Some(reason) = subject.closed {
        return Verdict::of(reason);
    }
    if let Err(reason) = packet::transport(packet, network, flow) {
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
    let verdict = match view.row(&key) {
        Some(row) => in_row(row, flow, &subject),
        None => Verdict::audited(subject.denied(), subject.audit),
    };
    if subject.lock == 0 || !matches!(verdict.reason, Reason::NotAllowed) {
        return verdict;
    }
    // Denied in any case; what is left to find out is whether it would have been the proxy's to send.
    let covered = match view.row(&RowKey { policy: subject.lock, identity }) {
        Some(row) => !matches!(entry(row, flow), Some((VERDICT_ALLOW, _))),
        None => true,
    };
    if covered { Verdict { reason: Reason::SidecarBypass, ..verdict } } else { verdict }
}

/// Finds the pod, and how it is to be judged; a verdict where no more than the pod counts.
#[inline(always)]
fn subject<'a, V, O>(
    view: &'a V,
    owner: &O,
    config: &Config,
    decision: &mut Decision,
) -> Result<Subject<'a>, Verdict>
where
    V: View,
    O: Owner,
{
    let mut level = config.pod_root_level.wrapping_add(2);
    let nested = owner.cgroup(level);
    decision.cgroup = nested;
    let mut endpoint = view.endpoint(nested);
    if endpoint.is_none() {
        level = config.pod_root_level.wrapping_add(1);
        let direct = owner.cgroup(level);
        endpoint = view.endpoint(direct);
        if endpoint.is_some() || nested == 0 {
            decision.cgroup = direct;
        }
    }
    let Some(endpoint) = endpoint else {
        return unknown(config);
    };
    let (mut policy, mut lock) = (endpoint.policy, endpoint.lock);
    if lock != 0 {
        let container = owner.cgroup(level.wrapping_add(1));
        decision.container = container;
        let mut i = 0;
        while i < PROXIES {
            let proxy = &endpoint.proxies[i];
            if container != 0 && proxy.cgroup == container {
                policy = proxy.policy;
                lock = 0;
            }
            i += 1;
        }
    }
    let subject = Subject {
        policy,
        lock,
        audit: endpoint.flags & FLAG_AUDIT != 0,
        endpoint: Some(endpoint),
        closed: None,
    };
    match endpoint.state {
        STATE_UNSELECTED => Err(Verdict::of(Reason::Unselected)),
        STATE_ISOLATED => Ok(subject),
        STATE_INVALID => Ok(Subject { closed: Some(Reason::InvalidPolicy), audit: false, ..subject }),
        _ => Ok(Subject { closed: Some(Reason::BadEntry), audit: false, ..subject }),
    }
}

#[inline(always)]
fn unknown<'a>(config: &Config) -> Result<Subject<'a>, Verdict> {
    let subject =
        Subject { policy: config.unknown_policy, lock: 0, audit: false, endpoint: None, closed: None };
    match config.unknown {
        UNKNOWN_ALLOW => Err(Verdict::of(Reason::UnknownPodAllowed)),
        UNKNOWN_POLICY => Ok(subject),
        _ => Ok(Subject { closed: Some(Reason::UnknownPod), ..subject }),
    }
}

/// The verdict of a row.
#[inline(always)]
fn in_row(row: &Row, flow: &Flow, subject: &Subject<'_>) -> Verdict {
    if row.len as usize > ROW_ENTRIES {
        return Verdict::of(Reason::BadEntry);
    }
    match entry(row, flow) {
        None => Verdict::audited(subject.denied(), subject.audit),
        Some((VERDICT_ALLOW, rule)) => Verdict { rule, ..Verdict::of(subject.allowed()) },
        Some((VERDICT_AUDIT, rule)) => Verdict { rule, ..Verdict::audited(subject.denied(), true) },
        Some(_) => Verdict::of(Reason::BadEntry),
    }
}

/// Verdict and rule of the entry of a row that matches the packet.
#[inline(always)]
fn entry(row: &Row, flow: &Flow) -> Option<(u8, u16)> {
    let mut i = 0;
    while i < ROW_ENTRIES {
        if i >= row.len as usize {
            break;
        }
        let ports = &row.entries[i];
        let matches = ports.protocol == PROTOCOL_ANY
            || (ports.protocol == flow.protocol
                && ports.low <= flow.destination_port
                && flow.destination_port <= ports.high);
        if matches {
            return Some((ports.verdict, ports.rule));
        }
        i += 1;
    }
    None
}
