//! The command line: what can be asked of the agent, and the exit codes.
//!
//! Invariant: an exit code means one thing: see [`EXIT_CODES`]; `tests/cli.rs` provokes each.

mod objects;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use egress_common::{Action, Reason};
use serde::{Deserialize, Serialize};

use crate::offline;
use crate::source::Source;

pub use objects::{Asked, ExplainArgs, JudgedArgs, LintArgs, PlanArgs, SimulateArgs, Unknown};

/// The exit codes, as `--help` shows them.
pub const EXIT_CODES: &str = "Exit codes:
  0   fine
  1   failed; the reason is on stderr (explain: the flow is denied; lint: there are findings)
  2   wrong usage; of explain, simulate, plan and lint also that there is no answer, with the reason on stderr
  3   the agent cannot be reached
  77  this node lacks something the agent needs; one sentence on stderr says what and how to provide it";

/// Denies pod egress except where policy allows it, with BPF programs that go on working when the agent does not.
#[derive(Debug, Parser)]
#[command(name = "egress-agent", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What to log on stderr, as in `info,egress_agent=debug`.
    #[arg(long, global = true, env = "EGRESS_LOG", default_value = "info")]
    pub log: String,
    /// How to log on stderr.
    #[arg(long, global = true, env = "EGRESS_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object per line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce on this node until stopped. Enforcement goes on after the agent has ended, however it ended; `cleanup` ends it.
    Run(RunArgs),
    /// Show what this node enforces: hooks, revision, endpoints, map fill, last errors.
    Status(ReadArgs),
    /// List the local pods: policy, state, cgroup, addresses.
    Endpoints(ReadArgs),
    /// Show denied and audited packets, newest last.
    Flows(FlowsArgs),
    /// Tell the verdict of one flow and everything that leads to it: of a running agent with what the kernel's maps say, or from objects
    /// alone.
    Explain(ExplainArgs),
    /// Tell the verdict of each of many flows, and what a policy that is not applied yet would change.
    Simulate(SimulateArgs),
    /// Print the map writes that would bring this node to the desired state, or a node of objects from nothing.
    Plan(PlanArgs),
    /// List what weakens the mesh's exit: pods that get round their sidecar, gateways without a policy, policies that
    /// do not do what they seem to.
    ///
    /// In files, what makes pods (Deployments, Jobs, CronJobs, whatever else has a template) is looked at like pods, but for the proxy that a
    /// mesh injects later. On a cluster the pods themselves are.
    #[command(after_help = offline::checks())]
    Lint(LintArgs),
    /// Tell kubelet how the agent does, by its socket: a port may be somebody else's.
    Probe(ProbeArgs),
    /// Remove every link, program, map and pin of the enforcer from this node: nothing is enforced afterwards.
    Cleanup(CleanupArgs),
    /// Mount a bpffs where the node has none, and leave one that is there: for nodes that are containers themselves (kind, k3d), by an init
    /// container whose mounts reach the node.
    MountBpffs(BpffsArgs),
}

/// Where the enforcer keeps its pins.
#[derive(Clone, Debug, Args)]
pub struct BpffsArgs {
    /// The bpffs that holds the pins.
    #[arg(long, env = "EGRESS_BPFFS", default_value = "/sys/fs/bpf", value_name = "DIR")]
    pub bpffs: PathBuf,
}

/// Where a running agent answers.
#[derive(Clone, Debug, Args)]
pub struct SocketArgs {
    /// The agent's unix socket.
    #[arg(
        long,
        env = "EGRESS_SOCKET",
        default_value = "/run/egress-enforcer/agent.sock",
        value_name = "FILE"
    )]
    pub socket: PathBuf,
}

