//! A small cluster to write tests in: objects go in as JSON, packets come out judged.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "test helpers: each test file uses its part, takes literals, and fails by panic"
)]

use std::net::{IpAddr, Ipv6Addr};

use egress_common::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use egress_common::wire::{Approval, Endpoint};
use egress_common::{Action, Meta, Owner, Socket, Verdict, decide};
use egress_policy::compile::{Compiled, LocalContainer, LocalPod, Node, PodState, UnknownPods, compile};
use egress_policy::index::{Event, Index};
use egress_policy::object::{ObjectRef, Read, read};
use egress_policy::plan::State;
pub use serde_json::{Value, json};

/// The node of the tests; pods on it are local.
pub const NODE: &str = "node-a";
/// A cgroup that is nobody's.
pub const UNKNOWN: &str = "?";

#[derive(Clone)]
pub struct World {
    pub index: Index,
    pub local: Vec<LocalPod>,
    pub names: Vec<String>,
    pub unknown: UnknownPods,
}

pub fn world(objects: impl IntoIterator<Item = Value>) -> World {
    let mut world = World {
        index: Index::default(),
        local: Vec::new(),
        names: Vec::new(),
        unknown: UnknownPods::DenyOutside,
    };
    for object in objects {
        world.add(object);
    }
    world
}

impl World {
    pub fn add(&mut self, object: Value) -> &mut Self {
        if object["kind"] == "Pod" && object["spec"]["nodeName"] == NODE {
            let name =
                format!("{}/{}", text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
            if !self.names.contains(&name) {
                let cgroup = 1000 + self.local.len() as u64;
                let containers = object["spec"]["containers"].as_array().into_iter().flatten();
                let containers = containers.zip(1..).map(|(container, number)| LocalContainer {
                    name: text(&container["name"]),
                    cgroup: cgroup * 100 + number,
                });
                let containers = containers.collect();
                self.local.push(LocalPod {
                    uid: text(&object["metadata"]["uid"]),
                    cgroup,
                    containers,
                    left: None,
                });
                self.names.push(name);
            }
        }
        for read in read(object).unwrap() {
            if let Some(event) = read.event() {
                self.index.apply(event);
            }
        }
        self
    }

    pub fn with(&self, object: Value) -> Self {
        let mut world = self.clone();
        world.add(object);
        world
    }

    pub fn without(&self, object: &str) -> Self {
        let mut world = self.clone();
        let found: Option<ObjectRef> = world.index.objects().find(|o| o.to_string() == object);
        assert!(!world.index.apply(Event::Delete(found.unwrap())).is_empty());
        world
    }

    /// The node with its pods.
    pub fn node(&self) -> Node<'_> {
        Node {
            name: NODE,
            pod_root_level: 2,
            unknown_pods: self.unknown,
            incomplete: false,
            pods: &self.local,
        }
    }

    pub fn compile(&self) -> Compiled {
        compile(&self.index, &self.node())
    }

    pub fn cgroup(&self, name: &str) -> u64 {
        self.names.iter().position(|n| n == name).map_or(1, |i| self.local[i].cgroup)
    }

    /// Cgroup ids of a sender, `NS/POD` or `NS/POD/CONTAINER`: the pod's, and the container's, 0 where none is named.
    pub fn sender(&self, from: &str) -> (u64, u64) {
        let (pod, container) = match from.match_indices('/').nth(1) {
            Some((at, _)) => (&from[..at], Some(&from[at + 1..])),
            None => (from, None),
        };
        let cgroup = self.cgroup(pod);
        let local = self.local.iter().filter(|local| local.cgroup == cgroup);
        let mut containers = local.flat_map(|local| &local.containers);
        let found = container.map(|name| containers.find(|one| one.name == name).unwrap().cgroup);
        (cgroup, found.unwrap_or(0))
    }

    pub fn verdict(&self, from: &str, to: &str, port: &str) -> Verdict {
        judge_from(2, &self.compile().desired, self.sender(from), to, port)
    }

