//! Where processes are, what they may, and that nothing is left behind. Needs root.

#![expect(clippy::unwrap_used, reason = "test code outside of #[test] functions too")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use egress_topology::{
    Capabilities, CgroupDriver, CgroupRoot, Exec, Netns, PodSpec, Protocol, Qos, Service, cgroup_id,
    kubernetes, sweep,
};

const SECONDS: Duration = Duration::from_secs(5);

/// The cgroup trees with this prefix.
fn trees(prefix: &str) -> Vec<PathBuf> {
    let root = CgroupRoot::find_or_mount().unwrap();
    let entries = std::fs::read_dir(root.path()).unwrap();
    let starts = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    entries.map(|entry| entry.unwrap().path()).filter(starts).collect()
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SECONDS;
    while !condition() {
        assert!(Instant::now() < end, "not within {SECONDS:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn processes_are_where_kubelet_would_put_them() {
    for driver in [CgroupDriver::Systemd, CgroupDriver::Cgroupfs] {
        let topology = common::topology("egress-test-cgroup", driver);
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let pod = topology.add_pod(PodSpec::new("default", qos.as_str()).qos(qos)).unwrap();
            let container = pod.add_container("app").unwrap();
            let cat = Exec::new("/bin/cat", ["/proc/self/cgroup"]);
            let text = container.spawn(&cat).unwrap().finish(SECONDS).unwrap().stdout;
            let found = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
            let (uid, id) = (pod.uid(), container.id());
            let flat = uid.replace('-', "_");
            let below = match (driver, qos) {
                (CgroupDriver::Systemd, Qos::Guaranteed) => {
                    format!("kubepods.slice/kubepods-pod{flat}.slice/cri-containerd-{id}.scope")
                }
                (CgroupDriver::Systemd, Qos::Burstable) => format!(
                    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{flat}.slice/cri-containerd-{id}.scope"
                ),
                (CgroupDriver::Systemd, Qos::BestEffort) => format!(
                    "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{flat}.slice/cri-containerd-{id}.scope"
                ),
                (CgroupDriver::Cgroupfs, Qos::Guaranteed) => format!("kubepods/pod{uid}/{id}"),
                (CgroupDriver::Cgroupfs, Qos::Burstable) => format!("kubepods/burstable/pod{uid}/{id}"),
                (CgroupDriver::Cgroupfs, Qos::BestEffort) => format!("kubepods/besteffort/pod{uid}/{id}"),
            };
            let top = topology.pod_root().top().file_name().unwrap().to_str().unwrap();
            assert_eq!(found, format!("/{top}/{below}"));
            assert!(cgroup_id(container.cgroup()).unwrap() > cgroup_id(pod.cgroup()).unwrap());
        }
    }
}

#[test]
fn containers_have_the_capabilities_and_the_user_they_ask_for() {
    let topology = common::topology("egress-test-caps", CgroupDriver::Systemd);
    let container = topology.add_pod(PodSpec::new("default", "a")).unwrap().add_container("app").unwrap();
    let status = |exec: Exec| container.spawn(&exec).unwrap().finish(SECONDS).unwrap().stdout;
    let cat = || Exec::new("/bin/cat", ["/proc/self/status"]);
    let has = |text: &str, line: &str| assert!(text.lines().any(|found| found == line), "{line} in {text}");
    let default = status(cat());
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        has(&default, &format!("{set}:\t00000000a80425fb"));
    }
    let admin = status(cat().capabilities(Capabilities::RUNTIME_DEFAULT.with(Capabilities::NET_ADMIN)));
    has(&admin, "CapEff:\t00000000a80435fb");
    let proxy = status(cat().user(1337));
    has(&proxy, "Uid:\t1337\t1337\t1337\t1337");
    has(&proxy, "Gid:\t1337\t1337\t1337\t1337");
    has(&proxy, "CapEff:\t0000000000000000");
    let ping = Exec::probe(["ping", "10.244.1.1"]).capabilities(Capabilities::NONE);
    let attempt: egress_probe::Attempt = container.spawn(&ping).unwrap().output_json(SECONDS).unwrap();
    assert_eq!(attempt.outcome, egress_probe::Outcome::Denied, "{attempt:?}");
}

