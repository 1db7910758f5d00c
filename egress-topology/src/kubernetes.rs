//! The Kubernetes objects of what stands, for an agent that reads them from files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::addresses::{NODE_V4, NODE_V6, POD_CIDR_V4, POD_CIDR_V6};
use crate::cgroup::Qos;
use crate::container::{ContainerKind, ContainerRecord};
use crate::nft::Service;
use crate::pod::Pod;
use crate::topology::Topology;

/// The node.
#[must_use]
pub fn node(topology: &Topology) -> Value {
    let name = topology.node_name();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": POD_CIDR_V4, "podCIDRs": [POD_CIDR_V4, POD_CIDR_V6]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": NODE_V4},
            {"type": "InternalIP", "address": NODE_V6},
            {"type": "Hostname", "address": name},
        ]},
    })
}

/// A namespace; the label with its name, which the API server sets, comes by itself.
#[must_use]
pub fn namespace(name: &str, labels: &BTreeMap<String, String>) -> Value {
    let mut labels = labels.clone();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
        "status": {"phase": "Active"},
    })
}

/// A running pod.
#[must_use]
pub fn pod(pod: &Pod, node_name: &str) -> Value {
    let spec = pod.spec();
    let containers = pod.containers();
    let of = |kinds: &[ContainerKind]| -> Vec<&ContainerRecord> {
        containers.iter().filter(|container| kinds.contains(&container.kind)).collect()
    };
    let regular = of(&[ContainerKind::Regular]);
    let init = of(&[ContainerKind::Init, ContainerKind::Sidecar]);
    let ephemeral = of(&[ContainerKind::Ephemeral]);
    let specs = |list: &[&ContainerRecord]| -> Vec<Value> {
        list.iter().map(|container| container_spec(container, spec.qos)).collect()
    };
    let statuses = |list: &[&ContainerRecord]| -> Vec<Value> {
        list.iter().map(|container| container_status(container)).collect()
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid(),
            "labels": spec.labels, "annotations": spec.annotations,
        },
        "spec": {
            "nodeName": node_name,
            "hostNetwork": spec.host_network,
            "serviceAccountName": spec.service_account,
            "containers": specs(&regular),
            "initContainers": specs(&init),
            "ephemeralContainers": specs(&ephemeral),
        },
        "status": {
            "phase": "Running",
            "qosClass": spec.qos.as_str(),
            "hostIP": NODE_V4, "hostIPs": [{"ip": NODE_V4}, {"ip": NODE_V6}],
            "podIP": pod.v4(), "podIPs": [{"ip": pod.v4()}, {"ip": pod.v6()}],
            "containerStatuses": statuses(&regular),
            "initContainerStatuses": statuses(&init),
            "ephemeralContainerStatuses": statuses(&ephemeral),
        },
    })
}

fn container_spec(container: &ContainerRecord, qos: Qos) -> Value {
    let mut spec = json!({"name": container.name, "image": "egress-probe:test"});
    if container.kind == ContainerKind::Sidecar {
        spec["restartPolicy"] = json!("Always");
    }
    if container.kind != ContainerKind::Ephemeral {
        let amounts = json!({"cpu": "100m", "memory": "64Mi"});
        match qos {
            Qos::Guaranteed => spec["resources"] = json!({"requests": amounts, "limits": amounts}),
            Qos::Burstable => spec["resources"] = json!({"requests": amounts}),
            Qos::BestEffort => {}
        }
    }
    spec
}

