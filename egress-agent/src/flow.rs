//! From a kernel event to a line of the flow log: names for numbers. Pure.
//!
//! Invariant: a number without a name is shown as the number, never left out. Tested below.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egress_common::packet::protocol;
use egress_common::wire::{self, FlowEvent};
use egress_common::{Action, Addr, Hook, Reason};
use egress_policy::compile::Compiled;
use egress_policy::index::Index;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A denied or audited packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// When the hook saw it.
    pub time: Timestamp,
    /// The node.
    pub node: String,
    /// The sender as NS/POD, where it is known.
    pub pod: Option<String>,
    /// The UID in the name of the sender's cgroup, or the hash of a static pod, where the cgroup is known.
    #[serde(default)]
    pub uid: Option<String>,
    /// Id of the sender's cgroup at pod level.
    pub cgroup: u64,
    /// The container that sent it, where its name is known: under a proxy lock as the kernel saw it, else that of the process, if it
    /// was still there.
    pub container: Option<String>,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// What the destination is, as in `pod ns/name`, where it is known.
    pub destination_name: Option<String>,
    /// The pod whose address the destination is, as NS/POD.
    #[serde(default)]
    pub destination_pod: Option<String>,
    /// The service whose address the destination is, as NS/NAME.
    #[serde(default)]
    pub destination_service: Option<String>,
    /// The node whose address the destination is, or that its pod is on.
    #[serde(default)]
    pub destination_node: Option<String>,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or the number.
    pub protocol: String,
    /// [`Action::name`].
    pub action: String,
    /// [`Reason::name`].
    pub reason: String,
    /// The policies that select the sender.
    pub policies: Vec<String>,
    /// The rule that decided, where one did.
    pub rule: Option<String>,
    /// The hook that saw it.
    pub hook: String,
    /// The process that used the socket last, where that is known.
    pub process: Option<Process>,
    /// Denied packets of this pod and reason, before this one, that no line tells of because there were too many.
    pub suppressed: u64,
    /// Bytes from the IP header on.
    pub length: u32,
    /// The revision that applied.
    pub revision: u64,
}

/// A process, as the node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its command, 15 characters at most.
    pub command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] of user {}", self.command, self.pid, self.uid)
    }
}

/// The process of an event; its command is what the process says it is, so only printable characters are kept.
fn process(process: &wire::Process) -> Option<Process> {
    let text = process.command.split(|byte| *byte == 0).next().unwrap_or_default();
    let command = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    (process.pid != 0).then_some(Process { pid: process.pid, uid: process.uid, command })
}

/// The sender, as far as it is found on the node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sender<'a> {
    /// See [`Flow::uid`].
    pub uid: Option<&'a str>,
    /// See [`Flow::container`].
    pub container: Option<&'a str>,
}

/// Names the numbers of an event. `now` is the present on both clocks: wall clock and `CLOCK_MONOTONIC` nanoseconds.
#[must_use]
pub fn enrich(
    event: &FlowEvent,
    (compiled, index): (&Compiled, &Index),
    sender: Sender<'_>,
    node: &str,
    now: (Timestamp, u64),
) -> Flow {
    let age = std::time::Duration::from_nanos(now.1.saturating_sub(event.time));
    let endpoint = compiled.endpoints.get(&event.cgroup);
    let destination = ip(&event.destination);
    let names = index.address_names(destination, (event.protocol, event.destination_port));
    let number =
        |name: Option<&'static str>, value: u8| name.map_or_else(|| value.to_string(), str::to_owned);
    Flow {
        time: now.0.checked_sub(age).unwrap_or(now.0),
        node: node.to_owned(),
        pod: endpoint.map(|endpoint| format!("{}/{}", endpoint.namespace, endpoint.name)),
        uid: sender.uid.map(str::to_owned),
        cgroup: event.cgroup,
        container: sender.container.map(str::to_owned),
        source: SocketAddr::new(ip(&event.source), event.source_port),
        destination: SocketAddr::new(destination, event.destination_port),
        destination_name: index.address_name(destination, (event.protocol, event.destination_port)),
        destination_pod: names.pod,
        destination_service: names.service,
        destination_node: names.node,
        protocol: number(protocol_name(event.protocol), event.protocol),
        action: number(Action::from_wire(event.action).map(Action::name), event.action),
        reason: number(Reason::from_wire(event.reason).map(Reason::name), event.reason),
        policies: compiled.provenance.policies(event.policy).iter().map(ToString::to_string).collect(),
        rule: compiled
            .provenance
            .rule(event.policy, event.rule)
            .map(|rule| format!("{}: {}", rule.object, rule.path)),
        hook: number(Hook::from_wire(event.hook).map(Hook::name), event.hook),
        process: process(&event.process),
        suppressed: event.suppressed,
        length: event.length,
        revision: event.revision,
    }
}

