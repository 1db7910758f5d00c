//! Reads services and endpoint slices, as far as they can be read.
//!
//! Invariant: whatever of one cannot be read, it comes out with what can, and says so (`unread`): kube-proxy may read what we do not, and
//! an object that is left out would make its service lead where its other slices do, or its address one of the outside. Tested by
//! `tests/unread.rs`.

use std::net::IpAddr;
use std::sync::Arc;

use egress_common::packet::protocol;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cluster::{Endpoint, EndpointSlice, Service, ServicePort};
use super::net::{read_address, read_port, read_protocol};
use super::{Kind, Labels, Object, ObjectError, ObjectRef, join, parse};

/// Services and endpoint slices with one of these labels kube-proxy leaves alone: they are another proxy's, or headless
/// (`cmd/kube-proxy/app/server.go`).
const UNPROXIED_LABELS: [&str; 2] =
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawBalancer {
    ip: Option<String>,
    ip_mode: Option<String>,
}

/// A port, as far as it can be read.
struct RawPort {
    name: Arc<str>,
    protocol: Option<u8>,
    /// `None` where it is absent or null, `Some(0)` where it cannot be read.
    port: Option<i64>,
    node_port: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<RawConditions>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// Reads what there is, and keeps the first thing that is wrong.
struct Reader<'v> {
    value: &'v Value,
    wrong: Option<ObjectError>,
}

impl<'v> Reader<'v> {
    fn kept<T>(&mut self, read: Result<T, ObjectError>) -> Option<T> {
        read.map_err(|error| self.wrong.get_or_insert(error).clone()).ok()
    }

    /// A field, by a path like `spec.ports`; `None` where it is absent or null.
    fn field(&mut self, path: &str) -> Option<&'v Value> {
        let mut value = self.value;
        let mut at = String::new();
        for name in path.split('.') {
            if value.is_null() {
                return None;
            }
            if !value.is_object() {
                self.kept::<()>(Err(ObjectError::new(at, "not an object")));
                return None;
            }
            at = join(&at, name);
            value = value.get(name)?;
        }
        Some(value).filter(|value| !value.is_null())
    }

    fn one<T: DeserializeOwned>(&mut self, path: &str) -> Option<T> {
        let value = self.field(path)?;
        self.kept(parse(value, path))
    }

    /// Each item of a list that can be read.
    fn list<T: DeserializeOwned>(&mut self, path: &str) -> Vec<T> {
        let items = match self.field(path) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.kept::<()>(Err(ObjectError::new(path, "not a list")));
                return Vec::new();
            }
        };
        let item = |(i, item)| parse(item, "").map_err(|error: ObjectError| (i, error));
        let read = items.iter().enumerate().map(item).filter_map(|read| match read {
            Ok(item) => Some(item),
            Err((i, error)) => {
                let path = join(&format!("{path}[{i}]"), &error.path);
                self.kept(Err(ObjectError::new(path, error.reason)))
            }
        });
        read.collect()
    }

    fn address(&mut self, text: &str, path: &str) -> Option<IpAddr> {
        self.kept(read_address(text, path)).flatten()
    }

    fn port(&mut self, number: i64, path: &str) -> Option<u16> {
        self.kept(read_port(number, path))
    }

    /// Each item of a list of ports, field by field: of one that has no number, the node's port leads out all the same.
    fn ports(&mut self, path: &str) -> Vec<RawPort> {
        let mut out = Vec::new();
        for (i, item) in self.list::<Value>(path).iter().enumerate() {
            let path = format!("{path}[{i}]");
            if !item.is_object() {
                self.kept::<()>(Err(ObjectError::new(path, "not an object")));
                continue;
            }
            let text =
                |field| parse::<Option<String>>(item.get(field).unwrap_or(&Value::Null), &join(&path, field));
            let number =
                |field| parse::<Option<i64>>(item.get(field).unwrap_or(&Value::Null), &join(&path, field));
            let name = self.kept(text("name")).flatten().unwrap_or_default();
            let protocol =
                text("protocol").and_then(|text| read_protocol(text.as_deref(), &join(&path, "protocol")));
            let protocol = self.kept(protocol);
            let port = self.kept(number("port")).unwrap_or(Some(0));
            let node_port = self.kept(number("nodePort")).flatten();
            out.push(RawPort { name: Arc::from(name), protocol, port, node_port });
        }
        out
    }
}

/// Reads a service or an endpoint slice; `wrong` is what is wrong with it already. Gives it with the first thing that is wrong.
pub(super) fn read(
    object: &ObjectRef,
    labels: &Labels,
    value: &Value,
    wrong: Option<ObjectError>,
) -> (Object, Option<ObjectError>) {
    let mut from = Reader { value, wrong };
    let read = if object.kind == Kind::Service {
        Object::Service(service(&mut from, object, labels))
    } else {
        Object::EndpointSlice(slice(&mut from, object, labels))
    };
    (read, from.wrong)
}

