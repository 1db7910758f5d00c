//! What the agent and the observer outside say, and waiting for it.

use std::collections::BTreeMap;

use anyhow::Context as _;
use egress_probe::{Arrivals, Captured};
use serde_json::Value;

use super::play::RUN;
use super::scene::{Outside, Place};
use super::stage::{Stage, last, until, values};

/// Waits until the agent has the pods of the mesh in this state, under a proxy lock or not.
pub(crate) async fn settled(stage: &impl Stage, state: &str, lock: bool) -> anyhow::Result<()> {
    let what = format!("the agent has the pods {state}{}", if lock { ", under a lock" } else { "" });
    until(&what, stage.patience(), || async {
        let known = endpoints(stage).await?;
        let pods =
            [Place::Productpage, Place::Reviews].map(|place| (place, known.get(&stage.scene().pod(place))));
        let mut missing: Vec<String> = pods
            .into_iter()
            .filter_map(|(place, one)| Some(format!("{} {}", place.pod(), not_yet(one, state, lock)?)))
            .collect();
        if missing.is_empty() {
            return Ok(Ok(()));
        }
        missing.extend(complaints(stage).await?);
        Ok(Err(missing.join("; ")))
    })
    .await
}

/// What a pod of the agent is instead of what it is to be.
fn not_yet(one: Option<&Value>, state: &str, lock: bool) -> Option<String> {
    let Some(one) = one else { return Some("is unknown".to_owned()) };
    let is = one["state"].as_str().unwrap_or("unknown");
    if is != state {
        return Some(format!("is {is}"));
    }
    if (one["lock"] == true) != lock {
        return Some(if lock { "has no lock" } else { "has a lock" }.to_owned());
    }
    let proxied = one["proxies"].as_array().is_some_and(|all| !all.is_empty());
    (lock && !proxied).then(|| "has no known proxy".to_owned())
}

/// What keeps the agent from being ready.
async fn complaints(stage: &impl Stage) -> anyhow::Result<Vec<String>> {
    let Some(text) = stage.agent(&["status", "--output", "json"]).await? else {
        return Ok(vec!["no agent is ready on the node".to_owned()]);
    };
    let status = values(&text)?.into_iter().next().unwrap_or_default();
    let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    Ok(list("pending").into_iter().chain(list("errors")).map(|one| one.to_string()).collect())
}

/// The local pods of the agent by NS/POD.
pub(crate) async fn endpoints(stage: &impl Stage) -> anyhow::Result<BTreeMap<String, Value>> {
    let text = stage.agent(&["endpoints", "--output", "json"]).await?;
    let name = |one: &Value| {
        format!("{}/{}", one["namespace"].as_str().unwrap_or("?"), one["name"].as_str().unwrap_or("?"))
    };
    Ok(values(&text.unwrap_or_default())?.into_iter().map(|one| (name(&one), one)).collect())
}

/// What has arrived outside since that many packets, and how many there are by now.
pub(crate) async fn arrived(stage: &impl Stage, since: usize) -> anyhow::Result<(Vec<Captured>, usize)> {
    let Outside::StandIn { v4, .. } = stage.scene().outside else {
        return Ok((Vec::new(), 0));
    };
    let words = ["arrived", "--of", &v4.to_string(), "--since", &since.to_string()].map(str::to_owned);
    let mut lines = stage.probe(Place::Outside, None, &words, RUN).await?;
    let arrivals: Arrivals = last(&lines).context("cannot ask what arrived outside")?;
    anyhow::ensure!(arrivals.forgotten == 0, "too much arrived outside to be remembered: {arrivals:?}");
    lines.pop();
    let packets: Result<_, _> = lines.iter().map(|line| serde_json::from_str(line)).collect();
    Ok((packets?, arrivals.total))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lock_counts_once_its_proxy_is_known() {
        let with =
            |lock: bool, proxies: &[&str]| json!({"state": "Isolated", "lock": lock, "proxies": proxies});
        let missing = |one: &Value, lock| not_yet(Some(one), "Isolated", lock);
        assert_eq!(missing(&with(true, &["istio-proxy"]), true), None);
        assert!(missing(&with(true, &[]), true).unwrap().contains("proxy"));
        assert!(missing(&with(false, &[]), true).unwrap().contains("no lock"));
        assert_eq!(missing(&with(false, &[]), false), None);
        assert!(missing(&with(true, &["istio-proxy"]), false).is_some());
        assert!(not_yet(Some(&with(false, &[])), "Unselected", false).unwrap().contains("Isolated"));
        assert!(not_yet(None, "Unselected", false).is_some());
    }
}
