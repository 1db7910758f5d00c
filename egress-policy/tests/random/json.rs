//! Plain data as Kubernetes objects.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::{
    Egp, Gw, Np, NpPort, Ns, PeerData, PodData, PortSpec, Prefix, RandomCluster, RuleData, Sel, Svc, SvcPort,
    ToData, Who,
};
use crate::common::{NODE, World, world};

/// Namespaces that have pods; the last but one is a lifeline.
const NAMESPACES: [&str; 4] = ["app", "gw", "kube-system", "other"];
const POD_LABELS: [&str; 2] = ["app", "tier"];
const NS_LABELS: [&str; 2] = ["team", "zone"];
const CONTAINERS: [&str; 3] = ["istio-proxy", "c", "absent"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 11] = [1, 53, 80, 81, 443, 5353, 6443, 8080, 8443, 15443, 65535];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "web"];
const ACCOUNTS: [&str; 2] = ["default", "robot"];
const ENFORCEMENT: [&str; 3] = ["Audit", "Enforce", "nonsense"];
/// Of nodes and outside, for backends that are no pods and for addresses of services that are not cluster IPs.
const OTHERS: [&str; 8] = [
    "192.168.0.1",
    "192.168.0.2",
    "203.0.113.9",
    "fd01::1",
    "fd03::9",
    "10.0.0.3",
    "198.51.100.1",
    "fd96::1",
];
const FRONTS: [&str; 6] = ["198.51.100.1", "198.51.100.2", "fd04::1", "192.168.0.1", "10.0.0.2", "10.96.0.2"];

fn pick<T: Copy>(table: &[T], i: u8) -> T {
    table[usize::from(i) % table.len()]
}

fn pod_v4(i: u8) -> String {
    format!("10.0.{}.{}", i / 6, i % 6)
}

fn pod_v6(i: u8) -> String {
    format!("fd00::{i}")
}

/// The addresses that prefixes are made around.
fn around(i: u8) -> IpAddr {
    let text = match i {
        0..12 => pod_v4(i),
        12..18 => pod_v6(i - 12),
        18..24 => pick(&OTHERS, i - 18).to_owned(),
        24 => "10.96.0.1".to_owned(),
        25 => "fd96::1".to_owned(),
        26 => "::1:0:0:0:1".to_owned(),
        27 => "255.255.255.255".to_owned(),
        _ => pick(&FRONTS, i).to_owned(),
    };
    text.parse().unwrap()
}

/// Puts a field where there is a value for it.
fn put(map: &mut Map<String, Value>, field: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(field.to_owned(), value.into());
    }
}

fn list<T>(items: &[T], each: impl Fn(&T) -> Value) -> Value {
    Value::Array(items.iter().map(each).collect())
}

fn labels(labels: &[(u8, u8)], keys: &[&str]) -> Value {
    let pairs = labels.iter().map(|(key, value)| (pick(keys, *key).to_owned(), json!(pick(&VALUES, *value))));
    Value::Object(pairs.collect())
}

fn selector(sel: &Sel, keys: &[&str]) -> Value {
    let mut equal = Map::new();
    let mut expressions = Vec::new();
    for (key, operator, values) in &sel.0 {
        let by_name = keys == NS_LABELS && *key == 2;
        let key = if by_name { "kubernetes.io/metadata.name" } else { pick(keys, *key) };
        let values: Vec<&str> =
            values.iter().map(|v| if by_name { pick(&NAMESPACES, *v) } else { pick(&VALUES, *v) }).collect();
        match operator {
            0 => put(&mut equal, key, values.first().copied()),
            1 => expressions.push(json!({"key": key, "operator": "In", "values": values})),
            2 => expressions.push(json!({"key": key, "operator": "NotIn", "values": values})),
            3 => expressions.push(json!({"key": key, "operator": "Exists"})),
            _ => expressions.push(json!({"key": key, "operator": "DoesNotExist", "values": []})),
        }
    }
    let mut out = Map::new();
    put(&mut out, "matchLabels", (!equal.is_empty()).then_some(equal));
    put(&mut out, "matchExpressions", (!expressions.is_empty()).then_some(expressions));
    Value::Object(out)
}

