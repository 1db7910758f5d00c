//! Row 8: what pretends to answer, and what really answers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use egress_probe::packet::{ACK, FIN, PSH, Packet, RST, SYN, to_hex};
use egress_probe::{Attempt, Beat, Outcome};
use egress_topology::{Container, Exec, OUTSIDE_V4, OUTSIDE_V6, PodSpec, Process};
use serde_json::json;

use crate::attack::{Attack, BRIDGE_MAC, NET_ADMIN, Shot, attack, unique};
use crate::common::eventually;
use crate::frames::injected;
use crate::range::{At, Range};

pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Segments that look like the middle of a connection that came in.
fn segments() -> Vec<Attack> {
    let segment = |name: &str, flags: u8, via: &'static str| {
        injected(name, via, &[], move |shot| Packet::tcp(shot.from(), shot.to(), flags, shot.tag.as_bytes()))
    };
    let message = |name: &str, kinds: [u8; 2], via: &'static str| {
        injected(name, via, &[], move |shot| {
            let kind = kinds[usize::from(shot.v6)];
            Packet::icmp(shot.from().ip(), shot.to().ip(), kind, shot.tag.as_bytes())
        })
    };
    ["raw", "protocol"]
        .into_iter()
        .flat_map(|via| {
            [
                segment("an ACK with data", ACK | PSH, via),
                segment("a SYN-ACK with data", SYN | ACK, via),
                segment("a RST with data", RST | ACK, via),
                segment("a FIN with data", FIN | ACK, via),
                segment("no flags at all", 0, via),
                message("an echo reply", [0, 129], via),
                // Of the kind that a pod's kernel may send by itself: nobody can be reached.
                message("an error", [3, 1], via),
            ]
        })
        .collect()
}

