//! `verify`: the guide's scenario on any cluster with the agent installed, tried for real; `--here` on this machine.
//!
//! Invariants: a line is as expected only when the client, the observer outside and the agent's flow log all say so; what
//! was skipped is counted apart, and what is core cannot be skipped. However it ends, what was made is removed, and what a
//! killed run left is removed by the next one.

pub(crate) mod api;
pub(crate) mod cluster;
mod here;
mod leftover;
pub(crate) mod live;
pub(crate) mod objects;
pub(crate) mod play;
pub(crate) mod scene;
pub(crate) mod stage;
pub(crate) mod storm;
mod traffic;
mod tries;
mod wait;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use serde::Serialize;
use serde_json::json;

use self::api::{Access, Named};
use self::cluster::{AgentArgs, Which};
use self::here::Here;
use self::live::Live;
use self::objects::{LABEL, PullSecret, Run};
use self::play::Play;
use self::scene::{Outside, stand_in};
use crate::demo::ground::Ground;
use crate::tries::table::{self, Line};

/// How long removing what was made may take; namespaces go slowly.
const CLEANUP: Duration = Duration::from_secs(120);

/// Arguments of `verify`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 only if every line that was tried is as expected. Lines that the cluster lacks \
    something for are shown as skipped, and counted apart.\n\
    Everything is in namespaces egress-verify-RUN-* and one EgressGatewayPolicy, labelled egress-enforcer.io/verify=RUN."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
    /// The node to play on; otherwise the first one that takes pods and has a ready agent.
    #[arg(long, env = "EGRESS_NODE", value_name = "NAME")]
    node: Option<String>,
    /// Play on each node that can have an agent, one after the other.
    #[arg(long, env = "EGRESS_ALL_NODES", conflicts_with = "node")]
    all_nodes: bool,
    /// Leave out the nodes with these labels, which have no agent on purpose.
    #[arg(long, env = "EGRESS_EXCLUDE", conflicts_with = "node", value_name = "SELECTOR")]
    exclude: Option<String>,
    /// The image of egress-probe; `cargo xtask image` makes it.
    #[arg(
        long,
        env = "EGRESS_PROBE_IMAGE",
        default_value = concat!("localhost/egress-enforcer/egress-probe:", env!("CARGO_PKG_VERSION")),
        value_name = "REF"
    )]
    probe_image: String,
    /// Another gateway than the probe: an image whose entry point answers HTTP CONNECT on port 15443.
    #[arg(long, env = "EGRESS_GATEWAY_IMAGE", value_name = "REF")]
    gateway_image: Option<String>,
    /// A Secret that the images are pulled with; it is copied to the namespaces of the run, and goes with them.
    #[arg(long, env = "EGRESS_PULL_SECRET", value_name = "NAMESPACE/NAME")]
    pull_secret: Option<String>,
    /// A server outside that answers HTTP, instead of a stand-in on the node; once more for an IPv6 one. Nobody looks there what
    /// arrives, and only HTTP is tried.
    #[arg(long, env = "EGRESS_OUTSIDE", value_name = "ADDR:PORT")]
    outside: Vec<SocketAddr>,
    /// The cluster's DNS domain.
    #[arg(long, env = "EGRESS_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    cluster_domain: String,
    /// Write the table as JSON, too.
    #[arg(long, env = "EGRESS_JSON", value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave everything standing at the end, and say how to remove it.
    #[arg(long, env = "EGRESS_KEEP")]
    keep: bool,
    /// Seconds that anything may take that has to come about, such as pods that start.
    #[arg(long, env = "EGRESS_TIMEOUT", default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
    /// Play on this machine instead, without a cluster, in pods like the demonstration's. Needs root.
    #[arg(long, env = "EGRESS_HERE", conflicts_with_all = ["kubeconfig", "context", "node", "all_nodes", "exclude", "pull_secret", "outside", "keep"])]
    here: bool,
}

