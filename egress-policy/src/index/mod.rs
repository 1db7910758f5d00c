//! The objects of the cluster by name, and whose an address is.
//!
//! Invariant: the index depends only on the last event of each object, not on the order of events of different ones;
//! every lookup says what going through all objects would say. What an event costs depends on what it changes, not on
//! the size of the cluster. Tested by `tests/incremental.rs` and `tests/identities.rs`.

mod dirty;
mod gateways;
mod intern;
mod lookup;
mod node_ports;
mod services;
mod sorted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egress_common::wire::Addr;
use smallvec::SmallVec;

pub use dirty::Dirty;
use intern::Interner;
pub use lookup::AddressNames;
pub(crate) use services::{ANYWHERE, API_SERVER, Targets};
use sorted::{ByUid, Sorted};

use crate::by_addr::Lists;
use crate::object::{
    EgressGatewayPolicy, EndpointSlice, Kind, Namespace, NetworkPolicy, Node, Object, ObjectRef, Pod,
    Service, Uid, address,
};
use crate::pack::pack;

/// A change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is new or changed.
    Upsert(Object),
    /// It is gone.
    Delete(ObjectRef),
}

/// Namespace and name.
pub(crate) type Name = (Arc<str>, Arc<str>);

/// Everything that is known of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// The node whose pods' containers are told apart.
    node: Option<Arc<str>>,
    interner: Interner,
    pods: Sorted<Arc<Pod>>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
    services: Sorted<Arc<Service>>,
    endpoint_slices: Sorted<Arc<EndpointSlice>>,
    nodes: BTreeMap<Arc<str>, Node>,
    /// How many of them an agent is meant to run on.
    nodes_with_agent: usize,
    network_policies: Sorted<NetworkPolicy>,
    gateway_policies: BTreeMap<Arc<str>, EgressGatewayPolicy>,
    /// Pods that own an address.
    owners: Lists<Arc<Pod>>,
    /// Names of nodes, by address.
    node_names: Lists<Arc<str>>,
    /// Names of nodes, by address at which their ports are: those and further ones.
    answering: Lists<Arc<str>>,
    /// Pods by UID, and by the hash of a static pod.
    by_uid: Sorted<ByUid>,
    by_hash: BTreeMap<Arc<str>, SmallVec<[Arc<Pod>; 2]>>,
    /// Pods that are a gateway of some lock-down.
    gateways: BTreeSet<Name>,
    /// Single addresses that are a gateway of some lock-down, with how many entries say so.
    gateway_addresses: BTreeMap<Addr, usize>,
    lookups: services::Lookups,
    leading_out: node_ports::LeadingOut,
}

impl PartialEq for Index {
    /// Equal objects; all else follows from them.
    fn eq(&self, other: &Self) -> bool {
        self.pods == other.pods
            && self.namespaces == other.namespaces
            && self.services == other.services
            && self.endpoint_slices == other.endpoint_slices
            && self.nodes == other.nodes
            && self.network_policies == other.network_policies
            && self.gateway_policies == other.gateway_policies
    }
}

impl Eq for Index {}

/// Removes a value from a list under a key, and the key with the last one.
pub(crate) fn unlist<K: Ord, T, const N: usize>(
    lists: &mut BTreeMap<K, SmallVec<[T; N]>>,
    key: &K,
    is: impl Fn(&T) -> bool,
) where
    [T; N]: smallvec::Array<Item = T>,
{
    if let Some(list) = lists.get_mut(key) {
        list.retain(|one| !is(one));
        if list.is_empty() {
            lists.remove(key);
        }
    }
}

/// The addresses that are a pod's alone.
fn owned(pod: &Pod) -> impl Iterator<Item = Addr> {
    pod.addresses.iter().filter(|_| pod.owns_addresses()).map(|ip| address(*ip))
}

/// The addresses at which a node's ports are.
fn doors(node: &Node) -> BTreeSet<Addr> {
    node.addresses.iter().chain(&node.further).map(|ip| address(*ip)).collect()
}

impl Index {
    /// An index that tells the containers of one node's pods apart.
    #[must_use]
    pub fn of_node(name: &str) -> Self {
        Self { node: Some(Arc::from(name)), ..Self::default() }
    }

    /// Takes less memory for the same, after many events. Looks at everything.
    pub fn pack(&mut self) {
        self.pods.pack();
        self.services.pack();
        self.endpoint_slices.pack();
        pack(&mut self.nodes);
        self.network_policies.pack();
        self.owners.pack();
        self.node_names.pack();
        self.answering.pack();
        self.by_uid.pack();
        self.lookups.pack();
    }

