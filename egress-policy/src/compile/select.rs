//! Which policies select a pod, and what they say about it.

use std::sync::Arc;

use super::grant::{Content, Grant, Peer, Rule, Tier};
use super::report::RuleInfo;
use crate::index::Index;
use crate::object::{
    self, Destinations, EgressGatewayPolicy, Kind, LIFELINE_NAMESPACES, NamespaceLabels, NetworkPolicy,
    ObjectError, ObjectRef, Pod, PodScope, Ports, ToPeer,
};

/// What the policies say about a pod.
#[derive(Debug)]
pub(super) enum Selection {
    Unselected,
    Isolated(Content),
    Invalid {
        policies: Vec<ObjectRef>,
        reasons: Vec<String>,
    },
    /// The Namespace object is missing, and policies ask for its labels.
    Undecided,
}

/// Collects a tier while policies are looked at.
#[derive(Default)]
struct Collected {
    tier: Option<Tier>,
    reasons: Vec<String>,
}

impl Collected {
    fn policy(&mut self, object: &ObjectRef, audit: bool, rules: Vec<Rule>) {
        let tier = self.tier.get_or_insert(Tier { audit: true, policies: Vec::new(), rules: Vec::new() });
        tier.audit &= audit;
        if tier.policies.last() != Some(object) {
            tier.policies.push(object.clone());
        }
        tier.rules.extend(rules);
    }

    fn invalid(&mut self, object: &ObjectRef, errors: &[ObjectError]) {
        self.policy(object, false, Vec::new());
        self.reasons.extend(errors.iter().map(|error| format!("{object}: {error}")));
    }
}

/// What the policies of both kinds say about a pod.
pub(super) fn select(index: &Index, pod: &Pod) -> Selection {
    let namespace = index.namespace(&pod.namespace);
    let gateway = index.is_gateway(pod);
    let lifeline = LIFELINE_NAMESPACES.contains(&&*pod.namespace);
    let subjects = index.gateway_policies().flat_map(|policy| &policy.subjects);
    let mut subjects = subjects.filter(|subject| subject.system_namespaces || !lifeline);
    if !gateway && subjects.any(|subject| !namespace.decides(&subject.who.namespaces)) {
        return Selection::Undecided;
    }
    let gateways =
        if gateway { destinations(index, pod, namespace) } else { lock_downs(index, pod, namespace) };
    let network = network_policies(index, pod);
    let reasons: Vec<String> = gateways.reasons.into_iter().chain(network.reasons).collect();
    let tiers: Vec<Tier> = gateways.tier.into_iter().chain(network.tier).collect();
    if !reasons.is_empty() {
        return Selection::Invalid {
            policies: tiers.into_iter().flat_map(|tier| tier.policies).collect(),
            reasons,
        };
    }
    if tiers.is_empty() { Selection::Unselected } else { Selection::Isolated(Content { tiers }) }
}

/// Whether a policy locks a pod down that is no gateway.
pub(super) fn is_subject(policy: &EgressGatewayPolicy, pod: &Pod, namespace: NamespaceLabels<'_>) -> bool {
    let lifeline = LIFELINE_NAMESPACES.contains(&&*pod.namespace);
    let listed = policy.subjects.iter();
    let mut listed = listed.filter(|subject| subject.system_namespaces || !lifeline);
    (policy.unreadable_subjects && !lifeline) || listed.any(|subject| subject.who.matches(pod, namespace))
}

fn lock_downs(index: &Index, pod: &Pod, namespace: NamespaceLabels<'_>) -> Collected {
    let mut found = Collected::default();
    for policy in index.gateway_policies().filter(|policy| is_subject(policy, pod, namespace)) {
        let object = policy.object_ref();
        if policy.errors.is_empty() {
            found.policy(&object, policy.audit, lock_down(&object, policy, pod, namespace));
        } else {
            found.invalid(&object, &policy.errors);
        }
    }
    found
}

/// A grant of `allow`, which never leads to a gateway.
fn allowed(peer: Peer, ports: Ports) -> Arc<Grant> {
    Arc::new(Grant { peer, ports, spare_gateways: true })
}

/// A grant that means gateways as well as others.
fn granted(peer: Peer, ports: Ports) -> Arc<Grant> {
    Arc::new(Grant { peer, ports, spare_gateways: false })
}

