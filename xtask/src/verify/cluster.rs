//! What must be so before anything is made in a cluster: one clear sentence for each thing that is not.

use std::collections::BTreeSet;

use anyhow::{anyhow, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};

use super::api::{Container, is_absent, text};
use super::objects::POLICY_API;

/// Where the agent is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AgentArgs {
    /// The agent's namespace.
    #[arg(long, env = "EGRESS_AGENT_NAMESPACE", default_value = "egress-enforcer", value_name = "NAME")]
    pub(crate) agent_namespace: String,
    /// What selects the agent's pods and its DaemonSet.
    #[arg(
        long,
        env = "EGRESS_AGENT_LABEL",
        default_value = "app.kubernetes.io/name=egress-enforcer",
        value_name = "KEY=VALUE"
    )]
    pub(crate) agent_label: String,
    /// The agent's container.
    #[arg(long, env = "EGRESS_AGENT_CONTAINER", default_value = "agent", value_name = "NAME")]
    pub(crate) agent_container: String,
}

impl AgentArgs {
    fn selected(&self) -> ListParams {
        ListParams::default().labels(&self.agent_label)
    }

    /// The agent's DaemonSet.
    pub(crate) async fn daemon_set(&self, client: &Client) -> anyhow::Result<DaemonSet> {
        let api: Api<DaemonSet> = Api::namespaced(client.clone(), &self.agent_namespace);
        let found = api.list(&self.selected()).await.map_err(|error| {
            anyhow!("cannot list DaemonSets in {}: {}", self.agent_namespace, text(&error))
        })?;
        let mut found = found.items.into_iter();
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => bail!(
                "namespace {} has several DaemonSets labelled {}: name one by --agent-label",
                self.agent_namespace,
                self.agent_label
            ),
            (None, _) => bail!(
                "no agent is installed: namespace {} has no DaemonSet labelled {}; install it with \
                 `deploy/install.sh deploy/kustomize/overlays/kind`, or name another place by --agent-namespace and --agent-label",
                self.agent_namespace,
                self.agent_label
            ),
        }
    }

    /// The agent's pods of a node, those that end included.
    async fn pods(&self, client: &Client, node: &str) -> anyhow::Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(client.clone(), &self.agent_namespace);
        let on_node = self.selected().fields(&format!("spec.nodeName={node}"));
        let found = api.list(&on_node).await;
        Ok(found
            .map_err(|error| anyhow!("cannot list pods in {}: {}", self.agent_namespace, text(&error)))?
            .items)
    }

    /// The node's agent, if one is ready: its container and the UID of its pod.
    pub(crate) async fn ready(
        &self,
        client: &Client,
        node: &str,
    ) -> anyhow::Result<Option<(Container, String)>> {
        let ready = self
            .pods(client, node)
            .await?
            .into_iter()
            .find(|pod| pod.metadata.deletion_timestamp.is_none() && condition(pod, "Ready"));
        Ok(ready.map(|pod| {
            let container = Container {
                namespace: self.agent_namespace.clone(),
                pod: pod.metadata.name.unwrap_or_default(),
                container: self.agent_container.clone(),
            };
            (container, pod.metadata.uid.unwrap_or_default())
        }))
    }

    /// When and why the API server refused a pod of the DaemonSet last, as far as there are events of it: a quota, Pod Security, or
    /// another admission. Such a pod is nowhere else.
    pub(crate) async fn refused(&self, client: &Client) -> anyhow::Result<Option<String>> {
        let set = self.daemon_set(client).await?.metadata.name.unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), &self.agent_namespace);
        let about = format!("involvedObject.kind=DaemonSet,involvedObject.name={set},reason=FailedCreate");
        let found = api.list(&ListParams::default().fields(&about)).await;
        let found = found
            .map_err(|error| anyhow!("cannot list events in {}: {}", self.agent_namespace, text(&error)))?;
        let last = found.items.into_iter().max_by_key(|event| event.last_timestamp.clone());
        Ok(last.map(|event| {
            let when = event.last_timestamp.map_or_else(String::new, |time| format!("{}: ", time.0));
            format!("{when}{}", event.message.unwrap_or_default())
        }))
    }

    /// Why no agent is ready on a node, for people.
    pub(crate) async fn why_not(&self, client: &Client, node: &str) -> anyhow::Result<String> {
        let pods = self.pods(client, node).await?;
        let Some(pod) = pods.first() else {
            let none = format!("the agent's DaemonSet has no pod on node {node}");
            return Ok(match self.refused(client).await? {
                Some(said) => format!("{none}; what its controller was told last: {said}"),
                None => format!("{none}: its node selector, its affinity or its tolerations may not fit"),
            });
        };
        let name = pod.metadata.name.as_deref().unwrap_or("?");
        let why = trouble(pod).unwrap_or_else(|| "it is not ready".to_owned());
        Ok(format!(
            "the agent {}/{name} on node {node} is not ready: {why}; `kubectl -n {} logs {name}` says more",
            self.agent_namespace, self.agent_namespace
        ))
    }
}