/// A datagram that the pod takes for one from the outside, sent by a packet that `inject` makes; a server in the pod answers it.
pub(crate) fn answered(name: &str, inject: impl Fn(&Shot<'_>, &str) + 'static) -> Attack {
    attack(name, move |shot| {
        let port = unique().1;
        let words = ["answer", "--port", &port.to_string(), "--payload", &shot.tag];
        let mut server = shot.spawn(Exec::probe(words));
        server.wait_ready(SOON).unwrap();
        let to = SocketAddr::new(shot.from().ip(), port);
        inject(shot, &to_hex(&Packet::udp(shot.to(), to, b"question").bytes().unwrap()));
        server.next_json::<Attempt>(Duration::from_secs(1)).unwrap()
    })
}

/// A connection that the pod makes with itself under the name of the outside, in the hope that the half that was accepted
/// counts as an answer.
const SELF_ACCEPT: &str = r#"
[ $FAMILY = -4 ] && own=$OWN:$PORT from=$OUT:$PORT bits=32 || own="[$OWN]:$PORT" from="[$OUT]:$PORT" bits=128
ip addr add $OUT/$bits dev lo $([ $FAMILY = -4 ] || echo nodad)
trap "ip addr del $OUT/$bits dev lo 2>/dev/null || true" EXIT
# The kernel adds the route to an IPv6 address of its own some time after the address.
until ip route get $OUT | grep -q ^local; do sleep 0.01; done
$PROBE self-accept $from $own --payload $TAG --then "ip addr del $OUT/$bits dev lo"
"#;

const TUN: &str = "
trap 'ip link del tun0' EXIT
ip tuntap add dev tun0 mode tun
ip link set tun0 up
";

/// An inbound half made within the pod.
fn own_halves() -> Vec<Attack> {
    vec![
        answered("an answer to oneself over lo", |shot, hex| {
            shot.probe(&["inject", hex, "--via", "raw"]);
        }),
        answered("an answer to oneself over a tun device", |shot, hex| {
            shot.shell(&format!("{TUN}$PROBE inject {hex} --via tun --interface tun0"));
        })
        .with(NET_ADMIN),
        answered("an answer to oneself over the node", |shot, hex| {
            shot.probe(&["inject", hex, "--via", "frame", "--destination-mac", BRIDGE_MAC]);
        }),
        injected("a SYN to oneself over lo", "raw", &[], |shot| {
            // A socket of the pod listens there, and would send its SYN-ACK to the outside.
            let to = SocketAddr::new(shot.from().ip(), LISTENS);
            Packet::tcp(shot.to(), to, SYN, &[])
        }),
        attack("a connection with oneself", |shot| shot.shell(SELF_ACCEPT)).with(NET_ADMIN),
        attack("a connection by TCP_REPAIR", |shot| {
            let (from, to) = (shot.from().to_string(), shot.to().to_string());
            shot.probe(&["repair", &to, "--from", &from, "--payload", &shot.tag])
        })
        .with(NET_ADMIN),
    ]
}

/// Where every pod of these tests echoes TCP.
const LISTENS: u16 = 7;
/// Where somebody asks by UDP, and nobody listens.
const ASKED: u16 = 54;
/// Where somebody answers by UDP.
const ANSWERS: u16 = 55;

fn serve(container: &Container, what: &str, port: u16) -> Process {
    container.serve(&Exec::probe([what, "--port", &port.to_string()])).unwrap()
}

#[test]
fn row_8_segments_and_inbound_halves_that_nobody_sent() {
    let mut range = Range::new(json!({}));
    let _servers = [&range.free, &range.locked].map(|pod| serve(pod, "serve-echo", LISTENS));
    let mut attacks = segments();
    attacks.extend(own_halves());
    range.prove(&attacks);
    range.stand.agent.kill().unwrap();
    range.prove(&attacks);
}

/// The outside address of a family.
pub(crate) fn outside(v6: bool) -> IpAddr {
    if v6 { OUTSIDE_V6.into() } else { OUTSIDE_V4.into() }
}

pub(crate) fn own(container: &Container, v6: bool) -> IpAddr {
    if v6 { container.pod().v6().into() } else { container.pod().v4().into() }
}

#[test]
fn row_8_a_flow_of_another_pod_and_a_forged_question_by_a_neighbour() {
    let mut range = Range::new(json!({}));
    let other = range.stand.pod(PodSpec::new("a", "other"));
    let free = range.free.clone();
    eventually("the other pod is known", || {
        range.stand.agent.status().unwrap()["endpoints"]["Isolated"] == 2
    });
    // Nobody takes it there, so that nobody but the attacker answers.
    let port = unique().1;
    // Somebody outside asks the other pod from the shot's port; then this one answers that.
    let outside = std::rc::Rc::new(range.stand.topology.clone());
    let asks = {
        let other = other.clone();
        move |shot: &Shot<'_>| {
            let target = SocketAddr::new(own(&other, shot.v6), port).to_string();
            let source = shot.port.to_string();
            outside
                .outside_attempt(&["udp", &target, "--source-port", &source, "--timeout-ms", "100"])
                .unwrap()
        }
    };
    let by_socket = |shot: &Shot<'_>, source: u16| {
        let (target, source) = (shot.to().to_string(), source.to_string());
        shot.probe(&["udp", &target, "--source-port", &source, "--payload", &shot.tag, "--timeout-ms", "10"])
    };
    range.prove(&[
        attack("an answer to what another pod was asked", move |shot| {
            asks(shot);
            by_socket(shot, port)
        }),
        attack("an answer to what nobody asked", move |shot| by_socket(shot, port)),
    ]);
    // A pod on the node that may do anything asks in the name of the outside.
    for via in ["frame", "raw"] {
        let neighbour = free.clone();
        let forged = answered(&format!("an answer to a neighbour's forgery via {via}"), move |_, hex| {
            let words = ["inject", hex, "--via", via, "--destination-mac", BRIDGE_MAC];
            assert!(neighbour.attempt(&words).unwrap().succeeded());
        });
        let peer = range.peer.clone();
        range.prove_arrives(At::Outside, &peer, std::slice::from_ref(&forged));
        let locked = range.locked.clone();
        range.prove_stopped(At::Outside, &locked, &[forged]);
    }
    range.lawful();
}