/// The labels that can be read, whatever else is in their place.
pub(super) fn labels(value: &Value) -> Labels {
    let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
    labels.into_iter().flatten().filter_map(|(key, value)| Some((key, value.as_str()?))).collect()
}

fn is_proxied(labels: &Labels) -> bool {
    UNPROXIED_LABELS.iter().all(|label| labels.get(label).is_none())
}

fn service(from: &mut Reader<'_>, object: &ObjectRef, labels: &Labels) -> Service {
    let cluster_ip: Option<String> = from.one("spec.clusterIP");
    let r#type: Option<String> = from.one("spec.type");
    // What kube-proxy leaves alone has no address of the cluster, whatever its object claims: packets to it would leave.
    let headless = cluster_ip.as_deref() == Some("None");
    let skipped = headless || r#type.as_deref() == Some("ExternalName") || !is_proxied(labels);
    let translated = |entry: &RawBalancer| entry.ip_mode.as_deref() != Some("Proxy");
    let balancers = from.list::<RawBalancer>("status.loadBalancer.ingress").into_iter().filter(translated);
    let cluster = from.list::<String>("spec.clusterIPs").into_iter().chain(cluster_ip);
    let own = cluster.filter(|ip| ip != "None").chain(balancers.filter_map(|entry| entry.ip));
    let chosen = from.list::<String>("spec.externalIPs");
    let (mut vips, mut external) = (Vec::new(), Vec::new());
    for (text, is_external) in
        own.map(|text| (text, false)).chain(chosen.into_iter().map(|text| (text, true)))
    {
        let path = "spec.clusterIPs, spec.externalIPs or status.loadBalancer.ingress";
        let Some(ip) = from.address(&text, path) else { continue };
        if !skipped && !vips.contains(&ip) {
            vips.push(ip);
            external.extend(is_external.then_some(ip));
        }
    }
    let mut ports = Vec::new();
    for raw in from.ports("spec.ports") {
        let path = "spec.ports";
        let Some(number) = raw.port else { continue };
        let port = from.port(number, path).unwrap_or(0);
        let node_port = raw.node_port.filter(|port| *port != 0);
        let node_port = node_port.and_then(|port| from.port(port, path)).unwrap_or(0);
        // By which protocol the node's port leads out cannot be told: by any.
        let any = [protocol::TCP, protocol::UDP, protocol::SCTP];
        let protocols = raw.protocol.map_or(any.to_vec(), |one| vec![one]);
        let port = |protocol| ServicePort { name: raw.name.clone(), protocol, port, node_port };
        ports.extend(protocols.into_iter().map(port));
    }
    Service {
        namespace: object.namespace.clone().unwrap_or_default(),
        name: object.name.clone(),
        labels: labels.clone(),
        vips: vips.into(),
        external: external.into(),
        ports: ports.into(),
        unread: from.wrong.is_some(),
    }
}

fn slice(from: &mut Reader<'_>, object: &ObjectRef, labels: &Labels) -> EndpointSlice {
    let address_type = from.one::<String>("addressType").unwrap_or_default();
    // A name instead of addresses is nothing that a packet can be sent to.
    let named = address_type == "FQDN";
    let mut endpoints = Vec::new();
    for raw in if named { Vec::new() } else { from.list::<RawEndpoint>("endpoints") } {
        let conditions = raw.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        // Absent means serving to kube-proxy (`pkg/proxy/endpointslicecache.go`), whatever `ready` says.
        let last_resort = conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false);
        for text in raw.addresses.unwrap_or_default() {
            let path = "endpoints[].addresses";
            let Some(address) = from.address(&text, path) else { continue };
            // IPv4 in IPv6 form is behind the IPv6 address of the service.
            let other = if address.is_ipv4() { "IPv6" } else { "IPv4" };
            if address_type == other {
                let reason = format!("{text:?} is not of the type {other}");
                from.kept::<()>(Err(ObjectError::new(path, reason)));
            }
            endpoints.push(Endpoint { address, ready, last_resort });
        }
    }
    let (mut ports, mut stops_proxy) = (Vec::new(), false);
    for RawPort { name, protocol, port, .. } in from.ports("ports") {
        // kube-proxy leaves out a port without a number and the number 0; at others, which not every API server refuses, its syncs fail.
        let Some(number) = port.filter(|port| *port != 0) else { continue };
        stops_proxy |= u16::try_from(number).is_err();
        let read = protocol.zip(from.port(number, "ports"));
        ports.extend(read.map(|(protocol, port)| ServicePort { name, protocol, port, node_port: 0 }));
    }
    let key = |port: &ServicePort| (port.name.clone(), port.protocol);
    ports.sort_by_key(key);
    ports.dedup_by_key(|port| key(port));
    EndpointSlice {
        namespace: object.namespace.clone().unwrap_or_default(),
        name: object.name.clone(),
        service: labels.get(SERVICE_NAME_LABEL).map(Arc::from),
        ports: ports.into(),
        endpoints: endpoints.into_iter().collect(),
        proxied: is_proxied(labels),
        former: false,
        unread: from.wrong.is_some(),
        stops_proxy,
    }
}
