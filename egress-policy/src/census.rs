//! What became of each lock-down in the whole cluster, for its status: whether it could be read, and whom and what it means.
//!
//! Counting looks at every pod, so it is apart from the index: [`Index::census`] shares what is counted, which is quick, and
//! [`Census::count`] can run anywhere. Invariant: a pod is counted as a subject where the compiler of its node locks it
//! down. Tested by `tests/census.rs`, also against the endpoints of random clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::index::Index;
use crate::object::{CidrPeer, EgressGatewayPolicy, EndpointSlice, Labels, NamespaceLabels, Pod};

/// What is to be counted, as it was at one moment.
#[derive(Clone, Debug, Default)]
pub struct Census {
    pods: Vec<Arc<Pod>>,
    namespaces: BTreeMap<Arc<str>, Labels>,
    slices: Vec<Arc<EndpointSlice>>,
    policies: Vec<EgressGatewayPolicy>,
}

/// What there is to say about a lock-down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.uid`, empty where there is none.
    pub uid: Arc<str>,
    /// The generation that was read; 0 where there is none.
    pub generation: i64,
    /// The first thing that is wrong with it; `None` where it is valid.
    pub error: Option<String>,
    /// Whether it only audits.
    pub audit: bool,
    /// Pods that it locks down. Those that have finished do not count, nor do gateways, which nothing locks down.
    pub subjects: usize,
    /// Entries of `spec.gateways`, as far as they could be read.
    pub gateways: usize,
    /// Its gateways' pods that have an address and are ready, and the addresses that its entries list. A pod is ready where
    /// an EndpointSlice says so, or none speaks of it; of a listed address nobody says otherwise. Each counts once.
    pub ready_gateway_endpoints: usize,
}

impl Census {
    pub(crate) fn new(index: &Index) -> Self {
        let named = |namespace: &crate::object::Namespace| (namespace.name.clone(), namespace.labels.clone());
        Self {
            pods: index.shared_pods().filter(|pod| !pod.finished).cloned().collect(),
            namespaces: index.namespaces().map(named).collect(),
            slices: index.shared_slices().cloned().collect(),
            policies: index.gateway_policies().cloned().collect(),
        }
    }

    fn namespace<'a>(&'a self, pod: &'a Pod) -> NamespaceLabels<'a> {
        NamespaceLabels { name: &pod.namespace, labels: self.namespaces.get(&pod.namespace) }
    }

    /// Counts, for every lock-down in the order of their names. Takes some tenth of a microsecond for each pod and policy.
    #[must_use]
    pub fn count(&self) -> Vec<Counted> {
        if self.policies.is_empty() {
            return Vec::new();
        }
        let readiness = self.readiness();
        let mut counted: Vec<Counted> = self.policies.iter().map(blank).collect();
        for pod in &self.pods {
            let labels = self.namespace(pod);
            let means = |policy: &EgressGatewayPolicy| {
                policy
                    .gateways
                    .iter()
                    .filter_map(|one| one.pods.as_ref())
                    .any(|peer| peer.matches(pod, labels))
            };
            let gateway_of: Vec<bool> = self.policies.iter().map(means).collect();
            let is_gateway = gateway_of.contains(&true);
            let ready = is_gateway && is_ready(pod, &readiness);
            for ((policy, counted), means) in self.policies.iter().zip(&mut counted).zip(gateway_of) {
                counted.ready_gateway_endpoints += usize::from(means && ready);
                counted.subjects += usize::from(!is_gateway && policy.selects(pod, labels));
            }
        }
        counted
    }

    /// The addresses that slices speak of, and whether any says that they are ready.
    fn readiness(&self) -> BTreeMap<IpAddr, bool> {
        let mut found = BTreeMap::new();
        for endpoint in self.slices.iter().flat_map(|slice| slice.endpoints.iter()) {
            *found.entry(endpoint.address).or_insert(false) |= endpoint.ready;
        }
        found
    }
}

/// What there is to say before the pods are counted.
fn blank(policy: &EgressGatewayPolicy) -> Counted {
    let listed: BTreeSet<&CidrPeer> = policy.gateways.iter().flat_map(|gateway| &gateway.addresses).collect();
    Counted {
        name: policy.name.clone(),
        uid: policy.uid.clone(),
        generation: policy.generation,
        error: policy.errors.first().map(ToString::to_string),
        audit: policy.audit,
        subjects: 0,
        gateways: policy.gateways.len(),
        ready_gateway_endpoints: listed.len(),
    }
}

fn is_ready(pod: &Pod, readiness: &BTreeMap<IpAddr, bool>) -> bool {
    let said: Vec<bool> = pod.addresses.iter().filter_map(|addr| readiness.get(addr).copied()).collect();
    !pod.addresses.is_empty() && (said.is_empty() || said.contains(&true))
}

impl Index {
    /// What the lock-downs' status is counted from; shares the objects.
    #[must_use]
    pub fn census(&self) -> Census {
        Census::new(self)
    }
}
