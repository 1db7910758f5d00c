//! The objects the compiler works on: our own trimmed types, read from JSON.
//!
//! Invariant: reading keeps the difference between *absent* and *empty*, and a policy that cannot be read is still a
//! policy: it comes out with its errors and with what could be read of whom it selects, never as nothing.
//!
//! Tested by `tests/invalid.rs` and by every other test, all of which start from JSON.

mod addresses;
mod cluster;
mod cluster_read;
mod gateway_policy;
mod gateway_raw;
mod gateway_read;
mod kind;
mod labels;
mod net;
mod network_policy;
mod overlap;
mod selector;
mod service_read;
mod set;
mod uid;
mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

pub use addresses::{Addresses, Endpoints};
pub use cluster::{
    Container, ContainerKind, Endpoint, EndpointSlice, HostPort, MESH_ANNOTATIONS, NamedPort, Namespace,
    Node, Pod, PodSpec, Service, ServicePort, Template,
};
pub use gateway_policy::{
    Allow, Destinations, EgressGatewayPolicy, Gateway, Grantee, LIFELINE_NAMESPACES, PodPeer, Proxy, Scope,
    Subject, To, ToPeer,
};
#[cfg(feature = "schema")]
pub(crate) use gateway_raw::RawSpec;
pub use kind::Kind;
use kind::{known, meant};
pub use labels::Labels;
pub use net::{CidrPeer, MAPPED_V4, Port, PortRange, Ports, address, cidr_contains, masked, protocol_name};
pub(crate) use net::{SINGLE, is_single, last_of};
pub use network_policy::{EgressRule, NetworkPolicy, Peer, PodScope};
pub use selector::{NamespaceLabels, Requirement, Selector};
pub use set::Set;
pub use uid::Uid;
pub use workload::{Workload, by_themselves};

/// `matchLabels` key of a namespace's name (`kubernetes.io/metadata.name`), on every namespace by definition.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Annotation on a NetworkPolicy or Namespace: `Audit` or `Enforce`.
pub const ENFORCEMENT_ANNOTATION: &str = "egress-enforcer.io/enforcement";

/// Names one object of the cluster. Displayed as `NetworkPolicy ns/name`, serialised as that string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, `None` for cluster-scoped kinds.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl Serialize for ObjectRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
    /// A service.
    Service(Service),
    /// A part of a service's backends.
    EndpointSlice(EndpointSlice),
    /// A node.
    Node(Node),
    /// A Kubernetes network policy, valid or not.
    NetworkPolicy(NetworkPolicy),
    /// A lock-down, valid or not.
    EgressGatewayPolicy(EgressGatewayPolicy),
}

impl Object {
    /// What names this object.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        let of = |kind, namespace: Option<&Arc<str>>, name: &Arc<str>| ObjectRef {
            kind,
            namespace: namespace.cloned(),
            name: name.clone(),
        };
        match self {
            Self::Pod(o) => o.object_ref(),
            Self::Namespace(o) => of(Kind::Namespace, None, &o.name),
            Self::Service(o) => o.object_ref(),
            Self::EndpointSlice(o) => o.object_ref(),
            Self::Node(o) => of(Kind::Node, None, &o.name),
            Self::NetworkPolicy(o) => o.object_ref(),
            Self::EgressGatewayPolicy(o) => o.object_ref(),
        }
    }
}

/// Why an object, or a part of it, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ObjectError {
    /// The field, like `spec.subjects[0].namespaces`.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ObjectError {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }
}

/// What became of one object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// It is valid.
    Object(Object),
    /// It is of a kind that counts, but not valid.
    Invalid {
        /// Its name.
        object: ObjectRef,
        /// What to put into the index in its place. Every policy has one, which fails closed for what it selects, and every
        /// service and endpoint slice, which closes the service. For other kinds there is `None`, and the object counts as deleted:
        /// without its Pod a cgroup is unknown.
        stand_in: Option<Box<Object>>,
        /// The first thing that is wrong with it.
        error: ObjectError,
    },
    /// It makes pods, or means to: of its template something is wrong then. It does not count, but `lint` looks at it.
    Workload {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What it makes.
        makes: Result<Box<Workload>, ObjectError>,
    },
    /// It is of a kind that does not count.
    Ignored {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
}