/// Whether a condition of a pod is true.
pub(crate) fn condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == kind && one.status == "True")
}

/// What keeps a pod from running, as far as its status says.
pub(crate) fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    for one in all.into_iter().flatten().flatten() {
        let state = one.state.as_ref();
        if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            let reason = waiting.reason.clone().unwrap_or_default();
            if reason != "ContainerCreating" && reason != "PodInitializing" && !reason.is_empty() {
                let message = waiting.message.clone().unwrap_or_default();
                return Some(format!("container {} of image {}: {reason}: {message}", one.name, one.image));
            }
        }
        // An init container that has done its work ends so.
        if let Some(ended) =
            state.and_then(|state| state.terminated.as_ref()).filter(|one| one.exit_code != 0)
        {
            return Some(format!("container {} ended with {}", one.name, ended.exit_code));
        }
    }
    if status.phase.as_deref() == Some("Failed") {
        let words = [status.reason.clone(), status.message.clone()];
        return Some(words.into_iter().flatten().collect::<Vec<_>>().join(": "));
    }
    None
}

/// What a run does, as (verb, group, resource): without it there is no run.
const NEEDS: [(&str, &str, &str); 22] = [
    ("create", "", "namespaces"),
    ("list", "", "namespaces"),
    ("delete", "", "namespaces"),
    ("list", "", "nodes"),
    ("create", "", "pods"),
    ("list", "", "pods"),
    ("delete", "", "pods"),
    ("get", "", "pods/exec"),
    ("create", "", "pods/exec"),
    ("create", "", "services"),
    ("get", "", "services"),
    ("list", "", "services"),
    ("create", "", "serviceaccounts"),
    ("create", "coordination.k8s.io", "leases"),
    ("get", "coordination.k8s.io", "leases"),
    ("patch", "coordination.k8s.io", "leases"),
    ("list", "", "events"),
    ("list", "discovery.k8s.io", "endpointslices"),
    ("list", "apps", "daemonsets"),
    ("get", "egress-enforcer.io", "egressgatewaypolicies"),
    ("patch", "egress-enforcer.io", "egressgatewaypolicies"),
    ("delete", "egress-enforcer.io", "egressgatewaypolicies"),
];

/// Asks the server what we may do, and names everything that we may not. `secrets`: the run makes some.
async fn permissions(client: &Client, secrets: bool) -> anyhow::Result<()> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut lacking = Vec::new();
    for (verb, group, resource) in NEEDS.into_iter().chain(secrets.then_some(("create", "", "secrets"))) {
        let (resource, subresource) =
            resource.split_once('/').map_or((resource, None), |(all, sub)| (all, Some(sub)));
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: subresource.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
            ..Default::default()
        };
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| anyhow!("cannot ask for our permissions: {}", text(&error)))?;
        if !answer.status.is_some_and(|status| status.allowed) {
            let group = if group.is_empty() { String::new() } else { format!(".{group}") };
            let subresource = subresource.map_or_else(String::new, |sub| format!("/{sub}"));
            lacking.push(format!("{verb} {resource}{group}{subresource}"));
        }
    }
    if !lacking.is_empty() {
        bail!(
            "this user may not do what a run needs: {}; use one who may, such as the cluster's admin",
            lacking.join(", ")
        );
    }
    Ok(())
}

