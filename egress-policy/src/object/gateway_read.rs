//! Reads an [`EgressGatewayPolicy`], section by section and entry by entry, so that one mistake costs no more than it
//! must.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::gateway_policy::{
    Allow, Destinations, EgressGatewayPolicy, Gateway, Grantee, PodPeer, Proxy, Scope, Subject, To, ToPeer,
};
use super::gateway_raw::{
    RawAllow, RawClient, RawDns, RawEnforcement, RawGateway, RawPort, RawProxy, RawScope, RawSubject,
};
use super::net::{read_protocol, read_range};
use super::overlap;
use super::selector::RawSelector;
use super::{CidrPeer, Metadata, ObjectError, Port, Ports, Selector, Set, join, parse};

/// Reads a policy; `errors` are those of its metadata.
pub(super) fn read(metadata: &Metadata, value: &Value, errors: Vec<ObjectError>) -> EgressGatewayPolicy {
    let mut policy = EgressGatewayPolicy {
        name: Arc::from(metadata.name.as_str()),
        uid: Arc::from(metadata.uid.as_deref().unwrap_or_default()),
        generation: metadata.generation.unwrap_or(0),
        audit: false,
        subjects: Vec::new(),
        unreadable_subjects: false,
        proxy: None,
        gateways: Vec::new(),
        allow: Allow::default(),
        errors,
    };
    let null = Value::Null;
    let spec = value.get("spec").unwrap_or(&null);
    let Some(fields) = spec.as_object() else {
        policy.errors.push(ObjectError::new("spec", "missing or not an object"));
        policy.unreadable_subjects = true;
        return policy;
    };
    let errors = &mut policy.errors;
    for field in fields.keys() {
        match field.as_str() {
            "enforcement" | "subjects" | "proxy" | "gateways" | "allow" => {}
            _ => errors.push(ObjectError::new(join("spec", field), "unknown field")),
        }
    }
    if let Some(value) = spec.get("enforcement") {
        match strict::<RawEnforcement>(value, "spec.enforcement") {
            Ok(enforcement) => policy.audit = enforcement == RawEnforcement::Audit,
            Err(error) => errors.push(error),
        }
    }
    if let Some(value) = spec.get("proxy") {
        match strict(value, "spec.proxy").and_then(read_proxy) {
            Ok(proxy) => policy.proxy = Some(proxy),
            Err(error) => errors.push(error),
        }
    }
    let (entries, readable) = entries(spec, "subjects", errors);
    // An empty list selects nothing; a missing one may be a field that is written wrongly, and could have meant anybody.
    policy.unreadable_subjects = !readable || !fields.contains_key("subjects");
    if readable && entries.is_empty() {
        let there = fields.contains_key("subjects");
        errors.push(ObjectError::new("spec.subjects", if there { "must not be empty" } else { "missing" }));
    }
    for (i, entry) in entries.iter().enumerate() {
        match read_subject(entry, &format!("spec.subjects[{i}]")) {
            Ok(subject) => policy.subjects.push(subject),
            Err(error) => {
                errors.push(error);
                match salvage_subject(entry) {
                    Some(subject) => policy.subjects.push(subject),
                    None => policy.unreadable_subjects = true,
                }
            }
        }
    }
    let (entries, _) = self::entries(spec, "gateways", errors);
    for (i, entry) in entries.iter().enumerate() {
        match read_gateway(entry, i) {
            Ok(gateway) => policy.gateways.push(gateway),
            Err(error) => {
                errors.push(error);
                policy.gateways.extend(salvage_gateway(entry, i));
            }
        }
    }
    if let Some(value) = spec.get("allow") {
        match strict(value, "spec.allow").and_then(read_allow) {
            Ok(allow) => policy.allow = allow,
            Err(error) => errors.push(error),
        }
    }
    if let Err(error) = overlap::check("spec", cidrs(&policy)) {
        policy.errors.push(error);
        for gateway in
            policy.gateways.iter_mut().filter(|one| matches!(one.destinations, Destinations::Only(_)))
        {
            gateway.destinations = Destinations::Unreadable;
        }
    }
    policy
}

/// Every prefix that the policy's rules lead to.
fn cidrs(policy: &EgressGatewayPolicy) -> impl Iterator<Item = &CidrPeer> {
    fn of_gateway(gateway: &Gateway) -> Vec<&CidrPeer> {
        let listed = match &gateway.destinations {
            Destinations::Only(listed) => listed.as_slice(),
            Destinations::Unrestricted | Destinations::Unreadable => &[],
        };
        gateway.addresses.iter().chain(listed.iter().map(|(peer, _)| peer)).collect()
    }
    let allowed = policy.allow.to.iter().filter_map(|to| match &to.peer {
        ToPeer::Cidr(peer) => Some(peer),
        ToPeer::Pods(_) | ToPeer::Service { .. } => None,
    });
    policy.gateways.iter().flat_map(of_gateway).chain(allowed)
}

