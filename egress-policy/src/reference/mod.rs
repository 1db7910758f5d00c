//! The reference evaluator: what the documents say about one packet of one pod, read literally.
//!
//! It goes from the objects straight to the answer, for one pod and one [`Probe`]: no identities, no rows, no code in
//! common with the [compiler](mod@crate::compile), not even for selectors, prefixes and ports. It is slow and meant to
//! be; `tests/reference.rs` compares the compiler with it.
//!
//! Where the documents are silent, this is what holds:
//!
//! - What `allow` grants never leads to a gateway's pod; only `gateways` do, for their `clients`. The gateways of every
//!   lock-down count, of invalid ones as well.
//! - A virtual address belongs to its services alone: a prefix that covers it grants nothing. It passes on a service's
//!   port where every backend that can be chosen there is allowed at its target port, and not at all where there is
//!   none. The sending pod is a backend like any other. An address of a service behind another service is translated no
//!   second time, so that nothing but a rule for every destination allows it.
//! - A service that cannot be read, or has a slice that cannot, leads anywhere: nothing is allowed on its ports, of a service at its
//!   addresses, and its node ports lead out of the cluster.
//! - A node's address at a port that leads out of the cluster (a node port of a service with a gateway, a node or nobody's address behind
//!   it, or a host port of a gateway) passes where the node is allowed and everything that is behind that port, and so on where that is
//!   such a port of a node again.
//! - An external address of services, which whoever wrote them chose, is theirs and the outside's: both have to be allowed.
//! - A gateway's single address is the gateway's alone, also where it is a service's, a pod's or a node's. On a port that the service
//!   lacks it is nobody's.
//! - An address with several owners is allowed where each of them is; a service counts on its own ports.
//! - Of a gateway's pods, entries without `destinations` say nothing; those with some allow their union.
//! - A pod on the host network is at its node's addresses, which are those that the Node object says.
//! - A packet needs a source address of its family; a pod that has only the other family is denied. Of a pod without any
//!   address none is known yet, and its rules apply.
//! - A gateway's pods reach everything inside the cluster (pods, nodes, the API server, services by their backends).
//!
//! Not covered: `proxy`, which this version refuses, so that a policy with it is invalid; pods that are not
//! known, or about which nothing is said because their Namespace object is missing;
//! packets that are malformed, forged, or no first packets of a flow; destinations that may not be on a wire
//! (0.0.0.0/8, `::`, IPv4-mapped IPv6 addresses); and rows that are too long for the maps, which the compiler cuts.

mod cluster;
mod lockdown;
mod matching;
mod network_policy;

use std::fmt;
use std::net::IpAddr;

use crate::index::Index;
use crate::object::{Pod, Service, ServicePort};
use cluster::{ANYWHERE, Cluster};

/// A protocol that packets are sent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP, or ICMPv6 where the destination is an IPv6 address; without ports.
    Icmp,
}

/// A packet that the pod might send, from its own address of the destination's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// Where to.
    pub destination: IpAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// To which port; 0 for ICMP.
    pub port: u16,
}

/// What happens to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
    /// It passes, and an event names what would have denied it.
    Audit,
}

/// An answer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What happens.
    pub answer: Answer,
    /// A sentence that names what decided.
    pub reason: String,
}

impl Judgement {
    fn new(answer: Answer, reason: impl Into<String>) -> Self {
        Self { answer, reason: reason.into() }
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.answer, self.reason)
    }
}

/// What is at a destination, as rules see it: one pod, or an address that is no pod's.
#[derive(Clone, Copy)]
struct Target<'a> {
    address: IpAddr,
    pod: Option<&'a Pod>,
    /// It is an address of a service and nobody else's; nothing but a rule for every destination means it.
    virtual_only: bool,
    protocol: Protocol,
    port: u16,
}

/// One of the two kinds of policy, with everything of it that is about one pod.
struct Tier<'a> {
    /// The policies, for people.
    names: String,
    /// Every one of these policies only audits.
    audits: bool,
    /// One of them is invalid, and why.
    invalid: Option<String>,
    rules: Rules<'a>,
}

