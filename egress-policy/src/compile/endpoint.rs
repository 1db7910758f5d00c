//! The endpoint of one local pod.

use std::sync::Arc;

use egress_common::wire::{
    Addr, Endpoint, FLAG_AUDIT, FLAG_HOST_NETWORK, PROXIES, STATE_INVALID, STATE_ISOLATED, STATE_UNSELECTED,
};

use smallvec::SmallVec;

use super::grant::Content;
use super::report::{Diagnostic, EndpointInfo, PodState, Severity};
use super::select::{self, Selection};
use super::{LocalContainer, LocalPod, Node};
use crate::index::Index;
use crate::object::{Pod, address};

/// What there is of a local pod. Without an endpoint it is unknown.
#[derive(Debug, Default)]
pub(super) struct Local {
    pub(super) endpoint: Option<(Endpoint, Option<EndpointInfo>)>,
    /// What policies say together about it, where it is isolated; under a lock, about containers that are no proxy.
    pub(super) content: Option<Content>,
    /// What the lock does not cover, where there is one.
    pub(super) lock: Option<Content>,
    /// The containers that are a proxy of the lock, with what policies say about them.
    pub(super) proxies: Vec<(LocalContainer, Content)>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// The namespaces of the pods that claim a cgroup: one, but for those that are nobody's.
pub(super) type Namespaces = SmallVec<[Arc<str>; 1]>;

/// Judges what was found on the node, of which there was `before`; with the namespaces that it depends on.
pub(super) fn of_cgroup(
    index: &Index,
    node: &Node<'_>,
    found: &LocalPod,
    before: Option<&Endpoint>,
) -> (Namespaces, Local) {
    let claims = claims(index, node.name, &found.uid);
    let namespaces = claims.iter().map(|pod| pod.namespace.clone()).collect();
    let locked = |one: &&Endpoint| matches!(one.state, STATE_ISOLATED | STATE_INVALID);
    let locked = found.left.as_ref().or(before).filter(locked).is_some();
    let pod = match claims[..] {
        [] => None,
        [pod] if is_another(pod, found) => None,
        [pod] => Some(pod),
        _ => return (namespaces, of_several(index, node, found, &claims)),
    };
    let judge = |pod: &Arc<Pod>| local(index, pod, &found.containers, node.incomplete, locked);
    let mut out = pod.map_or_else(Local::default, judge);
    out.diagnostics.extend(pod.and_then(|pod| elsewhere(pod, node.name)));
    if let (None, Some(left)) = (&out.endpoint, &found.left) {
        close(&mut out, &found.uid, left);
    }
    (namespaces, out)
}

/// The pods that say that a cgroup is theirs, by the UID or hash in its name.
fn claims<'i>(index: &'i Index, node: &str, uid: &str) -> Vec<&'i Arc<Pod>> {
    // Anybody may write the annotation; it counts for pods of this node only, and after the UID.
    let by_hash =
        || index.by_hash(uid).iter().filter(|pod| pod.node().map(|node| &**node) == Some(node)).collect();
    let by_uid = index.by_uid(uid);
    if by_uid.is_empty() { by_hash() } else { by_uid }
}

/// Whether a pod says by an annotation alone that a cgroup is its own which an earlier agent locked down, whose name is
/// a UID as the API server gives them, and which had other addresses: the pod with that UID went while no agent ran.
fn is_another(pod: &Pod, found: &LocalPod) -> bool {
    let is_uid = || {
        let parts =
            found.uid.split('-').map(|part| (part.len(), part.bytes().all(|b| b.is_ascii_hexdigit())));
        parts.eq([8, 4, 4, 4, 12].map(|length| (length, true)))
    };
    let is_own = |left: &Endpoint| {
        let has = |addr: Addr| addr == Addr::default() || pod.addresses.iter().any(|ip| address(*ip) == addr);
        (left.v4, left.v6) != Default::default() && has(left.v4) && has(left.v6)
    };
    pod.uid != *found.uid && is_uid() && found.left.as_ref().is_some_and(|left| !is_own(left))
}

/// Several pods claim a cgroup: it is nobody's. Where policies lock one of them down it is closed, else it stays unknown.
fn of_several(index: &Index, node: &Node<'_>, found: &LocalPod, claims: &[&Arc<Pod>]) -> Local {
    let mut out = Local::default();
    let judged = claims.iter().map(|pod| local(index, pod, &found.containers, node.incomplete, false));
    let judged: Vec<Endpoint> = judged.filter_map(|one| Some(one.endpoint?.0)).collect();
    let is_locked = found.left.is_some() || judged.iter().any(|one| one.state != STATE_UNSELECTED);
    let becomes = if is_locked { "is closed" } else { "stays unknown" };
    if is_locked {
        let flags = judged.iter().fold(0, |flags, one| flags | one.flags) & FLAG_HOST_NETWORK;
        let (v4, v6) = found.left.map(|left| (left.v4, left.v6)).unwrap_or_default();
        out.endpoint = Some((Endpoint { state: STATE_INVALID, flags, v4, v6, ..Endpoint::default() }, None));
    }
    out.diagnostics.push(Diagnostic {
        object: claims.iter().map(|pod| pod.object_ref()).min(),
        path: "metadata.uid".to_owned(),
        reason: format!("{} is claimed by several pods; its cgroup {becomes}", found.uid),
        severity: Severity::Error,
    });
    out
}

