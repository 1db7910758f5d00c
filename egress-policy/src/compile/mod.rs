//! From the index to the state of one node, and from changes of the one to changes of the other.
//!
//! Invariant: what comes out depends on the objects and the node alone. Numbers of policies and identities are made
//! from their meaning, so a row never changes: another policy, or another identity, has another number and other rows.
//!
//! Tested by `tests/`, area by area, by judging packets over the compiled state; `tests/incremental.rs` holds every step of
//! random histories against a compilation from nothing.

mod address;
mod chain;
mod compiler;
mod diagnose;
mod endpoint;
mod grant;
mod grants;
mod identity;
mod matcher;
mod place;
mod policies;
mod report;
mod row;
mod rows;
mod select;
mod terms;

use std::collections::BTreeMap;
use std::sync::Arc;

use egress_common::wire::Endpoint;

pub use chain::{Backend, Chain, TierVerdict, chain};
pub use compiler::Compiler;
pub(crate) use diagnose::diagnose;
pub use report::{Diagnostic, EndpointInfo, PodState, Provenance, ProxyInfo, RuleInfo, Severity};

use crate::index::{Dirty, Index};
use crate::object::Pod;
use crate::plan::State;

/// A pod's cgroup, as found on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The UID in the cgroup's name, with dashes: `metadata.uid`, or the hash of a static pod.
    pub uid: String,
    /// The cgroup's id.
    pub cgroup: u64,
    /// Its containers that have a cgroup and a name that is known. A container that is not among them is no proxy.
    pub containers: Vec<LocalContainer>,
    /// What an earlier agent left of it in the maps, where that locked it down. It is closed where it would be unknown.
    pub left: Option<Endpoint>,
}

/// A container's cgroup, as found on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalContainer {
    /// Its name in the pod.
    pub name: String,
    /// The cgroup's id.
    pub cgroup: u64,
}

/// What pods may do that are not known (yet).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownPods {
    /// Nothing but loopback.
    Deny,
    /// Reach pods that are no gateways, services through their backends, DNS and the API server.
    #[default]
    DenyOutside,
    /// Everything.
    Allow,
}

/// What is assumed where the objects do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// What unknown pods may do.
    pub unknown_pods: UnknownPods,
    /// See [`Node::incomplete`].
    pub incomplete: bool,
}

impl From<UnknownPods> for Doubt {
    /// All objects were read.
    fn from(unknown_pods: UnknownPods) -> Self {
        Self { unknown_pods, incomplete: false }
    }
}

/// The node that is compiled for.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Level of the pod root in the cgroup tree.
    pub pod_root_level: u32,
    /// What unknown pods may do.
    pub unknown_pods: UnknownPods,
    /// Objects that could be policies are known to be missing: pods that no policy selects stay unknown.
    pub incomplete: bool,
    /// The pods found on it.
    pub pods: &'a [LocalPod],
}

/// A node's state, and what there is to say about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// What the maps should hold. The revision is 0; a plan sets it.
    pub desired: State,
    /// The local pods, by cgroup id.
    pub endpoints: BTreeMap<u64, EndpointInfo>,
    /// Where numbers come from.
    pub provenance: Provenance,
    /// What is wrong, in order.
    pub diagnostics: Vec<Diagnostic>,
}

/// Compiles the state of a node from nothing.
#[must_use]
pub fn compile(index: &Index, node: &Node<'_>) -> Compiled {
    let mut compiler = Compiler::default();
    compiler.update(index, node, Dirty::default());
    compiler.into_compiled()
}

/// Compiles as if every pod that names this node stood on it, whether it has a UID or not: what tools judge that have the
/// objects only. Cgroup ids count from 1 in the order of the pods' names; the pod root's level is 0.
#[must_use]
pub fn compile_every_pod(index: &Index, name: &str, doubt: impl Into<Doubt>) -> Compiled {
    let on_node = |pod: &&Arc<Pod>| pod.node().map(|node| &**node).unwrap_or_default() == name;
    let pods = index.shared_pods().filter(on_node).map(|pod| {
        let containers = pod.spec.containers.iter().map(|container| container.name.to_string());
        (pod.clone(), containers.collect())
    });
    compile_pods(index, name, doubt.into(), pods.collect())
}

/// Compiles as if these pods stood on a node with these containers. Cgroup ids count from 1, the pods' first, then the
/// containers'; the pod root's level is 0.
pub(crate) fn compile_pods(
    index: &Index,
    name: &str,
    Doubt { unknown_pods, incomplete }: Doubt,
    pods: Vec<(Arc<Pod>, Vec<String>)>,
) -> Compiled {
    let mut compiler = Compiler::default();
    let node = Node { name, pod_root_level: 0, unknown_pods, incomplete, pods: &[] };
    let mut ids = 1 + pods.len() as u64..;
    let placed = (1..).zip(pods).map(|(cgroup, (pod, names))| {
        let containers =
            names.into_iter().zip(&mut ids).map(|(name, cgroup)| LocalContainer { name, cgroup });
        (cgroup, (containers.collect(), pod))
    });
    compiler.place(index, &node, placed.collect());
    compiler.into_compiled()
}