fn prefix(prefix: &Prefix) -> (String, Vec<String>) {
    let ip = around(prefix.around);
    let lengths: &[u8] = match ip {
        IpAddr::V4(_) => &[32, 31, 30, 29, 28, 24, 16, 8, 0],
        IpAddr::V6(_) => &[128, 127, 126, 124, 120, 64, 16, 7, 0],
    };
    let outer = IpNet::new(ip, pick(lengths, prefix.bits)).unwrap().trunc();
    let mut except = Vec::new();
    for (offset, further) in &prefix.except {
        let room = outer.max_prefix_len() - outer.prefix_len();
        if room == 0 {
            continue;
        }
        let bits = outer.prefix_len() + 1 + further % room;
        // Near the address that the prefix is around, which is where the objects are.
        let inside = match ip {
            IpAddr::V4(v4) => IpAddr::from((v4.to_bits() ^ u32::from(offset % 4)).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((v6.to_bits() ^ u128::from(offset % 4)).to_be_bytes()),
        };
        let inner = IpNet::new(inside, bits).unwrap().trunc();
        if outer.contains(&inner) {
            except.push(inner.to_string());
        }
    }
    (outer.to_string(), except)
}

fn with_cidr(mut object: Map<String, Value>, peer: &Prefix) -> Map<String, Value> {
    let (cidr, except) = prefix(peer);
    put(&mut object, "cidr", Some(cidr));
    put(&mut object, "except", (!except.is_empty()).then_some(except));
    object
}

fn port_spec((protocol, port, range): &PortSpec) -> Value {
    let port = pick(&PORTS, *port);
    let mut out = Map::new();
    put(&mut out, "protocol", protocol.map(|p| pick(&PROTOCOLS, p)));
    put(&mut out, "port", Some(port));
    put(&mut out, "endPort", range.map(|range| port.saturating_add(range)));
    Value::Object(out)
}

fn ports(ports: Option<&Vec<PortSpec>>) -> Option<Value> {
    ports.map(|ports| list(ports, port_spec))
}

fn meta(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn namespace(name: &str, data: &Ns) -> Value {
    let mut object = meta("v1", "Namespace", None, name);
    object["metadata"]["labels"] = labels(&data.labels, &NS_LABELS);
    annotate(&mut object, data.enforcement);
    object
}

fn annotate(object: &mut Value, enforcement: Option<u8>) {
    if let Some(word) = enforcement {
        object["metadata"]["annotations"] =
            json!({"egress-enforcer.io/enforcement": pick(&ENFORCEMENT, word)});
    }
}

fn addresses(data: &PodData) -> Vec<String> {
    if data.host_network {
        let last = if data.remote { 2 } else { 1 };
        let v6 = data.v6.map(|_| format!("fd01::{last}"));
        return std::iter::once(format!("192.168.0.{last}")).chain(v6).collect();
    }
    data.v4.map(pod_v4).into_iter().chain(data.v6.map(pod_v6)).collect()
}

fn pod(i: usize, data: &PodData) -> Value {
    let mut object = meta("v1", "Pod", Some(pick(&NAMESPACES, data.ns)), &format!("p{i}"));
    object["metadata"]["uid"] = json!(format!("uid-{i}"));
    object["metadata"]["labels"] = labels(&data.labels, &POD_LABELS);
    if data.terminating {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    let ports = list(&data.ports, |(name, protocol, port, host)| {
        let (name, protocol) = (pick(&PORT_NAMES, *name), pick(&PROTOCOLS, *protocol));
        let host = host.map_or(0, |host| pick(&PORTS, host));
        json!({"name": name, "protocol": protocol, "containerPort": pick(&PORTS, *port), "hostPort": host})
    });
    object["spec"] = json!({"nodeName": if data.remote { "node-b" } else { NODE },
        "serviceAccountName": pick(&ACCOUNTS, data.account), "hostNetwork": data.host_network,
        "containers": [{"name": "c", "ports": ports}, {"name": "istio-proxy"}, {"name": "other"}]});
    let ips: Vec<Value> = addresses(data).iter().map(|ip| json!({"ip": ip})).collect();
    let phase = pick(&["Running", "Succeeded", "Failed", "Pending"], data.phase);
    if data.remote && phase == "Pending" {
        object["spec"]["nodeName"] = json!("");
    }
    object["status"] = json!({"phase": phase, "podIPs": ips});
    object
}

/// A service with its slices: two per family, of which each may have other target ports.
fn service(namespace: &str, name: &str, data: &Svc, pods: &[PodData]) -> Vec<Value> {
    let mut object = meta("v1", "Service", Some(namespace), name);
    if namespace == "kube-system" && data.dns_by_label {
        object["metadata"]["labels"] = json!({"k8s-app": "kube-dns"});
    }
    if data.odd == 2 {
        object["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    }
    let vips: Vec<String> = data
        .v4
        .map(|i| format!("10.96.0.{}", i + 1))
        .into_iter()
        .chain(data.v6.map(|i| format!("fd96::{}", i + 1)))
        .collect();
    let port = |i: usize, protocol: u8, port: u8| json!({"name": format!("port-{i}"), "protocol": pick(&PROTOCOLS, protocol), "port": pick(&PORTS, port)});
    let numbered = || data.ports.iter().enumerate();
    let own = |(i, p): (usize, &SvcPort)| {
        let mut own = port(i, p.protocol, p.port);
        if data.odd == 4 {
            own["port"] = json!(PORTS[0]);
        }
        own["nodePort"] = json!(p.node_port.map_or(0, |port| pick(&PORTS, port)));
        own
    };
    let ports: Vec<Value> = numbered().map(own).collect();
    // One in a while has the address of a pod that others have behind them, and the port.
    let external = if data.odd == 4 { Some("10.0.0.2") } else { data.external.map(|i| pick(&FRONTS, i)) };
    let external: Vec<_> = external.into_iter().collect();
    object["spec"] = json!({"clusterIP": vips.first().map_or("None", String::as_str),
        "clusterIPs": vips, "externalIPs": external,
        "internalTrafficPolicy": if data.odd == 1 { "Local" } else { "Cluster" }, "ports": ports});
    if let Some((front, proxy)) = data.balancer {
        let mode = if proxy { "Proxy" } else { "VIP" };
        object["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": pick(&FRONTS, front), "ipMode": mode}]}});
    }
    if data.odd == 5 {
        object["spec"]["type"] = json!(["ClusterIP"]);
    }
    let mut objects = vec![object];
    for (other, v4) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut endpoints = Vec::new();
        for backend in data.backends.iter().filter(|backend| backend.other_slice == other) {
            let all = match pods.get(usize::from(backend.at)) {
                Some(pod) => addresses(pod),
                None => vec![pick(&OTHERS, backend.at).to_owned()],
            };
            let of_family: Vec<&String> = all.iter().filter(|ip| ip.contains('.') == v4).collect();
            let conditions = match backend.condition {
                0 => json!({"ready": true}),
                1 => json!({}),
                2 => json!({"ready": false}),
                3 => json!({"ready": false, "serving": true, "terminating": true}),
                4 => json!({"ready": false, "serving": false, "terminating": true}),
                _ => json!({"ready": false, "serving": true}),
            };
            if !of_family.is_empty() {
                endpoints.push(json!({"addresses": of_family, "conditions": conditions}));
            }
        }
        let targets = numbered().filter_map(|(i, p)| {
            let target = if other { p.other_target } else { Some(p.target) };
            target.map(|target| port(i, p.protocol, target))
        });
        if !endpoints.is_empty() {
            let family = if v4 { "IPv4" } else { "IPv6" };
            // The API server's own, beside which others may be.
            let own = name == "kubernetes" && v4 && !other && data.odd == 0;
            let numbered = || format!("{name}-{}-{}", family.to_lowercase(), u8::from(other));
            let slice = if own { name.to_owned() } else { numbered() };
            let mut object = meta("discovery.k8s.io/v1", "EndpointSlice", Some(namespace), &slice);
            object["metadata"]["labels"] = json!({"kubernetes.io/service-name": name});
            if other && data.odd == 3 {
                object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("mine");
            }
            object["addressType"] = json!(family);
            object["endpoints"] = json!(endpoints);
            object["ports"] = Value::Array(targets.collect());
            if other && data.odd == 4 {
                object["addressType"] = json!(["IPv4"]);
            }
            objects.push(object);
        }
    }
    objects
}

