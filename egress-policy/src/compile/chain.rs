//! Why one pod may, or may not, send to one address: each tier by itself, and the backends of a service address.
//!
//! Invariant: the tiers are judged by the same code as rows; `tests/explain.rs` checks that together they give the
//! verdict of the compiled state.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Serialize;

use super::grant::{Content, Tier};
use super::place::display;
use super::report::RuleInfo;
use super::select::{self, Selection};
use crate::index::{ANYWHERE, Index};
use crate::object::{Kind, ObjectRef, address};

/// What the policies of one kind say about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierVerdict {
    /// The kind of its policies.
    pub tier: &'static str,
    /// The policies of the tier that select the pod.
    pub policies: Vec<ObjectRef>,
    /// All of them audit.
    pub audit: bool,
    /// The rule that allows the packet; none denies it.
    pub rule: Option<RuleInfo>,
}

/// A backend that a service address can lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its own port.
    pub port: u16,
}

/// What leads to a verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The tiers that select the pod; none where it is unselected, invalid or unknown.
    pub tiers: Vec<TierVerdict>,
    /// The containers that a lock of the pod calls its proxy; none without a lock.
    pub proxies: BTreeSet<String>,
    /// Where the address is a service's, or the port one of a node's that leads out: the backends behind it, each of which has to be
    /// allowed.
    pub backends: BTreeSet<Backend>,
    /// The lock-downs that call the destination, or what is behind it, a gateway: their `gateways` alone lead there, of other rules none.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub gateway_of: BTreeSet<ObjectRef>,
    /// The services, and slices of services, of which something cannot be read, so that the destination leads nowhere for whom a policy
    /// selects.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unread: BTreeSet<ObjectRef>,
}

/// Looks up what leads to the verdict of a packet of a pod, given by namespace and name; of one of its containers, or of one
/// that is no proxy.
#[must_use]
pub fn chain(
    index: &Index,
    pod: (&str, &str),
    container: Option<&str>,
    to: IpAddr,
    (protocol, port): (u8, u16),
) -> Chain {
    let mut out = Chain::default();
    let addr = address(to);
    let mut targets = index.behind_node(&addr, (protocol, port));
    for service in index.services_at(&addr) {
        for one in service.ports.iter().filter(|one| (one.protocol, one.port) == (protocol, port)) {
            targets.extend(index.chosen(service, one, to.is_ipv4()));
        }
        if service.unread {
            out.unread.insert(service.object_ref());
        }
    }
    if targets.remove(&(ANYWHERE, 0)) {
        let at_node = index.services_of_node_port(&addr, (protocol, port));
        out.unread
            .extend(index.services_at(&addr).chain(at_node).flat_map(|service| index.unread_of(service)));
    }
    out.backends =
        targets.iter().map(|(addr, port)| Backend { address: display(addr), port: *port }).collect();
    let behind = out.backends.iter().map(|one| one.address);
    let gateways =
        std::iter::once(to).chain(behind).flat_map(|one| index.gateway_of(&address(one)).collect::<Vec<_>>());
    out.gateway_of = gateways.collect();
    let pod = index.shared_pod(pod.0, pod.1);
    let selection = pod.map(|pod| (pod, select::select(index, pod, container)));
    if let Some((pod, Selection::Isolated { content, lock })) = selection {
        let proxies = select::proxies(index, pod).into_iter().filter(|_| lock.is_some());
        out.proxies = proxies.map(str::to_owned).collect();
        out.tiers = content.tiers.iter().map(|one| tier(index, one, to, protocol, port)).collect();
    }
    out
}

fn tier(index: &Index, tier: &Tier, to: IpAddr, protocol: u8, port: u16) -> TierVerdict {
    let alone = Content { tiers: vec![tier.clone()] };
    let rule = super::rows::rule(index, alone, &address(to), (protocol, port));
    let rule = rule.and_then(|rule| tier.rules.get(usize::from(rule)));
    let kind = tier.policies.first().map_or(Kind::NetworkPolicy, |policy| policy.kind);
    TierVerdict {
        tier: kind.name(),
        policies: tier.policies.clone(),
        audit: tier.audit,
        rule: rule.map(|rule| rule.info.clone()),
    }
}
