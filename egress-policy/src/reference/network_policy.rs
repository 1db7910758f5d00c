//! `NetworkPolicy`: what its egress half leaves open.

use super::cluster::Cluster;
use super::matching::{labels_match, ports_hold, prefix_holds};
use super::{Rules, Target, Tier};
use crate::object::{NetworkPolicy, Peer, Pod, PodScope};

/// The network policies that isolate one pod for egress.
pub(super) struct Policies<'a> {
    policies: Vec<&'a NetworkPolicy>,
}

/// What network policies say about a pod; `None` where none isolates it.
pub(super) fn tier<'a>(cluster: &Cluster<'a>, pod: &Pod) -> Option<Tier<'a>> {
    let selects = |policy: &&NetworkPolicy| {
        policy.egress
            && !pod.host_network
            && policy.namespace == pod.namespace
            && labels_match(&policy.pods, &pod.labels)
    };
    let policies: Vec<_> = cluster.objects.network_policies().filter(selects).collect();
    if policies.is_empty() {
        return None;
    }
    let invalid = policies.iter().find_map(|policy| {
        policy.errors.first().map(|error| format!("NetworkPolicy {} is invalid: {error}", policy.name))
    });
    let names: Vec<_> =
        policies.iter().map(|policy| format!("NetworkPolicy {}/{}", policy.namespace, policy.name)).collect();
    Some(Tier {
        names: names.join(", "),
        audits: policies.iter().all(|policy| audits(cluster, policy)),
        invalid,
        rules: Rules::NetworkPolicies(Policies { policies }),
    })
}

/// Whether a policy only audits: by its own annotation, or where it has none, by that of its namespace.
fn audits(cluster: &Cluster<'_>, policy: &NetworkPolicy) -> bool {
    let of_namespace = || cluster.namespace(&policy.namespace).and_then(|n| n.enforcement.clone());
    policy.enforcement.clone().or_else(of_namespace).is_some_and(|word| word == "Audit")
}

impl Policies<'_> {
    /// The rule that allows a target.
    pub(super) fn allowing(&self, cluster: &Cluster<'_>, target: Target<'_>) -> Option<String> {
        for policy in &self.policies {
            for (i, rule) in policy.rules.iter().enumerate() {
                let meant = match &rule.to {
                    None => true,
                    Some(_) if target.virtual_only => false,
                    Some(peers) => peers.iter().any(|peer| is_meant(cluster, peer, target)),
                };
                if meant && ports_hold(&rule.ports, target) {
                    return Some(format!("NetworkPolicy {}/{} egress[{i}]", policy.namespace, policy.name));
                }
            }
        }
        None
    }
}

fn is_meant(cluster: &Cluster<'_>, peer: &Peer, target: Target<'_>) -> bool {
    match peer {
        Peer::Cidr(prefix) => prefix_holds(prefix, target.address),
        Peer::Pods(scope, pods) => target.pod.is_some_and(|pod| {
            let in_scope = match scope {
                PodScope::Namespace(name) => pod.namespace == *name,
                PodScope::Matching(selector) => cluster.namespace_matches(selector, &pod.namespace),
            };
            in_scope && !pod.host_network && labels_match(pods, &pod.labels)
        }),
    }
}
