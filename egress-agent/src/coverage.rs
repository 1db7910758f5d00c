//! Which hooks judge each pod, and bringing the veth hook to those that have a veth.
//!
//! Invariant: a pod counts as covered by a hook only after the kernel has taken it; what else can leave the pod is named.
//! Tested by `tests/threats/` of row 15.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use egress_common::wire::FLAG_HOST_NETWORK;

use crate::clock::monotonic;
use crate::datapath::{Cover, Datapath};
use crate::metrics::Coverage as Covered;
use crate::network::{self, Network, OnNode};
use crate::pods::{PodCgroup, Scan};

/// How long a pod without a process is looked at often; its sandbox is usually started at once.
const EAGER: Duration = Duration::from_secs(30);

/// How long a new pod that is seen in the node's network is looked at often: a runtime's first process is there before it enters
/// the pod's own.
const ENTERING: Duration = Duration::from_secs(3);

/// What is known of the pods' networks.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    pods: BTreeMap<u64, Pod>,
    /// Only the socket hook is wanted.
    sockets_only: bool,
    /// Pods that stood before anybody watched what comes in to them. Others have nothing to be classified: what looks like a
    /// connection that came in to a pod whose life was watched, and was not seen to, is one that the pod made up.
    standing: BTreeSet<u64>,
}

#[derive(Debug)]
struct Pod {
    seen: Instant,
    network: Option<Network>,
    /// The connections that it has accepted are watched, at its sockets.
    arrivals: bool,
    /// Its devices were given to the kernel.
    covered: bool,
    /// It was seen with a device whose frames nobody judges, or not as its own; where that has gone is not known for sure.
    bare: bool,
    /// This agent has tried to cover it.
    tried: bool,
    error: Option<String>,
}

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Pods whose network is not known yet.
    New,
    /// And the node's devices.
    Devices,
    /// And what is in each pod.
    Whole,
}

impl Coverage {
    /// Leaves the veths alone from now on.
    pub(crate) fn leave_veths_alone(&mut self) {
        self.sockets_only = true;
    }

    /// Remembers the connections that have come in to pods that no agent has covered so far, before any hook can deny what is
    /// sent on them.
    pub(crate) fn classify(&mut self, scan: &Scan, datapath: &mut Datapath) {
        let Ok(node) = network::on_node() else { return };
        for pod in &scan.pods {
            if let Ok(Some(network)) = look(pod, &node, datapath)
                && !network.veths.iter().any(|veth| datapath.knows(veth.index, pod.cgroup))
                && !datapath.watches(pod.cgroup)
            {
                self.standing.insert(pod.cgroup);
                remember(pod, &network, datapath);
            }
        }
    }

    /// Covers pods and devices that are not covered yet; tells whether it had anything to do.
    pub(crate) fn update(&mut self, scan: &Scan, datapath: &mut Datapath, look: Look) -> bool {
        let here: BTreeSet<u64> = scan.pods.iter().map(|pod| pod.cgroup).collect();
        let before = self.pods.len();
        self.pods.retain(|cgroup, _| here.contains(cgroup));
        self.standing.retain(|cgroup| here.contains(cgroup));
        if look == Look::Whole || self.pods.len() < before {
            datapath.forget_gone(&here);
        }
        let missing =
            |pod: &PodCgroup| self.pods.get(&pod.cgroup).is_none_or(|known| known.lacks(pod, datapath));
        if look == Look::New && !scan.pods.iter().any(missing) {
            return false;
        }
        let node = match network::on_node() {
            Ok(node) => node,
            Err(error) => {
                tracing::error!(%error, "cannot see the node's devices");
                return false;
            }
        };
        let mut found = false;
        for pod in &scan.pods {
            let known = self.pods.entry(pod.cgroup).or_insert_with(|| Pod {
                seen: Instant::now(),
                network: None,
                arrivals: false,
                covered: false,
                bare: false,
                tried: false,
                error: None,
            });
            if let (Look::Devices, Some(network)) = (look, &mut known.network)
                && !network.refresh(&node).unwrap_or(false)
            {
                known.network = None;
            }
            if known.is_taken_for_the_nodes(pod, datapath) {
                known.network = None;
            }
            if look == Look::Whole || known.network.is_none() || known.may_be_elsewhere(pod, datapath) {
                let unknown = known.network.is_none();
                known.look(pod, &node, datapath);
                found |= unknown && known.network.is_some();
            }
        }
        // A pod that has processes in several networks is a guest in all but one of them: whoever is at home in one comes first.
        let mut pods: Vec<&PodCgroup> = scan.pods.iter().collect();
        pods.sort_by_key(|pod| self.network(pod.cgroup).map(|network| network.led_to));
        for pod in pods {
            let Some(known) = self.pods.get_mut(&pod.cgroup) else { continue };
            if !self.sockets_only && (look != Look::New || !known.covered) {
                known.cover(pod, datapath, (&here, &self.standing));
            }
            if known.network.as_ref().is_some_and(|network| network.host) {
                known.watch_arrivals(pod, datapath);
            }
        }
        found || look == Look::Devices
    }

