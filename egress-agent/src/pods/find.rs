//! Finding kubelet's pod root, for every driver, runtime, and way to nest a node.
//!
//! Invariant: nothing is guessed. A pod root whose level the kernel does not tell is refused, and so is a choice between several, unless
//! one of them alone has processes: whoever attached to another one would enforce nothing. Tested below and by `tests/nested.rs`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::level::Own;
use super::mounts::{self, Mount};
use super::names::{is_class, is_pod_root, is_stray};
use super::{PodRoot, children};
use crate::preflight::{self, Missing};

/// How deep below a mount's root kubelet's pod root is looked for: below `--cgroup-root /a/b` it is at the third level.
const DEPTH: usize = 3;

/// A pod root that was named.
pub(super) fn given(path: &Path) -> Result<PodRoot, Missing> {
    let mounts = mounts::visible();
    if mounts.is_empty() {
        return Err(Missing::Cgroup2);
    }
    let not = || Missing::NotCgroup2 { path: path.to_owned() };
    let real = path
        .canonicalize()
        .map_err(|error| Missing::NoPodRoot { path: path.to_owned(), reason: error.to_string() })?;
    if !preflight::is_cgroup2(&real) {
        return Err(not());
    }
    // Pods beside it would not be judged, and nothing would show it.
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let above = real.parent().and_then(name);
    if name(&real).is_some_and(|name| is_class(&name))
        || above.is_some_and(|name| is_class(&name) || is_pod_root(&name))
    {
        return Err(Missing::PartOfPodRoot { path: path.to_owned() });
    }
    at(mounts::of(&mounts, &real).ok_or_else(not)?, real)
}

/// Kubelet's, wherever it is.
pub(super) fn search() -> Result<PodRoot, Missing> {
    let mounts = mounts::visible();
    let top = highest(&mounts);
    let Some(first) = top.first() else { return Err(Missing::Cgroup2) };
    let found = candidates(&top);
    match &found.roots[..] {
        [] if first.root_id().ok() == Some(1) => Err(Missing::PodRoot { path: first.point.clone() }),
        [] => Err(Missing::CgroupNamespace { path: first.point.clone() }),
        [(mount, path)] => at(mount, path.clone()),
        several => match &several.iter().filter(|(_, path)| has_pods(path)).collect::<Vec<_>>()[..] {
            // What another driver left has no processes. Should it get some, `elsewhere` tells.
            [(mount, path)] if several.iter().all(|(_, other)| other == path || !is_populated(other)) => {
                at(mount, path.clone())
            }
            _ => Err(Missing::PodRoots { paths: several.iter().map(|(_, path)| path.clone()).collect() }),
        },
    }
}

/// Where processes of pods run besides `root`.
pub(super) fn elsewhere(root: &PodRoot) -> Vec<PathBuf> {
    let mounts = mounts::visible();
    let Candidates { roots, strays } = candidates(&highest(&mounts));
    let ours = |path: &Path| fs::metadata(path).is_ok_and(|at| at.ino() == root.id);
    let others = roots.into_iter().map(|(_, path)| path).chain(strays);
    others.filter(|path| !ours(path) && is_populated(path)).collect()
}

/// The mounts that show most: those whose root is nearest to the real one. What is mounted from further below (as a container's own
/// cgroup is in it) is in them, too.
fn highest(mounts: &[Mount]) -> Vec<&Mount> {
    let least = mounts.iter().map(|mount| mount.depth).min();
    mounts.iter().filter(|mount| Some(mount.depth) == least).collect()
}

/// What looks like kubelet's.
#[derive(Default)]
struct Candidates<'m> {
    /// Each cgroup once, with a mount where it is seen.
    roots: Vec<(&'m Mount, PathBuf)>,
    strays: Vec<PathBuf>,
}

fn candidates<'m>(mounts: &[&'m Mount]) -> Candidates<'m> {
    let mut all = Candidates::default();
    let mut seen = Vec::new();
    for mount in mounts {
        let mut found = Found::default();
        look(&mount.point, DEPTH, &mut found);
        for (path, id) in found.roots {
            if !seen.contains(&id) {
                seen.push(id);
                all.roots.push((mount, path));
            }
        }
        all.strays.extend(found.strays);
    }
    all
}

#[derive(Debug, Default)]
struct Found {
    roots: Vec<(PathBuf, u64)>,
    strays: Vec<PathBuf>,
}

/// Collects what kubelet may have named as its pod root, down to `depth` levels below `dir`.
fn look(dir: &Path, depth: usize, found: &mut Found) {
    for (name, path, id) in children(dir).unwrap_or_default() {
        if is_pod_root(&name) {
            found.roots.push((path, id));
        } else if is_stray(&name) {
            found.strays.push(path);
        } else if depth > 1 {
            look(&path, depth - 1, found);
        }
    }
}

/// Whether any process is in a cgroup or below it.
fn is_populated(path: &Path) -> bool {
    // What cannot be read may have some.
    fs::read_to_string(path.join("cgroup.events")).map_or(true, |text| text.contains("populated 1"))
}

/// Whether it has pods that kubelet made and that run.
fn has_pods(path: &Path) -> bool {
    let id = fs::metadata(path).map_or(0, |at| at.ino());
    let root = PodRoot { path: path.to_owned(), level: 0, id };
    is_populated(path) && root.scan().is_ok_and(|scan| scan.pods.iter().any(|pod| is_populated(&pod.path)))
}

/// The pod root at a path below a mount.
fn at(mount: &Mount, path: PathBuf) -> Result<PodRoot, Missing> {
    let id = fs::metadata(&path).map_err(|_| Missing::NotCgroup2 { path: path.clone() })?.ino();
    let below = path.strip_prefix(&mount.point).map_or(0, |rest| rest.components().count());
    let top = mount.root_id().map_err(|_| Missing::NotCgroup2 { path: mount.point.clone() })?;
    // The root of every kernfs hierarchy has inode 1; another one is a cgroup namespace's root or a bind mount, and
    // levels counted from there would not be the kernel's.
    let level = if top == 1 {
        u32::try_from(below).map_err(|error| error.to_string())
    } else {
        let depth = mount.depth + i64::try_from(below).unwrap_or(0);
        let told = Own::ask().and_then(|own| own.level(mount.depth, top).and_then(|_| own.level(depth, id)));
        told.map_err(|error| error.to_string())
    };
    match level {
        Ok(level) => Ok(PodRoot { path, level, id }),
        Err(reason) => Err(Missing::Level { path, reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, look};

    #[test]
    fn every_candidate_for_the_pod_root_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "kubepods",
            "kubepods.slice/kubepods-burstable.slice",
            "kubelet.slice/kubelet-kubepods.slice",
            "kubelet/kubepods",
            "podruntime/docker/kubepods",
            "system.slice/containerd.service/kubepods-pod5c8e.slice:cri-containerd:0123",
            "a/b/c/kubepods",
            "x/y",
        ] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let mut found = Found::default();
        look(dir.path(), super::DEPTH, &mut found);
        let names = [
            "kubelet/kubepods",
            "kubelet.slice/kubelet-kubepods.slice",
            "kubepods",
            "kubepods.slice",
            "podruntime/docker/kubepods",
        ];
        let roots: Vec<_> = found.roots.into_iter().map(|(path, _)| path).collect();
        assert_eq!(roots, names.map(|name| dir.path().join(name)));
        assert_eq!(found.strays.len(), 1);
    }
}
