//! The cluster of the benchmark: `n` pods in `n / 100` namespaces, `n / 10` services, `n / 50` network policies, lock-downs
//! for `n / 2000` groups of namespaces (50 at 100,000 pods), each with its own gateway, and 250 local pods.

use egress_policy::compile::LocalPod;
use egress_policy::index::{Event, Index};
use egress_policy::object::{Object, read};
use serde_json::{Value, json};

/// The node that is compiled for.
pub const NODE: &str = "node-0";
const LOCAL: usize = 250;
const PER_NAMESPACE: usize = 100;
const REPLICAS: usize = 20;

pub struct Cluster {
    pub index: Index,
    pub local: Vec<LocalPod>,
    /// Namespaces, each with [`PER_NAMESPACE`] pods.
    pub namespaces: usize,
    pub pods: usize,
}

/// Reads one object.
pub fn object(value: Value) -> Object {
    let mut read = read(value).unwrap();
    match read.remove(0).event() {
        Some(Event::Upsert(object)) => object,
        other => panic!("{other:?}"),
    }
}

/// An address as a network plugin gives it out: in no order of names. An odd factor makes a permutation of 17 bits.
pub fn address(pod: usize) -> String {
    let at = pod * 61_681 % 131_072;
    format!("10.{}.{}.{}", 64 + at / 62_500, at / 250 % 250, at % 250 + 1)
}

fn uid(pod: usize) -> String {
    let random = (pod as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{:08x}-0000-4000-8000-{pod:012}", random >> 32)
}

/// A pod as a deployment makes it; `extra` is the value of a label that tests change.
pub fn pod(pod: usize, extra: &str) -> Object {
    let (namespace, app) = (pod / PER_NAMESPACE, pod % PER_NAMESPACE / REPLICAS);
    object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": format!("team-{namespace}"), "name": format!("app-{app}-6d4cf56db6-{pod:06}"), "uid": uid(pod),
            "labels": {
                "app": format!("app-{app}"), "pod-template-hash": format!("6d4cf5{namespace}{app}"), "extra": extra,
                "app.kubernetes.io/part-of": format!("team-{namespace}"), "version": "v1",
            },
        },
        "spec": {
            "nodeName": format!("node-{}", pod * 400 / 100_000), "serviceAccountName": format!("app-{app}"),
            "containers": [
                {"name": "app", "ports": [{"name": "http", "containerPort": 8080}]},
                {"name": "istio-proxy", "securityContext": {"runAsUser": 1337}},
            ],
        },
        "status": {"phase": "Running", "podIP": address(pod), "podIPs": [{"ip": address(pod)}]},
    }))
}

/// A network policy of a namespace; `port` is what tests change.
pub fn network_policy(namespace: usize, number: usize, port: u16) -> Object {
    let next = (number + 1) % 5;
    object(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": format!("team-{namespace}"), "name": format!("policy-{number}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("app-{number}")}}, "policyTypes": ["Egress"],
            "egress": [
                {"to": [{"podSelector": {"matchLabels": {"app": format!("app-{next}")}}}], "ports": [{"port": port}]},
                {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
                    "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
                {"to": [{"namespaceSelector": {"matchLabels": {"group": format!("g{}", namespace % 50)}},
                    "podSelector": {"matchLabels": {"app": "app-0"}}}], "ports": [{"port": 8080}]},
                {"to": [{"ipBlock": {"cidr": format!("198.51.{}.0/24", namespace % 250)}}], "ports": [{"port": 443}]},
            ],
        },
    }))
}

/// A policy of local pods that allows a prefix but for others.
pub fn wide_policy(cidr: &str, except: &[&str]) -> Object {
    to_peer(&json!({"ipBlock": {"cidr": cidr, "except": except}}))
}

/// A policy of local pods that allows all pods with a label of this name.
pub fn labelled_policy(name: &str) -> Object {
    let selector = json!({"matchExpressions": [{"key": name, "operator": "Exists"}]});
    to_peer(&json!({"namespaceSelector": {}, "podSelector": selector}))
}

fn to_peer(peer: &serde_json::Value) -> Object {
    object(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "team-0", "name": "wide"},
        "spec": {
            "podSelector": {}, "policyTypes": ["Egress"],
            "egress": [{"to": [peer]}],
        },
    }))
}

