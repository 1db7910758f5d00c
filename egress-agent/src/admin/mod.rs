//! Asking a running agent: one JSON line of request, JSON lines of answer, over a unix socket that root alone may open.
//!
//! Invariant: nothing that is asked here changes what is enforced. Tested by `tests/lifecycle.rs` and `tests/cli.rs`.

pub mod client;
pub mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Answered by one [`Status`](crate::status::Status).
    Status,
    /// Answered by one line per [`EndpointStatus`](crate::status::EndpointStatus).
    Endpoints,
    /// Answered by one line per [`Flow`](crate::flow::Flow): those remembered, then new ones where `follow` says so.
    Flows {
        /// Whether to go on.
        follow: bool,
    },
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