/// The entries of a list in `spec`, none where it is absent; and whether it is a list at all.
fn entries<'v>(spec: &'v Value, field: &str, errors: &mut Vec<ObjectError>) -> (&'v [Value], bool) {
    match spec.get(field) {
        None => (&[], true),
        Some(Value::Array(entries)) => (entries, true),
        Some(_) => {
            errors.push(ObjectError::new(join("spec", field), "not a list"));
            (&[], false)
        }
    }
}

/// Like [`parse`], but null is not the same as absent: it is nothing that was meant.
fn strict<T: DeserializeOwned>(value: &Value, path: &str) -> Result<T, ObjectError> {
    match find_null(value, path) {
        Some(path) => Err(ObjectError::new(
            path,
            "null; leave the field out for its default, or write what it is to be",
        )),
        None => parse(value, path),
    }
}

fn find_null(value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Null => Some(path.to_owned()),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, v)| find_null(v, &format!("{path}[{i}]")))
        }
        Value::Object(fields) => fields.iter().find_map(|(k, v)| find_null(v, &join(path, k))),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn selector(raw: Option<RawSelector>, path: &str, field: &str) -> Result<Selector, ObjectError> {
    raw.map_or(Ok(Selector::default()), |raw| raw.validate(&join(path, field)))
}

fn read_subject(value: &Value, path: &str) -> Result<Subject, ObjectError> {
    let raw: RawSubject = strict(value, path)?;
    let who = Grantee {
        namespaces: selector(raw.namespaces, path, "namespaces")?,
        pods: selector(raw.pods, path, "pods")?,
        service_accounts: raw.service_accounts.unwrap_or_default().into_iter().collect(),
    };
    Ok(Subject { who, system_namespaces: raw.system_namespaces.unwrap_or(false) })
}

/// Whom an entry that cannot be read as a whole means at most: each field narrows it, so that one that cannot be read, or is written
/// wrongly, leaves more. `None` where that is anybody.
fn salvage_subject(value: &Value) -> Option<Subject> {
    let field = |name: &str| {
        let raw = strict::<RawSelector>(value.get(name)?, name).ok()?;
        raw.validate(name).ok().filter(|selector| !selector.0.is_empty())
    };
    let (namespaces, pods) = (field("namespaces"), field("pods"));
    if namespaces.is_none() && pods.is_none() {
        return None;
    }
    let who = Grantee {
        namespaces: namespaces.unwrap_or_default(),
        pods: pods.unwrap_or_default(),
        service_accounts: Set::default(),
    };
    let system_namespaces = value.get("systemNamespaces").and_then(Value::as_bool).unwrap_or(false);
    Some(Subject { who, system_namespaces })
}

/// Pods by labels; `None` where neither field is there.
fn pod_peer(
    namespaces: Option<RawSelector>,
    pods: Option<RawSelector>,
    path: &str,
) -> Result<Option<PodPeer>, ObjectError> {
    if namespaces.is_none() && pods.is_none() {
        return Ok(None);
    }
    let namespaces = selector(namespaces, path, "namespaces")?;
    Ok(Some(PodPeer { namespaces, pods: selector(pods, path, "pods")? }))
}

fn read_gateway(value: &Value, index: usize) -> Result<Gateway, ObjectError> {
    let path = &format!("spec.gateways[{index}]");
    let raw: RawGateway = strict(value, path)?;
    let pods = pod_peer(raw.namespaces, raw.pods, path)?;
    let mut addresses = Vec::new();
    for (i, text) in raw.addresses.unwrap_or_default().iter().enumerate() {
        let error = |e: ObjectError| ObjectError::new(format!("{path}.addresses[{i}]"), e.reason);
        addresses.push(CidrPeer::read(text, &[], path, true).map_err(error)?);
    }
    if pods.is_none() && addresses.is_empty() {
        return Err(ObjectError::new(path, "needs namespaces, pods or addresses"));
    }
    let mut clients = raw.clients.map(|_| Vec::new());
    if let Some(clients) = &mut clients {
        // Read again as values, for the paths of their errors.
        let listed = value.get("clients").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (i, client) in listed.iter().enumerate() {
            let path = &format!("{path}.clients[{i}]");
            let raw: RawClient = strict(client, path)?;
            clients.push(Grantee {
                namespaces: selector(raw.namespaces, path, "namespaces")?,
                pods: selector(raw.pods, path, "pods")?,
                service_accounts: raw.service_accounts.unwrap_or_default().into_iter().collect(),
            });
        }
    }
    let destinations = match raw.destinations {
        None => Destinations::Unrestricted,
        Some(raw) => {
            let mut only = Vec::new();
            for (i, raw) in raw.into_iter().enumerate() {
                let path = &format!("{path}.destinations[{i}]");
                let peer = CidrPeer::read(&raw.cidr, &raw.except.unwrap_or_default(), path, true)?;
                only.push((peer, read_ports(raw.ports, path)?));
            }
            Destinations::Only(only)
        }
    };
    let name = raw.name.unwrap_or_default();
    Ok(Gateway { index, name, pods, addresses, ports: read_ports(raw.ports, path)?, clients, destinations })
}

