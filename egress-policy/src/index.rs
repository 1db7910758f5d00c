//! The objects of the cluster, by name.
//!
//! Invariant: the index depends only on the last event of each object, not on the order of events of different ones.

use std::collections::BTreeMap;

use crate::object::{
    EgressGatewayPolicy, EndpointSlice, Kind, Namespace, NetworkPolicy, Node, Object, ObjectRef, Pod, Service,
};

/// A change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is new or changed.
    Upsert(Object),
    /// It is gone.
    Delete(ObjectRef),
}

/// Everything that is known of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    objects: BTreeMap<ObjectRef, Object>,
}

macro_rules! of_kind {
    ($($(#[doc = $doc:literal])+ $method:ident, $variant:ident;)+) => {
        $($(#[doc = $doc])+
        pub fn $method(&self) -> impl Iterator<Item = &$variant> {
            self.of_kind(Kind::$variant).filter_map(|object| match object {
                Object::$variant(object) => Some(object),
                _ => None,
            })
        })+
    };
}

impl Index {
    /// Takes an event in; tells whether anything changed by it.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Delete(object) => self.objects.remove(&object).is_some(),
            Event::Upsert(object) => {
                let key = object.object_ref();
                if self.objects.get(&key) == Some(&object) {
                    return false;
                }
                self.objects.insert(key, object);
                true
            }
        }
    }

    /// Makes `objects` all there is of a kind: what is not among them is gone. Objects of another kind are left out.
    pub fn relist(&mut self, kind: Kind, objects: Vec<Object>) {
        self.objects.retain(|key, _| key.kind != kind);
        for object in objects {
            let key = object.object_ref();
            if key.kind == kind {
                self.objects.insert(key, object);
            }
        }
    }

    /// The names of all objects, in order.
    pub fn objects(&self) -> impl Iterator<Item = ObjectRef> + '_ {
        self.objects.keys().cloned()
    }

    /// One object.
    #[must_use]
    pub fn get(&self, object: &ObjectRef) -> Option<&Object> {
        self.objects.get(object)
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        let first = ObjectRef { kind, namespace: None, name: "".into() };
        self.objects.range(first..).take_while(move |(key, _)| key.kind == kind).map(|(_, object)| object)
    }

    of_kind! {
        /// Pods, by namespace and name.
        pods, Pod;
        /// Namespaces, by name.
        namespaces, Namespace;
        /// Services, by namespace and name.
        services, Service;
        /// Endpoint slices, by namespace and name.
        endpoint_slices, EndpointSlice;
        /// Nodes, by name.
        nodes, Node;
        /// Network policies, by namespace and name.
        network_policies, NetworkPolicy;
        /// Lock-downs, by name.
        gateway_policies, EgressGatewayPolicy;
    }
}
