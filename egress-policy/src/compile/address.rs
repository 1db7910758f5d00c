//! The identity of one address, from the objects and the grants.
//!
//! Invariant: it depends on these alone; that replicas are judged once in a [`Pass`] changes nothing. Tested by `tests/incremental.rs` and
//! `tests/reference.rs`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egress_common::wire::{Addr, Cidr, IDENTITY_WORLD};
use smallvec::SmallVec;

use super::grant::{Grant, Peer};
use super::grants::{GrantId, Grants};
use super::identity::{Backends, Composite, Identities, Matches};
use super::place::Place;
use crate::by_addr::ByAddr;
use crate::index::{ANYWHERE, API_SERVER, Index, Targets};
use crate::object::{EndpointSlice, NamespaceLabels, Pod, PortRange, Ports, Template, address};

/// Ports per grant, while they are collected.
type Found = BTreeMap<GrantId, BTreeSet<PortRange>>;

/// Who has an address.
#[derive(Clone, Copy)]
enum Owner<'a> {
    Pod(&'a Pod),
    Node,
    Nobody,
}

/// Judges addresses; interns what it finds.
pub(super) struct Addresses<'a, 'i> {
    pub(super) pass: &'a mut Pass<'i>,
    pub(super) grants: &'a Grants,
    pub(super) identities: &'a mut Identities,
    /// Identities that are written for addresses already.
    pub(super) known: &'a ByAddr<u64>,
    /// Counts addresses, backends and the service ports that are looked at.
    pub(super) work: &'a mut u64,
}

/// What was found out while addresses are judged one after the other, with the same objects and grants.
pub(super) struct Pass<'i> {
    index: &'i Index,
    /// What is behind the node ports of every node: IPv4, and IPv6.
    nodes: [NodePorts; 2],
    /// Base identities of pods: replicas have the same.
    alike: BTreeMap<Alike, u64>,
}

impl<'i> Pass<'i> {
    pub(super) fn new(index: &'i Index) -> Self {
        Self { index, nodes: <[NodePorts; 2]>::default(), alike: BTreeMap::new() }
    }
}

/// All that the base identity of a pod's address depends on, so long as objects and grants stay. What replicas share is known by where it
/// is in memory.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Alike {
    template: *const Template,
    /// The slices that the address is in.
    behind: SmallVec<[*const EndpointSlice; 2]>,
    /// The region of prefixes that it is in.
    region: Option<Cidr>,
    gateway: bool,
    gateway_address: bool,
}

/// What is behind node ports that lead out, of one family; the same on every node, and looked at once.
#[derive(Default)]
pub(super) struct NodePorts {
    targets: Option<BTreeMap<(u8, u16), Targets>>,
    /// Those, and what is behind them in turn.
    backends: Option<Backends>,
}

impl Addresses<'_, '_> {
    /// The identity of what is at an address.
    pub(super) fn identity(&mut self, place: &Place<'_>) -> u64 {
        *self.work += 1;
        let Place { addr, in_front, vip, .. } = *place;
        if place.plain() {
            return self.base(&addr, owners(place).next().unwrap_or(Owner::Nobody));
        }
        let index = self.pass.index;
        if index.is_unread(&addr) {
            return self.identities.nowhere();
        }
        // An address that somebody chose for a service may be anybody's: until all nodes translate it, it is.
        let itself = !vip || place.owned() || index.is_external(&addr);
        let mut ports = if in_front { self.backends(&addr) } else { Backends::new() };
        // A gateway's is the gateway's, whatever is behind it; on the service's ports, as nobody is at the others.
        if !itself && index.is_gateway_address(&addr) {
            let gateway = self.bases(place);
            for ((_, port), behind) in ports.iter_mut().filter(|(_, behind)| !behind.is_empty()) {
                behind.extend(gateway.iter().map(|identity| (*identity, *port)));
            }
        }
        let owners = if itself { self.bases(place) } else { BTreeSet::new() };
        match owners.first() {
            Some(only) if owners.len() == 1 && !in_front => *only,
            _ => self.identities.composite(Composite { owners, ports }),
        }
    }

    /// Whether an identity that was found at an address says anything but what is said of all that is around it.
    pub(super) fn tells_more(&mut self, place: &Place<'_>, found: u64) -> bool {
        let around = || self.grants.around(&place.addr).map(|grant| (grant, Vec::new())).collect();
        !place.nobodys() || found != self.identities.base(around(), self.grants)
    }

