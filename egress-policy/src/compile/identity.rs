//! Identities: which addresses the policies on this node can tell apart.
//!
//! Invariant: the number of an identity depends on its meaning alone: for a *base* identity the grants that lead to
//! the address, with the ports they have there; for a *composite* the base identities behind it.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::wire::{Addr, Cidr, IDENTITY_WORLD};

use super::cluster::{Cluster, Member};
use super::grant::{Grant, Peer};
use crate::digest::{Digest, Encoder, Numbers};
use crate::object::{MAPPED_V4, PortRange, Ports, cidr_contains};
use crate::plan::Prefixes;

/// The grants that lead somewhere, each with the ports that were found there.
pub(super) type Matches = BTreeMap<usize, BTreeSet<PortRange>>;

/// Backends per protocol and service port: base identity and target port.
pub(super) type Backends = BTreeMap<(u8, u16), BTreeSet<(u64, u16)>>;

/// What an identity stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// These grants lead there.
    Base(Matches),
    /// Allowed where each of several identities is.
    Composite(Composite),
}

/// An address in front of others (a VIP), or with more than one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Composite {
    /// Base identities of the owners, every one of which must be allowed on the same port; without any, nothing but
    /// `ports` is allowed.
    pub(super) owners: BTreeSet<u64>,
    /// Per protocol and service port: base identities of the backends with their ports, every one of which must be
    /// allowed. Empty: denied.
    pub(super) ports: Backends,
}

/// The identities, and which addresses have them.
#[derive(Debug, Default)]
pub(super) struct Identities {
    pub(super) meanings: BTreeMap<u64, Meaning>,
    pub(super) addresses: BTreeMap<Addr, u64>,
    pub(super) cidrs: BTreeMap<Cidr, u64>,
    /// Addresses that belong to more than one thing.
    pub(super) shared: Vec<Addr>,
}

/// Finds the identity of every address that one of `grants` leads to.
pub(super) fn identities(cluster: &Cluster<'_>, grants: &[Grant]) -> Identities {
    let regions = regions(grants);
    let mut builder = Builder {
        cluster,
        grants,
        digests: grants.iter().map(Grant::digest).collect(),
        by_address: by_address(cluster, grants),
        by_prefix: Prefixes::new(&regions),
        regions: &regions,
        numbers: Numbers::default(),
        identity_digests: BTreeMap::new(),
        bases: BTreeMap::new(),
        out: Identities {
            meanings: BTreeMap::from([(IDENTITY_WORLD, Meaning::Base(Matches::new()))]),
            addresses: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            shared: Vec::new(),
        },
    };
    builder.prefixes();
    builder.addresses();
    builder.out
}

/// Every boundary of a prefix, with the grants that lead to what is between it and the next ones.
fn regions(grants: &[Grant]) -> BTreeMap<Cidr, BTreeSet<usize>> {
    let mut begins: BTreeMap<(Addr, u32), (BTreeSet<usize>, BTreeSet<usize>)> = BTreeMap::new();
    for (i, grant) in grants.iter().enumerate() {
        let Peer::Cidr(peer) = &grant.peer else { continue };
        begins.entry((peer.cidr.addr, peer.cidr.bits)).or_default().0.insert(i);
        for except in &peer.except {
            begins.entry((except.addr, except.bits)).or_default().1.insert(i);
        }
    }
    // By address, then length: whoever contains a prefix comes before it.
    let mut regions = BTreeMap::new();
    let mut around: Vec<(Cidr, BTreeSet<usize>)> = Vec::new();
    for ((addr, bits), (added, removed)) in begins {
        let cidr = Cidr { bits, addr };
        while around.last().is_some_and(|(outer, _)| !cidr_contains(outer, &cidr)) {
            around.pop();
        }
        let mut here = around.last().map(|(_, grants)| grants.clone()).unwrap_or_default();
        here.extend(added);
        here.retain(|grant| !removed.contains(grant));
        regions.insert(cidr, here.clone());
        around.push((cidr, here));
    }
    regions
}

/// Grants that lead to addresses whoever owns them.
fn by_address(cluster: &Cluster<'_>, grants: &[Grant]) -> BTreeMap<Addr, Matches> {
    let mut found: BTreeMap<Addr, Matches> = BTreeMap::new();
    for (i, grant) in grants.iter().enumerate() {
        let targets = match &grant.peer {
            Peer::ApiServer => cluster.api_server(),
            Peer::Dns => cluster.dns(),
            Peer::Service(namespace, name) => cluster.backends(namespace, name, &grant.ports),
            _ => continue,
        };
        for (addr, ports) in targets {
            found.entry(addr).or_default().insert(i, ports);
        }
    }
    found
}