/// A lock-down of a group of namespaces; `port` is what tests change.
pub fn lock_down(group: usize, port: u16) -> Object {
    object(json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy",
        "metadata": {"name": format!("mesh-{group}")},
        "spec": {
            "subjects": [{"namespaces": {"matchLabels": {"group": format!("g{group}")}}}],
            "gateways": [{
                "name": "out", "namespaces": {"matchLabels": {"kubernetes.io/metadata.name": format!("gateway-{group}")}},
                "pods": {"matchLabels": {"istio": "egressgateway"}}, "ports": [{"protocol": "TCP", "port": 443}],
                "clients": [{"serviceAccounts": ["app-0", "app-1"]}],
                "destinations": [{"cidr": "198.51.0.0/16", "ports": [{"protocol": "TCP", "port": 443}]}],
            }],
            "allow": {"to": [{"cidr": format!("10.50.{group}.0/24"), "ports": [{"protocol": "TCP", "port": port}]}]},
        },
    }))
}

/// The backends of a service: the replicas of an application, ready but for `without`.
pub fn slice(service: usize, without: usize) -> Object {
    let (namespace, app) = (service / 10, service % 10 / 2);
    let first = namespace * PER_NAMESPACE + app * REPLICAS;
    let endpoints: Vec<Value> = (first..first + REPLICAS)
        .map(|pod| json!({"addresses": [address(pod)], "conditions": {"ready": pod != without}}))
        .collect();
    object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": format!("team-{namespace}"), "name": format!("app-{}-abcde", service % 10),
            "labels": {"kubernetes.io/service-name": format!("app-{}", service % 10)}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    }))
}

fn service(service: usize) -> Object {
    let vip = format!("10.96.{}.{}", service / 250, service % 250 + 1);
    object(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": format!("team-{}", service / 10), "name": format!("app-{}", service % 10)},
        "spec": {"clusterIP": vip, "clusterIPs": [vip], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    }))
}

/// What stands beside the teams: DNS, API server, gateways.
fn system(groups: usize) -> Vec<Object> {
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let pod = |namespace: &str, name: &str, ip: String, label: Value| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "labels": label},
            "spec": {"nodeName": "node-9"}, "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}})
    };
    let mut objects = vec![
        namespace("kube-system"),
        pod("kube-system", "coredns", "10.63.0.1".to_owned(), json!({"k8s-app": "kube-dns"})),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "kube-system", "name": "kube-dns"},
            "spec": {"clusterIP": "10.95.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "kube-system", "name": "kube-dns-x", "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}], "endpoints": [{"addresses": ["10.63.0.1"]}]}),
    ];
    for group in 0..groups {
        let name = format!("gateway-{group}");
        objects.push(namespace(&name));
        for replica in 0..3 {
            let ip = format!("10.62.{group}.{}", replica + 1);
            objects.push(pod(&name, &format!("gate-{replica}"), ip, json!({"istio": "egressgateway"})));
        }
    }
    objects.into_iter().map(object).collect()
}

/// Every object of a cluster of `pods` pods.
pub fn objects(pods: usize) -> impl Iterator<Item = Object> {
    let (namespaces, services, groups) = (pods / PER_NAMESPACE, pods / 10, groups(pods));
    let namespace = |number: usize| {
        object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": format!("team-{number}"), "labels": {"group": format!("g{}", number % 50), "istio-injection": "enabled"}}}))
    };
    let policies = (0..namespaces).flat_map(|ns| [network_policy(ns, 0, 8080), network_policy(ns, 1, 8080)]);
    let services = (0..services).flat_map(|number| [service(number), slice(number, usize::MAX)]);
    let pods = (0..pods).map(|number| pod(number, "a"));
    let lock_downs = (0..groups).map(|group| lock_down(group, 5432));
    let cluster = (0..namespaces).map(namespace).chain(pods).chain(services);
    cluster.chain(system(groups)).chain(policies).chain(lock_downs)
}

fn groups(pods: usize) -> usize {
    (pods / 2000).max(1)
}

/// An index of nothing but the pods.
pub fn pods_alone(pods: usize) -> Index {
    let mut index = Index::default();
    (0..pods).for_each(|number| drop(index.apply(Event::Upsert(pod(number, "a")))));
    index
}

pub fn cluster(pods: usize) -> Cluster {
    let mut index = Index::default();
    objects(pods).for_each(|object| drop(index.apply(Event::Upsert(object))));
    // Spread over the namespaces, as a node's pods are.
    let local = (0..LOCAL.min(pods)).map(|i| i * pods / LOCAL.min(pods) + i * 20 % 40);
    let local = local.filter(|pod| *pod < pods).zip(1..);
    let local = local
        .map(|(pod, cgroup)| LocalPod { uid: uid(pod), cgroup, containers: Vec::new(), left: None })
        .collect();
    Cluster { index, local, namespaces: pods / PER_NAMESPACE, pods }
}