/// Whether the cluster knows our policies.
pub(crate) async fn policies_are_known(client: &Client) -> anyhow::Result<()> {
    let missing = || {
        anyhow!(
            "the cluster does not know EgressGatewayPolicy ({POLICY_API}): install the custom resource definition with \
             `kubectl apply --server-side -k deploy/crd`"
        )
    };
    match client.list_api_group_resources(POLICY_API).await {
        Ok(list) if list.resources.iter().any(|one| one.name == "egressgatewaypolicies") => Ok(()),
        Ok(_) => Err(missing()),
        Err(error) if is_absent(&error) => Err(missing()),
        Err(error) => Err(anyhow!("cannot ask for the resources of {POLICY_API}: {}", text(&error))),
    }
}

/// Which nodes to play on: the first that can be played on, all that can have an agent, or one by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which<'a> {
    First,
    All,
    Named(&'a str),
}

/// The nodes to play on, which take pods and whose agents are ready; without those that `exclude` selects.
pub(crate) async fn nodes(
    client: &Client,
    agent: &AgentArgs,
    which: Which<'_>,
    exclude: Option<&str>,
) -> anyhow::Result<Vec<Node>> {
    let api: Api<Node> = Api::all(client.clone());
    let list = async |params: ListParams| {
        api.list(&params).await.map_err(|error| anyhow!("cannot list nodes: {}", text(&error)))
    };
    let mut excluded = BTreeSet::new();
    if let Some(selector) = exclude {
        let found = list(ListParams::default().labels(selector)).await?;
        excluded.extend(found.items.iter().map(|node| name(node).to_owned()));
    }
    let out = |node: &Node| {
        let asked = || format!("node {} is left out, as --exclude asks", name(node));
        excluded.contains(name(node)).then(asked).or_else(|| agentless(node))
    };
    let (mut chosen, mut refused, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for node in list(ListParams::default()).await?.items {
        let name = name(&node).to_owned();
        if matches!(which, Which::Named(named) if named != name) {
            continue;
        }
        if let Some(why) = out(&node).filter(|_| !matches!(which, Which::Named(_))) {
            eprintln!("    {why}: nothing is tried there");
            left_out.push(why);
            continue;
        }
        let why = match agentless(&node).or_else(|| unfit(&node)) {
            Some(why) => Some(why),
            None if agent.ready(client, &name).await?.is_none() => Some(agent.why_not(client, &name).await?),
            None => None,
        };
        match why {
            None => chosen.push(node),
            Some(why) => refused.push(why),
        }
        if which != Which::All && !chosen.is_empty() {
            break;
        }
    }
    // Who asks for one node, or for all of none, is told of these as well.
    if chosen.is_empty() {
        refused.append(&mut left_out);
    }
    match (chosen.is_empty(), refused.is_empty(), which) {
        (true, true, Which::Named(named)) => bail!("the cluster has no node {named}"),
        (true, true, _) => bail!("the cluster has no nodes"),
        (true, false, _) => bail!("no node to play on: {}", refused.join("; ")),
        // All means all: a node that is left out would count as verified.
        (false, false, Which::All) => bail!("not every node can be played on: {}", refused.join("; ")),
        _ => Ok(chosen),
    }
}

/// A node's name.
pub(crate) fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

/// Labels of nodes that are no machines of their own, and so have no agent, as the DaemonSet's affinity has them (a test compares).
const AGENTLESS: [(&str, &str); 2] =
    [("eks.amazonaws.com/compute-type", "fargate"), ("type", "virtual-kubelet")];
/// The label with a node's operating system.
const OS: &str = "kubernetes.io/os";

/// Why the DaemonSet does not mean a node, whoever has installed it. One that it could mean, and that a selector of somebody's own leaves
/// out, is not among these: its pods are meant to be locked down.
fn agentless(node: &Node) -> Option<String> {
    let labels = node.metadata.labels.as_ref()?;
    let has = |(label, value): &(&str, &str)| labels.get(*label).is_some_and(|found| found == value);
    let why = match (labels.get(OS), AGENTLESS.iter().find(|one| has(one))) {
        (Some(os), _) if os != "linux" => format!("{OS} is {os}"),
        (_, Some((label, value))) => format!("{label} is {value}"),
        _ => return None,
    };
    Some(format!("node {} has no agent, as its {why}", name(node)))
}

/// Why a node takes no pods.
fn unfit(node: &Node) -> Option<String> {
    let name = name(node);
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        return Some(format!("node {name} is cordoned"));
    }
    (!is_ready(node)).then(|| format!("node {name} is not ready"))
}

