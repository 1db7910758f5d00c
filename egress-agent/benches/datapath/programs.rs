//! Programs by themselves: nanoseconds of a run, by `BPF_PROG_TEST_RUN` on one CPU.
//!
//! The kernel makes one socket for each call, in the cgroup of this process, which is moved into the pod for the time. So the
//! runs of one call are packets of one socket. A packet that begins a connection is judged afresh in every run; what a socket's
//! one packet costs, with caches as the call leaves them, is measured by a call for each, less that of an empty program called
//! the same way.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, ensure};
use aya::maps::{MapData, RingBuf};
use egress_agent::datapath::Datapath;
use egress_agent::network::Connection;
use egress_agent::pods::PodRoot;
use egress_policy::compile::{LocalContainer, LocalPod, Node, UnknownPods, compile};
use egress_policy::index::Index;
use egress_policy::object;
use egress_policy::plan::{State, diff};
use egress_topology::{Container, MountPoint, OUTSIDE_V4, Topology, cgroup_id};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::destinations::{Destinations, FORBIDDEN};
use crate::lpm::Baseline;
use crate::packet::{ACK, SYN, tcp};
use crate::record::{self, Record};
use crate::runs::{again, apart, with_events};
use crate::{Setting, objects, stand};

/// Destinations that take turns.
const VARIED: usize = 4_096;

/// Measures all programs at all sizes.
pub fn measure(setting: &Setting, sizes: &[usize]) -> anyhow::Result<()> {
    let (topology, container) = stand::node(setting)?;
    let netns = container.pod().netns().clone();
    let interface = netns.interface_index("eth0")?;
    let _inside = Inside::enter(topology.cgroup_root(), container.cgroup())?;
    // On a thread of its own, which alone stays on one CPU.
    netns.run(|| {
        stay_on_last_cpu()?;
        for &size in sizes {
            setting.check()?;
            eprintln!("    {size} destinations: programs by themselves");
            Bench::new(setting, &topology, &container, interface, size)?.measure(setting)?;
        }
        Ok(())
    })
}

fn stay_on_last_cpu() -> anyhow::Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    set.set(processors - 1)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot stay on one CPU")
}

/// Moves this process into a cgroup, and back when dropped.
struct Inside {
    back: PathBuf,
}

impl Inside {
    fn enter(mount: &Path, cgroup: &Path) -> anyhow::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
        fs::write(cgroup.join("cgroup.procs"), "0").context("cannot move into the pod's cgroup")?;
        Ok(Self { back: mount.join(own) })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // Else the pod's end would be ours.
        if let Err(error) = fs::write(self.back.join("cgroup.procs"), "0") {
            eprintln!("bench: cannot move back to {}: {error}", self.back.display());
        }
    }
}

/// What the maps should hold for the pod on this node.
fn desired(topology: &Topology, container: &Container, destinations: &Destinations) -> anyhow::Result<State> {
    let mut index = Index::of_node(topology.node_name());
    for value in objects::all(topology, destinations) {
        let reads = object::read(value).map_err(|error| anyhow!("an object cannot be read: {error}"))?;
        reads.into_iter().filter_map(object::Read::event).for_each(|event| drop(index.apply(event)));
    }
    let root = PodRoot::find(Some(topology.pod_root().path()))?;
    let pod = container.pod();
    let local = LocalContainer { name: container.name().to_owned(), cgroup: cgroup_id(container.cgroup())? };
    let pods = [LocalPod {
        uid: pod.uid().to_owned(),
        cgroup: cgroup_id(pod.cgroup())?,
        containers: vec![local],
        left: None,
    }];
    let node = Node {
        name: topology.node_name(),
        pod_root_level: root.level,
        unknown_pods: UnknownPods::DenyOutside,
        incomplete: false,
        pods: &pods,
    };
    let compiled = compile(&index, &node);
    ensure!(compiled.diagnostics.is_empty(), "{:?}", compiled.diagnostics);
    Ok(compiled.desired)
}

