//! Objects from the API server of a cluster: a list and a watch for each kind.
//!
//! Invariant: only a complete list tells that something is gone, and only a deletion that the server names; whatever else
//! happens (no answer, half an answer, an old version, garbage) keeps what was read last, is shown, and is tried again. Deletions
//! and errors act on an object's metadata alone, also where the rest of it does not parse. Tested by `tests/kube.rs`.

mod connect;
mod follow;
mod inbox;
mod stop;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use egress_policy::object::Kind;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) use connect::Connector;
use inbox::Inbox;

use super::Changes;

/// How long somebody who asks once waits for an API server that refuses, or is not there.
const GIVE_UP: Duration = Duration::from_secs(5);
/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(200);

/// The watches of a cluster; they end when dropped.
#[derive(Debug)]
pub(crate) struct Watches {
    connector: Arc<Connector>,
    inbox: Arc<Inbox>,
    _tasks: JoinSet<()>,
}

impl Watches {
    /// Starts to list and watch every kind.
    pub(crate) fn start(connector: Connector) -> Self {
        Self::start_with(connector, follow::Timing::default())
    }

    fn start_with(connector: Connector, timing: follow::Timing) -> Self {
        let (inbox, connector) = (Arc::new(Inbox::default()), Arc::new(connector));
        let mut tasks = JoinSet::new();
        for kind in Kind::ALL {
            tasks.spawn(follow::follow(kind, timing, Arc::clone(&connector), Arc::clone(&inbox)));
        }
        Self { connector, inbox, _tasks: tasks }
    }

    /// Notified whenever something arrived, or the state of a watch changed.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        self.inbox.changed()
    }

    /// The client that the watches use, once there is one, and its number.
    pub(crate) fn client(&self) -> Option<(Client, u64)> {
        self.connector.made()
    }

    /// What arrived since the last look.
    pub(crate) fn look(&self) -> Changes {
        self.inbox.take()
    }

    /// Waits until every kind was listed once, for commands that judge from objects alone.
    ///
    /// # Errors
    /// There is no configuration; or something is missing after ten times `patience`, or nothing new of it came for `patience`, or for [`GIVE_UP`] where all of it
    /// fails: what, and why.
    pub(crate) async fn complete(&self, patience: Duration) -> anyhow::Result<()> {
        // An agent looks for it again; somebody who asks is told.
        self.connector.client().await?;
        let (changed, begun) = (self.changed(), Instant::now());
        while !self.inbox.complete() {
            let last = self.inbox.arrived().unwrap_or(begun);
            // A list that never ends may bring something new for ever.
            let late = last.elapsed() >= patience || begun.elapsed() >= patience * 10;
            if late || self.inbox.failing_for().is_some_and(|time| time >= GIVE_UP) {
                return Err(anyhow::anyhow!("cannot read the cluster: {}", self.inbox.missing().join("; ")));
            }
            let _or_look_again = tokio::time::timeout(LOOK, changed.notified()).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
