//! Every metric there is: what registers them, what `docs/metrics.md` is made of, and what dashboards and alerts are held against.
//!
//! Invariant: a label is a closed set of names, or said to be open and bounded; names never come from `Debug`. Tested by
//! `tests/metrics.rs`.

use egress_common::{Action, Hook, Reason};
use egress_policy::object::Kind;

use super::Coverage;
use crate::datapath::FILLED;

/// What all names begin with.
pub const PREFIX: &str = "egress_enforcer";

/// States of local pods: as in `status`, and as labels.
pub(super) const STATES: [(&str, &str); 4] = [
    ("Unselected", "Unselected"),
    ("Isolated", "Isolated"),
    ("Isolated (audit)", "Audited"),
    ("Invalid", "Invalid"),
];
/// States of a watch, as `WatchStatus` has them.
pub(super) const WATCH_STATES: [&str; 4] = ["Listing", "Watching", "Failing", "NotInstalled"];
/// What agents write to the API server, as `ServiceStatus` has it.
pub(super) const SERVICES: [&str; 4] = ["leader election", "policy status", "pod events", "taint"];
/// States of these.
pub(super) const SERVICE_STATES: [&str; 6] =
    ["Waiting", "Leading", "Following", "Working", "Failing", "NotAllowed"];
/// Severities of diagnostics.
pub(super) const SEVERITIES: [&str; 2] = ["error", "warning"];

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Only grows, but for the agent's restarts where it says so.
    Counter,
    /// Is what it is now.
    Gauge,
    /// Counts durations by their length, in seconds.
    Histogram,
}

/// A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// What became of the packet.
    Action,
    /// Why.
    Reason,
    /// The hook that gave the verdict.
    Hook,
    /// The policies that select the sender.
    Policy,
    /// How a pod is judged.
    State,
    /// The hooks that judge a pod.
    Coverage,
    /// A BPF map.
    Map,
    /// A kind of Kubernetes object.
    Kind,
    /// How a watch is doing.
    Watch,
    /// What an agent writes to the API server.
    Service,
    /// How it is doing with that.
    ServiceState,
    /// A BPF program.
    Program,
    /// How bad a diagnostic is.
    Severity,
    /// Version of the agent.
    Version,
    /// Version of the maps.
    Abi,
}

impl Label {
    /// Every label.
    pub const ALL: [Self; 15] = [
        Self::Action,
        Self::Reason,
        Self::Hook,
        Self::Policy,
        Self::State,
        Self::Coverage,
        Self::Map,
        Self::Kind,
        Self::Watch,
        Self::Service,
        Self::ServiceState,
        Self::Program,
        Self::Severity,
        Self::Version,
        Self::Abi,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Action => "action",
            Self::Reason => "reason",
            Self::Hook => "hook",
            Self::Policy => "policy",
            Self::State | Self::Watch | Self::ServiceState => "state",
            Self::Service => "service",
            Self::Coverage => "coverage",
            Self::Map => "map",
            Self::Kind => "kind",
            Self::Program => "program",
            Self::Severity => "severity",
            Self::Version => "version",
            Self::Abi => "abi",
        }
    }

    /// Every value that it can have; nothing where that is open.
    #[must_use]
    pub fn values(self) -> Option<Vec<&'static str>> {
        match self {
            Self::Action => Some(Action::ALL.map(Action::name).to_vec()),
            Self::Reason => Some(Reason::ALL.iter().map(|reason| reason.name()).collect()),
            Self::Hook => Some(Hook::ALL.map(Hook::name).to_vec()),
            Self::State => Some(STATES.map(|(_, label)| label).to_vec()),
            Self::Coverage => Some(Coverage::ALL.map(Coverage::name).to_vec()),
            Self::Map => Some(FILLED.to_vec()),
            Self::Kind => Some(Kind::ALL.map(Kind::name).to_vec()),
            Self::Watch => Some(WATCH_STATES.to_vec()),
            Self::Service => Some(SERVICES.to_vec()),
            Self::ServiceState => Some(SERVICE_STATES.to_vec()),
            Self::Severity => Some(SEVERITIES.to_vec()),
            Self::Policy | Self::Program | Self::Version | Self::Abi => None,
        }
    }

    /// What it says; of an open one, what bounds it.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Action => "What became of the packet.",
            Self::Reason => "Why, as in the flow log.",
            Self::Hook => "The hook that gave the verdict.",
            Self::Policy => {
                "The policies that select the sender, as in `EgressGatewayPolicy mesh, NetworkPolicy shop/web`; `none` where none does or the pod is not known; `other` beyond 256 such sets on the node."
            }
            Self::State => "How a pod is judged; of `Audited` pods what would be denied is only reported.",
            Self::Coverage => {
                "The hooks that judge a pod: `both`; the socket hook, but not each of its devices (`partial`); the socket hook alone, as told (`socket`), for want of a veth (`no-veth`) or because it has the node's network (`host-network`); not known yet (`pending`)."
            }
            Self::Map => "A BPF map.",
            Self::Kind => "A kind of Kubernetes object.",
            Self::Watch => "How a watch is doing.",
            Self::Service => "What an agent writes to the API server; enforcement rests on none of it.",
            Self::ServiceState => {
                "How it is doing with that; one agent of a cluster leads, and writes the status of policies."
            }
            Self::Program => "A BPF program of the pod root, by its name in the kernel.",
            Self::Severity => {
                "An `error` denies what cannot be understood; a `warning` has less effect than its author may think."
            }
            Self::Version => "Version of the agent.",
            Self::Abi => "Version of the maps.",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, without prefix and suffix.
    pub name: &'static str,
    /// How it behaves.
    pub behaviour: Behaviour,
    /// Its labels, in order.
    pub labels: &'static [Label],
    /// What it tells.
    pub help: &'static str,
}

