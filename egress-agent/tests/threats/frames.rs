//! Rows 2, 3 and 7: packets and frames that the attacker makes byte by byte.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use egress_common::wire::{WITNESS_FRAGMENT, Witness, WitnessKey};
use egress_probe::packet::{ACK, Packet, SYN};
use egress_topology::{Agent, Container, Netns, PodSpec, cgroup_id, kubernetes};
use serde_json::json;

use crate::attack::{Attack, BRIDGE_MAC, SOURCE_PORT, Shot, attack};
use crate::common::{COVERED, UDP, endpoints, eventually, pinned_hash, pod_object};
use crate::range::{At, Range};

/// A datagram with the tag to the outside.
pub(crate) fn datagram(shot: &Shot<'_>) -> Packet {
    Packet::udp(shot.from(), shot.to(), shot.tag.as_bytes())
}

fn forged_source(shot: &Shot<'_>) -> Packet {
    Packet::udp(SocketAddr::new(shot.foreign(), SOURCE_PORT), shot.to(), shot.tag.as_bytes())
}

/// An attack that injects what `make` makes.
pub(crate) fn injected(
    name: &str,
    via: &'static str,
    more: &'static [&'static str],
    make: impl Fn(&Shot<'_>) -> Packet + 'static,
) -> Attack {
    attack(&format!("{name} via {via}"), move |shot| shot.inject(via, &make(shot).bytes().unwrap(), more))
}

/// Whole packets by raw sockets.
pub(crate) fn raw() -> Vec<Attack> {
    let syn = |shot: &Shot<'_>| Packet::tcp(shot.from(), shot.to(), SYN, &[]);
    let echo = |shot: &Shot<'_>| Packet::echo(shot.from().ip(), shot.to().ip(), shot.tag.as_bytes());
    let unknown = |shot: &Shot<'_>| Packet::new(shot.from().ip(), shot.to().ip(), 253, shot.tag.as_bytes());
    vec![
        injected("a datagram", "raw", &[], datagram).reason("NotAllowed"),
        injected("a SYN", "raw", &[], syn).reason("NotAllowed"),
        injected("an echo request", "raw", &[], echo).reason("NotAllowed"),
        injected("a forged source", "raw", &[], forged_source).reason("SpoofedSource"),
        injected("an unknown protocol", "raw", &[], unknown).reason("UnknownProtocol"),
        injected("a datagram", "protocol", &[], datagram).reason("NotAllowed"),
        injected("a SYN", "protocol", &[], syn).reason("NotAllowed"),
        injected("an unknown protocol", "protocol", &[], unknown).reason("UnknownProtocol"),
    ]
}

/// Frames of IP by packet sockets.
pub(crate) fn frames(reason: Option<&'static str>) -> Vec<Attack> {
    let segment = |shot: &Shot<'_>| Packet::tcp(shot.from(), shot.to(), ACK, shot.tag.as_bytes());
    let attacks = vec![
        attack("a frame by the packet verb", |shot| {
            let (target, port) = (shot.to().ip().to_string(), shot.port.to_string());
            shot.probe(&[
                "packet",
                &target,
                "--port",
                &port,
                "--payload",
                &shot.tag,
                "--destination-mac",
                BRIDGE_MAC,
            ])
        }),
        injected("a datagram", "frame", &[], datagram),
        injected("a forged source", "frame", &[], forged_source),
        injected("a segment", "frame", &[], segment),
        injected("a datagram", "bypass", &[], datagram),
        injected("a datagram", "ring", &[], datagram),
        injected("a datagram", "cooked", &[], datagram),
    ];
    let mut attacks: Vec<_> = attacks.into_iter().map(|attack| attack.reason_if(reason)).collect();
    attacks.push(injected("a datagram", "xdp", &[], datagram));
    attacks.push(injected("a forged source", "xdp", &[], forged_source));
    attacks
}

#[test]
fn row_2_raw_sockets() {
    let mut range = Range::new(json!({}));
    range.prove(&raw());
    // What the policy allows, a raw socket may send too.
    let lawful = injected("a datagram", "raw", &[], |shot| {
        let to = SocketAddr::new(shot.to().ip(), crate::common::UDP);
        Packet::udp(shot.from(), to, shot.tag.as_bytes())
    });
    let locked = range.locked.clone();
    range.prove_arrives(At::Outside, &locked, &[lawful]);
}

#[test]
fn row_3_packet_sockets() {
    packet_sockets(&mut Range::new(json!({})));
}