    pub fn allows(&self, from: &str, to: &str, port: &str) -> bool {
        self.verdict(from, to, port).action == Action::Allow
    }

    pub fn action(&self, from: &str, to: &str, port: &str) -> Action {
        self.verdict(from, to, port).action
    }

    pub fn state(&self, name: &str) -> PodState {
        self.compile().endpoints[&self.cgroup(name)].state.clone()
    }

    /// Object, field and rule that allows a packet.
    pub fn rule(&self, from: &str, to: &str, port: &str) -> String {
        let compiled = self.compile();
        let (cgroup, container) = self.sender(from);
        let verdict = judge_from(2, &compiled.desired, (cgroup, container), to, port);
        let policy = compiled.desired.endpoints.get(&cgroup).map_or(0, |endpoint| {
            let proxy = endpoint.proxies.iter().find(|proxy| container != 0 && proxy.cgroup == container);
            proxy.map_or(endpoint.policy, |proxy| proxy.policy)
        });
        compiled
            .provenance
            .rule(policy, verdict.rule)
            .map_or(String::new(), |r| format!("{} {}", r.object, r.path))
    }

    pub fn diagnostics(&self) -> String {
        self.compile().diagnostics.iter().map(|d| format!("{d}\n")).collect()
    }
}

/// Judges a packet of a pod with its own source address. `port` is like `tcp/443` or `icmp`.
pub fn judge(state: &State, cgroup: u64, to: &str, port: &str) -> Verdict {
    judge_on(2, state, cgroup, to, port)
}

/// Judges a packet that leaves by the device of this index; 1 is loopback.
pub fn judge_on(ifindex: u32, state: &State, cgroup: u64, to: &str, port: &str) -> Verdict {
    judge_from(ifindex, state, (cgroup, 0), to, port)
}

/// Judges a packet of a container of a pod, given by their cgroup ids.
pub fn judge_from(
    ifindex: u32,
    state: &State,
    (cgroup, container): (u64, u64),
    to: &str,
    port: &str,
) -> Verdict {
    let endpoint = state.endpoints.get(&cgroup).copied().unwrap_or_default();
    let packet = packet(&endpoint, to.parse().unwrap(), port);
    let ethertype = if to.contains(':') { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    decide(
        state,
        &InCgroup(cgroup, container),
        packet.as_slice(),
        Meta { ethertype, ifindex, ..Meta::default() },
    )
    .verdict
}

struct InCgroup(u64, u64);

impl Owner for InCgroup {
    fn cgroup(&self, level: u32) -> u64 {
        match level {
            3 => self.0,
            4 => self.1,
            _ => 0,
        }
    }

    fn socket(&self) -> Socket {
        Socket::Inet
    }

    fn approval(&self) -> Option<&Approval> {
        None
    }
}

/// A packet of a pod with its own source address.
pub fn packet(endpoint: &Endpoint, to: IpAddr, port: &str) -> Vec<u8> {
    let (protocol, port) = port.split_once('/').unwrap_or((port, "0"));
    let port: u16 = port.parse().unwrap();
    let number = match (protocol, to) {
        ("tcp", _) => 6,
        ("udp", _) => 17,
        ("sctp", _) => 132,
        ("icmp", IpAddr::V4(_)) => 1,
        ("icmp", IpAddr::V6(_)) => 58,
        _ => panic!("{protocol}"),
    };
    let mut out = Vec::new();
    match to {
        IpAddr::V4(to) => {
            out.extend([0x45, 0, 0, 60, 0, 0, 0, 0, 64, number, 0, 0]);
            out.extend(&endpoint.v4.0[12..]);
            out.extend(to.octets());
        }
        IpAddr::V6(to) => {
            out.extend([0x60, 0, 0, 0, 0, 40, number, 64]);
            // A pod without an address of its own has to borrow one.
            let borrowed = Ipv6Addr::new(0xfd05, 0, 0, 0, 0, 0, 0, 5).octets();
            out.extend(if endpoint.v6.is_zero() { borrowed } else { endpoint.v6.0 });
            out.extend(to.octets());
        }
    }
    out.extend(40000_u16.to_be_bytes());
    out.extend(port.to_be_bytes());
    out.extend([0; 36]);
    out
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The first thing that is wrong with an object.
pub fn error_of(object: Value) -> String {
    match read(object).unwrap().remove(0) {
        Read::Invalid { error, .. } => error.to_string(),
        other => panic!("not invalid: {other:?}"),
    }
}

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A pod on [`NODE`].
pub fn pod(name: &str, ip: &str, labels: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    let ips: Vec<Value> = ip.split(',').map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{namespace}-{name}"), "labels": labels},
        "spec": {"nodeName": NODE, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": ip.split(',').next(), "podIPs": ips}})
}

/// Sets a field, like `/spec/hostNetwork`.
pub fn set(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[field] = value;
    object
}

pub fn node(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]}})
}

