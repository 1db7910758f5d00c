//! A rolling restart of the agents under traffic: nothing that is denied gets out, nothing that is allowed fails.

use std::cell::Cell;

use anyhow::anyhow;
use egress_probe::Repeated;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::{install, line};
use crate::tries::table::Line;
use crate::verify::api::text;
use crate::verify::cluster::AgentArgs;
use crate::verify::live::Live;
use crate::verify::storm::Storms;
use crate::verify::{self, random};

const WHEN: &str = "rolling restart";

/// Restarts every agent while productpage tries to get out, and asks reviews all the time.
pub(super) async fn upgrade(
    client: &Client,
    verify: &verify::Args,
    live: &Live,
) -> anyhow::Result<Vec<Line>> {
    eprintln!("    {WHEN}");
    live.lock_down().await?;
    let over = Cell::new(false);
    let storms = Storms::begin(live).await?;
    let restart = async {
        let done = restart(client, &verify.agent, verify).await;
        over.set(true);
        done
    };
    let (restarted, bypass, requests, held) =
        tokio::join!(restart, storms.until(&over), requests(live, &over), live.hold(&over));
    let agents = restarted?;
    let (requests, (beats, lost)) = (requests?, held?);
    let count = |made: u64, failed: u64, why: Option<String>| {
        let got = format!("{made} made, {failed} failed");
        match why {
            None if failed == 0 && made > 0 => Ok(got),
            why => Err(format!("{got}: {}", why.unwrap_or_default())),
        }
    };
    Ok(vec![
        line(WHEN, "agents", "one after the other", "ready again", Ok(format!("{agents} ready"))),
        bypass?.line(WHEN),
        line(
            WHEN,
            "productpage/productpage",
            "requests to reviews by service",
            "none fails",
            count(requests.count, requests.failed, requests.last_failure),
        ),
        line(
            WHEN,
            "productpage/productpage",
            "one connection to reviews",
            "every echo comes",
            count(beats, lost, None),
        ),
    ])
}

/// Changes the template of the agents' pods, and waits until all of them are new.
async fn restart(client: &Client, agent: &AgentArgs, verify: &verify::Args) -> anyhow::Result<i32> {
    let set = agent.daemon_set(client).await?;
    let name = set.metadata.name.unwrap_or_default();
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &agent.agent_namespace);
    let stamp = json!({"egress-enforcer.io/restarted": format!("{:x}", random()?)});
    let change = json!({"spec": {"template": {"metadata": {"annotations": stamp}}}});
    sets.patch(&name, &PatchParams::default(), &Patch::Merge(change))
        .await
        .map_err(|error| anyhow!("cannot change DaemonSet {name}: {}", text(&error)))?;
    install::rolled_out(client, agent, verify.patience()).await
}

/// New connections within the cluster, one after the other.
async fn requests(live: &Live, over: &Cell<bool>) -> anyhow::Result<Repeated> {
    let mut sum = Repeated::default();
    while !over.get() {
        let part = live.ask_reviews().await?;
        sum.count += part.count;
        sum.failed += part.failed;
        sum.last_failure = part.last_failure.or(sum.last_failure);
    }
    Ok(sum)
}
