//! Local pods, as the cgroup tree shows them: kubelet's names below the pod root, for both cgroup drivers.
//!
//! Invariant: a directory that is not surely a pod's is no pod, so its processes stay unknown. The id of a cgroup is
//! the inode of its directory (kernfs). Tested below and by `tests/lifecycle.rs`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::preflight::{self, Missing};

/// Where kubelet makes its pod cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRoot {
    /// The directory.
    pub path: PathBuf,
    /// Its level in the hierarchy; the root of the hierarchy has 0.
    pub level: u32,
    /// Its cgroup id.
    pub id: u64,
}

/// A cgroup v2 mount: mount point and the cgroup shown there.
fn mounts(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut fields = left.split(' ');
            let (root, point) = (fields.nth(3)?, fields.next()?);
            (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
        })
        .collect()
}

impl PodRoot {
    /// Takes a given pod root, or finds kubelet's below the cgroup v2 mounts.
    ///
    /// # Errors
    /// What is missing: the hierarchy, its real root, or the pod root.
    pub fn find(given: Option<&Path>) -> Result<Self, Missing> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts = mounts(&mountinfo);
        let Some(first) = mounts.first() else {
            return Err(Missing::Cgroup2);
        };
        match given {
            Some(path) => {
                let not = || Missing::NotCgroup2 { path: path.to_owned() };
                let real = path.canonicalize().map_err(|_| not())?;
                if !preflight::is_cgroup2(&real) {
                    return Err(not());
                }
                let mount =
                    mounts.iter().filter(|mount| real.starts_with(mount)).max_by_key(|m| m.as_os_str().len());
                Self::at(mount.ok_or_else(not)?, real)
            }
            None => {
                let mut found = Vec::new();
                search(first, 3, &mut found);
                match &found[..] {
                    [] => Err(Missing::PodRoot { path: first.clone() }),
                    [path] => Self::at(first, path.clone()),
                    // Such as what another cgroup driver left: guessing wrong would enforce nothing.
                    _ => Err(Missing::PodRoots { paths: found }),
                }
            }
        }
    }

    fn at(mount: &Path, path: PathBuf) -> Result<Self, Missing> {
        let inode = |path: &Path| fs::metadata(path).map(|m| m.ino());
        // The root of every kernfs hierarchy has inode 1; another one is a cgroup namespace's root or a bind mount, and
        // levels counted from there would not be the kernel's.
        if inode(mount).ok() != Some(1) {
            return Err(Missing::CgroupNamespace { path: mount.to_owned() });
        }
        let below = path.strip_prefix(mount).map_or(0, |rest| rest.components().count());
        let id = inode(&path).map_err(|_| Missing::NotCgroup2 { path: path.clone() })?;
        let level = u32::try_from(below).unwrap_or(u32::MAX);
        Ok(Self { path, level, id })
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

impl Scan {
    fn add(&mut self, uid: String, path: PathBuf, cgroup: u64) {
        // Without them the pod has no proxies, which denies.
        let below = children(&path).unwrap_or_default();
        let containers = below.iter().filter_map(|(name, _, id)| Some((container_id(name)?, *id))).collect();
        self.directories.push(path.clone());
        self.pods.push(PodCgroup { uid, cgroup, path, containers });
    }
}

/// The runtime's id of the container that a process is in, by the name of its cgroup, while the process lives.
pub(crate) fn container_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.rsplit('/').find_map(container_id)
}

/// Collects what kubelet may have named as its pod root, down to `depth` levels below `dir`.
fn search(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let is_root =
        |name: &str| name == "kubepods.slice" || name == "kubepods" || name.ends_with("-kubepods.slice");
    for (name, path, _) in children(dir).unwrap_or_default() {
        if is_root(&name) {
            found.push(path);
        } else if depth > 1 {
            search(&path, depth - 1, found);
        }
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

/// The pod's UID in a cgroup name of kubelet: `pod<uid>` (cgroupfs driver) or `kubepods[-<qos>]-pod<uid>.slice` with `_`
/// for `-` (systemd driver). For static pods it is the hash of their manifest.
///
/// Source: `k8s.io/kubernetes/pkg/kubelet/cm/pod_container_manager_linux.go` and `cgroup_manager_linux.go`.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once('-')?.1.strip_prefix("pod")?.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let plausible = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plausible.then_some(uid)
}

/// The container's id in a cgroup name of a runtime: 64 hexadecimal digits (cgroupfs driver), or those between a prefix and
/// `.scope` (systemd driver), as in `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`. What CRI-O's monitor
/// runs in (`crio-conmon-<id>.scope`) is no container.
///
/// Source: `k8s.io/kubernetes/pkg/kubelet/cm/util` and the runtimes' cgroup paths.
fn container_id(name: &str) -> Option<String> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    let id = match bare.rsplit_once('-') {
        Some(("cri-containerd" | "crio" | "docker", id)) => id,
        Some(_) => return None,
        None => bare,
    };
    let plausible = id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    plausible.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{container_id, mounts, pod_uid};
    use std::path::PathBuf;

    #[test]
    fn kubelets_names_give_the_uid() {
        let uid = Some("0f3a1c52-7d0e-4b43-9c55-000000000001".to_owned());
        assert_eq!(pod_uid("pod0f3a1c52-7d0e-4b43-9c55-000000000001"), uid);
        assert_eq!(pod_uid("kubepods-burstable-pod0f3a1c52_7d0e_4b43_9c55_000000000001.slice"), uid);
        assert_eq!(pod_uid("kubepods-pod0f3a1c52_7d0e_4b43_9c55_000000000001.slice"), uid);
        assert_eq!(pod_uid("kubelet-kubepods-besteffort-pod5c8e.slice"), Some("5c8e".to_owned()));
    }

    #[test]
    fn runtimes_names_give_the_containers_id() {
        let id = "0123456789abcdef".repeat(4);
        for name in ["cri-containerd-ID.scope", "crio-ID.scope", "docker-ID.scope", "ID", "crio-ID"] {
            assert_eq!(container_id(&name.replace("ID", &id)), Some(id.clone()), "{name}");
        }
        for name in ["crio-conmon-ID.scope", "x-ID.scope", "IDa", "init.scope", "cri-containerd-.scope"] {
            assert_eq!(container_id(&name.replace("ID", &id)), None, "{name}");
        }
    }

    #[test]
    fn other_names_are_no_pods() {
        for name in [
            "kubepods-burstable.slice",
            "burstable",
            "besteffort",
            "pod",
            "pod../x",
            "kubepods-pod.slice",
            "x.scope",
        ] {
            assert_eq!(pod_uid(name), None, "{name}");
        }
    }

    #[test]
    fn every_candidate_for_the_pod_root_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "kubepods",
            "kubepods.slice/kubepods-burstable.slice",
            "kubelet.slice/kubelet-kubepods.slice",
            "x/y",
        ] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let mut found = Vec::new();
        super::search(dir.path(), 3, &mut found);
        let names = ["kubelet.slice/kubelet-kubepods.slice", "kubepods", "kubepods.slice"];
        assert_eq!(found, names.map(|name| dir.path().join(name)));
    }

    #[test]
    fn only_whole_cgroup2_mounts_count() {
        let text = "30 23 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
                    31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                    32 23 0:26 /a/b /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mounts(text), [PathBuf::from("/sys/fs/cgroup/unified")]);
    }
}
