//! Reads pods, namespaces and nodes.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::cluster::{
    Cgroups, Container, ContainerKind, HostPort, MESH_ANNOTATIONS, NamedPort, Namespace, Node, Pod, PodSpec,
    Template,
};
use super::net::{read_address, read_port, read_protocol};
use super::{Kind, Labels, Metadata, Object, ObjectError, Uid, parse};

/// Annotations with the hash by which a static pod's cgroup is named.
const CONFIG_MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const CONFIG_HASH_ANNOTATION: &str = "kubernetes.io/config.hash";

/// Labels of nodes that run no agent: those of Windows, and what is no machine of its own (EKS Fargate, virtual-kubelet).
const WITHOUT_AGENT: [(&str, &str); 3] = [
    ("kubernetes.io/os", "windows"),
    ("eks.amazonaws.com/compute-type", "fargate"),
    ("type", "virtual-kubelet"),
];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawPod {
    spec: Option<RawPodSpec>,
    status: Option<RawPodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawPodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    share_process_namespace: Option<bool>,
    #[serde(rename = "hostPID")]
    host_pid: Option<bool>,
    volumes: Option<Vec<RawVolume>>,
    service_account_name: Option<String>,
    /// The old name of the same; the API server fills in both.
    service_account: Option<String>,
    security_context: Option<RawSecurityContext>,
    containers: Option<Vec<RawContainer>>,
    init_containers: Option<Vec<RawContainer>>,
    ephemeral_containers: Option<Vec<RawContainer>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawVolume {
    host_path: Option<RawHostPath>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawHostPath {
    path: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSecurityContext {
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
    privileged: Option<bool>,
    capabilities: Option<RawCapabilities>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawCapabilities {
    add: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawContainer {
    name: String,
    security_context: Option<RawSecurityContext>,
    restart_policy: Option<String>,
    target_container_name: Option<String>,
    ports: Option<Vec<RawContainerPort>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawContainerPort {
    name: Option<String>,
    container_port: i64,
    host_port: Option<i64>,
    protocol: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<RawIp>>,
    #[serde(rename = "containerStatuses")]
    containers: Option<Vec<RawContainerStatus>>,
    #[serde(rename = "initContainerStatuses")]
    init_containers: Option<Vec<RawContainerStatus>>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral_containers: Option<Vec<RawContainerStatus>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawIp {
    ip: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNode {
    status: Option<RawNodeStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNodeStatus {
    addresses: Option<Vec<RawNodeAddress>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNodeAddress {
    r#type: String,
    address: String,
}

/// Reads a pod, a namespace or a node.
pub(super) fn read(
    kind: Kind,
    namespace: Arc<str>,
    metadata: Metadata,
    value: &Value,
) -> Result<Object, ObjectError> {
    let name: Arc<str> = Arc::from(metadata.name.as_str());
    let labels = metadata.labels.unwrap_or_default();
    let annotations = metadata.annotations.unwrap_or_default();
    match kind {
        Kind::Namespace => {
            let enforcement = annotations.get(super::ENFORCEMENT_ANNOTATION).cloned();
            Ok(Object::Namespace(Namespace { name, labels, enforcement }))
        }
        Kind::Node => node(parse(value, "")?, name, &labels).map(Object::Node),
        _ => {
            let raw: RawPod = parse(value, "")?;
            let mut spec = pod_spec(raw.spec.as_ref())?;
            spec.mesh_annotations = MESH_ANNOTATIONS
                .iter()
                .filter_map(|key| Some((Arc::from(*key), Arc::from(annotations.get(*key)?.as_str()))))
                .collect();
            let container_ids = container_ids(raw.status.as_ref());
            let mut pod = pod(raw, spec, namespace, &name, labels)?;
            pod.uid = metadata.uid.as_deref().map(Uid::from).unwrap_or_default();
            let hash = annotations.get(CONFIG_HASH_ANNOTATION).filter(|hash| !hash.is_empty());
            // Kubelet writes both, and names the node as the owner; see `pkg/kubelet/pod/mirror_client.go`.
            let mirrors = hash.is_some() && annotations.get(CONFIG_MIRROR_ANNOTATION) == hash;
            let of_node = metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Node");
            let static_hash = hash.filter(|_| mirrors && of_node).map(|hash| Arc::from(hash.as_str()));
            pod.set_cgroups(Cgroups { static_hash, container_ids });
            Ok(Object::Pod(pod))
        }
    }
}

fn pod_spec(raw: Option<&RawPodSpec>) -> Result<PodSpec, ObjectError> {
    let default = RawPodSpec::default();
    let raw = raw.unwrap_or(&default);
    let mut accounts = [&raw.service_account_name, &raw.service_account].into_iter().flatten();
    let account = accounts.find(|name| !name.is_empty()).map(String::as_str);
    let service_account = Arc::from(account.unwrap_or("default"));
    let shared_processes = raw.share_process_namespace.unwrap_or(false);
    let mounted =
        raw.volumes.iter().flatten().filter_map(|volume| volume.host_path.as_ref()?.path.as_deref());
    let mut spec = PodSpec {
        service_account,
        shared_processes,
        host_pid: raw.host_pid.unwrap_or(false),
        host_paths: mounted.map(Arc::from).collect(),
        ..PodSpec::default()
    };
    // An init container that restarts always is a sidecar: it runs beside the others.
    let init = |container: &RawContainer| match container.restart_policy.as_deref() {
        Some("Always") => ContainerKind::Sidecar,
        _ => ContainerKind::Init,
    };
    let regular = raw.containers.iter().flatten().map(|c| (ContainerKind::Regular, c));
    let init = raw.init_containers.iter().flatten().map(|c| (init(c), c));
    let ephemeral = raw.ephemeral_containers.iter().flatten().map(|c| (ContainerKind::Ephemeral, c));
    let of_pod = raw.security_context.as_ref();
    for (kind, container) in regular.chain(init).chain(ephemeral) {
        if kind.lasts() {
            let path = "spec.containers[].ports[]";
            for raw in container.ports.iter().flatten() {
                let name = raw.name.as_deref().filter(|name| !name.is_empty());
                let host = raw.host_port.filter(|host| *host != 0);
                if name.is_none() && host.is_none() {
                    continue;
                }
                let protocol = read_protocol(raw.protocol.as_deref(), path)?;
                let port = read_port(raw.container_port, path)?;
                spec.named_ports.extend(name.map(|name| NamedPort { name: Arc::from(name), protocol, port }));
                if let Some(host) = host {
                    spec.host_ports.push(HostPort { protocol, host: read_port(host, path)?, port });
                }
            }
        }
        let context = container.security_context.as_ref();
        let added = context.and_then(|context| context.capabilities.as_ref()?.add.as_ref());
        spec.containers.push(Container {
            name: Arc::from(container.name.as_str()),
            kind,
            run_as_user: context.and_then(|c| c.run_as_user).or(of_pod.and_then(|of| of.run_as_user)),
            run_as_group: context.and_then(|c| c.run_as_group).or(of_pod.and_then(|of| of.run_as_group)),
            capabilities: added.into_iter().flatten().map(|name| Arc::from(name.as_str())).collect(),
            privileged: context.and_then(|context| context.privileged).unwrap_or(false),
            target: container.target_container_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
        });
    }
    Ok(spec)
}

/// Ids and names of containers that were started.
fn container_ids(status: Option<&RawPodStatus>) -> Box<[(Arc<str>, Arc<str>)]> {
    let lists = status.map(|of| [&of.containers, &of.init_containers, &of.ephemeral_containers]);
    let statuses = lists.into_iter().flatten().flatten().flatten();
    // As in `containerd://0123...`.
    let id = |one: &RawContainerStatus| Some(Arc::from(one.id.as_ref()?.split_once("://")?.1));
    statuses.filter_map(|one| Some((id(one)?, Arc::from(one.name.as_str())))).collect()
}

fn pod(
    raw: RawPod,
    pod_spec: PodSpec,
    namespace: Arc<str>,
    name: &str,
    labels: Labels,
) -> Result<Pod, ObjectError> {
    let spec = raw.spec.unwrap_or_default();
    let status = raw.status.unwrap_or_default();
    let mut addresses = Vec::new();
    let listed = status.pod_ips.unwrap_or_default().into_iter().filter_map(|entry| entry.ip);
    for text in listed.chain(status.pod_ip) {
        let Some(ip) = read_address(&text, "status.podIPs")? else {
            continue;
        };
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    let host_network = spec.host_network.unwrap_or(false);
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    Ok(Pod {
        name: name.into(),
        uid: Uid::default(),
        template: Arc::new(Template { namespace, labels, spec: Arc::new(pod_spec), host_network, finished }),
        node: spec.node_name.filter(|name| !name.is_empty()).map(|name| Arc::new(name.into())),
        addresses: addresses.into(),
        cgroups: None,
    })
}

fn node(raw: RawNode, name: Arc<str>, labels: &Labels) -> Result<Node, ObjectError> {
    let mut addresses = Vec::new();
    for entry in raw.status.unwrap_or_default().addresses.unwrap_or_default() {
        if matches!(entry.r#type.as_str(), "InternalIP" | "ExternalIP") {
            addresses.extend(read_address(&entry.address, "status.addresses")?);
        }
    }
    let is = |(key, value): &(&str, &str)| labels.get(key) == Some(value);
    let has_agent = !WITHOUT_AGENT.iter().any(is);
    Ok(Node { name, addresses, further: Vec::new(), has_agent })
}