impl Args {
    /// For those who verify as a part of something else.
    pub(crate) fn of(access: Access, agent: AgentArgs) -> anyhow::Result<Self> {
        use clap::{Args as _, FromArgMatches as _};
        let none = std::iter::empty::<&str>();
        let matches = Self::augment_args(clap::Command::new("verify").no_binary_name(true))
            .try_get_matches_from(none)?;
        Ok(Self { access, agent, ..Self::from_arg_matches(&matches)? })
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    fn outside(&self, random: u64, v6: Result<(), String>) -> anyhow::Result<Outside> {
        let Some(first) = self.outside.first() else {
            let (v4, six) = stand_in(random);
            return Ok(Outside::StandIn { v4, v6: v6.map(|()| six), only_v6: false });
        };
        let v6 = self.outside.iter().copied().find(SocketAddr::is_ipv6);
        let v4 = self.outside.iter().copied().find(SocketAddr::is_ipv4);
        if self.outside.len() > 2 || self.outside.len() == 2 && (v4.is_none() || v6.is_none()) {
            bail!("--outside takes one server, or one for each of IPv4 and IPv6");
        }
        Ok(Outside::Named { first: v4.unwrap_or(*first), v6: v6.filter(|_| v4.is_some()) })
    }

    /// What the images are pulled with, as the cluster has it.
    async fn pull_secret(&self, client: &Client) -> anyhow::Result<Option<PullSecret>> {
        let Some(place) = &self.pull_secret else { return Ok(None) };
        let (namespace, name) = place
            .split_once('/')
            .with_context(|| format!("--pull-secret is NAMESPACE/NAME, and {place:?} is not"))?;
        let named = Named::of(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": namespace, "name": name},
        }))?;
        let found = api::get(client, &named).await?;
        let found = found.with_context(|| format!("namespace {namespace} has no Secret {name}"))?;
        PullSecret::of(&found).with_context(|| format!("cannot pull images with Secret {place}")).map(Some)
    }

    fn run(&self, random: u64, node: &str, pull_secret: Option<PullSecret>) -> Run {
        Run {
            pull_secret,
            id: format!("{:06x}", random & 0xff_ffff),
            image: self.probe_image.clone(),
            gateway_image: self.gateway_image.clone(),
            node: node.to_owned(),
        }
    }
}

/// Plays, prints the table, and fails unless every line is as expected.
pub(crate) fn verify(args: &Args) -> anyhow::Result<()> {
    // Before the first thread.
    let ground = args.here.then(|| Ground::new("verify --here")).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let played = runtime.block_on(async {
        match &ground {
            Some(ground) => here(args, ground).await,
            None => in_cluster(args).await,
        }
    })?;
    finish(args, &played)
}

/// The lines of a node.
#[derive(Debug, Serialize)]
pub(crate) struct Played {
    pub(crate) node: String,
    pub(crate) lines: Vec<Line>,
}

