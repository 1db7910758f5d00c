//! The network of a pod as the node sees it: found from the pod's processes, whatever plugin made it.
//!
//! Invariant: a veth belongs to a pod because the kernel says that its other end is in the namespace of the pod's
//! processes, in whichever of their namespaces, never because of a name, an address or a number that the pod could choose. Tested
//! by `tests/threats/` of row 15.

mod connections;
mod conntrack;
mod diag;
mod monitor;
mod netlink;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use netlink_packet_route::link::InfoKind;

use crate::pods::is_monitor;

pub use connections::{Connection, inbound};
pub use conntrack::{Translated, forget, translated};
pub use diag::{Open, Sockets, can_end, end, sockets};
pub use monitor::Monitor;

/// How deep below a pod's cgroup processes are looked for: a container's, and what it or systemd made in there.
const DEPTH: usize = 4;

/// The network namespace of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// A process in it.
    pub pid: u32,
    /// Its inode.
    pub namespace: u64,
    /// It is the node's own.
    pub host: bool,
    /// The node's ends of its veths.
    pub veths: Vec<Veth>,
    /// To how many namespaces of its processes they lead: one, or some process is a guest in another pod's.
    pub led_to: usize,
    /// Other devices by which packets can leave it, as in `net1 (macvlan)`.
    pub others: Vec<String>,
}

/// The node's end of a veth.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Veth {
    /// Its index on the node.
    pub index: u32,
    /// Its name on the node.
    pub name: String,
}

/// The devices of the node at one moment.
#[derive(Debug)]
pub struct OnNode {
    namespace: u64,
    veths: Vec<(Veth, i32)>,
}

/// Looks at the devices of the node.
///
/// # Errors
/// The kernel does not tell.
pub fn on_node() -> io::Result<OnNode> {
    let namespace = fs::metadata("/proc/self/ns/net")?.ino();
    let links = netlink::links()?.into_iter().filter(|link| link.kind == Some(InfoKind::Veth));
    let veths = links.filter_map(|link| Some((Veth { index: link.index, name: link.name }, link.elsewhere?)));
    Ok(OnNode { namespace, veths: veths.collect() })
}

/// The addresses of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those on the links of its pods: of the node's ends of veths, and of the bridges that these are ports of. What the node
    /// itself sends to its pods comes from there, as kubelet's probes do.
    pub toward_pods: BTreeSet<IpAddr>,
    /// Those of all devices.
    pub all: BTreeSet<IpAddr>,
    /// Those at which somebody else could ask the node: but for the loopback's own, and for those of services that kube-proxy's IPVS mode
    /// has on a device of its own.
    pub further: BTreeSet<IpAddr>,
}

/// The device of kube-proxy's IPVS mode (`defaultDummyDevice`, `pkg/proxy/ipvs` of Kubernetes).
const IPVS: &str = "kube-ipvs0";

/// Looks at the addresses of the node.
///
/// # Errors
/// The kernel does not tell.
pub fn addresses() -> io::Result<Addresses> {
    let links = netlink::links()?;
    let veths = links.iter().filter(|link| link.kind == Some(InfoKind::Veth) && link.elsewhere.is_some());
    let toward: BTreeSet<u32> =
        veths.flat_map(|veth| veth.controller.into_iter().chain([veth.index])).collect();
    let ipvs = links.iter().find(|link| link.name == IPVS).map(|link| link.index);
    let mut found = Addresses::default();
    for (index, address) in netlink::addresses()? {
        found.all.insert(address);
        if toward.contains(&index) {
            found.toward_pods.insert(address);
        }
        if !address.is_loopback() && Some(index) != ipvs {
            found.further.insert(address);
        }
    }
    Ok(found)
}

/// The filters of tc in one list of a device of the node (`TC_H_CLSACT` with one of its minor numbers), by priority and handle.
///
/// # Errors
/// The kernel does not tell.
pub fn filters(index: u32, list: u32) -> io::Result<Vec<(u16, u32)>> {
    netlink::filters(index, list)
}

/// Whether a device of the node has a queue of kind `ingress` in the place where `clsact` goes.
///
/// # Errors
/// The kernel does not tell.
pub fn has_ingress_queue(index: u32) -> io::Result<bool> {
    netlink::has_ingress_queue(index)
}

impl OnNode {
    /// The ends, on the node, of the veths that lead to a namespace.
    fn leading_to(&self, namespace: &File) -> io::Result<Vec<Veth>> {
        let Some(id) = netlink::id_of(namespace)? else { return Ok(Vec::new()) };
        let mut veths: Vec<_> =
            self.veths.iter().filter(|(_, to)| *to == id).map(|(veth, _)| veth.clone()).collect();
        veths.sort();
        Ok(veths)
    }
}

