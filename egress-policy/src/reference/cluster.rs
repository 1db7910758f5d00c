//! What is where in the cluster.

use std::net::{IpAddr, Ipv6Addr};

use super::matching::{is_protocol, label_of, labels_match, ports_hold_number, prefix_holds};
use super::{Protocol, Target};
use crate::index::Index;
use crate::object::{
    CidrPeer, EndpointSlice, Labels, NAMESPACE_NAME_LABEL, Namespace, Pod, PodPeer, Ports, Selector, Service,
    ServicePort,
};

/// Stands for what is behind a service that cannot be read.
pub(super) const ANYWHERE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The objects, and the node whose pods are judged.
pub(super) struct Cluster<'a> {
    pub(super) objects: &'a Index,
    node_name: &'a str,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(objects: &'a Index, node_name: &'a str) -> Self {
        Self { objects, node_name }
    }

    pub(super) fn namespace(&self, name: &str) -> Option<&'a Namespace> {
        self.objects.namespaces().find(|namespace| *namespace.name == *name)
    }

    /// Whether a selector is known to mean a namespace. Its name is a label of it, whatever its object says; of one
    /// without an object nothing else is known, not even that a label is absent.
    pub(super) fn namespace_matches(&self, selector: &Selector, name: &str) -> bool {
        let namespace = self.namespace(name);
        let asks_for_more =
            selector.0.iter().any(|requirement| label_of(requirement) != NAMESPACE_NAME_LABEL);
        if namespace.is_none() && asks_for_more {
            return false;
        }
        let labels = namespace.into_iter().flat_map(|namespace| namespace.labels.iter());
        let labels: Labels = labels.chain([(NAMESPACE_NAME_LABEL, name)]).collect();
        labels_match(selector, &labels)
    }

    /// Whether a peer means a pod. Pods on the host network match as their node, not by label.
    pub(super) fn peer_matches(&self, peer: &PodPeer, pod: &Pod) -> bool {
        !pod.host_network
            && labels_match(&peer.pods, &pod.labels)
            && self.namespace_matches(&peer.namespaces, &pod.namespace)
    }

    /// Whether a pod is one of the gateways of any lock-down.
    pub(super) fn is_gateway(&self, pod: &Pod) -> bool {
        self.objects
            .gateway_policies()
            .flat_map(|policy| &policy.gateways)
            .any(|gateway| gateway.pods.as_ref().is_some_and(|peer| self.peer_matches(peer, pod)))
    }

    /// Whether any lock-down calls this very address a gateway.
    pub(super) fn is_gateway_address(&self, address: IpAddr) -> bool {
        let mut gateways = self.objects.gateway_policies().flat_map(|policy| &policy.gateways);
        let single = |prefix: &&CidrPeer| prefix.cidr.bits == 128;
        gateways.any(|one| one.addresses.iter().filter(single).any(|prefix| prefix_holds(prefix, address)))
    }

    /// The pods that own an address: those on a node, and neither finished nor on the host network.
    pub(super) fn pods_at(&self, address: IpAddr) -> Vec<&'a Pod> {
        let owns = |pod: &&Pod| {
            pod.node().is_some() && !pod.finished && !pod.host_network && pod.addresses.contains(&address)
        };
        self.objects.pods().filter(owns).collect()
    }

    /// Whether an address is a node's.
    pub(super) fn is_node(&self, address: IpAddr) -> bool {
        self.objects.nodes().any(|node| node.addresses.contains(&address))
    }

    /// Whether an address is one of the node whose pods are judged.
    pub(super) fn is_own_node(&self, address: IpAddr) -> bool {
        let mut own = self.objects.nodes().filter(|node| *node.name == *self.node_name);
        own.any(|node| node.addresses.contains(&address))
    }

    /// The services that have a virtual address.
    pub(super) fn services_at(&self, address: IpAddr) -> Vec<&'a Service> {
        self.objects.services().filter(|service| service.vips.contains(&address)).collect()
    }

    /// The service's ports that a packet to its virtual address means.
    pub(super) fn ports_of<'s>(
        &self,
        service: &'s Service,
        protocol: Protocol,
        port: u16,
    ) -> Vec<&'s ServicePort> {
        let means = |one: &&ServicePort| is_protocol(one.protocol, protocol) && one.port == port;
        service.ports.iter().filter(means).collect()
    }

    /// The parts of a service's backends, each with its ports that belong to a port of the service.
    fn backend_ports(&self, service: &Service, port: &ServicePort) -> Vec<(&'a EndpointSlice, u16)> {
        let mut found = Vec::new();
        for slice in self.objects.endpoint_slices() {
            if slice.namespace != service.namespace || slice.service.as_ref() != Some(&service.name) {
                continue;
            }
            // What is read of them may not be what kube-proxy reads.
            if slice.unread || service.unread {
                continue;
            }
            for target in &slice.ports {
                if target.name == port.name && target.protocol == port.protocol {
                    found.push((slice, target.port));
                }
            }
        }
        found
    }

    /// Whether a service may lead anywhere: it cannot be read, or a slice of it that kube-proxy takes backends from.
    pub(super) fn leads_anywhere(&self, service: &Service) -> bool {
        let of_it = |slice: &&EndpointSlice| {
            slice.namespace == service.namespace && slice.service.as_ref() == Some(&service.name)
        };
        let mut slices = self.objects.endpoint_slices().filter(of_it);
        service.unread || slices.any(|slice| slice.proxied && slice.unread)
    }

    /// The backends of one family that a new connection to a service's port may be sent to: the ready ones, and those that still serve
    /// while they terminate. Whether none is ready to a node, so that it chooses these, nobody else knows.
    pub(super) fn chosen_backends(
        &self,
        service: &Service,
        port: &ServicePort,
        v4: bool,
    ) -> Vec<(IpAddr, u16)> {
        let mut found = Vec::new();
        for (slice, target_port) in self.backend_ports(service, port) {
            if !slice.proxied {
                continue;
            }
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == v4) {
                if endpoint.ready || endpoint.last_resort {
                    found.push((endpoint.address, target_port));
                }
            }
        }
        found
    }

    /// Whether a service leads out of the cluster: something behind it that is ready, or serves while it terminates, is a gateway, a node,
    /// a service's, or nobody's.
    fn leads_out(&self, service: &Service) -> bool {
        let slices = self.objects.endpoint_slices();
        let mut of_it = slices.filter(|slice| {
            slice.namespace == service.namespace && slice.service.as_ref() == Some(&service.name)
        });
        self.leads_anywhere(service)
            || of_it.any(|slice| {
                slice.endpoints.iter().filter(|endpoint| endpoint.ready || endpoint.last_resort).any(
                    |endpoint| {
                        let pods = self.pods_at(endpoint.address);
                        let no_pods = pods.is_empty() || self.is_node(endpoint.address);
                        no_pods
                            || !self.services_at(endpoint.address).is_empty()
                            || pods.into_iter().any(|pod| self.is_gateway(pod))
                            || self.is_gateway_address(endpoint.address)
                    },
                )
            })
    }

    /// Where another node sends on what comes to a backend of its own: what services that have the address of a pod or node lead to on this
    /// port. `None` where one of them says nothing that can be read, or has nothing behind the port.
    pub(super) fn sent_on(
        &self,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Option<Vec<(IpAddr, u16)>> {
        let mut found = Vec::new();
        if self.pods_at(address).is_empty() && !self.is_node(address) {
            return Some(found);
        }
        let mut has_port = false;
        for service in self.services_at(address) {
            if service.unread {
                return None;
            }
            for one in self.ports_of(service, protocol, port) {
                if self.leads_anywhere(service) {
                    return None;
                }
                has_port = true;
                found.extend(self.chosen_backends(service, one, address.is_ipv4()));
            }
        }
        (!has_port || !found.is_empty()).then_some(found)
    }

    /// What is behind a port of a node that leads out of the cluster: a node port of a service that does, or a host port of a gateway on
    /// that node. `None` for other ports and addresses.
    pub(super) fn behind_node(
        &self,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Option<Vec<(IpAddr, u16)>> {
        let mut found = None;
        if !self.is_node(address) {
            return None;
        }
        for service in self.objects.services().filter(|service| self.leads_out(service)) {
            for one in &service.ports {
                if one.node_port == port && port != 0 && is_protocol(one.protocol, protocol) {
                    let behind: &mut Vec<_> = found.get_or_insert_default();
                    behind.extend(self.chosen_backends(service, one, address.is_ipv4()));
                    if self.leads_anywhere(service) {
                        behind.push((ANYWHERE, 0));
                    }
                }
            }
        }
        let is_gateway = |pod: &&Pod| {
            let own = !pod.host_network && pod.addresses.iter().any(|own| self.is_gateway_address(*own));
            !pod.finished && (own || self.is_gateway(pod))
        };
        for pod in self.objects.pods().filter(is_gateway) {
            let mut nodes = self.objects.nodes().filter(|node| node.addresses.contains(&address));
            if pod.addresses.is_empty() || !nodes.any(|node| Some(&node.name) == pod.node()) {
                continue;
            }
            for one in &pod.spec.host_ports {
                if one.host == port && is_protocol(one.protocol, protocol) {
                    let behind: &mut Vec<_> = found.get_or_insert_default();
                    let own = pod.addresses.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
                    behind.extend(own.map(|own| (*own, one.port)));
                }
            }
        }
        found
    }

    /// Whether a target is a backend, in whatever condition, of one of the service's listed ports, at its target port.
    pub(super) fn is_backend(&self, service: &Service, listed: &Ports, target: Target<'_>) -> bool {
        let ports = service.ports.iter().filter(|port| ports_hold_number(listed, port.protocol, port.port));
        ports.filter(|port| is_protocol(port.protocol, target.protocol)).any(|port| {
            self.backend_ports(service, port).into_iter().any(|(slice, target_port)| {
                target_port == target.port
                    && slice.endpoints.iter().any(|endpoint| endpoint.address == target.address)
            })
        })
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&'a Service> {
        let mut services = self.objects.services();
        services.find(|service| *service.namespace == *namespace && *service.name == *name)
    }

    /// Whether a target is the API server: an endpoint of `default/kubernetes`, at its port; of the slice of that name alone, where
    /// there is one.
    pub(super) fn is_api_server(&self, target: Target<'_>) -> bool {
        let Some(service) = self.service("default", "kubernetes") else { return false };
        let ports = service.ports.iter().filter(|port| is_protocol(port.protocol, target.protocol));
        let slices: Vec<_> = ports.flat_map(|port| self.backend_ports(service, port)).collect();
        let has_own = self.objects.endpoint_slices().any(|slice| {
            *slice.namespace == *"default"
                && slice.service.as_deref() == Some("kubernetes")
                && *slice.name == *"kubernetes"
        });
        slices.into_iter().any(|(slice, port)| {
            let here = slice.endpoints.iter().any(|endpoint| endpoint.address == target.address);
            port == target.port && here && (!has_own || *slice.name == *"kubernetes")
        })
    }

    /// Whether a target is the cluster's DNS: a pod or node behind its service, at port 53 or where that leads to. Its service is the
    /// one in `kube-system` with the label `k8s-app: kube-dns`, or of the name `kube-dns` or `coredns`.
    pub(super) fn is_dns(&self, target: Target<'_>) -> bool {
        let is_dns = |service: &&Service| {
            *service.namespace == *"kube-system"
                && (service.labels.get("k8s-app") == Some("kube-dns")
                    || ["kube-dns", "coredns"].contains(&&*service.name))
        };
        let asks = matches!(target.protocol, Protocol::Tcp | Protocol::Udp);
        let inside = target.pod.is_some() || self.is_node(target.address);
        asks && inside
            && self.objects.services().filter(is_dns).any(|service| {
                service.ports.iter().filter(|port| port.port == 53 && matches!(port.protocol, 6 | 17)).any(
                    |port| {
                        self.backend_ports(service, port).into_iter().any(|(slice, target_port)| {
                            let here = slice.endpoints.iter().any(|e| e.address == target.address);
                            let behind =
                                is_protocol(port.protocol, target.protocol) && target.port == target_port;
                            here && (behind || target.port == 53)
                        })
                    },
                )
            })
    }
}