#[test]
fn nothing_is_left_after_drop() {
    let prefix = "egress-test-drop";
    let topology = common::topology(prefix, CgroupDriver::Systemd);
    let (node, tree) = (topology.node().clone(), topology.pod_root().top().to_owned());
    let pod = topology.add_pod(PodSpec::new("default", "a")).unwrap();
    let container = pod.add_container("app").unwrap();
    let server = container.serve(&Exec::probe(["serve-udp", "--port", "7"])).unwrap();
    let grandchild = container.spawn(&Exec::new("/bin/sh", ["-c", "sleep 1000 & echo $!; wait"])).unwrap();
    let mut grandchild = grandchild;
    let orphan: u32 = grandchild.next_line(SECONDS).unwrap().unwrap().parse().unwrap();
    let on_node = topology.node_exec(&Exec::new("/bin/sleep", ["1000"])).unwrap();
    let pids = [server.id(), grandchild.id(), on_node.id()];
    let (interface, cgroup) = (pod.host_interface().unwrap().to_owned(), pod.cgroup().to_owned());
    assert!(node.interface_index(&interface).is_ok() && cgroup.is_dir());

    drop(grandchild);
    assert!(alive(orphan), "only the container's end ends a grandchild");
    drop((pod, container));
    assert!(node.interface_index(&interface).is_err() && !cgroup.exists());
    eventually("the orphan is gone", || !alive(orphan));
    let routes = node.ip_json(&["route", "show", "dev", "cni0"]).unwrap();
    assert!(!routes.to_string().contains("10.244.1.2"), "{routes}");

    drop(topology);
    assert!(!tree.exists());
    assert!(trees(prefix).is_empty());
    drop((server, on_node));
    assert!(pids.into_iter().all(|pid| !alive(pid)));
}

#[test]
fn addresses_are_used_again_after_removal() {
    let topology = common::topology("egress-test-again", CgroupDriver::Systemd);
    for round in 0..3 {
        let pod = topology.add_pod(PodSpec::new("default", &format!("a{round}")).index(9)).unwrap();
        assert!(topology.add_pod(PodSpec::new("default", "twice").index(9)).is_err());
        let target = [pod.v4().to_string(), pod.v6().to_string()];
        for target in target {
            assert!(topology.outside_attempt(&["ping", &target]).unwrap().succeeded(), "{round}: {target}");
        }
        pod.remove().unwrap();
        assert!(pod.is_removed() && topology.pods().is_empty());
    }
}

/// Run by the next test in a process of its own, which it kills.
#[test]
#[ignore = "run by everything_dies_with_its_owner"]
fn owner_that_is_killed() {
    let topology = common::topology("egress-test-killed", CgroupDriver::Systemd);
    let container = topology.add_pod(PodSpec::new("default", "a")).unwrap().add_container("app").unwrap();
    let server = container.serve(&Exec::probe(["serve-udp", "--port", "7"])).unwrap();
    let proxy = container.serve(&Exec::probe(["serve-udp", "--port", "7777"]).user(1337)).unwrap();
    let report = format!("{} {}\n", server.id(), proxy.id());
    fs::write(std::env::var_os("EGRESS_TEST_REPORT").unwrap(), report).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn everything_dies_with_its_owner() {
    let prefix = "egress-test-killed";
    let _probe = common::probe();
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("pid");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "owner_that_is_killed"])
        .env("EGRESS_TEST_REPORT", &report)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pids = || -> Option<Vec<u32>> {
        let text = fs::read_to_string(&report).ok()?;
        Some(text.strip_suffix('\n')?.split(' ').map(|pid| pid.parse().unwrap()).collect())
    };
    eventually("the owner reports", || pids().is_some());
    let servers = pids().unwrap();
    assert!(servers.iter().all(|pid| alive(*pid)) && trees(prefix).len() == 1);
    let root = CgroupRoot::find_or_mount().unwrap();
    assert!(sweep(&root, prefix).unwrap().is_empty(), "a living owner's tree stays");
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the servers are gone", || !servers.iter().any(|pid| alive(*pid)));
    assert_eq!(sweep(&root, prefix).unwrap().len(), 1);
    // A cgroup is removed only when no process is left in it.
    assert!(trees(prefix).is_empty());
}