fn container_status(container: &ContainerRecord) -> Value {
    json!({
        "name": container.name, "containerID": format!("containerd://{}", container.id),
        "image": "egress-probe:test", "imageID": "", "ready": true, "started": true, "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    })
}

/// A service with its cluster addresses.
#[must_use]
pub fn service(service: &Service) -> Value {
    let families: Vec<&str> = service.addresses.iter().map(|address| family(*address)).collect();
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let mut object = json!({"name": port.name, "protocol": port.protocol.as_str(), "port": port.port, "targetPort": port.target_port});
            if let Some(node_port) = port.node_port {
                object["nodePort"] = json!(node_port);
            }
            object
        })
        .collect();
    let exposed = service.ports.iter().any(|port| port.node_port.is_some());
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": service.name, "namespace": service.namespace},
        "spec": {
            "type": if exposed { "NodePort" } else { "ClusterIP" }, "clusterIPs": service.addresses, "ipFamilies": families,
            "ipFamilyPolicy": if families.len() > 1 { "PreferDualStack" } else { "SingleStack" },
            "ports": ports,
        },
    });
    if let Some(first) = service.addresses.first() {
        object["spec"]["clusterIP"] = json!(first);
    }
    if !service.selector.is_empty() {
        object["spec"]["selector"] = json!(service.selector);
    }
    object
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The endpoint slices of a service: one for each family of its addresses.
#[must_use]
pub fn endpoint_slices(service: &Service, node_name: &str) -> Vec<Value> {
    let families: BTreeSet<&str> = service.addresses.iter().map(|address| family(*address)).collect();
    let slice = |family: &&str| {
        let endpoint = |backend: &crate::Backend| {
            let address: IpAddr = match *family {
                "IPv4" => backend.v4?.into(),
                _ => backend.v6?.into(),
            };
            let ready = json!({"ready": true, "serving": true, "terminating": false});
            let mut endpoint = json!({"addresses": [address], "conditions": ready});
            if let Some((namespace, name, uid)) = &backend.pod {
                endpoint["nodeName"] = json!(node_name);
                endpoint["targetRef"] =
                    json!({"kind": "Pod", "namespace": namespace, "name": name, "uid": uid});
            }
            Some(endpoint)
        };
        let endpoints: Vec<Value> = service.backends.iter().filter_map(endpoint).collect();
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|port| json!({"name": port.name, "protocol": port.protocol.as_str(), "port": port.target_port}))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", service.name, family.to_ascii_lowercase()),
                "namespace": service.namespace,
                "labels": {"kubernetes.io/service-name": service.name},
            },
            "addressType": family, "endpoints": endpoints, "ports": ports,
        })
    };
    families.iter().map(slice).collect()
}

/// Everything that stands: the node, the namespaces in use (without labels of their own), pods, services and their
/// endpoint slices.
#[must_use]
pub fn objects(topology: &Topology) -> Vec<Value> {
    let (pods, services) = (topology.pods(), topology.services());
    let namespaces: BTreeSet<&str> = pods
        .iter()
        .map(Pod::namespace)
        .chain(services.iter().map(|service| service.namespace.as_str()))
        .collect();
    let mut objects = vec![node(topology)];
    objects.extend(namespaces.iter().map(|name| namespace(name, &BTreeMap::new())));
    objects.extend(pods.iter().map(|one| pod(one, topology.node_name())));
    for one in &services {
        objects.push(service(one));
        objects.extend(endpoint_slices(one, topology.node_name()));
    }
    objects
}

/// The file name of an object in a directory of manifests.
#[must_use]
pub fn file_name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let kind = text("/kind").to_ascii_lowercase();
    let parts = [kind.as_str(), text("/metadata/namespace"), text("/metadata/name")];
    let words: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    format!("{}.yaml", words.join("_"))
}

/// Writes each object into a file of its own (JSON, which is YAML), replacing the whole file at once. Files of other
/// objects stay.
pub fn write(directory: &Path, objects: &[Value]) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    for object in objects {
        let name = file_name(object);
        let (temporary, path) = (directory.join(format!(".{name}.tmp")), directory.join(&name));
        let mut text = serde_json::to_string_pretty(object)?;
        text.push('\n');
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Removes an object's file, if it is there.
pub fn remove(directory: &Path, object: &Value) -> Result<()> {
    let path = directory.join(file_name(object));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
