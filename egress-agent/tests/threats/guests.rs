//! Row 15, where what is a pod's own is not plain: processes of other pods in its network, sockets that are shown what is others', and
//! hooks that somebody removes.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use egress_agent::datapath::{VETH_PROGRAM, WITNESS_PROGRAM};
use egress_probe::Attempt;
use egress_probe::packet::{Packet, to_hex};
use egress_topology::{Container, Exec, OUTSIDE_V4, PodSpec};
use serde_json::{Value, json};

use crate::attack::{BRIDGE_MAC, unique};
use crate::common::{COVERED, endpoints, eventually};
use crate::range::Range;

/// Longer than from one look at the pods to the next.
const A_LOOK: Duration = Duration::from_secs(6);

fn state(range: &Range, name: &str) -> Value {
    let endpoints = endpoints(&range.stand.agent);
    endpoints.into_iter().find(|one| one["name"] == name).unwrap_or(Value::Null)
}

/// Whether a frame with somebody else's source gets out of a pod.
fn forges(range: &mut Range, from: &Container) -> bool {
    let tag = unique().0;
    let packet = Packet::udp(
        "192.0.2.7:4000".parse().unwrap(),
        SocketAddr::new(OUTSIDE_V4.into(), 4001),
        tag.as_bytes(),
    );
    let hex = to_hex(&packet.bytes().unwrap());
    let words = ["inject", &hex, "--via", "frame", "--destination-mac", BRIDGE_MAC];
    assert!(from.attempt(&words).unwrap().succeeded());
    // What passes arrives after it.
    range.lawful_of(from);
    range.outside.look();
    range.outside.count(&tag) > 0
}

/// A process of a pod that nothing selects is in the network of the locked one, as who debugs from a privileged pod: the veth stays
/// whose it is, while the guest is there, when it has gone, and for agents that start with it.
#[test]
fn row_15_a_process_of_another_pod_in_the_pods_network() {
    let mut range = Range::new(json!({}));
    let (free, locked) = (range.free.clone(), range.locked.clone());
    assert!(forges(&mut range, &free), "it would get out");
    assert!(!forges(&mut range, &locked));
    let guest = free.spawn_in(&Exec::new("/usr/bin/sleep", ["120"]), locked.pod()).unwrap();
    sleep(A_LOOK);
    for when in ["with a guest", "after a restart"] {
        assert!(!forges(&mut range, &locked), "{when}");
        range.lawful();
        assert_eq!(state(&range, "locked")["coverage"], COVERED[0], "{when}");
        let veths = state(&range, "locked")["veths"][0].as_str().unwrap().to_owned();
        assert_eq!(state(&range, "free")["coverage"], format!("socket+veth, not {veths}"), "{when}");
        range.stand.agent.kill().unwrap();
        range.stand.start();
    }
    guest.kill().unwrap();
    sleep(A_LOOK);
    assert!(!forges(&mut range, &locked), "after the guest");
    assert_eq!(range.stand.agent.status().unwrap()["errors"], json!([]));
    range.lawful();
}

/// An agent that finds a guest when it starts for the first time takes the pod for the owner that is at home nowhere else.
#[test]
fn row_15_a_guest_that_was_there_first() {
    let mut range = Range::without_agent(json!({}));
    let (free, locked) = (range.free.clone(), range.locked.clone());
    let guest = free.spawn_in(&Exec::new("/usr/bin/sleep", ["120"]), locked.pod()).unwrap();
    range.stand.start();
    range.lawful();
    eventually("covered", || state(&range, "locked")["coverage"] == COVERED[0]);
    assert!(!forges(&mut range, &locked));
    guest.kill().unwrap();
}

/// A raw socket of a pod of the node's network is shown what comes in to the node: that is no question to the pod.
#[test]
fn row_8_what_a_raw_socket_is_shown_was_not_asked() {
    let mut range = Range::new(json!({}));
    let host = range.stand.pod(PodSpec::new("a", "host").host_network());
    eventually("the pod is known", || state(&range, "host")["state"] == "Isolated");
    let port = unique().1.to_string();
    let mut server = range.stand.topology.outside_exec(&Exec::probe(["serve-udp", "--port", &port])).unwrap();
    server.wait_ready(Duration::from_secs(5)).unwrap();
    let target = format!("{OUTSIDE_V4}:{port}");
    let node_asks = |range: &Range, source: &str| {
        let words = ["udp", &target, "--source-port", source, "--timeout-ms", "1000"];
        let node = range.stand.topology.node_exec(&Exec::probe(words)).unwrap();
        let node: Attempt = node.output_json(Duration::from_secs(5)).unwrap();
        assert!(node.succeeded(), "{node:?}");
    };
    let gets_out = |range: &mut Range, source: &str| {
        let tag = unique().0;
        let words = ["udp", &target, "--source-port", source, "--payload", &tag, "--timeout-ms", "500"];
        let _denied = host.attempt(&words).unwrap();
        range.lawful_of(&range.locked);
        range.outside.look();
        range.outside.count(&tag) > 0
    };
    node_asks(&range, "40101");
    assert!(!gets_out(&mut range, "40101"));
    let raw = host.serve(&Exec::probe(["keep-raw"])).unwrap();
    node_asks(&range, "40102");
    assert!(!gets_out(&mut range, "40102"));
    drop(raw);
}

/// One of the two hooks of a veth is removed by hand: both are there again soon.
#[test]
fn row_15_a_hook_that_somebody_removes() {
    let mut range = Range::new(json!({}));
    let locked = range.locked.clone();
    let end = locked.pod().host_interface().unwrap();
    let index = range.stand.topology.node().interface_index(end).unwrap();
    for program in [WITNESS_PROGRAM, VETH_PROGRAM] {
        // Filters of tc, which older kernels have instead, are held by no pin.
        let name = format!("/link_{program}_{index}");
        let pins = range.stand.agent.pins().unwrap();
        let Some(pin) = pins.into_iter().find(|pin| pin.to_string_lossy().ends_with(&name)) else { continue };
        std::fs::remove_file(&pin).unwrap();
        eventually(&format!("{program} is there again"), || {
            pin.exists() && state(&range, "locked")["coverage"] == COVERED[0]
        });
        eventually("nothing is wrong", || range.stand.agent.status().unwrap()["errors"] == json!([]));
        assert!(!forges(&mut range, &locked), "{program}");
    }
    range.lawful();
    crate::replies::what_came_in(&mut range);
}
