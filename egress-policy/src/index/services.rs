//! Services: which addresses stand for them, and what is behind those.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use egress_common::packet::protocol;
use egress_common::wire::Addr;
use smallvec::SmallVec;

use super::{Index, Name, unlist};
use crate::by_addr::Lists;
use crate::object::{Endpoint, EndpointSlice, ObjectRef, PortRange, Ports, Service, ServicePort, address};
use crate::pack::pack;

/// Backends of one service port in one address family: (address, target port).
pub(crate) type Targets = BTreeSet<(Addr, u16)>;

/// Stands for every address: what is behind a service of which something cannot be read. No packet is sent to it.
pub(crate) const ANYWHERE: Addr = Addr([0; 16]);

/// A service port in front of a backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front<'a> {
    pub(crate) service: &'a Service,
    slice: &'a EndpointSlice,
    pub(crate) port: &'a ServicePort,
    pub(crate) target: u16,
}

/// Namespace and name of the API server's service.
pub(crate) const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// Lookups from services to addresses and back.
#[derive(Clone, Debug, Default)]
pub(super) struct Lookups {
    /// The slices of a service, by the service's name.
    slices: BTreeMap<Name, SmallVec<[Arc<EndpointSlice>; 2]>>,
    /// The slices that an address is in.
    behind: Lists<Arc<EndpointSlice>>,
    /// The services that an address stands for.
    vips: Lists<Arc<Service>>,
}

impl Lookups {
    /// See [`Index::pack`].
    pub(super) fn pack(&mut self) {
        pack(&mut self.slices);
        self.behind.pack();
        self.vips.pack();
    }

    pub(super) fn add_slice(&mut self, slice: &Arc<EndpointSlice>) {
        if let Some(service) = &slice.service {
            let service = (slice.namespace.clone(), service.clone());
            self.slices.entry(service).or_default().push(slice.clone());
        }
        let addresses: BTreeSet<Addr> = slice.endpoints.iter().map(|one| address(one.address)).collect();
        for addr in addresses {
            self.behind.add(addr, slice.clone());
        }
    }

    pub(super) fn remove_slice(&mut self, slice: &Arc<EndpointSlice>) {
        if let Some(service) = &slice.service {
            let service = (slice.namespace.clone(), service.clone());
            unlist(&mut self.slices, &service, |one| Arc::ptr_eq(one, slice));
        }
        for endpoint in slice.endpoints.iter() {
            self.behind.unlist(&address(endpoint.address), |one| Arc::ptr_eq(one, slice));
        }
    }

    /// The addresses in a range that stand for services or are behind them.
    pub(super) fn within(&self, range: RangeInclusive<Addr>) -> impl Iterator<Item = Addr> {
        self.behind.within(range.clone()).chain(self.vips.within(range))
    }

    pub(super) fn add_service(&mut self, service: &Arc<Service>) {
        for vip in &service.vips {
            self.vips.add(address(*vip), service.clone());
        }
    }

    pub(super) fn remove_service(&mut self, service: &Arc<Service>) {
        for vip in &service.vips {
            self.vips.unlist(&address(*vip), |one| Arc::ptr_eq(one, service));
        }
    }
}

impl Index {
    /// The addresses that stand for services.
    pub(crate) fn vips(&self) -> impl Iterator<Item = Addr> {
        self.lookups.vips.keys()
    }

    /// Whether an address stands for a service.
    pub(crate) fn is_vip(&self, addr: &Addr) -> bool {
        self.lookups.vips.contains_key(addr)
    }

    /// Whether an address stands for services that chose it themselves, and for no other.
    pub(crate) fn is_external(&self, addr: &Addr) -> bool {
        let mut services = self.services_at(addr).peekable();
        let chose = |service: &Service| service.external.iter().any(|ip| address(*ip) == *addr);
        services.peek().is_some() && services.all(chose)
    }

    /// The services that an address stands for.
    pub(crate) fn services_at(&self, addr: &Addr) -> impl Iterator<Item = &Service> {
        self.lookups.vips.list(addr).iter().map(|service| &**service)
    }

