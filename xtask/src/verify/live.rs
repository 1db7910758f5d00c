//! The stage in a cluster: objects of a run in it, programs by the exec subresource, the agent in its pod.
//!
//! Invariant: nothing is in a cluster before it can be found by the run's label, so that it can be removed however we end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::Value;

use super::api::{self, Container, Named, text};
use super::cluster::{self, AgentArgs};
use super::objects::{Mode, PROBE, Run};
use super::scene::{HTTP, Outside, Part, Place, Scene};
use super::stage::{Stage, until};

/// How long the agent may take to answer a question.
const QUESTION: Duration = Duration::from_secs(20);

/// A run in a cluster.
pub(crate) struct Live {
    client: Client,
    agent: AgentArgs,
    run: Run,
    scene: Scene,
    patience: Duration,
    /// The UID of the agent's pod that was killed last.
    killed: RefCell<Option<String>>,
}

impl Live {
    /// Makes everything and waits until it works.
    pub(crate) async fn new(
        client: Client,
        agent: AgentArgs,
        run: Run,
        node: &Node,
        outside: Outside,
        domain: &str,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        for object in run.before_pods() {
            api::create(&client, &object).await?;
        }
        for object in run.pods(&outside) {
            api::create(&client, &object).await?;
        }
        eprintln!("    waiting for the pods of run {} on node {}", run.id, run.node);
        let mut pods = BTreeMap::new();
        for place in Place::ALL {
            if place == Place::Outside && !outside.is_watched() || place == Place::Debugger {
                continue;
            }
            pods.insert(place.pod(), ready(&client, &run, node, place, patience).await?);
        }
        let debugger = debugger(&client, &run, patience).await;
        let page = pods.get(Place::Productpage.pod()).map_or(&[][..], Vec::as_slice);
        let outside = outside.seen_from(page);
        let node_at = cluster::addresses(node).into_iter().find(|ip| ip.is_ipv6() == outside.is_v6());
        let node_at = node_at.zip(cluster::kubelet_port(node));
        let scene = Scene {
            namespaces: run.namespaces(),
            pods,
            reviews_service: service(&client, &run, Part::Mesh, "reviews").await?,
            gateway_service: service(&client, &run, Part::Exit, "istio-egressgateway").await?,
            outside,
            dns: cluster::dns(&client).await.map(|ip| (ip, format!("kubernetes.default.svc.{domain}"))),
            api: cluster::api_server(&client).await,
            node: node_at.map(|(ip, port)| SocketAddr::new(ip, port)).ok_or_else(|| {
                "the node does not say where its kubelet listens, or not for the pods' IP family".to_owned()
            }),
            debugger,
        };
        let live = Self { client, agent, run, scene, patience, killed: RefCell::default() };
        live.services_work().await?;
        Ok(live)
    }

    fn container(&self, place: Place) -> Container {
        Container {
            namespace: self.run.namespace(place.part()),
            pod: place.pod().to_owned(),
            container: place.container().to_owned(),
        }
    }

    fn pods(&self, part: Part) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.run.namespace(part))
    }

    /// Waits for endpoints, and then for the service proxy of the node.
    async fn services_work(&self) -> anyhow::Result<()> {
        for (part, name) in [(Part::Mesh, "reviews"), (Part::Exit, "istio-egressgateway")] {
            let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.run.namespace(part));
            let of = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
            until(&format!("service {name} has endpoints"), self.patience, || async {
                let found = slices
                    .list(&of)
                    .await
                    .map_err(|error| anyhow!("cannot list EndpointSlices: {}", text(&error)))?;
                let there = found.items.iter().any(|slice| {
                    slice.endpoints.iter().any(|one| {
                        one.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
                    })
                });
                let missing = "no EndpointSlice has a ready endpoint (is the controller manager running?)";
                Ok(if there { Ok(()) } else { Err(missing.to_owned()) })
            })
            .await?;
        }
        let Some(reviews) = self.scene.reviews_service.first() else { return Ok(()) };
        let url = format!("http://{}/", SocketAddr::new(*reviews, HTTP));
        let words = ["get".to_owned(), url, "--timeout-ms".to_owned(), "2000".to_owned()];
        until("the node forwards to services", self.patience, || async {
            let lines = self.probe(Place::Free, None, &words, QUESTION).await?;
            let attempt: egress_probe::Attempt = super::stage::last(&lines)?;
            let why = format!("{} (does kube-proxy, or what replaces it, run?)", attempt.detail);
            Ok(if attempt.succeeded() { Ok(()) } else { Err(why) })
        })
        .await
    }
}

