//! Asking a running agent: one JSON line of request, JSON lines of answer, over a unix socket that root alone may open.
//!
//! Invariant: nothing that is asked here changes what is enforced. Tested by `tests/lifecycle.rs`, `tests/cli.rs` and
//! `tests/operate.rs`.

pub mod client;
pub mod server;

use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cli::{Asked, ExplainArgs, Output, SimulateArgs};
use crate::flow::Flow;
use crate::offline::{SimulatedFlow, flows};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Answered by one [`Health`](crate::health::Health).
    Health,
    /// Answered by one [`Status`](crate::status::Status).
    Status,
    /// Answered by one line per [`EndpointStatus`](crate::status::EndpointStatus).
    Endpoints,
    /// Answered by one line per [`FlowLine`]: the flows remembered, then new ones where `follow` says so.
    Flows {
        /// Whether to go on.
        follow: bool,
    },
    /// Answered by one line: what there is to tell, or in one sentence why not.
    Ask(Question),
}

/// A line of the answer to [`Request::Flows`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowLine {
    /// Flows that this reader was too slow for.
    Missed {
        /// Their number.
        missed: u64,
    },
    /// A flow.
    Flow(Box<Flow>),
}

/// A question that is answered by objects, as the agent knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Question {
    /// `explain`.
    Explain {
        /// As on the command line.
        from: String,
        /// As on the command line.
        to: String,
        /// How to print.
        output: Output,
    },
    /// `simulate`.
    Simulate {
        /// The flows.
        flows: Vec<SimulatedFlow>,
        /// Name and text of a file of objects that are not applied yet.
        with: Option<(PathBuf, String)>,
        /// How to print.
        output: Output,
    },
    /// `plan`: from what the kernel's maps hold.
    Plan {
        /// How to print.
        output: Output,
    },
    /// `lint`.
    Lint {
        /// Which findings.
        asked: Asked,
        /// How to print.
        output: Output,
    },
}

impl Question {
    /// What `explain` asks.
    #[must_use]
    pub fn explain(args: &ExplainArgs) -> Self {
        Self::Explain { from: args.from.to_string(), to: args.to.to_string(), output: args.read.output }
    }

    /// What `simulate` asks.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn simulate(args: &SimulateArgs) -> anyhow::Result<Self> {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path);
            Ok::<_, anyhow::Error>((
                path.clone(),
                text.with_context(|| format!("cannot read {}", path.display()))?,
            ))
        };
        let with = args.with.as_ref().map(read).transpose()?;
        Ok(Self::Simulate { flows: flows(&args.flows)?, with, output: args.read.output })
    }
}

/// No agent answers.
#[derive(Debug, thiserror::Error)]
#[error("no agent answers at {}: {reason}; is `egress-agent run` running? (--socket names another place)", socket.display())]
pub struct Unreachable {
    /// The socket.
    pub socket: PathBuf,
    /// Why not.
    pub reason: String,
}
