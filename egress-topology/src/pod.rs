//! Pods.
//!
//! Invariant: a pod's interface, routes, processes and cgroups go when it is removed or its last handle is dropped.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};

use crate::addresses::{BRIDGE_V4, BRIDGE_V6};
use crate::capabilities::Capabilities;
use crate::cgroup::{self, Qos};
use crate::container::{Container, ContainerKind, ContainerRecord};
use crate::exec::Exec;
use crate::netns::Netns;
use crate::process::Process;
use crate::random;
use crate::topology::Shared;

/// What a pod shall be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) service_account: String,
    pub(crate) qos: Qos,
    pub(crate) uid: Option<String>,
    pub(crate) index: Option<u16>,
    pub(crate) host_network: bool,
    pub(crate) network_first: bool,
    pub(crate) pause_user: u32,
}

impl PodSpec {
    /// A BestEffort pod without labels, with the next free address.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            service_account: "default".to_owned(),
            qos: Qos::default(),
            uid: None,
            index: None,
            host_network: false,
            network_first: false,
            pause_user: 0,
        }
    }

    /// With one label more.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With one annotation more.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With this service account instead of `default`.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// With this quality of service.
    #[must_use]
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// With this UID instead of a random one.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// With the addresses of this index ([`crate::pod_v4`], [`crate::pod_v6`]), for instance those of a removed pod.
    #[must_use]
    pub fn index(mut self, index: u16) -> Self {
        self.index = Some(index);
        self
    }

    /// In the node's network namespace, with the node's addresses.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// With its network made before its cgroup: from the moment that it can be found, no time is lost until it can send.
    #[must_use]
    pub fn network_first(mut self) -> Self {
        self.network_first = true;
        self
    }

    /// With a pause process of this user instead of root; that of Kubernetes is 65535.
    #[must_use]
    pub fn pause_user(mut self, id: u32) -> Self {
        self.pause_user = id;
        self
    }
}

/// A pod that stands. Clones are the same pod.
#[derive(Debug, Clone)]
pub struct Pod {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    spec: PodSpec,
    uid: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    netns: Netns,
    /// The node's end of the veth; none for a pod in the node's network.
    interface: Option<String>,
    cgroup: PathBuf,
    containers: Mutex<Vec<ContainerRecord>>,
    /// What a runtime starts in a pod before any container, to hold its namespaces; killed when dropped.
    sandbox: Mutex<Option<Process>>,
    removed: AtomicBool,
    shared: Arc<Shared>,
}

impl Pod {
    /// Makes the pod with the addresses given; `number` names its interface on the node.
    pub(crate) fn create(
        shared: &Arc<Shared>,
        spec: PodSpec,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        number: u32,
    ) -> Result<Self> {
        let uid = spec.uid.clone().map_or_else(random::uuid, Ok)?;
        let (netns, interface) = if spec.host_network {
            (shared.node.clone(), None)
        } else {
            let netns = Netns::new(&format!("pod {}/{}", spec.namespace, spec.name))?;
            (netns, Some(format!("veth{number}")))
        };
        let cgroup = shared.tree.pod_directory(spec.qos, &uid);
        // Made first, so that what follows is undone by its drop if a later step fails.
        let inner = Inner {
            spec,
            uid,
            v4,
            v6,
            netns,
            interface,
            cgroup,
            containers: Mutex::new(Vec::new()),
            sandbox: Mutex::new(None),
            removed: AtomicBool::new(false),
            shared: Arc::clone(shared),
        };
        if !inner.spec.network_first {
            cgroup::make(&inner.cgroup)?;
        }
        if let Some(interface) = &inner.interface {
            connect(&shared.node, &inner.netns, interface, v4, v6)
                .with_context(|| format!("connect pod {}", inner.spec.name))?;
        }
        if inner.spec.network_first {
            cgroup::make(&inner.cgroup)?;
        }
        let directory = shared.tree.container_directory(&inner.cgroup, &random::container_id()?);
        cgroup::make(&directory)?;
        let mut pause = Exec::new("sleep", ["infinity"]);
        if inner.spec.pause_user != 0 {
            pause = pause.user(inner.spec.pause_user);
        }
        let pause = pause.spawn(&shared.probe, &inner.netns, &directory, Capabilities::NONE)?;
        *inner.sandbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(pause);
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    pub(crate) fn spec(&self) -> &PodSpec {
        &self.inner.spec
    }

    pub(crate) fn containers(&self) -> MutexGuard<'_, Vec<ContainerRecord>> {
        self.inner.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has been removed.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.inner.removed.load(Ordering::SeqCst)
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    /// Namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.inner.spec.namespace
    }

