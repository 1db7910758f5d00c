//! The cluster as policies see it: pods with their role, services with their backends, whose an address is.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::packet::protocol;
use egress_common::wire::Addr;

use crate::index::Index;
use crate::object::{
    EndpointSlice, Namespace, NamespaceLabels, Pod, PortRange, Ports, Service, ServicePort, address,
};

/// Backends of one service port in one address family: (address, target port).
pub(super) type Targets = BTreeSet<(Addr, u16)>;

/// A pod, and whether it is a gateway of any EgressGatewayPolicy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub(super) pod: &'a Pod,
    pub(super) gateway: bool,
}

/// A port of a service, with the backends it can choose.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    pub(super) port: &'a ServicePort,
    v4: Targets,
    v6: Targets,
    /// All of them, in whatever condition.
    listed: Targets,
}

impl Resolved<'_> {
    /// The backends for a VIP, which are of its own family.
    pub(super) fn of_family(&self, v4: bool) -> &Targets {
        if v4 { &self.v4 } else { &self.v6 }
    }

    /// What is behind the port as seen by who translates at connect time: a backend that takes no new connections
    /// stays what it was for those it has.
    pub(super) fn targets(&self) -> impl Iterator<Item = (Addr, u16)> + '_ {
        self.listed.iter().copied()
    }
}

/// A service port in front of a backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Front<'a> {
    pub(super) namespace: &'a str,
    pub(super) port: &'a ServicePort,
    pub(super) target: u16,
}

