//! The Kubernetes objects: what stands, the pods that may be reached, and the policy.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use egress_topology::{Topology, kubernetes};
use serde_json::{Value, json};

use crate::destinations::Destinations;

/// The namespace that is locked down.
pub const LOCKED: &str = "locked";
/// The namespace of the pods that may be reached.
const REACHED: &str = "reached";

/// Everything of a node; the pods and the policy are in files of their own.
pub fn write(directory: &Path, topology: &Topology, destinations: &Destinations) -> anyhow::Result<()> {
    kubernetes::write(directory, &kubernetes::objects(topology))?;
    let files = [("policy.json", policy(destinations)), ("pods.json", pods(destinations))];
    for (name, object) in files {
        let path = directory.join(name);
        fs::write(&path, object.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The same, without files.
pub fn all(topology: &Topology, destinations: &Destinations) -> Vec<Value> {
    let mut objects = kubernetes::objects(topology);
    objects.extend([policy(destinations), pods(destinations)]);
    objects
}

fn policy(destinations: &Destinations) -> Value {
    let cidrs = destinations.outside.iter().map(|(prefix, bits)| json!({"cidr": format!("{prefix}/{bits}")}));
    let pods = json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": REACHED}}});
    let to: Vec<Value> = cidrs.chain([pods]).collect();
    json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy",
        "metadata": {"name": "lock"},
        "spec": {
            "subjects": [{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": LOCKED}}}],
            "gateways": [],
            "allow": {"dns": "None", "inCluster": false, "apiServer": false, "node": false, "to": to},
        },
    })
}

fn pods(destinations: &Destinations) -> Value {
    let pod = |(number, address): (usize, &std::net::Ipv4Addr)| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": REACHED, "name": format!("app-{number}"), "labels": {"app": format!("app-{}", number / 20)},
                "uid": format!("00000000-0000-4000-8000-{number:012}"),
            },
            "spec": {"nodeName": format!("other-{}", number / 250), "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        })
    };
    let mut items = vec![kubernetes::namespace(REACHED, &std::collections::BTreeMap::new())];
    items.extend(destinations.pods.iter().enumerate().map(pod));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