impl Read {
    /// What the index has to be told: `None` for what does not count.
    #[must_use]
    pub fn event(self) -> Option<crate::index::Event> {
        use crate::index::Event;
        match self {
            Self::Object(object) => Some(Event::Upsert(object)),
            Self::Invalid { stand_in: Some(object), .. } => Some(Event::Upsert(*object)),
            Self::Invalid { stand_in: None, object, .. } => Some(Event::Delete(object)),
            Self::Workload { .. } | Self::Ignored { .. } => None,
        }
    }
}

/// The part of `metadata` that counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) generation: Option<i64>,
    pub(crate) labels: Option<Labels>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(rename = "ownerReferences")]
    pub(crate) owner_references: Option<Vec<Owner>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Owner {
    pub(crate) kind: String,
}

/// Reads one object, or each object of a `List` (also of a typed one, like `PodList`).
///
/// # Errors
///
/// Only where `value`, or an item of the list, is not an object with `apiVersion`, `kind` and `metadata.name`, so that
/// it cannot even be named.
#[expect(clippy::needless_pass_by_value, reason = "what was read is not of use to the caller any more")]
pub fn read(value: Value) -> Result<Vec<Read>, ObjectError> {
    let mut found = Vec::new();
    read_into(&value, "", None, &mut found)?;
    Ok(found)
}

/// Reads one object as the API server gives it where the kind was asked for: as an item of a typed list, which carries neither
/// kind nor version.
///
/// # Errors
///
/// It is not an object with `metadata.name`.
pub fn read_as(kind: Kind, value: &Value) -> Result<Read, ObjectError> {
    let mut found = Vec::new();
    read_into(value, "", Some((kind.api_version(), kind.name())), &mut found)?;
    match found.pop() {
        Some(read) if found.is_empty() => Ok(read),
        _ => Err(ObjectError::new("kind", "a list, where one object was asked for")),
    }
}

fn read_into(
    value: &Value,
    path: &str,
    of_list: Option<(&str, &str)>,
    found: &mut Vec<Read>,
) -> Result<(), ObjectError> {
    let at = |field: &str| join(path, field);
    let text = |field: &str| match value.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.as_str()),
        _ => None,
    };
    if !value.is_object() {
        let reason = "not an object; several are documents of their own, or the items of a List";
        return Err(ObjectError::new(if path.is_empty() { "document" } else { path }, reason));
    }
    // Items of a typed list, as the API server answers it, carry neither.
    let kind = text("kind").or(of_list.map(|(_, kind)| kind));
    let version = text("apiVersion").or(of_list.map(|(version, _)| version));
    let name = value.pointer("/metadata/name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let named =
        |what: &str| format!("missing{what}{}", name.map_or_else(String::new, |name| format!(" {name}")));
    let kind = kind.ok_or_else(|| ObjectError::new(at("kind"), named(name.map_or("", |_| ", of"))))?;
    let version =
        version.ok_or_else(|| ObjectError::new(at("apiVersion"), named(&format!(", of {kind}"))))?;
    // Go writes `null` for a list without items.
    if let (Some(of), Some(items @ (Value::Array(_) | Value::Null))) =
        (kind.strip_suffix("List"), value.get("items"))
    {
        let of_list = if of.is_empty() { None } else { Some((version, of)) };
        for (i, item) in items.as_array().into_iter().flatten().enumerate() {
            read_into(item, &at(&format!("items[{i}]")), of_list, found)?;
        }
        return Ok(());
    }
    let (known, meant) = (known(version, kind), meant(version, kind));
    // Those of others need not have a name, as a `Kustomization`.
    let name = match name {
        None if known.is_none() && meant.is_none() => "",
        name => name.ok_or_else(|| {
            ObjectError::new(at("metadata.name"), format!("missing, or no text, of {kind}"))
        })?,
    };
    found.push(match (known, meant) {
        (Some(known), _) => read_known(known, version, name, value),
        (None, Some((meant, error))) => {
            Read::Invalid { object: meant.object(name, value), stand_in: None, error }
        }
        (None, None) => match workload::read(kind, name, value) {
            Some(makes) => {
                Read::Workload { kind: kind.to_owned(), name: name.to_owned(), makes: makes.map(Box::new) }
            }
            None => Read::Ignored { kind: kind.to_owned(), name: name.to_owned() },
        },
    });
    Ok(())
}