/// The name of a protocol that policy can speak of.
fn protocol_name(number: u8) -> Option<&'static str> {
    match number {
        protocol::TCP => Some("TCP"),
        protocol::UDP => Some("UDP"),
        protocol::SCTP => Some("SCTP"),
        protocol::ICMP => Some("ICMP"),
        protocol::ICMPV6 => Some("ICMPv6"),
        _ => None,
    }
}

fn ip(addr: &Addr) -> IpAddr {
    if addr.is_v4() {
        let [.., a, b, c, d] = addr.0;
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        Ipv6Addr::from(addr.0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::{Index, Sender, enrich};
    use egress_common::Addr;
    use egress_common::wire::FlowEvent;
    use egress_policy::compile::{Node, UnknownPods, compile};
    use egress_policy::index::Event;
    use egress_policy::object::Read;
    use jiff::Timestamp;
    use serde_json::json;

    #[test]
    fn what_has_no_name_is_shown_as_a_number() {
        let node = Node {
            name: "n",
            pod_root_level: 1,
            unknown_pods: UnknownPods::Deny,
            incomplete: false,
            pods: &[],
        };
        let index = Index::default();
        let compiled = compile(&index, &node);
        let event = FlowEvent {
            time: 5_000_000_000,
            cgroup: 7,
            destination: Addr::v4([198, 51, 100, 10]),
            destination_port: 443,
            protocol: 99,
            action: 2,
            reason: 17,
            hook: 1,
            ..FlowEvent::default()
        };
        let now = Timestamp::from_second(1000).unwrap();
        let flow = enrich(&event, (&compiled, &index), Sender::default(), "n", (now, 6_000_000_000));
        assert_eq!(flow.time, Timestamp::from_second(999).unwrap());
        assert_eq!((flow.pod, flow.cgroup), (None, 7));
        assert_eq!(flow.destination.to_string(), "198.51.100.10:443");
        assert_eq!((flow.protocol.as_str(), flow.action.as_str()), ("99", "deny"));
        assert_eq!((flow.reason.as_str(), flow.hook.as_str()), ("UnknownPod", "socket"));
        assert_eq!(
            (flow.destination_pod, flow.destination_service, flow.destination_node),
            (None, None, None)
        );
    }

    #[test]
    fn pods_services_and_nodes_have_their_names() {
        let read = |value| egress_policy::object::read(value).unwrap().into_iter();
        let service = |name: &str, port: u16| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
                "spec": {"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"], "ports": [{"port": port}]},
            })
        };
        let objects = [
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "web"},
                "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIP": "10.1.0.1"},
            }),
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.2"}]},
            }),
            service("a", 80),
            service("b", 443),
        ];
        let mut index = Index::default();
        for read in objects.into_iter().flat_map(read) {
            let Read::Object(object) = read else { panic!("{read:?}") };
            index.apply(Event::Upsert(object));
        }
        let names = |address: &str, port| {
            let names = index.address_names(address.parse().unwrap(), (6, port));
            [names.pod, names.service, names.node].map(Option::unwrap_or_default)
        };
        assert_eq!(names("10.1.0.1", 1), ["shop/web", "", "n1"]);
        assert_eq!(names("10.0.0.2", 1), ["", "", "n2"]);
        assert_eq!(names("192.0.2.1", 443), ["", "shop/b", ""]);
        assert_eq!(names("192.0.2.1", 1), ["", "shop/a", ""]);
        assert_eq!(names("198.51.100.1", 443), ["", "", ""]);
    }
}
