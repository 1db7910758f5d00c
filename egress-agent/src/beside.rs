//! Looks at the kernel that take their time, and what follows from them, beside the one task.
//!
//! Invariant: at most one piece of work is under way, and looks have some time between them, however often they are wanted.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

/// How many times as long as the last piece of work took it is to the next look, at least: a node can have a million connections.
const SHARE: u32 = 20;

/// What is under way, and is wanted.
#[derive(Debug)]
pub(crate) struct Beside<T> {
    interval: Duration,
    wanted: bool,
    begun: Option<Instant>,
    took: Duration,
    work: Option<JoinHandle<Result<T, String>>>,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Turn<T> {
    /// It is time to look.
    Look,
    /// A piece of work is done.
    Done(T),
    /// It failed; a sentence.
    Failed(String),
}

impl<T: Send + 'static> Beside<T> {
    /// Nothing yet; with the least time from one look to the next.
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, wanted: false, begun: None, took: Duration::ZERO, work: None }
    }

    /// Whether nothing is under way, or is to be.
    pub(crate) fn is_idle(&self) -> bool {
        self.work.is_none() && !self.wanted
    }

    /// Wants a look soon.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// When the last look began.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.begun
    }

    /// Begins a piece of work, where it may wait for the kernel.
    pub(crate) fn begin(&mut self, work: impl FnOnce() -> Result<T, String> + Send + 'static) {
        self.work = Some(tokio::task::spawn_blocking(work));
    }

    /// Waits for the next turn; forever where there is nothing to do. May be given up and called again.
    pub(crate) async fn turn(&mut self) -> Turn<T> {
        if let Some(work) = &mut self.work {
            let done = work.await;
            self.work = None;
            self.took = self.begun.map(|begun| begun.elapsed()).unwrap_or_default();
            return match done {
                Ok(Ok(done)) => Turn::Done(done),
                Ok(Err(error)) => Turn::Failed(error),
                Err(error) => Turn::Failed(error.to_string()),
            };
        }
        if !self.wanted {
            return pending().await;
        }
        if let Some(begun) = self.begun {
            tokio::time::sleep_until((begun + self.interval.max(self.took * SHARE)).into()).await;
        }
        self.wanted = false;
        self.begun = Some(Instant::now());
        Turn::Look
    }
}
