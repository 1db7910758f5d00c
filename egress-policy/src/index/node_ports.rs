//! Ports of nodes that lead out: node ports of services with something behind them that is a gateway, a node, another
//! service's, or nobody's in the cluster, or that cannot be read, and host ports of gateways. Who may reach a node
//! could leave through them.
//!
//! Invariant: they are found whatever the order of events, and every address of a node is looked at again when one of them changes.
//! Tested by `tests/node_ports.rs` and `tests/incremental.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use egress_common::wire::Addr;

use super::services::{Targets, service_of};
use super::{Dirty, Index, Name, doors, owned};
use crate::object::{EndpointSlice, Pod, Service, address};

/// What leads out, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct LeadingOut {
    /// Services with node ports.
    services: BTreeSet<Name>,
    /// Gateways with host ports, by node.
    gateways: BTreeMap<Arc<str>, BTreeSet<Name>>,
}

fn has_node_ports(service: &Service) -> bool {
    service.ports.iter().any(|port| port.node_port != 0)
}

impl Index {
    /// Whether an address is one at which a node answers that has ports that lead out.
    pub(crate) fn leads_out(&self, addr: &Addr) -> bool {
        let out = &self.leading_out;
        if out.services.is_empty() && out.gateways.is_empty() {
            return false;
        }
        let nodes = self.answering_at(addr);
        !nodes.is_empty()
            && (!out.services.is_empty() || nodes.iter().any(|node| out.gateways.contains_key(node)))
    }

    /// The services with node ports that lead out.
    fn services_out(&self) -> impl Iterator<Item = &Service> {
        let names = self.leading_out.services.iter();
        names.filter_map(|(namespace, name)| self.service(namespace, name))
    }

    /// What is behind node ports that lead out, of one family, by protocol and port; the same on every node.
    pub(crate) fn behind_node_ports(&self, v4: bool) -> BTreeMap<(u8, u16), Targets> {
        let mut out: BTreeMap<_, Targets> = BTreeMap::new();
        for service in self.services_out() {
            for port in service.ports.iter().filter(|port| port.node_port != 0) {
                let chosen = self.chosen(service, port, v4);
                out.entry((port.protocol, port.node_port)).or_default().extend(chosen);
            }
        }
        out
    }

    /// What is behind the host ports of gateways at an address of a node, by protocol and port.
    pub(crate) fn behind_host_ports(&self, addr: &Addr) -> BTreeMap<(u8, u16), Targets> {
        let mut out: BTreeMap<_, Targets> = BTreeMap::new();
        let nodes = self.answering_at(addr).iter();
        let gateways = nodes.filter_map(|node| self.leading_out.gateways.get(node)).flatten();
        for pod in gateways.filter_map(|(namespace, name)| self.pods.get(namespace, name)) {
            for port in &pod.spec.host_ports {
                let behind = owned(pod).filter(|own| own.is_v4() == addr.is_v4()).map(|own| (own, port.port));
                out.entry((port.protocol, port.host)).or_default().extend(behind);
            }
        }
        out
    }

    /// What is behind one port of a node's address, where it leads out.
    pub(crate) fn behind_node(&self, addr: &Addr, port: (u8, u16)) -> Targets {
        let mut out = self.behind_host_ports(addr).remove(&port).unwrap_or_default();
        for service in self.services_of_node_port(addr, port) {
            for one in service.ports.iter().filter(|one| (one.protocol, one.node_port) == port) {
                out.extend(self.chosen(service, one, addr.is_v4()));
            }
        }
        out
    }

