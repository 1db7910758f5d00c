//! The node's addresses that its Node object does not have: those on the links of its pods, and further ones.
//!
//! Kubelet's probes come from a bridge's address where the network plugin makes one. An agent is not needed to answer them, if
//! that is known as the node's before. At further addresses, as of a second network, kube-proxy answers node ports as well; that is all
//! that they stand for. Invariant: these addresses add to the Node object, and stand for nothing without
//! it; one counts only as long as the node has it. Tested by `tests/addresses.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::wire::{Addr, FLAG_HOST_NETWORK, OWNER_NODE};
use egress_policy::index::Event;
use egress_policy::object::{Kind, Node, Object, address};

use super::Agent;
use crate::network;

/// What is known of the node's addresses.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Found on links of its pods.
    found: BTreeSet<IpAddr>,
    /// Found on its other devices.
    further: BTreeSet<IpAddr>,
    /// What was said of not being able to tell the kernel.
    pub(super) trouble: Option<String>,
    /// Its object, as it was read.
    object: Option<Node>,
}

impl Own {
    /// The event, with the addresses that were found where it is about the node.
    pub(super) fn complete(&mut self, node: &str, event: Event) -> Event {
        match event {
            Event::Upsert(Object::Node(mut object)) if *object.name == *node => {
                self.object = Some(object.clone());
                let more = self.found.iter().filter(|found| !object.addresses.contains(*found));
                let more: Vec<_> = more.copied().collect();
                object.addresses.extend(more);
                object.further = self.further.iter().copied().collect();
                Event::Upsert(Object::Node(object))
            }
            Event::Delete(object) if object.kind == Kind::Node && *object.name == *node => {
                self.object = None;
                Event::Delete(object)
            }
            event => event,
        }
    }
}

impl Agent {
    /// Looks at the addresses of the node's devices.
    pub(crate) fn look_at_addresses(&mut self) {
        let now = match network::addresses() {
            Ok(now) => now,
            Err(error) => {
                tracing::error!(%error, "cannot see the node's addresses");
                return;
            }
        };
        // A bridge whose last pod has gone is still there for the next one.
        let kept = self.own.found.intersection(&now.all).copied();
        let found: BTreeSet<_> = kept.chain(now.toward_pods.iter().copied()).collect();
        let further: BTreeSet<_> = now.further.difference(&found).copied().collect();
        if found != self.own.found || further != self.own.further {
            (self.own.found, self.own.further) = (found, further);
            if let Some(object) = self.own.object.clone() {
                self.take(Event::Upsert(Object::Node(object)));
            }
        }
    }

    /// Tells the kernel whose the addresses on this node are, its own and those of the pods that it knows.
    pub(crate) fn name_owners(&mut self) {
        let node = self.own.found.iter().chain(&self.own.further);
        let mut owners: BTreeMap<Addr, u64> = node.map(|ip| (address(*ip), OWNER_NODE)).collect();
        for (cgroup, endpoint) in &self.datapath.observed().endpoints {
            let own = [endpoint.v4, endpoint.v6].into_iter().filter(|addr| !addr.is_zero());
            if endpoint.flags & FLAG_HOST_NETWORK == 0 {
                owners.extend(own.map(|addr| (addr, *cgroup)));
            }
        }
        let told = self.datapath.own(&owners).map_err(|error| format!("{error:#}")).err();
        if told != self.own.trouble {
            told.iter().for_each(|error| tracing::error!("{error}"));
            self.own.trouble = told;
        }
    }
}