fn read_known(kind: Kind, version: &str, name: &str, value: &Value) -> Read {
    let object = kind.object(name, value);
    let namespace = object.namespace.clone().unwrap_or_default();
    let mut errors = Vec::new();
    if version != kind.api_version() {
        let reason = format!("{version} is not supported, only {}", kind.api_version());
        errors.push(ObjectError::new("apiVersion", reason));
    }
    let metadata = match parse::<Metadata>(value.get("metadata").unwrap_or(&Value::Null), "metadata") {
        Ok(metadata) => metadata,
        Err(error) => {
            errors.push(error);
            Metadata { name: name.to_owned(), ..Metadata::default() }
        }
    };
    match kind {
        Kind::NetworkPolicy => {
            let policy = network_policy::read(namespace, &metadata, value, errors);
            let error = policy.errors.first().cloned();
            read_with(object, Object::NetworkPolicy(policy), error)
        }
        Kind::EgressGatewayPolicy => {
            let policy = gateway_read::read(&metadata, value, errors);
            let error = policy.errors.first().cloned();
            read_with(object, Object::EgressGatewayPolicy(policy), error)
        }
        Kind::Service | Kind::EndpointSlice => {
            let labels = metadata.labels.unwrap_or_else(|| service_read::labels(value));
            let (read, error) = service_read::read(&object, &labels, value, errors.into_iter().next());
            read_with(object, read, error)
        }
        Kind::Pod | Kind::Namespace | Kind::Node => {
            let read = match errors.into_iter().next() {
                Some(error) => Err(error),
                None => cluster_read::read(kind, namespace, metadata, value),
            };
            match read {
                Ok(object) => Read::Object(object),
                Err(error) => Read::Invalid { object, stand_in: None, error },
            }
        }
    }
}

fn read_with(object: ObjectRef, read: Object, error: Option<ObjectError>) -> Read {
    match error {
        None => Read::Object(read),
        Some(error) => Read::Invalid { object, stand_in: Some(Box::new(read)), error },
    }
}

/// What stands for an object of this kind of which nothing but the metadata can be read, as of one that is nested too deeply; `None` as in
/// [`Read::Invalid`]. `value` has no more than the metadata.
#[must_use]
pub fn stand_in(kind: Kind, name: &str, value: &Value) -> Option<Object> {
    match kind {
        Kind::Service | Kind::EndpointSlice => {
            let unread = ObjectError::new("", "cannot be read");
            Some(
                service_read::read(
                    &kind.object(name, value),
                    &service_read::labels(value),
                    value,
                    Some(unread),
                )
                .0,
            )
        }
        Kind::NetworkPolicy | Kind::EgressGatewayPolicy => match read_as(kind, value) {
            Ok(Read::Object(object)) => Some(object),
            Ok(Read::Invalid { stand_in, .. }) => stand_in.map(|object| *object),
            Ok(Read::Workload { .. } | Read::Ignored { .. }) | Err(_) => None,
        },
        Kind::Pod | Kind::Namespace | Kind::Node => None,
    }
}

/// Deserialises the value at `path`, naming the field in the error.
pub(crate) fn parse<T: DeserializeOwned>(value: &Value, path: &str) -> Result<T, ObjectError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let path = if inner == "." { path.to_owned() } else { join(path, &inner) };
        ObjectError::new(path, error.into_inner().to_string())
    })
}

/// Appends a field to a path.
pub(crate) fn join(path: &str, field: &str) -> String {
    match (path.is_empty(), field.starts_with('[')) {
        (true, _) => field.to_owned(),
        (false, true) => format!("{path}{field}"),
        (false, false) => format!("{path}.{field}"),
    }
}
