//! Installing and removing the enforcer's objects, and its agents' traces on the nodes.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::line;
use crate::command::root;
use crate::manifests::render;
use crate::tries::table::Line;
use crate::verify::api::{self, Named, is_absent, text};
use crate::verify::cluster::{AgentArgs, is_ready, name, trouble};
use crate::verify::stage::until;

/// The objects of a file, or of a kustomization, which `kubectl` renders; it is fetched where there is none.
pub(super) fn objects(manifest: &Path) -> anyhow::Result<Vec<Value>> {
    let path = if manifest.exists() { manifest.to_owned() } else { root().join(manifest) };
    let text = if path.is_dir() {
        let tools = render::tools().context("--manifest FILE takes what was rendered elsewhere")?;
        tools.kustomize_at(&path)?
    } else {
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?
    };
    let objects = api::parse(&text).with_context(|| path.display().to_string())?;
    anyhow::ensure!(!objects.is_empty(), "{} has no objects", path.display());
    Ok(in_order(objects))
}

/// What others need comes first.
fn in_order(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|object| match object["kind"].as_str().unwrap_or_default() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "DaemonSet" => 3,
        "EgressGatewayPolicy" => 4,
        _ => 2,
    });
    objects
}

/// Applies the objects and waits until every agent is ready.
pub(super) async fn install(
    client: &Client,
    objects: &[Value],
    agent: &AgentArgs,
    patience: Duration,
) -> anyhow::Result<Line> {
    for object in objects {
        api::apply(client, object).await?;
        if object["kind"] == "CustomResourceDefinition" {
            let named = Named::of(object)?;
            until("the custom resource definition is established", patience, || async {
                let found = api::get(client, &named).await?.unwrap_or_default();
                let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let is = conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True");
                Ok(if is { Ok(()) } else { Err("not established yet".to_owned()) })
            })
            .await?;
        }
    }
    let ready = rolled_out(client, agent, patience).await?;
    Ok(line("installed", "agents", "the DaemonSet", "ready on every node", Ok(format!("{ready} ready"))))
}

/// Waits until the DaemonSet has an agent of its newest version ready on every node; gives how many that are.
pub(super) async fn rolled_out(
    client: &Client,
    agent: &AgentArgs,
    patience: Duration,
) -> anyhow::Result<i32> {
    until("every node has a ready agent", patience, || async {
        let set = agent.daemon_set(client).await?;
        let status = set.status.clone().unwrap_or_default();
        let wanted = status.desired_number_scheduled;
        if status.observed_generation == set.metadata.generation
            && wanted > 0
            && status.updated_number_scheduled == Some(wanted)
            && status.number_ready == wanted
        {
            return Ok(Ok(wanted));
        }
        Ok(Err(format!("{} of {wanted} are ready; {}", status.number_ready, troubles(client, agent).await?)))
    })
    .await
}

async fn troubles(client: &Client, agent: &AgentArgs) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &agent.agent_namespace);
    let found = pods.list(&ListParams::default().labels(&agent.agent_label)).await;
    let found = found.map_err(|error| anyhow!("cannot list pods: {}", text(&error)))?;
    let said: Vec<String> = found.items.iter().filter_map(trouble).collect();
    if !said.is_empty() {
        return Ok(said.join("; "));
    }
    Ok(agent.refused(client).await?.unwrap_or_else(|| "nothing is wrong with their pods".to_owned()))
}

/// The agents that were there.
pub(super) struct Removed {
    set: DaemonSet,
    /// The nodes that they were on.
    nodes: BTreeSet<String>,
}

/// Removes the DaemonSet and waits until its pods are gone; gives what it was.
pub(super) async fn remove_agents(
    client: &Client,
    agent: &AgentArgs,
    patience: Duration,
) -> anyhow::Result<Removed> {
    let set = agent.daemon_set(client).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &agent.agent_namespace);
    let ours = ListParams::default().labels(&agent.agent_label);
    let found = pods.list(&ours).await.map_err(|error| anyhow!("cannot list pods: {}", text(&error)))?;
    let nodes = found.items.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &agent.agent_namespace);
    let name = set.metadata.name.clone().unwrap_or_default();
    sets.delete(&name, &DeleteParams::background())
        .await
        .map_err(|error| anyhow!("cannot delete DaemonSet {name}: {}", text(&error)))?;
    until("the agents are gone", patience, || async {
        let left = pods.list(&ours).await.map_err(|error| anyhow!("cannot list pods: {}", text(&error)))?;
        Ok(if left.items.is_empty() { Ok(()) } else { Err(format!("{} are left", left.items.len())) })
    })
    .await?;
    Ok(Removed { set, nodes })
}

/// The pod that cleans a node up: the agent's own, with another command, that runs once.
fn cleaner(set: &DaemonSet, agent: &AgentArgs, node: &str) -> anyhow::Result<Pod> {
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let mut spec = serde_json::to_value(template.context("the DaemonSet has no pod template")?)?;
    spec["nodeName"] = json!(node);
    spec["restartPolicy"] = json!("Never");
    let containers = spec["containers"].as_array_mut().context("the DaemonSet has no containers")?;
    containers.retain(|one| one["name"] == agent.agent_container.as_str());
    let container = containers.first_mut().and_then(Value::as_object_mut);
    let container =
        container.with_context(|| format!("the DaemonSet has no container {}", agent.agent_container))?;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe", "ports"] {
        container.remove(probe);
    }
    container.insert("args".to_owned(), json!(["cleanup"]));
    let pod = json!({
        "metadata": {"generateName": "egress-cleanup-", "namespace": agent.agent_namespace},
        "spec": spec,
    });
    Ok(serde_json::from_value(pod)?)
}

