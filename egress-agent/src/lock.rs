//! One agent per node: locks that end with the process, however it ends.
//!
//! Invariant: who holds the lock of the pin directory is the only one who writes pins and maps there. Tested by
//! `tests/lifecycle.rs`, which starts a second agent.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use crate::datapath::pins;
use crate::preflight;

/// The resource is locked by a running agent.
#[derive(Debug, thiserror::Error)]
#[error("another egress-agent works on {}: stop it first", path.display())]
pub struct Busy {
    /// What is locked.
    pub path: PathBuf,
}

/// A lock on a directory; released when dropped or when the process ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    flock: Flock<File>,
}

impl Lock {
    /// Locks the pin directory below a bpffs, which is made where it is missing.
    ///
    /// # Errors
    /// [`Busy`] where an agent holds it, [`preflight::Missing`] where `bpffs` is no bpffs.
    pub fn bpffs(bpffs: &Path) -> anyhow::Result<Self> {
        preflight::bpffs(bpffs)?;
        let dir = pins::directory(bpffs);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Self::directory(&dir)
    }

    /// Locks a directory that exists.
    ///
    /// # Errors
    /// [`Busy`] where an agent holds it.
    pub fn directory(dir: &Path) -> anyhow::Result<Self> {
        let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(flock) => Ok(Self { path: dir.to_owned(), flock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Busy { path: dir.to_owned() }.into()),
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", dir.display())),
        }
    }

    /// The locked directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the lock back before the end of its scope.
    pub fn release(self) {
        drop(self.flock);
    }
}
