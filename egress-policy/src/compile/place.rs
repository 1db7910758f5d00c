//! What is at an address: pods, nodes, services; and what is in front of it.
//!
//! Invariant: it is what the index says, looked up once for all who judge the address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use egress_common::wire::Addr;

use super::report::{Diagnostic, Severity};
use crate::index::Index;
use crate::object::Pod;

/// An address and what has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    index: &'a Index,
    pub(super) addr: Addr,
    /// The pods that have it.
    pub(super) pods: &'a [Arc<Pod>],
    /// The names of the nodes that have it.
    pub(super) nodes: &'a [Arc<str>],
    /// Whether services have it.
    pub(super) vip: bool,
    /// Whether it stands for others: a service's, or a node's with ports that lead out.
    pub(super) in_front: bool,
}

impl<'a> Place<'a> {
    pub(super) fn at(index: &'a Index, addr: Addr) -> Self {
        let vip = index.is_vip(&addr);
        Self {
            index,
            addr,
            pods: index.owners(&addr),
            nodes: index.nodes_at(&addr),
            vip,
            in_front: vip || index.leads_out(&addr),
        }
    }

    /// Whether it is nothing but itself: its identity is a base identity.
    pub(super) fn plain(&self) -> bool {
        !self.in_front && self.owners() <= 1
    }

    /// Whether it is neither a pod's, nor a node's, nor a service's.
    pub(super) fn nobodys(&self) -> bool {
        !self.in_front && !self.owned()
    }

    /// Whether a pod or a node has it.
    pub(super) fn owned(&self) -> bool {
        self.owners() > 0
    }

    /// How many pods and nodes have it; all nodes count as one.
    fn owners(&self) -> usize {
        self.pods.len() + usize::from(!self.nodes.is_empty())
    }

    /// What is to be said of an address that belongs to more than one thing: to whom, the first few of them.
    pub(super) fn wrong(&self) -> Option<Diagnostic> {
        const SHOWN: usize = 4;
        if self.owners() + usize::from(self.vip) <= 1 {
            return None;
        }
        let pods = self.pods.iter().map(|pod| format!("pod {}/{}", pod.namespace, pod.name));
        let nodes = self.nodes.iter().map(|node| format!("node {node}"));
        let services = self.index.services_at(&self.addr);
        let services = services.map(|one| format!("service {}/{}", one.namespace, one.name));
        let mut all: Vec<String> = pods.chain(nodes).chain(services).collect();
        all.sort();
        let more = if all.len() > SHOWN { ", ..." } else { "" };
        let few = all.get(..SHOWN).unwrap_or(&all).join(", ");
        Some(Diagnostic {
            object: self.pods.iter().map(|pod| pod.object_ref()).min(),
            path: String::new(),
            reason: format!(
                "{} has several owners ({few}{more}); only what is allowed to each of them is allowed",
                display(&self.addr)
            ),
            severity: Severity::Warning,
        })
    }
}

/// Adds what stands for addresses that changed, for that in turn, and so on.
pub(super) fn add_fronts(index: &Index, mut behind: Vec<Addr>, found: &mut BTreeSet<Addr>) {
    let mut every_node = [false; 2];
    let mut seen = BTreeSet::new();
    while let Some(addr) = behind.pop() {
        let of_family = |front: &Addr| front.is_v4() == addr.is_v4();
        let slices = index.slices_with(&addr).iter();
        let slices = slices.filter(|slice| seen.insert((Arc::as_ptr(slice), addr.is_v4())));
        let vips = slices.flat_map(|slice| index.vips_before(slice));
        let before = vips.chain(index.hosts_before(&addr));
        behind.extend(before.filter(of_family).filter(|front| found.insert(*front)));
        let done = every_node.get_mut(usize::from(addr.is_v4())).filter(|done| !**done);
        if let Some(done) = done.filter(|_| index.behind_every_node(&addr)) {
            *done = true;
            let nodes = index.node_addresses().filter(of_family);
            behind.extend(nodes.filter(|node| found.insert(*node)));
        }
    }
}

/// An address as people write it.
pub(super) fn display(addr: &Addr) -> IpAddr {
    IpAddr::from(addr.0).to_canonical()
}
