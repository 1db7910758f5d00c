//! What the agent costs and how soon it acts, following an API server; run by `cargo xtask bench agent`.
//!
//! A real agent on a real kernel follows an API server of this process that has a whole cluster. What is measured of time is from
//! before the write to the API server to the first packet of a pod that feels it. Prints lines `measured PODS WHAT: VALUE`; progress
//! is on standard error.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "a program of its own, which nothing imports"
)]

mod cluster;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use egress_fixture::Fixture;
use egress_probe::{Attempt, Outcome};
use egress_topology::{
    Agent, Container, Exec, OUTSIDE_V4, Options, PodSpec, Process, Topology, kubernetes, mount_bpffs,
    private_mount_namespace,
};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Pods of the cluster.
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// The port outside.
const PORT: u16 = 9999;
/// How long the agent may take to read everything.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a change may take to be felt.
const FELT: Duration = Duration::from_secs(20);
/// Over which idle processor time is taken.
const IDLE: Duration = Duration::from_secs(10);
/// How often new changes are made while it is busy.
const CHURN: Duration = Duration::from_millis(10);

#[derive(Debug, Parser)]
struct Cli {
    /// The agent.
    #[arg(long)]
    agent: PathBuf,
    /// The probe that makes the packets.
    #[arg(long)]
    probe: PathBuf,
    /// Fewer samples.
    #[arg(long)]
    quick: bool,
    /// Pods of the cluster.
    #[arg(long, value_delimiter = ',', default_values_t = SIZES)]
    sizes: Vec<usize>,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // Ends with whoever started it, and what it made with it.
    set_pdeathsig(Signal::SIGTERM)?;
    private_mount_namespace()?;
    for pods in &cli.sizes {
        measure(&cli, *pods).with_context(|| format!("{pods} pods"))?;
    }
    Ok(())
}

/// A node in a cluster.
struct World {
    agent: Agent,
    talk: Process,
    pod: Container,
    /// Another one, which the cluster's lock-down means.
    meshed: Option<Container>,
    fixture: Fixture,
    _echo: Process,
    topology: Topology,
    _runtime: Runtime,
}

fn measure(cli: &Cli, pods: usize) -> anyhow::Result<()> {
    let tell = |what: &str, value: String| println!("measured {pods} {what}: {value}");
    eprintln!("    {pods} pods: making the cluster");
    let dir = TempDir::with_prefix("egress-bench-agent-")?;
    let bpffs = mount_bpffs(&dir.path().join("bpf"))?;
    let mut world = World::new(cli, pods, &dir, bpffs.path())?;
    eprintln!("    {pods} pods: starting the agent");
    let start = Instant::now();
    world.agent.start(&world.topology)?;
    tell("from the start to enforcing", milliseconds(start.elapsed()));
    let process = world.agent.id().context("the agent does not run")?;
    tell("memory, at most until then", mebibytes(memory(process, "VmHWM:")?));
    std::thread::sleep(Duration::from_secs(2));
    let before = processor(process)?;
    std::thread::sleep(IDLE);
    let idle = (processor(process)? - before).as_secs_f64() / IDLE.as_secs_f64();
    tell("processor when nothing happens", format!("{:.2} %", idle * 100.0));
    let samples = if cli.quick { 20 } else { 200 };
    eprintln!("    {pods} pods: changes");
    let mut first = world.changes(samples, false, World::lock_down)?;
    let block = |cidr: &str, except: &[String]| json!({"ipBlock": {"cidr": cidr, "except": except}});
    // Every pod's address is in the second one, and the address outside is in none.
    let (but_one, half) = (block("0.0.0.0/0", &[format!("{OUTSIDE_V4}/32")]), block("0.0.0.0/1", &[]));
    let mut but_one = world.changes(samples / 2, false, |world, deny| world.only(&but_one, deny))?;
    let mut half = world.changes(samples / 2, false, |world, deny| world.only(&half, deny))?;
    let all = json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]});
    let all = json!({"namespaceSelector": {}, "podSelector": all});
    let mut labels = world.changes(samples / 2, false, |world, deny| world.only(&all, deny))?;
    for (name, felt) in [
        ("first lock-down of the node", &mut first),
        ("policy for all addresses but one", &mut but_one),
        ("policy for half of all addresses", &mut half),
        ("policy for all pods by a label", &mut labels),
    ] {
        let [median, most] = percentiles(felt);
        tell(&format!("{name} to packet, median"), median);
        tell(&format!("{name} to packet, 99th percentile"), most);
    }
    world.lock_another_down()?;
    for (what, churn) in [("nothing else happens", false), ("100 pods a second change", true)] {
        let mut policy = world.changes(samples, churn, World::policy)?;
        let mut lock_down = world.changes(samples, churn, World::lock_down)?;
        let mut label = world.changes(samples, churn, World::label)?;
        for (name, felt) in
            [("network policy", &mut policy), ("lock-down", &mut lock_down), ("label of a pod", &mut label)]
        {
            let [median, most] = percentiles(felt);
            tell(&format!("{name} to packet, median, while {what}"), median);
            tell(&format!("{name} to packet, 99th percentile, while {what}"), most);
        }
    }
    tell("memory, at the end", mebibytes(memory(process, "VmRSS:")?));
    Ok(())
}

/// The median and the 99th percentile.
fn percentiles(felt: &mut [Duration]) -> [String; 2] {
    felt.sort();
    [50, 99].map(|percent| milliseconds(felt[(felt.len() * percent / 100).min(felt.len() - 1)]))
}

