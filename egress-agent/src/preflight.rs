//! What a node must have, checked before anything is touched.
//!
//! Invariant: each missing thing is one [`Missing`], one sentence that names it and how to provide it, exit code 77.
//! Tested by `tests/preflight.rs`, which takes each away.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{self, FsType};

/// `BPF_FS_MAGIC`, `include/uapi/linux/magic.h`.
const BPF_FS: FsType = FsType(0xcafe_4a11);
/// `CGROUP2_SUPER_MAGIC`, `include/uapi/linux/magic.h`.
const CGROUP2: FsType = FsType(0x6367_7270);

/// Oldest kernel with everything the hooks use: `bpf_ktime_get_coarse_ns` came in 5.11, ring buffers, links and ancestor ids earlier.
const KERNEL: (u32, u32) = (5, 11);

/// Where the kernel shows its BTF.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Something this node lacks.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The kernel is too old, or says something that is not a version.
    #[error("the kernel is {release}, and {}.{} is the oldest that can enforce: boot a newer kernel", KERNEL.0, KERNEL.1)]
    Kernel {
        /// What `uname -r` says.
        release: String,
    },
    /// The kernel was built without BTF.
    #[error("the kernel has no type information at {BTF}: boot a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    Btf,
    /// The process lacks a capability.
    #[error("the capability {name} is missing: run as root, or add it to the container's securityContext")]
    Capability {
        /// Such as `CAP_BPF`.
        name: &'static str,
    },
    /// No bpffs.
    #[error("{} is not a bpffs: mount one with `mount -t bpf -o mode=0700 bpf {}` (in a cluster: bpffs.mount of the chart, or the component mount-bpffs), or name one with --bpffs", path.display(), path.display())]
    Bpffs {
        /// The path that should be one.
        path: PathBuf,
    },
    /// No cgroup v2 hierarchy.
    #[error(
        "no cgroup v2 hierarchy is mounted: boot with systemd.unified_cgroup_hierarchy=1, or mount one with `mount -t cgroup2 none DIR`"
    )]
    Cgroup2,
    /// The pod root is not in a cgroup v2 hierarchy.
    #[error("{} is not in a cgroup v2 hierarchy: name kubelet's pod cgroup there with --pod-root", path.display())]
    NotCgroup2 {
        /// The path that should be.
        path: PathBuf,
    },
    /// What was named as the pod root cannot be seen.
    #[error("--pod-root {} cannot be seen ({reason}): name kubelet's pod cgroup, as this process sees it, or leave the option out to have it found", path.display())]
    NoPodRoot {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// What was named is a part of the pod root.
    #[error("{} is a QoS class or a pod within kubelet's pod cgroup, and the pods beside it would not be judged: name the whole, kubepods or kubepods.slice, with --pod-root", path.display())]
    PartOfPodRoot {
        /// The path.
        path: PathBuf,
    },
    /// What is mounted starts below the real root, and kubelet's pods are not in it.
    #[error("{} shows only a part of the cgroup v2 hierarchy, without a pod cgroup of kubelet: mount the node's /sys/fs/cgroup into the container, or run the agent in the host's cgroup namespace", path.display())]
    CgroupNamespace {
        /// The mount point.
        path: PathBuf,
    },
    /// Where the pod root is in the hierarchy is not known.
    #[error("the level of {} in the cgroup v2 hierarchy cannot be found ({reason}): mount the whole hierarchy, or run the agent in the host's cgroup namespace", path.display())]
    Level {
        /// The pod root.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
    /// Several cgroups may be the pod root.
    #[error("several cgroups may be kubelet's pod root: {}; name the right one with --pod-root", paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    PodRoots {
        /// The candidates.
        paths: Vec<PathBuf>,
    },
    /// Somebody else made the pin directory, or may write in it.
    #[error("{} must be root's, with mode 0700: change it, or remove it and it is made (a bpffs is mounted with `-o mode=0700`)", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// No pod root was found.
    #[error("no pod cgroup of kubelet (kubepods.slice or kubepods) was found below {}: name it with --pod-root", path.display())]
    PodRoot {
        /// Where was looked.
        path: PathBuf,
    },
}

/// Checks kernel, BTF and capabilities.
///
/// # Errors
/// The first thing that is missing.
pub fn kernel() -> Result<(), Missing> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release).is_none_or(|version| version < KERNEL) {
        return Err(Missing::Kernel { release: release.trim().to_owned() });
    }
    if !Path::new(BTF).exists() {
        return Err(Missing::Btf);
    }
    capabilities()
}

/// Major and minor number at the start of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Capabilities by number (`include/uapi/linux/capability.h`). Kernels before 5.8 had CAP_SYS_ADMIN for BPF and PERFMON;
/// it still implies them.
fn capabilities() -> Result<(), Missing> {
    const SYS_ADMIN: u32 = 21;
    const NEEDED: [(u32, &str, bool); 3] =
        [(39, "CAP_BPF", true), (38, "CAP_PERFMON", true), (12, "CAP_NET_ADMIN", false)];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |number: u32| effective & (1 << number) != 0;
    match NEEDED.iter().find(|(number, _, implied)| !(has(*number) || *implied && has(SYS_ADMIN))) {
        Some((_, name, _)) => Err(Missing::Capability { name }),
        None => Ok(()),
    }
}

/// Checks that a path is a bpffs.
///
/// # Errors
/// [`Missing::Bpffs`].
pub fn bpffs(path: &Path) -> Result<(), Missing> {
    match statfs::statfs(path) {
        Ok(stat) if stat.filesystem_type() == BPF_FS => Ok(()),
        _ => Err(Missing::Bpffs { path: path.to_owned() }),
    }
}

/// Mounts a bpffs at a path, unless there is one.
///
/// # Errors
/// It cannot be mounted: CAP_SYS_ADMIN is missing, or the path is no directory.
pub fn mount_bpffs(path: &Path) -> anyhow::Result<()> {
    if bpffs(path).is_ok() {
        tracing::info!(path = %path.display(), "a bpffs is there");
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // As systemd mounts it.
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .with_context(|| format!("cannot mount a bpffs at {}", path.display()))?;
    bpffs(path)?;
    tracing::info!(path = %path.display(), "a bpffs is mounted");
    Ok(())
}

/// Makes a directory that root alone can enter, or checks that it is one: who else could write there could remove our pins.
///
/// # Errors
/// [`Missing::Foreign`], or the directory cannot be made.
pub fn private_directory(path: &Path) -> anyhow::Result<()> {
    if let Err(error) = fs::DirBuilder::new().mode(0o700).create(path)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("cannot make {}", path.display()));
    }
    let metadata =
        fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    if !metadata.is_dir() || metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Err(Missing::Foreign { path: path.to_owned() }.into());
    }
    Ok(())
}

/// Whether a path is in a cgroup v2 hierarchy.
#[must_use]
pub fn is_cgroup2(path: &Path) -> bool {
    statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2)
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(version("5.10.0-28-cloud-amd64"), Some((5, 10)));
        assert!(version("5.100.0").unwrap() > super::KERNEL);
        assert!(version("5.10.0").unwrap() < super::KERNEL);
        assert_eq!(version("linux"), None);
    }
}