/// Both sides connect at once; whether that made a connection, and what of it was seen outside.
fn simultaneous(range: &mut Range, pod: &Container, v6: bool) -> (bool, usize) {
    let (mine, theirs) = (unique().1, unique().1);
    let connect = |address: IpAddr, to: u16, from: u16| {
        let target = SocketAddr::new(address, to).to_string();
        Exec::probe(["tcp", &target, "--source-port", &from.to_string(), "--timeout-ms", "1800"])
    };
    // The inner side's first SYN gets no answer and is sent again after a second; it must not be refused before.
    let silence = format!(
        "table inet silence {{\n chain out {{\n type filter hook output priority 0; policy accept;\n \
         tcp sport {theirs} tcp flags & rst == rst drop\n }}\n}}\n"
    );
    range.stand.topology.outside().nft(&silence).unwrap();
    // Where the pod may send it elsewhere, nobody is refused a connection before its SYN.
    pod.pod()
        .netns()
        .nft("table inet any {\n chain out {\n type filter hook output priority 0;\n }\n}\n")
        .unwrap();
    let inside = pod.spawn(&connect(outside(v6), theirs, mine)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let out = range.stand.topology.outside_exec(&connect(own(pod, v6), mine, theirs)).unwrap();
    let ends = [inside, out].map(|end| end.output_json::<Attempt>(SOON).unwrap().outcome);
    range.outside.look();
    let seen = range.outside.seen.iter().filter(|frame| {
        let ports = [mine.to_be_bytes(), theirs.to_be_bytes()].concat();
        frame.windows(4).any(|part| part == ports)
    });
    (ends.contains(&Outcome::Ok), seen.count())
}

#[test]
fn row_8_simultaneous_open() {
    let mut range = Range::new(json!({}));
    let (free, locked) = (range.free.clone(), range.locked.clone());
    for v6 in [false, true] {
        let (connected, seen) = simultaneous(&mut range, &free, v6);
        assert!(connected && seen > 0, "it works where nobody objects");
        assert_eq!(simultaneous(&mut range, &locked, v6), (false, 0));
    }
    range.lawful();
}

#[test]
fn row_8_simultaneous_open_with_whom_it_may_reach() {
    let to = [format!("{OUTSIDE_V4}/32"), format!("{OUTSIDE_V6}/128")].map(|cidr| json!({"cidr": cidr}));
    let mut range = Range::new(json!({"allow": {"to": to}}));
    let locked = range.locked.clone();
    for v6 in [false, true] {
        let (connected, seen) = simultaneous(&mut range, &locked, v6);
        assert!(connected && seen > 0, "v6: {v6}");
    }
}

#[test]
fn row_8_a_question_opens_nothing_but_its_answer() {
    let mut range = Range::new(json!({}));
    let _servers = [&range.free, &range.locked].map(|pod| serve(pod, "serve-echo", LISTENS));
    let topology = range.stand.topology.clone();
    // Somebody outside asks from the shot's port, by UDP where nobody is yet, and by a connection that stays.
    let asked = move |shot: &Shot<'_>| {
        let at = |port: u16| SocketAddr::new(shot.from().ip(), port).to_string();
        let source = shot.port.to_string();
        let words = ["udp", &at(ASKED), "--source-port", &source, "--timeout-ms", "30"];
        let udp = topology.outside_attempt(&words).unwrap();
        let words = ["hold", &at(LISTENS), "--source-port", &source, "--timeout-ms", "500"];
        let mut held = topology.outside_exec(&Exec::probe(words)).unwrap();
        let beat: Option<Beat> = held.next_json(SOON).unwrap();
        (udp, beat, held)
    };
    let asked = std::rc::Rc::new(asked);
    // What comes after a question that was answered, if it was.
    let after = |name: &str, then: fn(&Shot<'_>) -> Attempt| {
        let asked = std::rc::Rc::clone(&asked);
        attack(name, move |shot| {
            let (udp, beat, _held) = asked(shot);
            format!("{:?}, {:?}: {:?}", udp.outcome, beat.map(|beat| beat.outcome), then(shot))
        })
        .by_tag()
    };
    fn datagram(shot: &Shot<'_>, source: u16, target: u16) -> Attempt {
        let target = SocketAddr::new(shot.to().ip(), target).to_string();
        let words = ["udp", &target, "--payload", &shot.tag, "--timeout-ms", "1", "--source-port"];
        shot.probe(&[&words[..], &[&source.to_string()]].concat())
    }
    fn segment(shot: &Shot<'_>, source: u16, flags: u8) -> Attempt {
        let from = SocketAddr::new(shot.from().ip(), source);
        let packet = Packet::tcp(from, shot.to(), flags, shot.tag.as_bytes());
        shot.inject("raw", &packet.bytes().unwrap(), &[])
    }
    range.prove(&[
        after("a datagram from another port", |shot| datagram(shot, ASKED + 1, shot.port)),
        after("a datagram to another port", |shot| datagram(shot, ASKED, shot.port ^ 0x8000)),
        after("a segment by a raw socket", |shot| segment(shot, LISTENS, ACK | PSH)),
        after("a SYN by a raw socket", |shot| segment(shot, LISTENS, SYN)),
        after("a segment from another port", |shot| segment(shot, LISTENS + 1, ACK | PSH)),
    ]);
}

