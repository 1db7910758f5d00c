//! What is held, and what is not, by what the policy allows.

use std::time::{Duration, Instant};

use egress_common::Action;
use egress_policy::Index;
use egress_policy::compile::UnknownPods;
use egress_policy::explain::Judge;
use egress_policy::index::Event;
use egress_policy::object::{EndpointSlice, Object, Read, read};
use serde_json::{Value, json};

use super::{Former, HOLD};
use crate::offline::target;

/// The index and what is held, as an agent has them, and its clock.
struct Node {
    index: Index,
    former: Former,
    now: Instant,
}

fn object(api: &str, kind: &str, (namespace, name): (&str, &str), rest: &Value) -> Value {
    let mut object =
        json!({"apiVersion": api, "kind": kind, "metadata": {"namespace": namespace, "name": name}});
    object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    object
}

fn pod(name: &str, ip: &str) -> Value {
    object(
        "v1",
        "Pod",
        ("app", name),
        &json!({"spec": {"nodeName": "n"}, "status": {"phase": "Running", "podIP": ip}}),
    )
}

fn service(rest: &Value) -> Value {
    let mut spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}]});
    spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    object("v1", "Service", ("app", "s"), &json!({"spec": spec}))
}

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<_> =
        addresses.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let mut slice = object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        ("app", "s-1"),
        &json!({"addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints}),
    );
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "s"});
    slice
}

/// What is read of an object, or stands for it.
fn object_of(value: Value) -> Object {
    match read(value).unwrap().pop() {
        Some(Read::Object(object)) => object,
        Some(Read::Invalid { stand_in: Some(object), .. }) => *object,
        other => panic!("not read: {other:?}"),
    }
}

impl Node {
    /// Two pods, a node, and a policy that lets `a` go into the cluster, to nodes, and to all that has no owner within 10.0.0.0/8.
    fn new() -> Self {
        let mut node = Self { index: Index::default(), former: Former::default(), now: Instant::now() };
        let spec = json!({"subjects": [{}], "allow": {"node": true, "to": [{"cidr": "10.0.0.0/8"}]}});
        let addresses = json!([{"type": "InternalIP", "address": "192.168.0.1"}]);
        let mut a = pod("a", "10.1.0.1");
        a["spec"]["nodeName"] = json!("n");
        for one in [
            object("v1", "Namespace", ("", "app"), &json!({})),
            object("v1", "Node", ("", "n"), &json!({"status": {"addresses": addresses}})),
            object("egress-enforcer.io/v1alpha1", "EgressGatewayPolicy", ("", "p"), &json!({"spec": spec})),
            a,
            pod("b", "10.1.0.2"),
            pod("c", "10.1.0.3"),
        ] {
            node.put(one);
        }
        node
    }

    fn take(&mut self, event: Event) {
        self.former.follow(&event, self.now);
        let before = self.former.before(&self.index, &event, self.now);
        before.into_iter().chain([event]).for_each(|event| drop(self.index.apply(event)));
    }

    fn put(&mut self, value: Value) {
        self.take(Event::Upsert(object_of(value)));
    }

    fn remove(&mut self, value: Value) {
        self.take(Event::Delete(object_of(value).object_ref()));
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.former.over(self.now).into_iter().for_each(|event| drop(self.index.apply(event)));
    }

    fn allows(&self, to: &str) -> bool {
        let judge = Judge::new(&self.index, UnknownPods::Deny, [(("app", "a"), None)]);
        judge.judge(("app", "a"), None, &[target(to).unwrap()])[0].action == Action::Allow
    }
}

const VIP: &str = "10.96.0.7:80/TCP";
const NODE_PORT: &str = "192.168.0.1:30080/TCP";
const OUTSIDE: &str = "203.0.113.7";

