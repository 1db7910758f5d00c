//! Mounts in a namespace of our own are seen by our processes and by nobody else, and go with us. Needs root.

#![expect(clippy::unwrap_used, reason = "test code")]

mod common;

use std::fs;
use std::time::Duration;

use egress_topology::{CgroupDriver, Exec, PodSpec, mount_bpffs, mount_cgroup2, private_mount_namespace};

fn main() {
    private_mount_namespace().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (bpf, cgroup) = (directory.path().join("bpf"), directory.path().join("cgroup"));
    let bpffs = mount_bpffs(&bpf).unwrap();
    let cgroup2 = mount_cgroup2(&cgroup).unwrap();
    assert!(cgroup2.path().join("cgroup.procs").exists());
    fs::create_dir(bpffs.path().join("pins")).unwrap();

    let topology = common::topology("egress-test-mounts", CgroupDriver::Systemd);
    let container = topology.add_pod(PodSpec::new("default", "a")).unwrap().add_container("app").unwrap();
    let table =
        |program: Exec| container.spawn(&program).unwrap().finish(Duration::from_secs(5)).unwrap().stdout;
    let ours = table(Exec::new("/bin/cat", ["/proc/self/mountinfo"]));
    for path in [&bpf, &cgroup] {
        let path = path.to_str().unwrap();
        assert!(ours.contains(path), "our processes see {path}");
        let theirs =
            fs::read_to_string(format!("/proc/{}/mountinfo", std::os::unix::process::parent_id())).unwrap();
        assert!(!theirs.contains(path), "nobody else sees {path}");
    }
    assert!(private_mount_namespace().is_err(), "by now there are threads");
    drop((bpffs, cgroup2));
    assert!(!bpf.join("pins").exists());
    println!("mounts: ok");
}
