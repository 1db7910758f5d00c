//! kubelet's cgroup tree, below a directory of our own.
//!
//! Invariant: the top directory is named after its creator (`PREFIX-PID-STARTTIME.slice`), so a tree can be told to be
//! left over, and only processes below such a directory are ever killed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::mounts::{MountPoint, mount_cgroup2};

/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// The mount of the cgroup v2 hierarchy.
#[derive(Debug)]
pub struct CgroupRoot {
    path: PathBuf,
    /// Ours to unmount, and then the directory to remove, in this order.
    _mounted: Option<(MountPoint, tempfile::TempDir)>,
}

impl CgroupRoot {
    /// Finds where cgroup v2 is mounted (itself, or beside version 1), or mounts it in a temporary directory until
    /// this value is dropped. After a `kill -9` that mount stays, unless
    /// [`private_mount_namespace`](crate::private_mount_namespace) came first.
    pub fn find_or_mount() -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        if let Some(path) = mounted_at(&table) {
            return Ok(Self { path, _mounted: None });
        }
        let directory = tempfile::Builder::new().prefix("cgroup2-").tempdir()?;
        let mount = mount_cgroup2(directory.path())?;
        Ok(Self { path: directory.path().to_owned(), _mounted: Some((mount, directory)) })
    }

    /// Where the hierarchy's root is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The first mount of the whole cgroup v2 hierarchy in a table of mounts.
fn mounted_at(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let columns: Vec<&str> = before.split(' ').collect();
        let whole = columns.get(3) == Some(&"/") && after.starts_with("cgroup2 ");
        let path = columns.get(4)?;
        // The kernel writes blanks as \040; such a path is nobody's cgroup mount.
        (whole && !path.contains('\\')).then(|| PathBuf::from(path))
    })
}

/// How the tree's directories are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope`.
    #[default]
    Systemd,
    /// `kubepods/burstable/podUID/ID`.
    Cgroupfs,
}

/// A pod's quality of service, which decides where its cgroup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Qos {
    /// One level higher than the others.
    Guaranteed,
    /// Some requests.
    Burstable,
    /// No requests.
    #[default]
    BestEffort,
}

impl Qos {
    /// As in `status.qosClass`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The word in the names of directories.
    fn level(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

/// A tree like kubelet's; dropping it kills what runs in it and removes it.
#[derive(Debug)]
pub struct PodRoot {
    driver: CgroupDriver,
    /// How the names of the systemd driver begin.
    prefix: String,
    top: PathBuf,
    path: PathBuf,
}

impl PodRoot {
    /// Makes `PREFIX-PID-STARTTIME.slice` with the pod root and its two quality-of-service levels.
    pub fn create(root: &CgroupRoot, prefix: &str, driver: CgroupDriver) -> Result<Self> {
        Self::create_below(root, prefix, driver, None)
    }

    /// As [`Self::create`], with the pod root where kubelet makes it that runs with `--cgroup-root /KUBELET`, as kind's does.
    pub fn create_below(
        root: &CgroupRoot,
        prefix: &str,
        driver: CgroupDriver,
        kubelet: Option<&str>,
    ) -> Result<Self> {
        ensure!(!prefix.is_empty() && !prefix.contains('/'), "{prefix:?} is no prefix for a cgroup's name");
        let pid = std::process::id();
        let start = start_time(pid).context("our own start time")?;
        let unique = make_unused(root.path(), &format!("{prefix}-{pid}-{start}"))?;
        let (above, name) = match (driver, kubelet) {
            (CgroupDriver::Systemd, None) => (None, "kubepods".to_owned()),
            (CgroupDriver::Systemd, Some(root)) => {
                (Some(format!("{root}.slice")), format!("{root}-kubepods"))
            }
            (CgroupDriver::Cgroupfs, root) => (root.map(str::to_owned), "kubepods".to_owned()),
        };
        let above = above.map(|above| unique.join(above));
        let path = above.as_ref().unwrap_or(&unique).join(match driver {
            CgroupDriver::Systemd => format!("{name}.slice"),
            CgroupDriver::Cgroupfs => name.clone(),
        });
        let tree = Self { driver, prefix: name, top: unique, path };
        above.iter().try_for_each(|above| make(above))?;
        make(&tree.path)?;
        for qos in [Qos::Burstable, Qos::BestEffort] {
            make(&tree.level(qos))?;
        }
        Ok(tree)
    }

    /// The pod root, what would be `/sys/fs/cgroup/kubepods.slice` on a node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Our own directory right below the hierarchy's root.
    #[must_use]
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// How the directories are named.
    #[must_use]
    pub fn driver(&self) -> CgroupDriver {
        self.driver
    }

    fn level(&self, qos: Qos) -> PathBuf {
        match (qos.level(), self.driver) {
            (None, _) => self.path.clone(),
            (Some(level), CgroupDriver::Systemd) => self.path.join(format!("{}-{level}.slice", self.prefix)),
            (Some(level), CgroupDriver::Cgroupfs) => self.path.join(level),
        }
    }

    /// The directory that a pod has or would have.
    #[must_use]
    pub fn pod_directory(&self, qos: Qos, uid: &str) -> PathBuf {
        let name = match (self.driver, qos.level()) {
            (CgroupDriver::Systemd, Some(level)) => {
                format!("{}-{level}-pod{}.slice", self.prefix, uid.replace('-', "_"))
            }
            (CgroupDriver::Systemd, None) => format!("{}-pod{}.slice", self.prefix, uid.replace('-', "_")),
            (CgroupDriver::Cgroupfs, _) => format!("pod{uid}"),
        };
        self.level(qos).join(name)
    }

    /// The directory that a container has or would have.
    #[must_use]
    pub fn container_directory(&self, pod: &Path, id: &str) -> PathBuf {
        match self.driver {
            CgroupDriver::Systemd => pod.join(format!("cri-containerd-{id}.scope")),
            CgroupDriver::Cgroupfs => pod.join(id),
        }
    }

    /// Makes a directory beside the pod root, for processes of the node.
    pub(crate) fn make_beside(&self, name: &str) -> Result<PathBuf> {
        let path = self.top.join(name);
        make(&path)?;
        Ok(path)
    }
}

impl Drop for PodRoot {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.top) {
            eprintln!("egress-topology: {error:#}");
        }
    }
}

