//! Row 8, by pods of the same node that are not locked down, or only audited: what they say in the name of others.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use egress_common::wire::{Witness, WitnessKey};
use egress_probe::packet::{Packet, to_hex};
use egress_topology::{BRIDGE_V4, Container, Exec, Pod, PodSpec, cgroup_id};
use serde_json::json;

use crate::attack::{BRIDGE_MAC, NET_ADMIN, attack, unique};
use crate::common::{endpoints, eventually, pinned_hash};
use crate::range::{At, Range};
use crate::replies::{answered, outside, own};

/// A pod `c/audited` under a policy that audits.
fn audited(range: &Range) -> Container {
    range.stand.write(json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy", "metadata": {"name": "audit"},
        "spec": {
            "enforcement": "Audit", "gateways": [], "allow": {"inCluster": false},
            "subjects": [{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "c"}}}],
        },
    }));
    let pod = range.stand.pod(PodSpec::new("c", "audited"));
    let known = |one: &serde_json::Value| one["name"] == "audited" && one["addresses"] != json!([]);
    eventually("the audited pod is known", || endpoints(&range.stand.agent).iter().any(known));
    pod
}

/// A frame with two VLAN tags that name no VLAN, which kernels take off.
const TAGGED_TWICE: &str = "a frame tagged twice";

fn inject(from: &Container, packet: &str, via: &str) {
    let (ethertype, under) = (0x8100.to_string(), format!("00000800{packet}"));
    let to = ["--destination-mac", BRIDGE_MAC];
    let words = match via {
        TAGGED_TWICE => {
            ["inject", &under, "--via", "frame", "--vlan", "0", "--ethertype", &ethertype].to_vec()
        }
        via => ["inject", packet, "--via", via].to_vec(),
    };
    assert!(from.attempt(&[words, to.to_vec()].concat()).unwrap().succeeded());
}

#[test]
fn row_8_a_question_that_an_audited_neighbour_forges() {
    let mut range = Range::new(json!({}));
    let audited = audited(&range);
    for via in ["frame", "raw"] {
        let neighbour = audited.clone();
        let name = format!("an answer to an audited neighbour's forgery via {via}");
        let forged = answered(&name, move |_, hex| inject(&neighbour, hex, via));
        let (peer, locked) = (range.peer.clone(), range.locked.clone());
        range.prove_arrives(At::Outside, &peer, std::slice::from_ref(&forged));
        range.prove_stopped(At::Outside, &locked, &[forged]);
    }
    range.lawful();
}