struct Builder<'a> {
    cluster: &'a Cluster<'a>,
    grants: &'a [Grant],
    digests: Vec<Digest>,
    by_address: BTreeMap<Addr, Matches>,
    regions: &'a BTreeMap<Cidr, BTreeSet<usize>>,
    by_prefix: Prefixes,
    numbers: Numbers,
    identity_digests: BTreeMap<u64, Digest>,
    /// Base identities by address, one for each owner that is told apart.
    bases: BTreeMap<Addr, BTreeSet<u64>>,
    out: Identities,
}

impl Builder<'_> {
    fn prefixes(&mut self) {
        let mut cidrs: BTreeMap<Cidr, u64> = BTreeMap::new();
        for (cidr, grants) in self.regions {
            let matches = grants.iter().map(|grant| (*grant, BTreeSet::new())).collect();
            let identity = self.base(matches);
            cidrs.insert(*cidr, identity);
        }
        // A prefix that says what is said around it says nothing. All of IPv4 is kept apart from IPv6 by its own entry.
        let lengths = Prefixes::new(&cidrs);
        let said = |cidr: &Cidr| {
            let around = lengths.around(&cidrs, cidr).map_or(IDENTITY_WORLD, |(_, identity)| *identity);
            cidrs.get(cidr) != Some(&around) || *cidr == MAPPED_V4
        };
        self.out.cidrs = cidrs.iter().filter(|(cidr, _)| said(cidr)).map(|(cidr, id)| (*cidr, *id)).collect();
    }

    fn addresses(&mut self) {
        let mut vips: BTreeMap<Addr, Backends> = BTreeMap::new();
        let cluster = self.cluster;
        let all_vips: BTreeSet<Addr> = cluster
            .services
            .iter()
            .flat_map(|(service, _)| &service.vips)
            .map(|vip| crate::object::address(*vip))
            .collect();
        for (service, ports) in &cluster.services {
            for vip in &service.vips {
                let vip = crate::object::address(*vip);
                let rows = vips.entry(vip).or_default();
                for resolved in ports {
                    let behind = rows.entry((resolved.port.protocol, resolved.port.port)).or_default();
                    for (addr, target) in resolved.of_family(vip.is_v4()) {
                        // Nobody's but a service's: packets are translated once, so that it leads past its backends.
                        if all_vips.contains(addr) && !cluster.owned(addr) {
                            behind.insert((IDENTITY_WORLD, *target));
                            continue;
                        }
                        behind.extend(self.at(addr).iter().map(|identity| (*identity, *target)));
                    }
                }
            }
        }
        let mut all: BTreeSet<Addr> = cluster.owners.keys().chain(cluster.nodes.keys()).copied().collect();
        all.extend(self.by_address.keys().chain(vips.keys()));
        let lengths = Prefixes::new(&self.out.cidrs);
        for addr in all {
            let owned = cluster.owned(&addr);
            let ports = vips.remove(&addr);
            let owners = if owned || ports.is_none() { self.at(&addr).clone() } else { BTreeSet::new() };
            let several = cluster.owners.get(&addr).is_some_and(|pods| pods.len() > 1);
            let several =
                several || (cluster.owners.contains_key(&addr) && cluster.nodes.contains_key(&addr));
            if several || (owned && ports.is_some()) {
                self.out.shared.push(addr);
            }
            let identity = match (ports, owners.first()) {
                (None, Some(only)) if owners.len() == 1 => *only,
                (ports, _) => self.composite(Composite { owners, ports: ports.unwrap_or_default() }),
            };
            let otherwise =
                lengths.lookup(&self.out.cidrs, &addr).map_or(IDENTITY_WORLD, |(_, identity)| *identity);
            if identity != otherwise {
                self.out.addresses.insert(addr, identity);
            }
        }
    }

    /// The base identities of an address: one for each owner, or that of an address nobody owns.
    fn at(&mut self, addr: &Addr) -> &BTreeSet<u64> {
        if !self.bases.contains_key(addr) {
            let cluster = self.cluster;
            let mut found: Vec<Matches> = Vec::new();
            for member in cluster.owners.get(addr).into_iter().flatten() {
                found.push(self.matches(addr, Some(*member), false));
            }
            if cluster.nodes.contains_key(addr) {
                found.push(self.matches(addr, None, true));
            }
            if found.is_empty() {
                found.push(self.matches(addr, None, false));
            }
            let identities = found.into_iter().map(|matches| self.base(matches)).collect();
            self.bases.insert(*addr, identities);
        }
        self.bases.entry(*addr).or_default()
    }

    /// The grants that lead to an address as that of one owner.
    fn matches(&self, addr: &Addr, owner: Option<Member<'_>>, node: bool) -> Matches {
        let spared = |grant: &Grant| grant.spare_gateways && owner.is_some_and(|member| member.gateway);
        let mut found = Matches::new();
        if let Some((_, grants)) = self.by_prefix.lookup(self.regions, addr) {
            found.extend(grants.iter().map(|grant| (*grant, BTreeSet::new())));
        }
        if let Some(matches) = self.by_address.get(addr) {
            found.extend(matches.iter().map(|(grant, ports)| (*grant, ports.clone())));
        }
        for (i, grant) in self.grants.iter().enumerate() {
            let leads = match (&grant.peer, owner) {
                (Peer::Node(name), _) => {
                    node && self.cluster.nodes.get(addr).is_some_and(|names| names.contains(&**name))
                }
                (Peer::Cluster, owner) => node || owner.is_some(),
                (Peer::InCluster, Some(member)) => !member.gateway,
                (Peer::Pods(scope, pods), Some(member)) => {
                    let in_scope = match scope {
                        crate::object::PodScope::Namespace(name) => *name == member.pod.namespace,
                        crate::object::PodScope::Matching(selector) => {
                            self.cluster.namespace(&member.pod.namespace).match_selector(selector)
                        }
                    };
                    in_scope && pods.matches_labels(&member.pod.labels)
                }
                (Peer::Gateway(peer), Some(member)) => {
                    peer.matches(member.pod, self.cluster.namespace(&member.pod.namespace))
                }
                _ => false,
            };
            if leads {
                found.entry(i).or_default();
            }
            if let Some(member) = owner {
                self.ports_at(i, grant, addr, member, &mut found);
            }
        }
        found.retain(|i, _| self.grants.get(*i).is_some_and(|grant| !spared(grant)));
        found
    }

    /// Adds the ports that a grant has at a pod only: named ones, and those behind a gateway's service.
    fn ports_at(&self, i: usize, grant: &Grant, addr: &Addr, member: Member<'_>, found: &mut Matches) {
        let mut ports = BTreeSet::new();
        for (protocol, name) in grant.named() {
            let named = member
                .pod
                .spec
                .named_ports
                .iter()
                .filter(|port| port.protocol == protocol && port.name == *name);
            ports.extend(named.map(|port| PortRange::one(protocol, port.port)));
        }
        if matches!(grant.peer, Peer::Gateway(_)) && grant.ports != Ports::All {
            ports.extend(self.cluster.behind(member.pod, addr, &grant.ports));
        }
        if ports.is_empty() {
            return;
        }
        match found.get_mut(&i) {
            Some(known) => known.extend(ports),
            None if grant.peer == Peer::Any => {
                found.insert(i, ports);
            }
            None => {}
        }
    }

    fn base(&mut self, matches: Matches) -> u64 {
        if matches.is_empty() {
            return IDENTITY_WORLD;
        }
        let mut sorted: Vec<_> =
            matches.iter().filter_map(|(grant, ports)| Some((self.digests.get(*grant)?, ports))).collect();
        sorted.sort();
        let mut out = Encoder::new("identity");
        out.list(sorted.len());
        for (grant, ports) in sorted {
            out.bytes(grant);
            out.list(ports.len());
            for port in ports {
                out.number(u64::from(port.protocol));
                out.number(u64::from(port.low));
                out.number(u64::from(port.high));
            }
        }
        self.intern(out, Meaning::Base(matches))
    }

    fn composite(&mut self, composite: Composite) -> u64 {
        let mut out = Encoder::new("composite");
        self.encode(&mut out, composite.owners.iter().map(|identity| (*identity, 0)));
        out.list(composite.ports.len());
        for ((protocol, port), backends) in &composite.ports {
            out.number(u64::from(*protocol));
            out.number(u64::from(*port));
            self.encode(&mut out, backends.iter().copied());
        }
        self.intern(out, Meaning::Composite(composite))
    }

    /// Base identities by their digests, so that the number does not depend on numbers.
    fn encode(&self, out: &mut Encoder, identities: impl Iterator<Item = (u64, u16)>) {
        let digest = |identity| self.identity_digests.get(&identity).copied().unwrap_or_default();
        let sorted: BTreeSet<(Digest, u16)> =
            identities.map(|(identity, port)| (digest(identity), port)).collect();
        out.list(sorted.len());
        for (digest, port) in sorted {
            out.bytes(&digest);
            out.number(u64::from(port));
        }
    }

    fn intern(&mut self, out: Encoder, meaning: Meaning) -> u64 {
        let digest = out.digest();
        let number = self.numbers.of(&digest);
        self.identity_digests.insert(number, digest);
        self.out.meanings.entry(number).or_insert(meaning);
        number
    }
}