/// A service that has an asker's address and port leads elsewhere: to netfilter, which forgets before we do, the answer would be a packet
/// to the service.
#[test]
fn row_8_what_is_answered_is_not_sent_on() {
    let range = Range::new(json!({}));
    let _servers = [serve(&range.locked, "serve-udp", ASKED), serve(&range.locked, "serve-echo", LISTENS)];
    let asked = |v6: bool, source: u16| {
        let at = |port: u16| SocketAddr::new(own(&range.locked, v6), port).to_string();
        let source = source.to_string();
        let more = ["--source-port", &source, "--timeout-ms", "700"];
        let udp = range.peer.attempt(&[&["udp", &at(ASKED)][..], &more].concat()).unwrap();
        let tcp = range.peer.attempt(&[&["tcp", &at(LISTENS)][..], &more].concat()).unwrap();
        [udp, tcp].map(|attempt| attempt.outcome == Outcome::Ok)
    };
    let (leads, beside) = (5005, 5006);
    for v6 in [false, true] {
        assert_eq!(asked(v6, leads - 1), [true; 2]);
    }
    let ports = ["UDP", "TCP"].map(|one| json!({"name": one, "protocol": one, "port": leads}));
    let name = json!({"namespace": "default", "name": "elsewhere", "labels": {"kubernetes.io/service-name": "elsewhere"}});
    let own = [own(&range.peer, false), own(&range.peer, true)];
    range.stand.write(json!({"apiVersion": "v1", "kind": "Service", "metadata": name,
        "spec": {"clusterIP": "10.96.7.7", "externalIPs": own, "ports": ports}}));
    for (v6, family) in [(false, "IPv4"), (true, "IPv6")] {
        let mut slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": name, "ports": ports, "endpoints": [{"addresses": [outside(v6)]}]});
        slice["metadata"]["name"] = json!(format!("elsewhere-{family}"));
        range.stand.write(slice);
    }
    for v6 in [false, true] {
        let at = SocketAddr::new(own[usize::from(v6)], leads).to_string();
        eventually("the service is known", || {
            range.locked.attempt(&["udp", &at, "--timeout-ms", "100"]).unwrap().outcome == Outcome::Denied
        });
        assert_eq!(asked(v6, leads), [false; 2]);
        assert_eq!(asked(v6, beside), [true; 2], "from another port");
    }
}