/// Runs `cleanup` on every node that had an agent, and waits until it has succeeded there. A node that is not ready runs nothing, and
/// is named.
pub(super) async fn clean_nodes(
    client: &Client,
    agent: &AgentArgs,
    removed: &Removed,
    patience: Duration,
) -> anyhow::Result<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes
        .list(&ListParams::default())
        .await
        .map_err(|error| anyhow!("cannot list nodes: {}", text(&error)))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &agent.agent_namespace);
    let had = nodes.items.iter().filter(|node| removed.nodes.contains(name(node)));
    let (ready, left): (Vec<_>, Vec<_>) = had.partition(|node| is_ready(node));
    anyhow::ensure!(!ready.is_empty(), "no node that had an agent is ready");
    for node in &ready {
        let made = pods.create(&PostParams::default(), &cleaner(&removed.set, agent, name(node))?).await;
        let made = made.map_err(|error| anyhow!("cannot create a pod that cleans up: {}", text(&error)))?;
        let pod = made.metadata.name.unwrap_or_default();
        until(&format!("node {} is cleaned up", name(node)), patience, || async {
            let now =
                pods.get(&pod).await.map_err(|error| anyhow!("cannot get pod {pod}: {}", text(&error)))?;
            match now.status.as_ref().and_then(|status| status.phase.as_deref()) {
                Some("Succeeded") => Ok(Ok(())),
                Some("Failed") => {
                    let log = pods.logs(&pod, &kube::api::LogParams::default()).await.unwrap_or_default();
                    bail!("cleanup failed: {log}")
                }
                phase => Ok(Err(trouble(&now).unwrap_or_else(|| format!("{phase:?}")))),
            }
        })
        .await?;
        pods.delete(&pod, &DeleteParams::default())
            .await
            .map_err(|error| anyhow!("cannot delete pod {pod}: {}", text(&error)))?;
    }
    let left: Vec<_> = left.into_iter().map(name).collect();
    let count = ready.len();
    Ok(if left.is_empty() {
        format!("{count} nodes")
    } else {
        format!("{count} nodes; not ready, and left as they are: {}", left.join(", "))
    })
}

/// Removes the objects, the last first, and waits until none is left.
pub(super) async fn uninstall(
    client: &Client,
    objects: &[Value],
    patience: Duration,
) -> anyhow::Result<String> {
    for object in objects.iter().rev() {
        api::delete(client, &Named::of(object)?).await?;
    }
    let mut gone = 0;
    for object in objects {
        let named = Named::of(object)?;
        until(&format!("{} is gone", named.name), patience, || async {
            match api::get(client, &named).await {
                Ok(None) => Ok(Ok(())),
                Ok(Some(_)) => Ok(Err("it is still there".to_owned())),
                // With the definition go its objects.
                Err(error) if error.downcast_ref::<kube::Error>().is_some_and(is_absent) => Ok(Ok(())),
                Err(error) => Err(error),
            }
        })
        .await?;
        gone += 1;
    }
    Ok(format!("{gone} removed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_come_before_what_they_define() {
        let of = |kind: &str| json!({"kind": kind});
        let ordered = in_order(vec![
            of("EgressGatewayPolicy"),
            of("DaemonSet"),
            of("Role"),
            of("CustomResourceDefinition"),
            of("Namespace"),
        ]);
        let kinds: Vec<&str> = ordered.iter().filter_map(|one| one["kind"].as_str()).collect();
        assert_eq!(
            kinds,
            ["Namespace", "CustomResourceDefinition", "Role", "DaemonSet", "EgressGatewayPolicy"]
        );
    }

    #[test]
    fn who_cleans_up_has_what_the_agent_has_and_runs_once() {
        let set: DaemonSet = serde_json::from_value(json!({"spec": {"selector": {}, "template": {"spec": {
            "hostPID": true,
            "containers": [
                {"name": "agent", "image": "i", "args": ["run"], "ports": [{"containerPort": 1}],
                 "livenessProbe": {"httpGet": {"port": 1}}, "env": [{"name": "A", "value": "b"}]},
                {"name": "other", "image": "o"},
            ],
        }}}}))
        .unwrap();
        let agent = AgentArgs {
            agent_namespace: "egress-enforcer".to_owned(),
            agent_label: "app.kubernetes.io/name=egress-enforcer".to_owned(),
            agent_container: "agent".to_owned(),
        };
        let pod = serde_json::to_value(cleaner(&set, &agent, "n1").unwrap()).unwrap();
        let spec = &pod["spec"];
        assert_eq!(
            (&spec["nodeName"], &spec["restartPolicy"], &spec["hostPID"]),
            (&json!("n1"), &json!("Never"), &json!(true))
        );
        assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
        let container = &spec["containers"][0];
        assert_eq!((&container["args"], &container["env"][0]["name"]), (&json!(["cleanup"]), &json!("A")));
        assert!(container["livenessProbe"].is_null() && container["ports"].is_null());
    }
}
