//! `networking.k8s.io/v1` NetworkPolicy, the egress half.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::net::{read_protocol, read_range};
use super::overlap;
use super::selector::RawSelector;
use super::{
    CidrPeer, ENFORCEMENT_ANNOTATION, Kind, Metadata, ObjectError, ObjectRef, Port, Ports, Selector, join,
    parse,
};

/// A network policy, valid or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The enforcement annotation's value.
    pub enforcement: Option<String>,
    /// Whether it says anything about egress.
    pub egress: bool,
    /// The pods it selects; every pod of the namespace where that cannot be read.
    pub pods: Selector,
    /// The egress rules; what could be read of them in an invalid policy.
    pub rules: Vec<EgressRule>,
    /// What is wrong with it. Not empty: invalid, the pods it selects fail closed.
    pub errors: Vec<ObjectError>,
    /// What it says that does not count.
    pub remarks: Vec<ObjectError>,
}

impl NetworkPolicy {
    /// What names it.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        ObjectRef {
            kind: Kind::NetworkPolicy,
            namespace: Some(self.namespace.clone()),
            name: self.name.clone(),
        }
    }
}

/// One entry of `spec.egress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    /// The destinations; `None` for any, which is what absent and empty both mean upstream.
    pub to: Option<Vec<Peer>>,
    /// The ports; absent and empty both mean all.
    pub ports: Ports,
}

/// One entry of `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods by labels.
    Pods(PodScope, Selector),
    /// Addresses.
    Cidr(CidrPeer),
}

/// Which namespaces a pod selector looks into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodScope {
    /// The one of this name.
    Namespace(Arc<str>),
    /// Those with these labels.
    Matching(Selector),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a rule of to and ports")]
struct RawRule {
    to: Option<Vec<RawPeer>>,
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "a peer")]
struct RawPeer {
    pod_selector: Option<RawSelector>,
    namespace_selector: Option<RawSelector>,
    ip_block: Option<RawBlock>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a cidr with except")]
struct RawBlock {
    cidr: String,
    except: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(expecting = "a port")]
struct RawPort {
    protocol: Option<String>,
    port: Option<RawPortNumber>,
    end_port: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
#[serde(expecting = "a number or a name")]
enum RawPortNumber {
    Number(i64),
    Name(String),
}

/// Reads a policy; `errors` are those of its metadata.
pub(super) fn read(
    namespace: Arc<str>,
    metadata: &Metadata,
    value: &Value,
    errors: Vec<ObjectError>,
) -> NetworkPolicy {
    let null = Value::Null;
    let spec = value.get("spec").unwrap_or(&null);
    let mut policy = NetworkPolicy {
        namespace,
        name: Arc::from(metadata.name.as_str()),
        enforcement: metadata.annotations.as_ref().and_then(|a| a.get(ENFORCEMENT_ANNOTATION).cloned()),
        egress: true,
        pods: Selector::default(),
        rules: Vec::new(),
        errors,
        remarks: metadata.annotations.iter().flatten().filter_map(|(key, _)| mistaken(key)).collect(),
    };
    let Some(fields) = spec.as_object() else {
        policy.errors.push(ObjectError::new("spec", "missing or not an object"));
        return policy;
    };
    // A field that is written wrongly may be the one that would have made it one about egress.
    let mut may_have_rules = false;
    for field in fields.keys() {
        if !matches!(field.as_str(), "podSelector" | "policyTypes" | "ingress" | "egress") {
            policy.errors.push(ObjectError::new(join("spec", field), "unknown field"));
            may_have_rules = true;
        }
    }
    let selector = spec.get("podSelector").unwrap_or(&null);
    match selector_at(selector, "spec.podSelector") {
        Ok(selector) => policy.pods = selector,
        Err(error) => policy.errors.push(error),
    }
    let rules: Vec<Value> = match spec.get("egress") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(rules)) => rules.clone(),
        Some(_) => {
            policy.errors.push(ObjectError::new("spec.egress", "not a list"));
            return policy;
        }
    };
    may_have_rules |= !rules.is_empty();
    match policy_types(spec.get("policyTypes").unwrap_or(&null), may_have_rules) {
        Ok(egress) => policy.egress = egress,
        Err(error) => policy.errors.push(error),
    }
    if !policy.egress {
        if !rules.is_empty() {
            let reason = "has no Egress: the rules of spec.egress do not count, and the pods stay open";
            policy.remarks.push(ObjectError::new("spec.policyTypes", reason));
        }
        return policy;
    }
    for (i, rule) in rules.iter().enumerate() {
        match read_rule(rule, &policy.namespace, &format!("spec.egress[{i}]")) {
            Ok(rule) => policy.rules.push(rule),
            Err(error) => policy.errors.push(error),
        }
    }
    let peers = policy.rules.iter().flat_map(|rule| rule.to.iter().flatten());
    let cidrs = peers.filter_map(|peer| if let Peer::Cidr(peer) = peer { Some(peer) } else { None });
    if let Err(error) = overlap::check("spec.egress", cidrs) {
        policy.errors.push(error);
    }
    policy
}