fn lock_down(
    object: &ObjectRef,
    policy: &EgressGatewayPolicy,
    pod: &Pod,
    namespace: NamespaceLabels<'_>,
) -> Vec<Rule> {
    let rule = |path: String, grants| Rule { info: RuleInfo { object: object.clone(), path }, grants };
    let mut rules = Vec::new();
    for gateway in &policy.gateways {
        let client = |clients: &Vec<object::Grantee>| clients.iter().any(|c| c.matches(pod, namespace));
        if !gateway.clients.as_ref().is_none_or(client) {
            continue;
        }
        let mut grants = Vec::new();
        if let Some(peer) = &gateway.pods {
            grants.push(granted(Peer::Gateway(peer.clone()), gateway.ports.clone()));
        }
        for cidr in &gateway.addresses {
            grants.push(granted(Peer::Cidr(cidr.clone()), gateway.ports.clone()));
        }
        let name = if gateway.name.is_empty() { String::new() } else { format!(" ({})", gateway.name) };
        rules.push(rule(format!("spec.gateways[{}]{name}", gateway.index), grants));
    }
    let allow = &policy.allow;
    let mut simple = |wanted: bool, field: &str, peer: Peer| {
        if wanted {
            rules.push(rule(format!("spec.allow.{field}"), vec![allowed(peer, Ports::All)]));
        }
    };
    simple(allow.dns, "dns", Peer::Dns);
    simple(allow.in_cluster, "inCluster", Peer::InCluster);
    simple(allow.api_server, "apiServer", Peer::ApiServer);
    if let Some(node) = &pod.node {
        simple(allow.node, "node", Peer::Node(node.clone()));
    }
    for (i, to) in allow.to.iter().enumerate() {
        let peer = match &to.peer {
            ToPeer::Pods(peer) => Peer::Pods(PodScope::Matching(peer.namespaces.clone()), peer.pods.clone()),
            ToPeer::Cidr(cidr) => Peer::Cidr(cidr.clone()),
            ToPeer::Service { namespace, name } => Peer::Service(namespace.clone(), name.clone()),
        };
        rules.push(rule(format!("spec.allow.to[{i}]"), vec![allowed(peer, to.ports.clone())]));
    }
    rules
}

/// What restricts a gateway's own pod: nothing where no entry that means it has `destinations`.
fn destinations(index: &Index, pod: &Pod, namespace: NamespaceLabels<'_>) -> Collected {
    let mut found = Collected::default();
    for policy in index.gateway_policies() {
        let object = policy.object_ref();
        for gateway in &policy.gateways {
            if !gateway.pods.as_ref().is_some_and(|peer| peer.matches(pod, namespace)) {
                continue;
            }
            let path = format!("spec.gateways[{}]", gateway.index);
            match &gateway.destinations {
                Destinations::Unrestricted => {}
                Destinations::Unreadable => found.invalid(&object, &policy.errors),
                Destinations::Only(listed) => {
                    let rule =
                        |path, grants| Rule { info: RuleInfo { object: object.clone(), path }, grants };
                    let listed = listed.iter().enumerate().map(|(i, (peer, ports))| {
                        let grant = granted(Peer::Cidr(peer.clone()), ports.clone());
                        rule(format!("{path}.destinations[{i}]"), vec![grant])
                    });
                    let inside = [Peer::Cluster, Peer::ApiServer]
                        .into_iter()
                        .map(|peer| granted(peer, Ports::All))
                        .collect();
                    let rules =
                        listed.chain([rule(format!("{path} (inside the cluster)"), inside)]).collect();
                    found.policy(&object, policy.audit, rules);
                }
            }
        }
    }
    found
}

/// Whether a network policy is about a pod. Pods on the host network are the node's, and none of its business.
fn selects(policy: &NetworkPolicy, pod: &Pod) -> bool {
    policy.egress
        && !pod.host_network
        && policy.namespace == pod.namespace
        && policy.pods.matches_labels(&pod.labels)
}

fn network_policies(index: &Index, pod: &Pod) -> Collected {
    let mut found = Collected::default();
    for policy in index.network_policies_of(&pod.namespace).filter(|policy| selects(policy, pod)) {
        let object = policy.object_ref();
        if !policy.errors.is_empty() {
            found.invalid(&object, &policy.errors);
            continue;
        }
        // The policy's own word counts before its namespace's.
        let enforcement = policy.enforcement.as_deref().or(index.enforcement(&policy.namespace));
        let rules = policy.rules.iter().enumerate().map(|(i, rule)| {
            let grants = match &rule.to {
                None => vec![granted(Peer::Any, rule.ports.clone())],
                Some(peers) => {
                    peers.iter().map(|peer| granted(network_peer(peer), rule.ports.clone())).collect()
                }
            };
            Rule { info: RuleInfo { object: object.clone(), path: format!("spec.egress[{i}]") }, grants }
        });
        found.policy(&object, enforcement == Some("Audit"), rules.collect());
    }
    found
}

fn network_peer(peer: &object::Peer) -> Peer {
    match peer {
        object::Peer::Pods(scope, pods) => Peer::Pods(scope.clone(), pods.clone()),
        object::Peer::Cidr(cidr) => Peer::Cidr(cidr.clone()),
    }
}

/// What unknown pods may reach: pods and services of this cluster, its DNS and its API server, but no gateway.
pub(super) fn unknown_pods(node: &str) -> Content {
    let object = ObjectRef { kind: Kind::Node, namespace: None, name: Arc::from(node) };
    let rule = |what: &str, peer| Rule {
        info: RuleInfo { object: object.clone(), path: format!("unknown pods: {what}") },
        grants: vec![allowed(peer, Ports::All)],
    };
    let rules = vec![
        rule("in cluster", Peer::InCluster),
        rule("dns", Peer::Dns),
        rule("api server", Peer::ApiServer),
    ];
    Content { tiers: vec![Tier { audit: false, policies: Vec::new(), rules }] }
}
