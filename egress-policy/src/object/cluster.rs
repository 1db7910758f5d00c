//! Pods, namespaces, services, endpoint slices and nodes: what policies talk about.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use super::{Addresses, Endpoints, Kind, Labels, ObjectRef, Uid};

/// A pod. What its replicas have in common with it is read as if it were the pod's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: Box<str>,
    /// `metadata.uid`, empty where there is none.
    pub uid: Uid,
    /// What its replicas have in common with it.
    pub template: Arc<Template>,
    /// `spec.nodeName`, behind one pointer: the inner one takes two words, and is the same for all pods of a node.
    pub(crate) node: Option<Arc<Arc<str>>>,
    /// Its addresses, in the order of `status.podIPs`.
    pub addresses: Addresses,
    /// `None` where there is nothing in it.
    pub(super) cgroups: Option<Box<Cgroups>>,
}

impl Deref for Pod {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

/// What the replicas of a workload have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Template {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The labels.
    pub labels: Labels,
    /// What counts of `spec`.
    pub spec: Arc<PodSpec>,
    /// Whether they share the node's network namespace.
    pub host_network: bool,
    /// Whether their phase is Succeeded or Failed; their addresses may be other pods' by now.
    pub finished: bool,
}

/// What names cgroups of a pod, beside its UID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cgroups {
    pub(super) static_hash: Option<Arc<str>>,
    pub(super) container_ids: Box<[(Arc<str>, Arc<str>)]>,
}

impl Pod {
    /// `spec.nodeName`.
    #[must_use]
    pub fn node(&self) -> Option<&Arc<str>> {
        self.node.as_deref()
    }

    /// The hash in the cgroup's name, for a static pod.
    #[must_use]
    pub fn static_hash(&self) -> Option<&Arc<str>> {
        self.cgroups.as_ref()?.static_hash.as_ref()
    }

    /// Ids and names of its containers that were started (`status.containerStatuses` and the like). An [`Index`](crate::Index)
    /// keeps them for pods of its own node only.
    #[must_use]
    pub fn container_ids(&self) -> &[(Arc<str>, Arc<str>)] {
        self.cgroups.as_ref().map_or(&[], |cgroups| &cgroups.container_ids)
    }

    /// Forgets the ids of its containers.
    pub(crate) fn forget_containers(&mut self) {
        let static_hash = self.static_hash().cloned();
        self.set_cgroups(Cgroups { static_hash, ..Cgroups::default() });
    }

    pub(super) fn set_cgroups(&mut self, cgroups: Cgroups) {
        self.cgroups = (cgroups != Cgroups::default()).then(|| cgroups.into());
    }

    /// Whether its addresses are its alone. Not of one that is finished, that has its node's, or that is on no node: nothing runs of it, and
    /// who may write its status may have made up any address.
    #[must_use]
    pub fn owns_addresses(&self) -> bool {
        !self.finished && !self.host_network && self.node.is_some()
    }

    /// Its namespace and name.
    #[must_use]
    pub fn key(&self) -> (Arc<str>, Arc<str>) {
        (self.namespace.clone(), (*self.name).into())
    }

    /// What names it.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        let (namespace, name) = self.key();
        ObjectRef { kind: Kind::Pod, namespace: Some(namespace), name }
    }
}

/// What counts of a pod's `spec`, for all replicas alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSpec {
    /// `spec.serviceAccountName`, `default` where absent.
    pub service_account: Arc<str>,
    /// Ports of its containers that have a name.
    pub named_ports: Vec<NamedPort>,
    /// Ports of its node that lead to its containers.
    pub host_ports: Vec<HostPort>,
    /// Its containers of every kind.
    pub containers: Vec<Container>,
    /// Whether its containers see each other's processes.
    pub shared_processes: bool,
    /// Whether they see the node's.
    pub host_pid: bool,
    /// Paths of its node that its containers may have mounted.
    pub host_paths: Vec<Arc<str>>,
    /// Annotations by which a mesh is told to leave traffic, or the pod, alone: those of [`MESH_ANNOTATIONS`].
    pub mesh_annotations: Vec<(Arc<str>, Arc<str>)>,
}

/// Annotations that take a pod, or some of what it sends, out of its sidecar's hands.
pub const MESH_ANNOTATIONS: [&str; 10] = [
    "sidecar.istio.io/inject",
    "sidecar.istio.io/interceptionMode",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "linkerd.io/inject",
    "config.linkerd.io/skip-outbound-ports",
    "config.linkerd.io/skip-subnets",
];