/// Makes a directory of a name that no other tree of this process has.
fn make_unused(root: &Path, name: &str) -> Result<PathBuf> {
    let mut path = root.join(format!("{name}.slice"));
    let mut number = 1;
    // Making it is what takes the name: another thread may look for one at the same time.
    while let Err(error) = fs::create_dir(&path) {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(error).with_context(|| format!("make cgroup {}", path.display()));
        }
        number += 1;
        path = root.join(format!("{name}-{number}.slice"));
    }
    Ok(path)
}

pub(crate) fn make(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("make cgroup {}", path.display()))
}

/// The kernel's number of a cgroup, as BPF programs see it.
pub fn cgroup_id(directory: &Path) -> Result<u64> {
    let data = fs::metadata(directory).with_context(|| format!("cgroup {}", directory.display()))?;
    Ok(data.ino())
}

/// Kills everything in a cgroup and below, waits until it is gone, and removes the directories. Another process may be
/// removing the same one: two tests that start together both [`sweep`] what an earlier one left.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let context = || format!("remove cgroup {}", path.display());
    unless_gone(fs::write(path.join("cgroup.kill"), "1")).with_context(context)?;
    let end = Instant::now() + KILL_LIMIT;
    loop {
        match unless_gone(remove_directories(path)) {
            // Busy as long as a killed process is not quite gone.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                thread::sleep(Duration::from_millis(2));
            }
            other => return other.with_context(context),
        }
    }
}

fn remove_directories(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            unless_gone(remove_directories(&entry.path()))?;
        }
    }
    fs::remove_dir(path)
}

/// No error where it says that the cgroup is no longer there: `ENOENT` by name, `ENODEV` by a file that was open before.
fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

/// Removes the trees with this prefix whose creators no longer live, and returns their paths.
pub fn sweep(root: &CgroupRoot, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let entries = fs::read_dir(root.path()).with_context(|| format!("read {}", root.path().display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some((pid, start)) = name.to_str().and_then(|name| creator(name, prefix)) else {
            continue;
        };
        if start_time(pid).is_ok_and(|living| living == start) {
            continue;
        }
        remove_tree(&entry.path())?;
        removed.push(entry.path());
    }
    Ok(removed)
}

/// The process id and start time in a tree's name.
fn creator(name: &str, prefix: &str) -> Option<(u32, u64)> {
    let rest = name.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(".slice")?;
    let mut parts = rest.split('-');
    let found = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    match (parts.next(), parts.next()) {
        (None, None) => Some(found),
        (Some(number), None) if number.parse::<u32>().is_ok() => Some(found),
        _ => None,
    }
}

/// When a process started, in clock ticks since boot: with its id, its name for good.
fn start_time(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second column is the program's name in parentheses and may hold anything, so counting begins behind it.
    let (_, columns) = text.rsplit_once(')').context("no program name in stat")?;
    columns.split_whitespace().nth(19).context("stat is too short")?.parse().context("start time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_mounts_are_found() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted_at(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted_at("41 31 0:38 /part /x rw - cgroup2 cgroup2 rw\n"), None);
        assert_eq!(mounted_at("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn creators_are_read_from_names() {
        assert_eq!(creator("egress-demo-12-345.slice", "egress-demo"), Some((12, 345)));
        assert_eq!(creator("egress-demo-12-345-2.slice", "egress-demo"), Some((12, 345)));
        assert_eq!(creator("egress-demo-12.slice", "egress-demo"), None);
        assert_eq!(creator("egress-demo-other-12-345.slice", "egress-demo"), None);
        assert_eq!(creator("system.slice", "egress-demo"), None);
    }

    #[test]
    fn our_own_start_time_is_known() {
        assert!(start_time(std::process::id()).unwrap() > 0);
    }
}