/// What is wrong with an annotation that is nearly ours.
fn mistaken(key: &str) -> Option<ObjectError> {
    let (ours, _) = ENFORCEMENT_ANNOTATION.split_once('/')?;
    let (group, _) = key.split_once('/')?;
    let nearly = group == ours && key != ENFORCEMENT_ANNOTATION;
    let reason = || format!("does not count; is {ENFORCEMENT_ANNOTATION} meant?");
    nearly.then(|| ObjectError::new(format!("metadata.annotations[{key}]"), reason()))
}

fn selector_at(value: &Value, path: &str) -> Result<Selector, ObjectError> {
    let raw: Option<RawSelector> = parse(value, path)?;
    raw.map_or(Ok(Selector::default()), |raw| raw.validate(path))
}

/// Whether the policy is about egress: by default where it has egress rules.
fn policy_types(value: &Value, has_rules: bool) -> Result<bool, ObjectError> {
    let path = "spec.policyTypes";
    let types: Option<Vec<String>> = parse(value, path)?;
    let types = types.unwrap_or_default();
    for (i, one) in types.iter().enumerate() {
        if !matches!(one.as_str(), "Ingress" | "Egress") {
            return Err(ObjectError::new(
                format!("{path}[{i}]"),
                format!("{one:?} is not Ingress or Egress"),
            ));
        }
    }
    Ok(if types.is_empty() { has_rules } else { types.iter().any(|one| one == "Egress") })
}

fn read_rule(value: &Value, namespace: &Arc<str>, path: &str) -> Result<EgressRule, ObjectError> {
    let raw: RawRule = parse(value, path)?;
    let mut to = Vec::new();
    for (i, peer) in raw.to.unwrap_or_default().into_iter().enumerate() {
        to.push(read_peer(peer, namespace, &format!("{path}.to[{i}]"))?);
    }
    let mut ports = BTreeSet::new();
    for (i, port) in raw.ports.unwrap_or_default().into_iter().enumerate() {
        ports.insert(read_rule_port(port, &format!("{path}.ports[{i}]"))?);
    }
    Ok(EgressRule {
        to: if to.is_empty() { None } else { Some(to) },
        ports: if ports.is_empty() { Ports::All } else { Ports::Listed(ports.into_iter().collect()) },
    })
}

fn read_peer(raw: RawPeer, namespace: &Arc<str>, path: &str) -> Result<Peer, ObjectError> {
    let pods = raw.pod_selector.map(|s| s.validate(&join(path, "podSelector"))).transpose()?;
    let namespaces =
        raw.namespace_selector.map(|s| s.validate(&join(path, "namespaceSelector"))).transpose()?;
    match (raw.ip_block, namespaces, pods) {
        (Some(block), None, None) => {
            let except = block.except.unwrap_or_default();
            CidrPeer::read(&block.cidr, &except, &join(path, "ipBlock"), false).map(Peer::Cidr)
        }
        (Some(_), _, _) => Err(ObjectError::new(path, "ipBlock cannot be combined with selectors")),
        (None, None, None) => {
            Err(ObjectError::new(path, "one of podSelector, namespaceSelector, ipBlock is needed"))
        }
        (None, None, Some(pods)) => Ok(Peer::Pods(PodScope::Namespace(namespace.clone()), pods)),
        (None, Some(namespaces), pods) => {
            Ok(Peer::Pods(PodScope::Matching(namespaces), pods.unwrap_or_default()))
        }
    }
}

fn read_rule_port(raw: RawPort, path: &str) -> Result<Port, ObjectError> {
    let protocol = read_protocol(raw.protocol.as_deref(), &join(path, "protocol"))?;
    match (raw.port, raw.end_port) {
        (Some(RawPortNumber::Number(port)), end) => read_range(protocol, port, end, path).map(Port::Range),
        (_, Some(_)) => Err(ObjectError::new(join(path, "endPort"), "needs a port by number")),
        // Without a port: all of the protocol. Port 0 is nowhere else to be written and belongs to "all".
        (None, None) => Ok(Port::Range(super::PortRange { protocol, low: 0, high: u16::MAX })),
        (Some(RawPortNumber::Name(name)), None) => {
            if is_port_name(&name) {
                Ok(Port::Named(protocol, Arc::from(name.as_str())))
            } else {
                Err(ObjectError::new(join(path, "port"), format!("{name:?} is not a port's name")))
            }
        }
    }
}

/// A service name of RFC 6335, section 5.1, in lower case.
fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