    /// Whether a pod is to be looked at again soon.
    pub(crate) fn waits(&self) -> bool {
        self.pods.values().any(|pod| pod.enters() || (pod.network.is_none() && pod.seen.elapsed() < EAGER))
    }

    /// What went wrong, a sentence each.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &str> {
        self.pods.values().filter_map(|pod| pod.error.as_deref())
    }

    /// The hooks that judge a pod, in one word, and what they do not see.
    pub(crate) fn of(&self, cgroup: u64, datapath: &Datapath) -> (Covered, String) {
        let Some(pod) = self.pods.get(&cgroup) else {
            return (Covered::Pending, "socket (not looked at yet)".to_owned());
        };
        let Some(network) = &pod.network else {
            return (Covered::Pending, "socket (no process yet)".to_owned());
        };
        if network.host {
            return (Covered::HostNetwork, "socket (the node's network)".to_owned());
        }
        if self.sockets_only {
            return (Covered::Socket, "socket (as told)".to_owned());
        }
        let bare: Vec<_> = network
            .veths
            .iter()
            .filter(|veth| !datapath.covers(veth.index, cgroup))
            .map(|veth| veth.name.clone())
            .chain(network.others.iter().cloned())
            .collect();
        let covered = network.veths.iter().any(|veth| datapath.covers(veth.index, cgroup));
        match (covered, bare.is_empty()) {
            (true, true) => (Covered::Both, "socket+veth".to_owned()),
            (true, false) => (Covered::Partial, format!("socket+veth, not {}", bare.join(", "))),
            (false, false) => (Covered::Partial, format!("socket, not {}", bare.join(", "))),
            (false, true) => (Covered::NoVeth, "socket (no veth)".to_owned()),
        }
    }

    /// The network that a pod was seen in last.
    pub(crate) fn network(&self, cgroup: u64) -> Option<&Network> {
        self.pods.get(&cgroup)?.network.as_ref()
    }

    /// The names of the node's ends of a pod's veths.
    pub(crate) fn veths(&self, cgroup: u64) -> Vec<String> {
        let network = self.pods.get(&cgroup).and_then(|pod| pod.network.as_ref());
        network
            .map(|network| network.veths.iter().map(|veth| veth.name.clone()).collect())
            .unwrap_or_default()
    }
}

impl Pod {
    fn look(&mut self, pod: &PodCgroup, node: &OnNode, datapath: &Datapath) {
        match look(pod, node, datapath) {
            // A pod that has lost its last process keeps the network that it had.
            Ok(None) => {}
            Ok(network) => self.network = network,
            Err(error) => self.fail(format!("cannot see the network of pod {}: {error}", pod.uid)),
        }
    }