/// What is wrong with a pod that is found here and names another node.
fn elsewhere(pod: &Pod, node: &str) -> Option<Diagnostic> {
    let named = pod.node().map(|node| &**node).filter(|named| *named != node)?;
    Some(Diagnostic {
        object: Some(pod.object_ref()),
        path: "spec.nodeName".to_owned(),
        reason: format!(
            "it runs here, on {node}, but names {named}: its containers are not told apart (is the node's name right?)"
        ),
        severity: Severity::Error,
    })
}

/// Closes a pod that would be unknown, and was locked down before: of processes whose pod is gone, nobody knows what they may do, but it
/// is not more than they might.
fn close(local: &mut Local, uid: &str, left: &Endpoint) {
    let (flags, v4, v6) = (left.flags & FLAG_HOST_NETWORK, left.v4, left.v6);
    local.endpoint = Some((Endpoint { state: STATE_INVALID, flags, v4, v6, ..Endpoint::default() }, None));
    local.diagnostics.push(Diagnostic {
        object: None,
        path: "metadata.uid".to_owned(),
        reason: format!(
            "the pod with UID {uid} was locked down before the agent started, and no object says what it may do: its processes run on, closed"
        ),
        severity: Severity::Error,
    });
}

/// Judges a local pod with these containers. `incomplete`: see [`Node`](super::Node). `locked`: it was locked down before, so that it is
/// closed where it cannot be told what it may do, as it may be less than what unknown pods may.
pub(super) fn local(
    index: &Index,
    pod: &Pod,
    containers: &[LocalContainer],
    incomplete: bool,
    locked: bool,
) -> Local {
    let mut out = Local::default();
    let selection = select::select(index, pod, None);
    let flags = if pod.host_network { FLAG_HOST_NETWORK } else { 0 };
    let mut entry = Endpoint { state: STATE_INVALID, flags, ..Endpoint::default() };
    let (state, policies) = match selection {
        Selection::Undecided => {
            let now =
                if locked { "the pod was locked down before and is closed" } else { "the pod stays unknown" };
            let reason = format!("{}; {now}", select::UNDECIDED);
            out.diagnostics.push(Diagnostic {
                object: Some(pod.object_ref()),
                path: "metadata.namespace".to_owned(),
                reason: reason.clone(),
                severity: Severity::Error,
            });
            if !locked {
                return out;
            }
            (PodState::Invalid { reasons: vec![reason] }, Vec::new())
        }
        // With objects missing, a pod that nothing selects may be one that something selects.
        Selection::Unselected if incomplete => return out,
        Selection::Unselected => {
            entry.state = STATE_UNSELECTED;
            (PodState::Unselected, Vec::new())
        }
        Selection::Invalid { policies, reasons } => (PodState::Invalid { reasons }, policies),
        Selection::Isolated { content, lock } => {
            if let Some(scope) = lock {
                out.lock = Some(select::outside_the_lock(scope));
                out.proxies = proxies(index, pod, containers, &mut out.diagnostics);
            }
            let audit = content.audit();
            let policies = content.tiers.iter().flat_map(|tier| tier.policies.clone()).collect();
            entry.state = STATE_ISOLATED;
            entry.flags |= if audit { FLAG_AUDIT } else { 0 };
            out.content = Some(content);
            (PodState::Isolated { audit }, policies)
        }
    };
    entry.v4 = own(pod, true, &mut out.diagnostics);
    entry.v6 = own(pod, false, &mut out.diagnostics);
    let info = EndpointInfo {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        state,
        policies,
        policy: 0,
        lock: 0,
        proxies: Vec::new(),
        addresses: pod.addresses.to_vec(),
        host_network: pod.host_network,
    };
    out.endpoint = Some((entry, Some(info)));
    out
}

/// The containers of a pod that are a proxy of its lock, and what policies say about each.
fn proxies(
    index: &Index,
    pod: &Pod,
    containers: &[LocalContainer],
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<(LocalContainer, Content)> {
    let names = select::proxies(index, pod);
    // Who may put a container into a running pod must not thereby get a proxy.
    let passing = |name: &str| {
        let mut of_spec = pod.spec.containers.iter();
        of_spec.find(|container| *container.name == *name).is_some_and(|container| !container.kind.lasts())
    };
    let mut containers: Vec<&LocalContainer> = containers.iter().collect();
    containers.sort_by_key(|container| (&container.name, container.cgroup));
    let mut out = Vec::new();
    for container in containers.into_iter().filter(|one| names.contains(&*one.name) && !passing(&one.name)) {
        if let Selection::Isolated { content, .. } = select::select(index, pod, Some(&container.name)) {
            out.push((container.clone(), content));
        }
    }
    if out.len() > PROXIES {
        diagnostics.push(Diagnostic {
            object: Some(pod.object_ref()),
            path: "spec.containers".to_owned(),
            reason: format!("more than {PROXIES} containers are proxies; the others count as none"),
            severity: Severity::Error,
        });
        out.truncate(PROXIES);
    }
    out
}

/// The address of a family that counts as the pod's own.
fn own(pod: &Pod, v4: bool, diagnostics: &mut Vec<Diagnostic>) -> Addr {
    let mut of_family = pod.addresses.iter().filter(|ip| ip.is_ipv4() == v4);
    let first = of_family.next().map_or(Addr::default(), |ip| address(*ip));
    if of_family.next().is_some() {
        diagnostics.push(Diagnostic {
            object: Some(pod.object_ref()),
            path: "status.podIPs".to_owned(),
            reason: "only the first address of each family counts as the pod's own".to_owned(),
            severity: Severity::Warning,
        });
    }
    first
}
