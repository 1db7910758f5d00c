//! The verdict of a flow that somebody asks about, given the objects alone.
//!
//! Invariant: it is [`decide()`] that judges, over the compiled state, with a packet made for the purpose; nothing here
//! decides anything. Tested by `tests/explain.rs`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use egress_common::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol};
use egress_common::view::LOOPBACK_IFINDEX;
use egress_common::wire::{Addr, Approval, Config, Endpoint, Row, RowKey, Witness, WitnessKey};
use egress_common::{Action, Meta, Owner, Reason, Socket, View, decide};

use crate::compile::{Compiled, Doubt, EndpointInfo, RuleInfo, compile_pods};
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
    /// Whether it is asked what a service leads to: the pod itself counts as any other there.
    pub behind: bool,
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
    pub destination: Option<String>,
}

/// Judges flows of pods: in the objects, each as on its own node, or on one node as it was compiled.
#[derive(Debug)]
pub struct Judge<'a> {
    index: &'a Index,
    compiled: Cow<'a, Compiled>,
    /// Cgroup ids by namespace and name.
    cgroups: BTreeMap<(String, String), u64>,
}

/// The sender's cgroups: the pod's two levels below the pod root, whose level is `root`, and the container's below that.
pub(crate) struct Sender<'a> {
    pub(crate) root: u32,
    pub(crate) pod: u64,
    pub(crate) container: u64,
    /// What is kept with its socket.
    pub(crate) kept: Option<&'a Approval>,
}

impl Owner for Sender<'_> {
    fn cgroup(&self, level: u32) -> u64 {
        match level.wrapping_sub(self.root) {
            2 => self.pod,
            3 => self.container,
            _ => 0,
        }
    }

    fn socket(&self) -> Socket {
        Socket::Inet
    }

    fn approval(&self) -> Option<&Approval> {
        self.kept
    }
}

/// The maps, with the prefix lengths found once.
#[derive(Debug)]
pub(crate) struct Maps<'a> {
    state: &'a State,
    prefixes: Prefixes,
    /// What was seen of the flow that is judged, and what time it is.
    seen: (Option<Witness>, u64),
}

impl<'a> Maps<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        Self { state, prefixes: Prefixes::new(&state.cidrs), seen: (None, 0) }
    }

    pub(crate) fn with(&self, seen: Option<Witness>, now: u64) -> Self {
        Self { state: self.state, prefixes: self.prefixes.clone(), seen: (seen, now) }
    }
}

impl View for Maps<'_> {
    fn config(&self) -> Option<&Config> {
        self.state.config()
    }
    fn endpoint(&self, cgroup: u64) -> Option<(&u64, &Endpoint)> {
        self.state.endpoint(cgroup)
    }
    fn address(&self, addr: &Addr) -> Option<u64> {
        self.state.address(addr)
    }
    fn prefix(&self, addr: &Addr) -> Option<u64> {
        self.prefixes.lookup(&self.state.cidrs, addr).map(|(_, identity)| *identity)
    }
    fn row(&self, key: &RowKey) -> Option<(&RowKey, &Row)> {
        self.state.row(key)
    }
    fn device(&self, ifindex: u32) -> Option<u64> {
        self.state.device(ifindex)
    }
    fn owner(&self, addr: &Addr) -> u64 {
        self.state.owner(addr)
    }
    fn witness(&self, _: &WitnessKey) -> Option<&Witness> {
        self.seen.0.as_ref()
    }
    fn now(&self) -> u64 {
        self.seen.1
    }
}

impl<'a> Judge<'a> {
    /// A judge over these objects, for these senders by namespace, name and container. A pod that the objects do not have is
    /// an unknown pod; a container is taken at its word, whether or not the pod's spec has it.
    #[must_use]
    pub fn new<'s>(
        index: &'a Index,
        doubt: impl Into<Doubt>,
        senders: impl IntoIterator<Item = ((&'s str, &'s str), Option<&'s str>)>,
    ) -> Self {
        let mut by_pod: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for (pod, container) in senders {
            by_pod.entry(pod).or_default().extend(container);
        }
        let pods = by_pod.into_iter().filter_map(|((namespace, name), containers)| {
            let pod = index.shared_pod(namespace, name)?.clone();
            Some((pod, containers.into_iter().map(str::to_owned).collect()))
        });
        let pods = pods.collect();
        Self::over(index, Cow::Owned(compile_pods(index, "", doubt.into(), pods)))
    }

