//! Mounts that vanish with us.
//!
//! Invariant: after [`private_mount_namespace`] nothing that is mounted here is seen by the rest of the machine, and
//! the kernel removes it, pins included, when the last process of the namespace ends, whatever way.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Gives this process a mount namespace of its own. To be called at the start of `main`: every thread and process
/// started later is in it, so there must not be a second thread yet.
pub fn private_mount_namespace() -> Result<()> {
    let threads = fs::read_dir("/proc/self/task").context("count threads")?.count();
    ensure!(threads == 1, "a private mount namespace must come before the first thread; there are {threads}");
    unshare(CloneFlags::CLONE_NEWNS).context("make a private mount namespace (needs root)")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make all mounts private")
}

/// Mounts a BPF file system, making the directory if needed.
pub fn mount_bpffs(directory: &Path) -> Result<MountPoint> {
    MountPoint::new("bpf", directory)
}

/// Mounts the cgroup v2 hierarchy, making the directory if needed.
pub fn mount_cgroup2(directory: &Path) -> Result<MountPoint> {
    MountPoint::new("cgroup2", directory)
}

/// Something we mounted; dropping it unmounts it.
#[derive(Debug)]
pub struct MountPoint {
    path: PathBuf,
}

impl MountPoint {
    fn new(kind: &str, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let none: Option<&str> = None;
        mount(
            Some(kind),
            directory,
            Some(kind),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            none,
        )
        .with_context(|| format!("mount {kind} at {}", directory.display()))?;
        Ok(Self { path: directory.to_owned() })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("egress-topology: unmount {}: {error}", self.path.display());
        }
    }
}
