//! `egress-enforcer.io/v1alpha1` EgressGatewayPolicy.
//!
//! Invariant: a field that is unknown, null or malformed makes the policy invalid; what could be read of its
//! subjects and gateways is kept, so that it fails closed for those it is about. *Absent* and *empty* are different.

use std::sync::Arc;

use super::{CidrPeer, Kind, NamespaceLabels, ObjectError, ObjectRef, Pod, Ports, Selector, Set};

/// Namespaces whose pods are subjects only where an entry says `systemNamespaces: true`.
pub const LIFELINE_NAMESPACES: [&str; 2] = ["kube-system", "egress-enforcer"];

/// A lock-down, valid or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressGatewayPolicy {
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.uid`, empty where there is none.
    pub uid: Arc<str>,
    /// `metadata.generation`, which counts the versions of `spec`; 0 where there is none.
    pub generation: i64,
    /// `enforcement: Audit`.
    pub audit: bool,
    /// Who is locked down.
    pub subjects: Vec<Subject>,
    /// A subject could not be read, so that every pod outside [`LIFELINE_NAMESPACES`] must count as one.
    pub unreadable_subjects: bool,
    /// The containers that alone may send some of what the policy allows; `None` where every container may.
    pub proxy: Option<Proxy>,
    /// The ways out.
    pub gateways: Vec<Gateway>,
    /// What is allowed besides the gateways.
    pub allow: Allow,
    /// What is wrong with it. Not empty: invalid, its subjects fail closed.
    pub errors: Vec<ObjectError>,
}

impl EgressGatewayPolicy {
    /// What names it.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        ObjectRef { kind: Kind::EgressGatewayPolicy, namespace: None, name: self.name.clone() }
    }

    /// Whether a pod is one of its subjects, unless it is a gateway of any policy, which nothing locks down.
    #[must_use]
    pub fn selects(&self, pod: &Pod, namespace: NamespaceLabels<'_>) -> bool {
        let lifeline = LIFELINE_NAMESPACES.contains(&&*pod.namespace);
        let mut listed = self.subjects.iter().filter(|subject| subject.system_namespaces || !lifeline);
        (self.unreadable_subjects && !lifeline) || listed.any(|subject| subject.who.matches(pod, namespace))
    }

    /// Whether a pod of a namespace may be one of its subjects, whatever its labels and service account.
    #[must_use]
    pub fn may_select(&self, name: &str, namespace: NamespaceLabels<'_>) -> bool {
        let lifeline = LIFELINE_NAMESPACES.contains(&name);
        let mut listed = self.subjects.iter().filter(|subject| subject.system_namespaces || !lifeline);
        (self.unreadable_subjects && !lifeline)
            || listed.any(|subject| namespace.match_selector(&subject.who.namespaces))
    }
}

/// `spec.proxy`: what only some containers of a subject may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Their names; with none, no container may send what `scope` covers.
    pub containers: Set<String>,
    /// What only they may send.
    pub scope: Scope,
}

/// What a proxy lock covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// To gateways and everything outside the cluster: what is no pod's and no node's. What `allow.dns` and `allow.apiServer`
    /// allow is the cluster's wherever it is.
    Egress,
    /// Everything but what stays in the pod and what `allow.dns` allows.
    All,
}

/// Pods by namespace labels, labels and service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grantee {
    /// Absent: every namespace.
    pub namespaces: Selector,
    /// Absent: every pod.
    pub pods: Selector,
    /// Absent or empty: any.
    pub service_accounts: Set<String>,
}

impl Grantee {
    /// Whether it means this pod.
    #[must_use]
    pub fn matches(&self, pod: &Pod, namespace: NamespaceLabels<'_>) -> bool {
        (self.service_accounts.is_empty() || self.service_accounts.contains::<str>(&pod.spec.service_account))
            && self.pods.matches_labels(&pod.labels)
            && namespace.match_selector(&self.namespaces)
    }
}

/// An entry of `spec.subjects`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The pods.
    pub who: Grantee,
    /// Also in [`LIFELINE_NAMESPACES`].
    pub system_namespaces: bool,
}

/// An entry of `spec.gateways`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its place in `spec.gateways`.
    pub index: usize,
    /// Its name, for people; may be empty.
    pub name: String,
    /// Its pods; `None` for a gateway that has only addresses.
    pub pods: Option<PodPeer>,
    /// Its addresses.
    pub addresses: Vec<CidrPeer>,
    /// The ports it may be used on: its pods' own ports, or those of a service in front of it.
    pub ports: Ports,
    /// Which subjects may use it; `None` for all.
    pub clients: Option<Vec<Grantee>>,
    /// What its own pods may reach outside.
    pub destinations: Destinations,
}

/// Pods by labels, as a destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodPeer {
    /// The namespaces; absent next to `pods`: every one.
    pub namespaces: Selector,
    /// The pods; absent next to `namespaces`: every one.
    pub pods: Selector,
}

impl PodPeer {
    /// Whether it means this pod. Pods on the host network are meant by no labels.
    #[must_use]
    pub fn matches(&self, pod: &Pod, namespace: NamespaceLabels<'_>) -> bool {
        !pod.host_network && self.matches_labels(pod, namespace)
    }

    /// Whether it would mean this pod by its labels, also on the host network.
    #[must_use]
    pub fn matches_labels(&self, pod: &Pod, namespace: NamespaceLabels<'_>) -> bool {
        self.pods.matches_labels(&pod.labels) && namespace.match_selector(&self.namespaces)
    }
}

/// `gateways[].destinations`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destinations {
    /// Absent.
    Unrestricted,
    /// These, with their place in the list.
    Only(Vec<(CidrPeer, Ports)>),
    /// They cannot be read: the gateway's pods fail closed.
    Unreadable,
}

/// `spec.allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// The cluster's DNS.
    pub dns: bool,
    /// Pods and services of this cluster.
    pub in_cluster: bool,
    /// The API server.
    pub api_server: bool,
    /// The pod's own node.
    pub node: bool,
    /// Further peers.
    pub to: Vec<To>,
}

impl Default for Allow {
    fn default() -> Self {
        Self { dns: true, in_cluster: true, api_server: false, node: false, to: Vec::new() }
    }
}

/// An entry of `spec.allow.to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To {
    /// Where to.
    pub peer: ToPeer,
    /// On which ports; of a service, its own ports.
    pub ports: Ports,
}

/// The three forms of a further peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToPeer {
    /// Pods by labels.
    Pods(PodPeer),
    /// Addresses.
    Cidr(CidrPeer),
    /// A service's backends, and by them its VIPs.
    Service {
        /// The service's namespace.
        namespace: Arc<str>,
        /// The service's name.
        name: Arc<str>,
    },
}
