//! What everything that is played on this machine needs: binaries, a bpffs, and a directory of its own.
//!
//! Invariant: nothing of it outlives the process, but for a directory that the next one removes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, bail};
use egress_topology::{Agent, MountPoint, mount_bpffs, private_mount_namespace};
use tempfile::TempDir;

use crate::build;
use crate::setup::{self, Need};

/// How such a directory begins, before the process id of its owner.
const DIRECTORY: &str = "egress-demo-";

/// The ground on which a topology is built.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Becomes true when somebody wants it to end.
    pub(crate) interrupted: Arc<AtomicBool>,
    /// The probe, where the sidecar's user can start it, wherever this checkout is.
    pub(crate) probe: PathBuf,
    binaries: PathBuf,
    bpffs: MountPoint,
    /// Removed at the end.
    pub(crate) dir: TempDir,
}

impl Ground {
    /// Builds what is run. To be called before the first thread: what is mounted from here on vanishes with us, however
    /// we end.
    pub(crate) fn new(what: &str) -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "{what} loads BPF and makes network namespaces: run it as root, as in `sudo -E cargo xtask ...`"
            );
        }
        private_mount_namespace()?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [nix::libc::SIGINT, nix::libc::SIGTERM, nix::libc::SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        setup::setup(Need::Run)?;
        build::build_ebpf()?;
        let binaries = build::build_binaries()?;
        sweep_directories();
        let dir =
            tempfile::Builder::new().prefix(&format!("{DIRECTORY}{}-", std::process::id())).tempdir()?;
        let bpffs = mount_bpffs(&dir.path().join("bpf"))?;
        let probe = dir.path().join("egress-probe");
        fs::copy(binaries.join("egress-probe"), &probe).context("cannot copy the probe")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { interrupted, probe, binaries, bpffs, dir })
    }

    /// An agent that is yet to be started.
    pub(crate) fn agent(&self) -> Agent {
        Agent::new(self.binaries.join("egress-agent"), self.bpffs.path(), self.dir.path())
    }
}

/// Removes the directories of demonstrations that were killed; nothing is mounted there any more.
fn sweep_directories() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(DIRECTORY).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
