//! A node with a pod, a server outside, and one way of filtering in between.
//!
//! Invariant: where something filters, what is allowed passes and what is not does not, tried before anything is measured.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use egress_probe::{Load, Outcome};
use egress_topology::{Agent, Container, Exec, MountPoint, OUTSIDE_V4, Options, PodSpec, Process, Topology};
use serde::Serialize;

use crate::Setting;
use crate::destinations::{Destinations, FORBIDDEN};
use crate::lpm::Baseline;
use crate::{objects, rules};

/// The server's port.
const PORT: u16 = 9000;

/// A way of filtering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// None.
    Nothing,
    /// None either: what differs from `Nothing` is noise.
    NothingAgain,
    /// The agent, with both hooks.
    Enforcer,
    /// The agent, with the socket hook alone.
    SocketHook,
    /// A set in nftables.
    Nftables,
    /// A list of rules in iptables.
    Iptables,
    /// A trie on the pod's cgroup.
    PlainLpm,
}

impl Variant {
    pub const ALL: [Self; 7] = [
        Self::Nothing,
        Self::NothingAgain,
        Self::Enforcer,
        Self::SocketHook,
        Self::Nftables,
        Self::Iptables,
        Self::PlainLpm,
    ];

    /// What the agent is told beside the usual.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::SocketHook => &["--hooks", "socket"],
            _ => &[],
        }
    }
}

/// What filters.
#[derive(Debug)]
enum Filter {
    None,
    Agent(Box<Agent>),
    Nftables,
    Iptables,
    Lpm(Option<Baseline>),
}

/// What stands for one variant. Dropped in this order: the filter, the server, then what they stand on.
#[derive(Debug)]
pub struct Stand {
    pub variant: Variant,
    filter: Filter,
    _server: Process,
    container: Container,
    topology: Topology,
    _bpffs: MountPoint,
    dir: PathBuf,
}

/// The CPUs of the pod and of the server outside: two where there are two, so that nobody is moved between them.
fn cpus() -> [usize; 2] {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    [0, usize::from(processors > 1)]
}

/// A node with one locked-down container, and a second address outside that is not allowed.
pub fn node(setting: &Setting) -> anyhow::Result<(Topology, Container)> {
    let options = Options { prefix: "egress-bench".to_owned(), ..Options::default() };
    let topology = Topology::with_options(&setting.probe, options)?;
    topology.add_outside_address(IpAddr::V4(FORBIDDEN))?;
    let pod = topology.add_pod(PodSpec::new(objects::LOCKED, "client"))?;
    let container = pod.add_container("app")?;
    Ok((topology, container))
}

impl Stand {
    /// Sets it up, with nothing allowed yet.
    pub fn new(setting: &Setting, variant: Variant) -> anyhow::Result<Self> {
        let (dir, bpffs) = setting.bpffs(&format!("{variant:?}"))?;
        let (topology, container) = node(setting)?;
        let [_, cpu] = cpus().map(|cpu| cpu.to_string());
        let port = PORT.to_string();
        let serve =
            Exec::probe(["serve-load", "--bind", "::", "--port", port.as_str(), "--cpu", cpu.as_str()]);
        let server = topology.outside_serve(&serve)?;
        let filter = match variant {
            Variant::Nothing | Variant::NothingAgain => Filter::None,
            Variant::Enforcer | Variant::SocketHook => {
                let agent = Agent::new(env!("CARGO_BIN_EXE_egress-agent").into(), bpffs.path(), &dir);
                let agent = agent.arguments(variant.arguments()).patience(Duration::from_secs(120));
                fs::create_dir_all(agent.objects())?;
                Filter::Agent(Box::new(agent))
            }
            Variant::Nftables => Filter::Nftables,
            Variant::Iptables => Filter::Iptables,
            Variant::PlainLpm => Filter::Lpm(None),
        };
        Ok(Self { variant, filter, _server: server, container, topology, _bpffs: bpffs, dir })
    }

    /// Allows these destinations instead of those before.
    pub fn allow(&mut self, setting: &Setting, destinations: &Destinations) -> anyhow::Result<()> {
        let (node, pod, dir) = (self.topology.node(), self.container.pod().v4(), &self.dir);
        match &mut self.filter {
            Filter::None => {}
            Filter::Agent(agent) => {
                objects::write(&agent.objects(), &self.topology, destinations)?;
                agent.start(&self.topology)?;
                let status = agent.status().context("the agent does not answer")?;
                ensure!(
                    status["errors"] == serde_json::json!([]),
                    "the agent has errors: {}",
                    status["errors"]
                );
                // What it made goes on without it; running, it reads all files again every five seconds, which would be
                // measured as traffic's cost.
                agent.stop()?;
            }
            Filter::Nftables => rules::nftables(node, pod, destinations, dir)?,
            Filter::Iptables => rules::iptables(node, pod, destinations, dir)?,
            Filter::Lpm(loaded) => {
                *loaded = None;
                let mut fresh = Baseline::load(&setting.baseline, destinations)?;
                fresh.filter(self.container.pod().cgroup())?;
                *loaded = Some(fresh);
            }
        }
        self.try_out()
    }

    /// Whether what is to pass does, and nothing else.
    fn try_out(&self) -> anyhow::Result<()> {
        let reached = |address: Ipv4Addr| -> anyhow::Result<bool> {
            let target = format!("{address}:{PORT}");
            let attempt = self.container.attempt(&["tcp", &target, "--timeout-ms", "500"])?;
            Ok(attempt.outcome == Outcome::Ok)
        };
        ensure!(reached(OUTSIDE_V4)?, "{:?}: what is allowed is not reached", self.variant);
        let free = matches!(self.filter, Filter::None);
        ensure!(reached(FORBIDDEN)? == free, "{:?}: it does not filter as it should", self.variant);
        Ok(())
    }

    /// Makes traffic from the pod to the server.
    pub fn load(&self, kind: &str, time: Duration) -> anyhow::Result<Load> {
        let [cpu, _] = cpus().map(|cpu| cpu.to_string());
        let target = format!("{OUTSIDE_V4}:{PORT}");
        let for_ms = time.as_millis().to_string();
        let words = ["load", kind, target.as_str(), "--for-ms", for_ms.as_str(), "--cpu", cpu.as_str()];
        let process = self.container.spawn(&Exec::probe(words))?;
        process.output_json(time + Duration::from_secs(15)).with_context(|| format!("{:?}", self.variant))
    }
}