fn who(data: &Who, subject: bool) -> Value {
    let mut out = Map::new();
    put(&mut out, "namespaces", data.namespaces.as_ref().map(|sel| selector(sel, &NS_LABELS)));
    put(&mut out, "pods", data.pods.as_ref().map(|sel| selector(sel, &POD_LABELS)));
    put(&mut out, "serviceAccounts", data.accounts.as_ref().map(|a| list(a, |i| json!(pick(&ACCOUNTS, *i)))));
    put(&mut out, "systemNamespaces", data.system.filter(|_| subject));
    Value::Object(out)
}

fn gateway(data: &Gw) -> Value {
    let mut out = Map::new();
    put(&mut out, "namespaces", data.namespaces.as_ref().map(|sel| selector(sel, &NS_LABELS)));
    put(&mut out, "pods", data.pods.as_ref().map(|sel| selector(sel, &POD_LABELS)));
    let addresses = list(&data.addresses, |peer| json!(prefix(peer).0));
    put(&mut out, "addresses", (!data.addresses.is_empty()).then_some(addresses));
    put(&mut out, "ports", ports(data.ports.as_ref()));
    put(&mut out, "clients", data.clients.as_ref().map(|clients| list(clients, |client| who(client, false))));
    let destination = |(peer, listed): &(Prefix, Option<Vec<PortSpec>>)| {
        let mut out = with_cidr(Map::new(), peer);
        put(&mut out, "ports", ports(listed.as_ref()));
        Value::Object(out)
    };
    put(&mut out, "destinations", data.destinations.as_ref().map(|d| list(d, destination)));
    Value::Object(out)
}

