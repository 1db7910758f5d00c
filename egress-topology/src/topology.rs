//! The node, the outside, and what joins them.
//!
//! Invariant: pods' addresses are seen unchanged outside (nothing is masqueraded), and the only way between any two
//! pods, or a pod and the outside, is through the node's IP layer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use egress_probe::Attempt;

use crate::addresses::{
    BRIDGE_V4, BRIDGE_V6, NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, POD_CIDR_V4, POD_CIDR_V6, pod_v4, pod_v6,
};
use crate::capabilities::Capabilities;
use crate::cgroup::{CgroupDriver, CgroupRoot, PodRoot, sweep};
use crate::exec::Exec;
use crate::netns::{Netns, require_root};
use crate::nft::{self, Service};
use crate::pod::{self, Pod, PodSpec};
use crate::process::Process;

/// The first index of a pod: 1 is the node's.
const FIRST_INDEX: u16 = 2;
/// The last index of a pod within 10.244.0.0/16.
const LAST_INDEX: u16 = 0xfeff;

/// How a topology is named and laid out.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the cgroup tree's name begins.
    pub prefix: String,
    /// How cgroups are named.
    pub driver: CgroupDriver,
    /// kubelet's `--cgroup-root`, without the slash; none for the root of the tree.
    pub kubelet_root: Option<String>,
    /// The node's name in the objects.
    pub node_name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: "egress-demo".to_owned(),
            driver: CgroupDriver::default(),
            kubelet_root: None,
            node_name: "node-1".to_owned(),
        }
    }
}

/// One node with its pods, and one server outside. Clones are the same topology; it goes with the last clone, pod and
/// container.
#[derive(Debug, Clone)]
pub struct Topology {
    shared: Arc<Shared>,
}

