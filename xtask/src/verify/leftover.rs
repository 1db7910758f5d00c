//! What runs leave behind: a sign of life while they last, and the sweeping of those that were killed.
//!
//! Invariant: a run is dead only if its sign of life did not change while we looked on for several of its beats; no clocks
//! are compared. What `--keep` left standing is nobody's to sweep.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::anyhow;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::api::{self, Named, is_absent, text};
use super::objects::{KEPT, LABEL, LEASE, POLICY_API, Run};
use super::scene::Part;
use super::stage::until;

/// How often a run shows that it lives.
const BEAT: Duration = Duration::from_secs(2);
/// How long others look on.
const WATCH: Duration = Duration::from_secs(9);

/// Shows that the run lives, until dropped.
pub(crate) async fn beat(client: Client, run: Run) {
    let leases: Api<Lease> = Api::namespaced(client, &run.namespace(Part::Mesh));
    for count in 1_i32.. {
        tokio::time::sleep(BEAT).await;
        let change = json!({"spec": {"leaseTransitions": count}});
        if let Err(error) = leases.patch(LEASE, &PatchParams::default(), &Patch::Merge(change)).await {
            eprintln!("    cannot show that this run lives: {}", text(&error));
        }
    }
}

/// What there is of runs, by their random suffix.
#[derive(Debug, Default)]
struct Found {
    namespaces: BTreeMap<String, BTreeSet<String>>,
    policies: BTreeMap<String, BTreeSet<String>>,
    kept: BTreeSet<String>,
}

impl Found {
    fn runs(&self) -> BTreeSet<String> {
        self.namespaces.keys().chain(self.policies.keys()).cloned().collect()
    }
}

fn policies(client: &Client) -> Api<DynamicObject> {
    let (group, version) = POLICY_API.split_once('/').unwrap_or_default();
    let kind = GroupVersionKind::gvk(group, version, "EgressGatewayPolicy");
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "egressgatewaypolicies"))
}

async fn find(client: &Client) -> anyhow::Result<Found> {
    let ours = ListParams::default().labels(LABEL);
    let mut found = Found::default();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let list =
        namespaces.list(&ours).await.map_err(|error| anyhow!("cannot list namespaces: {}", text(&error)))?;
    for one in list.items {
        let labels = one.metadata.labels.unwrap_or_default();
        let (Some(run), Some(name)) = (labels.get(LABEL), one.metadata.name) else { continue };
        if labels.contains_key(KEPT) {
            found.kept.insert(run.clone());
        }
        found.namespaces.entry(run.clone()).or_default().insert(name);
    }
    let list = match policies(client).list(&ours).await {
        Ok(list) => list.items,
        Err(error) if is_absent(&error) => Vec::new(),
        Err(error) => return Err(anyhow!("cannot list EgressGatewayPolicies: {}", text(&error))),
    };
    for one in list {
        let run = one.metadata.labels.and_then(|labels| labels.get(LABEL).cloned());
        if let (Some(run), Some(name)) = (run, one.metadata.name) {
            found.policies.entry(run).or_default().insert(name);
        }
    }
    Ok(found)
}

/// The sign of life of each run; none where there is no lease any more, or not yet.
async fn signs(client: &Client, found: &Found) -> anyhow::Result<BTreeMap<String, Option<String>>> {
    let mut signs = BTreeMap::new();
    for run in found.runs() {
        let mut sign = None;
        for namespace in found.namespaces.get(&run).into_iter().flatten() {
            let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
            let lease = leases.get_opt(LEASE).await;
            let lease = lease
                .map_err(|error| anyhow!("cannot get Lease {LEASE} in {namespace}: {}", text(&error)))?;
            sign = sign.or(lease.and_then(|lease| lease.metadata.resource_version));
        }
        signs.insert(run, sign);
    }
    Ok(signs)
}

/// The runs of which nothing stirred between two looks.
fn dead(
    before: &BTreeMap<String, Option<String>>,
    after: &BTreeMap<String, Option<String>>,
    kept: &BTreeSet<String>,
) -> BTreeSet<String> {
    let still = before.iter().filter(|(run, sign)| after.get(*run) == Some(*sign) && !kept.contains(*run));
    still.map(|(run, _)| run.clone()).collect()
}

/// Removes what killed runs have left.
pub(crate) async fn sweep(client: &Client) -> anyhow::Result<()> {
    let found = find(client).await?;
    for run in &found.kept {
        eprintln!("    run {run} was kept: `kubectl delete namespaces,egp -l {LABEL}={run}` removes it");
    }
    if found.runs().difference(&found.kept).next().is_none() {
        return Ok(());
    }
    eprintln!("    there are other runs: looking for {} s whether they live", WATCH.as_secs());
    let before = signs(client, &found).await?;
    tokio::time::sleep(WATCH).await;
    let after = signs(client, &find(client).await?).await?;
    let dead = dead(&before, &after, &found.kept);
    for run in &dead {
        eprintln!("    removing what the killed run {run} has left");
        remove(client, &found, run).await?;
    }
    Ok(())
}

async fn remove(client: &Client, found: &Found, run: &str) -> anyhow::Result<()> {
    for name in found.policies.get(run).into_iter().flatten() {
        let policy =
            json!({"apiVersion": POLICY_API, "kind": "EgressGatewayPolicy", "metadata": {"name": name}});
        api::delete(client, &Named::of(&policy)?).await?;
    }
    for name in found.namespaces.get(run).into_iter().flatten() {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        api::delete(client, &Named::of(&namespace)?).await?;
    }
    Ok(())
}

/// Removes everything of a run, by its label, and waits until it is gone.
pub(crate) async fn clean_up(client: &Client, run: &Run, patience: Duration) -> anyhow::Result<()> {
    remove(client, &find(client).await?, &run.id).await?;
    let what = format!("everything of run {} is removed", run.id);
    until(&what, patience, || async {
        let found = find(client).await?;
        let left = found.namespaces.get(&run.id).into_iter().chain(found.policies.get(&run.id)).flatten();
        let left: Vec<&String> = left.collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?} is still there")) })
    })
    .await
}

/// Marks a run as one that stays.
pub(crate) async fn keep(client: &Client, run: &Run) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let change = json!({"metadata": {"labels": {KEPT: "true"}}});
    for part in Part::ALL {
        let kept =
            namespaces.patch(&run.namespace(part), &PatchParams::default(), &Patch::Merge(&change)).await;
        kept.map_err(|error| anyhow!("cannot label a namespace: {}", text(&error)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_not_stir_is_dead() {
        let signs = |all: &[(&str, Option<&str>)]| -> BTreeMap<String, Option<String>> {
            all.iter().map(|(run, sign)| ((*run).to_owned(), sign.map(str::to_owned))).collect()
        };
        let before = signs(&[
            ("lives", Some("1")),
            ("killed", Some("7")),
            ("begins", None),
            ("ends", Some("3")),
            ("bare", None),
            ("kept", Some("5")),
        ]);
        let after = signs(&[
            ("lives", Some("2")),
            ("killed", Some("7")),
            ("begins", Some("1")),
            ("bare", None),
            ("kept", Some("5")),
            ("new", None),
        ]);
        let kept = BTreeSet::from(["kept".to_owned()]);
        let dead: Vec<String> = dead(&before, &after, &kept).into_iter().collect();
        assert_eq!(dead, ["bare", "killed"]);
    }
}