impl Metric {
    /// The names that queries know it by.
    #[must_use]
    pub fn series(&self) -> Vec<String> {
        let name = format!("{PREFIX}_{}", self.name);
        match self.behaviour {
            Behaviour::Counter => vec![format!("{name}_total")],
            Behaviour::Gauge => vec![name],
            Behaviour::Histogram => ["bucket", "sum", "count"].map(|end| format!("{name}_{end}")).to_vec(),
        }
    }
}

macro_rules! metrics {
    ($($constant:ident = $behaviour:ident $name:literal [$($label:ident)*] $help:literal;)+) => {
        $(pub(super) const $constant: Metric = Metric {
            name: $name,
            behaviour: Behaviour::$behaviour,
            labels: &[$(Label::$label),*],
            help: $help,
        };)+

        /// Every metric, in the order in which they are told.
        pub const METRICS: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    BUILD = Gauge "build_info" [Version Abi] "Always 1";
    READY = Gauge "ready" [] "1 where everything desired is enforced, as /readyz says";
    PENDING = Gauge "pending" [] "Things that keep the agent from being ready; /readyz names them";
    TURN_AGE = Gauge "turn_age_seconds" [] "Time since the agent's loop turned last, which /healthz judges";
    HOOKS = Gauge "hook_attached" [Program] "1 for each program that is attached to the pod root";
    LACKS = Gauge "lacks" [] "Things that the kernel refuses and that are done without; status names them";
    ERRORS = Gauge "errors" [] "Errors that stand; status names them";

    VERDICTS = Counter "verdicts" [Action Reason Hook] "Packets by verdict, since the maps were made; counted in the kernel, also while no agent runs";
    BYTES = Counter "verdict_bytes" [Action Reason Hook] "Bytes of these packets, from the IP header on";
    BYPASSES = Counter "bypass_attempts" [Action Hook] "Packets of containers that are not the proxy and sent what only the proxy may send (reason SidecarBypass)";
    BY_POLICY = Counter "policy_denials" [Policy Action Reason Hook] "Packets denied or audited, by the policies that select their sender, since the agent was started";
    SUPPRESSED = Counter "suppressed_events" [Reason Hook] "Denied or audited packets that no event told of, since the agent was started: there were too many of one pod, or the same flow was told of within the second";
    LOST = Counter "lost_events" [] "Events that found no room in the ring buffer";
    SEVERED = Counter "severed_connections" [] "Open connections that were ended because policies deny them, since the agent was started with --sever";
    FLOWS_LOST = Counter "flow_log_lost" [] "Lines that the file of --flow-log did not get, because it could not be written or was too slow";

    ENDPOINTS = Gauge "endpoints" [State] "Local pods by how they are judged";
    COVERED = Gauge "endpoints_covered" [Coverage] "Local pods by the hooks that judge them";
    UNKNOWN = Gauge "unknown_pods" [] "Pod cgroups on this node whose Pod object is not known";

    MAP_ENTRIES = Gauge "map_entries" [Map] "Entries of a map";
    MAP_CAPACITY = Gauge "map_capacity" [Map] "Most entries that a map can hold";
    REVISION = Gauge "revision" [] "Completed applies since the maps were made";
    REVISION_AGE = Gauge "revision_age_seconds" [] "Time since the last apply, or since the start of an agent that has applied nothing";
    BEHIND = Gauge "behind_seconds" [] "Time since when the maps have not held what the objects say; 0 where they do";
    APPLY = Histogram "apply_duration_seconds" [] "Time that an apply took: writing a plan to the maps";
    ENFORCED = Histogram "event_to_enforced_seconds" [] "Time from an event's arrival in the agent to the end of the apply that it led to; of events that were applied together, the first one's";

    OBJECTS = Gauge "objects" [] "Objects known";
    SOURCE_ERRORS = Gauge "source_errors" [] "Things in the source that cannot be read";
    DIAGNOSTICS = Gauge "diagnostics" [Severity] "What the policy engine rejected or left out; status names them";
    INVALID = Gauge "invalid_policies" [] "Policies that cannot be understood; what they select is closed";
    WATCH_STATE = Gauge "watch_state" [Kind Watch] "1 for the state that the watch of a kind is in, 0 for the others";
    WATCH_SYNCED = Gauge "watch_synced" [Kind] "1 where every object of the kind was read at least once";
    WATCH_OBJECTS = Gauge "watch_objects" [Kind] "Objects of the kind";
    WATCH_EVENTS = Counter "watch_events" [Kind] "Events taken in since the start, those of lists included";
    WATCH_RELISTS = Counter "watch_relists" [Kind] "Times that all objects of the kind had to be listed anew";
    NODES = Gauge "nodes" [] "Nodes of the cluster that are to have an agent, as every agent sees them";

    SERVICE_STATE = Gauge "service_state" [Service ServiceState] "1 for the state that a service towards the API server is in, 0 for the others";
    SERVICE_WRITES = Counter "service_writes" [Service] "What it wrote: renewals of the lease, statuses, Events";
    SERVICE_LEFT_OUT = Counter "service_left_out" [Service] "What it left out: of pod events, flows that no Event tells of";

    REFUSED = Counter "http_refused" [] "Connections to this port that were closed unanswered, because their address had too many or all places were taken";
    MEMORY = Gauge "memory_bytes" [] "Resident memory of the agent";
    CPU = Counter "cpu_seconds" [] "Processor time that the agent has used";
}