    /// What is behind each port of what an address stands for.
    fn backends(&mut self, front: &Addr) -> Backends {
        let mut out = Backends::new();
        let index = self.pass.index;
        let mut bases = BTreeMap::new();
        for service in index.services_at(front) {
            for port in &service.ports {
                let targets = index.chosen(service, port, front.is_v4());
                let behind = out.entry((port.protocol, port.port)).or_default();
                self.follow(port.protocol, targets, &mut bases, behind);
            }
        }
        if index.leads_out(front) {
            for (port, behind) in self.behind_node(front, &mut bases) {
                self.add(&mut out, port, behind);
            }
        }
        out
    }

    /// Adds what is behind a port of a node. A service may have that port as well: where nothing is behind one of the two, nothing makes up
    /// for it that is behind the other.
    fn add(&mut self, out: &mut Backends, port: (u8, u16), behind: BTreeSet<(u64, u16)>) {
        match out.entry(port) {
            Entry::Vacant(entry) => drop(entry.insert(behind)),
            Entry::Occupied(mut entry) => {
                if entry.get().is_empty() || behind.is_empty() {
                    entry.get_mut().insert((self.identities.nowhere(), port.1));
                }
                entry.get_mut().extend(behind);
            }
        }
    }

    /// What is behind the ports of a node that lead out.
    fn behind_node(&mut self, node: &Addr, bases: &mut BTreeMap<Addr, BTreeSet<u64>>) -> Backends {
        let mut out = self.behind_node_ports(node.is_v4(), bases);
        for (port, targets) in self.pass.index.behind_host_ports(node) {
            self.follow(port.0, targets, bases, out.entry(port).or_default());
        }
        out
    }

    /// What is behind the node ports of every node.
    fn behind_node_ports(&mut self, v4: bool, bases: &mut BTreeMap<Addr, BTreeSet<u64>>) -> Backends {
        if let Some(known) = &self.nodes(v4).backends {
            return known.clone();
        }
        let mut out = Backends::new();
        for (port, targets) in self.node_ports(v4).clone() {
            self.follow(port.0, targets, bases, out.entry(port).or_default());
        }
        self.nodes(v4).backends = Some(out.clone());
        out
    }

    /// What node ports lead to.
    fn node_ports(&mut self, v4: bool) -> &BTreeMap<(u8, u16), Targets> {
        let index = self.pass.index;
        self.nodes(v4).targets.get_or_insert_with(|| index.behind_node_ports(v4))
    }

    fn nodes(&mut self, v4: bool) -> &mut NodePorts {
        let [of_v4, of_v6] = &mut self.pass.nodes;
        if v4 { of_v4 } else { of_v6 }
    }

    /// Adds the base identities of backends, and of what is behind them: another node translates what comes to a port of its own, and to a
    /// service's that has a backend's address.
    fn follow(
        &mut self,
        protocol: u8,
        targets: Targets,
        bases: &mut BTreeMap<Addr, BTreeSet<u64>>,
        behind: &mut BTreeSet<(u64, u16)>,
    ) {
        /// Addresses of services, among those of backends, from which packets go on to others.
        const HOPS: usize = 64;
        let index = self.pass.index;
        let mut hops = 0;
        let mut seen = targets.clone();
        let mut next: Vec<(Addr, u16)> = targets.into_iter().collect();
        while let Some((addr, target)) = next.pop() {
            *self.work += 1;
            if addr == ANYWHERE {
                behind.insert((self.identities.nowhere(), target));
                continue;
            }
            let place = Place::at(index, addr);
            // Nobody's but a service's: packets are translated once, so that it leads past its backends.
            if place.vip && !place.owned() {
                behind.insert((IDENTITY_WORLD, target));
                continue;
            }
            match self.known.get(&addr).filter(|_| place.plain()) {
                Some(identity) => drop(behind.insert((*identity, target))),
                None => {
                    let bases = bases.entry(addr).or_insert_with(|| self.bases(&place));
                    behind.extend(bases.iter().map(|identity| (*identity, target)));
                }
            }
            if !place.in_front {
                continue;
            }
            let port = (protocol, target);
            let mut further = Targets::new();
            match index.behind_services_at(&addr, port) {
                Some(none) if none.is_empty() => drop(behind.insert((self.identities.nowhere(), target))),
                leads => further.extend(leads.into_iter().flatten()),
            }
            hops += usize::from(further.iter().any(|target| !seen.contains(target)));
            // Whoever writes services so that each leads to the next is not followed to the end of all of them, from each of them.
            if hops > HOPS {
                behind.insert((self.identities.nowhere(), target));
                break;
            }
            if index.leads_out(&addr) {
                further.extend(index.behind_host_ports(&addr).remove(&port).unwrap_or_default());
                further.extend(self.node_ports(addr.is_v4()).get(&port).into_iter().flatten());
            }
            next.extend(further.into_iter().filter(|target| seen.insert(*target)));
        }
    }

