//! `EgressGatewayPolicy`: who is locked down, and what that leaves open.

use super::cluster::Cluster;
use super::matching::{labels_match, ports_hold, prefix_holds};
use super::{Rules, Target, Tier};
use crate::object::{
    Allow, ContainerKind, Destinations, EgressGatewayPolicy, Gateway, Grantee, LIFELINE_NAMESPACES, Pod,
    Ports, Scope, ToPeer,
};

/// The lock-downs of one pod.
pub(super) struct Subject<'a> {
    pod: &'a Pod,
    /// The name of the container that sends.
    container: Option<&'a str>,
    policies: Vec<&'a EgressGatewayPolicy>,
}

/// The gateways that one pod is, with what each leaves open outside the cluster.
pub(super) struct Restrictions<'a> {
    gateways: Vec<(&'a EgressGatewayPolicy, &'a Gateway)>,
}

/// What lock-downs say about a pod; `None` where they do not touch it.
pub(super) fn tier<'a>(cluster: &Cluster<'a>, pod: &'a Pod, container: Option<&'a str>) -> Option<Tier<'a>> {
    let is_gateway = cluster.is_gateway(pod);
    if is_gateway { gateway(cluster, pod) } else { subject(cluster, pod, container) }
}

fn subject<'a>(cluster: &Cluster<'a>, pod: &'a Pod, container: Option<&'a str>) -> Option<Tier<'a>> {
    let policies: Vec<_> =
        cluster.objects.gateway_policies().filter(|policy| selects(cluster, policy, pod)).collect();
    if policies.is_empty() {
        return None;
    }
    let invalid = policies.iter().find_map(|policy| {
        policy.errors.first().map(|error| format!("EgressGatewayPolicy {} is invalid: {error}", policy.name))
    });
    Some(Tier {
        names: policies
            .iter()
            .map(|policy| format!("EgressGatewayPolicy {}", policy.name))
            .collect::<Vec<_>>()
            .join(", "),
        audits: policies.iter().all(|policy| policy.audit),
        invalid,
        rules: Rules::Subject(Subject { pod, container, policies }),
    })
}

fn gateway<'a>(cluster: &Cluster<'a>, pod: &Pod) -> Option<Tier<'a>> {
    let mut gateways = Vec::new();
    for policy in cluster.objects.gateway_policies() {
        for gateway in &policy.gateways {
            if gateway.pods.as_ref().is_some_and(|peer| cluster.peer_matches(peer, pod)) {
                gateways.push((policy, gateway));
            }
        }
    }
    let unreadable = gateways.iter().find(|(_, gateway)| gateway.destinations == Destinations::Unreadable);
    let invalid = unreadable.map(|(policy, gateway)| {
        format!(
            "EgressGatewayPolicy {}: what gateway {} may reach cannot be read",
            policy.name, gateway.index
        )
    });
    gateways.retain(|(_, gateway)| gateway.destinations != Destinations::Unrestricted);
    if gateways.is_empty() {
        return None;
    }
    Some(Tier {
        names: gateways
            .iter()
            .map(|(policy, gateway)| format!("EgressGatewayPolicy {} gateway {}", policy.name, gateway.index))
            .collect::<Vec<_>>()
            .join(", "),
        audits: gateways.iter().all(|(policy, _)| policy.audit),
        invalid,
        rules: Rules::Gateway(Restrictions { gateways }),
    })
}

/// Whether a lock-down has a pod that is no gateway among its subjects.
fn selects(cluster: &Cluster<'_>, policy: &EgressGatewayPolicy, pod: &Pod) -> bool {
    let lifeline = LIFELINE_NAMESPACES.contains(&&*pod.namespace);
    let listed = policy.subjects.iter().any(|subject| {
        (subject.system_namespaces || !lifeline) && grantee_matches(cluster, &subject.who, pod)
    });
    listed || (policy.unreadable_subjects && !lifeline)
}

/// Whether a list's entry means the sending pod; on the host network as well.
fn grantee_matches(cluster: &Cluster<'_>, who: &Grantee, pod: &Pod) -> bool {
    (who.service_accounts.is_empty()
        || who.service_accounts.iter().any(|name| **name == *pod.spec.service_account))
        && labels_match(&who.pods, &pod.labels)
        && cluster.namespace_matches(&who.namespaces, &pod.namespace)
}