/// What is loaded at one size. Dropped in this order: the programs, then their pins.
struct Bench {
    size: usize,
    datapath: Datapath,
    events: RingBuf<MapData>,
    baseline: Baseline,
    /// `struct __sk_buff` up to `ifindex`, the eleventh of its words.
    context: [u8; 44],
    pod: Ipv4Addr,
    /// An address that is allowed by a prefix.
    in_prefix: Ipv4Addr,
    /// The first packets of flows to pods, which are known by their addresses.
    to_pods: Vec<Vec<u8>>,
    /// And to others, which are known by prefixes.
    to_others: Vec<Vec<u8>>,
    _bpffs: MountPoint,
}

/// A sample of a case.
struct Case {
    name: &'static str,
    /// Nanoseconds of a run.
    time: f64,
    /// Nanoseconds of the empty program, called the same way.
    floor: f64,
    passed: bool,
}

impl Bench {
    fn new(
        setting: &Setting,
        topology: &Topology,
        container: &Container,
        interface: u32,
        size: usize,
    ) -> anyhow::Result<Self> {
        let destinations = Destinations::new(size);
        let (_, bpffs) = setting.bpffs(&format!("programs-{size}"))?;
        let mut datapath = Datapath::open(bpffs.path())?;
        let events = datapath.take_events().context("no ring buffer")?;
        let plan = diff(&desired(topology, container, &destinations)?, datapath.observed());
        datapath.apply(&plan).map_err(|errors| anyhow!("the maps cannot be filled: {errors:?}"))?;
        let (pod, cgroup) = (container.pod(), cgroup_id(container.pod().cgroup())?);
        datapath.claim(interface, cgroup)?;
        // What came in, to be answered.
        let asked = Connection {
            local: SocketAddr::from((pod.v4(), 8080)),
            remote: SocketAddr::from((FORBIDDEN, 50_000)),
        };
        datapath.seen().stood(cgroup, &[asked], 0)?;
        let mut context = [0; 44];
        context[40..].copy_from_slice(&interface.to_ne_bytes());
        let pod = container.pod().v4();
        let begin = |to| tcp((pod, 40_000), (to, 443), SYN);
        let some = |count: usize| (count / VARIED).max(1);
        let pods = destinations.pods.iter().step_by(some(destinations.pods.len()));
        let to_pods = pods.map(|to| begin(*to)).collect();
        let others = destinations.outside.iter().step_by(some(destinations.outside.len()));
        let to_others = others.map(|(to, _)| begin(*to)).collect();
        let prefix = destinations.outside.iter().find(|(_, bits)| *bits < 32).context("no prefixes")?;
        let in_prefix = Ipv4Addr::from_bits(prefix.0.to_bits() + 1);
        let baseline = Baseline::load(&setting.baseline, &destinations)?;
        Ok(Self {
            size,
            datapath,
            events,
            baseline,
            context,
            pod,
            in_prefix,
            to_pods,
            to_others,
            _bpffs: bpffs,
        })
    }

    fn measure(&mut self, setting: &Setting) -> anyhow::Result<()> {
        let mut samples: Vec<Vec<Case>> = Vec::new();
        for _ in 0..setting.effort.samples {
            setting.check()?;
            samples.push(self.sample(setting)?);
        }
        let cases = samples.first().map_or(0, Vec::len);
        for case in 0..cases {
            let of: Vec<_> = samples.iter().filter_map(|sample| sample.get(case)).collect();
            let Some(Case { name, .. }) = of.first() else { continue };
            let times: Vec<f64> = of.iter().map(|case| case.time).collect();
            let above: Vec<f64> = of.iter().map(|case| case.time - case.floor).collect();
            let passed = of.iter().all(|case| case.passed);
            let (nanoseconds, above_empty) = (&times[..], &above[..]);
            record::print(&Record::Program {
                size: self.size,
                case: name,
                passed,
                nanoseconds,
                above_empty,
            })?;
        }
        Ok(())
    }