/// Where objects come from.
#[derive(Clone, Debug, Args)]
pub struct SourceArgs {
    /// Where objects come from: `kube`, the API server of a cluster; or `file:DIR`, the Kubernetes YAML and JSON files in a directory (not
    /// those of directories in it).
    #[arg(long, env = "EGRESS_SOURCE", value_name = "SOURCE")]
    pub source: Source,
    /// How the API server is reached, for `--source kube`; found by itself when absent: KUBECONFIG, ~/.kube/config, the
    /// ServiceAccount of the pod.
    #[arg(long, env = "EGRESS_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub source: SourceArgs,
    /// The cgroup below which kubelet makes its pods; found by itself when absent.
    #[arg(long, env = "EGRESS_POD_ROOT", value_name = "DIR")]
    pub pod_root: Option<PathBuf>,
    /// The container runtime's CRI socket (containerd, CRI-O, cri-dockerd), which tells at once which container is the proxy; found
    /// by itself when absent. Without one, containers are known once their pod's status names them.
    #[arg(long, env = "EGRESS_CRI_SOCKET", value_name = "FILE")]
    pub cri_socket: Option<PathBuf>,
    /// Name of this node; NODE_NAME, then the host name, when absent.
    #[arg(long, env = "EGRESS_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// What pods may send that the agent does not know (yet): nothing; to pods and services of the cluster; everything.
    #[arg(long, env = "EGRESS_UNKNOWN_PODS", value_enum, default_value_t = Unknown::DenyOutside)]
    pub unknown_pods: Unknown,
    /// The hooks that judge packets. Without the one on the veths, packet sockets, tunnels and forwarding are not seen, and servers
    /// in locked-down pods cannot answer clients that are not allowed.
    #[arg(long, env = "EGRESS_HOOKS", value_enum, default_value_t = Hooks::Both)]
    pub hooks: Hooks,
    /// Give the veths filters of tc, as on kernels before 6.6, also where the kernel has links for tc. For tests.
    #[arg(long, env = "EGRESS_TC_FILTERS", hide = true, value_parser = clap::builder::FalseyValueParser::new())]
    pub tc_filters: bool,
    /// End the open connections that a change of policies denies, so that their processes see an error at once instead of waiting
    /// for a time-out. Connections that came in are left alone.
    #[arg(long, env = "EGRESS_SEVER", value_parser = clap::builder::FalseyValueParser::new())]
    pub sever: bool,
    /// Serve /metrics, /healthz and /readyz at this address and port, unencrypted and to everybody who can reach it; no port is open
    /// when absent. An IPv6 address needs no brackets.
    #[arg(long, env = "EGRESS_LISTEN", value_name = "ADDR:PORT", value_parser = listen_address)]
    pub listen: Option<SocketAddr>,
    /// Write denied and audited packets to this file as JSON lines, with names; `-` for standard output. The file is opened anew when it
    /// was renamed or removed.
    #[arg(long, env = "EGRESS_FLOW_LOG", value_name = "FILE")]
    pub flow_log: Option<PathBuf>,
    /// Most MiB of that file: before it grows further it is renamed to FILE.old, in place of an earlier one. 0 is no limit.
    #[arg(long, env = "EGRESS_FLOW_LOG_LIMIT", value_name = "MIB", default_value_t = 100)]
    pub flow_log_limit: u64,
    /// Take this taint from the own node once the agent enforces, so that nodes can keep pods away until then; with a source of
    /// objects that is a cluster. Needs the right to patch nodes. No taint is ever added.
    #[arg(long, env = "EGRESS_LIFT_TAINT", value_name = "KEY", num_args = 0..=1, require_equals = true,
        default_missing_value = "egress-enforcer.io/agent-not-ready")]
    pub lift_taint: Option<String>,
    /// The agent's own namespace, where the agents of a cluster elect who writes the status of policies; POD_NAMESPACE, then
    /// egress-enforcer, when absent.
    #[arg(long, env = "EGRESS_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// The pod that the agent runs in, for `probe`; POD_NAME when absent.
    #[arg(long, env = "POD_NAME", value_name = "NAME", hide = true)]
    pub pod_name: Option<String>,
    /// Load this BPF object, built by `cargo xtask build-ebpf --trace`, and log each of its verdicts.
    #[cfg(feature = "trace")]
    #[arg(long, env = "EGRESS_TRACE_OBJECT", value_name = "FILE")]
    pub trace_object: Option<PathBuf>,
    /// For tests: the most entries of a map, where it is made anew. May be given several times.
    #[arg(long, hide = true, value_name = "MAP=NUMBER", value_parser = map_entries)]
    pub map_entries: Vec<(String, u32)>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub bpffs: BpffsArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub socket: SocketArgs,
}

/// Reads `ADDR:PORT`, also where whoever puts the two together did not know that the address is an IPv6 one.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let bare = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    text.parse()
        .ok()
        .or_else(bare)
        .ok_or_else(|| "expected ADDR:PORT, with an address of this node".to_owned())
}

fn map_entries(text: &str) -> Result<(String, u32), String> {
    let parts = text.split_once('=').and_then(|(map, number)| Some((map.to_owned(), number.parse().ok()?)));
    parts.ok_or_else(|| "expected MAP=NUMBER".to_owned())
}

/// The hooks that are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hooks {
    /// The sockets of pods, and the node's ends of their veths.
    Both,
    /// The sockets of pods alone.
    Socket,
}

/// Arguments of commands that read from a running agent.
#[derive(Clone, Debug, Args)]
pub struct ReadArgs {
    /// How to print.
    #[arg(long, short, env = "EGRESS_OUTPUT", value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub socket: SocketArgs,
}

/// The actions that flows are reported of.
const REPORTED: [&str; 2] = [Action::Deny.name(), Action::Audit.name()];

/// Arguments of `flows`.
#[derive(Clone, Debug, Args)]
pub struct FlowsArgs {
    /// Go on with new flows until interrupted.
    #[arg(long, short, env = "EGRESS_FOLLOW", value_parser = clap::builder::FalseyValueParser::new())]
    pub follow: bool,
    /// Only flows of this pod.
    #[arg(long, env = "EGRESS_POD", value_name = "NS/POD")]
    pub pod: Option<String>,
    /// Only flows of this container.
    #[arg(long, env = "EGRESS_CONTAINER", value_name = "NAME")]
    pub container: Option<String>,
    /// Only flows to this address and port.
    #[arg(long, env = "EGRESS_TO", value_name = "ADDR:PORT")]
    pub to: Option<SocketAddr>,
    /// Only flows with this verdict.
    #[arg(long, env = "EGRESS_ACTION", value_name = "ACTION", value_parser = REPORTED)]
    pub action: Option<String>,
    /// Only flows for this reason, as in `SidecarBypass`.
    #[arg(long, env = "EGRESS_REASON", value_name = "REASON", value_parser = PossibleValuesParser::new(Reason::ALL.iter().filter(|one| one.action() == Action::Deny).map(|one| one.name())), hide_possible_values = true)]
    pub reason: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub read: ReadArgs,
}

/// Arguments of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub bpffs: BpffsArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub socket: SocketArgs,
}

/// Arguments of `probe`.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// What is asked for.
    #[arg(value_enum, value_name = "WHAT")]
    pub what: Probe,
    /// The pod whose agent is to be ready: another one's that has the node does not count. Any agent's counts when absent.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub socket: SocketArgs,
}

/// What a probe asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Its loop turns: it need not be started anew. 1 where it has not for a minute.
    Alive,
    /// Everything desired is enforced, at once or within eight seconds. 1 with a line for each thing that is pending then.
    Ready,
}

/// How read commands print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs; lists as JSON lines.
    Json,
}