#[test]
fn a_backend_that_left_counts_until_it_has_been_followed() {
    let mut node = Node::new();
    node.put(service(&json!({})));
    node.put(slice(&["10.1.0.2"]));
    assert!(node.allows(VIP) && node.allows(NODE_PORT));
    node.put(slice(&["10.1.0.2", OUTSIDE]));
    assert!(!node.allows(VIP) && !node.allows(NODE_PORT), "what is added counts at once");
    node.put(slice(&["10.1.0.2"]));
    node.wait(HOLD / 2);
    assert!(!node.allows(VIP) && !node.allows(NODE_PORT));
    // Once more before that is over: no second one, and a new time.
    node.put(slice(&[OUTSIDE]));
    node.put(slice(&["10.1.0.3"]));
    node.wait(HOLD / 2 + Duration::from_secs(1));
    assert!(!node.allows(VIP) && node.former.held.len() == 1);
    node.wait(HOLD);
    assert!(node.allows(VIP) && node.allows(NODE_PORT) && node.former.held.is_empty());
}

#[test]
fn what_a_service_stood_for_counts_until_that_has_been_followed() {
    for gone in [true, false] {
        let mut node = Node::new();
        node.put(service(&json!({})));
        node.put(slice(&[OUTSIDE]));
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT));
        if gone {
            node.remove(service(&json!({})));
            node.remove(slice(&[OUTSIDE]));
        } else {
            node.put(service(&json!({"clusterIP": "10.96.0.8", "ports": [{"port": 81}]})));
        }
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT), "{gone}");
        node.wait(HOLD);
        assert!(node.allows(VIP) && node.allows(NODE_PORT), "{gone}: by the prefix, and the node's own port");
        assert!(node.former.held.is_empty() && node.index.objects().all(|one| !one.name.contains(' ')));
    }
}

#[test]
fn pods_that_go_close_nothing() {
    for first in [true, false] {
        let mut node = Node::new();
        node.put(service(&json!({})));
        node.put(slice(&["10.1.0.2", "10.1.0.3"]));
        if first {
            node.remove(pod("b", "10.1.0.2"));
            node.put(slice(&["10.1.0.3"]));
        } else {
            node.put(slice(&["10.1.0.3"]));
            assert!(node.allows(VIP));
            node.remove(pod("b", "10.1.0.2"));
        }
        assert!(node.allows(VIP) && node.allows(NODE_PORT), "{first}");
        // Nor one that finishes, or gets another address.
        let mut done = pod("c", "10.1.0.3");
        done["status"]["phase"] = json!("Succeeded");
        node.put(done);
        node.put(pod("b", "10.1.0.4"));
        node.put(slice(&["10.1.0.4"]));
        assert!(node.allows(VIP), "{first}");
        // Who has the address now is somebody; and what is long gone is forgotten.
        node.put(pod("d", "10.1.0.3"));
        assert!(!node.former.gone.contains_key(&"10.1.0.3".parse().unwrap()) && !node.former.gone.is_empty());
        node.now += 2 * HOLD;
        node.put(pod("e", "10.1.0.9"));
        assert!(node.former.gone.is_empty());
    }
}

#[test]
fn what_is_held_is_bounded_and_the_last_counts() {
    let mut node = Node::new();
    node.former.held.most = 100;
    node.put(service(&json!({})));
    for round in 0..2 * node.former.held.most {
        node.put(service(&json!({"clusterIP": format!("10.97.{}.{}", round / 200, round % 200 + 1)})));
        node.put(slice(&["10.1.0.2"]));
    }
    node.put(slice(&[OUTSIDE]));
    node.put(service(&json!({})));
    node.put(slice(&["10.1.0.2"]));
    assert!(node.former.held.len() <= node.former.held.most + 2);
    assert!(!node.allows(VIP));
    node.wait(HOLD);
    assert!(node.allows(VIP) && node.former.held.is_empty() && !node.former.is_due(node.now));
    assert!(node.index.objects().all(|one| !one.name.contains(' ')));
}

/// The n-th of other services, and a slice of its own that leads to a port of its own.
fn other(number: usize, to: &str) -> [Value; 2] {
    let mut service = service(
        &json!({"clusterIP": format!("10.98.{}.{}", number / 200, number % 200 + 1), "ports": [{"port": 80}]}),
    );
    let mut slice = slice(&[to]);
    service["metadata"]["name"] = json!(format!("o{number}"));
    slice["metadata"] = json!({"namespace": "app", "name": format!("o{number}"), "labels": {"kubernetes.io/service-name": format!("o{number}")}});
    [service, slice]
}