/// Row 3, with and without an agent.
pub(crate) fn packet_sockets(range: &mut Range) {
    range.prove(&frames(Some("PacketSocket")));
    // What never leaves the node by its IP layer, but must not even reach the node.
    let fill = |shot: &Shot<'_>| datagram(shot);
    range.prove_at(
        At::Bridge,
        &[
            injected("an 802.1Q tag", "frame", &["--vlan", "7"], fill),
            injected("an experimental type", "frame", &["--ethertype", "34997"], fill),
            injected("an experimental type", "cooked", &["--ethertype", "34997"], fill),
            injected("the type of MPLS", "frame", &["--ethertype", "34887"], fill),
            injected("the type of PPPoE", "frame", &["--ethertype", "34916"], fill),
            injected("IP under the wrong type", "frame", &["--ethertype", "2054"], fill),
        ],
    );
    range.stand.agent.kill().unwrap();
    range.prove(&frames(None));
}

/// Whether the kernel asks about new sockets; where it does not, the agent says so, and what is said to be weaker then is.
fn refuses_packet_sockets(agent: &Agent) -> bool {
    let status = agent.status().unwrap();
    let named = status["hooks"].as_array().unwrap().iter().any(|hook| hook["program"] == "egress_create");
    let lacks = status["lacks"].as_array().unwrap();
    // Shown in the guests of `test --vm`: who asks BPF must be made use of, unless somebody forbids it (EPERM).
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let forbidden = lacks.iter().any(|lack| lack.as_str().unwrap().contains("Operation not permitted"));
    assert!(named || forbidden || !modules.split(',').any(|module| module.trim() == "bpf"), "{status}");
    assert_eq!(
        lacks.iter().any(|lack| lack.as_str().unwrap().contains("packet sockets of pods")),
        !named,
        "{status}"
    );
    named
}

#[test]
fn row_10_packet_sockets_of_a_pod_that_is_born_while_no_agent_runs() {
    let mut range = Range::new(json!({}));
    let refused = refuses_packet_sockets(&range.stand.agent);
    let attacked = range.free.clone();
    range.stand.agent.kill().unwrap();
    let [free, locked] = ["b", "a"].map(|namespace| range.stand.pod(PodSpec::new(namespace, "born")));
    range.prove_arrives(At::Bridge, &attacked, &frames(None));
    if refused {
        range.prove_stopped(At::Bridge, &locked, &frames(None));
        // Nobody knows yet that no policy selects it.
        range.prove_stopped(At::Bridge, &free, &frames(None));
    } else {
        range.prove_arrives(At::Bridge, &locked, &frames(None));
    }
    range.stand.start();
    range.prove_arrives(At::Bridge, &free, &frames(None));
    eventually("both are covered", || {
        let known = endpoints(&range.stand.agent);
        known.iter().filter(|one| one["name"] == "born" && one["coverage"] == COVERED[0]).count() == 2
    });
    // What was refused before is told now, with the process; what it may make now is judged frame by frame.
    let asked = |flow: &serde_json::Value| {
        flow["hook"] == "connect"
            && flow["reason"] == "PacketSocket"
            && flow["process"]["command"] == "egress-probe"
    };
    assert_eq!(
        range.stand.agent.flows().unwrap().iter().any(asked),
        refused,
        "{:?}",
        range.stand.agent.flows()
    );
    range.prove_stopped(At::Bridge, &locked, &frames(Some("PacketSocket")));
    range.lawful_of(&locked);
}

/// The veth hook sees nothing of what leaves by other devices, and nothing of what leaves the node's own network.
#[test]
fn row_15_packet_sockets_where_no_veth_hook_is() {
    let mut range = Range::new(json!({}));
    let by = |interface: &'static str| {
        let frame = move |shot: &Shot<'_>| {
            let (from, target, port) =
                (shot.from().ip().to_string(), shot.to().ip().to_string(), shot.port.to_string());
            let words = ["packet", &target, "--interface", interface, "--from", &from, "--port", &port];
            shot.probe(
                &[&words[..], &["--payload", &shot.tag, "--destination-mac", "ff:ff:ff:ff:ff:ff"]].concat(),
            )
        };
        [attack("a frame of a packet socket", frame)]
    };
    let node = range.stand.topology.node().clone();
    let macvlan = |container: &Container, name: &str| {
        let netns = container.pod().netns();
        node.ip(&[format!(
            "link add {name} link uplink netns {} type macvlan mode bridge",
            netns.path().display()
        )])
        .unwrap();
        netns.ip(&[format!("link set {name} up")]).unwrap();
    };
    let refused = refuses_packet_sockets(&range.stand.agent);
    let prove = |range: &mut Range, locked: &Container, frames: &[Attack]| {
        if refused {
            range.prove_stopped(At::Outside, locked, frames);
        } else {
            range.prove_arrives(At::Outside, locked, frames);
        }
    };
    let (free, locked) = (range.free.clone(), range.locked.clone());
    macvlan(&free, "net1");
    range.prove_arrives(At::Outside, &free, &by("net1"));
    macvlan(&locked, "net1");
    eventually("the device is known", || {
        let known = endpoints(&range.stand.agent);
        known
            .iter()
            .any(|one| one["name"] == "locked" && one["coverage"] == "socket+veth, not net1 (macvlan)")
    });
    prove(&mut range, &locked, &by("net1"));
    range.prove_stopped(At::Outside, &locked, &by("eth0"));
    let [free, locked] =
        ["b", "a"].map(|namespace| range.stand.pod(PodSpec::new(namespace, "host").host_network()));
    eventually("both are known", || range.stand.agent.status().unwrap()["unknown_pods"] == 0);
    range.prove_arrives(At::Outside, &free, &by("uplink"));
    prove(&mut range, &locked, &by("uplink"));
    range.lawful();
}

