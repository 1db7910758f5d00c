//! Local pods, as the cgroup tree shows them: kubelet's names below the pod root, for both cgroup drivers.
//!
//! Invariant: a directory that is not surely a pod's is no pod, so its processes stay unknown. The id of a cgroup is
//! the inode of its directory (kernfs). Tested below and by `tests/lifecycle.rs`.

mod find;
mod level;
mod mounts;
mod names;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::preflight::Missing;
pub(crate) use names::is_monitor;
use names::{container_id, pod_uid};

/// Where kubelet makes its pod cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRoot {
    /// The directory.
    pub path: PathBuf,
    /// Its level in the kernel's hierarchy; the root of the hierarchy has 0, wherever that is mounted.
    pub level: u32,
    /// Its cgroup id.
    pub id: u64,
}

impl PodRoot {
    /// Takes a given pod root, or finds kubelet's below the cgroup v2 mounts.
    ///
    /// # Errors
    /// What is missing: the hierarchy, the pod root, or its level.
    pub fn find(given: Option<&Path>) -> Result<Self, Missing> {
        match given {
            Some(path) => find::given(path),
            None => find::search(),
        }
    }

    /// Where else pods seem to run: other cgroups that kubelet may have named as its pod root, and containers that their runtime
    /// has put outside of it. Nothing that runs there is judged.
    #[must_use]
    pub fn elsewhere(&self) -> Vec<PathBuf> {
        find::elsewhere(self)
    }

    /// Whether the directory is still the one that was found.
    #[must_use]
    pub fn stands(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.id)
    }

    /// The pods that have a cgroup now, ordered by cgroup id, and the directories in which pods come and go.
    ///
    /// # Errors
    /// The pod root cannot be read. Directories that vanish while we look are no error.
    pub fn scan(&self) -> io::Result<Scan> {
        let mut scan = Scan { pods: Vec::new(), directories: vec![self.path.clone()] };
        // Where the pod root itself comes and goes.
        scan.directories.extend(self.path.parent().map(Path::to_owned));
        for (name, path, id) in children(&self.path)? {
            if let Some(uid) = pod_uid(&name) {
                scan.add(uid, path, id);
            } else {
                // A QoS class; its pods are one level further down.
                let below = match children(&path) {
                    // It went while we looked.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    below => below?,
                };
                for (name, path, id) in below {
                    if let Some(uid) = pod_uid(&name) {
                        scan.add(uid, path, id);
                    }
                }
                scan.directories.push(path);
            }
        }
        scan.pods.sort_by_key(|pod| pod.cgroup);
        Ok(scan)
    }
}

/// What [`PodRoot::scan`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The pods.
    pub pods: Vec<PodCgroup>,
    /// The pod root, its QoS classes, and the pods.
    pub directories: Vec<PathBuf>,
}

/// A pod's cgroup and those of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// The UID in its name, or the hash of a static pod.
    pub uid: String,
    /// Its id.
    pub cgroup: u64,
    /// Its directory.
    pub path: PathBuf,
    /// The containers: the runtime's id in the name, and the cgroup's id.
    pub containers: Vec<(String, u64)>,
}

impl PodCgroup {
    /// Whether a process is in it.
    #[must_use]
    pub fn holds(&self, pid: u32) -> bool {
        holds(&self.path, &pid.to_string(), DEPTH)
    }
}

/// How deep below a pod's cgroup a process is looked for.
const DEPTH: usize = 4;

fn holds(cgroup: &Path, pid: &str, depth: usize) -> bool {
    let here = || fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let below = || children(cgroup).unwrap_or_default().into_iter();
    here().lines().any(|line| line == pid)
        || (depth > 0 && below().any(|(_, path, _)| holds(&path, pid, depth - 1)))
}

impl Scan {
    fn add(&mut self, uid: String, path: PathBuf, cgroup: u64) {
        // Without them the pod has no proxies, which denies.
        let below = children(&path).unwrap_or_default();
        let containers = below.iter().filter_map(|(name, _, id)| Some((container_id(name)?, *id))).collect();
        self.directories.push(path.clone());
        self.pods.push(PodCgroup { uid, cgroup, path, containers });
    }
}

fn children(dir: &Path) -> io::Result<Vec<(String, PathBuf, u64)>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata()) else {
            continue;
        };
        if metadata.is_dir() {
            children.push((name, entry.path(), metadata.ino()));
        }
    }
    children.sort();
    Ok(children)
}