    /// What is behind a port of the services that an address stands for, by protocol and number; `None` where none of them has that port.
    pub(crate) fn behind_services_at(&self, addr: &Addr, port: (u8, u16)) -> Option<Targets> {
        let mut out = None;
        for service in self.services_at(addr) {
            if service.unread {
                out.get_or_insert_with(Targets::new).insert((ANYWHERE, 0));
            }
            for one in service.ports.iter().filter(|one| (one.protocol, one.port) == port) {
                out.get_or_insert_with(Targets::new).extend(self.chosen(service, one, addr.is_v4()));
            }
        }
        out
    }

    /// Whether a service may lead anywhere, as something of it, or of a slice that kube-proxy takes backends from, cannot be read.
    pub(crate) fn leads_anywhere(&self, service: &Service) -> bool {
        service.unread || self.slices_of(service).any(|slice| slice.proxied && slice.unread)
    }

    /// The service, and the slices of it, of which something cannot be read.
    pub(crate) fn unread_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = ObjectRef> + 'a {
        let slices = self.slices_of(service).filter(|slice| slice.proxied && slice.unread);
        let own = Some(service).filter(|service| service.unread).map(Service::object_ref);
        own.into_iter().chain(slices.map(EndpointSlice::object_ref))
    }

    /// Whether an address stands for a service of which something cannot be read: on which ports cannot be told.
    pub(crate) fn is_unread(&self, addr: &Addr) -> bool {
        self.services_at(addr).any(|service| service.unread)
    }

    /// The addresses that stand for the service of a slice.
    pub(crate) fn vips_before(&self, slice: &EndpointSlice) -> impl Iterator<Item = Addr> {
        self.service_of(slice).into_iter().flat_map(|service| &service.vips).map(|vip| address(*vip))
    }

    /// The slices that an address is in; with the services' ports they are all that [`Index::fronts`] depends on.
    pub(crate) fn slices_with(&self, addr: &Addr) -> &[Arc<EndpointSlice>] {
        self.lookups.behind.list(addr)
    }

    /// The service ports that an address is behind, in whatever condition: who translates at connect time goes on with a
    /// backend that takes no new connections.
    pub(crate) fn fronts(&self, addr: &Addr) -> impl Iterator<Item = Front<'_>> {
        let slices = self.lookups.behind.list(addr).iter();
        let slices = slices.filter(|slice| !slice.former && !slice.unread);
        let fronts = slices.filter_map(|slice| Some((slice, self.service_of(slice)?)));
        fronts.filter(|(_, service)| !service.unread).flat_map(|(slice, service)| {
            service
                .ports
                .iter()
                .filter_map(move |port| Some(Front { service, slice, port, target: target(slice, port)? }))
        })
    }

    /// The port by which a front leads to the API server. The server writes one slice itself, whose name is its service's; where that is
    /// there, nobody else's tells where it is. (`pkg/controlplane/reconcilers` of Kubernetes.)
    pub(crate) fn api_server(&self, front: &Front<'_>) -> Option<PortRange> {
        let (namespace, name) = API_SERVER;
        let port = front.of(namespace, name, &Ports::All)?;
        let own = |slice: &EndpointSlice| *slice.name == *name;
        (own(front.slice) || !self.slices_of(front.service).any(own)).then_some(port)
    }

    /// The names of the services that may send new connections to an address.
    pub(super) fn services_before(&self, addr: &Addr) -> BTreeSet<Name> {
        let slices = self.lookups.behind.list(addr).iter();
        let takes = |slice: &&Arc<EndpointSlice>| {
            slice.endpoints.iter().any(|one| one.may_take() && address(one.address) == *addr)
        };
        slices.filter(takes).filter_map(|slice| service_of(slice)).collect()
    }

    /// The addresses to which a service may send new connections.
    pub(super) fn takers<'a>(&'a self, service: &Service) -> impl Iterator<Item = Addr> + use<'a> {
        let endpoints = self.slices_of(service).flat_map(|slice| slice.endpoints.iter());
        endpoints.filter(Endpoint::may_take).map(|endpoint| address(endpoint.address))
    }

    /// A service by namespace and name.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(namespace, name).map(|service| &**service)
    }

    /// The service that a slice is a part of.
    pub(super) fn service_of(&self, slice: &EndpointSlice) -> Option<&Service> {
        self.service(&slice.namespace, slice.service.as_deref()?)
    }

    /// An endpoint slice by namespace and name.
    pub(crate) fn slice(&self, namespace: &str, name: &str) -> Option<&EndpointSlice> {
        self.endpoint_slices.get(namespace, name).map(|slice| &**slice)
    }

    /// The services that are the cluster's DNS.
    pub(crate) fn dns(&self) -> impl Iterator<Item = &Service> {
        self.services.of(SYSTEM).map(|service| &**service).filter(|service| is_dns(service))
    }

    /// The slices of a service.
    pub fn slices_of<'a>(&'a self, service: &Service) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        let name = (service.namespace.clone(), service.name.clone());
        self.lookups.slices.get(&name).into_iter().flatten().map(|slice| &**slice)
    }

    /// Every address behind a service, in whatever condition.
    pub(crate) fn addresses_behind<'a>(&'a self, service: &Service) -> impl Iterator<Item = Addr> + use<'a> {
        self.slices_of(service)
            .flat_map(|slice| slice.endpoints.iter())
            .map(|endpoint| address(endpoint.address))
    }

    /// The backends that a service port may choose for a VIP of one family: the ready ones, and those serving while terminating, also
    /// beside ready ones. kube-proxy chooses those where none is ready, and what is ready to it cannot be told from here: of an address
    /// that is in several slices it keeps one entry (`pkg/proxy/endpointslicecache.go`), and with `Local` each node has its own. What
    /// could be chosen a moment ago counts as well. Of what cannot be read it is [`ANYWHERE`].
    pub(crate) fn chosen(&self, service: &Service, port: &ServicePort, v4: bool) -> Targets {
        let mut out = Targets::new();
        if self.leads_anywhere(service) {
            out.insert((ANYWHERE, 0));
            return out;
        }
        for slice in self.slices_of(service).filter(|slice| slice.proxied) {
            let Some(target) = target(slice, port) else { continue };
            let of_family = slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == v4);
            let chosen = of_family.filter(|endpoint| slice.former || endpoint.may_take());
            out.extend(chosen.map(|endpoint| (address(endpoint.address), target)));
        }
        out
    }
}