/// The pods of a gateway that cannot be read otherwise; they fail closed unless their destinations can.
fn salvage_gateway(value: &Value, index: usize) -> Option<Gateway> {
    /// What an entry may have.
    const FIELDS: [&str; 7] = ["name", "namespaces", "pods", "addresses", "ports", "clients", "destinations"];
    let path = &format!("spec.gateways[{index}]");
    // A field that is written wrongly may be the one that would have narrowed it.
    let misspelt = value.as_object()?.keys().any(|key| !FIELDS.contains(&key.as_str()));
    if misspelt && value.get("namespaces").is_none() {
        return None;
    }
    let field =
        |name: &str| value.get(name).map(|v| strict::<RawSelector>(v, &join(path, name))).transpose().ok();
    let pods = pod_peer(field("namespaces")?, field("pods")?, path).ok()??;
    let destinations = if misspelt || value.get("destinations").is_some() {
        Destinations::Unreadable
    } else {
        Destinations::Unrestricted
    };
    let ports = Ports::Listed(Set::default());
    let clients = Some(Vec::new());
    Some(Gateway {
        index,
        name: String::new(),
        pods: Some(pods),
        addresses: Vec::new(),
        ports,
        clients,
        destinations,
    })
}

fn read_ports(raw: Option<Vec<RawPort>>, path: &str) -> Result<Ports, ObjectError> {
    let Some(raw) = raw else { return Ok(Ports::All) };
    let mut ports = BTreeSet::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let path = &format!("{path}.ports[{i}]");
        let protocol = read_protocol(raw.protocol.as_deref(), &join(path, "protocol"))?;
        ports.insert(Port::Range(read_range(protocol, raw.port, raw.end_port, path)?));
    }
    Ok(Ports::Listed(ports.into_iter().collect()))
}

fn read_proxy(raw: RawProxy) -> Result<Proxy, ObjectError> {
    if let Some(at) = raw.containers.iter().position(String::is_empty) {
        return Err(ObjectError::new(
            format!("spec.proxy.containers[{at}]"),
            "a container's name must not be empty",
        ));
    }
    let scope = if raw.scope == Some(RawScope::All) { Scope::All } else { Scope::Egress };
    Ok(Proxy { containers: raw.containers.into_iter().collect(), scope })
}

fn read_allow(raw: RawAllow) -> Result<Allow, ObjectError> {
    let default = Allow::default();
    let mut allow = Allow {
        dns: raw.dns.map_or(default.dns, |dns| dns == RawDns::Cluster),
        in_cluster: raw.in_cluster.unwrap_or(default.in_cluster),
        api_server: raw.api_server.unwrap_or(default.api_server),
        node: raw.node.unwrap_or(default.node),
        to: Vec::new(),
    };
    for (i, raw) in raw.to.unwrap_or_default().into_iter().enumerate() {
        let path = &format!("spec.allow.to[{i}]");
        let pods = pod_peer(raw.namespaces, raw.pods, path)?;
        if raw.except.is_some() && raw.cidr.is_none() {
            return Err(ObjectError::new(join(path, "except"), "needs cidr"));
        }
        let cidr = match raw.cidr {
            Some(cidr) => Some(CidrPeer::read(&cidr, &raw.except.unwrap_or_default(), path, true)?),
            None => None,
        };
        let peer = match (pods, cidr, raw.service) {
            (Some(pods), None, None) => ToPeer::Pods(pods),
            (None, Some(cidr), None) => ToPeer::Cidr(cidr),
            (None, None, Some(service)) => ToPeer::Service {
                namespace: Arc::from(service.namespace.as_str()),
                name: Arc::from(service.name.as_str()),
            },
            _ => {
                return Err(ObjectError::new(
                    path,
                    "needs exactly one of namespaces and pods, cidr, service",
                ));
            }
        };
        allow.to.push(To { peer, ports: read_ports(raw.ports, path)? });
    }
    Ok(allow)
}