/// Neither by one service with many slices, nor by many services.
#[test]
fn what_is_held_is_pushed_out_by_nothing() {
    for services in [1, 150] {
        let mut node = Node::new();
        node.former.held.most = 100;
        node.put(service(&json!({})));
        node.put(slice(&[OUTSIDE]));
        node.put(slice(&["10.1.0.2"]));
        for number in 0..services {
            let [service, mut slice] = other(number, OUTSIDE);
            node.put(service);
            for port in 1..=if services == 1 { 300 } else { 1 } {
                slice["metadata"]["name"] = json!(format!("o{number}-{port}"));
                slice["ports"] = json!([{"port": port}]);
                node.put(slice.clone());
            }
        }
        for number in 0..services {
            let [service, slice] = other(number, OUTSIDE);
            node.remove(service);
            node.remove(slice);
        }
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT), "{services}");
        for number in 0..services {
            let to = format!("10.98.{}.{}:80/TCP", number / 200, number % 200 + 1);
            assert!(!node.allows(&to), "{services}: {number}");
        }
        let most = if services == 1 { 4 } else { 2 * services + 2 };
        assert!(node.former.held.len() <= most, "{services}: {}", node.former.held.len());
        node.wait(HOLD);
        assert!(node.allows(VIP) && node.allows(NODE_PORT) && node.former.held.is_empty(), "{services}");
        assert!(node.allows("10.98.0.1:80/TCP") && !node.former.is_due(node.now), "by the prefix");
    }
}

/// What one service has led to by ever other ports closes it, and no other one.
#[test]
fn a_service_that_changes_too_often_closes_itself() {
    let mut node = Node::new();
    let [other, behind] = other(0, "10.1.0.3");
    for one in [service(&json!({})), other, behind] {
        node.put(one);
    }
    for (times, allows) in [(super::held::MOST_OF_ONE - 1, true), (2 * super::held::MOST_OF_ONE, false)] {
        for port in 1..=times {
            let mut slice = slice(&["10.1.0.3"]);
            slice["ports"] = json!([{"port": port}]);
            node.put(slice);
        }
        node.put(slice(&["10.1.0.2"]));
        assert_eq!(node.allows(VIP), allows, "{times}");
        assert!(node.allows("10.98.0.1:80/TCP") && node.former.held.len() <= super::held::MOST_OF_ONE);
        node.wait(HOLD);
        assert!(node.allows(VIP) && node.former.held.is_empty());
    }
}

/// Also to whom every address but one is open: nothing stands for what is not known.
#[test]
fn what_closes_is_open_to_nobody() {
    let mut node = Node::new();
    let to = json!([{"cidr": "0.0.0.0/0", "except": [format!("{OUTSIDE}/32")]}]);
    let spec = json!({"subjects": [{}], "allow": {"to": to}});
    node.put(object("egress-enforcer.io/v1alpha1", "EgressGatewayPolicy", ("", "p"), &json!({"spec": spec})));
    node.put(service(&json!({})));
    for port in 1..=2 * super::held::MOST_OF_ONE {
        let mut slice = slice(&[OUTSIDE]);
        slice["ports"] = json!([{"port": port}]);
        node.put(slice);
    }
    node.put(slice(&["10.1.0.2"]));
    assert!(!node.allows(VIP));
    node.wait(HOLD);
    assert!(node.allows(VIP) && node.former.held.is_empty());
    // As does a service that is gone, with too many lists of ports.
    for port in 1..=2 * super::held::MOST_OF_ONE {
        let mut slice = slice(&[OUTSIDE]);
        slice["metadata"]["name"] = json!(format!("s-{port}"));
        slice["ports"] = json!([{"port": port}]);
        node.put(slice);
    }
    node.remove(service(&json!({})));
    assert!(!node.allows(VIP));
    node.wait(HOLD);
    assert!(node.allows(VIP) && node.former.held.is_empty(), "by the prefix");
}

