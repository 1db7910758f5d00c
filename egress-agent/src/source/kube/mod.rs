//! Objects from the API server of a cluster: a list and a watch for each kind.
//!
//! Invariant: only a complete list tells that something is gone, and only a deletion that the server names; whatever else
//! happens (no answer, half an answer, an old version, garbage) keeps what was read last, is shown, and is tried again. Deletions
//! and errors act on an object's metadata alone, also where the rest of it does not parse. Tested by `tests/kube.rs`.

mod connect;
mod follow;
mod inbox;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use egress_policy::object::Kind;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub(crate) use connect::Connector;
use inbox::Inbox;

use super::Changes;

/// The watches of a cluster; they end when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    inbox: Arc<Inbox>,
    _watches: JoinSet<()>,
}

impl Cluster {
    /// Starts to list and watch every kind.
    pub(crate) fn watch(connector: Connector) -> Self {
        Self::watch_with(connector, follow::Timing::default())
    }

    fn watch_with(connector: Connector, timing: follow::Timing) -> Self {
        let (inbox, connector) = (Arc::new(Inbox::default()), Arc::new(connector));
        let mut watches = JoinSet::new();
        for kind in Kind::ALL {
            watches.spawn(follow::follow(kind, timing, Arc::clone(&connector), Arc::clone(&inbox)));
        }
        Self { inbox, _watches: watches }
    }

    /// Notified whenever something arrived, or the state of a watch changed.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        self.inbox.changed()
    }

    /// What arrived since the last look.
    pub(crate) fn look(&self) -> Changes {
        self.inbox.take()
    }

    /// Waits until every kind was listed once, for commands that judge from objects alone.
    ///
    /// # Errors
    /// Something is missing after `patience`: what, and why.
    pub(crate) async fn complete(&self, patience: Duration) -> anyhow::Result<()> {
        let changed = self.changed();
        let complete = async {
            while !self.inbox.complete() {
                changed.notified().await;
            }
        };
        match tokio::time::timeout(patience, complete).await {
            Ok(()) => Ok(()),
            Err(_) => Err(anyhow::anyhow!("cannot read the cluster: {}", self.inbox.missing().join("; "))),
        }
    }
}

#[cfg(test)]
mod tests;
