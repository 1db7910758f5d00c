//! From the index to the state of one node.
//!
//! Invariant: what comes out depends on the objects and the node alone. Numbers of policies and identities are made
//! from their meaning, so a row never changes: another policy, or another identity, has another number and other rows.
//!
//! Tested by `tests/`, area by area, by judging packets over the compiled state.

mod chain;
mod cluster;
mod diagnose;
mod grant;
mod identity;
mod report;
mod row;
mod select;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egress_common::wire::{
    ABI, Addr, Config, Endpoint, FLAG_AUDIT, FLAG_HOST_NETWORK, IDENTITY_WORLD, ROW_ENTRIES, RowKey,
    STATE_INVALID, STATE_ISOLATED, STATE_UNSELECTED, UNKNOWN_ALLOW, UNKNOWN_DENY, UNKNOWN_POLICY,
};

pub use chain::{Backend, Chain, TierVerdict, chain};
use cluster::{Cluster, Member};
use grant::{Content, Grant};
use identity::{Identities, Meaning};
use report::PolicyInfo;
pub use report::{Diagnostic, EndpointInfo, PodState, Provenance, RuleInfo, Severity};
use select::Selection;

use crate::digest::Numbers;
use crate::index::Index;
use crate::object::{Kind, ObjectRef, Pod, address};
use crate::plan::State;

/// A pod's cgroup, as found on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The UID in the cgroup's name, with dashes: `metadata.uid`, or the hash of a static pod.
    pub uid: String,
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

/// Compiles the state of a node.
#[must_use]
pub fn compile(index: &Index, node: &Node<'_>) -> Compiled {
    let cluster = Cluster::new(index);
    let mut diagnostics = Vec::new();
    let local = local_pods(&cluster, node, &mut diagnostics);
    let local = local.into_iter().map(|(local, member)| (local.cgroup, member)).collect();
    build(index, &cluster, node, local, diagnostics)
}

/// Compiles as if every pod that names this node stood on it, whether it has a UID or not: what tools judge that have the
/// objects only. Cgroup ids count from 1 in the order of the pods' names; the pod root's level is 0.
#[must_use]
pub fn compile_every_pod(index: &Index, name: &str, unknown_pods: UnknownPods) -> Compiled {
    let cluster = Cluster::new(index);
    let on_node = |member: &&Member<'_>| member.pod.node.as_deref().unwrap_or_default() == name;
    let local = (1..).zip(cluster.members.iter().filter(on_node).copied()).collect();
    let node = Node { name, pod_root_level: 0, unknown_pods, incomplete: false, pods: &[] };
    build(index, &cluster, &node, local, Vec::new())
}

