//! The kinds of object that count, and what is meant by those that nearly are.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::{ObjectError, ObjectRef};

/// The kinds of object that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Pod.
    Pod,
    /// `v1` Namespace.
    Namespace,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `egress-enforcer.io/v1alpha1` EgressGatewayPolicy.
    EgressGatewayPolicy,
}

impl Kind {
    /// What names an object of this kind that has this name.
    pub(super) fn object(self, name: &str, value: &Value) -> ObjectRef {
        let namespace = self.namespaced().then(|| match value.pointer("/metadata/namespace") {
            Some(Value::String(namespace)) if !namespace.is_empty() => Arc::from(namespace.as_str()),
            _ => Arc::from("default"),
        });
        ObjectRef { kind: self, namespace, name: Arc::from(name) }
    }

    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Pod,
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::NetworkPolicy,
        Self::EgressGatewayPolicy,
    ];

    /// The Kubernetes kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::EgressGatewayPolicy => "EgressGatewayPolicy",
        }
    }

    /// The API version that is read.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Pod | Self::Namespace | Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::EgressGatewayPolicy => "egress-enforcer.io/v1alpha1",
        }
    }

    /// Whether objects of this kind live in a namespace.
    #[must_use]
    pub const fn namespaced(self) -> bool {
        match self {
            Self::Pod | Self::Service | Self::EndpointSlice | Self::NetworkPolicy => true,
            Self::Namespace | Self::Node | Self::EgressGatewayPolicy => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What else there is, or was, in the group of NetworkPolicy (`k8s.io/api/networking`).
const NETWORKING: [&str; 6] =
    ["NetworkPolicy", "Ingress", "IngressClass", "IPAddress", "ServiceCIDR", "ClusterCIDR"];

/// The kind, where kind and API group are one of ours; the version is judged later.
pub(super) fn known(version: &str, kind: &str) -> Option<Kind> {
    let group = |version: &str| version.split_once('/').map_or(String::new(), |(group, _)| group.to_owned());
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind)?;
    (group(version) == group(kind.api_version())).then_some(kind)
}

/// Which policy somebody means who has mistaken its kind or its API group, and what is wrong. Kinds of others that have the same name are
/// not meant.
pub(super) fn meant(version: &str, kind: &str) -> Option<(Kind, ObjectError)> {
    const OURS: Kind = Kind::EgressGatewayPolicy;
    let group = version.split_once('/').map_or(version, |(group, _)| group);
    let ours = OURS.api_version().split_once('/').map_or("", |(group, _)| group);
    if group == ours {
        let reason = format!("{ours} has no {kind:?}, only {}", OURS.name());
        return Some((OURS, ObjectError::new("kind", reason)));
    }
    if group == "networking.k8s.io" && !NETWORKING.contains(&kind) {
        let reason = format!("{group} has no {kind:?}; is {} meant?", Kind::NetworkPolicy);
        return Some((Kind::NetworkPolicy, ObjectError::new("kind", reason)));
    }
    let meant = match kind {
        "EgressGatewayPolicy" if group.starts_with("egress-enforcer") => OURS,
        "NetworkPolicy" if group == "extensions" => Kind::NetworkPolicy,
        // Kubernetes' own groups; others have kinds of this name.
        "NetworkPolicy" if !group.contains('.') || group.ends_with(".k8s.io") => Kind::NetworkPolicy,
        _ => return None,
    };
    let reason = format!("{version} is not supported, only {}", meant.api_version());
    Some((meant, ObjectError::new("apiVersion", reason)))
}
