//! Small random clusters: plain data that shrinks, written out as the JSON objects that the agent reads.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "test helpers: each test file uses its part and fails by panic"
)]

mod json;
pub mod probe;
pub mod strategy;

use std::fmt;

/// A label selector: requirements of (label, operator, values), all of them numbers into small tables.
#[derive(Clone, Debug)]
pub struct Sel(pub Vec<(u8, u8, Vec<u8>)>);

/// A prefix around one of the addresses of [`ADDRESSES`], with exceptions given by an offset and further bits.
#[derive(Clone, Debug)]
pub struct Prefix {
    pub around: u8,
    pub bits: u8,
    pub except: Vec<(u8, u8)>,
}

#[derive(Clone, Debug)]
pub struct Ns {
    pub exists: bool,
    pub labels: Vec<(u8, u8)>,
    pub enforcement: Option<u8>,
}

#[derive(Clone, Debug)]
pub struct PodData {
    pub ns: u8,
    pub labels: Vec<(u8, u8)>,
    pub account: u8,
    pub remote: bool,
    pub host_network: bool,
    pub phase: u8,
    pub terminating: bool,
    pub v4: Option<u8>,
    pub v6: Option<u8>,
    /// Name, protocol, number, and the node's port that leads there.
    pub ports: Vec<(u8, u8, u8, Option<u8>)>,
}

#[derive(Clone, Debug)]
pub struct Svc {
    pub ns: u8,
    pub v4: Option<u8>,
    pub v6: Option<u8>,
    pub external: Option<u8>,
    /// Address, and whether `ipMode` is Proxy.
    pub balancer: Option<(u8, bool)>,
    pub ports: Vec<SvcPort>,
    pub backends: Vec<Backend>,
    /// 1: backends of one node are chosen from; 2: kube-proxy leaves it alone; 3: kube-proxy leaves the other slice alone;
    /// 4: some of the other slice cannot be read; 5: some of the service.
    pub odd: u8,
    /// How it is known to be the cluster's DNS, for that service alone.
    pub dns_by_label: bool,
}

#[derive(Clone, Debug)]
pub struct SvcPort {
    pub protocol: u8,
    pub port: u8,
    pub target: u8,
    /// The target port in the other slice; `None`: the other slice does not have the port.
    pub other_target: Option<u8>,
    pub node_port: Option<u8>,
}

#[derive(Clone, Debug)]
pub struct Backend {
    /// 0 to 5: the addresses of this pod; above: an address of a node or outside.
    pub at: u8,
    pub condition: u8,
    pub other_slice: bool,
}

#[derive(Clone, Debug)]
pub struct Who {
    pub namespaces: Option<Sel>,
    pub pods: Option<Sel>,
    pub accounts: Option<Vec<u8>>,
    /// Subjects only.
    pub system: Option<bool>,
}

/// Protocol (`None` for absent), port, and how far the range goes.
pub type PortSpec = (Option<u8>, u8, Option<u16>);

#[derive(Clone, Debug)]
pub struct Gw {
    pub namespaces: Option<Sel>,
    pub pods: Option<Sel>,
    pub addresses: Vec<Prefix>,
    pub ports: Option<Vec<PortSpec>>,
    pub clients: Option<Vec<Who>>,
    pub destinations: Option<Vec<(Prefix, Option<Vec<PortSpec>>)>>,
}

#[derive(Clone, Debug)]
pub enum ToData {
    Pods(Option<Sel>, Sel),
    Cidr(Prefix),
    Service(u8),
}

#[derive(Clone, Debug)]
pub struct AllowData {
    pub dns: Option<bool>,
    pub in_cluster: Option<bool>,
    pub api_server: Option<bool>,
    pub node: Option<bool>,
    pub to: Option<Vec<(ToData, Option<Vec<PortSpec>>)>>,
}

#[derive(Clone, Debug)]
pub struct Egp {
    pub audit: Option<bool>,
    pub subjects: Vec<Who>,
    /// Containers, and whether everything is locked.
    pub proxy: Option<(Vec<u8>, Option<bool>)>,
    pub gateways: Vec<Gw>,
    pub allow: Option<AllowData>,
    pub broken: Option<u8>,
}

#[derive(Clone, Debug)]
pub enum PeerData {
    Pods(Sel),
    Namespaces(Sel),
    Both(Sel, Sel),
    Block(Prefix),
}

#[derive(Clone, Debug)]
pub enum NpPort {
    Protocol,
    Number(u8, Option<u16>),
    Name(u8),
}

#[derive(Clone, Debug)]
pub struct RuleData {
    pub to: Option<Vec<PeerData>>,
    pub ports: Option<Vec<(Option<u8>, NpPort)>>,
}

#[derive(Clone, Debug)]
pub struct Np {
    pub ns: u8,
    pub pods: Sel,
    pub types: u8,
    pub egress: Option<Vec<RuleData>>,
    pub enforcement: Option<u8>,
    pub broken: Option<u8>,
}

#[derive(Clone)]
pub struct RandomCluster {
    pub namespaces: Vec<Ns>,
    pub pods: Vec<PodData>,
    pub services: Vec<Svc>,
    pub dns: Option<Svc>,
    pub api_server: Option<Svc>,
    pub nodes: bool,
    pub lock_downs: Vec<Egp>,
    pub network_policies: Vec<Np>,
    /// What unknown pods may do; their policy must not change what known ones may.
    pub unknown: u8,
    pub seed: u64,
}

/// The objects, one a line: what a failure is told by.
impl fmt::Debug for RandomCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "unknown pods: {:?}", self.world().unknown)?;
        self.objects().iter().try_for_each(|object| writeln!(f, "{object}"))
    }
}
