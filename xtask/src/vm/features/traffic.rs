//! What programs see of real packets: tried with a pod, in the topology of the tests.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context as _;
use aya_obj::generated::bpf_attach_type::*;
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_SK_STORAGE};
use aya_obj::generated::bpf_prog_type::{BPF_PROG_TYPE_CGROUP_SKB, BPF_PROG_TYPE_SCHED_CLS};
use egress_topology::{Container, Exec, OUTSIDE_V4, Options, PodSpec, Topology, mount_bpffs};

use super::Table;
use super::bpf::{self, MapKind, Target, Try};
use super::code::{self, Socket};
use super::hooks::storage_map;

/// The port of every server here.
const PORT: u16 = 9999;
const GROUP: &str = "behaviour";

/// Tries everything that needs packets.
pub(crate) fn traffic(probe: &Path, table: &mut Table<'_>) -> anyhow::Result<()> {
    for (name, kind, attach) in [
        ("BPF_PROG_TEST_RUN of cgroup_skb", BPF_PROG_TYPE_CGROUP_SKB, Some(BPF_CGROUP_INET_EGRESS)),
        ("BPF_PROG_TEST_RUN of sched_cls", BPF_PROG_TYPE_SCHED_CLS, None),
    ] {
        table.tell(GROUP, name, test_run(kind, attach))?;
    }
    let options = Options { prefix: "egress-features".to_owned(), ..Options::default() };
    let topology = Topology::with_options(probe, options).context("no topology")?;
    let pod = topology.add_pod(PodSpec::new("default", "features"))?;
    let container = pod.add_container("app")?;
    table.tell(GROUP, "SYN-ACKs are seen by cgroup_skb/egress", syn_ack(&topology, &container))?;
    let clsact = at_veth(&topology, &container, Veth::Clsact);
    table.tell(GROUP, "socket storage of cgroup_skb is seen at the veth's host side, by clsact", clsact)?;
    let tcx = at_veth(&topology, &container, Veth::Tcx);
    table.tell(GROUP, "socket storage of cgroup_skb is seen at the veth's host side, by tcx", tcx)
}

/// Runs a program that returns one on an IPv4 header behind Ethernet's.
fn test_run(
    kind: aya_obj::generated::bpf_prog_type,
    attach: Option<aya_obj::generated::bpf_attach_type>,
) -> Try {
    let program = bpf::program(kind, attach, 0, &code::constant(1))?;
    let mut packet = [0_u8; 64];
    packet[12] = 8;
    packet[14] = 0x45;
    match bpf::test_run(&program, &packet)? {
        1 => Ok(()),
        other => Err(format!("it returned {other}")),
    }
}

fn counter() -> Try<OwnedFd> {
    bpf::map(&MapKind { kind: BPF_MAP_TYPE_ARRAY, key: 4, value: 8, entries: 1, flags: 0, types: None })
}

/// Whether anything was counted.
fn counted(counter: &OwnedFd) -> Try {
    if bpf::first(counter)? > 0 { Ok(()) } else { Err("none".to_owned()) }
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn words(error: anyhow::Error) -> String {
    format!("could not be tried: {error:#}")
}

/// Attaches to the container's cgroup.
fn attach(container: &Container, code: &[u64]) -> Try<OwnedFd> {
    let program = bpf::program(BPF_PROG_TYPE_CGROUP_SKB, Some(BPF_CGROUP_INET_EGRESS), 0, code)?;
    let cgroup = File::open(container.cgroup()).map_err(|error| error.to_string())?;
    bpf::link(&program, &Target::File(&cgroup), BPF_CGROUP_INET_EGRESS)
}

/// A connection from outside to a server in the pod.
fn syn_ack(topology: &Topology, container: &Container) -> Try {
    let counter = counter()?;
    let _link = attach(container, &code::count_syn_acks(PORT, &counter))?;
    let connect = || -> anyhow::Result<()> {
        let _server = container.serve(&Exec::probe(["serve-echo", "--port", &PORT.to_string()]))?;
        let target = format!("{}:{PORT}", container.pod().v4());
        let attempt = topology.outside_attempt(&["tcp", &target])?;
        anyhow::ensure!(attempt.outcome == egress_probe::Outcome::Ok, "{attempt:?}");
        Ok(())
    };
    connect().map_err(words)?;
    counted(&counter)
}

/// Ways to run a program where packets come out of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Veth {
    Clsact,
    Tcx,
}

/// The cgroup's program gives a socket storage; one at the veth counts the packets whose socket has it.
fn at_veth(topology: &Topology, container: &Container, way: Veth) -> Try {
    let (counter, storage) = (counter()?, storage_map(BPF_MAP_TYPE_SK_STORAGE)?);
    let _link = attach(container, &code::storage(Socket::Packet, &storage, true, None, 1))?;
    let code = code::storage(Socket::Packet, &storage, false, Some(&counter), 0);
    let program = bpf::program(BPF_PROG_TYPE_SCHED_CLS, None, 0, &code)?;
    let interface = container.pod().host_interface().ok_or("no veth")?;
    let node = topology.node();
    let _tcx = if way == Veth::Tcx {
        let index = node.interface_index(interface).map_err(words)?;
        let link = node.run(|| Ok(bpf::link(&program, &Target::Interface(index), BPF_TCX_INGRESS)));
        Some(link.map_err(words)??)
    } else {
        clsact(topology, interface, &program).map_err(words)?;
        None
    };
    let send = || -> anyhow::Result<()> {
        let _server = topology.outside_serve(&Exec::probe(["serve-udp", "--port", &PORT.to_string()]))?;
        let attempt = container.attempt(&["udp", &format!("{OUTSIDE_V4}:{PORT}")])?;
        anyhow::ensure!(attempt.outcome == egress_probe::Outcome::Ok, "{attempt:?}");
        Ok(())
    };
    let sent = send().map_err(words);
    if way == Veth::Clsact {
        node.command("tc", &["qdisc", "del", "dev", interface, "clsact"], "").map_err(words)?;
    }
    sent?;
    counted(&counter)
}

/// Attaches by `tc`, which finds the program by a pin.
fn clsact(topology: &Topology, interface: &str, program: &OwnedFd) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let bpffs = mount_bpffs(&directory.path().join("bpf"))?;
    let pin = bpffs.path().join("program");
    bpf::pin(program, &pin).map_err(anyhow::Error::msg)?;
    let pin = pin.to_string_lossy();
    let node = topology.node();
    node.command("tc", &["qdisc", "add", "dev", interface, "clsact"], "")?;
    let filter = ["filter", "add", "dev", interface, "ingress", "bpf", "direct-action", "pinned", &pin];
    node.command("tc", &filter, "").map(drop)
}