/// Names of services: those of the numbers, then DNS and the API server.
fn service_name(i: u8) -> (String, &'static str) {
    match i {
        4 => ("kube-dns".to_owned(), "kube-system"),
        5 => ("kubernetes".to_owned(), "default"),
        _ => (format!("s{i}"), pick(&NAMESPACES, i)),
    }
}

fn lock_down(i: usize, data: &Egp) -> Value {
    let mut spec = Map::new();
    put(&mut spec, "enforcement", data.audit.map(|audit| if audit { "Audit" } else { "Enforce" }));
    put(&mut spec, "subjects", Some(list(&data.subjects, |subject| who(subject, true))));
    if let Some((containers, all)) = &data.proxy {
        let mut out = Map::new();
        out.insert("containers".to_owned(), list(containers, |name| json!(pick(&CONTAINERS, *name))));
        put(&mut out, "scope", all.map(|all| if all { "All" } else { "Egress" }));
        spec.insert("proxy".to_owned(), Value::Object(out));
    }
    put(&mut spec, "gateways", (!data.gateways.is_empty()).then(|| list(&data.gateways, gateway)));
    if let Some(allow) = &data.allow {
        let mut out = Map::new();
        put(&mut out, "dns", allow.dns.map(|dns| if dns { "Cluster" } else { "None" }));
        put(&mut out, "inCluster", allow.in_cluster);
        put(&mut out, "apiServer", allow.api_server);
        put(&mut out, "node", allow.node);
        let to = |(peer, listed): &(ToData, Option<Vec<PortSpec>>)| {
            let mut out = Map::new();
            match peer {
                ToData::Pods(namespaces, pods) => {
                    put(&mut out, "namespaces", namespaces.as_ref().map(|sel| selector(sel, &NS_LABELS)));
                    put(&mut out, "pods", Some(selector(pods, &POD_LABELS)));
                }
                ToData::Cidr(peer) => out = with_cidr(out, peer),
                ToData::Service(i) => {
                    let (name, namespace) = service_name(*i);
                    put(&mut out, "service", Some(json!({"namespace": namespace, "name": name})));
                }
            }
            put(&mut out, "ports", ports(listed.as_ref()));
            Value::Object(out)
        };
        put(&mut out, "to", allow.to.as_ref().map(|peers| list(peers, to)));
        spec.insert("allow".to_owned(), Value::Object(out));
    }
    let mut spec = Value::Object(spec);
    let has_gateway = !data.gateways.is_empty();
    match data.broken {
        Some(0) => spec["surprise"] = json!(1),
        Some(1) => spec["proxy"] = json!({"containers": ["istio-proxy"], "scope": "egress"}),
        Some(2) => spec["subjects"] = json!("everybody"),
        Some(3) if has_gateway => spec["gateways"][0]["ports"] = json!([{"port": 0}]),
        Some(4) if has_gateway => spec["gateways"][0]["destinations"] = json!([{"cidr": "10.0.0.1/8"}]),
        Some(5) => spec["allow"] = Value::Null,
        Some(6) => spec["enforcement"] = json!("audit"),
        _ => {}
    }
    let mut object = meta("egress-enforcer.io/v1alpha1", "EgressGatewayPolicy", None, &format!("e{i}"));
    object["spec"] = spec;
    object
}