enum Rules<'a> {
    Subject(lockdown::Subject<'a>),
    Gateway(lockdown::Restrictions<'a>),
    NetworkPolicies(network_policy::Policies<'a>),
}

impl Rules<'_> {
    /// The rule that allows a target, `None` where none does.
    fn allowing(&self, cluster: &Cluster<'_>, target: Target<'_>) -> Option<String> {
        match self {
            Rules::Subject(subject) => subject.allowing(cluster, target),
            Rules::Gateway(restrictions) => restrictions.allowing(cluster, target),
            Rules::NetworkPolicies(policies) => policies.allowing(cluster, target),
        }
    }
}

/// Judges a packet of a container of the pod `namespace/name`, as if it ran on the node of the name `node_name`. Without a
/// name of the container it is one that no policy names.
///
/// The pod must be among the objects; one that is not is answered with a denial.
#[must_use]
pub fn evaluate(
    objects: &Index,
    node_name: &str,
    (namespace, name): (&str, &str),
    container: Option<&str>,
    probe: &Probe,
) -> Judgement {
    let cluster = Cluster::new(objects, node_name);
    let Some(pod) = objects.pods().find(|pod| *pod.namespace == *namespace && *pod.name == *name) else {
        return Judgement::new(Answer::Deny, format!("there is no pod {namespace}/{name}"));
    };
    let tiers: Vec<Tier<'_>> = lockdown::tier(&cluster, pod, container)
        .into_iter()
        .chain(network_policy::tier(&cluster, pod))
        .collect();
    if tiers.is_empty() {
        return Judgement::new(Answer::Allow, "no policy selects the pod");
    }
    if probe.destination.is_loopback() || pod.addresses.contains(&probe.destination) {
        return Judgement::new(Answer::Allow, "the pod reaches itself");
    }
    if let Some(invalid) = tiers.iter().find_map(|tier| tier.invalid.clone()) {
        return Judgement::new(Answer::Deny, invalid);
    }
    let mut allowed = Vec::new();
    let mut audited = Vec::new();
    for tier in &tiers {
        match judge(&cluster, pod, &tier.rules, probe) {
            Ok(reason) => allowed.push(reason),
            Err(reason) if tier.audits => audited.push(format!("{}: {reason}", tier.names)),
            Err(reason) => return Judgement::new(Answer::Deny, format!("{}: {reason}", tier.names)),
        }
    }
    if audited.is_empty() {
        Judgement::new(Answer::Allow, allowed.join("; "))
    } else {
        Judgement::new(Answer::Audit, audited.join("; "))
    }
}

/// Why the rules of one tier let a packet pass, or why not.
fn judge(cluster: &Cluster<'_>, pod: &Pod, rules: &Rules<'_>, probe: &Probe) -> Result<String, String> {
    let Probe { destination, protocol, port } = *probe;
    let same_family = |own: &IpAddr| own.is_ipv4() == destination.is_ipv4();
    if !pod.host_network && !pod.addresses.is_empty() && !pod.addresses.iter().any(same_family) {
        return Err(format!("the pod has no address to reach {destination} from"));
    }
    let services = cluster.services_at(destination);
    if services.is_empty() {
        let owner = each_owner(cluster, rules, (destination, true), protocol, port)?;
        let Some(behind) = cluster.behind_node(destination, protocol, port) else { return Ok(owner) };
        return Ok(format!("{owner}; {}", each_behind(cluster, rules, protocol, behind)?));
    }
    if services.iter().any(|service| service.unread) {
        return Err(format!("a service of {destination} cannot be read"));
    }
    let itself = is_itself(cluster, &services, destination);
    let owned = !cluster.pods_at(destination).is_empty() || cluster.is_node(destination);
    let answers = owned || is_external(&services, destination);
    let ports: Vec<_> = services
        .into_iter()
        .flat_map(|service| {
            cluster.ports_of(service, protocol, port).into_iter().map(move |port| (service, port))
        })
        .collect();
    if ports.is_empty() && !answers {
        return Err(format!("{destination} is a service's address without this port"));
    }
    let mut reasons = Vec::new();
    if !ports.is_empty() {
        reasons.push(each_backend(cluster, rules, probe, &ports)?);
    }
    if owned || itself {
        reasons.push(each_owner(cluster, rules, (destination, true), protocol, port)?);
    }
    if let Some(behind) = cluster.behind_node(destination, protocol, port) {
        reasons.push(each_behind(cluster, rules, protocol, behind)?);
    }
    Ok(reasons.join("; "))
}

/// Whether every service that has an address chose it itself (`externalIPs`).
fn is_external(services: &[&Service], address: IpAddr) -> bool {
    services.iter().all(|service| service.external.contains(&address))
}

/// Whether an address of services has to be allowed by itself: an external one, or a gateway's.
fn is_itself(cluster: &Cluster<'_>, services: &[&Service], address: IpAddr) -> bool {
    is_external(services, address) || cluster.is_gateway_address(address)
}

/// Why the rules allow everything behind a port of a node, or why not.
fn each_behind(
    cluster: &Cluster<'_>,
    rules: &Rules<'_>,
    protocol: Protocol,
    mut behind: Vec<(IpAddr, u16)>,
) -> Result<String, String> {
    let mut reasons = Vec::new();
    let mut at = 0;
    while let Some((address, port)) = behind.get(at).copied() {
        at += 1;
        if address == ANYWHERE {
            return Err("a service that has this port of the node cannot be read".to_owned());
        }
        reasons.push(each_owner(cluster, rules, (address, false), protocol, port)?);
        for next in further(cluster, address, protocol, port)? {
            if !behind.contains(&next) {
                behind.push(next);
            }
        }
    }
    if reasons.is_empty() {
        return Err("nothing is behind this port of the node".to_owned());
    }
    Ok(reasons.join("; "))
}

/// What another node makes of a packet to a backend: what is behind ports of that node, and behind services that have the address.
fn further(
    cluster: &Cluster<'_>,
    address: IpAddr,
    protocol: Protocol,
    port: u16,
) -> Result<Vec<(IpAddr, u16)>, String> {
    let mut found = cluster.behind_node(address, protocol, port).unwrap_or_default();
    found.extend(
        cluster.sent_on(address, protocol, port).ok_or("a service of a backend's address leads nowhere")?,
    );
    Ok(found)
}

/// Why the rules allow every backend that some ports of services can choose, or why not.
fn each_backend(
    cluster: &Cluster<'_>,
    rules: &Rules<'_>,
    probe: &Probe,
    ports: &[(&Service, &ServicePort)],
) -> Result<String, String> {
    let mut reasons = Vec::new();
    for (service, service_port) in ports {
        let name = format!("service {}/{}", service.namespace, service.name);
        if cluster.leads_anywhere(service) {
            return Err(format!("{name} may lead anywhere: some of it cannot be read"));
        }
        for (address, target) in cluster.chosen_backends(service, service_port, probe.destination.is_ipv4()) {
            match each_owner(cluster, rules, (address, false), probe.protocol, target) {
                Ok(reason) => {
                    reasons.push(reason);
                    let behind = further(cluster, address, probe.protocol, target)?;
                    if !behind.is_empty() {
                        reasons.push(each_behind(cluster, rules, probe.protocol, behind)?);
                    }
                }
                Err(reason) => return Err(format!("{name}, backend {address} port {target}: {reason}")),
            }
        }
    }
    if reasons.is_empty() {
        return Err(format!("nothing is behind {} port {}", probe.destination, probe.port));
    }
    Ok(reasons.join("; "))
}

/// Why the rules allow every owner of an address that is seen as it is, or why not. `direct`: packets are sent to it, not by way of
/// another address.
fn each_owner(
    cluster: &Cluster<'_>,
    rules: &Rules<'_>,
    (address, direct): (IpAddr, bool),
    protocol: Protocol,
    port: u16,
) -> Result<String, String> {
    let pods = cluster.pods_at(address);
    let mut owners: Vec<Option<&Pod>> = pods.into_iter().map(Some).collect();
    let owners_are_none = owners.is_empty() && !cluster.is_node(address);
    if owners.is_empty() || cluster.is_node(address) {
        owners.push(None);
    }
    let mut reasons = Vec::new();
    for pod in owners {
        let what = pod.map_or(format!("{address}"), |pod| format!("pod {}/{}", pod.namespace, pod.name));
        let services = cluster.services_at(address);
        let itself = direct && is_itself(cluster, &services, address);
        let virtual_only = owners_are_none && !services.is_empty() && !itself;
        match rules.allowing(cluster, Target { address, pod, virtual_only, protocol, port }) {
            Some(reason) => reasons.push(format!("{reason} allows {what}")),
            None => return Err(format!("nothing allows {what} on port {port} of {protocol:?}")),
        }
    }
    Ok(reasons.join("; "))
}