    /// Takes an event in; tells what may have changed by it.
    pub fn apply(&mut self, event: Event) -> Dirty {
        match event {
            Event::Upsert(object) => match object {
                Object::Pod(pod) => self.put_pod(&pod.key(), Some(pod)),
                Object::Namespace(namespace) => self.put_namespace(&namespace.name.clone(), Some(namespace)),
                Object::Service(one) => {
                    self.put_service(&(one.namespace.clone(), one.name.clone()), Some(one))
                }
                Object::EndpointSlice(one) => {
                    self.put_slice(&(one.namespace.clone(), one.name.clone()), Some(one))
                }
                Object::Node(node) => self.put_node(node.name.clone(), Some(node)),
                Object::NetworkPolicy(one) => {
                    self.put_network_policy((one.namespace.clone(), one.name.clone()), Some(one))
                }
                Object::EgressGatewayPolicy(policy) => {
                    self.put_gateway_policy(policy.name.clone(), Some(policy))
                }
            },
            Event::Delete(object) => {
                let name = object.name;
                let full = (object.namespace.unwrap_or_default(), name.clone());
                match object.kind {
                    Kind::Pod => self.put_pod(&full, None),
                    Kind::Namespace => self.put_namespace(&name, None),
                    Kind::Service => self.put_service(&full, None),
                    Kind::EndpointSlice => self.put_slice(&full, None),
                    Kind::Node => self.put_node(name, None),
                    Kind::NetworkPolicy => self.put_network_policy(full, None),
                    Kind::EgressGatewayPolicy => self.put_gateway_policy(name, None),
                }
            }
        }
    }

    /// All there is to look at.
    pub(crate) fn everything(&self) -> Dirty {
        let mut dirty = Dirty { every_pod: true, ..Dirty::default() };
        dirty.addresses.extend(self.owners.keys().chain(self.answering.keys()));
        dirty.addresses.extend(self.gateway_addresses.keys());
        dirty.addresses.extend(self.lookups.within(Addr([0; 16])..=Addr([255; 16])));
        let host = self.pods().filter(|pod| pod.host_network).map(Pod::object_ref);
        let others = self.objects().filter(|object| !matches!(object.kind, Kind::Pod));
        dirty.objects.extend(host.chain(others));
        dirty
    }

    fn put_pod(&mut self, name: &Name, pod: Option<Pod>) -> Dirty {
        let pod = pod.map(|mut pod| {
            if self.node.is_none() || self.node.as_ref() != pod.node() {
                pod.forget_containers();
            }
            self.interner.pod(&mut pod);
            Arc::new(pod)
        });
        let old = self.pods.get(&name.0, &name.1).cloned();
        let was_gateway = self.gateways.contains(name);
        let mut dirty = Dirty::default();
        if old == pod {
            return dirty;
        }
        if let Some(old) = &old {
            let this = |one: &Arc<Pod>| Arc::ptr_eq(one, old);
            for addr in owned(old) {
                self.owners.unlist(&addr, this);
                dirty.addresses.insert(addr);
            }
            self.by_uid.take(&ByUid(old.clone()));
            old.static_hash().into_iter().for_each(|hash| unlist(&mut self.by_hash, hash, this));
            self.pods.take(old);
            self.gateways.remove(name);
        }
        if let Some(pod) = &pod {
            for addr in owned(pod) {
                self.owners.add(addr, pod.clone());
                dirty.addresses.insert(addr);
            }
            if !pod.uid.is_empty() {
                self.by_uid.put(ByUid(pod.clone()));
            }
            if let Some(hash) = pod.static_hash() {
                self.by_hash.entry(hash.clone()).or_default().push(pod.clone());
            }
            if self.means_gateway(pod) {
                self.gateways.insert(name.clone());
            }
            self.pods.put(pod.clone());
        }
        for pod in [&old, &pod].into_iter().flatten() {
            dirty.uids.extend(
                pod.static_hash().map(|hash| Uid::from(&**hash)).into_iter().chain([pod.uid.clone()]),
            );
            // Only these have something said about them as objects.
            if pod.host_network {
                dirty.objects.insert(pod.object_ref());
            }
        }
        // What is behind ports of nodes is the same where nobody's part in it changed.
        let addresses =
            |pod: &Option<Arc<Pod>>| pod.as_deref().into_iter().flat_map(owned).collect::<Vec<_>>();
        let gateway = was_gateway || pod.as_ref().is_some_and(|pod| self.holds_gateway(pod));
        if gateway || addresses(&old) != addresses(&pod) {
            [&old, &pod].into_iter().flatten().for_each(|pod| self.judge_pod_ports(pod, &mut dirty));
        }
        dirty
    }

    fn put_namespace(&mut self, name: &Arc<str>, namespace: Option<Namespace>) -> Dirty {
        let name = self.interner.text(name);
        let mut dirty = Dirty::default();
        if self.namespaces.get(&name) == namespace.as_ref() {
            return dirty;
        }
        match namespace {
            Some(namespace) => drop(self.namespaces.insert(name.clone(), namespace)),
            None => drop(self.namespaces.remove(&name)),
        }
        let pods: Vec<Arc<Pod>> = self.pods.of(&name).cloned().collect();
        for pod in pods {
            dirty.addresses.extend(owned(&pod));
            if self.judge_gateway(&pod) {
                self.judge_pod_ports(&pod, &mut dirty);
            }
            if pod.host_network {
                dirty.objects.insert(pod.object_ref());
            }
        }
        dirty.objects.insert(ObjectRef { kind: Kind::Namespace, namespace: None, name: name.clone() });
        dirty.namespaces.insert(name);
        dirty
    }