/// Whether a node's kubelet says that it works.
pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// The addresses of a node.
pub(crate) fn addresses(node: &Node) -> Vec<std::net::IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let own =
        addresses.into_iter().flatten().filter(|one| one.type_ == "InternalIP" || one.type_ == "ExternalIP");
    own.filter_map(|one| one.address.parse().ok()).collect()
}

/// The port on which a node's kubelet listens.
pub(crate) fn kubelet_port(node: &Node) -> Option<u16> {
    let endpoints = node.status.as_ref()?.daemon_endpoints.as_ref()?;
    u16::try_from(endpoints.kubelet_endpoint.as_ref()?.port).ok()
}

/// How to bring an image to a node, to be typed there or beside the cluster.
pub(crate) fn load_command(node: &Node, image: &str) -> String {
    let name = name(node);
    let runtime = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    let runtime = runtime.map_or("", |info| info.container_runtime_version.as_str());
    let kind = node
        .spec
        .as_ref()
        .and_then(|spec| spec.provider_id.as_ref())
        .and_then(|id| id.strip_prefix("kind://"));
    let short = image.rsplit('/').next().unwrap_or(image).split(':').next().unwrap_or(image);
    let archive = format!("target/image/{short}.tar");
    let cluster = kind.and_then(|rest| rest.trim_start_matches('/').split('/').nth(1)).unwrap_or("kind");
    let load = match runtime.split("://").next() {
        _ if kind.is_some() => format!("kind load image-archive {archive} --name {cluster}"),
        Some("cri-o") => {
            format!("skopeo copy oci-archive:{archive} containers-storage:{image}   # on {name}")
        }
        Some("docker") => format!("docker load -i {archive}   # on {name}"),
        _ => format!("ctr -n k8s.io images import {archive}   # on {name}"),
    };
    format!("`cargo xtask image` and `{load}`, or name an image that the node can pull by --probe-image")
}

/// The addresses of a service, without `None` of headless ones.
pub(crate) fn service_addresses(service: &Service) -> Vec<std::net::IpAddr> {
    let spec = service.spec.as_ref();
    let all =
        spec.and_then(|spec| spec.cluster_ips.clone().or_else(|| spec.cluster_ip.clone().map(|ip| vec![ip])));
    all.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect()
}

/// The cluster's DNS.
pub(crate) async fn dns(client: &Client) -> Result<std::net::IpAddr, String> {
    let api: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let found =
        api.list(&ListParams::default().labels("k8s-app=kube-dns")).await.map_err(|error| text(&error))?;
    let address = found.items.iter().flat_map(service_addresses).next();
    address.ok_or_else(|| "kube-system has no Service labelled k8s-app=kube-dns".to_owned())
}