impl Network {
    /// Whether the process that it was found by still is in it.
    #[must_use]
    pub fn stands(&self) -> bool {
        fs::metadata(format!("/proc/{}/ns/net", self.pid))
            .is_ok_and(|namespace| namespace.ino() == self.namespace)
    }

    /// Looks at its veths again; tells whether it still is the network that was found.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn refresh(&mut self, node: &OnNode) -> io::Result<bool> {
        let Ok(file) = File::open(format!("/proc/{}/ns/net", self.pid)) else { return Ok(false) };
        if file.metadata()?.ino() != self.namespace {
            return Ok(false);
        }
        if self.host {
            return Ok(true);
        }
        let veths = node.leading_to(&file)?;
        // Where one is missing it may have gone to another namespace of the pod.
        let same = self.veths.iter().all(|veth| veths.contains(veth));
        self.veths = veths;
        Ok(same)
    }
}

/// Looks at the network of the pod whose cgroup is at `cgroup`; none while no process is in it. `shares`: whether its object says that it
/// shares the node's network, where there is one. A process of the node's network says so only of a pod without an object, none of whose
/// processes is where a veth leads: a runtime may have its own among those of any pod (CRI-O's monitors, what it starts for `exec`).
/// `own`: whether a device of the node is known to be the pod's; where its processes are in several networks, that one is its.
///
/// # Errors
/// The kernel does not tell.
pub fn look(
    cgroup: &Path,
    node: &OnNode,
    shares: Option<bool>,
    own: impl Fn(u32) -> bool,
) -> io::Result<Option<Network>> {
    let mut places = BTreeMap::new();
    processes(cgroup, DEPTH, &mut places);
    let elsewhere = |(namespace, (_, file)): (&u64, &(u32, File))| {
        *namespace != node.namespace && node.leading_to(file).is_ok_and(|veths| !veths.is_empty())
    };
    if shares == Some(false) || (shares.is_none() && places.iter().any(elsewhere)) {
        places.remove(&node.namespace);
    }
    let Some((first, (pid, _))) = places.first_key_value() else {
        return Ok(None);
    };
    let mut network = Network {
        pid: *pid,
        namespace: *first,
        host: false,
        veths: Vec::new(),
        led_to: 0,
        others: Vec::new(),
    };
    if let Some((pid, _)) = places.get(&node.namespace) {
        (network.pid, network.namespace, network.host) = (*pid, node.namespace, true);
        return Ok(Some(network));
    }
    // A process may make a namespace of its own within the pod's, but what leads to the node leads to one of them.
    let mut found = false;
    for (namespace, (pid, file)) in &places {
        let veths = node.leading_to(file)?;
        let is_own = !found && veths.iter().any(|veth| own(veth.index));
        if is_own || (network.veths.is_empty() && !veths.is_empty()) {
            (network.pid, network.namespace) = (*pid, *namespace);
        }
        found |= is_own;
        network.led_to += usize::from(!veths.is_empty());
        network.veths.extend(veths);
        let others = netlink::links_in(file)?.into_iter().filter(leads_out);
        network.others.extend(others.map(|link| match link.kind {
            Some(kind) => format!("{} ({kind})", link.name),
            None => format!("{} (hardware)", link.name),
        }));
    }
    Ok(Some(network))
}

/// Whether packets can leave the pod by a device in it that is no veth: hardware, or something that stands on a device
/// elsewhere. What is made in the pod (bridges, tunnels, tun devices) sends by another device of it.
fn leads_out(link: &netlink::Link) -> bool {
    match link.kind {
        Some(InfoKind::Veth) => false,
        Some(_) => link.elsewhere.is_some(),
        None => !link.loopback,
    }
}

/// Whether all processes of a pod are in the node's network, of which there is one at least.
#[must_use]
pub fn is_nodes_own(cgroup: &Path) -> bool {
    let mut found = BTreeMap::new();
    processes(cgroup, DEPTH, &mut found);
    fs::metadata("/proc/self/ns/net").is_ok_and(|own| found.into_keys().eq([own.ino()]))
}

/// The network namespaces of the processes below a cgroup by their inodes, each with a process in it.
fn processes(cgroup: &Path, depth: usize, found: &mut BTreeMap<u64, (u32, File)>) {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0) {
        let Ok(file) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
        if let Ok(metadata) = file.metadata() {
            found.entry(metadata.ino()).or_insert((pid, file));
        }
    }
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        // Directly below the pod's cgroup, where nobody in the pod can make one.
        let monitor = depth + 1 == DEPTH && entry.file_name().to_str().is_some_and(is_monitor);
        if !monitor && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), depth, found);
        }
    }
}
