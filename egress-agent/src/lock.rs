//! One agent per node: locks that end with the process, however it ends.
//!
//! Invariant: who holds the lock of the pin directory is the only one who writes pins and maps there. Tested by
//! `tests/lifecycle.rs`, which starts a second agent.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use crate::datapath::pins;
use crate::pods::PodRoot;
use crate::preflight;

/// Where an agent has its socket by default, and where pod roots are locked.
const RUN: &str = "/run/egress-enforcer";
/// How the names of those locks begin.
const POD_ROOT: &str = "pod-root-";

/// The resource is locked by a running agent.
#[derive(Debug, thiserror::Error)]
#[error("another egress-agent works on {}: stop it first", path.display())]
pub struct Busy {
    /// What is locked.
    pub path: PathBuf,
}

/// A lock; released when dropped or when the process ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// A file that is there for the lock alone.
    file: Option<PathBuf>,
    flock: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // What stays is taken over by the next agent, or swept.
            let _ = fs::remove_file(file);
        }
    }
}

impl Lock {
    /// Locks the pin directory below a bpffs, which is made where it is missing.
    ///
    /// # Errors
    /// [`Busy`] where an agent holds it, [`preflight::Missing`] where `bpffs` is no bpffs or the directory is somebody else's.
    pub fn bpffs(bpffs: &Path) -> anyhow::Result<Self> {
        preflight::bpffs(bpffs)?;
        let dir = pins::directory(bpffs);
        preflight::private_directory(&dir)?;
        let file = File::open(&dir).with_context(|| format!("cannot open {}", dir.display()))?;
        Self::take(file, dir)
    }

    /// Locks a pod root, by a file that is named after its cgroup id: on the cgroup directory itself anybody on the node
    /// could hold a lock.
    ///
    /// # Errors
    /// [`Busy`] where an agent holds it, [`preflight::Missing`] where the directory of locks is somebody else's.
    pub fn pod_root(root: &PodRoot) -> anyhow::Result<Self> {
        let dir = Path::new(RUN);
        preflight::private_directory(dir)?;
        let path = dir.join(format!("{POD_ROOT}{}.lock", root.id));
        let mut lock = Self::file(&path)?.ok_or_else(|| Busy { path: root.path.clone() })?;
        lock.path = root.path.clone();
        Ok(lock)
    }

    /// Locks a file, which goes with the lock; nothing where somebody holds it.
    fn file(path: &Path) -> anyhow::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let mut lock = match Self::take(file, path.to_owned()) {
            Err(error) if error.is::<Busy>() => return Ok(None),
            lock => lock?,
        };
        // Its last owner may have removed it between our opening and our locking: then another file has the name now.
        let same =
            fs::metadata(path).is_ok_and(|at| lock.flock.metadata().is_ok_and(|own| at.ino() == own.ino()));
        lock.file = Some(path.to_owned());
        Ok(same.then_some(lock))
    }

    /// Removes what killed agents left among the locks of pod roots, and their directory if nothing else is in it.
    pub fn sweep() {
        let Ok(entries) = fs::read_dir(RUN) else { return };
        let ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(POD_ROOT);
        for entry in entries.flatten().filter(ours) {
            // Taken and dropped, which removes it.
            drop(Self::file(&entry.path()));
        }
        // Something else may be in it, such as the socket of another agent.
        let _ = fs::remove_dir(RUN);
    }

    fn take(file: File, path: PathBuf) -> anyhow::Result<Self> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(flock) => Ok(Self { path, file: None, flock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Busy { path }.into()),
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// What is locked.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the lock back before the end of its scope.
    pub fn release(self) {
        drop(self);
    }
}
