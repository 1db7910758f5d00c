//! Where the loaded programs are run: a pod's cgroup, a network namespace with devices, pins of their own.

#![allow(clippy::allow_attributes, dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::{TestRun as _, TestRunOptions};
use egress_agent::datapath::Datapath;
use egress_common::wire::Approval;
use egress_common::{Hook, Owner, Socket};
use egress_topology::{CgroupDriver, CgroupRoot, MountPoint, Netns, PodRoot, Qos, cgroup_id, mount_bpffs};
use tempfile::TempDir;

/// What a program of the veth hook returns.
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;

/// Dropped in this order.
pub struct Stage {
    pub netns: Netns,
    /// Indexes of two devices of the namespace.
    pub devices: [u32; 2],
    root: PodRoot,
    cgroups: CgroupRoot,
    pub bpffs: MountPoint,
    _dir: TempDir,
}

impl Stage {
    pub fn new(name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test loads BPF: run it as root");
        let dir = tempfile::tempdir().unwrap();
        let bpffs = mount_bpffs(&dir.path().join("bpf")).unwrap();
        let cgroups = CgroupRoot::find_or_mount().unwrap();
        let root = PodRoot::create(&cgroups, "egress-test", CgroupDriver::Cgroupfs).unwrap();
        let netns = Netns::new(name).unwrap();
        netns.ip(&["link add v0 type veth peer name v1"]).unwrap();
        let devices = ["v0", "v1"].map(|name| netns.interface_index(name).unwrap());
        Self { netns, devices, root, cgroups, bpffs, _dir: dir }
    }

    /// Level of the pod root.
    pub fn level(&self) -> u32 {
        u32::try_from(ancestors(self.cgroups.path(), self.root.path()).len() - 1).unwrap()
    }

    /// Makes the cgroup of a container of a Burstable pod; its pod's is the one above.
    pub fn container(&self, uid: &str, container: &str) -> PathBuf {
        let pod = self.root.pod_directory(Qos::Burstable, uid);
        let container = self.root.container_directory(&pod, container);
        fs::create_dir_all(&container).unwrap();
        container
    }

    /// The sender as the kernel makes it up for a process in this cgroup.
    pub fn sender(&self, cgroup: &Path) -> Sender {
        Sender { ancestors: ancestors(self.cgroups.path(), cgroup), socket: Socket::Inet }
    }

    /// Moves this process into a cgroup until the answer is dropped.
    pub fn enter(&self, cgroup: &Path) -> Inside {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        Inside { back: self.cgroups.path().join(own) }
    }
}

/// Ids of a cgroup and all above it, from the root on.
fn ancestors(mount: &Path, path: &Path) -> Vec<u64> {
    let below = path.strip_prefix(mount).unwrap();
    let mut at = mount.to_owned();
    let mut ids = vec![cgroup_id(&at).unwrap()];
    for part in below {
        at.push(part);
        ids.push(cgroup_id(&at).unwrap());
    }
    ids
}

/// Cgroup ids by level, and the kind of socket.
#[derive(Clone, Debug)]
pub struct Sender {
    ancestors: Vec<u64>,
    socket: Socket,
}

impl Sender {
    /// The socket that a frame of this type is given (`bpf_prog_test_run_skb`): of the family that the type says and of no
    /// kind, of no family where it is not IP.
    pub fn of(&self, ethertype: u16) -> Self {
        let socket = if matches!(ethertype, 0x0800 | 0x86dd) { Socket::Inet } else { Socket::Packet };
        Self { socket, ..self.clone() }
    }

    /// The cgroup below the one of this pod, which is one level or two below the root of pods; 0 where it is another pod's.
    pub fn container_in(&self, pod: u64, root: u32) -> u64 {
        let at = self.ancestors.iter().rposition(|cgroup| *cgroup == pod && pod != 0);
        let at = at.and_then(|at| u32::try_from(at).ok()).filter(|at| [root + 1, root + 2].contains(at));
        at.map_or(0, |at| self.cgroup(at + 1))
    }
}

impl Owner for Sender {
    fn cgroup(&self, level: u32) -> u64 {
        self.ancestors.get(level as usize).copied().unwrap_or(0)
    }

    fn socket(&self) -> Socket {
        self.socket
    }

    fn approval(&self) -> Option<&Approval> {
        None
    }
}

/// Brings this process back when dropped.
pub struct Inside {
    back: PathBuf,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = fs::write(self.back.join("cgroup.procs"), "0");
    }
}

/// Runs a loaded program on a packet; whether it passes.
pub fn passes(
    datapath: &mut Datapath,
    hook: Hook,
    ethertype: u16,
    ifindex: u32,
    packet: &[u8],
    times: u32,
) -> bool {
    // `struct __sk_buff` up to `ifindex`, the eleventh of its words. Of the fields before it the kernel lets us set no others
    // that a verdict depends on; loopback, which it takes by itself, must be left out.
    let mut context = [0u8; 44];
    if ifindex > 1 {
        context[40..].copy_from_slice(&ifindex.to_ne_bytes());
    }
    let frame = [&[0; 12], &ethertype.to_be_bytes()[..], packet].concat();
    let options = TestRunOptions {
        data_in: Some(&frame),
        ctx_in: Some(&context),
        repeat: times,
        ..TestRunOptions::new()
    };
    let result = match hook {
        Hook::Socket => datapath.socket_program().unwrap().test_run(options),
        Hook::Veth => datapath.veth_program().unwrap().test_run(options),
        Hook::Connect => panic!("which sees no packets"),
    };
    match (hook, result.unwrap().return_value) {
        (Hook::Socket, 1) | (Hook::Veth, PASS) => true,
        (Hook::Socket, 0) | (Hook::Veth, DROP) => false,
        (hook, other) => panic!("{hook:?} returned {other}"),
    }
}
