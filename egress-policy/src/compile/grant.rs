//! What policies say, in a form that can be compared: a [`Grant`] is a peer with ports, a [`Content`] all that is said
//! about one pod.
//!
//! Invariant: equal grants and contents have equal digests, and different ones different ones, wherever and in whatever
//! order they were made.

use std::sync::Arc;

use egress_common::wire::Cidr;

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
    /// The backends of a service, but for what is outside; the grant's ports are the service's, what matches are the backends'.
    Service(Arc<str>, Arc<str>),
    /// Addresses.
    Cidr(CidrPeer),
    /// Every address in one of these prefixes. As the two below, no rule says so: see [`Terms`](super::terms::Terms).
    Within(Set<Cidr>),
    /// A pod that is a gateway.
    GatewayPod,
    /// An address that is a gateway by itself.
    GatewayAddress,
}

/// A peer with ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grant {
    pub(super) peer: Peer,
    pub(super) ports: Ports,
    /// Never means a gateway, be it a pod or an address, so that only `gateways` with their `clients` lead to one.
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

    /// The prefix, of what leads to all ports of all of one prefix.
    pub(super) fn prefix(&self) -> Option<Cidr> {
        let Peer::Within(cidrs) = &self.peer else { return None };
        let one = cidrs.iter().next().filter(|_| cidrs.len() == 1)?;
        (self.ports == Ports::All && !self.spare_gateways && !self.inside).then_some(*one)
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
            Peer::GatewayPod => out.text("gateway pod"),
            Peer::GatewayAddress => out.text("gateway address"),
            Peer::ApiServer => out.text("api server"),
            Peer::Dns => out.text("dns"),
            Peer::Service(namespace, name) => {
                out.text("service");
                out.text(namespace);
                out.text(name);
            }
            Peer::Cidr(peer) => {
                out.text("cidr");
                encode_cidrs(&mut out, std::iter::once(&peer.cidr).chain(&peer.except));
            }
            Peer::Within(cidrs) => {
                out.text("within");
                encode_cidrs(&mut out, cidrs.iter());
            }
        }
        encode_ports(&mut out, &self.ports);
        out.number(u64::from(self.spare_gateways));
        out.number(u64::from(self.inside));
        out.digest()
    }
}