impl World {
    fn new(cli: &Cli, pods: usize, dir: &TempDir, bpffs: &std::path::Path) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let options = Options { prefix: "egress-bench".to_owned(), ..Options::default() };
        let topology = Topology::with_options(cli.probe.clone(), options)?;
        // Its sockets are the node's.
        let fixture = topology.node().run(|| {
            let _context = runtime.enter();
            Fixture::start()
        })?;
        cluster::fill(&fixture, pods);
        fixture.apply_manifest("nodes", &kubernetes::node(&topology));
        fixture.apply_manifest("namespaces", &kubernetes::namespace("a", &[].into()));
        let pod = topology.add_pod(PodSpec::new("a", "pod"))?.add_container("app")?;
        fixture.apply_manifest("pods", &kubernetes::pod(pod.pod(), topology.node_name()));
        let config = dir.path().join("kubeconfig");
        fs::write(&config, kubeconfig(&fixture.url()))?;
        let agent = Agent::new(cli.agent.clone(), bpffs, dir.path()).kubeconfig(&config).patience(PATIENCE);
        let echo = topology.outside_serve(&Exec::probe(["serve-udp", "--port", &PORT.to_string()]))?;
        let target = format!("{OUTSIDE_V4}:{PORT}");
        let talk = pod.serve(&Exec::probe(["talk", &target]).with_stdin())?;
        Ok(Self { agent, talk, pod, meshed: None, fixture, _echo: echo, topology, _runtime: runtime })
    }

    /// Whether a packet passes now.
    fn passes(&mut self) -> anyhow::Result<bool> {
        self.talk.send_line("x")?;
        let attempt: Option<Attempt> = self.talk.next_json(FELT)?;
        Ok(attempt.context("the pod has ended")?.outcome == Outcome::Ok)
    }

    /// How long each of so many changes took to be felt.
    fn changes(
        &mut self,
        samples: usize,
        churn: bool,
        change: impl Fn(&Self, bool),
    ) -> anyhow::Result<Vec<Duration>> {
        let mut felt = Vec::new();
        let mut number = 0;
        for sample in 0..samples {
            let deny = sample % 2 == 0;
            ensure!(self.passes()? == deny, "the last change did not last");
            let start = Instant::now();
            change(self, deny);
            let mut next = start;
            while self.passes()? == deny {
                if churn && Instant::now() > next {
                    number += 1;
                    cluster::change(&self.fixture, number);
                    next += CHURN;
                }
                if start.elapsed() > FELT {
                    bail!("a change was not felt within {} s", FELT.as_secs());
                }
            }
            felt.push(start.elapsed());
        }
        Ok(felt)
    }

    /// Has the cluster's lock-down mean a pod of this node as well, as those of most nodes.
    fn lock_another_down(&mut self) -> anyhow::Result<()> {
        let labels = [("istio-injection".to_owned(), "enabled".to_owned())];
        self.fixture.apply_manifest("namespaces", &kubernetes::namespace("b", &labels.into()));
        let pod = self.topology.add_pod(PodSpec::new("b", "meshed"))?.add_container("app")?;
        self.fixture.apply_manifest("pods", &kubernetes::pod(pod.pod(), self.topology.node_name()));
        self.meshed = Some(pod);
        self.agent.wait("a pod of the node is locked down", |status| status["endpoints"]["Isolated"] == 1)
    }

    fn policy(&self, deny: bool) {
        let policy = json!({
            "metadata": {"namespace": "a", "name": "deny"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
        });
        if deny {
            self.fixture.apply_manifest("networkpolicies", &policy);
        } else {
            self.fixture.delete("networkpolicies", "a", "deny");
        }
    }

    /// A policy that allows nothing but a peer, and is the only one with it.
    fn only(&self, peer: &Value, deny: bool) {
        let policy = json!({
            "metadata": {"namespace": "a", "name": "only"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}]},
        });
        if deny {
            self.fixture.apply_manifest("networkpolicies", &policy);
        } else {
            self.fixture.delete("networkpolicies", "a", "only");
        }
    }

    fn lock_down(&self, deny: bool) {
        let policy = cluster::lock_down("deny", "kubernetes.io/metadata.name", "a");
        if deny {
            self.fixture.apply_manifest("egressgatewaypolicies", &policy);
        } else {
            self.fixture.delete("egressgatewaypolicies", "", "deny");
        }
    }

    fn label(&self, deny: bool) {
        let policy = json!({
            "metadata": {"namespace": "a", "name": "denied"},
            "spec": {"podSelector": {"matchLabels": {"denied": "true"}}, "policyTypes": ["Egress"]},
        });
        self.fixture.apply_manifest("networkpolicies", &policy);
        let mut pod: Value = kubernetes::pod(self.pod.pod(), self.topology.node_name());
        pod["metadata"]["labels"] = json!({"denied": deny.to_string()});
        self.fixture.apply_manifest("pods", &pod);
    }
}

fn kubeconfig(url: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    })
    .to_string()
}

/// A line of `/proc/PID/status`, in KiB.
fn memory(process: u32, line: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = status.lines().find_map(|one| one.strip_prefix(line)).context("no such line")?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time of a process so far.
fn processor(process: u32) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        // Nanoseconds on a processor, and two numbers that do not matter; see Documentation/scheduler/sched-stats.rst.
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let nanoseconds = text.split(' ').next().context("an empty schedstat")?.parse()?;
        total += Duration::from_nanos(nanoseconds);
    }
    Ok(total)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn mebibytes(kibibytes: u64) -> String {
    format!("{} MiB", kibibytes / 1024)
}
