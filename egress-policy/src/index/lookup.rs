//! What is asked of the index: objects by name, and whose an address is.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use egress_common::wire::{Addr, Cidr};
use smallvec::SmallVec;

use super::Index;
use super::sorted::ByUid;
use crate::object::{
    EgressGatewayPolicy, EndpointSlice, Kind, Namespace, NamespaceLabels, NetworkPolicy, Node, Object,
    ObjectRef, Pod, Service, Uid, address, last_of, protocol_name,
};

/// Whose an address is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressNames {
    /// The pod, as in `ns/name`.
    pub pod: Option<String>,
    /// The node whose own address it is, or the one that the pod is on.
    pub node: Option<String>,
    /// The service in front, as in `ns/name`.
    pub service: Option<String>,
}

impl Index {
    /// The names of all objects, in order.
    pub fn objects(&self) -> impl Iterator<Item = ObjectRef> + '_ {
        let of = |kind| move |name: &Arc<str>| ObjectRef { kind, namespace: None, name: name.clone() };
        let pods = self.pods().map(Pod::object_ref);
        let namespaces = self.namespaces.keys().map(of(Kind::Namespace));
        let services = self.services().map(Service::object_ref);
        let slices = self.endpoint_slices().map(EndpointSlice::object_ref);
        let nodes = self.nodes.keys().map(of(Kind::Node));
        let network_policies = self.network_policies().map(NetworkPolicy::object_ref);
        let gateway_policies = self.gateway_policies.keys().map(of(Kind::EgressGatewayPolicy));
        let cluster = pods.chain(namespaces).chain(services).chain(slices).chain(nodes);
        cluster.chain(network_policies).chain(gateway_policies)
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        Kind::ALL.into_iter().map(|kind| self.count(kind)).sum()
    }

    /// How many objects of a kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Pod => self.pods.len(),
            Kind::Namespace => self.namespaces.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.endpoint_slices.len(),
            Kind::Node => self.nodes.len(),
            Kind::NetworkPolicy => self.network_policies.len(),
            Kind::EgressGatewayPolicy => self.gateway_policies.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One object.
    #[must_use]
    pub fn get(&self, object: &ObjectRef) -> Option<Object> {
        let (namespace, name) = (object.namespace.as_deref().unwrap_or_default(), &*object.name);
        match object.kind {
            Kind::Pod => self.pod(namespace, name).cloned().map(Object::Pod),
            Kind::Namespace => self.namespaces.get(name).cloned().map(Object::Namespace),
            Kind::Service => self.service(namespace, name).cloned().map(Object::Service),
            Kind::EndpointSlice => self.slice(namespace, name).cloned().map(Object::EndpointSlice),
            Kind::Node => self.nodes.get(name).cloned().map(Object::Node),
            Kind::NetworkPolicy => {
                self.network_policies.get(namespace, name).cloned().map(Object::NetworkPolicy)
            }
            Kind::EgressGatewayPolicy => {
                self.gateway_policies.get(name).cloned().map(Object::EgressGatewayPolicy)
            }
        }
    }

    /// Pods, by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().map(|pod| &**pod)
    }

    /// Namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// Services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().map(|service| &**service)
    }

    /// Endpoint slices, by namespace and name.
    pub fn endpoint_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.endpoint_slices.iter().map(|slice| &**slice)
    }

    /// Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// How many nodes an agent is meant to run on.
    #[must_use]
    pub fn nodes_with_agent(&self) -> usize {
        self.nodes_with_agent
    }

    /// Network policies, by namespace and name.
    pub fn network_policies(&self) -> impl Iterator<Item = &NetworkPolicy> {
        self.network_policies.iter()
    }

    /// Lock-downs, by name.
    pub fn gateway_policies(&self) -> impl Iterator<Item = &EgressGatewayPolicy> {
        self.gateway_policies.values()
    }

    /// A pod by namespace and name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.shared_pod(namespace, name).map(|pod| &**pod)
    }

    /// A pod by namespace and name.
    pub(crate) fn shared_pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.pods.get(namespace, name)
    }

    /// Pods, by namespace and name.
    pub(crate) fn shared_pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter()
    }

    /// Endpoint slices, by namespace and name.
    pub(crate) fn shared_slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.endpoint_slices.iter()
    }

    /// The pods of a namespace, by name.
    pub(crate) fn pods_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.of(namespace).map(|pod| &**pod)
    }

    /// The names of all namespaces that have an object or a pod.
    pub(crate) fn namespace_names(&self) -> BTreeSet<Arc<str>> {
        let mut names: BTreeSet<Arc<str>> = self.namespaces.keys().cloned().collect();
        let mut next = self.pods().next();
        while let Some(pod) = next {
            let namespace = &pod.namespace;
            names.insert(namespace.clone());
            // No name comes after this one.
            let mut behind = self.pods.from((None, namespace, "\u{10ffff}"));
            next = behind.find(|pod| pod.namespace != *namespace).map(|pod| &**pod);
        }
        names
    }

    /// The network policies of a namespace, by name.
    pub(crate) fn network_policies_of<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a NetworkPolicy> {
        self.network_policies.of(namespace)
    }

    /// The labels of a namespace, whether or not there is an object of it.
    pub(crate) fn namespace<'n>(&'n self, name: &'n str) -> NamespaceLabels<'n> {
        NamespaceLabels { name, labels: self.namespaces.get(name).map(|n| &n.labels) }
    }

    /// The enforcement annotation of a namespace.
    pub(crate) fn enforcement(&self, namespace: &str) -> Option<&str> {
        self.namespaces.get(namespace)?.enforcement.as_deref()
    }

    /// Whether a pod of the node's network in this namespace may be locked down, whatever its labels and service account. No NetworkPolicy is
    /// about such pods.
    #[must_use]
    pub fn may_lock_down(&self, namespace: &str) -> bool {
        let labels = self.namespace(namespace);
        self.gateway_policies.values().any(|policy| policy.may_select(namespace, labels))
    }

    /// The pods whose address this is.
    pub(crate) fn owners(&self, addr: &Addr) -> &[Arc<Pod>] {
        self.owners.list(addr)
    }

    /// The names of the nodes whose address this is.
    pub(crate) fn nodes_at(&self, addr: &Addr) -> &[Arc<str>] {
        self.node_names.list(addr)
    }

    /// The names of the nodes that answer at this address.
    pub(crate) fn answering_at(&self, addr: &Addr) -> &[Arc<str>] {
        self.answering.list(addr)
    }

    /// Every address that the objects know, within a prefix.
    pub(crate) fn known_within(&self, cidr: &Cidr) -> impl Iterator<Item = Addr> {
        self.known_between(cidr.addr..=last_of(cidr))
    }

    /// Every address that the objects know, in a range.
    pub(crate) fn known_between(&self, range: RangeInclusive<Addr>) -> impl Iterator<Item = Addr> {
        let owned = self.owners.within(range.clone());
        let nodes = self.answering.within(range.clone());
        let gateways = self.gateway_addresses.range(range.clone()).map(|(addr, _)| *addr);
        owned.chain(nodes).chain(gateways).chain(self.lookups.within(range))
    }

    /// The addresses of a node.
    pub(crate) fn addresses_of_node(&self, name: &str) -> impl Iterator<Item = Addr> {
        self.nodes.get(name).into_iter().flat_map(|node| &node.addresses).map(|ip| address(*ip))
    }

    /// The addresses that are a pod's alone, in the form of the maps; none where there is no such pod.
    #[must_use]
    pub fn own_addresses(&self, pod: &ObjectRef) -> Vec<Addr> {
        let pod = self.pod(pod.namespace.as_deref().unwrap_or_default(), &pod.name);
        pod.into_iter().flat_map(super::owned).collect()
    }

    /// Whether an address is a pod's or a node's.
    #[must_use]
    pub fn owned(&self, addr: &Addr) -> bool {
        self.owners.contains_key(addr) || self.node_names.contains_key(addr)
    }

    /// The pods that say they have this UID.
    pub(crate) fn by_uid(&self, uid: &str) -> Vec<&Arc<Pod>> {
        let uid = Uid::from(uid);
        self.by_uid
            .from((Some(&uid), "", ""))
            .map(|ByUid(pod)| pod)
            .take_while(|pod| pod.uid == uid)
            .collect()
    }

    /// The name of a container of this node, by the UID of its pod (or the hash of a static pod) and its own id.
    #[must_use]
    pub fn container_name(&self, uid: &str, id: &str) -> Option<&str> {
        let pod = self.claimed(uid)?;
        pod.container_ids().iter().find(|(known, _)| **known == *id).map(|(_, name)| &**name)
    }

    /// Whether a pod, by its UID (or the hash of a static pod), has a container of this name that is there from its start to its end:
    /// one of `spec.containers`, or a sidecar.
    #[must_use]
    pub fn is_lasting(&self, uid: &str, name: &str) -> bool {
        let containers = self.claimed(uid).into_iter().flat_map(|pod| &pod.spec.containers);
        containers.filter(|one| *one.name == *name).any(|one| one.kind.lasts())
    }

    /// Whether a pod says it has this UID, or one of this node this hash.
    #[must_use]
    pub fn is_claimed(&self, uid: &str) -> bool {
        !self.by_uid(uid).is_empty() || self.by_hash(uid).iter().any(|pod| pod.node() == self.node.as_ref())
    }

    /// The one pod that says it has this UID, or hash.
    fn claimed(&self, uid: &str) -> Option<&Arc<Pod>> {
        let by_uid = self.by_uid(uid);
        let claims = if by_uid.is_empty() { self.by_hash(uid).iter().collect() } else { by_uid };
        let [pod] = claims[..] else { return None };
        Some(pod)
    }

    /// The static pods that say they have this hash.
    pub(crate) fn by_hash(&self, hash: &str) -> &[Arc<Pod>] {
        self.by_hash.get(hash).map_or(&[], SmallVec::as_slice)
    }

    /// Whose address this is, with the node of a pod, and the service that has this protocol and port there, or else the first one.
    #[must_use]
    pub fn address_names(&self, ip: std::net::IpAddr, port: (u8, u16)) -> AddressNames {
        let addr = address(ip.to_canonical());
        let pod = self.owners(&addr).iter().min_by_key(|pod| (&pod.namespace, &pod.name));
        let node = self.nodes_at(&addr).iter().min().or_else(|| pod.and_then(|pod| pod.node()));
        let service = self.service_at(&addr, port);
        AddressNames {
            pod: pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            node: node.map(ToString::to_string),
            service: service.map(|one| format!("{}/{}", one.namespace, one.name)),
        }
    }

    /// Whose address this is: `pod ns/name`, `node name` or `service ns/name`, in this order; of services as in
    /// [`Self::address_names`].
    #[must_use]
    pub fn address_name(&self, ip: std::net::IpAddr, port: (u8, u16)) -> Option<String> {
        let addr = address(ip.to_canonical());
        let pod = || self.owners(&addr).iter().min_by_key(|pod| (&pod.namespace, &pod.name));
        let pod = pod().map(|pod| format!("pod {}/{}", pod.namespace, pod.name));
        let node = || self.nodes_at(&addr).iter().min().map(|node| format!("node {node}"));
        let service =
            || self.service_at(&addr, port).map(|one| format!("service {}/{}", one.namespace, one.name));
        pod.or_else(node).or_else(service)
    }

    /// The service of an address that has a protocol and port there, or else the first one.
    fn service_at(&self, addr: &Addr, port: (u8, u16)) -> Option<&Service> {
        let other = |service: &&Service| !service.has(port);
        self.services_at(addr).min_by_key(|one| (other(one), one.namespace.clone(), one.name.clone()))
    }

    /// Why a service's address leads nowhere, or not by a rule about what is behind it alone; in a sentence.
    #[must_use]
    pub fn service_says(&self, ip: std::net::IpAddr, port: (u8, u16)) -> Option<String> {
        let addr = address(ip.to_canonical());
        let service = self.service_at(&addr, port)?;
        let name = format!("service {}/{}", service.namespace, service.name);
        if !service.has(port) {
            let (protocol, number) = port;
            let protocol = protocol_name(protocol);
            return Some(format!("{name} has no port {number}/{protocol}"));
        }
        let external = service.external.iter().any(|one| address(*one) == addr);
        external.then(|| {
            format!("{ip} is an external address of {name}: it has to be allowed as one outside, too")
        })
    }
}