    /// The base identities of an address: one for each owner, or that of an address nobody owns.
    fn bases(&mut self, place: &Place<'_>) -> BTreeSet<u64> {
        let mut found: BTreeSet<u64> = owners(place).map(|owner| self.base(&place.addr, owner)).collect();
        if found.is_empty() {
            found.insert(self.base(&place.addr, Owner::Nobody));
        }
        found
    }

    /// The base identity of an address as that of one owner.
    fn base(&mut self, addr: &Addr, owner: Owner<'_>) -> u64 {
        let index = self.pass.index;
        let alike = match owner {
            Owner::Pod(pod) => Some(Alike {
                template: Arc::as_ptr(&pod.template),
                behind: index.slices_with(addr).iter().map(Arc::as_ptr).collect(),
                region: self.grants.region(addr),
                gateway: index.is_gateway(pod),
                gateway_address: index.is_gateway_address(addr),
            }),
            Owner::Node | Owner::Nobody => None,
        };
        if let Some(identity) = alike.as_ref().and_then(|alike| self.pass.alike.get(alike)) {
            return *identity;
        }
        let matches = matches(index, self.grants, addr, owner, self.work);
        let identity = self.identities.base(matches, self.grants);
        self.pass.alike.extend(alike.map(|alike| (alike, identity)));
        identity
    }
}

/// Who has what is at an address; none where nobody has.
fn owners<'a>(place: &Place<'a>) -> impl Iterator<Item = Owner<'a>> + use<'a> {
    let node = (!place.nodes.is_empty()).then_some(Owner::Node);
    place.pods.iter().map(|pod| Owner::Pod(pod)).chain(node)
}

/// The grants that lead to an address as that of one owner.
fn matches(index: &Index, grants: &Grants, addr: &Addr, owner: Owner<'_>, work: &mut u64) -> Matches {
    let mut found: Found = grants.of_address(addr).map(|id| (id, BTreeSet::new())).collect();
    *work += fronts(index, grants, addr, &mut found);
    let mut add = |peer: &Peer| found.extend(grants.of_peer(peer).map(|id| (id, BTreeSet::new())));
    match owner {
        // Nor does a service lead there that is allowed, or the cluster's DNS: who may write its slices would choose what is outside.
        Owner::Nobody => found.retain(|id, _| {
            let by_service = |peer: &Peer| matches!(peer, Peer::Service(..) | Peer::Dns);
            grants.get(*id).is_some_and(|grant| !by_service(&grant.peer))
        }),
        Owner::Node => {
            add(&Peer::Cluster);
            index.nodes_at(addr).iter().for_each(|name| add(&Peer::Node(name.clone())));
        }
        Owner::Pod(pod) => {
            add(&Peer::Cluster);
            add(if index.is_gateway(pod) { &Peer::GatewayPod } else { &Peer::InCluster });
            of_pod(index, grants, (addr, pod), &mut found);
        }
    }
    if index.is_gateway_address(addr) {
        found.extend(grants.of_peer(&Peer::GatewayAddress).map(|id| (id, BTreeSet::new())));
    }
    found.into_iter().map(|(id, ports)| (id, ports.into_iter().collect())).collect()
}

/// Grants that lead to backends, whoever owns them; tells how many service ports were looked at.
fn fronts(index: &Index, grants: &Grants, addr: &Addr, found: &mut Found) -> u64 {
    let mut looked_at = 0;
    for front in index.fronts(addr) {
        looked_at += 1;
        for id in grants.of_peer(&Peer::Dns) {
            found.entry(id).or_default().extend(front.dns().into_iter().flatten());
        }
        for id in grants.of_peer(&Peer::ApiServer) {
            found.entry(id).or_default().extend(index.api_server(&front));
        }
        let service = front.service;
        for id in grants.of_peer(&Peer::Service(service.namespace.clone(), service.name.clone())) {
            let listed = grants.get(id).map(|grant| &grant.ports);
            let port = listed.and_then(|ports| front.of(&service.namespace, &service.name, ports));
            found.entry(id).or_default().extend(port);
        }
    }
    // Without a port there, they do not lead there.
    found
        .retain(|id, ports| !ports.is_empty() || grants.get(*id).is_some_and(|grant| !grant.resolved_only()));
    looked_at
}