/// Waits until a pod is ready, and gives its addresses. What cannot get better ends the waiting.
async fn ready(
    client: &Client,
    run: &Run,
    node: &Node,
    place: Place,
    patience: Duration,
) -> anyhow::Result<Vec<IpAddr>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &run.namespace(place.part()));
    let what = format!("pod {} is ready", place.pod());
    let looks = Cell::new(0);
    let waited = until(&what, patience, || async {
        let pod = pods.get(place.pod()).await;
        let pod = pod.map_err(|error| anyhow!("cannot get pod {}: {}", place.pod(), text(&error)))?;
        looks.set(looks.get() + 1);
        match cluster::trouble(&pod) {
            // One refusal may be a passing one; of a registry that cannot be reached it is not.
            Some(trouble) if trouble.contains("Image") && (looks.get() > 40 || trouble.contains("Never")) => {
                bail!("{trouble}: bring the image to the node: {}", cluster::load_command(node, &run.image))
            }
            Some(trouble) => Ok(Err(trouble)),
            None if !cluster::condition(&pod, "Ready") => Ok(Err("not ready yet".to_owned())),
            None => Ok(Ok(addresses(&pod))),
        }
    })
    .await;
    match waited {
        Err(error) => Err(error.context(last_event(client, run, place).await)),
        ok => ok,
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
    ips.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect()
}

/// What the cluster last complained of about a pod, for people.
async fn last_event(client: &Client, run: &Run, place: Place) -> String {
    let events: Api<Event> = Api::namespaced(client.clone(), &run.namespace(place.part()));
    let of = ListParams::default().fields(&format!("involvedObject.name={},type=Warning", place.pod()));
    let found = events.list(&of).await.map(|list| list.items).unwrap_or_default();
    let said = found.last().and_then(|event| event.message.clone());
    said.map_or_else(
        || format!("pod {} has no warnings", place.pod()),
        |said| format!("pod {}: {said}", place.pod()),
    )
}

/// Adds the debugger to productpage; where that may not be, that is a reason.
async fn debugger(client: &Client, run: &Run, patience: Duration) -> Result<(), String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &run.namespace(Part::Mesh));
    let name = Place::Debugger.pod();
    let added = pods
        .patch_ephemeral_containers(name, &PatchParams::default(), &Patch::Strategic(run.debugger()))
        .await;
    added.map_err(|error| format!("no ephemeral container can be added: {}", text(&error)))?;
    let runs = until("the debugger runs", patience, || async {
        let pod = pods.get(name).await.map_err(|error| anyhow!("cannot get pod {name}: {}", text(&error)))?;
        let statuses = pod.status.as_ref().and_then(|status| status.ephemeral_container_statuses.clone());
        let mut states = statuses.into_iter().flatten().filter_map(|one| one.state);
        Ok(if states.any(|state| state.running.is_some()) {
            Ok(())
        } else {
            Err(cluster::trouble(&pod).unwrap_or_else(|| "it does not run yet".to_owned()))
        })
    });
    runs.await.map_err(|error| format!("{error:#}"))
}

async fn service(client: &Client, run: &Run, part: Part, name: &str) -> anyhow::Result<Vec<IpAddr>> {
    let api: Api<Service> = Api::namespaced(client.clone(), &run.namespace(part));
    let found =
        api.get(name).await.map_err(|error| anyhow!("cannot get service {name}: {}", text(&error)))?;
    Ok(cluster::service_addresses(&found))
}