/// Where it led is not known, and kube-proxy may have known.
#[test]
fn what_could_not_be_read_closes_for_a_while_after_it_can_be() {
    let mut node = Node::new();
    let bad = |mut slice: Value| {
        slice["endpoints"][0]["addresses"] = json!(["here"]);
        slice
    };
    node.put(service(&json!({})));
    node.put(bad(slice(&["10.1.0.2"])));
    for number in 0..3 {
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT), "{number}");
        match number {
            0 => node.put(slice(&["10.1.0.2"])),
            1 => node.put(service(&json!({}))),
            _ => node.remove(bad(slice(&["10.1.0.2"]))),
        }
        assert!(!node.allows(VIP), "{number}");
        if number == 2 {
            node.put(slice(&["10.1.0.2"]));
        }
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT), "{number}");
        node.wait(HOLD);
        assert!(node.allows(VIP) && node.allows(NODE_PORT) && node.former.held.is_empty(), "{number}");
        match number {
            0 => node.put(service(&json!({"sessionAffinity": "None", "externalIPs": ["here"]}))),
            _ => node.put(bad(slice(&["10.1.0.2"]))),
        }
    }
}

/// Backends as they are written: address, whether ready, whether serving while terminating.
fn slice_of(name: &str, backends: &[(&str, bool, bool)]) -> Value {
    let endpoint = |(ip, ready, last): &(&str, bool, bool)| json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready | last, "terminating": last}});
    let mut slice = slice(&[]);
    slice["metadata"]["name"] = json!(name);
    slice["endpoints"] = backends.iter().map(endpoint).collect();
    slice
}

/// kube-proxy may choose what terminates and serves beside what is ready; until it has followed, as well after that has left.
#[test]
fn what_terminates_and_serves_counts_whatever_is_ready() {
    let (out, b): ((&str, bool, bool), (&str, bool, bool)) =
        ((OUTSIDE, false, true), ("10.1.0.2", true, false));
    let steps: [(&[_], &[_]); 3] =
        [(&[out], &[b]), (&[b, (OUTSIDE, true, false)], &[b, out]), (&[out], &[out, b])];
    for (number, (before, after)) in steps.into_iter().enumerate() {
        let mut node = Node::new();
        node.put(service(&json!({})));
        node.put(slice_of("s-1", before));
        assert!(!node.allows(VIP), "{number}");
        node.put(slice_of("s-1", after));
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT), "{number}");
        node.wait(HOLD);
        assert_eq!(node.allows(VIP), number == 0, "{number}");
        node.put(slice_of("s-1", &[b, (OUTSIDE, false, false)]));
        assert_eq!(node.allows(VIP), number == 0, "{number}");
        node.wait(HOLD);
        assert!(node.allows(VIP) && node.allows(NODE_PORT), "{number}");
    }
}

/// A slice with a second port, which the service does not have.
fn with_extra(mut slice: Value) -> Value {
    slice["ports"] = json!([{"port": 8080}, {"name": "extra", "port": 9999}]);
    slice
}

/// What is chosen is chosen for a service's port, whatever other ports the slices have.
#[test]
fn slices_with_other_ports_lead_by_the_same_port() {
    let (out, b) = ((OUTSIDE, false, true), ("10.1.0.2", true, false));
    for gone in [true, false] {
        let mut node = Node::new();
        node.put(service(&json!({})));
        node.put(slice_of("s-1", &[]));
        node.put(with_extra(slice_of("s-2", &[out])));
        assert!(!node.allows(VIP));
        node.put(slice_of("s-1", &[b]));
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT));
        node.wait(HOLD);
        assert!(!node.allows(VIP), "it still serves");
        if gone {
            node.remove(slice_of("s-2", &[]));
        } else {
            node.put(with_extra(slice_of("s-2", &[(OUTSIDE, false, false)])));
        }
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT));
        node.wait(HOLD);
        assert!(node.allows(VIP) && node.allows(NODE_PORT) && node.former.held.is_empty());
    }
}

#[test]
fn what_moves_to_another_slice_has_not_left() {
    let (b, c) = (("10.1.0.2", true, false), ("10.1.0.3", true, false));
    let mut node = Node::new();
    node.put(service(&json!({})));
    node.put(with_extra(slice_of("s-1", &[b, c])));
    node.put(with_extra(slice_of("s-2", &[c])));
    node.put(with_extra(slice_of("s-1", &[b])));
    assert!(node.former.held.is_empty(), "another slice has the same");
    node.put(slice_of("s-3", &[c]));
    node.put(with_extra(slice_of("s-2", &[])));
    assert_eq!(node.former.held.len(), 1, "by one port only");
    let index = &node.index;
    let held: Vec<_> = index.endpoint_slices().filter(|slice| slice.former).collect();
    let ports = |slice: &&EndpointSlice| slice.ports.iter().map(|port| port.port).collect::<Vec<_>>();
    assert_eq!(held.iter().map(ports).collect::<Vec<_>>(), [[9999]]);
}