/// As tests do that start at once after one that was killed.
#[test]
fn several_sweep_the_same() {
    let prefix = "egress-test-swept";
    let root = CgroupRoot::find_or_mount().unwrap();
    for round in 0..50 {
        // No process starts that late.
        let tree = root.path().join(format!("{prefix}-1-99999999999-{round}.slice"));
        for directory in ["", "kubepods", "kubepods/pod1", "kubepods/pod1/container", "kubepods/pod2"] {
            fs::create_dir(tree.join(directory)).unwrap();
        }
        std::thread::scope(|scope| {
            let sweeps: Vec<_> = (0..4).map(|_| scope.spawn(|| sweep(&root, prefix))).collect();
            for done in sweeps {
                done.join().unwrap().unwrap();
            }
        });
        assert!(trees(prefix).is_empty());
    }
}

#[test]
fn objects_describe_what_stands() {
    let topology = common::topology("egress-test-objects", CgroupDriver::Systemd);
    let pod = topology.add_pod(PodSpec::new("shop", "a").label("app", "a").qos(Qos::Burstable)).unwrap();
    let container = pod.add_container("app").unwrap();
    let host = topology.add_pod(PodSpec::new("kube-system", "host").host_network()).unwrap();
    assert!(host.is_host_network() && topology.istio_redirect(&host).is_err());
    let addresses = ["10.96.0.20".parse().unwrap(), "fd00:10:96::20".parse().unwrap()];
    let service = Service::new("shop", "web", &addresses).port(Protocol::Tcp, 80, 8080).backend(&pod);
    topology.set_services(&[service]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let objects = kubernetes::objects(&topology);
    kubernetes::write(directory.path(), &objects).unwrap();
    let mut names: Vec<String> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "endpointslice_shop_web-ipv4.yaml",
            "endpointslice_shop_web-ipv6.yaml",
            "namespace_kube-system.yaml",
            "namespace_shop.yaml",
            "node_node-1.yaml",
            "pod_kube-system_host.yaml",
            "pod_shop_a.yaml",
            "service_shop_web.yaml",
        ]
    );
    let text = fs::read_to_string(directory.path().join("pod_shop_a.yaml")).unwrap();
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        object["status"]["containerStatuses"][0]["containerID"],
        format!("containerd://{}", container.id())
    );
    assert_eq!(object["status"]["podIPs"][0]["ip"], pod.v4().to_string());
    assert_eq!(object["status"]["qosClass"], "Burstable");
    kubernetes::remove(directory.path(), &object).unwrap();
    assert!(!directory.path().join("pod_shop_a.yaml").exists());
}

#[test]
fn settings_and_errors_belong_to_their_namespace() {
    let (one, other) = (Netns::new("one").unwrap(), Netns::new("other").unwrap());
    one.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    assert_eq!(one.sysctl("net/ipv4/ip_forward").unwrap(), "1");
    assert_eq!(other.sysctl("net/ipv4/ip_forward").unwrap(), "0");
    let error = format!("{:#}", one.ip(&["link set lo up", "link set nothing up"]).unwrap_err());
    assert!(
        error.contains("in one: ip -batch") && error.contains("nothing") && error.contains("2  link"),
        "{error}"
    );
    let error = format!("{:#}", one.nft("nonsense").unwrap_err());
    assert!(error.contains("nft -f -") && error.contains("nonsense"), "{error}");
}
