//! The verdict of a flow that somebody asks about, given the objects alone.
//!
//! Invariant: it is [`decide()`] that judges, over the compiled state, with a packet made for the purpose; nothing here
//! decides anything. Tested by `tests/explain.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use egress_common::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol};
use egress_common::wire::{Addr, Config, Endpoint, Row, RowKey};
use egress_common::{Action, Meta, Owner, Reason, View, decide};

use crate::compile::{Compiled, EndpointInfo, RuleInfo, UnknownPods, compile_every_pod};
use crate::index::Index;
use crate::object::{address, protocol_name};
use crate::plan::{Prefixes, State};

/// A flow: where it goes, once it is known which pod sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Destination address.
    pub address: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; not counted for protocols without ports.
    pub port: u16,
}

impl fmt::Display for Target {
    /// As `ADDR:PORT/PROTO`, or `ADDR/PROTO` for protocols without ports.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                write!(f, "{}/{}", SocketAddr::new(self.address, self.port), protocol_name(self.protocol))
            }
            _ => write!(f, "{}/ICMP", self.address),
        }
    }
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged<'a> {
    /// What the hook would do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// The sender, where the objects know it.
    pub endpoint: Option<&'a EndpointInfo>,
    /// The rule that decided, where one did.
    pub rule: Option<&'a RuleInfo>,
    /// Whose address the destination is.
    pub destination: Option<&'a str>,
}

/// Judges flows of any pod in the objects, as on the pod's own node.
#[derive(Debug)]
pub struct Judge<'a> {
    index: &'a Index,
    unknown_pods: UnknownPods,
    nodes: BTreeMap<Arc<str>, Compiled>,
}

/// The sender's cgroup: two levels below a pod root at level 0.
struct Sender(u64);

impl Owner for Sender {
    fn cgroup(&self, level: u32) -> u64 {
        if level == 2 { self.0 } else { 0 }
    }
}

/// The maps, with the prefix lengths found once.
struct Maps<'a> {
    state: &'a State,
    prefixes: Prefixes,
}

impl View for Maps<'_> {
    fn config(&self) -> Option<&Config> {
        self.state.config()
    }
    fn endpoint(&self, cgroup: u64) -> Option<&Endpoint> {
        self.state.endpoint(cgroup)
    }
    fn address(&self, addr: &Addr) -> Option<u64> {
        self.state.address(addr)
    }
    fn prefix(&self, addr: &Addr) -> Option<u64> {
        self.prefixes.lookup(&self.state.cidrs, addr).map(|(_, identity)| *identity)
    }
    fn row(&self, key: &RowKey) -> Option<&Row> {
        self.state.row(key)
    }
}

impl<'a> Judge<'a> {
    /// A judge over these objects.
    #[must_use]
    pub fn new(index: &'a Index, unknown_pods: UnknownPods) -> Self {
        Self { index, unknown_pods, nodes: BTreeMap::new() }
    }

    /// Judges flows of one pod, in their order. A pod that the objects do not have is an unknown pod.
    ///
    /// The first flow of a node compiles that node.
    pub fn judge(&mut self, namespace: &str, name: &str, targets: &[Target]) -> Vec<Judged<'_>> {
        let pod = self.index.pods().find(|pod| (&*pod.namespace, &*pod.name) == (namespace, name));
        let node = pod.and_then(|pod| pod.node.clone()).unwrap_or_else(|| Arc::from(""));
        let compiled = self
            .nodes
            .entry(node)
            .or_insert_with_key(|node| compile_every_pod(self.index, node, self.unknown_pods));
        let mut endpoints = compiled.endpoints.iter();
        let found =
            endpoints.find(|(_, info)| (info.namespace.as_str(), info.name.as_str()) == (namespace, name));
        let sender = Sender(found.map_or(0, |(cgroup, _)| *cgroup));
        let endpoint = found.map(|(_, info)| info);
        let maps = Maps { state: &compiled.desired, prefixes: Prefixes::new(&compiled.desired.cidrs) };
        targets.iter().map(|target| one(&maps, compiled, &sender, endpoint, target)).collect()
    }
}

fn one<'c>(
    maps: &Maps<'_>,
    compiled: &'c Compiled,
    sender: &Sender,
    endpoint: Option<&'c EndpointInfo>,
    target: &Target,
) -> Judged<'c> {
    let own = |info: &EndpointInfo| {
        info.addresses.iter().find(|ip| ip.is_ipv4() == target.address.is_ipv4()).copied()
    };
    let (ethertype, packet) = packet(endpoint.and_then(own), target);
    // Any device but loopback.
    let decision = decide(maps, sender, packet.as_slice(), Meta { ethertype, ifindex: 2 });
    Judged {
        action: decision.verdict.action,
        reason: decision.verdict.reason,
        endpoint,
        rule: compiled.provenance.rule(decision.policy, decision.verdict.rule),
        destination: compiled.provenance.address(target.address),
    }
}

/// The first packet of a flow: IP header and transport header, without payload.
fn packet(from: Option<IpAddr>, target: &Target) -> (u16, Vec<u8>) {
    let mut transport = [0; 20];
    if matches!(target.protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        transport[2..4].copy_from_slice(&target.port.to_be_bytes());
    }
    let zero = Addr::default();
    let from = from.map_or(zero, address);
    let mut packet = Vec::with_capacity(60);
    match target.address {
        IpAddr::V4(to) => {
            packet.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, target.protocol, 0, 0]);
            packet.extend(&from.0[12..]);
            packet.extend(to.octets());
            packet.extend(transport);
            (ETHERTYPE_IPV4, packet)
        }
        IpAddr::V6(to) => {
            packet.extend([0x60, 0, 0, 0, 0, 20, target.protocol, 64]);
            packet.extend(from.0);
            packet.extend(to.octets());
            packet.extend(transport);
            (ETHERTYPE_IPV6, packet)
        }
    }
}