    /// A judge of the pods of a node, as they were compiled. A pod that is not on it is an unknown pod, and so is a container that is
    /// not known there.
    #[must_use]
    pub fn of_node(index: &'a Index, compiled: &'a Compiled) -> Self {
        Self::over(index, Cow::Borrowed(compiled))
    }

    fn over(index: &'a Index, compiled: Cow<'a, Compiled>) -> Self {
        let cgroups = compiled.endpoints.iter();
        let cgroups =
            cgroups.map(|(cgroup, info)| ((info.namespace.clone(), info.name.clone()), *cgroup)).collect();
        Self { index, compiled, cgroups }
    }

    /// The cgroup of a pod.
    #[must_use]
    pub fn cgroup(&self, (namespace, name): (&str, &str)) -> Option<u64> {
        self.cgroups.get(&(namespace.to_owned(), name.to_owned())).copied()
    }

    /// Judges flows of one of the senders, in their order: those of a container, or of one that is no proxy.
    #[must_use]
    pub fn judge(&self, pod: (&str, &str), container: Option<&str>, targets: &[Target]) -> Vec<Judged<'_>> {
        self.judge_by(&self.compiled.desired, pod, container, targets)
    }

    /// As [`Self::judge`], but by what these maps hold instead of what was compiled.
    #[must_use]
    pub fn judge_by(
        &self,
        state: &State,
        pod: (&str, &str),
        container: Option<&str>,
        targets: &[Target],
    ) -> Vec<Judged<'_>> {
        let cgroup = self.cgroup(pod);
        let endpoint = cgroup.and_then(|cgroup| self.compiled.endpoints.get(&cgroup));
        let proxies = endpoint.into_iter().flat_map(|endpoint| &endpoint.proxies);
        let proxy = proxies.into_iter().find(|proxy| Some(&*proxy.name) == container);
        let container = proxy.map_or(u64::MAX, |proxy| proxy.cgroup);
        let root = state.config.pod_root_level;
        let sender = Sender { root, pod: cgroup.unwrap_or(0), container, kept: None };
        let maps = Maps::new(state);
        targets.iter().map(|target| self.one(&maps, &sender, endpoint, target)).collect()
    }

    fn one<'c>(
        &'c self,
        maps: &Maps<'_>,
        sender: &Sender<'_>,
        endpoint: Option<&'c EndpointInfo>,
        target: &Target,
    ) -> Judged<'c> {
        let own = |info: &EndpointInfo| {
            info.addresses.iter().find(|ip| ip.is_ipv4() == target.address.is_ipv4()).copied()
        };
        let (ethertype, packet) = packet(endpoint.and_then(own), 0, target);
        // The kernel sends by the loopback device what is for the pod itself, and by any other one the rest; but of its own node ports, what
        // the node sends elsewhere.
        let translated = self.index.has_port_out(&address(target.address), (target.protocol, target.port));
        let own = endpoint.is_some_and(|info| {
            !target.behind && info.addresses.contains(&target.address) && !(info.host_network && translated)
        });
        let ifindex =
            if own || target.address.is_loopback() { LOOPBACK_IFINDEX } else { LOOPBACK_IFINDEX + 1 };
        let decision =
            decide(maps, sender, packet.as_slice(), Meta { ethertype, ifindex, ..Meta::default() });
        Judged {
            action: decision.verdict.action,
            reason: decision.verdict.reason,
            endpoint,
            rule: self.compiled.provenance.rule(decision.policy, decision.verdict.rule),
            destination: self.index.address_name(target.address, (target.protocol, target.port)),
        }
    }
}

/// The first packet of a flow: IP header and transport header, without payload.
pub(crate) fn packet(from: Option<IpAddr>, source_port: u16, target: &Target) -> (u16, Vec<u8>) {
    let mut transport = [0; 20];
    if matches!(target.protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        transport[..2].copy_from_slice(&source_port.to_be_bytes());
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