/// By one address a port of the service can lead to two ports.
#[test]
fn two_ports_of_a_backend_are_held_both() {
    let mut node = Node::new();
    let to = json!([{"cidr": "203.0.113.7/32", "ports": [{"protocol": "TCP", "port": 8080}]}]);
    let spec = json!({"subjects": [{}], "allow": {"to": to}});
    node.put(object("egress-enforcer.io/v1alpha1", "EgressGatewayPolicy", ("", "p"), &json!({"spec": spec})));
    node.put(service(&json!({})));
    let mut other = slice_of("s-2", &[(OUTSIDE, true, false)]);
    other["ports"] = json!([{"port": 8081}]);
    node.put(slice_of("s-1", &[(OUTSIDE, true, false)]));
    assert!(node.allows(VIP));
    node.put(other);
    assert!(!node.allows(VIP));
    node.put(service(&json!({"ports": [{"port": 80}, {"port": 81}]})));
    node.put(service(&json!({"ports": [{"port": 80}], "clusterIP": "10.96.0.8"})));
    node.remove(slice_of("s-1", &[]));
    node.remove(slice_of("s-2", &[]));
    assert!(!node.allows(VIP) && !node.allows("10.96.0.8:80/TCP"));
}

/// What was ready and has left makes nothing of what is chosen in its place.
#[test]
fn what_is_held_stands_before_nothing() {
    let mut node = Node::new();
    node.put(service(&json!({})));
    node.put(slice_of("s-1", &[("10.1.0.2", true, false), (OUTSIDE, false, true)]));
    assert!(!node.allows(VIP) && !node.allows(NODE_PORT));
    node.put(slice_of("s-1", &[(OUTSIDE, false, true)]));
    assert!(!node.former.held.is_empty() && !node.allows(VIP) && !node.allows(NODE_PORT));
    node.wait(HOLD);
    assert!(node.former.held.is_empty() && !node.allows(VIP) && !node.allows(NODE_PORT));
}

/// What a policy opens behind a service is closed at once.
#[test]
fn what_is_held_opens_nothing() {
    let mut node = Node::new();
    let to = json!([{"service": {"namespace": "app", "name": "s"}}]);
    let spec = json!({"subjects": [{}], "allow": {"inCluster": false, "to": to}});
    node.put(object("egress-enforcer.io/v1alpha1", "EgressGatewayPolicy", ("", "p"), &json!({"spec": spec})));
    node.put(service(&json!({})));
    node.put(slice(&["10.1.0.2", "10.1.0.3"]));
    assert!(node.allows(VIP) && node.allows("10.1.0.2:8080/TCP"));
    node.put(slice(&["10.1.0.3"]));
    assert!(!node.allows("10.1.0.2:8080/TCP") && node.allows("10.1.0.3:8080/TCP"));
    assert!(!node.allows(VIP), "it may still lead there");
    node.wait(HOLD);
    assert!(node.allows(VIP) && !node.allows("10.1.0.2:8080/TCP"));
}

/// A slice of another service with a port that is none.
fn stopping(name: &str, port: i64) -> Value {
    let mut slice = slice(&["10.1.0.3"]);
    slice["metadata"]["name"] = json!(name);
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "other"});
    slice["ports"] = json!([{"name": "a", "port": 80}, {"name": "b", "port": port}]);
    slice
}