/// How a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerKind {
    /// Before the others, once.
    Init,
    /// An init container that stays (`restartPolicy: Always`).
    Sidecar,
    /// One of `spec.containers`.
    Regular,
    /// Put into a running pod, as `kubectl debug` does.
    Ephemeral,
}

impl ContainerKind {
    /// Whether it runs as long as the pod, as a proxy does.
    #[must_use]
    pub fn lasts(self) -> bool {
        matches!(self, Self::Regular | Self::Sidecar)
    }
}

/// A container, as far as it could get round the mesh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Container {
    /// Its name.
    pub name: Arc<str>,
    /// How it runs.
    pub kind: ContainerKind,
    /// The user it runs as, by its own `securityContext` or its pod's.
    pub run_as_user: Option<i64>,
    /// The group it runs as, by its own `securityContext` or its pod's.
    pub run_as_group: Option<i64>,
    /// Capabilities added to those of the runtime, as written.
    pub capabilities: Vec<Arc<str>>,
    /// `securityContext.privileged`.
    pub privileged: bool,
    /// The container whose processes an ephemeral one sees (`targetContainerName`).
    pub target: Option<Arc<str>>,
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: Arc<str>,
    /// IANA protocol number.
    pub protocol: u8,
    /// Its number.
    pub port: u16,
}

/// A port of the node that leads to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// IANA protocol number.
    pub protocol: u8,
    /// The node's port.
    pub host: u16,
    /// The container's port.
    pub port: u16,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// The enforcement annotation's value.
    pub enforcement: Option<String>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Cluster IPs, external IPs and load-balancer IPs. Left out: load balancers with `ipMode: Proxy`, whose traffic
    /// really leaves the node.
    pub vips: Box<[IpAddr]>,
    /// Those of them that whoever wrote the service chose (`spec.externalIPs`): any address there is.
    pub external: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[ServicePort]>,
    /// Some of it cannot be read: kube-proxy may have more ports and addresses of it. Nothing is allowed at those that can be read.
    pub unread: bool,
}

impl Service {
    /// Whether it has a port of this protocol and number.
    pub(crate) fn has(&self, port: (u8, u16)) -> bool {
        self.ports.iter().any(|one| (one.protocol, one.port) == port)
    }

    /// What names it.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        let kind = Kind::Service;
        ObjectRef { kind, namespace: Some(self.namespace.clone()), name: self.name.clone() }
    }
}

impl EndpointSlice {
    /// What names it.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        let kind = Kind::EndpointSlice;
        ObjectRef { kind, namespace: Some(self.namespace.clone()), name: self.name.clone() }
    }
}

/// A port of a service or of an endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty where there is none; pairs the service's port with the slice's.
    pub name: Arc<str>,
    /// IANA protocol number.
    pub protocol: u8,
    /// The service's own port, or the backend's port in a slice.
    pub port: u16,
    /// The port of every node that leads there; 0 for none, and in a slice.
    pub node_port: u16,
}

/// Some backends of a service, of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace, which is the service's.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The service's name.
    pub service: Option<Arc<str>>,
    /// Ports of the backends, by name and protocol; of several with the same ones the first that was written.
    pub ports: Box<[ServicePort]>,
    /// The backends.
    pub endpoints: Endpoints,
    /// Whether kube-proxy takes backends from it.
    pub proxied: bool,
    /// Whether it is of a moment ago: no object has it any more, and kube-proxy may not have followed yet. Its backends may be chosen
    /// beside all others; it opens none of them.
    pub former: bool,
    /// Some of it cannot be read: its service may lead anywhere.
    pub unread: bool,
    /// It has a port outside of 1 to 65535, which the API server accepts: kube-proxy follows nothing while it is there.
    pub stops_proxy: bool,
}

/// One address of a backend; a backend's addresses are interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Serving while terminating: takes new connections where nothing is ready to the node that sends them.
    pub last_resort: bool,
}

impl Endpoint {
    /// Whether new connections may be sent to it.
    #[must_use]
    pub fn may_take(&self) -> bool {
        self.ready || self.last_resort
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its internal and external addresses.
    pub addresses: Vec<IpAddr>,
    /// Further addresses by which it answers, known to its own agent alone: its node ports are there, too, but who may reach the node may
    /// not for that reason reach these.
    pub further: Vec<IpAddr>,
    /// Whether an agent is meant to run there, as `deploy/kustomize/base/daemonset.yaml` chooses nodes: of Linux, and machines of their own.
    pub has_agent: bool,
}