fn encode_cidrs<'a>(out: &mut Encoder, cidrs: impl Iterator<Item = &'a Cidr>) {
    let cidrs: Vec<&Cidr> = cidrs.collect();
    out.list(cidrs.len());
    for cidr in cidrs {
        out.number(u64::from(cidr.bits));
        out.bytes(&cidr.addr.0);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::{Content, Grant, Peer, Rule, RuleInfo, Tier};
    use crate::object::{CidrPeer, Kind, ObjectRef, PodPeer, PodScope, Port, PortRange, Ports, Requirement};
    use crate::object::{Selector, Set, masked};
    use egress_common::wire::Addr;

    fn selector(requirement: Requirement) -> Selector {
        Selector(Set::from([requirement]))
    }

    /// Numbers of policies and identities are made of digests: two meanings with one digest would be one to the kernel.
    #[test]
    fn grants_that_differ_anywhere_have_different_digests() {
        let values =
            |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Set<String>>();
        let selectors = [
            Selector::default(),
            selector(Requirement::In("a".into(), values(&["x"]))),
            selector(Requirement::In("a".into(), values(&["x", "y"]))),
            selector(Requirement::In("b".into(), values(&["x"]))),
            selector(Requirement::NotIn("a".into(), values(&["x"]))),
            selector(Requirement::Exists("a".into())),
            selector(Requirement::DoesNotExist("a".into())),
        ];
        let cidr = |bits| masked(Addr::v4([10, 0, 0, 0]), bits);
        let cidrs = [
            CidrPeer { cidr: cidr(104), except: Set::default() },
            CidrPeer { cidr: cidr(105), except: Set::default() },
            CidrPeer { cidr: masked(Addr::v4([11, 0, 0, 0]), 104), except: Set::default() },
            CidrPeer { cidr: cidr(104), except: Set::from([cidr(112)]) },
            CidrPeer { cidr: cidr(104), except: Set::from([cidr(112), cidr(120)]) },
        ];
        let named = |namespace: &str, name: &str| Peer::Service(namespace.into(), name.into());
        let mut peers = vec![Peer::Any, Peer::InCluster, Peer::Cluster, Peer::ApiServer, Peer::Dns];
        peers.extend([
            Peer::GatewayPod,
            Peer::GatewayAddress,
            Peer::Node("n".into()),
            Peer::Node("m".into()),
            named("a", "b"),
            named("b", "a"),
            named("ab", ""),
        ]);
        let within = [vec![cidr(104)], vec![cidr(112)], vec![cidr(104), cidr(112)], Vec::new()];
        peers.extend(within.map(|cidrs| Peer::Within(cidrs.into_iter().collect())));
        peers.extend(cidrs.map(Peer::Cidr));
        for namespaces in &selectors {
            for pods in &selectors {
                peers.push(Peer::Pods(PodScope::Matching(namespaces.clone()), pods.clone()));
                let (namespaces, pods) = (namespaces.clone(), pods.clone());
                peers.push(Peer::Gateway(PodPeer { namespaces, pods }));
            }
            peers.push(Peer::Pods(PodScope::Namespace("n".into()), namespaces.clone()));
            peers.push(Peer::Pods(PodScope::Namespace("m".into()), namespaces.clone()));
        }
        let range = |protocol, low, high| Port::Range(PortRange { protocol, low, high });
        let listed = |ports: &[Port]| Ports::Listed(ports.iter().cloned().collect());
        let ports = [
            Ports::All,
            listed(&[]),
            listed(&[range(6, 80, 80)]),
            listed(&[range(17, 80, 80)]),
            listed(&[range(6, 80, 81)]),
            listed(&[range(6, 79, 80)]),
            listed(&[range(6, 80, 80), range(6, 443, 443)]),
            listed(&[Port::Named(6, "http".into())]),
            listed(&[Port::Named(17, "http".into())]),
            listed(&[Port::Named(6, "web".into())]),
        ];
        let mut grants = Vec::new();
        for peer in &peers {
            for ports in &ports {
                for flags in 0..4 {
                    let (spare_gateways, inside) = (flags & 1 != 0, flags & 2 != 0);
                    grants.push(Grant { peer: peer.clone(), ports: ports.clone(), spare_gateways, inside });
                }
            }
        }
        let distinct: BTreeSet<_> = grants.iter().map(Grant::digest).collect();
        assert_eq!(distinct.len(), grants.len());
        assert!(grants.iter().all(|grant| grant.digest() == grant.clone().digest()));
    }

    #[test]
    fn contents_that_differ_anywhere_have_different_digests() {
        let object = |kind, namespace: Option<&str>, name: &str| ObjectRef {
            kind,
            namespace: namespace.map(Arc::from),
            name: name.into(),
        };
        let policy = object(Kind::NetworkPolicy, Some("a"), "p");
        let grant = |ports| Arc::new(Grant { peer: Peer::Any, ports, spare_gateways: false, inside: false });
        let rule = |object: &ObjectRef, path: &str, grants: &[Arc<Grant>]| Rule {
            info: RuleInfo { object: object.clone(), path: path.to_owned() },
            grants: grants.to_vec(),
        };
        let tier = |audit, policies: &[&ObjectRef], rules: &[Rule]| Tier {
            audit,
            policies: policies.iter().map(|policy| (*policy).clone()).collect(),
            rules: rules.to_vec(),
        };
        let all = grant(Ports::All);
        let one = rule(&policy, "spec.egress[0]", std::slice::from_ref(&all));
        let others = [
            object(Kind::NetworkPolicy, Some("b"), "p"),
            object(Kind::NetworkPolicy, Some("a"), "q"),
            object(Kind::EgressGatewayPolicy, None, "p"),
            object(Kind::NetworkPolicy, None, "ap"),
        ];
        let mut contents = vec![
            vec![],
            vec![tier(false, &[&policy], &[])],
            vec![tier(true, &[&policy], &[])],
            vec![tier(false, &[&policy], std::slice::from_ref(&one))],
            vec![tier(false, &[&policy], &[one.clone(), one.clone()])],
            vec![tier(false, &[&policy], &[rule(&policy, "spec.egress[1]", std::slice::from_ref(&all))])],
            vec![tier(false, &[&policy], &[rule(&policy, "spec.egress[0]", &[])])],
            vec![tier(
                false,
                &[&policy],
                &[rule(&policy, "spec.egress[0]", &[grant(Ports::Listed(Set::default()))])],
            )],
            vec![tier(false, &[&policy], std::slice::from_ref(&one)), tier(false, &[&policy], &[])],
        ];
        for other in &others {
            contents.push(vec![tier(false, &[other], std::slice::from_ref(&one))]);
            contents.push(vec![tier(false, &[&policy, other], std::slice::from_ref(&one))]);
            contents.push(vec![tier(
                false,
                &[&policy],
                &[rule(other, "spec.egress[0]", std::slice::from_ref(&all))],
            )]);
        }
        let digests: BTreeSet<_> =
            contents.iter().map(|tiers| Content { tiers: tiers.clone() }.digest()).collect();
        assert_eq!(digests.len(), contents.len());
    }
}