#[test]
fn nothing_is_let_go_of_while_kube_proxy_has_stopped() {
    for port in [73_616, -57_456] {
        let mut node = Node::new();
        node.put(service(&json!({})));
        node.put(slice(&[OUTSIDE]));
        node.put(stopping("x", port));
        node.put(stopping("y", 65_536));
        node.put(slice(&["10.1.0.2"]));
        node.wait(100 * HOLD);
        assert!(!node.allows(VIP) && !node.allows(NODE_PORT) && !node.former.is_due(node.now));
        let told: Vec<_> = node.former.stopped().collect();
        assert!(told[0].starts_with("EndpointSlice app/x has a port that is none"), "{told:?}");
        // Of one, and then of the other: it takes its time until kube-proxy tries again.
        node.put(stopping("x", 81));
        node.wait(100 * HOLD);
        assert!(!node.allows(VIP) && node.former.stopped().count() == 1);
        node.remove(stopping("y", 0));
        node.wait(Duration::from_secs(20));
        assert!(!node.allows(VIP) && node.former.stopped().count() == 0);
        node.put(service(&json!({"clusterIP": "10.96.0.8"})));
        node.wait(Duration::from_secs(15));
        assert!(!node.allows(VIP), "also what came since");
        node.wait(HOLD);
        assert!(node.allows(VIP) && node.allows(NODE_PORT) && node.former.held.is_empty());
        node.put(slice(&[OUTSIDE]));
        node.put(slice(&["10.1.0.2"]));
        node.wait(HOLD);
        assert!(node.allows("10.96.0.8:80/TCP"), "no longer than ever");
    }
}

/// Those at which it does not stop: what it leaves out, and slices that are not its own.
#[test]
fn slices_that_kube_proxy_can_read_stop_nothing() {
    let mut node = Node::new();
    let labelled = |name: &str, label: &str, value: Option<&str>| {
        let mut slice = stopping(name, 73_616);
        slice["metadata"]["labels"][label] = json!(value);
        if value.is_none() {
            slice["metadata"]["labels"] = json!({});
        }
        slice
    };
    node.put(service(&json!({})));
    node.put(slice(&[OUTSIDE]));
    node.put(stopping("x", 0));
    node.put(stopping("y", 65_535));
    node.put(labelled("z", "service.kubernetes.io/headless", Some("")));
    node.put(labelled("u", "kubernetes.io/service-name", None));
    node.put(slice(&["10.1.0.2"]));
    assert!(!node.allows(VIP));
    node.wait(HOLD);
    assert!(node.allows(VIP) && node.former.stopped().count() == 0);
}

#[test]
fn what_there_is_no_room_for_closes() {
    let mut node = Node::new();
    node.put(service(&json!({})));
    let many = |number: usize| -> Vec<String> {
        (0..number).map(|i| format!("10.{}.{}.{}", 2 + i / 62500, i / 250 % 250, i % 250 + 1)).collect()
    };
    for (number, allows) in [(9, true), (super::held::MOST_BACKENDS + 9, false)] {
        let all = many(number);
        node.put(slice(&all.iter().map(String::as_str).collect::<Vec<_>>()));
        assert!(node.allows(VIP), "each of them is");
        node.put(slice(&["10.1.0.2"]));
        assert_eq!(node.allows(VIP), allows, "{number}");
        node.wait(HOLD);
        assert!(node.allows(VIP));
    }
}

/// What kube-proxy has left alone by now leaves the node.
#[test]
fn addresses_of_services_that_are_gone_have_to_be_allowed_themselves() {
    let balanced = |ip: &str| {
        let mut service = service(&json!({"type": "LoadBalancer"}));
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"}]}});
        service
    };
    let mut node = Node::new();
    node.put(balanced("198.51.100.9"));
    node.put(slice(&["10.1.0.2"]));
    assert!(node.allows("198.51.100.9:80/TCP"));
    node.remove(balanced("198.51.100.9"));
    assert!(!node.allows("198.51.100.9:80/TCP"));
}

/// It is where its own slice says, at once: one server of several may leave.
#[test]
fn the_api_server_is_not_closed_by_a_server_that_leaves() {
    let mut node = Node::new();
    let spec = json!({"subjects": [{}], "allow": {"inCluster": false, "apiServer": true}});
    node.put(object("egress-enforcer.io/v1alpha1", "EgressGatewayPolicy", ("", "p"), &json!({"spec": spec})));
    let of = |mut value: Value, name: &str| {
        value["metadata"]["namespace"] = json!("default");
        value["metadata"]["name"] = json!(name);
        value
    };
    let servers = |addresses: &[&str]| {
        let mut slice = of(slice(addresses), "kubernetes");
        slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "kubernetes"});
        slice
    };
    node.put(of(service(&json!({})), "kubernetes"));
    node.put(servers(&["203.0.113.1", "203.0.113.2"]));
    assert!(node.allows(VIP));
    node.put(servers(&["203.0.113.2"]));
    assert!(node.allows(VIP) && !node.allows("203.0.113.1:8080/TCP"));
}