const SYSTEM: &str = "kube-system";

/// Whether a service is the cluster's DNS.
fn is_dns(service: &Service) -> bool {
    let label = service.labels.get("k8s-app") == Some("kube-dns");
    *service.namespace == *SYSTEM && (label || matches!(&*service.name, "kube-dns" | "coredns"))
}

/// The name of the service that a slice is a part of.
pub(super) fn service_of(slice: &EndpointSlice) -> Option<Name> {
    Some((slice.namespace.clone(), slice.service.clone()?))
}

/// The port at the backends of a slice that a service port leads to.
fn target(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let wanted = (&*port.name, port.protocol);
    let at = slice.ports.binary_search_by(|one| (&*one.name, one.protocol).cmp(&wanted)).ok()?;
    slice.ports.get(at).map(|one| one.port)
}

impl Front<'_> {
    /// The ports by which a backend is the cluster's DNS: 53, and what is behind port 53 of the service.
    pub(crate) fn dns(&self) -> Option<[PortRange; 3]> {
        let ServicePort { protocol, port, .. } = *self.port;
        let is_port = port == 53 && matches!(protocol, protocol::UDP | protocol::TCP);
        (is_port && is_dns(self.service)).then(|| {
            [
                PortRange::one(protocol, self.target),
                PortRange::one(protocol::UDP, 53),
                PortRange::one(protocol::TCP, 53),
            ]
        })
    }

    /// The backend's port, where the service is this one and its own port is listed.
    pub(crate) fn of(&self, namespace: &str, name: &str, listed: &Ports) -> Option<PortRange> {
        let named = *self.service.namespace == *namespace && *self.service.name == *name;
        (named && listed.holds(self.port.protocol, self.port.port)).then(|| self.range())
    }

    /// The backend's port.
    pub(crate) fn range(&self) -> PortRange {
        PortRange::one(self.port.protocol, self.target)
    }
}