#[test]
fn row_15_who_had_a_way_past_the_veth_hook_stays_mistrusted() {
    let mut range = Range::new(json!({}));
    let trusted = |range: &Range| {
        let pods = pinned_hash::<u64, u32>(&range.stand, "egress_covered");
        [&range.locked, &range.free]
            .map(|container| pods.get(&cgroup_id(container.pod().cgroup()).unwrap(), 0).is_ok())
    };
    let coverage = |range: &Range, wanted: &str| {
        let known = endpoints(&range.stand.agent);
        known.iter().any(|one| one["name"] == "locked" && one["coverage"] == wanted)
    };
    assert_eq!(trusted(&range), [true; 2]);
    let netns = range.locked.pod().netns();
    let made = format!("link add net1 link uplink netns {} type macvlan mode bridge", netns.path().display());
    range.stand.topology.node().ip(&[made]).unwrap();
    eventually("the device is known", || coverage(&range, "socket+veth, not net1 (macvlan)"));
    assert_eq!(trusted(&range), [false, true]);
    // Into a network within the pod, of which no process tells that it belongs to it.
    let within = Netns::new("egress-test-within").unwrap();
    let moved = format!("link set net1 netns {}", within.path().display());
    netns.ip(&[moved]).unwrap();
    eventually("it is not seen any more", || coverage(&range, COVERED[0]));
    assert_eq!(trusted(&range), [false, true]);
    // Nor does the next agent know where it is.
    range.stand.agent.kill().unwrap();
    range.stand.start();
    eventually("it is covered again", || coverage(&range, COVERED[0]));
    range.lawful();
    assert_eq!(trusted(&range), [false, true]);
}

#[test]
fn row_3_a_device_whose_name_is_no_text() {
    let mut range = Range::new(json!({}));
    range.stand.agent.kill().unwrap();
    let name = OsStr::from_bytes(b"\xff");
    let made = range.locked.pod().netns().run(|| {
        Ok(Command::new("ip")
            .args(["link", "add", "name"])
            .arg(name)
            .args(["type", "bridge"])
            .status()?
            .success())
    });
    assert!(made.unwrap());
    let pod = range.stand.pod(PodSpec::new("a", "later"));
    range.stand.start();
    eventually("all are covered", || {
        let known = endpoints(&range.stand.agent);
        let covered = |name: &str| {
            let mut found = known.iter().filter(|one| one["name"] == name);
            found.any(|one| one["coverage"].as_str().unwrap().starts_with("socket+veth"))
        };
        covered("locked") && covered("later")
    });
    for container in [range.locked.clone(), pod] {
        range.prove_stopped(At::Outside, &container, &frames(None));
        range.lawful_of(&container);
    }
}

/// Headers that hide where a packet goes or what it is.
fn odd(via: &'static str) -> Vec<Attack> {
    let own = via == "raw";
    let named = |attack: Attack, reason| if own { attack.reason(reason) } else { attack };
    let second = |shot: &Shot<'_>| {
        Packet::new(shot.from().ip(), shot.to().ip(), 17, &shot.tag.repeat(4).as_bytes()[..40]).fragment(5)
    };
    let first = |shot: &Shot<'_>| {
        // Eight bytes of TCP: the ports, but not the flags.
        Packet::tcp(shot.from(), shot.to(), SYN, &[]).cut(8).fragment(0x2000)
    };
    let record = |shot: &Shot<'_>| datagram(shot).options(&[7, 7, 4, 0, 0, 0, 0]);
    let source_route = |shot: &Shot<'_>| {
        // Done already: the pointer is behind the list, as when the last hop was reached.
        datagram(shot).options(&[131, 7, 8, 10, 244, 1, 1])
    };
    let timestamp = |shot: &Shot<'_>| datagram(shot).options(&[68, 8, 5, 0, 0, 0, 0, 0]);
    let extension =
        |number: u8, rest: &'static [u8]| move |shot: &Shot<'_>| datagram(shot).extension(number, rest);
    vec![
        named(injected("a second fragment", via, &[], second), "Fragment"),
        injected("a first fragment", via, &[], first),
        named(injected("record route", via, &[], record).only_v4(), "Ipv4Options"),
        named(injected("a loose source route", via, &[], source_route).only_v4(), "Ipv4Options"),
        named(injected("a timestamp", via, &[], timestamp).only_v4(), "Ipv4Options"),
        // Each with padding of four bytes.
        injected("hop-by-hop options", via, &[], extension(0, &[0, 1, 4])).only_v6(),
        injected("destination options", via, &[], extension(60, &[0, 1, 4])).only_v6(),
        named(
            injected("a routing header", via, &[], extension(43, &[2, 4, 0, 0, 0, 0, 0, 0xfd, 0, 0]))
                .only_v6(),
            "Ipv6Extension",
        ),
        injected("an atomic fragment", via, &[], |shot| datagram(shot).fragment(0)).only_v6(),
        injected("two headers", via, &[], |shot| {
            datagram(shot).extension(60, &[0, 1, 4]).extension(60, &[0, 1, 4]).fragment(0)
        })
        .only_v6(),
    ]
}