fn build(
    index: &Index,
    cluster: &Cluster<'_>,
    node: &Node<'_>,
    local: Vec<(u64, Member<'_>)>,
    diagnostics: Vec<Diagnostic>,
) -> Compiled {
    let mut out = Compiled { diagnostics, ..Compiled::default() };
    out.diagnostics.extend(diagnose::diagnose(index, cluster));
    let config = &mut out.desired.config;
    *config =
        Config { abi: ABI, pod_root_level: node.pod_root_level, unknown: UNKNOWN_DENY, ..Config::default() };

    let mut policies = Policies::default();
    match node.unknown_pods {
        UnknownPods::Deny => {}
        UnknownPods::Allow => config.unknown = UNKNOWN_ALLOW,
        UnknownPods::DenyOutside => {
            config.unknown = UNKNOWN_POLICY;
            config.unknown_policy = policies.number(select::unknown_pods(node.name));
        }
    }
    for (cgroup, member) in local {
        match select::select(index, cluster, member) {
            Selection::Undecided => out.diagnostics.push(Diagnostic {
                object: Some(pod_ref(member.pod)),
                path: "metadata.namespace".to_owned(),
                reason: "its Namespace is not known and policies select by namespace labels; the pod stays unknown".to_owned(),
                severity: Severity::Error,
            }),
            // With objects missing, a pod that nothing selects may be one that something selects.
            Selection::Unselected if node.incomplete => {}
            selection => endpoint(&mut out, &mut policies, cgroup, member.pod, selection),
        }
    }
    rows(&mut out, cluster, &policies.contents);
    for (number, content) in &policies.contents {
        let objects = content.tiers.iter().flat_map(|tier| tier.policies.clone()).collect();
        let rules = content.rules().map(|rule| rule.info.clone()).collect();
        out.provenance.policies.insert(*number, PolicyInfo { objects, rules });
    }
    out.provenance.addresses = names(cluster);
    out.diagnostics.sort();
    out.diagnostics.dedup();
    out
}

/// The policies that apply on this node, by number.
#[derive(Default)]
struct Policies {
    numbers: Numbers,
    contents: BTreeMap<u64, Content>,
}

impl Policies {
    fn number(&mut self, content: Content) -> u64 {
        let number = self.numbers.of(&content.digest());
        self.contents.entry(number).or_insert(content);
        number
    }
}

/// Pairs the cgroups with their pods. A cgroup whose pod is not known, or not for certain, is left out: unknown.
fn local_pods<'n, 'c>(
    cluster: &Cluster<'c>,
    node: &Node<'n>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<(&'n LocalPod, Member<'c>)> {
    let mut by_uid: BTreeMap<&str, Vec<Member<'c>>> = BTreeMap::new();
    let mut by_hash: BTreeMap<&str, Vec<Member<'c>>> = BTreeMap::new();
    for member in &cluster.members {
        by_uid.entry(&member.pod.uid).or_default().push(*member);
        // Anybody may write the annotation; it counts for pods of this node only, and after the UID.
        if let (Some(hash), Some(true)) =
            (&member.pod.static_hash, member.pod.node.as_ref().map(|n| **n == *node.name))
        {
            by_hash.entry(hash).or_default().push(*member);
        }
    }
    let mut found = Vec::new();
    for local in node.pods.iter().filter(|local| !local.uid.is_empty()) {
        let of = by_uid.get(local.uid.as_str()).or_else(|| by_hash.get(local.uid.as_str()));
        match of.map(Vec::as_slice) {
            None | Some([]) => {}
            Some([member]) => found.push((local, *member)),
            Some([member, ..]) => diagnostics.push(Diagnostic {
                object: Some(pod_ref(member.pod)),
                path: "metadata.uid".to_owned(),
                reason: format!("{} is claimed by several pods; its cgroup stays unknown", local.uid),
                severity: Severity::Error,
            }),
        }
    }
    found
}

fn pod_ref(pod: &Pod) -> ObjectRef {
    ObjectRef { kind: Kind::Pod, namespace: Some(pod.namespace.clone()), name: pod.name.clone() }
}

/// Writes the endpoint of a local pod.
fn endpoint(out: &mut Compiled, policies: &mut Policies, cgroup: u64, pod: &Pod, selection: Selection) {
    let mut family = |v4: bool| {
        let mut of_family = pod.addresses.iter().filter(|ip| ip.is_ipv4() == v4);
        let first = of_family.next().map_or(Addr::default(), |ip| address(*ip));
        if of_family.next().is_some() {
            out.diagnostics.push(Diagnostic {
                object: Some(pod_ref(pod)),
                path: "status.podIPs".to_owned(),
                reason: "only the first address of each family counts as the pod's own".to_owned(),
                severity: Severity::Warning,
            });
        }
        first
    };
    let flags = if pod.host_network { FLAG_HOST_NETWORK } else { 0 };
    let mut entry = Endpoint { policy: 0, state: STATE_INVALID, flags, v4: family(true), v6: family(false) };
    let (state, objects) = match selection {
        Selection::Undecided => return,
        Selection::Unselected => {
            entry.state = STATE_UNSELECTED;
            (PodState::Unselected, Vec::new())
        }
        Selection::Invalid { policies, reasons } => (PodState::Invalid { reasons }, policies),
        Selection::Isolated(content) => {
            let audit = content.audit();
            let objects = content.tiers.iter().flat_map(|tier| tier.policies.clone()).collect();
            entry.state = STATE_ISOLATED;
            entry.flags |= if audit { FLAG_AUDIT } else { 0 };
            entry.policy = policies.number(content);
            (PodState::Isolated { audit }, objects)
        }
    };
    let info = EndpointInfo {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        state,
        policies: objects,
        policy: entry.policy,
        addresses: pod.addresses.clone(),
        host_network: pod.host_network,
    };
    out.desired.endpoints.insert(cgroup, entry);
    out.endpoints.insert(cgroup, info);
}

/// Writes the addresses, the prefixes, and a row for every policy and every identity that an address can have.
fn rows(out: &mut Compiled, cluster: &Cluster<'_>, policies: &BTreeMap<u64, Content>) {
    let grants: BTreeSet<&Grant> =
        policies.values().flat_map(Content::rules).flat_map(|rule| &rule.grants).collect();
    // A grant that leads anywhere still leads through services to their backends' ports.
    let none = grants.is_empty();
    let grants: Vec<Grant> = grants.into_iter().filter(|grant| grant.interned()).cloned().collect();
    let identities = if none { Identities::default() } else { identity::identities(cluster, &grants) };
    let used: BTreeSet<u64> =
        identities.addresses.values().chain(identities.cidrs.values()).copied().collect();
    for (number, content) in policies {
        let policy = row::prepare(content, |grant| grants.binary_search(grant).ok());
        let mut cells = BTreeMap::new();
        for (identity, meaning) in &identities.meanings {
            if let Meaning::Base(matches) = meaning {
                cells.insert(*identity, row::base(&policy, matches));
            }
        }
        for identity in used.iter().copied().chain([IDENTITY_WORLD]).collect::<BTreeSet<_>>() {
            let (row, dropped) = match identities.meanings.get(&identity) {
                Some(Meaning::Composite(meaning)) => {
                    row::row(&row::composite(meaning, |base| cells.get(&base)))
                }
                Some(Meaning::Base(_)) | None => cells.get(&identity).map_or((None, 0), row::row),
            };
            if dropped > 0 {
                out.diagnostics.push(Diagnostic {
                    object: content.tiers.iter().flat_map(|tier| &tier.policies).next().cloned(),
                    path: String::new(),
                    reason: format!(
                        "more than {ROW_ENTRIES} port ranges to one destination; {dropped} are denied"
                    ),
                    severity: Severity::Error,
                });
            }
            if let Some(row) = row {
                out.desired.rows.insert(RowKey { policy: *number, identity }, row);
            }
        }
    }
    for addr in &identities.shared {
        out.diagnostics.push(Diagnostic {
            object: cluster.owners.get(addr).and_then(|pods| pods.first()).map(|member| pod_ref(member.pod)),
            path: String::new(),
            reason: format!(
                "{} has several owners; what is allowed to each of them is allowed",
                display(addr)
            ),
            severity: Severity::Warning,
        });
    }
    out.desired.addresses = identities.addresses;
    out.desired.cidrs = identities.cidrs;
}

fn display(addr: &Addr) -> IpAddr {
    IpAddr::from(addr.0).to_canonical()
}

/// Whose addresses are whose. Pods come before nodes, and nodes before services.
fn names(cluster: &Cluster<'_>) -> BTreeMap<Addr, String> {
    let mut names = BTreeMap::new();
    for (service, _) in &cluster.services {
        for vip in &service.vips {
            names
                .entry(address(*vip))
                .or_insert_with(|| format!("service {}/{}", service.namespace, service.name));
        }
    }
    for (addr, nodes) in &cluster.nodes {
        names.extend(nodes.first().map(|node| (*addr, format!("node {node}"))));
    }
    for (addr, members) in &cluster.owners {
        let name = members.first().map(|m| (*addr, format!("pod {}/{}", m.pod.namespace, m.pod.name)));
        names.extend(name);
    }
    names
}