    fn put_service(&mut self, name: &Name, service: Option<Service>) -> Dirty {
        let mut dirty = Dirty::default();
        if self.service(&name.0, &name.1) == service.as_ref() {
            return dirty;
        }
        let service = service.map(|mut service| {
            self.interner.service(&mut service);
            Arc::new(service)
        });
        let old = self.services.take(&(None, &*name.0, &*name.1));
        if let Some(old) = &old {
            self.lookups.remove_service(old);
        }
        if let Some(service) = &service {
            self.lookups.add_service(service);
            self.services.put(service.clone());
        }
        for service in [old, service].into_iter().flatten() {
            if service.unread {
                dirty.objects.insert(service.object_ref());
            }
            dirty.addresses.extend(service.vips.iter().map(|vip| address(*vip)));
            dirty.addresses.extend(self.addresses_behind(&service));
            self.judge_services_before(service.vips.iter().map(|vip| address(*vip)), &mut dirty);
        }
        let behind = self.service(&name.0, &name.1).map(|service| self.takers(service).collect::<Vec<_>>());
        self.judge_service(name, behind.unwrap_or_default(), true, &mut dirty);
        dirty
    }

    fn put_slice(&mut self, name: &Name, slice: Option<EndpointSlice>) -> Dirty {
        let mut dirty = Dirty::default();
        if self.endpoint_slices.get(&name.0, &name.1).map(|slice| &**slice) == slice.as_ref() {
            return dirty;
        }
        let slice = slice.map(|mut slice| {
            self.interner.slice(&mut slice);
            Arc::new(slice)
        });
        let old = self.endpoint_slices.take(&(None, &*name.0, &*name.1));
        if let Some(old) = &old {
            self.lookups.remove_slice(old);
        }
        if let Some(slice) = &slice {
            self.lookups.add_slice(slice);
            self.endpoint_slices.put(slice.clone());
        }
        for slice in [old, slice].into_iter().flatten() {
            if slice.unread {
                dirty.objects.insert(slice.object_ref());
            }
            dirty.addresses.extend(slice.endpoints.iter().map(|endpoint| address(endpoint.address)));
            let service = self.service_of(&slice);
            let vips = service.into_iter().flat_map(|service| &service.vips);
            dirty.addresses.extend(vips.map(|vip| address(*vip)));
            // Whether this one is there tells what others are.
            let server = service.filter(|one| (&*one.namespace, &*one.name) == API_SERVER);
            dirty.addresses.extend(server.into_iter().flat_map(|server| self.addresses_behind(server)));
            self.judge_slice(&slice, &mut dirty);
        }
        dirty
    }

    fn put_node(&mut self, name: Arc<str>, node: Option<Node>) -> Dirty {
        let mut dirty = Dirty::default();
        if self.nodes.get(&name) == node.as_ref() {
            return dirty;
        }
        let old = self.nodes.remove(&name);
        let counts = |node: &Option<Node>| usize::from(node.as_ref().is_some_and(|node| node.has_agent));
        self.nodes_with_agent = self.nodes_with_agent + counts(&node) - counts(&old);
        for ip in old.iter().flat_map(|node| &node.addresses) {
            self.node_names.unlist(&address(*ip), |one| *one == name);
        }
        for addr in old.iter().flat_map(doors) {
            self.answering.unlist(&addr, |one| *one == name);
            dirty.addresses.insert(addr);
        }
        if let Some(node) = node {
            let addresses: BTreeSet<Addr> = node.addresses.iter().map(|ip| address(*ip)).collect();
            for addr in addresses {
                self.node_names.add(addr, name.clone());
            }
            for addr in doors(&node) {
                self.answering.add(addr, name.clone());
                dirty.addresses.insert(addr);
            }
            self.nodes.insert(name, node);
        }
        // What is nobody's leads out.
        let changed: Vec<Addr> = dirty.addresses.iter().copied().collect();
        self.judge_services_before(changed, &mut dirty);
        dirty
    }

    fn put_network_policy(&mut self, (namespace, name): Name, policy: Option<NetworkPolicy>) -> Dirty {
        let mut dirty = Dirty::default();
        if self.network_policies.get(&namespace, &name) == policy.as_ref() {
            return dirty;
        }
        match policy {
            Some(policy) => self.network_policies.put(policy),
            None => drop(self.network_policies.take(&(None, &*namespace, &*name))),
        }
        let kind = Kind::NetworkPolicy;
        dirty.objects.insert(ObjectRef { kind, namespace: Some(namespace.clone()), name });
        dirty.namespaces.insert(namespace);
        dirty
    }
}