#[test]
fn row_7_fragments_options_and_extension_headers() {
    let mut range = Range::new(json!({}));
    for interface in ["all", "cni0"] {
        let key = format!("net/ipv4/conf/{interface}/accept_source_route");
        range.stand.topology.node().set_sysctl(&key, "1").unwrap();
    }
    range.prove(&odd("raw"));
    range.prove(&odd("frame"));
    // A datagram that does not fit is in fragments by the time it leaves, and lawful all the same.
    let long = "x".repeat(4000);
    let pod = range.peer.pod();
    for address in [pod.v4().to_string(), format!("[{}]", pod.v6())] {
        let target = format!("{address}:{}", crate::common::UDP);
        let attempt = range.locked.attempt(&["udp", &target, "--payload", &long]).unwrap();
        assert!(attempt.succeeded(), "{attempt:?}");
    }
}

#[test]
fn row_8_fragments_of_others_take_no_place() {
    let range = Range::new(json!({}));
    let remembered = |container: &Container, source: Option<IpAddr>| {
        let first = injected("a first fragment", "raw", &[], move |shot| {
            let own = shot.from().ip();
            let source = source.filter(|source| source.is_ipv4() == own.is_ipv4()).unwrap_or(own);
            let to = SocketAddr::new(shot.to().ip(), UDP);
            Packet::udp(SocketAddr::new(source, SOURCE_PORT), to, &[7; 64]).cut(40).fragment(0x2000)
        });
        range.fire(container, &[first]);
        let witnesses = pinned_hash::<WitnessKey, Witness>(&range.stand, "egress_inbound");
        let cgroup = cgroup_id(container.pod().cgroup()).unwrap();
        let of_fragments = |seen: &Witness| seen.cgroup == cgroup && seen.kind == WITNESS_FRAGMENT;
        witnesses.iter().flatten().filter(|(_, seen)| of_fragments(seen)).count()
    };
    assert_eq!(remembered(&range.free, None), 0);
    assert_eq!(
        remembered(&range.locked, Some("10.244.200.9".parse().unwrap())),
        1,
        "of IPv6, whose source was its own"
    );
    // What is left of its own datagrams is known by them.
    assert_eq!(remembered(&range.locked, None), 2);
}

#[test]
fn row_8_who_is_on_its_way_is_not_believed_what_comes_in() {
    let range = Range::new(json!({}));
    let watched = || {
        let pins = range.stand.agent.pins().unwrap();
        let names = pins.iter().filter_map(|pin| pin.file_name()?.to_str());
        names.filter(|name| name.starts_with("link_egress_arrival")).count()
    };
    // Its processes are in the node's network, as those that a runtime has just started; its object says that it has one of its own.
    let topology = &range.stand.topology;
    let entering = topology.add_pod(PodSpec::new("a", "entering").host_network()).unwrap();
    let mut object = kubernetes::pod(&entering, topology.node_name());
    object["spec"]["hostNetwork"] = json!(false);
    range.stand.write(object.clone());
    let waits = || {
        let known = endpoints(&range.stand.agent);
        known.iter().any(|one| one["name"] == "entering" && one["coverage"] == "socket (no process yet)")
    };
    eventually("a process of its own is waited for", waits);
    // One that belongs there is watched.
    let host = range.stand.pod(PodSpec::new("a", "host").host_network());
    eventually("it is watched", || watched() == 1);
    host.pod().remove().unwrap();
    eventually("it is gone", || watched() == 0);
    range.stand.remove(&pod_object(&range.stand, host.pod()));
    object["spec"]["hostNetwork"] = json!(true);
    range.stand.write(object);
    eventually("it belongs there as well", || watched() == 1);
}