/// Grants that lead to a pod, and the ports that grants have at a pod only.
fn of_pod(index: &Index, grants: &Grants, (addr, pod): (&Addr, &Pod), found: &mut Found) {
    let namespace: NamespaceLabels<'_> = index.namespace(&pod.namespace);
    found.extend(grants.of_pod(pod, namespace).map(|id| (id, BTreeSet::new())));
    found.retain(|id, ports| {
        let Some(grant) = grants.get(*id) else { return false };
        named(grant, pod, ports);
        if matches!(grant.peer, Peer::Gateway(_)) && grant.ports != Ports::All {
            // Only services of the pod's own namespace count: nobody else's object opens a port of a gateway.
            let own = index.fronts(addr).filter(|front| front.service.namespace == pod.namespace);
            let listed = own.filter(|front| grant.ports.holds(front.port.protocol, front.port.port));
            ports.extend(listed.map(|front| front.range()));
        }
        true
    });
    for id in grants.of_peer(&Peer::Any) {
        let mut ports = BTreeSet::new();
        if let Some(grant) = grants.get(id) {
            named(grant, pod, &mut ports);
        }
        if !ports.is_empty() {
            found.insert(id, ports);
        }
    }
}

/// Adds the ports that a grant names and a pod has.
fn named(grant: &Grant, pod: &Pod, ports: &mut BTreeSet<PortRange>) {
    for (protocol, name) in grant.named() {
        let named =
            pod.spec.named_ports.iter().filter(|port| port.protocol == protocol && port.name == *name);
        ports.extend(named.map(|port| PortRange::one(protocol, port.port)));
    }
}

/// Adds every address that a grant may lead to, as the objects are now.
pub(super) fn targets(index: &Index, grants: &Grants, grant: &Grant, found: &mut Vec<Addr>) {
    if let Some(cidr) = grant.prefix() {
        // What is in a smaller one is told by that.
        return found.extend(grants.own(cidr).into_iter().flat_map(|range| index.known_between(range)));
    }
    let of_pod = |pod: &Pod, found: &mut Vec<Addr>| {
        if pod.owns_addresses() {
            found.extend(pod.addresses.iter().map(|ip| address(*ip)));
        }
    };
    let mut of_service = |service: &crate::object::Service| found.extend(index.addresses_behind(service));
    match &grant.peer {
        Peer::Service(namespace, name) => {
            index.service(namespace, name).into_iter().for_each(&mut of_service);
        }
        Peer::ApiServer => {
            index.service(API_SERVER.0, API_SERVER.1).into_iter().for_each(&mut of_service);
        }
        Peer::Dns => index.dns().for_each(&mut of_service),
        Peer::Node(name) => found.extend(index.addresses_of_node(name)),
        Peer::Cluster => {
            index.shared_pods().for_each(|pod| of_pod(pod, found));
            found.extend(index.nodes().flat_map(|node| &node.addresses).map(|ip| address(*ip)));
        }
        Peer::Any | Peer::InCluster => index.shared_pods().for_each(|pod| of_pod(pod, found)),
        Peer::Cidr(peer) => found.extend(index.known_within(&peer.cidr)),
        Peer::Within(cidrs) => found.extend(cidrs.iter().flat_map(|cidr| index.known_within(cidr))),
        Peer::Pods(scope, pods) => {
            let in_namespace = |name: &Arc<str>, found: &mut Vec<Addr>| {
                index
                    .pods_of(name)
                    .filter(|pod| pods.matches_labels(&pod.labels))
                    .for_each(|pod| of_pod(pod, found));
            };
            match scope {
                crate::object::PodScope::Namespace(name) => in_namespace(name, found),
                crate::object::PodScope::Matching(selector) => index
                    .namespace_names()
                    .iter()
                    .filter(|name| index.namespace(name).match_selector(selector))
                    .for_each(|name| in_namespace(name, found)),
            }
        }
        Peer::GatewayAddress => found.extend(index.gateway_addresses()),
        Peer::Gateway(_) | Peer::GatewayPod => index.gateways().for_each(|pod| of_pod(pod, found)),
    }
}
