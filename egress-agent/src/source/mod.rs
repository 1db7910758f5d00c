//! Where objects come from: a directory of files, or the API server of a cluster.
//!
//! Invariant: a look gives what leads from the last state to this one, and what could not be read is never taken for a
//! deletion. Tested in the modules, by `tests/unread.rs` and `tests/kube.rs`.

mod file;
pub(crate) mod kube;
mod listed;
mod named;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use anyhow::Context as _;
use egress_policy::index::Event;
use egress_policy::object::{Kind, Workload};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::cli::SourceArgs;
use crate::status::WatchStatus;
use crate::watch::{Interest, Watcher};

pub(crate) use file::is_single;
pub use file::{FileSource, read_file, read_text};
pub use listed::Listed;
pub use named::Source;

/// Changes of a directory come in bursts: it is read once nothing has changed for this long,
const SETTLE: Duration = Duration::from_millis(30);
/// or this long after the first change.
const SETTLED: Duration = Duration::from_millis(500);

/// Something in a source that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourceError {
    /// The file, the directory, or the object of the API server.
    pub place: String,
    /// The line, counted from 1, where there is one.
    pub line: Option<usize>,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for SourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.place, self.reason),
            None => write!(f, "{}: {}", self.place, self.reason),
        }
    }
}

/// What one look at the source gave.
#[derive(Debug, Default)]
pub struct Changes {
    /// Something is missing that may be a policy, or that policies select by: nothing may be planned from what there is.
    pub incomplete: bool,
    /// What became of objects since the last look.
    pub events: Vec<Event>,
    /// Kinds of which everything was listed since the last look, with what there is: after the events, what else is known of
    /// them is gone.
    pub listed: Vec<(Kind, Listed)>,
    /// What cannot be read now: files, and objects. A watch that fails is none of them.
    pub errors: Vec<SourceError>,
    /// Kinds that are none of ours, with their number.
    pub ignored: BTreeMap<String, usize>,
    /// Those of them that make pods, of every file, or what is wrong with them. They are `lint`'s.
    pub workloads: Vec<Result<Workload, SourceError>>,
    /// How the watches stand, and why.
    pub watches: Vec<WatchStatus>,
}

/// A source of objects.
#[derive(Debug)]
pub(crate) enum Objects {
    /// Files.
    Files(FileSource),
    /// The API server.
    Kube(kube::Watches),
}

impl Objects {
    /// Opens what the command line names, with what tells when to look again. Needs a tokio runtime.
    ///
    /// # Errors
    /// A directory that cannot be read: without a first look nothing may be planned, and what is pinned goes on as it is. An API
    /// server that does not answer is none: it is waited for.
    pub(crate) fn open(args: &SourceArgs) -> anyhow::Result<(Self, Notice)> {
        match &args.source {
            Source::File(dir) => {
                let mut watcher = Watcher::new(Interest::Contents).context("cannot watch the source")?;
                if !is_single(dir) {
                    std::fs::read_dir(dir)
                        .with_context(|| format!("cannot read the source directory {}", dir.display()))?;
                    watcher.watch(std::slice::from_ref(dir));
                }
                Ok((Self::Files(FileSource::new(dir.clone())), Notice::Files(watcher)))
            }
            Source::Kube => {
                let watches = kube::Watches::start(kube::Connector::new(args.kubeconfig.clone()));
                let notice = Notice::Kube(watches.changed());
                Ok((Self::Kube(watches), notice))
            }
        }
    }

    /// What changed since the last look.
    pub(crate) fn look(&mut self) -> Changes {
        match self {
            Self::Files(files) => files.look(),
            Self::Kube(watches) => watches.look(),
        }
    }

    /// As given on the command line.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Files(files) => Source::File(files.dir().to_owned()).to_string(),
            Self::Kube(_) => Source::Kube.to_string(),
        }
    }

    /// The client of the API server, once there is one, and its number: another client has another.
    pub(crate) fn client(&self) -> Option<(Client, u64)> {
        match self {
            Self::Files(_) => None,
            Self::Kube(watches) => watches.client(),
        }
    }

    /// Whether nothing is to be attached before everything was read once: pods that are running would be cut from what policies
    /// allow them while the API server is slow.
    pub(crate) fn comes_first(&self) -> bool {
        matches!(self, Self::Kube(_))
    }
}

/// Tells when to look at a source again.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The directory changed.
    Files(Watcher),
    /// Something arrived.
    Kube(Arc<Notify>),
}

impl Notice {
    /// Waits until there may be something new. May be cancelled: the notice stays.
    pub(crate) async fn changed(&self) {
        match self {
            Self::Files(watcher) => watcher.changed().await,
            Self::Kube(changed) => changed.notified().await,
        }
    }

    /// Waits for the end of a burst of changes, so that a file is not read while it is written.
    pub(crate) async fn settle(&self) {
        let Self::Files(watcher) = self else { return };
        let burst = async { while tokio::time::timeout(SETTLE, watcher.changed()).await.is_ok() {} };
        // A directory that never comes to rest is read all the same.
        let _ = tokio::time::timeout(SETTLED, burst).await;
    }
}