    /// UID, with hyphens.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.inner.uid
    }

    /// IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.inner.v4
    }

    /// IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.inner.v6
    }

    /// The network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// The node's end of the pod's veth; none for a pod in the node's network.
    #[must_use]
    pub fn host_interface(&self) -> Option<&str> {
        self.inner.interface.as_deref()
    }

    /// Whether it is in the node's network namespace.
    #[must_use]
    pub fn is_host_network(&self) -> bool {
        self.inner.spec.host_network
    }

    /// The pod's cgroup directory.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.inner.cgroup
    }

    /// Adds a regular container: a cgroup with nothing running in it yet.
    pub fn add_container(&self, name: &str) -> Result<Container> {
        self.add_container_of_kind(name, ContainerKind::Regular)
    }

    /// Adds a container of any kind.
    pub fn add_container_of_kind(&self, name: &str, kind: ContainerKind) -> Result<Container> {
        Container::create(self, name, kind)
    }

    /// As [`Self::add_container_of_kind`], where somebody is told the container's id before its cgroup is made, as a runtime knows it.
    pub fn add_container_known(
        &self,
        name: &str,
        kind: ContainerKind,
        before: impl FnOnce(&str),
    ) -> Result<Container> {
        Container::create_known(self, name, kind, before)
    }

    /// Gives it one interface more, joined to the node's bridge as the first is, with addresses of its own that the
    /// pod's object does not name. No route leads there.
    pub fn add_interface(&self, name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
        let (node, netns) = (&self.inner.shared.node, &self.inner.netns);
        let first =
            self.host_interface().context("a pod in the node's network has no interface of its own")?;
        let host = format!("{first}-{name}");
        node.ip(&[
            format!("link add {host} type veth peer name {name} netns {}", netns.path().display()),
            format!("link set {host} master cni0 up"),
            format!("route replace {v4}/32 dev cni0"),
            format!("route replace {v6}/128 dev cni0"),
        ])?;
        netns.ip(&[format!("link set {name} up")])?;
        netns.add_address(name, v4.into(), 32)?;
        netns.add_address(name, v6.into(), 128)
    }

    /// Kills and removes the pod now, whatever other handles there are.
    pub fn remove(&self) -> Result<()> {
        self.inner.remove()
    }
}

impl Inner {
    fn remove(&self) -> Result<()> {
        if self.removed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let cgroup = cgroup::remove_tree(&self.cgroup);
        let network = self.interface.as_ref().map_or(Ok(()), |interface| self.disconnect(interface));
        cgroup.and(network).with_context(|| format!("remove pod {}/{}", self.spec.namespace, self.spec.name))
    }

    /// Takes the pod from the node's network.
    fn disconnect(&self, interface: &str) -> Result<()> {
        let (node, v4, v6) = (&self.shared.node, self.v4, self.v6);
        // A test may have deleted the pod's end, and the node's with it.
        if node.interface_index(interface).is_ok() {
            node.ip(&[format!("link del {interface}")])?;
        }
        node.command("ip", &["-4", "route", "flush", &format!("{v4}/32")], "")?;
        node.command("ip", &["-6", "route", "flush", &format!("{v6}/128")], "")?;
        node.ip(&[format!("neigh flush to {v4} dev cni0"), format!("neigh flush to {v6} dev cni0")])
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("egress-topology: {error:#}");
        }
    }
}

/// Joins a pod to the node's bridge. Its address is a single one, so that also traffic between pods of the node passes
/// the node's IP layer, where service addresses are translated back.
fn connect(node: &Netns, pod: &Netns, interface: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    node.ip(&[format!("link add {interface} type veth peer name eth0 netns {}", pod.path().display())])?;
    pod.ip(&["link set eth0 up"])?;
    node.ip(&[
        format!("link set {interface} master cni0 up"),
        format!("route add {v4}/32 dev cni0"),
        format!("route add {v6}/128 dev cni0"),
    ])?;
    pod.ip(&[
        format!("addr add {v4}/32 dev eth0"),
        format!("addr add {v6}/128 dev eth0 nodad"),
        format!("route add {BRIDGE_V4} dev eth0 scope link src {v4}"),
        format!("route add default via {BRIDGE_V4} dev eth0 src {v4}"),
        format!("route add {BRIDGE_V6} dev eth0 src {v6}"),
        format!("route add default via {BRIDGE_V6} dev eth0 src {v6}"),
    ])
}
