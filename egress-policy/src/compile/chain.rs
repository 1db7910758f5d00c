//! Why one pod may, or may not, send to one address: each tier by itself, and the backends of a service address.
//!
//! Invariant: the tiers are judged by the same code as rows; `tests/explain.rs` checks that together they give the
//! verdict of the compiled state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::wire::IDENTITY_WORLD;
use serde::Serialize;

use super::cluster::Cluster;
use super::grant::{Content, Grant, Tier};
use super::identity::{self, Identities, Meaning};
use super::report::RuleInfo;
use super::select::{self, Selection};
use super::{display, row};
use crate::index::Index;
use crate::object::{ObjectRef, address};
use crate::plan::Prefixes;

/// What the policies of one kind say about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierVerdict {
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
    /// Where the address is a service's: the backends behind this port, each of which has to be allowed.
    pub backends: BTreeSet<Backend>,
}

/// Looks up what leads to the verdict of a packet of a pod, given by namespace and name.
#[must_use]
pub fn chain(index: &Index, pod: (&str, &str), to: IpAddr, protocol: u8, port: u16) -> Chain {
    let cluster = Cluster::new(index);
    let mut out = Chain::default();
    for (service, ports) in &cluster.services {
        if service.vips.contains(&to) {
            let of_port = ports.iter().filter(|one| (one.port.protocol, one.port.port) == (protocol, port));
            let targets = of_port.flat_map(|one| one.of_family(to.is_ipv4()));
            out.backends.extend(targets.map(|(addr, port)| Backend { address: display(addr), port: *port }));
        }
    }
    let member = cluster.members.iter().find(|member| (&*member.pod.namespace, &*member.pod.name) == pod);
    if let Some(Selection::Isolated(content)) = member.map(|member| select::select(index, &cluster, *member))
    {
        let grants: BTreeSet<&Grant> = content.rules().flat_map(|rule| &rule.grants).collect();
        let grants: Vec<Grant> = grants.into_iter().filter(|grant| grant.interned()).cloned().collect();
        let identities = identity::identities(&cluster, &grants);
        out.tiers =
            content.tiers.iter().map(|one| tier(one, &grants, &identities, to, protocol, port)).collect();
    }
    out
}

fn tier(
    tier: &Tier,
    grants: &[Grant],
    identities: &Identities,
    to: IpAddr,
    protocol: u8,
    port: u16,
) -> TierVerdict {
    let alone = Content { tiers: vec![tier.clone()] };
    let policy = row::prepare(&alone, |grant| grants.binary_search(grant).ok());
    let base = |identity: &u64| match identities.meanings.get(identity) {
        Some(Meaning::Base(matches)) => Some(row::base(&policy, matches)),
        _ => None,
    };
    let addr = address(to);
    let by_prefix = || Prefixes::new(&identities.cidrs).lookup(&identities.cidrs, &addr).map(|(_, id)| *id);
    let identity = identities.addresses.get(&addr).copied().or_else(by_prefix).unwrap_or(IDENTITY_WORLD);
    let cells = match identities.meanings.get(&identity) {
        Some(Meaning::Composite(meaning)) => {
            let bases: BTreeMap<_, _> =
                identities.meanings.keys().filter_map(|id| Some((*id, base(id)?))).collect();
            Some(row::composite(meaning, |identity| bases.get(&identity)))
        }
        _ => base(&identity),
    };
    let rule = cells
        .and_then(|cells| cells.at(protocol, port))
        .and_then(|(_, rule)| tier.rules.get(usize::from(rule)));
    TierVerdict {
        policies: tier.policies.clone(),
        audit: tier.audit,
        rule: rule.map(|rule| rule.info.clone()),
    }
}
