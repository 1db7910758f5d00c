//! The verdict that the next packet of an open connection would get.
//!
//! Invariant: it is [`decide()`] that judges, over what the maps hold, the flow that the kernel kept with the socket; what is not
//! a deny of a pod that a policy selects is none here. Tested by `tests/standing.rs`.

use std::net::IpAddr;

use egress_common::wire::{
    ABI, APPROVAL_LOOPBACK, Addr, Approval, Endpoint, FLAG_AUDIT, STATE_INVALID, STATE_ISOLATED, Witness,
};
use egress_common::{Action, Meta, Reason, decide};

use crate::explain::{Maps, Sender, Target, packet};
use crate::plan::State;

/// Judges open connections by what the maps hold.
#[derive(Debug)]
pub struct Standing<'a> {
    state: &'a State,
    maps: Maps<'a>,
}

impl<'a> Standing<'a> {
    /// A judge over this state.
    #[must_use]
    pub fn new(state: &'a State) -> Self {
        Self { state, maps: Maps::new(state) }
    }

    /// Whether what is sent on open connections of a pod may be denied.
    #[must_use]
    pub fn is_judged(&self, cgroup: u64) -> bool {
        let enforced = |endpoint: &Endpoint| {
            matches!(endpoint.state, STATE_ISOLATED | STATE_INVALID) && endpoint.flags & FLAG_AUDIT == 0
        };
        self.state.config.abi == ABI && self.state.endpoints.get(&cgroup).is_some_and(enforced)
    }

    /// Whether a pod's containers are told apart.
    #[must_use]
    pub fn is_locked(&self, cgroup: u64) -> bool {
        self.state.endpoints.get(&cgroup).is_some_and(|endpoint| endpoint.lock != 0)
    }

    /// The reason why the flow that a socket kept is denied now; none where it is not, where it answers what came in, or where it
    /// does not leave the pod. `container` is the cgroup of the container that made the socket, 0 where the pod has no lock; `seen` is
    /// what was seen coming in of the flow, and `now` the time of the clock by which that was.
    #[must_use]
    pub fn denied(&self, kept: &Approval, container: u64, seen: Option<Witness>, now: u64) -> Option<Reason> {
        if kept.flags & APPROVAL_LOOPBACK != 0 || kept.version == 0 || !self.is_judged(kept.cgroup) {
            return None;
        }
        let ip = |addr: Addr| IpAddr::from(addr.0).to_canonical();
        let (address, port) = (ip(kept.destination), kept.destination_port);
        let target = Target { address, protocol: kept.protocol, port, behind: false };
        let (ethertype, packet) = packet(Some(ip(kept.source)), kept.source_port, &target);
        let root = self.state.config.pod_root_level;
        let sender = Sender { root, pod: kept.cgroup, container, kept: Some(kept) };
        // Any device but loopback.
        let meta = Meta { ethertype, ifindex: 2, ..Meta::default() };
        let verdict = decide(&self.maps.with(seen, now), &sender, packet.as_slice(), meta).verdict;
        (verdict.action == Action::Deny).then_some(verdict.reason)
    }

    /// The reason why none of a pod's containers may begin a flow from one of its addresses; none where one may. What the pod was
    /// asked does not count.
    #[must_use]
    pub fn denied_to_all(&self, cgroup: u64, from: IpAddr, to: &Target) -> Option<Reason> {
        let endpoint = self.state.endpoints.get(&cgroup).filter(|_| self.is_judged(cgroup))?;
        let (ethertype, packet) = packet(Some(from), 0, to);
        let root = self.state.config.pod_root_level;
        let meta = Meta { ethertype, ifindex: 2, ..Meta::default() };
        let proxies = endpoint.proxies.iter().map(|proxy| proxy.cgroup).filter(|cgroup| *cgroup != 0);
        let mut reason = None;
        for container in proxies.chain([u64::MAX]) {
            let sender = Sender { root, pod: cgroup, container, kept: None };
            let verdict = decide(&self.maps, &sender, packet.as_slice(), meta).verdict;
            if verdict.action != Action::Deny {
                return None;
            }
            reason = Some(verdict.reason);
        }
        reason
    }
}
