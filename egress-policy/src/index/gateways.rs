//! What lock-downs call a gateway: pods by their labels, and single addresses.
//!
//! Invariant: what any lock-down calls a gateway, valid or not, is one for all of them. A block of addresses makes no gateway of what is
//! in it, or it could take a cluster's own pods and services from everybody. Tested by `tests/gateways.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use egress_common::wire::{Addr, Cidr};

use super::{Dirty, Index, owned};
use crate::object::{EgressGatewayPolicy, Kind, ObjectRef, Pod, PodPeer, is_single};

impl Index {
    /// Whether a pod is a gateway of some lock-down.
    pub(crate) fn is_gateway(&self, pod: &Pod) -> bool {
        self.gateways.contains(&pod.key())
    }

    /// The pods that are a gateway of some lock-down.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = &Pod> {
        self.gateways.iter().filter_map(|(namespace, name)| self.pod(namespace, name))
    }

    /// Whether an address is by itself a gateway of some lock-down.
    pub(crate) fn is_gateway_address(&self, addr: &Addr) -> bool {
        self.gateway_addresses.contains_key(addr)
    }

    /// The addresses that are by themselves a gateway of some lock-down.
    pub(crate) fn gateway_addresses(&self) -> impl Iterator<Item = Addr> {
        self.gateway_addresses.keys().copied()
    }

    /// The lock-downs that call what has an address a gateway, by the address itself or by a pod.
    pub(crate) fn gateway_of(&self, addr: &Addr) -> impl Iterator<Item = ObjectRef> {
        let owners = self.owners(addr);
        self.gateway_policies()
            .filter(move |policy| {
                policy.gateways.iter().any(|gateway| {
                    let single = |cidr: &Cidr| is_single(cidr) && cidr.addr == *addr;
                    let meant = |peer: &PodPeer| {
                        owners.iter().any(|pod| peer.matches(pod, self.namespace(&pod.namespace)))
                    };
                    gateway.addresses.iter().any(|peer| single(&peer.cidr))
                        || gateway.pods.as_ref().is_some_and(meant)
                })
            })
            .map(EgressGatewayPolicy::object_ref)
    }

    /// Whether a pod is a gateway of some lock-down, or has an address that is.
    pub(super) fn holds_gateway(&self, pod: &Pod) -> bool {
        self.is_gateway(pod) || owned(pod).any(|addr| self.is_gateway_address(&addr))
    }

    /// Counts the single addresses that a policy calls gateways, anew; tells of which that changed what they are.
    fn count_addresses(
        &mut self,
        old: Option<&EgressGatewayPolicy>,
        new: Option<&EgressGatewayPolicy>,
    ) -> BTreeSet<Addr> {
        fn singles(policy: Option<&EgressGatewayPolicy>) -> impl Iterator<Item = Addr> {
            let gateways = policy.into_iter().flat_map(|policy| &policy.gateways);
            let cidrs = gateways.flat_map(|gateway| &gateway.addresses).map(|peer| peer.cidr);
            cidrs.filter(is_single).map(|cidr| cidr.addr)
        }
        let mut changed = BTreeSet::new();
        for addr in singles(new) {
            let count = self.gateway_addresses.entry(addr).or_default();
            *count += 1;
            if *count == 1 {
                changed.insert(addr);
            }
        }
        for addr in singles(old) {
            let Some(count) = self.gateway_addresses.get_mut(&addr) else { continue };
            *count -= 1;
            if *count == 0 {
                self.gateway_addresses.remove(&addr);
                changed.insert(addr);
            }
        }
        changed
    }

    pub(super) fn put_gateway_policy(
        &mut self,
        name: Arc<str>,
        policy: Option<EgressGatewayPolicy>,
    ) -> Dirty {
        let mut dirty = Dirty::default();
        if self.gateway_policies.get(&name) == policy.as_ref() {
            return dirty;
        }
        dirty.every_pod = true;
        dirty.objects.insert(ObjectRef {
            kind: Kind::EgressGatewayPolicy,
            namespace: None,
            name: name.clone(),
        });
        // With their places, which diagnostics name.
        let peers = |policy: Option<&EgressGatewayPolicy>| -> Vec<(usize, PodPeer)> {
            let gateways = policy.into_iter().flat_map(|policy| &policy.gateways);
            gateways.filter_map(|gateway| Some((gateway.index, gateway.pods.clone()?))).collect()
        };
        let old = self.gateway_policies.remove(&name);
        let (before, after) = (peers(old.as_ref()), peers(policy.as_ref()));
        let addresses = self.count_addresses(old.as_ref(), policy.as_ref());
        if let Some(policy) = policy {
            self.gateway_policies.insert(name, policy);
        }
        for addr in addresses {
            dirty.addresses.insert(addr);
            let pods = self.owners(&addr).to_vec();
            pods.iter().for_each(|pod| self.judge_pod_ports(pod, &mut dirty));
        }
        // Who is not meant by what was or is written here stays what it was.
        let changed: Vec<PodPeer> = before
            .iter()
            .filter(|peer| !after.contains(peer))
            .chain(after.iter().filter(|peer| !before.contains(peer)))
            .map(|(_, peer)| peer.clone())
            .collect();
        if !changed.is_empty() {
            let meant = |pod: &Arc<Pod>| {
                let labels = self.namespace(&pod.namespace);
                changed.iter().any(|peer| peer.matches(pod, labels))
            };
            let host = self.pods().filter(|pod| pod.host_network).filter(|pod| {
                let labels = self.namespace(&pod.namespace);
                changed.iter().any(|peer| peer.matches_labels(pod, labels))
            });
            dirty.objects.extend(host.map(Pod::object_ref));
            let pods: Vec<Arc<Pod>> = self.pods.iter().filter(|pod| meant(pod)).cloned().collect();
            for pod in pods {
                if self.judge_gateway(&pod) {
                    dirty.addresses.extend(owned(&pod));
                    self.judge_pod_ports(&pod, &mut dirty);
                }
            }
        }
        dirty
    }

    /// Whether a pod is meant as a gateway by any lock-down, valid or not.
    pub(crate) fn means_gateway(&self, pod: &Pod) -> bool {
        let labels = self.namespace(&pod.namespace);
        let gateways = self.gateway_policies.values().flat_map(|policy| &policy.gateways);
        gateways.filter_map(|gateway| gateway.pods.as_ref()).any(|peer| peer.matches(pod, labels))
    }

    /// Looks again whether a pod is a gateway; tells whether that changed.
    pub(super) fn judge_gateway(&mut self, pod: &Pod) -> bool {
        let name = pod.key();
        if self.means_gateway(pod) { self.gateways.insert(name) } else { self.gateways.remove(&name) }
    }
}