    /// Of all pods these are `here`, and these were `standing`: they may have accepted connections before they were watched.
    fn cover(
        &mut self,
        pod: &PodCgroup,
        datapath: &mut Datapath,
        (here, standing): (&BTreeSet<u64>, &BTreeSet<u64>),
    ) {
        let Some(network) = &self.network else { return };
        let mut failed = None;
        let first = !self.tried;
        self.tried |= !network.veths.is_empty();
        for veth in &network.veths {
            match datapath.cover((veth.index, &veth.name), pod.cgroup, here) {
                Ok(Cover::Fresh) if standing.contains(&pod.cgroup) => remember(pod, network, datapath),
                Ok(Cover::Anothers) => self.bare = true,
                // An earlier agent knew of a device that this one may not see any more.
                Ok(Cover::Again) if first && !datapath.trusts(pod.cgroup) => self.bare = true,
                Ok(Cover::Fresh | Cover::Again | Cover::Stands) => {}
                Err(error) => {
                    failed = Some(format!("cannot cover {} of pod {}: {error:#}", veth.name, pod.uid));
                }
            }
        }
        self.bare |= !network.others.is_empty();
        let judged = failed.is_none() && !self.bare && !network.veths.is_empty();
        if let Err(error) = datapath.trust_frames(pod.cgroup, judged) {
            failed = Some(format!("pod {} may not make packet sockets: {error:#}", pod.uid));
        }
        self.covered = failed.is_none();
        match failed {
            Some(error) => self.fail(error),
            None => self.error = None,
        }
    }

    /// Keeps an error, and tells the log once.
    fn fail(&mut self, error: String) {
        if self.error.as_ref() != Some(&error) {
            tracing::error!("{error}");
        }
        self.error = Some(error);
    }

    /// Whether it was seen in the node's network so soon that it may be on its way into one of its own.
    fn enters(&self) -> bool {
        self.network.as_ref().is_some_and(|network| network.host) && self.seen.elapsed() < ENTERING
    }

    /// Whether something is to be done about the pod even if nothing on the node has changed.
    fn lacks(&self, pod: &PodCgroup, datapath: &Datapath) -> bool {
        let host = self.network.as_ref().is_some_and(|network| network.host);
        self.network.is_none()
            || self.may_be_elsewhere(pod, datapath)
            || self.is_taken_for_the_nodes(pod, datapath)
            || (host && !self.arrivals && is_watched(pod, datapath))
    }

    /// Whether it was seen in the node's network, and may be on its way out of it, or not there at all: no object says so.
    fn may_be_elsewhere(&self, pod: &PodCgroup, datapath: &Datapath) -> bool {
        let host = self.network.as_ref().is_some_and(|network| network.host);
        self.enters() || (host && shares(pod, datapath).is_none())
    }

    /// Whether it was seen in the node's network before its object said that it is not there.
    fn is_taken_for_the_nodes(&self, pod: &PodCgroup, datapath: &Datapath) -> bool {
        self.network.as_ref().is_some_and(|network| network.host) && shares(pod, datapath) == Some(false)
    }

    /// A pod of the node's network has no veth: what comes in is watched at its sockets. Also where no policy selects it, so that it is
    /// known of its datagrams who began, when one does.
    fn watch_arrivals(&mut self, pod: &PodCgroup, datapath: &mut Datapath) {
        if self.arrivals || !is_watched(pod, datapath) {
            return;
        }
        match datapath.watch_arrivals(pod.cgroup, &pod.path) {
            Ok(()) => self.arrivals = true,
            Err(error) => self.fail(format!("cannot watch what comes in to pod {}: {error:#}", pod.uid)),
        }
    }
}

/// Whether what comes in to a pod that was seen in the node's network is watched at its sockets: its object says that it shares that
/// network. Another one's process is on its way, and what comes in where that goes would be believed whoever sends it.
fn is_watched(pod: &PodCgroup, datapath: &Datapath) -> bool {
    shares(pod, datapath) == Some(true)
}

/// Looks at the network of a pod.
pub(crate) fn look(pod: &PodCgroup, node: &OnNode, datapath: &Datapath) -> io::Result<Option<Network>> {
    network::look(&pod.path, node, shares(pod, datapath), |index| datapath.knows(index, pod.cgroup))
}

/// Whether the pod's object says that it shares the node's network, where there is one.
fn shares(pod: &PodCgroup, datapath: &Datapath) -> Option<bool> {
    let known = datapath.observed().endpoints.get(&pod.cgroup);
    known.map(|known| known.flags & FLAG_HOST_NETWORK != 0)
}

/// Remembers the connections that a pod has accepted.
fn remember(pod: &PodCgroup, network: &Network, datapath: &mut Datapath) {
    let connections = network::inbound(network.pid).unwrap_or_default();
    if let Err(error) = datapath.seen().stood(pod.cgroup, &connections, monotonic()) {
        tracing::warn!(pod = pod.uid, "{error:#}");
    }
}
