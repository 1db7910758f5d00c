//! Being told that something in a directory changed, for the file source and for the cgroup tree.
//!
//! Invariant: a notice says only *look again*; what changed is always read anew, so a lost or doubled notice
//! does no harm. A slow tick looks again without any notice.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Watches a set of directories, each without its children's children.
#[derive(Debug)]
pub struct Watcher {
    inner: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    changed: Arc<Notify>,
}

/// Which changes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Every change.
    Contents,
    /// Only what comes and goes: a cgroup's files change all the time.
    Entries,
}

impl Watcher {
    /// A watcher of nothing yet.
    ///
    /// # Errors
    /// The kernel has no inotify instance to give.
    pub fn new(interest: Interest) -> notify::Result<Self> {
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let inner = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let counts = match event {
                Ok(event) => match event.kind {
                    EventKind::Create(_) | EventKind::Remove(_) => true,
                    EventKind::Access(_) => false,
                    EventKind::Any | EventKind::Modify(_) | EventKind::Other => {
                        interest == Interest::Contents
                    }
                },
                // Such as an overflow of the queue.
                Err(_) => true,
            };
            if counts {
                notify.notify_one();
            }
        })?;
        Ok(Self { inner, watched: BTreeSet::new(), changed })
    }

    /// Watches exactly these directories from now on. A directory that cannot be watched is left to the tick.
    pub fn watch(&mut self, directories: &[PathBuf]) {
        let wanted: BTreeSet<_> = directories.iter().cloned().collect();
        for gone in self.watched.difference(&wanted) {
            // The kernel has dropped the watch of a directory that is gone.
            let _ = self.inner.unwatch(gone);
        }
        let mut watched = BTreeSet::new();
        for dir in wanted {
            if self.watched.contains(&dir) || self.add(&dir) {
                watched.insert(dir);
            }
        }
        self.watched = watched;
    }

    fn add(&mut self, dir: &Path) -> bool {
        match self.inner.watch(dir, RecursiveMode::NonRecursive) {
            Ok(()) => {
                // What came between the look that found this directory and the watch is not told to us.
                self.changed.notify_one();
                true
            }
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot watch; looking again at every tick instead");
                false
            }
        }
    }

    /// Watches nothing any more: what stands at the paths now is not what was watched.
    pub fn forget(&mut self) {
        self.watch(&[]);
    }

    /// Waits until something changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