/// What is known of the cluster, prepared for lookups.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    namespaces: BTreeMap<&'a str, &'a Namespace>,
    pub(super) members: Vec<Member<'a>>,
    /// Pods that own an address.
    pub(super) owners: BTreeMap<Addr, Vec<Member<'a>>>,
    /// Names of nodes, by address.
    pub(super) nodes: BTreeMap<Addr, BTreeSet<&'a str>>,
    pub(super) services: Vec<(&'a Service, Vec<Resolved<'a>>)>,
    fronts: BTreeMap<Addr, Vec<Front<'a>>>,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        let mut cluster = Self {
            namespaces: index.namespaces().map(|n| (&*n.name, n)).collect(),
            members: Vec::new(),
            owners: BTreeMap::new(),
            nodes: BTreeMap::new(),
            services: Vec::new(),
            fronts: BTreeMap::new(),
        };
        for pod in index.pods() {
            let labels = cluster.namespace(&pod.namespace);
            let gateway = index.gateway_policies().flat_map(|p| &p.gateways).filter_map(|g| g.pods.as_ref());
            let gateway = gateway.into_iter().any(|peer| peer.matches(pod, labels));
            let member = Member { pod, gateway };
            cluster.members.push(member);
            if !pod.host_network && !pod.finished {
                for ip in &pod.addresses {
                    cluster.owners.entry(address(*ip)).or_default().push(member);
                }
            }
        }
        for node in index.nodes() {
            for ip in &node.addresses {
                cluster.nodes.entry(address(*ip)).or_default().insert(&node.name);
            }
        }
        let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in index.endpoint_slices() {
            if let Some(service) = &slice.service {
                slices.entry((&slice.namespace, service)).or_default().push(slice);
            }
        }
        for service in index.services() {
            let slices = slices.get(&(&*service.namespace, &*service.name)).map_or(&[][..], Vec::as_slice);
            let ports: Vec<_> = service.ports.iter().map(|port| resolve(port, slices)).collect();
            for resolved in &ports {
                for (addr, target) in resolved.targets() {
                    let front = Front { namespace: &service.namespace, port: resolved.port, target };
                    cluster.fronts.entry(addr).or_default().push(front);
                }
            }
            cluster.services.push((service, ports));
        }
        cluster
    }

    /// The labels of a namespace, whether or not there is an object of it.
    pub(super) fn namespace<'n>(&self, name: &'n str) -> NamespaceLabels<'n>
    where
        'a: 'n,
    {
        NamespaceLabels { name, labels: self.namespaces.get(name).map(|n| &n.labels) }
    }

    /// Whether an address is a pod's or a node's.
    pub(super) fn owned(&self, addr: &Addr) -> bool {
        self.owners.contains_key(addr) || self.nodes.contains_key(addr)
    }

    /// The enforcement annotation of a namespace.
    pub(super) fn enforcement(&self, namespace: &str) -> Option<&'a str> {
        self.namespaces.get(namespace)?.enforcement.as_deref()
    }

    /// The ports of a gateway pod that are behind a listed port of a service in front of it. Only services of the
    /// pod's own namespace count: nobody else's object opens a port of a gateway.
    pub(super) fn behind(&self, pod: &Pod, addr: &Addr, listed: &Ports) -> BTreeSet<PortRange> {
        let fronts = self.fronts.get(addr).into_iter().flatten();
        fronts
            .filter(|front| {
                *front.namespace == *pod.namespace && listed.holds(front.port.protocol, front.port.port)
            })
            .map(|front| PortRange::one(front.port.protocol, front.target))
            .collect()
    }

    /// The backends of `default/kubernetes`, with their ports.
    pub(super) fn api_server(&self) -> BTreeMap<Addr, BTreeSet<PortRange>> {
        self.backends("default", "kubernetes", &Ports::All)
    }

    /// The backends of a service on the service ports in `listed`, with their own ports.
    pub(super) fn backends(
        &self,
        namespace: &str,
        name: &str,
        listed: &Ports,
    ) -> BTreeMap<Addr, BTreeSet<PortRange>> {
        let mut found: BTreeMap<Addr, BTreeSet<PortRange>> = BTreeMap::new();
        let wanted = self.services.iter().filter(|(s, _)| *s.namespace == *namespace && *s.name == *name);
        for resolved in wanted.flat_map(|(_, ports)| ports) {
            let ServicePort { protocol, port, .. } = *resolved.port;
            if listed.holds(protocol, port) {
                for (addr, target) in resolved.targets() {
                    found.entry(addr).or_default().insert(PortRange::one(protocol, target));
                }
            }
        }
        found
    }

    /// The backends of the cluster's DNS: port 53, and what is behind port 53 of the service.
    pub(super) fn dns(&self) -> BTreeMap<Addr, BTreeSet<PortRange>> {
        let mut found: BTreeMap<Addr, BTreeSet<PortRange>> = BTreeMap::new();
        for (_, ports) in self.services.iter().filter(|(service, _)| is_dns(service)) {
            for resolved in ports {
                let ServicePort { protocol, port, .. } = *resolved.port;
                if port == 53 && matches!(protocol, protocol::UDP | protocol::TCP) {
                    for (addr, target) in resolved.targets() {
                        let ports = found.entry(addr).or_default();
                        ports.insert(PortRange::one(protocol, target));
                        ports.insert(PortRange::one(protocol::UDP, 53));
                        ports.insert(PortRange::one(protocol::TCP, 53));
                    }
                }
            }
        }
        found
    }
}

fn is_dns(service: &Service) -> bool {
    let label = service.labels.get("k8s-app").is_some_and(|value| value == "kube-dns");
    *service.namespace == *"kube-system" && (label || matches!(&*service.name, "kube-dns" | "coredns"))
}

/// The backends a service port can choose: the ready ones; where there are none, those serving while terminating,
/// as kube-proxy does it.
fn resolve<'a>(port: &'a ServicePort, slices: &[&EndpointSlice]) -> Resolved<'a> {
    let mut listed = Targets::new();
    let mut chosen = |v4: bool| {
        let (mut ready, mut last_resort) = (Targets::new(), Targets::new());
        for slice in slices {
            let target = slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol);
            let Some(target) = target.map(|p| p.port) else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let addresses =
                    endpoint.addresses.iter().map(|ip| address(*ip)).filter(|addr| addr.is_v4() == v4);
                let targets: Targets = addresses.map(|addr| (addr, target)).collect();
                listed.extend(&targets);
                if endpoint.ready {
                    ready.extend(targets);
                } else if endpoint.last_resort {
                    last_resort.extend(targets);
                }
            }
        }
        if ready.is_empty() { last_resort } else { ready }
    };
    let (v4, v6) = (chosen(true), chosen(false));
    Resolved { port, v4, v6, listed }
}
