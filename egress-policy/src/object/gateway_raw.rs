//! An [`EgressGatewayPolicy`](super::EgressGatewayPolicy) as it is written: the fields, and what `kubectl explain` says of them.
//!
//! Invariant: what a field is called, whether it may be absent and what shape it has is said here alone; the reader reads these
//! types, and the custom resource's schema (`src/schema`) is made from them. Tested by `tests/invalid.rs` and `tests/schema/`.

use serde::Deserialize;

use super::selector::RawSelector;

/// Locks pods down: what they may send leaves only through egress gateways, or where it is allowed here.
///
/// A pod that no policy selects is not touched. A pod that several select may do what any of them allows, and NetworkPolicies
/// (egress) apply as well. Absent means the default that is written at the field; empty always means nothing. A policy that cannot be
/// understood closes the pods that it selects, and its status says why.
#[cfg(feature = "schema")]
#[derive(schemars::JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "the reader reads a policy's sections one by one; this is for the schema")]
pub(crate) struct RawSpec {
    /// Whether what is denied is dropped and reported, or reported alone. A pod under both an enforcing and an auditing policy is
    /// enforced.
    enforcement: Option<RawEnforcement>,
    /// Who is locked down; a pod that any entry matches. Pods of kube-system and of the enforcer's own namespace are subjects of
    /// entries with systemNamespaces only. The pods of gateways are no subjects.
    subjects: Vec<RawSubject>,
    /// Only these containers of a subject may send what the scope covers. Absent: every container may.
    proxy: Option<RawProxy>,
    /// The ways out. Absent or empty: there is none.
    gateways: Option<Vec<RawGateway>>,
    /// What subjects may reach besides the gateways. Absent: DNS, and the pods and services of the cluster.
    allow: Option<RawAllow>,
}

/// Pods; all fields must match.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "namespaces, pods and service accounts")]
pub(crate) struct RawSubject {
    /// Selects namespaces by their labels; kubernetes.io/metadata.name is the name. Absent or {}: every namespace.
    pub(crate) namespaces: Option<RawSelector>,
    /// Selects pods by their labels. Absent or {}: every pod of those namespaces.
    pub(crate) pods: Option<RawSelector>,
    /// Names of service accounts. Absent or empty: any.
    pub(crate) service_accounts: Option<Vec<String>>,
    /// Whether pods of kube-system and of the enforcer's own namespace may be matched, so that a selector that happens to match
    /// everything does not take a node down.
    pub(crate) system_namespaces: Option<bool>,
}

/// A gateway: pods of this cluster, addresses elsewhere, or both.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "a gateway")]
pub(crate) struct RawGateway {
    /// What people call it.
    pub(crate) name: Option<String>,
    /// Selects the namespaces of its pods by their labels. Absent or {}: every namespace, where pods is given.
    pub(crate) namespaces: Option<RawSelector>,
    /// Selects its pods by their labels. Absent or {}: every pod, where namespaces is given. Services in front of them are followed.
    pub(crate) pods: Option<RawSelector>,
    /// Prefixes of a gateway in another cluster or behind a load balancer, such as 192.0.2.7/32. A single address is the gateway's alone,
    /// also where a pod, a node or a service has it: nothing that policies allow besides gateways leads there.
    pub(crate) addresses: Option<Vec<String>>,
    /// The ports at which subjects may reach it, or a service in front of it; what such a port of a service leads to is open with it.
    /// Absent: every port. Empty: none.
    pub(crate) ports: Option<Vec<RawPort>>,
    /// Which subjects may use it; one that any entry matches. Absent: all subjects of this policy. Empty: none.
    pub(crate) clients: Option<Vec<RawClient>>,
    /// What the gateway's own pods may reach outside the cluster. Absent: everything. Empty: nothing.
    pub(crate) destinations: Option<Vec<RawCidr>>,
}

/// Pods; all fields must match.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "namespaces, pods and service accounts")]
pub(crate) struct RawClient {
    /// Selects namespaces by their labels. Absent or {}: every namespace.
    pub(crate) namespaces: Option<RawSelector>,
    /// Selects pods by their labels. Absent or {}: every pod of those namespaces.
    pub(crate) pods: Option<RawSelector>,
    /// Names of service accounts. Absent or empty: any.
    pub(crate) service_accounts: Option<Vec<String>>,
}

/// A port, or a range of ports.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "a port")]
pub(crate) struct RawPort {
    /// TCP, UDP or SCTP.
    pub(crate) protocol: Option<String>,
    /// The port, or the first of a range.
    pub(crate) port: i64,
    /// The last port of the range, not below port. Absent: only port.
    pub(crate) end_port: Option<i64>,
}

/// A prefix without some prefixes inside it.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a cidr with except and ports")]
pub(crate) struct RawCidr {
    /// A prefix without host bits, such as 52.202.28.0/24 or 2001:db8::/32.
    pub(crate) cidr: String,
    /// Prefixes strictly inside it, which do not overlap, and are not meant.
    pub(crate) except: Option<Vec<String>>,
    /// The ports there. Absent: every port. Empty: none.
    pub(crate) ports: Option<Vec<RawPort>>,
}

/// What subjects may reach besides the gateways.
#[derive(Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[serde(expecting = "an object")]
pub(crate) struct RawAllow {
    /// Port 53 (UDP and TCP) of the cluster's DNS pods and their services, or None.
    pub(crate) dns: Option<RawDns>,
    /// Pods and services of this cluster, gateways excepted. NetworkPolicies still apply.
    pub(crate) in_cluster: Option<bool>,
    /// The Kubernetes API server, by its service and its endpoints.
    pub(crate) api_server: Option<bool>,
    /// The addresses of the pod's own node. A node port or host port that leads to a gateway, or out of the cluster, is judged by what is
    /// behind it, too. Tunnels that end at the node are among what this opens.
    pub(crate) node: Option<bool>,
    /// Further peers.
    pub(crate) to: Option<Vec<RawTo>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) enum RawDns {
    Cluster,
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) enum RawEnforcement {
    Enforce,
    Audit,
}

/// A lock: of a subject's containers, only these may send what the scope covers.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[serde(expecting = "an object with containers")]
pub(crate) struct RawProxy {
    /// Names of regular or sidecar containers, such as istio-proxy. Empty: none, so that nothing may send what the scope covers.
    pub(crate) containers: Vec<String>,
    /// What is the proxy's alone. Egress: gateways and everything outside the cluster. All: every destination but loopback and
    /// the DNS that is allowed.
    pub(crate) scope: Option<RawScope>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) enum RawScope {
    Egress,
    All,
}

/// A peer: exactly one of pods (by namespaces, pods or both), cidr, and service.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a peer with ports")]
pub(crate) struct RawTo {
    /// Selects namespaces by their labels. Absent or {}: every namespace, where pods is given.
    pub(crate) namespaces: Option<RawSelector>,
    /// Selects pods by their labels. Absent or {}: every pod, where namespaces is given.
    pub(crate) pods: Option<RawSelector>,
    /// A prefix without host bits, such as 10.50.0.0/16.
    pub(crate) cidr: Option<String>,
    /// Prefixes strictly inside cidr, which do not overlap, and are not meant.
    pub(crate) except: Option<Vec<String>>,
    /// A service: its own addresses, and the pods and nodes behind it. What is outside has to be allowed by itself.
    pub(crate) service: Option<RawServiceName>,
    /// The ports there; of a service its own ports. Absent: every port. Empty: none.
    pub(crate) ports: Option<Vec<RawPort>>,
}

/// Names a service.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[serde(expecting = "namespace and name")]
pub(crate) struct RawServiceName {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}
