//! How a mesh and its gateways are told from other pods.
//!
//! Invariant: everything that is known of a mesh by name is here, and nothing else of this module knows a name. Tested
//! by `tests/lint.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Place;
use crate::index::Index;
use crate::object::{Container, ContainerKind, LIFELINE_NAMESPACES, NamespaceLabels, Pod, Workload};

/// Containers that are a mesh's proxy.
const PROXIES: [&str; 2] = ["istio-proxy", "linkerd-proxy"];
/// Init containers by which a mesh sets up, or tries, the redirect.
const MESH_INIT: [&str; 4] = ["istio-init", "istio-validation", "linkerd-init", "linkerd-network-validator"];
/// Istio's label for pods and namespaces of an ambient mesh.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Gateway API's label on the pods of a gateway.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// A pod, or what a workload makes, with its part in the policies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub(super) pod: &'a Pod,
    /// What makes it. There is no pod yet, and nothing is injected.
    pub(super) workload: Option<&'a Workload>,
    pub(super) namespace: NamespaceLabels<'a>,
    /// Subjects of some policy mean it.
    pub(super) selected: bool,
    /// Some policy's gateways mean it.
    pub(super) gateway: bool,
    /// The cluster that it is in.
    pub(super) index: &'a Index,
    /// Some policy asks for labels of its namespace, which has no object.
    pub(super) undecided: bool,
}

impl Member<'_> {
    /// The containers that a policy calls the pod's proxy (`spec.proxy.containers`).
    pub(super) fn lock(&self) -> BTreeSet<&str> {
        let policies = self.index.gateway_policies();
        let policies = policies.filter(|policy| policy.selects(self.pod, self.namespace));
        let locks = policies.filter_map(|policy| policy.proxy.as_ref());
        locks.flat_map(|proxy| &proxy.containers).map(String::as_str).collect()
    }

    /// What findings about it name.
    pub(super) fn place(&self) -> Place {
        match self.workload {
            None => self.pod.object_ref().into(),
            Some(Workload { kind, pod, .. }) => Place::Workload {
                kind: kind.clone(),
                namespace: pod.namespace.clone(),
                name: Arc::from(&*pod.name),
            },
        }
    }

    /// How lists of several name it.
    pub(super) fn name(&self) -> String {
        match self.workload {
            None => format!("{}/{}", self.pod.namespace, self.pod.name),
            Some(workload) => workload.to_string(),
        }
    }

    /// Whether it is locked down.
    pub(super) fn subject(&self) -> bool {
        self.selected && !self.gateway
    }
}

/// Every pod that has not finished, and every workload.
pub(super) fn members<'a>(index: &'a Index, workloads: &'a [Workload]) -> Vec<Member<'a>> {
    let pods = index.pods().filter(|pod| !pod.finished).map(|pod| member(index, pod, None));
    pods.chain(workloads.iter().map(|one| member(index, &one.pod, Some(one)))).collect()
}

fn member<'a>(index: &'a Index, pod: &'a Pod, workload: Option<&'a Workload>) -> Member<'a> {
    let namespace = index.namespace(&pod.namespace);
    let lifeline = LIFELINE_NAMESPACES.contains(&&*pod.namespace);
    let subjects = index.gateway_policies().flat_map(|policy| &policy.subjects);
    let mut subjects = subjects.filter(|subject| subject.system_namespaces || !lifeline);
    let gateways = index.gateway_policies().flat_map(|policy| &policy.gateways);
    let mut gateways = gateways.filter_map(|gateway| gateway.pods.as_ref());
    Member {
        index,
        pod,
        workload,
        namespace,
        selected: index.gateway_policies().any(|policy| policy.selects(pod, namespace)),
        gateway: match workload {
            None => index.is_gateway(pod),
            Some(_) => index.means_gateway(pod),
        },
        undecided: subjects.any(|subject| !namespace.decides(&subject.who.namespaces))
            || gateways.any(|peer| !namespace.decides(&peer.namespaces)),
    }
}

/// Whether a container is a mesh's proxy.
pub(super) fn is_proxy(container: &Container) -> bool {
    container.kind.lasts() && PROXIES.contains(&&*container.name)
}

/// Whether a container sets up the redirect, before any other runs.
pub(super) fn is_mesh_init(container: &Container) -> bool {
    container.kind == ContainerKind::Init && MESH_INIT.contains(&&*container.name)
}

/// Whether a pod has a mesh's proxy.
pub(super) fn has_proxy(pod: &Pod) -> bool {
    pod.spec.containers.iter().any(is_proxy)
}

/// Whether a pod runs a proxy and no application, as a mesh's gateways do. Its labels are no evidence: who writes the
/// pod writes them.
pub(super) fn only_proxy(pod: &Pod) -> bool {
    let mut applications = pod.spec.containers.iter().filter(|c| c.kind == ContainerKind::Regular);
    has_proxy(pod) && applications.all(is_proxy)
}

/// Whether an ambient mesh takes a pod's traffic, without a sidecar. The pod's own word counts before its namespace's.
pub(super) fn is_ambient(pod: &Pod, namespace: NamespaceLabels<'_>) -> bool {
    pod.labels.get(DATAPLANE_MODE).or_else(|| namespace.get(DATAPLANE_MODE)) == Some("ambient")
}

/// Whether a namespace is a mesh's, by its labels.
pub(super) fn is_mesh(namespace: NamespaceLabels<'_>) -> bool {
    namespace.get("istio-injection") == Some("enabled")
        || namespace.get("istio.io/rev").is_some()
        || namespace.get(DATAPLANE_MODE) == Some("ambient")
}

/// The label by which a pod looks like an egress gateway. One of Gateway API has to have `egress` in its name, because
/// most of those are for incoming traffic.
pub(super) fn egress_gateway_label(pod: &Pod) -> Option<(&'static str, &str)> {
    let label = |key: &'static str, is: fn(&str) -> bool| {
        pod.labels.get(key).filter(|value| is(value)).map(|value| (key, value))
    };
    label("istio", |value| value == "egressgateway")
        .or_else(|| label("app", |value| value == "istio-egressgateway"))
        .or_else(|| label(GATEWAY_NAME, |value| value.contains("egress")))
}
