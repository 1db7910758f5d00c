//! nftables rules: service addresses on the node, and the sidecar's redirect in a pod.
//!
//! Invariant: each function owns one table and replaces it as a whole, in one transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};

use crate::addresses::{NODE_V4, NODE_V6};
use crate::netns::Netns;
use crate::pod::Pod;

/// A port's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As in a Kubernetes object.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name in the objects.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the service's address.
    pub port: u16,
    /// The port on the backends.
    pub target_port: u16,
    /// The port on the node's addresses that leads there, too.
    pub node_port: Option<u16>,
}

/// One of those that serve a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Namespace, name and UID of the pod, unless it is no pod.
    pub pod: Option<(String, String, String)>,
}

impl From<&Pod> for Backend {
    fn from(pod: &Pod) -> Self {
        let reference = (pod.namespace().to_owned(), pod.name().to_owned(), pod.uid().to_owned());
        Self { v4: Some(pod.v4()), v6: Some(pod.v6()), pod: Some(reference) }
    }
}

/// A service with its cluster addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster addresses, of one or both families.
    pub addresses: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Who serves it; with several, new connections take turns; without any, they are refused.
    pub backends: Vec<Backend>,
    /// The selector of the object; it does not choose the backends here.
    pub selector: BTreeMap<String, String>,
}

impl Service {
    /// A service without ports and backends.
    #[must_use]
    pub fn new(namespace: &str, name: &str, addresses: &[IpAddr]) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            ports: Vec::new(),
            backends: Vec::new(),
            selector: BTreeMap::new(),
        }
    }

    /// With one port more.
    #[must_use]
    pub fn port(mut self, protocol: Protocol, port: u16, target_port: u16) -> Self {
        let name = format!("{}-{port}", protocol.as_str().to_ascii_lowercase());
        self.ports.push(ServicePort { name, protocol, port, target_port, node_port: None });
        self
    }

    /// With a port on the node's addresses for the last one.
    #[must_use]
    pub fn node_port(mut self, port: u16) -> Self {
        if let Some(last) = self.ports.last_mut() {
            last.node_port = Some(port);
        }
        self
    }

    /// With one backend more.
    #[must_use]
    pub fn backend(mut self, backend: impl Into<Backend>) -> Self {
        self.backends.push(backend.into());
        self
    }

    /// With one label more in its selector.
    #[must_use]
    pub fn selects(mut self, key: &str, value: &str) -> Self {
        self.selector.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// Replaces what the service addresses on the node lead to.
pub(crate) fn set_services(node: &Netns, services: &[Service]) -> Result<()> {
    node.nft(&service_rules(services))
}

fn service_rules(services: &[Service]) -> String {
    let (mut translate, mut reject) = (String::new(), String::new());
    for service in services {
        for port in &service.ports {
            for address in &service.addresses {
                rule(&mut translate, &mut reject, service, (*address, port.port), port);
                if let Some(number) = port.node_port {
                    let node: IpAddr = if address.is_ipv4() { NODE_V4.into() } else { NODE_V6.into() };
                    rule(&mut translate, &mut reject, service, (node, number), port);
                }
            }
        }
    }
    let table = "table inet egress_topology_services";
    format!(
        "{table}\ndelete {table}\n{table} {{\n\
         chain unserved {{\n{reject}}}\n\
         chain services {{\n{translate}}}\n\
         chain reject_forwarded {{ type filter hook prerouting priority -150; policy accept; jump unserved; }}\n\
         chain reject_local {{ type filter hook output priority -150; policy accept; jump unserved; }}\n\
         chain prerouting {{ type nat hook prerouting priority -100; policy accept; jump services; }}\n\
         chain output {{ type nat hook output priority -100; policy accept; jump services; }}\n\
         }}\n"
    )
}

/// What is sent to `front` goes to the backends of this port.
fn rule(
    translate: &mut String,
    reject: &mut String,
    service: &Service,
    front: (IpAddr, u16),
    port: &ServicePort,
) {
    let (address, number) = front;
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let matches = format!("{family} daddr {address} {protocol} dport {number}");
    let backends: Vec<IpAddr> =
        service
            .backends
            .iter()
            .filter_map(|backend| {
                if address.is_ipv4() { backend.v4.map(Into::into) } else { backend.v6.map(Into::into) }
            })
            .collect();
    // Writing to a string cannot fail.
    let _ok = match backends.as_slice() {
        [] => writeln!(reject, "{matches} reject"),
        [only] => {
            let host = if only.is_ipv4() { only.to_string() } else { format!("[{only}]") };
            writeln!(translate, "{matches} dnat {family} to {host}:{}", port.target_port)
        }
        several => {
            let turns: Vec<String> = several
                .iter()
                .enumerate()
                .map(|(turn, backend)| format!("{turn} : {backend} . {}", port.target_port))
                .collect();
            let count = several.len();
            writeln!(
                translate,
                "{matches} dnat {family} to numgen inc mod {count} map {{ {} }}",
                turns.join(", ")
            )
        }
    };
}

/// Istio's redirect of outgoing TCP to the sidecar on port 15001, as its init container installs it: everything but
/// what the sidecar's user (1337) sends and what stays on the loopback interface.
pub(crate) fn istio_redirect(pod: &Pod) -> Result<()> {
    ensure!(!pod.is_host_network(), "{}: a pod in the node's network has no redirect", pod.name());
    pod.netns().nft(
        "table inet istio\ndelete table inet istio\ntable inet istio {\n\
         chain output {\n\
         type nat hook output priority -100; policy accept;\n\
         meta skuid 1337 return\n\
         oifname \"lo\" return\n\
         ip daddr 127.0.0.1 return\n\
         ip6 daddr ::1 return\n\
         meta l4proto tcp redirect to :15001\n\
         }\n}\n",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_follow_the_number_of_backends() {
        let backend = |last| Backend {
            v4: Some(Ipv4Addr::new(10, 244, 1, last)),
            v6: Some(crate::pod_v6(last.into())),
            pod: None,
        };
        let addresses = ["10.96.0.10".parse().unwrap(), "fd00:10:96::10".parse().unwrap()];
        let service = Service::new("default", "web", &addresses).port(Protocol::Tcp, 80, 8080);
        assert!(
            service_rules(std::slice::from_ref(&service)).contains("ip daddr 10.96.0.10 tcp dport 80 reject")
        );
        let one = service.backend(backend(5));
        assert!(
            service_rules(std::slice::from_ref(&one))
                .contains("tcp dport 80 dnat ip6 to [fd00:10:244:1::5]:8080")
        );
        let two = service_rules(&[one.backend(backend(6))]);
        assert!(two.contains("numgen inc mod 2 map { 0 : 10.244.1.5 . 8080, 1 : 10.244.1.6 . 8080 }"));
    }
}