impl Subject<'_> {
    /// The rule that allows a target.
    pub(super) fn allowing(&self, cluster: &Cluster<'_>, target: Target<'_>) -> Option<String> {
        if target.virtual_only {
            return None;
        }
        for policy in &self.policies {
            if self.reserved_for_the_proxy(cluster, policy, target) {
                continue;
            }
            // What an entry of gateways means is a gateway, also by address.
            for gateway in policy.gateways.iter().filter(|_| self.lock(policy).is_none()) {
                if self.by_gateway(cluster, gateway, target) {
                    return Some(format!("EgressGatewayPolicy {} gateways[{}]", policy.name, gateway.index));
                }
            }
            if target.pod.is_some_and(|pod| cluster.is_gateway(pod)) {
                continue;
            }
            // An address may be the API server's as well, or the DNS': they have ports of their own.
            let asks = Allow { in_cluster: false, node: false, to: Vec::new(), ..policy.allow.clone() };
            if cluster.is_gateway_address(target.address) && by_allow(cluster, &asks, target).is_none() {
                continue;
            }
            if let Some(rule) = by_allow(cluster, &policy.allow, target) {
                return Some(format!("EgressGatewayPolicy {} allow.{rule}", policy.name));
            }
        }
        None
    }

    /// What this policy lets only its proxy send, where the container that sends is not the proxy.
    fn lock(&self, policy: &EgressGatewayPolicy) -> Option<Scope> {
        let proxy = policy.proxy.as_ref()?;
        let listed = |name: &str| proxy.containers.iter().any(|listed| listed == name);
        // A container that was put into the running pod, or that is gone when the others run, is no sidecar.
        let sidecar = |name: &str| {
            let mut containers = self.pod.spec.containers.iter();
            containers
                .find(|one| *one.name == *name)
                .is_none_or(|one| matches!(one.kind, ContainerKind::Regular | ContainerKind::Sidecar))
        };
        if self.container.is_some_and(|name| listed(name) && sidecar(name)) {
            None
        } else {
            Some(proxy.scope)
        }
    }

    /// Whether this policy lets only its proxy send to a target, and the container that sends is not the proxy.
    fn reserved_for_the_proxy(
        &self,
        cluster: &Cluster<'_>,
        policy: &EgressGatewayPolicy,
        target: Target<'_>,
    ) -> bool {
        let Some(scope) = self.lock(policy) else { return false };
        let allowed_dns = policy.allow.dns && cluster.is_dns(target);
        let allowed_api_server = policy.allow.api_server && cluster.is_api_server(target);
        let gateway = target.pod.is_some_and(|pod| cluster.is_gateway(pod))
            || (cluster.is_gateway_address(target.address) && !allowed_dns && !allowed_api_server);
        match scope {
            // Every destination but loopback and allowed DNS.
            Scope::All => gateway || !allowed_dns,
            // Gateways and everything outside the cluster; its DNS and API server are the cluster's wherever they are.
            Scope::Egress => gateway || !(inside(cluster, target) || allowed_dns || allowed_api_server),
        }
    }

    fn by_gateway(&self, cluster: &Cluster<'_>, gateway: &Gateway, target: Target<'_>) -> bool {
        let client = match &gateway.clients {
            None => true,
            Some(clients) => clients.iter().any(|who| grantee_matches(cluster, who, self.pod)),
        };
        if !client {
            return false;
        }
        if let (Some(peer), Some(pod)) = (&gateway.pods, target.pod)
            && cluster.peer_matches(peer, pod)
            && (ports_hold(&gateway.ports, target) || leads_to(cluster, &gateway.ports, pod, target))
        {
            return true;
        }
        gateway.addresses.iter().any(|prefix| prefix_holds(prefix, target.address))
            && ports_hold(&gateway.ports, target)
    }
}

/// Whether a target is a pod or a node.
fn inside(cluster: &Cluster<'_>, target: Target<'_>) -> bool {
    target.pod.is_some() || cluster.is_node(target.address)
}

/// Whether a listed port of a service in front of a gateway's pod, in its own namespace, leads to this port of it.
fn leads_to(cluster: &Cluster<'_>, listed: &Ports, pod: &Pod, target: Target<'_>) -> bool {
    let mut services = cluster.objects.services().filter(|service| service.namespace == pod.namespace);
    services.any(|service| cluster.is_backend(service, listed, target))
}

fn by_allow(cluster: &Cluster<'_>, allow: &Allow, target: Target<'_>) -> Option<String> {
    if allow.dns && cluster.is_dns(target) {
        return Some("dns".to_owned());
    }
    if allow.in_cluster && target.pod.is_some() {
        return Some("inCluster".to_owned());
    }
    if allow.api_server && cluster.is_api_server(target) {
        return Some("apiServer".to_owned());
    }
    if allow.node && cluster.is_own_node(target.address) {
        return Some("node".to_owned());
    }
    for (i, to) in allow.to.iter().enumerate() {
        let allowed = match &to.peer {
            ToPeer::Pods(peer) => {
                target.pod.is_some_and(|pod| cluster.peer_matches(peer, pod)) && ports_hold(&to.ports, target)
            }
            ToPeer::Cidr(prefix) => prefix_holds(prefix, target.address) && ports_hold(&to.ports, target),
            ToPeer::Service { namespace, name } => cluster.service(namespace, name).is_some_and(|service| {
                cluster.is_backend(service, &to.ports, target) && inside(cluster, target)
            }),
        };
        if allowed {
            return Some(format!("to[{i}]"));
        }
    }
    None
}

impl Restrictions<'_> {
    /// The rule that allows a target.
    pub(super) fn allowing(&self, cluster: &Cluster<'_>, target: Target<'_>) -> Option<String> {
        if target.virtual_only {
            return None;
        }
        if target.pod.is_some() || cluster.is_node(target.address) || cluster.is_api_server(target) {
            return Some("being inside the cluster".to_owned());
        }
        for (policy, gateway) in &self.gateways {
            let Destinations::Only(destinations) = &gateway.destinations else { continue };
            for (i, (prefix, ports)) in destinations.iter().enumerate() {
                if prefix_holds(prefix, target.address) && ports_hold(ports, target) {
                    let index = gateway.index;
                    return Some(format!(
                        "EgressGatewayPolicy {} gateways[{index}].destinations[{i}]",
                        policy.name
                    ));
                }
            }
        }
        None
    }
}