    /// Every case once.
    fn sample(&mut self, setting: &Setting) -> anyhow::Result<Vec<Case>> {
        let (repeat, first) = (setting.effort.repeat, setting.effort.first);
        let (pod, context) = ((self.pod, 40_000), &self.context);
        let outside = tcp(pod, (OUTSIDE_V4, 443), ACK);
        let begin = [tcp(pod, (OUTSIDE_V4, 443), SYN)];
        let begin_pod = self.to_pods.get(..1).context("no pods")?;
        let denied = tcp(pod, (FORBIDDEN, 443), SYN);
        let reply = tcp((self.pod, 8080), (FORBIDDEN, 50_000), ACK);

        let empty = self.baseline.socket_program("empty_socket")?;
        let (floor, _) = again(empty, &outside, context, repeat)?;
        let (floor_first, _) = apart(empty, &begin, context, first)?;
        let lpm = self.baseline.socket_program("plain_lpm")?;
        let plain = again(lpm, &outside, context, repeat)?;
        let plain_varied = apart(lpm, &self.to_others, context, first)?;
        let (floor_device, _) = again(self.baseline.device_program()?, &outside, context, repeat)?;

        let ours = self.datapath.socket_program()?;
        let established = again(ours, &outside, context, repeat)?;
        let to_other = apart(ours, &begin, context, first)?;
        let to_pod = apart(ours, begin_pod, context, first)?;
        // What begins a connection is judged afresh whatever is kept, so that one socket will do.
        let begin_prefix = tcp(pod, (self.in_prefix, 443), SYN);
        let again_other = again(ours, &begin[0], context, repeat)?;
        let again_pod = again(ours, &begin_pod[0], context, repeat)?;
        let again_prefix = again(ours, &begin_prefix, context, repeat)?;
        let to_others = apart(ours, &self.to_others, context, first)?;
        let to_pods = apart(ours, &self.to_pods, context, first)?;
        let passed = [
            plain,
            plain_varied,
            established,
            to_other,
            to_pod,
            to_others,
            to_pods,
            again_other,
            again_pod,
            again_prefix,
        ];
        ensure!(passed.iter().all(|run| run.1), "what is allowed does not pass: {passed:?}");
        let replies = [reply.clone()];
        let reply = again(ours, &reply, context, repeat)?;
        let first_reply = apart(ours, &replies, context, first)?;
        ensure!(reply.1 && first_reply.1, "a reply does not pass");
        let deny = with_events(ours, &denied, context, repeat, &mut self.events)?;
        ensure!(!deny.1, "what is not allowed passes");
        let at_veth = again(self.datapath.veth_program()?, &outside, context, repeat)?;
        let case = |name, run: (f64, bool), floor| Case { name, time: run.0, floor, passed: run.1 };
        Ok(vec![
            case("empty program", (floor, true), floor),
            case("empty program, called for each packet", (floor_first, true), floor_first),
            case("empty program of a device", (floor_device, true), floor_device),
            case("established", established, floor),
            case("first packet, to a pod", again_pod, floor),
            case("first packet, to an address outside", again_other, floor),
            case("first packet, to a prefix", again_prefix, floor),
            case("first packet of one socket, to a pod", to_pod, floor_first),
            case("first packet of one socket, to an address outside", to_other, floor_first),
            case("first packet of one socket, to many pods in turn", to_pods, floor_first),
            case("first packet of one socket, to many prefixes in turn", to_others, floor_first),
            case("reply", reply, floor),
            case("first reply of a socket", first_reply, floor_first),
            case("at the veth, without a socket's verdict", at_veth, floor_device),
            case("deny, with its event", deny, floor),
            case("plain LPM", plain, floor),
            case("plain LPM, many prefixes in turn", plain_varied, floor_first),
        ])
    }
}