/// Fields are dropped in this order: the tree with all processes, then the namespaces.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) tree: PodRoot,
    pub(crate) node: Netns,
    outside: Netns,
    pub(crate) probe: PathBuf,
    node_cgroup: PathBuf,
    outside_cgroup: PathBuf,
    node_name: String,
    next_number: AtomicU32,
    pods: Mutex<Vec<Weak<pod::Inner>>>,
    services: Mutex<Vec<Service>>,
    /// Last: the tree lies in it.
    root: CgroupRoot,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Topology {
    /// Makes the node and the outside. `probe` is the `egress-probe` binary.
    pub fn new(probe: impl Into<PathBuf>) -> Result<Self> {
        Self::with_options(probe, Options::default())
    }

    /// Makes the node and the outside; before that, removes what killed topologies of this prefix have left.
    pub fn with_options(probe: impl Into<PathBuf>, options: Options) -> Result<Self> {
        require_root()?;
        let probe: PathBuf = probe.into();
        ensure!(probe.is_file(), "no probe binary at {}: cargo build -p egress-probe", probe.display());
        let probe = probe.canonicalize().with_context(|| format!("probe {}", probe.display()))?;
        let root = CgroupRoot::find_or_mount()?;
        sweep(&root, &options.prefix)?;
        let tree =
            PodRoot::create_below(&root, &options.prefix, options.driver, options.kubelet_root.as_deref())?;
        tree.make_beside("system.slice")?;
        let node_cgroup = tree.make_beside("system.slice/node.scope")?;
        let outside_cgroup = tree.make_beside("system.slice/outside.scope")?;
        let (node, outside) = make_network()?;
        let shared = Shared {
            tree,
            node,
            outside,
            probe,
            node_cgroup,
            outside_cgroup,
            node_name: options.node_name,
            next_number: AtomicU32::new(u32::from(FIRST_INDEX)),
            pods: Mutex::new(Vec::new()),
            services: Mutex::new(Vec::new()),
            root,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The mount of the cgroup v2 hierarchy.
    #[must_use]
    pub fn cgroup_root(&self) -> &Path {
        self.shared.root.path()
    }

    /// The pod root, what would be `/sys/fs/cgroup/kubepods.slice` on a node.
    #[must_use]
    pub fn pod_root(&self) -> &PodRoot {
        &self.shared.tree
    }

    /// The node's network namespace.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.shared.node
    }

    /// The network namespace of the server outside.
    #[must_use]
    pub fn outside(&self) -> &Netns {
        &self.shared.outside
    }

    /// The node's name.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.shared.node_name
    }

    /// The probe binary.
    #[must_use]
    pub fn probe(&self) -> &Path {
        &self.shared.probe
    }

    /// Makes a pod. Its addresses are those of the index it asks for, or the next that no pod had before.
    pub fn add_pod(&self, spec: PodSpec) -> Result<Pod> {
        let number = self.shared.next_number.fetch_add(1, Ordering::SeqCst);
        let addresses = if spec.host_network {
            (NODE_V4, NODE_V6)
        } else {
            let index = match spec.index {
                Some(index) => index,
                None => self.free_index(number)?,
            };
            ensure!((FIRST_INDEX..=LAST_INDEX).contains(&index), "pod index {index} is out of range");
            let standing = self.pods();
            if let Some(other) = standing.iter().find(|other| other.v4() == pod_v4(index)) {
                anyhow::bail!("pod {} has address {} already", other.name(), other.v4());
            }
            (pod_v4(index), pod_v6(index))
        };
        let pod = Pod::create(&self.shared, spec, addresses, number)?;
        lock(&self.shared.pods).push(Arc::downgrade(pod.inner()));
        Ok(pod)
    }

    /// The number as an index, or a later one if a pod asked for that before.
    fn free_index(&self, number: u32) -> Result<u16> {
        let taken: BTreeSet<_> = self.pods().iter().map(Pod::v4).collect();
        (number..)
            .map_while(|candidate| u16::try_from(candidate).ok())
            .find(|candidate| !taken.contains(&pod_v4(*candidate)))
            .context("no pod addresses are left")
    }

    /// The pods that stand.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        let mut pods = lock(&self.shared.pods);
        pods.retain(|pod| pod.strong_count() > 0);
        let standing: Vec<Pod> = pods.iter().filter_map(Weak::upgrade).map(Pod::from_inner).collect();
        drop(pods);
        standing.into_iter().filter(|pod| !pod.is_removed()).collect()
    }

    /// Replaces all services: what their addresses lead to on the node, in one transaction.
    pub fn set_services(&self, services: &[Service]) -> Result<()> {
        nft::set_services(&self.shared.node, services)?;
        *lock(&self.shared.services) = services.to_vec();
        Ok(())
    }

    /// The services set last.
    #[must_use]
    pub fn services(&self) -> Vec<Service> {
        lock(&self.shared.services).clone()
    }

    /// Installs Istio's redirect of outgoing TCP to port 15001 in the pod's network namespace.
    pub fn istio_redirect(&self, pod: &Pod) -> Result<()> {
        nft::istio_redirect(pod)
    }

    /// Gives the outside one address more; the node sends it there by its default route.
    pub fn add_outside_address(&self, address: IpAddr) -> Result<()> {
        self.shared.outside.add_address("lo", address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// Starts a program in the node's network, outside of the pod root, with all capabilities.
    pub fn node_exec(&self, exec: &Exec) -> Result<Process> {
        let shared = &self.shared;
        exec.spawn(&shared.probe, &shared.node, &shared.node_cgroup, Capabilities::ALL)
    }

    /// Starts a program in the network outside, with all capabilities.
    pub fn outside_exec(&self, exec: &Exec) -> Result<Process> {
        let shared = &self.shared;
        exec.spawn(&shared.probe, &shared.outside, &shared.outside_cgroup, Capabilities::ALL)
    }

    /// Starts a server of the probe outside and waits until it takes traffic.
    pub fn outside_serve(&self, exec: &Exec) -> Result<Process> {
        let mut process = self.outside_exec(exec)?;
        process.wait_ready(Duration::from_secs(5))?;
        Ok(process)
    }

    /// Runs one attempt of the probe outside, for at most ten seconds.
    pub fn outside_attempt(&self, words: &[&str]) -> Result<Attempt> {
        self.outside_exec(&Exec::probe(words))?.output_json(Duration::from_secs(10))
    }
}

/// The two namespaces, joined, with the bridge for pods.
fn make_network() -> Result<(Netns, Netns)> {
    let (node, outside) = (Netns::new("node")?, Netns::new("outside")?);
    node.ip(&[
        // Its own hardware address: else it would change with the ports, and pods remember it.
        "link add cni0 address 02:00:0a:f4:01:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            .to_owned(),
        "link set cni0 up".to_owned(),
        format!("addr add {BRIDGE_V4}/32 dev cni0"),
        format!("addr add {BRIDGE_V6}/128 dev cni0 nodad"),
        format!("link add uplink type veth peer name eth0 netns {}", outside.path().display()),
        format!("addr add {NODE_V4}/24 dev uplink"),
        format!("addr add {NODE_V6}/64 dev uplink nodad"),
        "link set uplink up".to_owned(),
        format!("route add default via {OUTSIDE_V4} dev uplink"),
        format!("route add default via {OUTSIDE_V6} dev uplink"),
        // Pods that are not there are not outside either.
        format!("route add unreachable {POD_CIDR_V4}"),
        format!("route add unreachable {POD_CIDR_V6}"),
    ])?;
    // What comes from outside for nobody here is not sent back there, where a capture would take it for a pod's.
    node.nft(
        "table inet egress_topology_edge {\n\
         chain forward {\n\
         type filter hook forward priority 0; policy accept;\n\
         iifname \"uplink\" oifname \"uplink\" drop\n\
         }\n}\n",
    )?;
    node.set_sysctl("net/ipv4/ip_forward", "1")?;
    node.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    outside.ip(&[
        format!("addr add {OUTSIDE_V4}/24 dev eth0"),
        format!("addr add {OUTSIDE_V6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via {NODE_V4} dev eth0"),
        format!("route add default via {NODE_V6} dev eth0"),
    ])?;
    Ok((node, outside))
}
