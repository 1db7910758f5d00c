//! The node's addresses that its Node object does not have. Real agent, real kernel.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Stand, UDP, denied, entries, eventually, outside, passes};
use egress_probe::{Attempt, Outcome};
use egress_topology::{BRIDGE_V4, BRIDGE_V6, CgroupDriver, Exec, OUTSIDE_V4, PodSpec, kubernetes};
use serde_json::json;

/// The port of the server in a pod.
const TCP: u16 = 8080;

/// An address of a device of the node by which it reaches no pod, as kube-proxy has one with the addresses of services.
const ELSEWHERE: &str = "192.0.2.77";

/// A node port of a service with something outside behind it.
const LEADS_OUT: u16 = 30_666;

/// What the node itself asks of a pod, as kubelet's probes do.
fn asked_by_node(stand: &Stand, address: &str) -> Attempt {
    let words = ["tcp", &format!("{address}:{TCP}"), "--timeout-ms", "1500"];
    stand.topology.node_exec(&Exec::probe(words)).unwrap().output_json(Duration::from_secs(5)).unwrap()
}

#[test]
fn a_pod_born_while_no_agent_runs_answers_its_node() {
    let mut stand = Stand::new(CgroupDriver::Cgroupfs);
    // The first of the bridge's ports.
    let _peer = stand.peer();
    stand.write(kubernetes::node(&stand.topology));
    stand.start();
    stand.agent.kill().unwrap();
    let born = stand.topology.add_pod(PodSpec::new("b", "born")).unwrap().add_container("app").unwrap();
    let _server = born.serve(&Exec::probe(["serve-echo", "--port", &TCP.to_string()])).unwrap();
    for address in [born.pod().v4().to_string(), format!("[{}]", born.pod().v6())] {
        let attempt = asked_by_node(&stand, &address);
        assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
    }
    outside().iter().for_each(|address| denied(&born, address));
    // By other protocols it does not get to its node.
    denied(&born, BRIDGE_V4);
}

#[test]
fn the_bridge_is_the_node_and_other_devices_are_not() {
    let mut stand = Stand::new(CgroupDriver::Cgroupfs);
    stand.topology.node().ip(&["link add other type bridge", "link set other up"]).unwrap();
    stand.topology.node().add_address("other", ELSEWHERE.parse().unwrap(), 32).unwrap();
    let serve = Exec::probe(["serve-udp", "--port", &UDP.to_string()]);
    let mut server = stand.topology.node_exec(&serve).unwrap();
    server.wait_ready(Duration::from_secs(5)).unwrap();
    stand.servers.push(server);
    let bridge = [BRIDGE_V4.to_string(), format!("[{BRIDGE_V6}]")];

    // Nothing is known of a node without its object.
    stand.lock_down(json!({"allow": {"node": true}}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    bridge.iter().for_each(|address| denied(&pod, address));
    let before = entries(&stand.agent, "egress_ipcache");
    stand.write(kubernetes::node(&stand.topology));
    eventually("the node is known", || entries(&stand.agent, "egress_ipcache") == before + 4);
    bridge.iter().for_each(|address| passes(&pod, address));
    denied(&pod, ELSEWHERE);

    // What is the node's is allowed to nobody by that.
    stand.lock_down(json!({}));
    eventually("the policy is in force", || common::udp(&pod, BRIDGE_V4).outcome == Outcome::Denied);
    bridge.iter().for_each(|address| denied(&pod, address));

    // An address that the bridge gets later is found, and one that it loses is forgotten.
    stand.lock_down(json!({"allow": {"node": true}}));
    stand.topology.node().add_address("cni0", "10.244.1.254".parse().unwrap(), 32).unwrap();
    eventually("the new address is the node's", || entries(&stand.agent, "egress_ipcache") == before + 5);
    // The server answers by the first address.
    assert_eq!(common::udp(&pod, "10.244.1.254").outcome, Outcome::Timeout);
    stand.topology.node().ip(&["addr del 10.244.1.254/32 dev cni0"]).unwrap();
    eventually("it is nobody's", || entries(&stand.agent, "egress_ipcache") == before + 4);
    denied(&pod, "10.244.1.254");

    // Where a prefix with it is allowed, ports of the node that lead out are not.
    let node_port = json!({"name": "out", "port": 80, "protocol": "UDP", "nodePort": LEADS_OUT});
    stand.write(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "b", "name": "out"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.99", "ports": [node_port]}}));
    stand.write(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "b", "name": "out-1", "labels": {"kubernetes.io/service-name": "out"}},
        "ports": [{"name": "out", "port": UDP, "protocol": "UDP"}],
        "endpoints": [{"addresses": [OUTSIDE_V4], "conditions": {"ready": true}}]}));
    stand.lock_down(json!({"allow": {"node": true, "to": [{"cidr": "192.0.2.0/24"}]}}));
    // The server answers by another address.
    eventually("the policy is in force", || common::udp(&pod, ELSEWHERE).outcome == Outcome::Timeout);
    let at = |port: u16| {
        let target = format!("{ELSEWHERE}:{port}");
        pod.attempt(&["udp", &target, "--timeout-ms", "300"]).unwrap().outcome
    };
    eventually("the port is denied", || at(LEADS_OUT) == Outcome::Denied);
    assert_ne!(at(LEADS_OUT + 1), Outcome::Denied);
}
