//! What the agent publishes about itself: plain data, the same for the admin socket, tables and JSON.
//!
//! Invariant: `ready` is true only when the hook is attached and the last plan was applied without errors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::ServiceStatus;
use crate::datapath::{CounterTotal, DenialTotal, Fill};
use crate::source::SourceError;

/// What a node enforces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether everything desired is enforced.
    pub ready: bool,
    /// What keeps it from being ready.
    pub pending: Vec<String>,
    /// Name of the node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Version of the maps.
    pub abi: u32,
    /// Completed applies.
    pub revision: u64,
    /// The attached hooks.
    pub hooks: Vec<HookStatus>,
    /// What the kernel refused, and what is not done without it.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Local pods by state.
    pub endpoints: BTreeMap<String, usize>,
    /// Pod cgroups on this node whose Pod object is not known.
    pub unknown_pods: usize,
    /// Entries of the policy maps.
    pub maps: Vec<Fill>,
    /// Packets by action and reason since the maps were made.
    pub verdicts: Vec<CounterTotal>,
    /// Events that found no room in the ring buffer.
    pub lost_events: u64,
    /// Lines that the flow log did not take, since the agent was started.
    #[serde(default)]
    pub lost_flows: u64,
    /// Connections that were ended since the agent was started, where it was told to end what policies deny.
    #[serde(default)]
    pub severed: Option<u64>,
    /// Who says which container of its pod a cgroup is.
    #[serde(default)]
    pub containers: NamesStatus,
    /// What is written to the API server, and how that goes.
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
    /// Where objects come from.
    pub source: SourceStatus,
    /// What the policy engine rejected or left out.
    pub diagnostics: Vec<String>,
    /// What the kernel refused, and other errors that stand.
    pub errors: Vec<String>,
}

/// An attached hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    /// Name of the program.
    pub program: String,
    /// The kernel's id of it.
    pub id: u32,
    /// What it is attached to.
    pub target: String,
}

/// Who names containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesStatus {
    /// Containers that their pod's status names.
    pub by_status: usize,
    /// Containers that only the runtime names, as their pod's status does not yet.
    pub by_runtime: usize,
    /// Containers that nobody names, which are no proxies; pods' sandboxes are among them where no runtime tells.
    pub unnamed: usize,
    /// The runtimes whose sockets are there.
    pub runtimes: Vec<RuntimeStatus>,
    /// Where none is there, where one was looked for.
    pub no_runtime: Option<String>,
}

/// A container runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// Its socket.
    pub socket: String,
    /// Its name and version, where it answers.
    pub runtime: Option<String>,
    /// Why it does not.
    pub error: Option<String>,
}

/// Where objects come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// As given on the command line.
    pub name: String,
    /// Objects known.
    pub objects: usize,
    /// What cannot be read. How the watches do is no part of it.
    pub errors: Vec<SourceError>,
    /// Objects of kinds that do not matter here.
    pub ignored: BTreeMap<String, usize>,
    /// The watches of the API server, one for each kind; none of other sources.
    #[serde(default)]
    pub watches: Vec<WatchStatus>,
}

/// The watch of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// The kind, as in `Pod`.
    pub kind: String,
    /// `Listing`, `Watching`, `Failing`, or `NotInstalled` where the cluster has no such kind.
    pub state: String,
    /// Whether every object of the kind was read at least once.
    pub synced: bool,
    /// Objects that are there.
    pub objects: usize,
    /// Events taken in since the start, those of lists included.
    pub events: u64,
    /// Times that everything had to be listed anew.
    pub relists: u64,
    /// For how many seconds it has been failing.
    #[serde(default)]
    pub failing_seconds: u64,
    /// What went wrong last, until it goes right again, or what it means that there is no such kind.
    pub error: Option<String>,
}

impl WatchStatus {
    /// What is wrong, where it fails: what was read last may be old. That a kind is not installed is nothing wrong.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.error.as_deref().filter(|_| self.state == "Failing")
    }
}

/// A local pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Id of its cgroup.
    pub cgroup: u64,
    /// `Unselected`, `Isolated`, `Isolated (audit)`, `Invalid`.
    pub state: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// The hooks that judge its packets.
    pub coverage: String,
    /// The node's ends of its veths.
    pub veths: Vec<String>,
    /// What it was denied, or what was only audited, since its cgroup was made.
    pub denials: Vec<DenialTotal>,
    /// The policies that select it.
    pub policies: Vec<String>,
    /// The number of its policy in the maps, in hexadecimal.
    pub policy: String,
    /// Whether only its proxies may send some of what its policies allow.
    pub lock: bool,
    /// The containers that are known to be proxies of the lock.
    pub proxies: Vec<String>,
    /// Its containers that have a cgroup now.
    #[serde(default)]
    pub containers: Vec<ContainerStatus>,
    /// The revision that the maps are at.
    #[serde(default)]
    pub revision: u64,
}

/// A container of a local pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its name, where it is known.
    pub name: Option<String>,
    /// Id of its cgroup.
    pub cgroup: u64,
    /// `proxy` of a lock, or `other`.
    pub role: String,
}