impl Stage for Live {
    fn scene(&self) -> &Scene {
        &self.scene
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    async fn probe(
        &self,
        place: Place,
        user: Option<u32>,
        words: &[String],
        within: Duration,
    ) -> anyhow::Result<Vec<String>> {
        let mut argv = vec![PROBE.to_owned()];
        if let Some(user) = user {
            argv.push(format!("--user={user}"));
        }
        argv.extend_from_slice(words);
        let text = api::exec_ok(&self.client, &self.container(place), &argv, within).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    async fn agent(&self, words: &[&str]) -> anyhow::Result<Option<String>> {
        let Some((container, _)) = self.agent.ready(&self.client, &self.run.node).await? else {
            return Ok(None);
        };
        let argv: Vec<String> =
            std::iter::once("egress-agent").chain(words.iter().copied()).map(str::to_owned).collect();
        api::exec_ok(&self.client, &container, &argv, QUESTION).await.map(Some)
    }

    async fn policy(&self, mode: Option<Mode>) -> anyhow::Result<()> {
        let policy = self.run.policy(mode.unwrap_or(Mode::Enforce), &self.scene.outside);
        match mode {
            Some(_) => api::apply(&self.client, &policy).await,
            None => api::delete(&self.client, &Named::of(&policy)?).await,
        }
    }

    async fn accepted(&self) -> anyhow::Result<Option<Result<String, String>>> {
        let policy = Named::of(&self.run.policy(Mode::Enforce, &self.scene.outside))?;
        // Whoever writes it is one agent of all, and may have to be elected first: a leader that died is waited for a minute, and looked for
        // every 45 seconds at least.
        let patience = self.patience.min(Duration::from_mins(2));
        let said = RefCell::new(String::new());
        let waited = until("the policy's status says Accepted", patience, || async {
            let found = api::get(&self.client, &policy).await?.context("the policy is gone")?;
            let is = accepted(&found);
            said.replace(is.clone().unwrap_or_else(|why| why));
            Ok(is)
        })
        .await;
        Ok(Some(waited.map_err(|_| said.into_inner())))
    }

    async fn kill_agent(&self) -> anyhow::Result<()> {
        let ready = self.agent.ready(&self.client, &self.run.node).await?;
        let (container, uid) = ready.context("no agent is ready on the node")?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &container.namespace);
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete(&container.pod, &at_once)
            .await
            .map_err(|error| anyhow!("cannot delete pod {}: {}", container.pod, text(&error)))?;
        self.killed.replace(Some(uid));
        Ok(())
    }

    async fn revive_agent(&self) -> anyhow::Result<()> {
        until("another agent is ready on the node", self.patience, || async {
            let ready = self.agent.ready(&self.client, &self.run.node).await?;
            Ok(match ready {
                Some((_, uid)) if Some(&uid) != self.killed.borrow().as_ref() => Ok(()),
                _ => Err(self.agent.why_not(&self.client, &self.run.node).await?),
            })
        })
        .await
    }

    async fn probes(&self) -> anyhow::Result<Option<Result<(), String>>> {
        let mut why = Vec::new();
        for place in [Place::Productpage, Place::Reviews] {
            let pod =
                self.pods(place.part()).get(place.pod()).await.map_err(|error| anyhow!(text(&error)))?;
            let events = self.unhealthy(place).await?;
            if !cluster::condition(&pod, "Ready") || events > 0 {
                why.push(format!("{} was not ready: {events} times Unhealthy", place.pod()));
            }
        }
        Ok(Some(if why.is_empty() { Ok(()) } else { Err(why.join("; ")) }))
    }
}

impl Live {
    /// Starts the probe in a container, to read its lines as they come.
    pub(super) async fn start(&self, place: Place, words: &[&str]) -> anyhow::Result<api::Lines> {
        let argv: Vec<String> = std::iter::once(&PROBE).chain(words).map(|&word| word.to_owned()).collect();
        api::start(&self.client, &self.container(place), &argv).await
    }

    /// How often kubelet said that a pod did not answer, after it had been ready once.
    async fn unhealthy(&self, place: Place) -> anyhow::Result<i32> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.run.namespace(place.part()));
        let of = format!("involvedObject.name={},reason=Unhealthy", place.pod());
        let found =
            events.list(&ListParams::default().fields(&of)).await.map_err(|error| anyhow!(text(&error)))?;
        let pod = self.pods(place.part()).get(place.pod()).await.map_err(|error| anyhow!(text(&error)))?;
        let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
        let ready = conditions
            .iter()
            .find(|one| one.type_ == "Ready")
            .and_then(|one| one.last_transition_time.clone());
        let later = |event: &&Event| {
            event.last_timestamp.as_ref().zip(ready.as_ref()).is_none_or(|(event, ready)| event.0 > ready.0)
        };
        Ok(found.items.iter().filter(later).map(|event| event.count.unwrap_or(1)).sum())
    }
}

/// What the condition says, or what is missing.
fn accepted(policy: &Value) -> Result<String, String> {
    let generation = &policy["metadata"]["generation"];
    let conditions = policy["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|one| one["type"] == "Accepted");
    match found {
        None => Err("it has no condition Accepted".to_owned()),
        Some(one) if one["observedGeneration"].is_number() && &one["observedGeneration"] != generation => {
            Err("it is about an earlier version".to_owned())
        }
        Some(one) if one["status"] == "True" => Ok("True".to_owned()),
        Some(one) => Err(format!("{}: {}", one["reason"], one["message"])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_counts_for_its_own_version_alone() {
        let with = |observed: i64, status: &str| {
            accepted(&json!({
                "metadata": {"generation": 2},
                "status": {"conditions": [
                    {"type": "Accepted", "status": status, "observedGeneration": observed, "reason": "R", "message": "M"},
                ]},
            }))
        };
        assert_eq!(with(2, "True").unwrap(), "True");
        assert!(with(1, "True").unwrap_err().contains("earlier"));
        assert!(with(2, "False").unwrap_err().contains("\"R\""));
        assert!(accepted(&json!({})).is_err());
    }
}
