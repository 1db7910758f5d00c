//! What policies say, in a form that can be compared: a [`Grant`] is a peer with ports, a [`Content`] all that is said
//! about one pod.
//!
//! Invariant: equal grants and contents have equal digests, and different ones different ones, wherever and in whatever
//! order they were made.

use std::sync::Arc;

use super::report::RuleInfo;
use crate::digest::{Digest, Encoder};
use crate::object::{CidrPeer, ObjectRef, PodPeer, PodScope, Port, Ports, Requirement, Selector, Set};

/// Where a grant leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    /// Every address.
    Any,
    /// Pods by labels.
    Pods(PodScope, Selector),
    /// Pods of a gateway: its ports are the pod's own, or those of a service in front of it.
    Gateway(PodPeer),
    /// Pods that are no gateway.
    InCluster,
    /// Pods and nodes: what `destinations` do not restrict.
    Cluster,
    /// The addresses of a node.
    Node(Arc<str>),
    /// The endpoints of `default/kubernetes`, on their ports.
    ApiServer,
    /// The cluster's DNS servers, on its ports.
    Dns,
    /// The backends of a service; the grant's ports are the service's, what matches are the backends'.
    Service(Arc<str>, Arc<str>),
    /// Addresses.
    Cidr(CidrPeer),
}

/// A peer with ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grant {
    pub(super) peer: Peer,
    pub(super) ports: Ports,
    /// Never means a pod that is a gateway, so that only `gateways` with their `clients` lead to one.
    pub(super) spare_gateways: bool,
    /// Means nothing but addresses of pods and nodes: what a proxy lock leaves to other containers.
    pub(super) inside: bool,
}

impl Grant {
    /// Ports by name, which each destination pod resolves for itself.
    pub(super) fn named(&self) -> impl Iterator<Item = (u8, &Arc<str>)> {
        let listed = match &self.ports {
            Ports::All => None,
            Ports::Listed(ports) => Some(ports),
        };
        listed.into_iter().flatten().filter_map(|port| match port {
            Port::Named(protocol, name) => Some((*protocol, name)),
            Port::Range(_) => None,
        })
    }

    /// Whether its ports are found at the destination only.
    pub(super) fn resolved_only(&self) -> bool {
        matches!(self.peer, Peer::ApiServer | Peer::Dns | Peer::Service(..))
    }

    /// Whether addresses have to be told apart for it.
    pub(super) fn interned(&self) -> bool {
        self.peer != Peer::Any || self.named().next().is_some()
    }

    pub(super) fn digest(&self) -> Digest {
        let mut out = Encoder::new("grant");
        match &self.peer {
            Peer::Any => out.text("any"),
            Peer::Pods(scope, pods) => {
                out.text("pods");
                match scope {
                    PodScope::Namespace(name) => {
                        out.text("namespace");
                        out.text(name);
                    }
                    PodScope::Matching(selector) => {
                        out.text("matching");
                        encode_selector(&mut out, selector);
                    }
                }
                encode_selector(&mut out, pods);
            }
            Peer::Gateway(peer) => {
                out.text("gateway");
                encode_selector(&mut out, &peer.namespaces);
                encode_selector(&mut out, &peer.pods);
            }
            Peer::InCluster => out.text("in cluster"),
            Peer::Cluster => out.text("cluster"),
            Peer::Node(name) => {
                out.text("node");
                out.text(name);
            }
            Peer::ApiServer => out.text("api server"),
            Peer::Dns => out.text("dns"),
            Peer::Service(namespace, name) => {
                out.text("service");
                out.text(namespace);
                out.text(name);
            }
            Peer::Cidr(peer) => {
                out.text("cidr");
                out.list(peer.except.len() + 1);
                for cidr in std::iter::once(&peer.cidr).chain(&peer.except) {
                    out.number(u64::from(cidr.bits));
                    out.bytes(&cidr.addr.0);
                }
            }
        }
        encode_ports(&mut out, &self.ports);
        out.number(u64::from(self.spare_gateways));
        out.number(u64::from(self.inside));
        out.digest()
    }
}

fn encode_selector(out: &mut Encoder, selector: &Selector) {
    let requirement = |out: &mut Encoder, operator: &str, key: &str, values: &Set<String>| {
        out.text(operator);
        out.text(key);
        out.list(values.len());
        for value in values {
            out.text(value);
        }
    };
    out.list(selector.0.len());
    for one in &selector.0 {
        match one {
            Requirement::In(key, values) => requirement(out, "In", key, values),
            Requirement::NotIn(key, values) => requirement(out, "NotIn", key, values),
            Requirement::Exists(key) => requirement(out, "Exists", key, &Set::default()),
            Requirement::DoesNotExist(key) => requirement(out, "DoesNotExist", key, &Set::default()),
        }
    }
}

fn encode_ports(out: &mut Encoder, ports: &Ports) {
    match ports {
        Ports::All => out.text("all"),
        Ports::Listed(ports) => {
            out.text("listed");
            out.list(ports.len());
            for port in ports {
                match port {
                    Port::Range(range) => {
                        out.text("range");
                        out.number(u64::from(range.protocol));
                        out.number(u64::from(range.low));
                        out.number(u64::from(range.high));
                    }
                    Port::Named(protocol, name) => {
                        out.text("named");
                        out.number(u64::from(*protocol));
                        out.text(name);
                    }
                }
            }
        }
    }
}

/// One rule: what is allowed by one place in an object.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) info: RuleInfo,
    pub(super) grants: Vec<Arc<Grant>>,
}

/// What the policies of one kind that select a pod say together.
#[derive(Clone, Debug)]
pub(super) struct Tier {
    /// All of them audit.
    pub(super) audit: bool,
    pub(super) policies: Vec<ObjectRef>,
    pub(super) rules: Vec<Rule>,
}

/// What is said about one pod: one or two tiers, a packet passes where each lets it.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) tiers: Vec<Tier>,
}

impl Content {
    /// Whether everything that is denied passes with an event.
    pub(super) fn audit(&self) -> bool {
        self.tiers.iter().all(|tier| tier.audit)
    }

    /// All rules, in the order of their numbers.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.tiers.iter().flat_map(|tier| &tier.rules)
    }

    /// What the numbers of verdicts stand for: the rules, and then for each tier that none of its rules allows.
    pub(super) fn infos(&self) -> impl Iterator<Item = RuleInfo> {
        let none = |tier: &Tier| {
            let object = tier.policies.first()?.clone();
            Some(RuleInfo { object, path: "no rule allows it".to_owned() })
        };
        self.rules().map(|rule| rule.info.clone()).chain(self.tiers.iter().filter_map(none))
    }

    pub(super) fn digest(&self) -> Digest {
        let mut out = Encoder::new("policy");
        out.list(self.tiers.len());
        for tier in &self.tiers {
            out.number(u64::from(tier.audit));
            out.list(tier.policies.len());
            for policy in &tier.policies {
                encode_ref(&mut out, policy);
            }
            out.list(tier.rules.len());
            for rule in &tier.rules {
                encode_ref(&mut out, &rule.info.object);
                out.text(&rule.info.path);
                out.list(rule.grants.len());
                for grant in &rule.grants {
                    out.bytes(&grant.digest());
                }
            }
        }
        out.digest()
    }
}

fn encode_ref(out: &mut Encoder, object: &ObjectRef) {
    out.text(object.kind.name());
    out.list(usize::from(object.namespace.is_some()));
    out.text(object.namespace.as_deref().unwrap_or_default());
    out.text(&object.name);
}