/// A neighbour asks a server outside in the name of the locked-down pod: what comes back has been asked for by nobody there.
#[test]
fn row_8_a_neighbour_that_asks_in_the_name_of_the_locked_down_pod() {
    let mut range = Range::new(json!({}));
    let audited = audited(&range);
    let (port, locked) = (unique().1, range.locked.clone());
    let echo = Exec::probe(["serve-udp", "--port", &port.to_string()]);
    let mut server = range.stand.topology.outside_exec(&echo).unwrap();
    server.wait_ready(Duration::from_secs(5)).unwrap();
    let ways = ["raw", "frame", TAGGED_TWICE];
    for (neighbour, via) in [&range.free, &audited].into_iter().flat_map(|one| ways.map(|via| (one, via))) {
        let from = neighbour.clone();
        let reflected =
            attack(&format!("an answer to what {} asked via {via}", from.pod().name()), move |shot| {
                let to = SocketAddr::new(shot.to().ip(), port);
                let asked = Packet::udp(SocketAddr::new(shot.from().ip(), shot.port), to, b"asked");
                inject(&from, &to_hex(&asked.bytes().unwrap()), via);
                std::thread::sleep(Duration::from_millis(100));
                let (to, source) = (to.to_string(), shot.port.to_string());
                shot.probe(&[
                    "udp",
                    &to,
                    "--source-port",
                    &source,
                    "--payload",
                    &shot.tag,
                    "--timeout-ms",
                    "100",
                ])
            });
        let fired = range.fire(&locked, &[reflected.by_tag()]);
        range.outside.look();
        assert!(fired.iter().all(|shot| range.outside.seen.iter().all(|frame| !shot.is_in(frame))), "{via}");
        let seen = pinned_hash::<WitnessKey, Witness>(&range.stand, "egress_inbound");
        let cgroup = cgroup_id(locked.pod().cgroup()).unwrap();
        let asks = |(_, seen): &(WitnessKey, Witness)| seen.cgroup == cgroup && seen.remote_port == port;
        assert_eq!(seen.iter().flatten().filter(asks).count(), 0, "{via}");
    }
    let name = |one: &str| format!("{}/{}", if one == "free" { "b" } else { "c" }, one);
    for one in ["free", "audited"] {
        eventually("the flow log tells of it", || {
            let flows = range.stand.agent.flows().unwrap();
            flows.iter().any(|flow| {
                flow["pod"] == name(one).as_str()
                    && flow["reason"] == "SpoofedSource"
                    && flow["action"] == "deny"
            })
        });
    }
    // In their own names, and in those of nobody here, they say what they like.
    for neighbour in [&range.free.clone(), &audited] {
        for v6 in [false, true] {
            let target = SocketAddr::new(outside(v6), port).to_string();
            assert!(neighbour.attempt(&["udp", &target]).unwrap().succeeded());
        }
    }
    let free = range.free.clone();
    range.prove_arrives(
        At::Outside,
        &free,
        &[crate::frames::injected("a forged source", "raw", &[], |shot| {
            Packet::udp(SocketAddr::new(shot.foreign(), 1), shot.to(), shot.tag.as_bytes())
        })],
    );
    range.lawful();
}

/// The hardware address that a pod has for an IPv4 address of its link.
fn heard(pod: &Container, of: &str) -> String {
    let shown = run(pod, &format!("ip -4 neigh show {of}"));
    hardware(&shown, "lladdr")
}

/// The word after this one.
fn hardware(shown: &str, word: &str) -> String {
    shown.split_whitespace().skip_while(|one| *one != word).nth(1).unwrap_or_default().to_owned()
}

fn run(pod: &Container, script: &str) -> String {
    let exec = Exec::new("/bin/sh", ["-ec", script]).capabilities(NET_ADMIN);
    let finished = pod.spawn(&exec).unwrap().finish(Duration::from_secs(10)).unwrap();
    assert!(finished.status.success(), "{script}: {}{}", finished.stdout, finished.stderr);
    finished.stdout
}

/// Asks the locked-down pod's hardware address in the name of `claimed`, which is what it then hears of that one.
fn claim(by: &Container, claimed: &str, to: &Pod, probe: &Path) {
    let (to, probe) = (to.v4(), probe.display());
    let script = format!(
        "ip addr add {claimed}/32 dev eth0; ip route replace {to} dev eth0 src {claimed}
         {probe} udp {to}:9 --timeout-ms 300 >/dev/null || true
         ip route del {to} dev eth0; ip addr del {claimed}/32 dev eth0; ip neigh flush dev eth0"
    );
    run(by, &script);
}

#[test]
fn row_8_a_neighbour_that_says_that_another_ones_address_is_its_own() {
    let range = Range::new(json!({}));
    let (locked, free, peer) = (&range.locked, &range.free, &range.peer);
    let (bridge, probe) = (BRIDGE_V4.to_string(), range.stand.topology.probe());
    assert_eq!(heard(locked, &bridge), BRIDGE_MAC);
    // Of an address that nobody here has it is believed.
    claim(free, "10.244.1.200", locked.pod(), probe);
    let own_mac = hardware(&run(free, "ip -o link show eth0"), "link/ether");
    assert_eq!(heard(locked, "10.244.1.200"), own_mac);
    for claimed in [bridge, own(peer, false).to_string()] {
        claim(free, &claimed, locked.pod(), probe);
        assert_ne!(heard(locked, &claimed), own_mac, "{claimed}");
    }
    range.lawful();
}
