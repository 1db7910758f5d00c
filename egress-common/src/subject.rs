//! Who is judged: the pod, by its cgroup or its device, and the container within it.
//!
//! Invariant: a pod that is not known never gets what a known one has; a container that is not surely the proxy is not.

use crate::decide::Decision;
use crate::reason::Reason;
use crate::view::{Owner, View};
use crate::wire::{
    Addr, Config, Endpoint, FLAG_AUDIT, FLAG_HOST_NETWORK, PROXIES, STATE_INVALID, STATE_ISOLATED,
    STATE_UNSELECTED, UNKNOWN_ALLOW, UNKNOWN_POLICY, read,
};

/// How a pod is to be judged.
pub(crate) struct Subject<'a> {
    /// First half of the keys of its rows.
    pub(crate) policy: u64,
    /// The rows of what only the proxy may send and this container may not are those that this policy does not allow; 0
    /// for the proxy and where there is no lock.
    pub(crate) lock: u64,
    /// Denies of this subject pass with an event.
    pub(crate) audit: bool,
    /// The pod, where it is known.
    pub(crate) endpoint: Option<&'a Endpoint>,
    /// Passes whatever it sends.
    pub(crate) settled: Option<Reason>,
    /// Denied whatever the rows say; loopback and replies still pass.
    pub(crate) closed: Option<Reason>,
}

impl Subject<'_> {
    /// Whether this is the pod's own address of this IP version.
    #[inline(always)]
    pub(crate) fn owns(&self, version: u8, addr: &Addr) -> bool {
        self.endpoint.is_some_and(|endpoint| owns(endpoint, version, addr))
    }

    /// Whether the source address must be the pod's own: not on the host network, and not while no address of the pod is
    /// known, as in its first moments; its rows apply all the same.
    #[inline(always)]
    pub(crate) fn source_is_judged(&self) -> bool {
        match self.endpoint {
            Some(endpoint) => {
                endpoint.flags & FLAG_HOST_NETWORK == 0 && !(endpoint.v4.is_zero() && endpoint.v6.is_zero())
            }
            None => false,
        }
    }

    /// The reason where a row allows.
    #[inline(always)]
    pub(crate) fn allowed(&self) -> Reason {
        if self.endpoint.is_some() { Reason::Allowed } else { Reason::UnknownPodAllowed }
    }

    /// The reason where no row allows.
    #[inline(always)]
    pub(crate) fn denied(&self) -> Reason {
        if self.endpoint.is_some() { Reason::NotAllowed } else { Reason::UnknownPod }
    }
}

/// Whether this is the pod's own address of this IP version.
#[inline(always)]
pub(crate) fn owns(endpoint: &Endpoint, version: u8, addr: &Addr) -> bool {
    let own = endpoint.own(version);
    !own.is_zero() && addr.same(own)
}

/// The pod whose socket sends, by the ancestors of the socket's cgroup.
#[inline(always)]
pub(crate) fn sending<'a, V, O>(
    view: &'a V,
    owner: &O,
    config: &Config,
    decision: &mut Decision,
) -> Subject<'a>
where
    V: View,
    O: Owner,
{
    /// An entry that is being replaced can be missed once.
    const LOOKS: u32 = 2;
    let [direct, nested] = [1, 2].map(|below| config.pod_root_level.wrapping_add(below));
    let mut level = nested;
    decision.cgroup = owner.cgroup(nested);
    let mut endpoint = view.endpoint(decision.cgroup);
    let mut looks = 1;
    while endpoint.is_none() && looks < 2 * LOOKS {
        level = if level == nested { direct } else { nested };
        let cgroup = owner.cgroup(level);
        endpoint = view.endpoint(cgroup);
        if endpoint.is_some() || decision.cgroup == 0 {
            decision.cgroup = cgroup;
        }
        looks += 1;
    }
    match endpoint {
        Some(found) => known(found, owner, level, decision),
        None => unknown(config),
    }
}

/// The pod behind the device, whose cgroup `decision` has already. The container is that of the socket, where the socket is
/// one of this pod's.
#[inline(always)]
pub(crate) fn behind<'a, V, O>(
    view: &'a V,
    owner: &O,
    config: &Config,
    decision: &mut Decision,
) -> Subject<'a>
where
    V: View,
    O: Owner,
{
    let mut found = view.endpoint(decision.cgroup);
    if found.is_none() {
        // As in `sending`.
        found = view.endpoint(decision.cgroup);
    }
    let Some(found) = found else {
        return unknown(config);
    };
    let mut level = u32::MAX;
    if read(&found.1.lock) != 0 {
        let nested = config.pod_root_level.wrapping_add(2);
        let direct = config.pod_root_level.wrapping_add(1);
        if owner.cgroup(nested) == decision.cgroup {
            level = nested;
        } else if owner.cgroup(direct) == decision.cgroup {
            level = direct;
        }
    }
    known(found, owner, level, decision)
}

/// A known pod; `level` is that of its cgroup, `u32::MAX` where the sender is in another one. All that tells how it is judged is
/// read here, and after that the entry's key.
#[inline(always)]
fn known<'a, O: Owner>(
    (held, endpoint): (&'a u64, &'a Endpoint),
    owner: &O,
    level: u32,
    decision: &mut Decision,
) -> Subject<'a> {
    let (mut policy, mut lock) = (read(&endpoint.policy), read(&endpoint.lock));
    let (state, flags) = (read(&endpoint.state), read(&endpoint.flags));
    if lock != 0 && level != u32::MAX {
        let container = owner.cgroup(level.wrapping_add(1));
        decision.container = container;
        let mut i = 0;
        while i < PROXIES {
            let proxy = &endpoint.proxies[i];
            if container != 0 && read(&proxy.cgroup) == container {
                policy = read(&proxy.policy);
                lock = 0;
            }
            i += 1;
        }
    }
    let subject = Subject {
        policy,
        lock,
        audit: flags & FLAG_AUDIT != 0,
        endpoint: Some(endpoint),
        settled: None,
        closed: None,
    };
    match if read(held) == decision.cgroup { state } else { 0 } {
        STATE_UNSELECTED => Subject { settled: Some(Reason::Unselected), ..subject },
        STATE_ISOLATED => subject,
        STATE_INVALID => Subject { closed: Some(Reason::InvalidPolicy), audit: false, ..subject },
        _ => Subject { closed: Some(Reason::BadEntry), audit: false, ..subject },
    }
}

#[inline(always)]
fn unknown<'a>(config: &Config) -> Subject<'a> {
    let subject = Subject {
        policy: config.unknown_policy,
        lock: 0,
        audit: false,
        endpoint: None,
        settled: None,
        closed: None,
    };
    match config.unknown {
        UNKNOWN_ALLOW => Subject { settled: Some(Reason::UnknownPodAllowed), ..subject },
        UNKNOWN_POLICY => subject,
        _ => Subject { closed: Some(Reason::UnknownPod), ..subject },
    }
}
