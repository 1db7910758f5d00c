//! Nodes in containers and agents in pods: cgroup namespaces of their own, and only parts of the hierarchy to be seen. Real agent, real
//! kernel.
//!
//! In each, the agent has to find the pod root and its level by itself: with a wrong one, pods would be unknown or not judged at all,
//! and of the pod under a policy, its twin, and the two addresses outside at least one would not be as it should.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Stand, denied, endpoints, eventually, outside, passes};
use egress_topology::{
    Capabilities, CgroupDriver, Container, ContainerKind, Exec, Options, PodSpec, Process, Qos, cgroup_id,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

/// A node whose kubelet has a cgroup root of its own or not.
fn node(driver: CgroupDriver, kubelet_root: Option<&str>) -> Stand {
    let kubelet_root = kubelet_root.map(str::to_owned);
    Stand::with(Options { prefix: "egress-test".to_owned(), driver, kubelet_root, ..Options::default() })
}

/// A program that gives what it starts a cgroup namespace and mounts of its own, prepared by these commands.
fn launcher(commands: &str) -> Vec<String> {
    let script = format!("set -e; {commands}; exec \"$@\"");
    ["unshare", "--mount", "--cgroup", "sh", "-c", &script, "sh"].map(str::to_owned).into()
}

/// Commands that mount the cgroup at `shown` at `at`, read-only, as a hostPath volume is, and at `/sys/fs/cgroup` only what a
/// container sees of its own.
fn volume(shown: &Path, at: &Path) -> String {
    let (shown, at) = (shown.display(), at.display());
    format!(
        "mkdir -p {at}; mount --bind {shown} {at}; mount -o remount,bind,ro {at}; {OWN_PART}; \
         ! mkdir {at}/x 2>/dev/null"
    )
}

/// Commands that leave only the container's own part of the hierarchy at `/sys/fs/cgroup`.
const OWN_PART: &str = "umount -lR /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; \
                        test $(stat -c %i /sys/fs/cgroup) != 1";

/// A container of a pod of the node's network, as a DaemonSet's.
fn agents_pod(stand: &Stand) -> Container {
    let spec = PodSpec::new("kube-system", "egress-enforcer").host_network().qos(Qos::Burstable);
    stand.pod(spec)
}

/// Locks a pod down to one of the two addresses outside; gives it and its twin.
fn pair(stand: &Stand) -> [Container; 2] {
    stand.lock_down(json!({"allow": {"to": [{"cidr": "198.51.100.10/32"}]}}));
    [stand.pod(PodSpec::new("a", "pod")), stand.pod(PodSpec::new("b", "twin").qos(Qos::Guaranteed))]
}

#[track_caller]
fn enforced(stand: &Stand, pod: &Container, twin: &Container) {
    passes(pod, &outside()[0]);
    denied(pod, &outside()[1]);
    for address in outside() {
        passes(twin, address);
    }
    let uid = pod.pod().uid();
    let known = endpoints(&stand.agent).into_iter().find(|endpoint| endpoint["uid"] == *uid).unwrap();
    assert_eq!(known["cgroup"], cgroup_id(pod.pod().cgroup()).unwrap());
}

/// Where the agent says its hooks are.
fn target(stand: &Stand) -> PathBuf {
    stand.agent.status().unwrap()["hooks"][0]["target"].as_str().unwrap().into()
}

#[test]
fn an_agent_in_a_pod_sees_the_whole_hierarchy_in_a_volume() {
    let mut stand = node(CgroupDriver::Systemd, None);
    let [pod, twin] = pair(&stand);
    let (shown, at) = (stand.topology.cgroup_root().to_owned(), stand.dir.path().join("cgroup"));
    // Other tests have pods on this machine, too.
    let root = at.join(stand.topology.pod_root().path().strip_prefix(&shown).unwrap());
    let words = ["--pod-root", root.to_str().unwrap()];
    stand.agent = stand.agent.finds_pod_root().launched_by(launcher(&volume(&shown, &at))).arguments(&words);
    let container = agents_pod(&stand);
    stand.agent.start_in(&stand.topology, &container).unwrap();
    assert_eq!(target(&stand), root);
    enforced(&stand, &pod, &twin);
    // What is born later is seen through the volume as well.
    let late = stand.pod(PodSpec::new("a", "late"));
    passes(&late, &outside()[0]);
    denied(&late, &outside()[1]);
}

#[test]
fn an_agent_in_a_pod_of_a_node_in_a_container_finds_the_pod_root() {
    for (driver, kubelet_root, wanted) in [
        (CgroupDriver::Systemd, Some("kubelet"), "kubelet.slice/kubelet-kubepods.slice"),
        (CgroupDriver::Cgroupfs, Some("kubelet"), "kubelet/kubepods"),
        (CgroupDriver::Systemd, None, "kubepods.slice"),
        (CgroupDriver::Cgroupfs, None, "kubepods"),
    ] {
        let mut stand = node(driver, kubelet_root);
        let [pod, twin] = pair(&stand);
        // What the node's container has as the root of its namespace.
        let (shown, at) = (stand.topology.pod_root().top().to_owned(), stand.dir.path().join("cgroup"));
        assert_ne!(cgroup_id(&shown).unwrap(), 1);
        stand.agent = stand.agent.finds_pod_root().launched_by(launcher(&volume(&shown, &at)));
        let container = agents_pod(&stand);
        stand.agent.start_in(&stand.topology, &container).unwrap();
        assert_eq!(target(&stand), at.join(wanted));
        enforced(&stand, &pod, &twin);
    }
}

/// The commands of a node in a container: its own cgroup is the root of the namespace that is made then.
fn entering(stand: &Stand, then: &str) -> Vec<String> {
    let top = stand.topology.pod_root().top().display().to_string();
    let inner = launcher(then).iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    ["sh", "-c", &format!("set -e; echo 0 > {top}/cgroup.procs; exec {inner} \"$@\""), "sh"]
        .map(str::to_owned)
        .into()
}

#[test]
fn an_agent_beside_kubelet_in_a_node_in_a_container_finds_the_pod_root() {
    let mut stand = node(CgroupDriver::Systemd, Some("kubelet"));
    let [pod, twin] = pair(&stand);
    let beside = "echo 0 > /sys/fs/cgroup/system.slice/node.scope/cgroup.procs";
    let words = entering(&stand, &format!("{OWN_PART}; {beside}"));
    stand.agent = stand.agent.finds_pod_root().launched_by(words);
    stand.start();
    assert_eq!(target(&stand), Path::new("/sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice"));
    enforced(&stand, &pod, &twin);
}

#[test]
fn a_part_of_the_hierarchy_that_is_beside_our_own_has_a_level_too() {
    let mut stand = node(CgroupDriver::Systemd, Some("kubelet"));
    let [pod, twin] = pair(&stand);
    let (shown, at) = (stand.topology.pod_root().path().parent().unwrap(), stand.dir.path().join("cgroup"));
    let launcher = launcher(&volume(shown, &at));
    stand.agent = stand.agent.finds_pod_root().launched_by(launcher);
    // Its own mount of its own cgroup shows no more than the volume, and both are looked through.
    stand.start();
    assert_eq!(target(&stand), at.join("kubelet-kubepods.slice"));
    enforced(&stand, &pod, &twin);
}

#[test]
fn the_level_needs_no_more_capabilities_than_the_hooks() {
    let mut stand = node(CgroupDriver::Systemd, Some("kubelet"));
    let [pod, twin] = pair(&stand);
    let at = stand.dir.path().join("cgroup");
    let _volume = bind(stand.topology.pod_root().top(), &at);
    let root = at.join("kubelet.slice/kubelet-kubepods.slice");
    stand.agent = stand.agent.finds_pod_root().arguments(&["--pod-root", root.to_str().unwrap()]);
    let few = Capabilities::BPF.with(Capabilities::PERFMON).with(Capabilities::NET_ADMIN);
    let exec = stand.agent.run(&stand.topology).capabilities(few);
    let _process = stand.topology.node_exec(&exec).unwrap();
    eventually("it is ready", || stand.agent.status().is_some_and(|status| status["ready"] == true));
    assert_eq!(target(&stand), root);
    enforced(&stand, &pod, &twin);
}

/// Shows a directory at another place, until it is dropped.
fn bind(shown: &Path, at: &Path) -> Unmount {
    let none: Option<&str> = None;
    fs::create_dir(at).unwrap();
    mount(Some(shown), at, none, MsFlags::MS_BIND, none).unwrap();
    Unmount(at.to_owned())
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// What the agent says before it ends because the node lacks something.
fn refused(stand: &Stand, container: &Container) -> String {
    let exec = stand.agent.run(&stand.topology).capabilities(Capabilities::ALL);
    let finished = container.spawn(&exec).unwrap().finish(Duration::from_secs(10)).unwrap();
    assert_eq!(finished.status.code(), Some(77), "{finished:?}");
    assert_eq!(finished.stderr.trim().lines().count(), 1, "one sentence: {finished:?}");
    assert!(stand.agent.pins().unwrap().is_empty(), "nothing is pinned");
    finished.stderr
}

#[test]
fn an_agent_in_a_pod_without_the_nodes_hierarchy_says_so() {
    let mut stand = node(CgroupDriver::Systemd, None);
    stand.agent = stand.agent.finds_pod_root().launched_by(launcher(OWN_PART));
    let said = refused(&stand, &agents_pod(&stand));
    assert!(said.contains("/sys/fs/cgroup shows only a part") && said.contains("mount the node's"), "{said}");
}

#[test]
fn of_several_pod_roots_the_one_with_processes_counts_and_the_others_are_watched() {
    let mut stand = node(CgroupDriver::Systemd, None);
    let [pod, twin] = pair(&stand);
    let (shown, at) = (stand.topology.pod_root().top().to_owned(), stand.dir.path().join("cgroup"));
    stand.agent = stand.agent.finds_pod_root().launched_by(launcher(&volume(&shown, &at)));
    // What another driver left.
    let left = shown.join("kubepods/burstable/pod0c5e7b2e-0000-4000-8000-0000000000aa");
    fs::create_dir_all(&left).unwrap();
    let container = agents_pod(&stand);
    stand.agent.start_in(&stand.topology, &container).unwrap();
    assert_eq!(target(&stand), at.join("kubepods.slice"));
    enforced(&stand, &pod, &twin);
    // Something runs there.
    let start = |directory: &Path| -> Process {
        let process = stand.topology.node_exec(&Exec::new("sleep", ["60"])).unwrap();
        fs::write(directory.join("cgroup.procs"), process.id().to_string()).unwrap();
        process
    };
    let there = start(&left);
    let kept = |status: &serde_json::Value| status["pending"].as_array().unwrap().clone();
    eventually("it is not ready", || stand.agent.status().unwrap()["ready"] == false);
    let pending = kept(&stand.agent.status().unwrap());
    let name = at.join("kubepods").display().to_string();
    assert!(pending.iter().any(|one| one.as_str().unwrap().contains(&name)), "{pending:?}");
    enforced(&stand, &pod, &twin);
    there.kill().unwrap();
    eventually("it is ready again", || stand.agent.status().unwrap()["ready"] == true);
    // What a runtime with the other driver makes of a pod's cgroup.
    let stray = shown.join("system.slice/kubepods-pod5c8e.slice:cri-containerd:0123");
    fs::create_dir(&stray).unwrap();
    let there = start(&stray);
    eventually("it is not ready", || stand.agent.status().unwrap()["ready"] == false);
    there.kill().unwrap();
    // And at the start nobody can tell which one is meant.
    stand.agent.kill().unwrap();
    stand.agent.cleanup(&stand.topology).unwrap();
    let _there = start(&left);
    let said = refused(&stand, &container);
    assert!(said.contains("several cgroups may be") && said.contains(&name), "{said}");
}

#[test]
fn what_a_runtime_makes_below_a_container_is_the_containers() {
    let mut stand = node(CgroupDriver::Systemd, None);
    stand.lock_down(json!({
        "proxy": {"containers": ["istio-proxy"]}, "allow": {"to": [{"cidr": "198.51.100.10/32"}]},
    }));
    let app = stand.pod(PodSpec::new("a", "pod"));
    let proxy = app.pod().add_container_of_kind("istio-proxy", ContainerKind::Sidecar).unwrap();
    stand.write(common::pod_object(&stand, app.pod()));
    stand.start();
    // As crun does.
    for container in [&app, &proxy] {
        let below = container.cgroup().join("container");
        fs::create_dir(&below).unwrap();
        let mut process = container.spawn(&Exec::probe(["script"]).with_stdin()).unwrap();
        process.wait_ready(Duration::from_secs(5)).unwrap();
        fs::write(below.join("cgroup.procs"), process.id().to_string()).unwrap();
        let words = ["udp", &format!("{}:{}", outside()[0], common::UDP), "--timeout-ms", "1500"];
        let attempt = process.attempt(&words, Duration::from_secs(5)).unwrap();
        assert_eq!(attempt.succeeded(), container.name() == "istio-proxy", "{attempt:?}");
    }
}

#[test]
fn a_cgroup_namespace_is_what_these_tests_say() {
    // The kernel writes where a mount's root is as a path from the namespace's, which is what the agent counts by.
    let stand = node(CgroupDriver::Systemd, None);
    let (shown, at) = (stand.topology.pod_root().top().to_owned(), stand.dir.path().join("cgroup"));
    let words = launcher(&volume(&shown, &at));
    let exec = Exec::new(&words[0], &words[1..]).argument("cat").argument("/proc/self/mountinfo");
    let exec = exec.capabilities(Capabilities::ALL);
    let finished = agents_pod(&stand).spawn(&exec).unwrap().finish(Duration::from_secs(10)).unwrap();
    let roots: Vec<(&str, &str)> = finished
        .stdout
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .map(|line| line.split(' '))
        .map(|mut fields| (fields.nth(3).unwrap(), fields.next().unwrap()))
        .collect();
    // The container, the pod, its class, the pod root, and the node's own cgroup.
    assert!(roots.contains(&("/../../../..", at.to_str().unwrap())), "{roots:?}");
    assert!(roots.contains(&("/", "/sys/fs/cgroup")), "{roots:?}");
}

/// Processes of the node among those of pods, as runtimes have them: CRI-O's monitors, what is started for `kubectl exec`.
#[test]
fn a_process_of_the_node_among_a_pods_own_does_not_make_its_network_the_nodes() {
    let mut stand = node(CgroupDriver::Systemd, None);
    stand.lock_down(json!({}));
    let (pod, late) = (stand.pod(PodSpec::new("a", "pod")), stand.pod(PodSpec::new("a", "late")));
    let shares = stand.pod(PodSpec::new("a", "shares").host_network());
    let topology = stand.topology.clone();
    let put = |into: &Path| -> Process {
        let process = topology.node_exec(&Exec::new("/bin/sleep", ["300"])).unwrap();
        fs::create_dir_all(into).unwrap();
        fs::write(into.join("cgroup.procs"), process.id().to_string()).unwrap();
        process
    };
    let monitor = pod.pod().cgroup().join(format!("crio-conmon-{}.scope", "ab".repeat(32)));
    let mut among = vec![put(&monitor)];
    let coverage = |stand: &Stand, name: &str| {
        let known = endpoints(&stand.agent).into_iter().find(|one| one["name"] == name);
        known.map(|known| known["coverage"].as_str().unwrap().to_owned())
    };
    // One that nobody knows yet, with another process of the node's.
    let object = common::pod_object(&stand, late.pod());
    stand.remove(&object);
    among.push(put(late.cgroup()));
    stand.start();
    let both = Some(common::COVERED[0].to_owned());
    assert_eq!(coverage(&stand, "pod"), both);
    stand.write(object);
    eventually("what was taken for the node's is covered", || coverage(&stand, "late") == both);
    among.push(put(pod.cgroup()));
    among.push(put(shares.cgroup()));
    // A new pod has everything looked at once more.
    let new = stand.pod(PodSpec::new("a", "new"));
    eventually("the new one is covered", || coverage(&stand, "new") == both);
    std::thread::sleep(Duration::from_secs(6));
    for name in ["pod", "late", "new"] {
        assert_eq!(coverage(&stand, name), both, "{name}");
    }
    assert!(coverage(&stand, "shares").unwrap().starts_with(common::COVERED[1]));
    for one in [&pod, &late, &new] {
        outside().iter().for_each(|address| denied(one, address));
    }
    among.into_iter().for_each(|process| process.kill().unwrap());
    fs::remove_dir(monitor).unwrap();
}