/// Prints the tables, and fails unless every line is as expected.
pub(crate) fn finish(args: &Args, played: &[Played]) -> anyhow::Result<()> {
    let mut sum = table::Sum::default();
    for one in played {
        println!("\nnode {}\n{}", one.node, table::render(&one.lines));
        let of_node = table::sum(&one.lines);
        sum.as_expected += of_node.as_expected;
        sum.skipped += of_node.skipped;
        sum.wrong += of_node.wrong;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(played)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let skipped = if sum.skipped == 0 { String::new() } else { format!(", {} skipped", sum.skipped) };
    if sum.wrong > 0 || sum.as_expected == 0 {
        bail!("{} lines are not as expected, {} are{skipped}", sum.wrong, sum.as_expected);
    }
    println!("\n{} lines, all as expected{skipped}", sum.as_expected);
    Ok(())
}

/// Plays on every node that was chosen.
pub(crate) async fn in_cluster(args: &Args) -> anyhow::Result<Vec<Played>> {
    let (client, server) = args.access.connect().await?;
    eprintln!("==> verify on {server}");
    cluster::preconditions(&client, &args.agent, args.pull_secret.is_some()).await?;
    leftover::sweep(&client).await?;
    let which = match (&args.node, args.all_nodes) {
        (Some(name), _) => Which::Named(name),
        (None, true) => Which::All,
        (None, false) => Which::First,
    };
    let nodes = cluster::nodes(&client, &args.agent, which, args.exclude.as_deref()).await?;
    let mut played = Vec::new();
    for node in &nodes {
        eprintln!("==> node {}", cluster::name(node));
        played.push(on_node(args, &client, node).await?);
    }
    Ok(played)
}

/// Plays on one node.
async fn on_node(args: &Args, client: &Client, node: &Node) -> anyhow::Result<Played> {
    let lines = staged(args, client, node, async |live: &Live| Ok(Play::new(live).play().await)).await?;
    Ok(Played { node: cluster::name(node).to_owned(), lines })
}

/// Does something on a stage on one node, and removes what was made, also after a signal and after an error.
pub(crate) async fn staged<T>(
    args: &Args,
    client: &Client,
    node: &Node,
    act: impl AsyncFnOnce(&Live) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let random = random()?;
    let run = args.run(random, cluster::name(node), args.pull_secret(client).await?);
    let v6 = cluster::addresses(node).iter().any(std::net::IpAddr::is_ipv6);
    let v6 = if v6 { Ok(()) } else { Err("the node has no IPv6 address".to_owned()) };
    let outside = args.outside(random, v6)?;
    let played = async {
        for object in run.namespace_objects() {
            api::create(client, &object).await?;
        }
        api::create(client, &run.lease()).await?;
        let playing = async {
            let (client, agent) = (client.clone(), args.agent.clone());
            let domain = &args.cluster_domain;
            let live = Live::new(client, agent, run.clone(), node, outside, domain, args.patience()).await?;
            act(&live).await
        };
        tokio::select! {
            done = playing => done,
            () = leftover::beat(client.clone(), run.clone()) => bail!("this run has shown long enough that it lives"),
        }
    };
    let done = tokio::select! {
        done = played => done,
        signal = ended() => signal.and_then(|()| bail!("interrupted")),
    };
    if args.keep {
        leftover::keep(client, &run).await?;
        println!(
            "run {} is left standing: `kubectl delete namespaces,egp -l {LABEL}={}` removes it",
            run.id, run.id
        );
        return done;
    }
    eprintln!("    removing everything of run {}; Ctrl-C leaves it to the next run", run.id);
    let cleaned = tokio::select! {
        cleaned = leftover::clean_up(client, &run, CLEANUP) => cleaned,
        signal = ended() => signal,
    };
    // What went wrong first is what matters.
    match (done, cleaned) {
        (Ok(done), cleaned) => cleaned.map(|()| done),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => {
            eprintln!("    {left:#}");
            Err(error)
        }
    }
}

/// Ends when somebody asks us to end.
pub(crate) async fn ended() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done?,
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

/// A random number from the kernel.
pub(crate) fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    let mut file = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    std::io::Read::read_exact(&mut file, &mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// Plays on this machine.
async fn here(args: &Args, ground: &Ground) -> anyhow::Result<Vec<Played>> {
    let random = random()?;
    let (node, outside) = ("this machine", args.outside(random, Ok(()))?);
    let here = Here::new(ground, args.run(random, node, None), outside, args.patience())?;
    let interrupted = async {
        while !ground.interrupted.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let lines = tokio::select! {
        lines = Play::new(&here).play() => lines,
        () = interrupted => bail!("interrupted"),
    };
    let mut lines = lines;
    if let Err(error) = here.finish() {
        lines.push(play::broken("finished", &error));
    }
    Ok(vec![Played { node: node.to_owned(), lines }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> AgentArgs {
        AgentArgs {
            agent_namespace: "egress-enforcer".to_owned(),
            agent_label: "app.kubernetes.io/name=egress-enforcer".to_owned(),
            agent_container: "agent".to_owned(),
        }
    }

    fn args(outside: &[&str]) -> Args {
        let mut args = Args::of(Access::default(), agent()).unwrap();
        args.outside = outside.iter().map(|one| one.parse().unwrap()).collect();
        args
    }

    #[test]
    fn defaults_are_those_of_the_command_line() {
        let args = args(&[]);
        assert!(args.probe_image.starts_with("localhost/egress-enforcer/egress-probe:"));
        assert_eq!((args.timeout, args.cluster_domain.as_str()), (120, "cluster.local"));
    }

    #[test]
    fn outside_is_a_stand_in_unless_servers_are_named() {
        assert!(args(&[]).outside(7, Err("no".to_owned())).unwrap().is_watched());
        let both = args(&["[2001:db8::1]:80", "192.0.2.1:80"]).outside(7, Ok(())).unwrap();
        let wanted = Outside::Named {
            first: "192.0.2.1:80".parse().unwrap(),
            v6: Some("[2001:db8::1]:80".parse().unwrap()),
        };
        assert_eq!(both, wanted);
        assert!(args(&["192.0.2.1:80", "192.0.2.2:80"]).outside(7, Ok(())).is_err());
    }

    #[test]
    fn two_runs_have_no_name_in_common() {
        let args = args(&[]);
        assert_ne!(args.run(1, "n", None).namespaces(), args.run(2, "n", None).namespaces());
    }
}
