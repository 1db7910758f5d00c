//! What Prometheus is told: read from the published snapshot when it asks.
//!
//! Invariant: no metric is told that [`METRICS`] does not have, and none has a pod's name; `docs/metrics.md`, the dashboard and the alert
//! rules speak of no others. Tested by `tests/metrics.rs` and `tests/operate.rs`.

mod collect;
mod document;
mod list;
mod meters;
mod process;
mod tally;

use std::collections::BTreeMap;

use egress_policy::compile::Severity;

pub use collect::{Metrics, OPENMETRICS, PLAIN};
pub use document::document;
pub use list::{Behaviour, Label, METRICS, Metric, PREFIX};
pub use meters::Meters;
pub use tally::PolicyTotal;
pub(crate) use tally::Tally;

/// The hooks that judge a pod, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    /// The socket hook and the one on its veth.
    Both,
    /// The socket hook, but a device of the pod is not covered.
    Partial,
    /// The socket hook alone, as the agent was told.
    Socket,
    /// The socket hook alone: the pod has no veth that could be covered.
    NoVeth,
    /// The socket hook alone: the pod has the node's network.
    HostNetwork,
    /// The socket hook; more is not known yet.
    Pending,
}

impl Coverage {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Both, Self::Partial, Self::Socket, Self::NoVeth, Self::HostNetwork, Self::Pending];

    /// The word used in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Partial => "partial",
            Self::Socket => "socket",
            Self::NoVeth => "no-veth",
            Self::HostNetwork => "host-network",
            Self::Pending => "pending",
        }
    }
}

/// What only metrics tell of a node, published along with its status.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Denials by policy, since the agent was started.
    pub by_policy: Vec<PolicyTotal>,
    /// Local pods by coverage.
    pub coverage: BTreeMap<Coverage, usize>,
    /// Diagnostics by severity.
    pub diagnostics: BTreeMap<Severity, usize>,
    /// Policies that cannot be understood.
    pub invalid_policies: usize,
    /// Nodes of the cluster that are to have an agent.
    pub nodes: usize,
}