/// The API server's service.
pub(crate) async fn api_server(client: &Client) -> Result<std::net::SocketAddr, String> {
    let api: Api<Service> = Api::namespaced(client.clone(), "default");
    let service = api.get("kubernetes").await.map_err(|error| text(&error))?;
    let port = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()?.first()).map(|port| port.port);
    let port = port.and_then(|port| u16::try_from(port).ok());
    let address = service_addresses(&service).into_iter().next();
    address
        .zip(port)
        .map(|(ip, port)| std::net::SocketAddr::new(ip, port))
        .ok_or_else(|| "Service default/kubernetes has no address".to_owned())
}

/// Everything of the above that concerns the cluster as a whole.
pub(crate) async fn preconditions(client: &Client, agent: &AgentArgs, secrets: bool) -> anyhow::Result<()> {
    policies_are_known(client).await?;
    permissions(client, secrets).await?;
    agent.daemon_set(client).await.map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    /// An API server that has these objects, each under a part of the request's first line, and lists of nothing.
    async fn server(objects: Vec<(&'static str, Value)>) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = kube::Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let asked = |part: &str| request.lines().next().unwrap().contains(part);
                let items: Vec<_> =
                    objects.iter().filter(|(part, _)| asked(part)).map(|(_, object)| object).collect();
                let body = json!({"metadata": {}, "items": items}).to_string();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
                let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Client::try_from(config).unwrap()
    }

    fn agent() -> AgentArgs {
        AgentArgs {
            agent_namespace: "egress-enforcer".to_owned(),
            agent_label: "app.kubernetes.io/name=egress-enforcer".to_owned(),
            agent_container: "agent".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_node_without_an_agent_says_what_refused_its_pod() {
        let set = ("/daemonsets?", json!({"metadata": {"name": "egress-agent"}}));
        let event = |second: u32, message: &str| {
            let event = json!({
                "metadata": {}, "involvedObject": {}, "message": message,
                "lastTimestamp": format!("2026-01-01T00:00:0{second}Z"),
            });
            ("involvedObject.name%3Degress-agent%2Creason%3DFailedCreate", event)
        };
        let client = server(vec![set.clone()]).await;
        let guess = agent().why_not(&client, "n1").await.unwrap();
        assert!(guess.contains("no pod on node n1") && guess.contains("tolerations"), "{guess}");
        let client = server(vec![set, event(1, "old"), event(3, "no quota"), event(2, "older")]).await;
        let told = agent().why_not(&client, "n1").await.unwrap();
        assert!(told.contains("no pod on node n1") && told.contains("00:00:03Z: no quota"), "{told}");
        assert!(!told.contains("tolerations"), "{told}");
    }

    #[test]
    fn the_command_that_loads_an_image_fits_the_runtime() {
        let of = |runtime: &str, provider: &str| {
            load_command(
                &node(json!({
                    "metadata": {"name": "n1"}, "spec": {"providerID": provider},
                    "status": {"nodeInfo": {
                        "containerRuntimeVersion": runtime, "architecture": "", "bootID": "", "kernelVersion": "",
                        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
                        "osImage": "", "systemUUID": "",
                    }},
                })),
                "localhost/egress-enforcer/egress-probe:0.1.0",
            )
        };
        assert!(
            of("containerd://2.1.9", "")
                .contains("ctr -n k8s.io images import target/image/egress-probe.tar")
        );
        let crio = of("cri-o://1.30", "");
        assert!(crio.contains("containers-storage:localhost/egress-enforcer/egress-probe:0.1.0"), "{crio}");
        let kind = of("containerd://2.1.9", "kind://docker/mesh/mesh-control-plane");
        assert!(kind.contains("kind load image-archive target/image/egress-probe.tar --name mesh"), "{kind}");
    }

    fn labelled(name: &str, labels: &Value) -> Value {
        json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    #[tokio::test]
    async fn all_nodes_are_those_that_can_have_an_agent() {
        let linux = labelled("linux", &json!({OS: "linux", "type": "gpu"}));
        let windows = labelled("windows", &json!({OS: "windows"}));
        let fargate = labelled("fargate", &json!({OS: "linux", "eks.amazonaws.com/compute-type": "fargate"}));
        let virtually = labelled("virtual", &json!({"type": "virtual-kubelet"}));
        let pod = json!({
            "metadata": {"name": "egress-agent-1"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        let mut objects = vec![("/daemonsets?", json!({"metadata": {"name": "egress-agent"}}))];
        objects.extend([windows, fargate.clone(), virtually, linux].map(|node| ("/nodes?", node)));
        // An agent on one node alone.
        objects.push(("spec.nodeName%3Dlinux", pod));
        let client = server(objects.clone()).await;
        for which in [Which::All, Which::First] {
            let chosen = nodes(&client, &agent(), which, None).await.unwrap();
            assert_eq!(chosen.iter().map(name).collect::<Vec<_>>(), ["linux"]);
        }
        // Who names one is told.
        let error = nodes(&client, &agent(), Which::Named("fargate"), None).await.unwrap_err().to_string();
        assert!(error.contains("compute-type is fargate"), "{error}");
        // One that could have an agent is still missed.
        objects.push(("/nodes?", labelled("bare", &json!({OS: "linux"}))));
        let client = server(objects.clone()).await;
        let error = nodes(&client, &agent(), Which::All, None).await.unwrap_err().to_string();
        assert!(error.contains("not every node") && error.contains("node bare"), "{error}");
        assert!(!error.contains("fargate"), "{error}");
        // Unless somebody says that it has none on purpose.
        let bare = labelled("bare", &json!({OS: "linux"}));
        let others =
            objects.into_iter().map(|(part, one)| (if part == "/nodes?" { "/nodes? " } else { part }, one));
        let client = server(others.chain([("/nodes?&labelSelector=bare%3Dtrue ", bare)]).collect()).await;
        let chosen = nodes(&client, &agent(), Which::All, Some("bare=true")).await.unwrap();
        assert_eq!(chosen.iter().map(name).collect::<Vec<_>>(), ["linux"]);
        let client = server(vec![("/nodes?", fargate)]).await;
        let error = nodes(&client, &agent(), Which::All, None).await;
        assert!(error.unwrap_err().to_string().contains("no node to play on: node fargate has no agent"));
    }

    #[test]
    fn nodes_without_an_agent_are_those_that_the_manifest_leaves_out() {
        let manifest = include_str!("../../../deploy/kustomize/base/daemonset.yaml");
        let set: Value = serde_saphyr::from_str(manifest).unwrap();
        let pod = &set["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"], json!({OS: "linux"}));
        let affinity = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let expressions =
            AGENTLESS.map(|(key, value)| json!({"key": key, "operator": "NotIn", "values": [value]}));
        assert_eq!(affinity["nodeSelectorTerms"], json!([{"matchExpressions": expressions}]));
    }

    #[test]
    fn nodes_that_take_no_pods_say_why() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let with = |unschedulable: bool, conditions: &Value| {
            unfit(&node(json!({
                "metadata": {"name": "n1"}, "spec": {"unschedulable": unschedulable},
                "status": {"conditions": conditions},
            })))
        };
        assert_eq!(with(false, &ready), None);
        assert!(with(true, &ready).unwrap().contains("cordoned"));
        assert!(with(false, &json!([{"type": "Ready", "status": "Unknown"}])).unwrap().contains("not ready"));
    }

    #[test]
    fn a_pod_that_cannot_start_says_why() {
        let of = |status: Value| trouble(&serde_json::from_value(json!({"status": status})).unwrap());
        let container = |state: Value| {
            json!({"containerStatuses": [{
                "name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }]})
        };
        let waiting = |reason: &str| container(json!({"waiting": {"reason": reason, "message": "m"}}));
        assert_eq!(of(waiting("ContainerCreating")), None);
        assert_eq!(of(container(json!({"running": {}}))), None);
        assert_eq!(of(waiting("ImagePullBackOff")).unwrap(), "container a of image i: ImagePullBackOff: m");
        assert!(of(json!({"phase": "Failed", "reason": "OutOfcpu"})).unwrap().contains("OutOfcpu"));
    }
}
