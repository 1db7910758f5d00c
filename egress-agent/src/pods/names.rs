//! What kubelet and the runtimes call the cgroups of pods and containers.
//!
//! Invariant: a name that is not surely of this form is nobody's. Tested below.

/// The pod's UID in a cgroup name of kubelet: `pod<uid>` (cgroupfs driver) or `kubepods[-<qos>]-pod<uid>.slice` with `_`
/// for `-` (systemd driver; systemd's own escape `\x2d` means the same). For static pods it is the hash of their manifest.
///
/// Source: `k8s.io/kubernetes/pkg/kubelet/cm/pod_container_manager_linux.go` and `cgroup_manager_linux.go`.
pub(super) fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once('-')?.1.strip_prefix("pod")?.replace("\\x2d", "-").replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let plausible = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plausible.then_some(uid)
}

/// The container's id in a cgroup name of a runtime: 64 hexadecimal digits (cgroupfs driver), or those between a prefix and
/// `.scope` (systemd driver), as in `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`. What CRI-O's monitor
/// runs in (`crio-conmon-<id>.scope`) is no container. What a runtime makes below that, as crun its `container`, is part of it.
///
/// Source: `k8s.io/kubernetes/pkg/kubelet/cm/util` and the runtimes' cgroup paths.
pub(super) fn container_id(name: &str) -> Option<String> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    let id = match bare.rsplit_once('-') {
        Some(("cri-containerd" | "crio" | "docker", id)) => id,
        Some(_) => return None,
        None => bare,
    };
    let plausible = id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    plausible.then(|| id.to_owned())
}

/// Whether CRI-O names the cgroup of a container's monitor so, which it makes below the pod's where `conmon_cgroup` says `pod`. The monitor
/// is a process of the node.
///
/// Source: `internal/config/cgmgr` of CRI-O.
pub(crate) fn is_monitor(name: &str) -> bool {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    bare.strip_prefix("crio-conmon-").is_some_and(|id| container_id(id).is_some())
}

/// Whether kubelet may have named its pod root so: `kubepods`, below a cgroup root of its own where it was given one.
pub(super) fn is_pod_root(name: &str) -> bool {
    name == "kubepods.slice" || name == "kubepods" || name.ends_with("-kubepods.slice")
}

/// Whether kubelet names a QoS class so, within its pod root (Guaranteed pods have none).
pub(super) fn is_class(name: &str) -> bool {
    ["burstable", "besteffort"]
        .iter()
        .any(|class| name == *class || name.ends_with(&format!("kubepods-{class}.slice")))
}

/// Whether a runtime with the cgroupfs driver was told a pod's cgroup in the words of the systemd driver (`SLICE:PREFIX:ID`), and
/// has made a directory of that name somewhere.
pub(super) fn is_stray(name: &str) -> bool {
    let mut words = name.split(':');
    let slice = words.next().and_then(|slice| slice.strip_suffix(".slice"));
    slice.is_some_and(|slice| slice.contains("kubepods")) && words.count() == 2
}

#[cfg(test)]
mod tests {
    use super::{container_id, is_class, is_monitor, is_pod_root, is_stray, pod_uid};

    #[test]
    fn kubelets_names_give_the_uid() {
        let uid = Some("0f3a1c52-7d0e-4b43-9c55-000000000001".to_owned());
        assert_eq!(pod_uid("pod0f3a1c52-7d0e-4b43-9c55-000000000001"), uid);
        assert_eq!(pod_uid("kubepods-burstable-pod0f3a1c52_7d0e_4b43_9c55_000000000001.slice"), uid);
        assert_eq!(pod_uid("kubepods-pod0f3a1c52_7d0e_4b43_9c55_000000000001.slice"), uid);
        assert_eq!(
            pod_uid("kubepods-pod0f3a1c52\\x2d7d0e\\x2d4b43\\x2d9c55\\x2d000000000001.slice"),
            uid,
            "escaped as systemd does"
        );
        assert_eq!(pod_uid("kubelet-kubepods-besteffort-pod5c8e.slice"), Some("5c8e".to_owned()));
        assert_eq!(pod_uid("my_root-kubepods-pod5c8e.slice"), Some("5c8e".to_owned()));
    }

    #[test]
    fn runtimes_names_give_the_containers_id() {
        let id = "0123456789abcdef".repeat(4);
        for name in ["cri-containerd-ID.scope", "crio-ID.scope", "docker-ID.scope", "ID", "crio-ID"] {
            assert_eq!(container_id(&name.replace("ID", &id)), Some(id.clone()), "{name}");
        }
        for name in
            ["crio-conmon-ID.scope", "x-ID.scope", "IDa", "init.scope", "cri-containerd-.scope", "container"]
        {
            assert_eq!(container_id(&name.replace("ID", &id)), None, "{name}");
        }
        for (name, monitors) in
            [("crio-conmon-ID.scope", true), ("crio-conmon-ID", true), ("crio-ID", false), ("ID", false)]
        {
            assert_eq!(is_monitor(&name.replace("ID", &id)), monitors, "{name}");
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
            "kubepods-pod\\x2f.slice",
            "x.scope",
        ] {
            assert_eq!(pod_uid(name), None, "{name}");
        }
    }

    #[test]
    fn classes_are_within_pod_roots() {
        for name in
            ["burstable", "besteffort", "kubepods-burstable.slice", "kubelet-kubepods-besteffort.slice"]
        {
            assert!(is_class(name) && !is_pod_root(name), "{name}");
        }
        for name in ["kubepods", "kubepods.slice", "guaranteed", "kubelet-kubepods.slice", "burstable.slice"]
        {
            assert!(!is_class(name), "{name}");
        }
    }

    #[test]
    fn pod_roots_have_names_of_their_own() {
        for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice", "a-b-kubepods.slice"] {
            assert!(is_pod_root(name), "{name}");
        }
        for name in ["kubepods-burstable.slice", "kubelet.slice", "mykubepods", "kubepods.scope"] {
            assert!(!is_pod_root(name), "{name}");
        }
    }

    #[test]
    fn what_two_drivers_misunderstood_is_seen() {
        assert!(is_stray("kubepods-burstable-pod5c8e.slice:cri-containerd:0123"));
        assert!(is_stray("kubelet-kubepods-pod5c8e.slice:crio:0123"));
        for name in
            ["kubepods-burstable-pod5c8e.slice", "a:b:c", "system.slice:docker:0123", "kubepods.slice:x"]
        {
            assert!(!is_stray(name), "{name}");
        }
    }
}