/// Answers to a pod that has gone would leave by the node's route for its address.
#[test]
fn row_8_a_pod_that_has_gone_is_not_answered() {
    // Nobody may be reached but by an answer.
    let mut range = Range::without_agent(json!({"allow": {"inCluster": false}}));
    range.stand.start();
    let locked = range.locked.clone();
    let _server = serve(&locked, "serve-udp", ANSWERS);
    // It runs elsewhere: where the node routes its address to.
    let name =
        json!({"namespace": "default", "name": "remote", "uid": "0a1b2c3d-0000-4000-8000-000000000001"});
    let ips = [false, true].map(|v6| json!({"ip": outside(v6)}));
    let remote = json!({"apiVersion": "v1", "kind": "Pod", "metadata": name,
        "spec": {"nodeName": "elsewhere", "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": outside(false), "podIPs": ips}});
    let (topology, peer) = (range.stand.topology.clone(), range.peer.clone());
    let at = |v6: bool, port: u16| SocketAddr::new(own(&locked, v6), port).to_string();
    // From a port of both, to one where nobody is, so that the answer can be given at any time.
    let ask = |v6: bool, port: u16| {
        let words = ["udp", &at(v6, ASKED), "--timeout-ms", "100", "--source-port", &port.to_string()];
        topology.outside_attempt(&words).unwrap();
        peer.attempt(&words).unwrap();
    };
    let answer = |to: IpAddr, port: u16| {
        let (to, source) = (SocketAddr::new(to, port).to_string(), ASKED.to_string());
        let words = ["udp", &to, "--payload", "late", "--timeout-ms", "1", "--source-port", &source];
        locked.attempt(&words).unwrap().outcome != Outcome::Denied
    };
    const BOTH: [bool; 2] = [false, true];
    range.stand.write(remote.clone());
    for v6 in BOTH {
        ask(v6, 4001);
        assert!(answer(outside(v6), 4001) && !answer(outside(v6), 4002), "{v6}");
    }

    range.stand.remove(&remote);
    let start = Instant::now();
    while BOTH.iter().any(|v6| answer(outside(*v6), 4001)) {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "it is answered for ever: {}",
            range.stand.agent.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    range.outside.look();
    let before = range.outside.seen.len();
    for v6 in BOTH {
        assert!(!answer(outside(v6), 4001) && answer(own(&peer, v6), 4001), "who is there is answered");
    }
    std::thread::sleep(Duration::from_millis(300));
    range.outside.look();
    let late = |frame: &&Vec<u8>| frame.windows(4).any(|part| part == b"late");
    assert_eq!(range.outside.seen.iter().skip(before).find(late), None);
    // Whoever has the address next, and is not told of yet, is answered.
    for v6 in BOTH {
        let asked = topology.outside_attempt(&["udp", &at(v6, ANSWERS)]).unwrap();
        assert!(asked.succeeded(), "{asked:?}");
        ask(v6, 4003);
    }
    std::thread::sleep(Duration::from_secs(12));
    for v6 in BOTH {
        assert!(answer(outside(v6), 4003) && !answer(outside(v6), 4001));
    }
}

/// A listening server is asked about a connection that it does not know; the resets that are seen outside. Since 6.13 the kernel sends
/// them in the listening socket's name, so that the socket hook is shown them as well.
fn refusals(range: &mut Range, pod: &Container, v6: bool) -> usize {
    let from = SocketAddr::new(outside(v6), unique().1);
    let to = SocketAddr::new(own(pod, v6), LISTENS);
    for flags in [SYN, ACK | PSH] {
        let packet = to_hex(&Packet::tcp(from, to, flags, &[]).bytes().unwrap());
        let sent = range.stand.topology.outside_attempt(&["inject", &packet, "--via", "raw"]).unwrap();
        assert!(sent.succeeded(), "{sent:?}");
    }
    let header = 14 + if v6 { 40 } else { 20 };
    let ports = [to.port().to_be_bytes(), from.port().to_be_bytes()].concat();
    let resets = |frame: &&Vec<u8>| {
        frame.get(header..header + 4) == Some(&ports[..])
            && frame.get(header + 13).is_some_and(|flags| flags & RST != 0)
    };
    std::thread::sleep(Duration::from_millis(300));
    range.outside.look();
    range.outside.seen.iter().filter(resets).count()
}

#[test]
fn row_8_what_is_not_known_is_refused() {
    let mut range = Range::new(json!({}));
    let (free, locked) = (range.free.clone(), range.locked.clone());
    let _servers = [&free, &locked].map(|pod| serve(pod, "serve-echo", LISTENS));
    for v6 in [false, true] {
        for pod in [&free, &locked] {
            assert!(refusals(&mut range, pod, v6) > 0, "{} {v6}", pod.pod().name());
        }
    }
    for endpoint in crate::common::endpoints(&range.stand.agent) {
        assert_eq!(endpoint["denials"], json!([]), "{endpoint}");
    }
}

#[test]
fn row_8_what_came_in_is_answered() {
    what_came_in(&mut Range::new(json!({})));
}

/// Servers in a locked-down pod answer: over a change of the policy, without an agent and with the next one.
pub(crate) fn what_came_in(range: &mut Range) {
    let (free, locked, peer) = (range.free.clone(), range.locked.clone(), range.peer.clone());
    let mut servers = Vec::new();
    for container in [&free, &locked] {
        servers.extend([serve(container, "serve-echo", LISTENS), serve(container, "serve-udp", 53)]);
        let words = ["serve-http", "--port", "80", "--name", "asked"];
        servers.push(container.serve(&Exec::probe(words)).unwrap());
    }
    let topology = range.stand.topology.clone();
    let ask_of = |container: &Container, when: &str| {
        for v6 in [false, true] {
            let address = own(container, v6);
            let at = |port: u16| SocketAddr::new(address, port).to_string();
            let (url, address) = (format!("http://{}/", at(80)), address.to_string());
            let questions: [&[&str]; 5] = [
                &["get", &url],
                &["udp", &at(53)],
                &["udp", &at(53), "--payload", &"x".repeat(4000)],
                &["ping", &address],
                &["volume", &at(LISTENS)],
            ];
            for question in questions {
                let words = question[..2].join(" ");
                // From far away, from the node as kubelet asks, and from another pod.
                let outside = topology.outside_attempt(question).unwrap();
                let node = topology.node_exec(&Exec::probe(question)).unwrap();
                let node: Attempt = node.output_json(Duration::from_secs(10)).unwrap();
                for attempt in [outside, node, peer.attempt(question).unwrap()] {
                    assert!(attempt.succeeded(), "{when}: {words}: {attempt:?}");
                }
            }
        }
    };
    let ask = |when: &str| ask_of(&locked, when);
    let hold = |v6: bool| {
        let target = SocketAddr::new(own(&locked, v6), LISTENS).to_string();
        let words = ["hold", &target, "--for-ms", "300000", "--interval-ms", "250"];
        topology.outside_exec(&Exec::probe(words)).unwrap()
    };
    ask_of(&free, "of a pod that no policy selects");
    ask("at first");
    let mut held = [hold(false), hold(true)];
    let mut beats = |when: &str| {
        for process in &mut held {
            let _before: Vec<Beat> = process.pending_json().unwrap();
            for _ in 0..2 {
                let beat: Beat = process.next_json(SOON).unwrap().unwrap();
                assert_eq!(beat.outcome, Outcome::Ok, "{when}: {beat:?}");
            }
        }
    };
    beats("at first");
    range.stand.lock_down(json!({"allow": {"inCluster": false}}));
    eventually("the policy is changed", || !crate::common::udp(&locked, range.peer.pod().v4()).succeeded());
    beats("after a change of the policy");
    ask("after a change of the policy");
    range.stand.agent.kill().unwrap();
    beats("without an agent");
    ask("without an agent");
    range.stand.start();
    beats("after a restart");
    ask("after a restart");
    range.stand.lock_down(json!({"allow": {"dns": "Nonsense"}}));
    let closed = || crate::common::endpoints(&range.stand.agent).iter().any(|one| one["state"] == "Invalid");
    eventually("the policy cannot be read", closed);
    beats("under a policy that cannot be read");
    ask("under a policy that cannot be read");
    // Being asked is no leave to ask.
    for address in crate::common::outside() {
        crate::common::denied(&locked, address);
    }
}