fn rule(data: &RuleData) -> Value {
    let peer = |peer: &PeerData| match peer {
        PeerData::Pods(pods) => json!({"podSelector": selector(pods, &POD_LABELS)}),
        PeerData::Namespaces(namespaces) => json!({"namespaceSelector": selector(namespaces, &NS_LABELS)}),
        PeerData::Both(namespaces, pods) => {
            json!({"namespaceSelector": selector(namespaces, &NS_LABELS), "podSelector": selector(pods, &POD_LABELS)})
        }
        PeerData::Block(block) => json!({"ipBlock": with_cidr(Map::new(), block)}),
    };
    let port = |(protocol, port): &(Option<u8>, NpPort)| {
        let mut out = match port {
            NpPort::Protocol => Map::new(),
            NpPort::Number(i, range) => {
                port_spec(&(None, *i, *range)).as_object().cloned().unwrap_or_default()
            }
            NpPort::Name(i) => Map::from_iter([("port".to_owned(), json!(pick(&PORT_NAMES, *i)))]),
        };
        put(&mut out, "protocol", protocol.map(|p| pick(&PROTOCOLS, p)));
        Value::Object(out)
    };
    let mut out = Map::new();
    put(&mut out, "to", data.to.as_ref().map(|to| list(to, peer)));
    put(&mut out, "ports", data.ports.as_ref().map(|ports| list(ports, port)));
    Value::Object(out)
}

fn network_policy(i: usize, data: &Np) -> Value {
    let mut spec = Map::new();
    put(&mut spec, "podSelector", Some(selector(&data.pods, &POD_LABELS)));
    let types: Option<&[&str]> = match data.types {
        0 => None,
        1 => Some(&["Egress"]),
        2 => Some(&["Ingress"]),
        3 => Some(&["Ingress", "Egress"]),
        _ => Some(&[]),
    };
    put(&mut spec, "policyTypes", types.map(|types| json!(types)));
    put(&mut spec, "egress", data.egress.as_ref().map(|rules| list(rules, rule)));
    match data.broken {
        Some(0) => put(&mut spec, "surprise", Some(1)),
        Some(1) => put(&mut spec, "podSelector", Some("everybody")),
        Some(2) => put(&mut spec, "egress", Some(json!([{"to": [{"ipBlock": {"cidr": "10.0.0.1/8"}}]}]))),
        Some(3) => put(&mut spec, "policyTypes", Some(json!(["egress"]))),
        _ => {}
    }
    let mut object =
        meta("networking.k8s.io/v1", "NetworkPolicy", Some(pick(&NAMESPACES, data.ns)), &format!("n{i}"));
    object["spec"] = Value::Object(spec);
    annotate(&mut object, data.enforcement);
    object
}

impl RandomCluster {
    /// The objects.
    pub fn objects(&self) -> Vec<Value> {
        let mut out = Vec::new();
        let namespaces = NAMESPACES.iter().zip(&self.namespaces).filter(|(_, data)| data.exists);
        out.extend(namespaces.map(|(name, data)| namespace(name, data)));
        for (name, last) in [(NODE, 1), ("node-b", 2)].into_iter().filter(|_| self.nodes) {
            let mut node = meta("v1", "Node", None, name);
            let addresses = [format!("192.168.0.{last}"), format!("fd01::{last}")];
            node["status"] =
                json!({"addresses": addresses.map(|a| json!({"type": "InternalIP", "address": a}))});
            out.push(node);
        }
        out.extend(self.pods.iter().enumerate().map(|(i, data)| pod(i, data)));
        for (i, data) in (0_u8..).zip(&self.services) {
            // Half of them where `to: service` looks for them.
            let (name, namespace) = service_name(i);
            let namespace = if data.dns_by_label { namespace } else { pick(&NAMESPACES, data.ns) };
            out.extend(service(namespace, &name, data, &self.pods));
        }
        for (i, data) in [(4, &self.dns), (5, &self.api_server)] {
            let (name, namespace) = service_name(i);
            out.extend(data.iter().flat_map(|data| service(namespace, &name, data, &self.pods)));
        }
        out.extend(self.lock_downs.iter().enumerate().map(|(i, data)| lock_down(i, data)));
        out.extend(self.network_policies.iter().enumerate().map(|(i, data)| network_policy(i, data)));
        out
    }

    /// The objects, indexed, and the pods of the node.
    pub fn world(&self) -> World {
        use egress_policy::compile::UnknownPods;
        let mut world = world(self.objects());
        world.unknown =
            pick(&[UnknownPods::DenyOutside, UnknownPods::Deny, UnknownPods::Allow], self.unknown);
        world
    }
}
