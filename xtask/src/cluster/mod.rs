//! `test --cluster`: what needs a cluster: install, verify, upgrade under traffic, latency, uninstall.
//!
//! Invariant: every part is judged by what packets did, not by what objects say. It takes the enforcer from the cluster at
//! the end, so it is for clusters that are there for testing.

mod install;
mod latency;
mod upgrade;

use std::path::PathBuf;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use kube::Client;

use crate::tries::table::Line;
use crate::verify::api::Access;
use crate::verify::cluster::{AgentArgs, Which};
use crate::verify::live::Live;
use crate::verify::stage::Stage as _;
use crate::verify::{self, Played, cluster};

/// Arguments of the part of `test` that needs a cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Run the tests that need a cluster, on this one: installs, verifies, upgrades, and uninstalls the enforcer.
    #[arg(long, conflicts_with_all = ["vm", "filter"])]
    cluster: bool,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    agent: AgentArgs,
    /// What to install: a kustomization or a file of objects.
    #[arg(
        long,
        env = "EGRESS_MANIFEST",
        default_value = "deploy/kustomize/overlays/kind",
        value_name = "PATH"
    )]
    manifest: PathBuf,
    /// Leave the enforcer installed, and skip the part that takes it away.
    #[arg(long, env = "EGRESS_LEAVE_INSTALLED", requires = "cluster")]
    leave_installed: bool,
}

impl ClusterArgs {
    /// Whether a cluster is asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.cluster
    }
}

/// Runs every test that needs a cluster.
pub(crate) fn test(args: &ClusterArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let verify = verify::Args::of(args.access.clone(), args.agent.clone())?;
    let played = runtime.block_on(all(args, &verify))?;
    verify::finish(&verify, &played)
}

async fn all(args: &ClusterArgs, verify: &verify::Args) -> anyhow::Result<Vec<Played>> {
    let objects = install::objects(&args.manifest)?;
    let (client, server) = args.access.connect().await?;
    eprintln!("==> install {} objects on {server}", objects.len());
    let mut lines = vec![install::install(&client, &objects, &verify.agent, verify.patience()).await?];
    let mut played = verify::in_cluster(verify).await?;
    let nodes = cluster::nodes(&client, &verify.agent, Which::First, None).await?;
    let node = nodes.first().context("the cluster has no node any more")?;
    eprintln!("==> upgrade, latency{}", if args.leave_installed { "" } else { ", uninstall" });
    let more = verify::staged(verify, &client, node, async |live: &Live| {
        let mut lines = upgrade::upgrade(&client, verify, live).await?;
        lines.extend(latency::latency(live).await?);
        if !args.leave_installed {
            lines.extend(uninstall(&client, verify, node, live, &objects).await?);
        }
        anyhow::Ok(lines)
    });
    lines.extend(more.await?);
    played.push(Played { node: cluster::name(node).to_owned(), lines });
    Ok(played)
}

/// Takes the enforcer away while a policy locks a pod down: it goes on until `cleanup`, and not a packet longer.
async fn uninstall(
    client: &Client,
    verify: &verify::Args,
    node: &Node,
    live: &Live,
    objects: &[serde_json::Value],
) -> anyhow::Result<Vec<Line>> {
    eprintln!("    uninstall");
    live.lock_down().await?;
    let removed = install::remove_agents(client, &verify.agent, verify.patience()).await?;
    let mut lines = vec![direct(live, "agents removed", false).await?];
    let cleaned = install::clean_nodes(client, &verify.agent, &removed, verify.patience()).await?;
    lines.push(line("cleaned up", "egress-agent cleanup", "on every node", "succeeded", Ok(cleaned)));
    lines.push(direct(live, "cleaned up", true).await?);
    live.policy(None).await?;
    let left = install::uninstall(client, objects, verify.patience()).await;
    let left = left.map_err(|error| format!("{error:#}"));
    lines.push(line("uninstalled", cluster::name(node), "objects of the enforcer", "none left", left));
    Ok(lines)
}

/// One try to get out.
async fn direct(live: &Live, when: &'static str, through: bool) -> anyhow::Result<Line> {
    let attempt = live.try_outside().await?;
    let got = crate::tries::judge::client(&attempt);
    let is = if attempt.succeeded() == through { Ok(got) } else { Err(got) };
    Ok(line(when, "productpage/productpage", "direct by UDP", if through { "works" } else { "denied" }, is))
}

/// A line of something that went as it should, or did not.
fn line(when: &'static str, who: &str, how: &str, expected: &str, got: Result<String, String>) -> Line {
    let as_expected = got.is_ok();
    let got = got.unwrap_or_else(|why| why);
    let (who, how, expected) = (who.to_owned(), how.to_owned(), expected.to_owned());
    Line { when, who, how, expected, got, as_expected, skipped: None }
}
