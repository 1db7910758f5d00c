//! What a node may lack: one sentence, exit code 77, and nothing half attached.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use egress_topology::{Capabilities, CgroupDriver, CgroupRoot, Exec};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use common::Stand;

#[track_caller]
fn missing(code: Option<i32>, stderr: &str, what: &str, how: &str) {
    assert_eq!(code, Some(77), "{stderr}");
    let line = stderr.trim();
    assert_eq!(line.lines().count(), 1, "one sentence: {stderr}");
    assert!(line.contains(what) && line.contains(how), "{stderr}");
}

/// Runs the agent on a stand, with other arguments and capabilities.
fn run(stand: &Stand, change: impl Fn(Exec) -> Exec) -> (Option<i32>, String) {
    let exec = change(stand.agent.run(&stand.topology));
    let finished =
        stand.topology.node_exec(&exec).unwrap().finish(std::time::Duration::from_secs(10)).unwrap();
    assert!(stand.agent.pins().unwrap().is_empty(), "nothing is pinned");
    (finished.status.code(), finished.stderr)
}

#[test]
fn a_missing_bpffs_is_named() {
    let stand = Stand::new(CgroupDriver::Systemd);
    let dir = tempfile::tempdir().unwrap();
    let root = stand.topology.pod_root().path().to_str().unwrap().to_owned();
    let output = agent(&["--bpffs", dir.path().to_str().unwrap(), "--pod-root", &root], |command| command);
    missing(output.status.code(), &String::from_utf8_lossy(&output.stderr), "is not a bpffs", "mount -t bpf");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made there");
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none_and_left_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        set -e
        "$AGENT" mount-bpffs --bpffs "$DIR"
        mkdir "$DIR/kept"
        "$AGENT" mount-bpffs --bpffs "$DIR"
        echo "$(stat --file-system --format %T "$DIR") $(stat --format %a "$DIR") $(ls -d "$DIR/kept")"
        grep -c " $DIR bpf " /proc/self/mounts
        "$AGENT" mount-bpffs --bpffs "$DIR/none" || echo "code $?"
    "#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).env("AGENT", common::agent_binary()).env("DIR", dir.path());
    // SAFETY: system calls only.
    let output = unsafe { shell.pre_exec(private) }.output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let kept = format!("bpf_fs 1700 {}/kept", dir.path().display());
    assert_eq!(said.lines().collect::<Vec<_>>(), [kept.as_str(), "1", "code 1"], "{errors}");
    assert!(errors.contains("cannot mount a bpffs at"), "{errors}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it was mounted in that namespace alone");
}

#[test]
fn missing_capabilities_are_named() {
    let stand = Stand::new(CgroupDriver::Systemd);
    let (code, stderr) = run(&stand, |exec| exec.capabilities(Capabilities::RUNTIME_DEFAULT));
    missing(code, &stderr, "CAP_BPF", "run as root");
    let (code, stderr) =
        run(&stand, |exec| exec.capabilities(Capabilities::ALL.without(Capabilities::NET_ADMIN)));
    missing(code, &stderr, "CAP_NET_ADMIN", "run as root");
}

/// Runs the agent with an empty source in a mount namespace of its own, changed by `prepare`.
fn agent(arguments: &[&str], prepare: impl FnOnce(&mut Command) -> &mut Command) -> Output {
    let source = tempfile::tempdir().unwrap();
    let socket = source.path().join("s");
    let mut command = Command::new(common::agent_binary());
    command.args([
        "run",
        "--source",
        &format!("file:{}", source.path().display()),
        "--socket",
        socket.to_str().unwrap(),
    ]);
    prepare(command.args(arguments)).output().unwrap()
}

/// In the child, before it starts: a mount namespace whose changes stay in it.
fn private() -> std::io::Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?)
}

#[test]
fn missing_type_information_is_named() {
    let output = agent(&[], |command| {
        // SAFETY: system calls only.
        unsafe {
            command.pre_exec(|| {
                private()?;
                let none: Option<&str> = None;
                Ok(mount(Some("tmpfs"), "/sys/kernel/btf", Some("tmpfs"), MsFlags::empty(), none)?)
            })
        }
    });
    missing(
        output.status.code(),
        &String::from_utf8_lossy(&output.stderr),
        "/sys/kernel/btf/vmlinux",
        "CONFIG_DEBUG_INFO_BTF",
    );
}

#[test]
fn a_missing_cgroup_v2_hierarchy_is_named() {
    let root = CgroupRoot::find_or_mount().unwrap();
    let path = root.path().to_owned();
    let output = agent(&[], move |command| {
        // SAFETY: system calls only.
        unsafe {
            command.pre_exec(move || {
                private()?;
                while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
                Ok(())
            })
        }
    });
    missing(
        output.status.code(),
        &String::from_utf8_lossy(&output.stderr),
        "no cgroup v2 hierarchy",
        "mount -t cgroup2",
    );
}

#[test]
fn a_pod_root_elsewhere_is_named() {
    for (path, what) in [("/tmp", "not in a cgroup v2 hierarchy"), ("/nonexistent", "cannot be seen")] {
        let output = agent(&["--pod-root", path], |command| command);
        missing(output.status.code(), &String::from_utf8_lossy(&output.stderr), what, "--pod-root");
    }
}

#[test]
fn a_part_of_the_pod_root_is_refused() {
    let stand = Stand::new(CgroupDriver::Systemd);
    let pod = stand.pod(egress_topology::PodSpec::new("a", "pod"));
    for part in [pod.pod().cgroup(), pod.pod().cgroup().parent().unwrap()] {
        let output = agent(&["--pod-root", part.to_str().unwrap()], |command| command);
        missing(
            output.status.code(),
            &String::from_utf8_lossy(&output.stderr),
            "would not be judged",
            "--pod-root",
        );
    }
}

#[test]
fn a_source_that_is_not_there_attaches_nothing() {
    let stand = Stand::new(CgroupDriver::Systemd);
    std::fs::remove_dir(stand.agent.objects()).unwrap();
    let (code, stderr) = run(&stand, |exec| exec);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("source directory"), "{stderr}");
    common::passes(&stand.pod(egress_topology::PodSpec::new("a", "pod")), &common::outside()[0]);
}
