//! Which policies select a pod, and what they say about it.

use std::collections::BTreeSet;
use std::sync::Arc;

use egress_common::packet::protocol;

use super::grant::{Content, Grant, Peer, Rule, Tier};
use super::report::RuleInfo;
use crate::index::Index;
use crate::object::{
    self, Destinations, EgressGatewayPolicy, Kind, LIFELINE_NAMESPACES, NamespaceLabels, NetworkPolicy,
    ObjectError, ObjectRef, Pod, PodScope, Port, PortRange, Ports, Proxy, Scope, ToPeer,
};

/// What the policies say about a pod.
#[derive(Debug)]
pub(super) enum Selection {
    Unselected,
    Isolated {
        content: Content,
        /// What the proxy locks of its policies cover together.
        lock: Option<Scope>,
    },
    Invalid {
        policies: Vec<ObjectRef>,
        reasons: Vec<String>,
    },
    /// The Namespace object is missing, and policies ask for its labels.
    Undecided,
}

/// Why a pod is not judged by its policies, or is invalid.
pub(super) const UNDECIDED: &str = "its Namespace is not known and policies select by namespace labels";

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

/// What the policies of both kinds say about a container of a pod; without a name, about one that is no proxy.
pub(super) fn select(index: &Index, pod: &Pod, container: Option<&str>) -> Selection {
    let namespace = index.namespace(&pod.namespace);
    let gateway = index.is_gateway(pod);
    let lifeline = LIFELINE_NAMESPACES.contains(&&*pod.namespace);
    let subjects = index.gateway_policies().flat_map(|policy| &policy.subjects);
    let mut subjects = subjects.filter(|subject| subject.system_namespaces || !lifeline);
    let undecided = !gateway && subjects.any(|subject| !namespace.decides(&subject.who.namespaces));
    let gateways = if gateway {
        destinations(index, pod, namespace)
    } else {
        lock_downs(index, pod, namespace, container)
    };
    let network = network_policies(index, pod);
    let mut reasons: Vec<String> = gateways.reasons.into_iter().chain(network.reasons).collect();
    let tiers: Vec<Tier> = gateways.tier.into_iter().chain(network.tier).collect();
    if undecided {
        // What selects it for certain may say less than unknown pods may do, and what is not known may say less than that.
        if tiers.is_empty() {
            return Selection::Undecided;
        }
        reasons.push(UNDECIDED.to_owned());
    }
    if !reasons.is_empty() {
        return Selection::Invalid {
            policies: tiers.into_iter().flat_map(|tier| tier.policies).collect(),
            reasons,
        };
    }
    if tiers.is_empty() {
        return Selection::Unselected;
    }
    let locks = locks(index, pod, namespace).map(|proxy| proxy.scope);
    Selection::Isolated { content: Content { tiers }, lock: if gateway { None } else { locks.max() } }
}

/// The proxy locks of the policies that have a pod among their subjects.
fn locks<'a>(
    index: &'a Index,
    pod: &'a Pod,
    namespace: NamespaceLabels<'a>,
) -> impl Iterator<Item = &'a Proxy> {
    let policies = index.gateway_policies().filter(move |policy| policy.selects(pod, namespace));
    policies.filter_map(|policy| policy.proxy.as_ref())
}

/// The names of the containers that a lock of this pod calls its proxy.
pub(super) fn proxies<'a>(index: &'a Index, pod: &'a Pod) -> BTreeSet<&'a str> {
    let locks = locks(index, pod, index.namespace(&pod.namespace));
    locks.flat_map(|proxy| &proxy.containers).map(String::as_str).collect()
}

/// What a lock does not cover.
pub(super) fn outside_the_lock(scope: Scope) -> Content {
    let object = ObjectRef { kind: Kind::EgressGatewayPolicy, namespace: None, name: Arc::from("") };
    let grants = match scope {
        Scope::All => vec![allowed(Peer::Dns, Ports::All)],
        Scope::Egress => {
            [Peer::Dns, Peer::ApiServer, Peer::Cluster].map(|peer| allowed(peer, Ports::All)).to_vec()
        }
    };
    let rule = Rule { info: RuleInfo { object, path: "spec.proxy.scope".to_owned() }, grants };
    Content { tiers: vec![Tier { audit: false, policies: Vec::new(), rules: vec![rule] }] }
}