pub fn service(name: &str, vip: &str, ports: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
        "spec": {"clusterIP": vip, "clusterIPs": [vip], "ports": ports}})
}

/// Backends of a service: ready at these addresses, on these ports.
pub fn slice(service: &str, addresses: &[&str], ports: Value) -> Value {
    let (namespace, name) = service.split_once('/').unwrap();
    let v6 = addresses.iter().any(|a| a.contains(':'));
    let endpoints: Vec<Value> =
        addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": format!("{name}-{}", if v6 { 6 } else { 4 }),
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": if v6 { "IPv6" } else { "IPv4" }, "endpoints": endpoints, "ports": ports})
}

pub fn egp(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy",
        "metadata": {"name": name}, "spec": spec})
}

pub fn np(name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

pub fn labels(key: &str, value: &str) -> Value {
    json!({"matchLabels": {key: value}})
}

/// The mesh of the guide: `app/web` (10.0.1.1) locked down, `app/db` (10.0.1.2), `other/free` (10.0.1.3), the gateway
/// `gw/gate` (10.0.2.1) behind service 10.96.0.9 (443 -> 8443), DNS, API server, two nodes.
pub fn mesh() -> World {
    world([
        namespace("app", json!({"mesh": "on"})),
        namespace("gw", json!({})),
        namespace("other", json!({})),
        node(NODE, "192.168.0.1"),
        node("node-b", "192.168.0.2"),
        pod("app/web", "10.0.1.1", json!({"app": "web"})),
        pod("app/db", "10.0.1.2", json!({"app": "db"})),
        pod("other/free", "10.0.1.3", json!({"app": "free"})),
        pod("gw/gate", "10.0.2.1", json!({"istio": "egressgateway"})),
        pod("kube-system/dns", "10.0.3.1", json!({"k8s-app": "kube-dns"})),
        service("gw/gate", "10.96.0.9", json!([{"name": "https", "port": 443, "protocol": "TCP"}])),
        slice("gw/gate", &["10.0.2.1"], json!([{"name": "https", "port": 8443, "protocol": "TCP"}])),
        service(
            "kube-system/kube-dns",
            "10.96.0.10",
            json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53},
                {"name": "metrics", "port": 9153}]),
        ),
        slice(
            "kube-system/kube-dns",
            &["10.0.3.1"],
            json!([{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5353},
                {"name": "metrics", "port": 9153}]),
        ),
        service("default/kubernetes", "10.96.0.1", json!([{"name": "https", "port": 443}])),
        slice("default/kubernetes", &["192.168.0.9"], json!([{"name": "https", "port": 6443}])),
    ])
}

/// The lock-down of the mesh with further fields.
pub fn lock(extra: Value) -> Value {
    let mut spec = json!({
        "subjects": [{"namespaces": labels("mesh", "on")}],
        "gateways": [{"name": "out", "namespaces": labels("kubernetes.io/metadata.name", "gw"),
            "pods": labels("istio", "egressgateway"), "ports": [{"protocol": "TCP", "port": 443}]}]});
    for (field, value) in extra.as_object().unwrap() {
        spec[field] = value.clone();
    }
    egp("mesh", spec)
}