    /// The services that have a port of a node, by protocol and number, where it leads out.
    pub(crate) fn services_of_node_port<'a>(
        &'a self,
        addr: &Addr,
        port: (u8, u16),
    ) -> impl Iterator<Item = &'a Service> + use<'a> {
        let answers = port.1 != 0 && !self.answering_at(addr).is_empty();
        let services = self.services_out().filter(move |_| answers);
        let has =
            move |service: &&Service| service.ports.iter().any(|one| (one.protocol, one.node_port) == port);
        services.filter(has)
    }

    /// Whether a connection to this address and port, by protocol, that the node sends on to a backend is judged by that: to a service, and
    /// to a node where it goes on to more than a plain pod, whatever that port leads to by now. A service may have a node's address; its
    /// node ports are no ports of the service.
    #[must_use]
    pub fn is_judged_behind(&self, to: IpAddr, port: (u8, u16), backend: IpAddr) -> bool {
        let addr = address(to);
        let has = |service: &Service| service.ports.iter().any(|one| (one.protocol, one.port) == port);
        if self.answering_at(&addr).is_empty() {
            return self.is_vip(&addr);
        }
        self.services_at(&addr).any(has) || self.is_more_than_a_pod(&address(backend))
    }

    /// Whether an address is a gateway's, a node's, a service's, or nobody's in the cluster.
    fn is_more_than_a_pod(&self, addr: &Addr) -> bool {
        let owners = self.owners(addr);
        let gateway = owners.iter().any(|pod| self.is_gateway(pod)) || self.is_gateway_address(addr);
        owners.is_empty() || gateway || !self.nodes_at(addr).is_empty() || self.is_vip(addr)
    }

    /// Whether this port of a node's address leads out, whatever is behind it.
    pub(crate) fn has_port_out(&self, addr: &Addr, port: (u8, u16)) -> bool {
        self.leads_out(addr)
            && (self.behind_node_ports(addr.is_v4()).contains_key(&port)
                || self.behind_host_ports(addr).contains_key(&port))
    }

    /// Whether every node leads to this address, by a node port that leads out.
    pub(crate) fn behind_every_node(&self, addr: &Addr) -> bool {
        let out = &self.leading_out.services;
        !out.is_empty() && self.services_before(addr).iter().any(|name| out.contains(name))
    }

    /// The addresses at which nodes answer.
    pub(crate) fn node_addresses(&self) -> impl Iterator<Item = Addr> {
        self.answering.keys()
    }

    /// The addresses of nodes that lead to this one by a host port of a gateway.
    pub(crate) fn hosts_before<'a>(&'a self, addr: &Addr) -> impl Iterator<Item = Addr> + use<'a> {
        let holds = |pod: &Arc<Pod>, names: &BTreeSet<Name>| names.contains(&pod.key());
        let nodes = self.owners(addr).iter().filter_map(move |pod| {
            let node = pod.node()?;
            self.leading_out.gateways.get(node).filter(|names| holds(pod, names)).map(|_| node)
        });
        nodes.filter_map(|node| self.nodes.get(node)).flat_map(doors)
    }

    /// Looks again at what a pod has to do with ports of nodes. `pod` is as it was or as it is.
    pub(super) fn judge_pod_ports(&mut self, pod: &Pod, dirty: &mut Dirty) {
        self.judge_host_ports(pod, dirty);
        self.judge_services_before(owned(pod), dirty);
    }

    /// Looks again at the services in front of addresses that may be somebody else's now.
    pub(super) fn judge_services_before(
        &mut self,
        behind: impl IntoIterator<Item = Addr>,
        dirty: &mut Dirty,
    ) {
        for addr in behind {
            for name in self.services_before(&addr) {
                self.judge_service(&name, [addr], false, dirty);
            }
        }
    }

    /// Looks again at the service of a slice, which is as it was or as it is.
    pub(super) fn judge_slice(&mut self, slice: &Arc<EndpointSlice>, dirty: &mut Dirty) {
        let Some(service) = service_of(slice) else { return };
        let held = self.endpoint_slices.get(&slice.namespace, &slice.name);
        let is = held.is_some_and(|held| Arc::ptr_eq(held, slice));
        let behind =
            slice.endpoints.iter().filter(|one| is && one.may_take()).map(|one| address(one.address));
        self.judge_service(&service, behind.collect::<Vec<_>>(), true, dirty);
    }

    /// Looks again whether a service has node ports that lead out. `changed` are addresses behind it that may have begun to; `moved`: the
    /// ports may have, or what is behind them.
    pub(super) fn judge_service(
        &mut self,
        name: &Name,
        changed: impl IntoIterator<Item = Addr>,
        moved: bool,
        dirty: &mut Dirty,
    ) {
        let leads_out = |addr: Addr| self.is_more_than_a_pod(&addr);
        let was = self.leading_out.services.contains(name);
        let service = self.service(&name.0, &name.1).filter(|service| has_node_ports(service));
        let is = service.is_some_and(|service| {
            self.leads_anywhere(service)
                || changed.into_iter().any(leads_out)
                || (was && self.takers(service).any(leads_out))
        });
        if is {
            self.leading_out.services.insert(name.clone());
        } else {
            self.leading_out.services.remove(name);
        }
        if is != was || (is && moved) {
            dirty.addresses.extend(self.answering.keys());
        }
    }

    /// Looks again whether a pod is a gateway with host ports.
    fn judge_host_ports(&mut self, pod: &Pod, dirty: &mut Dirty) {
        let Some(node) = pod.node() else { return };
        if pod.spec.host_ports.is_empty() {
            return;
        }
        let name = pod.key();
        let here =
            self.pods.get(&name.0, &name.1).filter(|pod| pod.node() == Some(node) && self.holds_gateway(pod));
        let is = here.is_some_and(|pod| !pod.spec.host_ports.is_empty() && owned(pod).next().is_some());
        let held = &mut self.leading_out.gateways;
        let was = held.get(node).is_some_and(|names| names.contains(&name));
        if is {
            held.entry(node.clone()).or_default().insert(name);
        } else if let Some(names) = held.get_mut(node) {
            names.remove(&name);
            if names.is_empty() {
                held.remove(node);
            }
        }
        if is || was {
            dirty.addresses.extend(self.nodes.get(node).into_iter().flat_map(doors));
        }
    }
}