fn lock_downs(
    index: &Index,
    pod: &Pod,
    namespace: NamespaceLabels<'_>,
    container: Option<&str>,
) -> Collected {
    let mut found = Collected::default();
    for policy in index.gateway_policies().filter(|policy| policy.selects(pod, namespace)) {
        let object = policy.object_ref();
        if policy.errors.is_empty() {
            found.policy(&object, policy.audit, lock_down(&object, policy, pod, namespace, container));
        } else {
            found.invalid(&object, &policy.errors);
        }
    }
    found
}

/// A grant of `allow`, which never leads to a gateway.
fn allowed(peer: Peer, ports: Ports) -> Arc<Grant> {
    Arc::new(Grant { peer, ports, spare_gateways: true, inside: false })
}

/// A grant that means gateways as well as others.
fn granted(peer: Peer, ports: Ports) -> Arc<Grant> {
    Arc::new(Grant { peer, ports, spare_gateways: false, inside: false })
}

fn lock_down(
    object: &ObjectRef,
    policy: &EgressGatewayPolicy,
    pod: &Pod,
    namespace: NamespaceLabels<'_>,
    container: Option<&str>,
) -> Vec<Rule> {
    let rule = |path: String, grants| Rule { info: RuleInfo { object: object.clone(), path }, grants };
    let mut rules = Vec::new();
    let is_proxy = |proxy: &&Proxy| container.is_some_and(|name| proxy.containers.contains(name));
    let lock = policy.proxy.as_ref().filter(|proxy| !is_proxy(proxy)).map(|proxy| proxy.scope);
    for gateway in policy.gateways.iter().filter(|_| lock.is_none()) {
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
    if lock == Some(Scope::All) {
        return rules;
    }
    simple(allow.in_cluster, "inCluster", Peer::InCluster);
    simple(allow.api_server, "apiServer", Peer::ApiServer);
    if let Some(node) = pod.node() {
        simple(allow.node, "node", Peer::Node(node.clone()));
    }
    for (i, to) in allow.to.iter().enumerate() {
        let peer = match &to.peer {
            ToPeer::Pods(peer) => Peer::Pods(PodScope::Matching(peer.namespaces.clone()), peer.pods.clone()),
            ToPeer::Cidr(cidr) => Peer::Cidr(cidr.clone()),
            ToPeer::Service { namespace, name } => Peer::Service(namespace.clone(), name.clone()),
        };
        let inside = lock.is_some();
        let grant = Grant { peer, ports: to.ports.clone(), spare_gateways: true, inside };
        rules.push(rule(format!("spec.allow.to[{i}]"), vec![Arc::new(grant)]));
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

/// The ports that a node asks from, as Linux has them (`net.ipv4.ip_local_port_range`): above those of node ports (30000 to 32767), by
/// which a gateway could be reached.
const ASKING: PortRange = PortRange { protocol: protocol::TCP, low: 32768, high: 60999 };

/// What unknown pods may reach: pods and services of this cluster, its DNS and its API server, but no gateway. Kubelet's probes
/// are answered: nobody witnesses what comes in to a pod that is born while no agent runs, and it would be killed.
pub(super) fn unknown_pods(node: &str) -> Content {
    let object = ObjectRef { kind: Kind::Node, namespace: None, name: Arc::from(node) };
    let rule = |what: &str, grant| Rule {
        info: RuleInfo { object: object.clone(), path: format!("unknown pods: {what}") },
        grants: vec![grant],
    };
    let asking = Ports::Listed([Port::Range(ASKING)].into_iter().collect());
    let rules = vec![
        rule("in cluster", allowed(Peer::InCluster, Ports::All)),
        rule("dns", allowed(Peer::Dns, Ports::All)),
        rule("api server", allowed(Peer::ApiServer, Ports::All)),
        // Also where a gateway has the node's address: kubelet asks from there.
        rule("answers to its node", granted(Peer::Node(Arc::from(node)), asking)),
    ];
    Content { tiers: vec![Tier { audit: false, policies: Vec::new(), rules }] }
}
