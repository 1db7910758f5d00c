//! Looking where the node's netfilter sends what pods send to services, beside the one task.
//!
//! Invariant: at most one look is under way, and looks have some time between them. Tested by `tests/former.rs`.

use std::collections::BTreeSet;
use std::future::pending;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::network::{self, Translated};

/// The least time from one look to the next, and how many times as long as one takes it is: a node can have a million of connections.
const INTERVAL: Duration = Duration::from_secs(2);
const SHARE: u32 = 20;

/// What is under way.
#[derive(Debug, Default)]
pub(crate) struct Translations {
    wanted: bool,
    begun: Option<Instant>,
    took: Duration,
    work: Option<JoinHandle<Turn>>,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Turn {
    /// It is time to look.
    Look,
    /// What was found.
    Looked(Vec<Translated>),
    /// As many as this were forgotten.
    Forgot(usize),
    /// Something failed; a sentence.
    Failed(String),
}

impl Translations {
    /// Whether nothing is under way, or is to be.
    pub(crate) fn is_idle(&self) -> bool {
        self.work.is_none() && !self.wanted
    }

    /// Has them looked at soon.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// When the last look began.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.begun
    }

    /// Waits for the next turn; forever where there is nothing to do. May be given up and called again.
    pub(crate) async fn turn(&mut self) -> Turn {
        if let Some(work) = &mut self.work {
            let turn = work.await.unwrap_or_else(|error| Turn::Failed(error.to_string()));
            self.work = None;
            self.took = self.begun.map(|begun| begun.elapsed()).unwrap_or_default();
            return turn;
        }
        if !self.wanted {
            return pending().await;
        }
        if let Some(begun) = self.begun {
            tokio::time::sleep_until((begun + INTERVAL.max(self.took * SHARE)).into()).await;
        }
        self.wanted = false;
        self.begun = Some(Instant::now());
        Turn::Look
    }

    /// Looks for connections of these senders.
    pub(crate) fn look(&mut self, senders: BTreeSet<IpAddr>) {
        self.work = Some(tokio::task::spawn_blocking(move || match network::translated(&senders) {
            Ok(found) => Turn::Looked(found),
            Err(error) => Turn::Failed(format!("cannot see where connections to services go: {error}")),
        }));
    }

    /// Has connections forgotten.
    pub(crate) fn forget(&mut self, doomed: Vec<Translated>) {
        self.work = Some(tokio::task::spawn_blocking(move || match network::forget(&doomed) {
            Ok(number) => Turn::Forgot(number),
            Err(error) => Turn::Failed(format!("cannot end connections to what services led to: {error}")),
        }));
    }
}
