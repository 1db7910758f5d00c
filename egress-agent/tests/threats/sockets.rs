//! Rows 9, 12 and 15: sockets that change hands, gateways, further interfaces and pods in the node's network.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use egress_common::wire::{WITNESS_STOOD, Witness, WitnessKey};
use egress_probe::{Attempt, Outcome};
use egress_topology::{Container, Exec, NODE_V4, NODE_V6, PodSpec, Process, cgroup_id};
use serde_json::{Value, json};

use crate::attack::{Attack, BRIDGE_MAC, NET_ADMIN, Shot, attack, unique};
use crate::common::{Stand, UDP, denied, endpoints, eventually, outside, passes, pinned_hash, policy};
use crate::frames::injected;
use crate::plain::{plain, proxy};
use crate::range::{At, Range};

const SOON: Duration = Duration::from_secs(5);

/// Says something by the socket that a process keeps.
fn say(talker: &mut Process, words: &str) -> Attempt {
    talker.send_line(words).unwrap();
    talker.next_json(SOON).unwrap().unwrap()
}

fn talk(words: &[&str]) -> Exec {
    Exec::probe([&["talk"], words].concat()).with_stdin()
}

fn ready(mut process: Process) -> Process {
    process.wait_ready(SOON).unwrap();
    process
}

/// Starts a process that offers its socket at the path, and waits until it does.
fn giver(path: &Path, start: impl FnOnce(&Exec) -> Process, target: &str) -> Process {
    ready(start(&talk(&[target, "--give", path.to_str().unwrap()])))
}

#[test]
fn row_9_a_socket_that_is_handed_over() {
    let mut range = Range::new(json!({}));
    let dir = tempfile::tempdir().unwrap();
    let handed = |range: &mut Range, from_free: bool, in_locked: bool| {
        let (maker, user) =
            if from_free { (&range.free, &range.locked) } else { (&range.locked, &range.free) };
        let mut fired = Vec::new();
        for target in outside() {
            let (tag, port) = unique();
            let path = dir.path().join(&tag);
            let netns = if in_locked { range.locked.pod() } else { maker.pod() };
            let start = |exec: &Exec| maker.spawn_in(exec, netns).unwrap();
            let _giver = giver(&path, start, &format!("{target}:{port}"));
            let mut taker = ready(user.spawn(&talk(&["--take", path.to_str().unwrap()])).unwrap());
            say(&mut taker, &tag);
            fired.push(tag);
        }
        // Something that is allowed comes after it.
        range.lawful();
        std::thread::sleep(Duration::from_millis(200));
        range.outside.look();
        fired.iter().map(|tag| range.outside.count(tag)).collect::<Vec<_>>()
    };
    // Of a pod that may send: it sends under that pod's name, through that pod's interface.
    assert_eq!(handed(&mut range, true, false), [1, 1]);
    // Of a pod that may not: whoever has it.
    assert_eq!(handed(&mut range, false, false), [0, 0]);
    // Made by somebody who may send, but in the network of a pod that may not.
    assert_eq!(handed(&mut range, true, true), [0, 0]);
}

#[test]
fn row_9_a_socket_that_moves_to_another_cgroup() {
    let mut range = Range::new(json!({}));
    let (free, locked) = (range.free.clone(), range.locked.clone());
    // Opened where it may not send, and taken to where it might; and the other way round, in the locked-down pod's network.
    for (from, to) in [(&locked, &free), (&free, &locked)] {
        for target in outside() {
            let (tag, port) = unique();
            let target = format!("{target}:{port}");
            let mut talker = ready(from.spawn_in(&talk(&[&target]), locked.pod()).unwrap());
            to.adopt(&talker).unwrap();
            say(&mut talker, &tag);
            range.prove_arrives(At::Outside, &free, &[datagram()]);
            assert_eq!(range.outside.count(&tag), 0, "of {}, in {}", from.pod().name(), to.pod().name());
        }
    }
}

fn datagram() -> Attack {
    attack("a datagram", |shot| {
        let target = shot.to().to_string();
        shot.probe(&["udp", &target, "--payload", &shot.tag, "--timeout-ms", "1"])
    })
}

#[test]
fn row_9_a_socket_that_is_older_than_the_policy() {
    let mut range = Range::without_agent(json!({}));
    range.stand.remove(&crate::common::policy(json!({})));
    range.stand.start();
    let locked = range.locked.clone();
    let mut talkers: Vec<_> = outside()
        .iter()
        .map(|target| ready(locked.spawn(&talk(&[&format!("{target}:{}", unique().1)])).unwrap()))
        .collect();
    for talker in &mut talkers {
        assert_eq!(say(talker, "before").outcome, Outcome::Ok);
    }
    range.stand.lock_down(json!({}));
    for talker in &mut talkers {
        eventually("it obeys", || say(talker, "after").outcome == Outcome::Denied);
    }
    range.stand.agent.kill().unwrap();
    for talker in &mut talkers {
        assert_eq!(say(talker, "long after").outcome, Outcome::Denied);
    }
}

/// The outside answers each datagram, so that something keeps coming in; that makes no answers of what the pod sends.
#[test]
fn row_9_a_conversation_that_is_older_than_the_policy() {
    let allow = |more: Value| {
        let to = [outside().map(|address| cidr(&address)).to_vec(), vec![more]].concat();
        json!({"allow": {"to": to}})
    };
    let peers = json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}});
    let mut range = Range::new(allow(peers.clone()));
    let peer = range.peer.pod().v4().to_string();
    let start = |container: &Container, target: &str| {
        ready(container.spawn(&talk(&[&format!("{target}:{UDP}")])).unwrap())
    };
    let converse = |talker: &mut Process, outcome: Outcome, when: &str| {
        for _ in 0..20 {
            assert_eq!(say(talker, when).outcome, outcome, "{when}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    // Of a pod that may talk to the outside, and of one that nobody cares for.
    let mut talkers = Vec::new();
    for container in [&range.locked, &range.free] {
        talkers.extend(outside().map(|target| start(container, &target)));
    }
    let mut lawful = start(&range.locked, &peer);
    talkers.iter_mut().chain([&mut lawful]).for_each(|talker| converse(talker, Outcome::Ok, "before"));
    let both = json!([{"namespaces": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}]}}]);
    range.stand.lock_down(json!({"subjects": both, "allow": {"to": [peers]}}));
    for talker in &mut talkers {
        eventually("it obeys", || say(talker, "after").outcome == Outcome::Denied);
        converse(talker, Outcome::Denied, "after");
    }
    range.stand.agent.kill().unwrap();
    talkers.iter_mut().for_each(|talker| converse(talker, Outcome::Denied, "long after"));
    converse(&mut lawful, Outcome::Ok, "after");
}

fn cidr(address: &str) -> Value {
    let bits = if address.contains(':') { 128 } else { 32 };
    json!({"cidr": format!("{}/{bits}", address.trim_matches(['[', ']']))})
}

#[test]
fn row_12_a_gateway_is_for_its_clients_and_for_the_proxy() {
    let gateway = json!({
        "name": "exit", "namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "gate"}},
        "pods": {"matchLabels": {"app": "gate"}}, "ports": [{"protocol": "UDP", "port": 9999}],
        "clients": [{"pods": {"matchLabels": {"client": "yes"}}, "namespaces": {}}],
    });
    let lock = |proxy: serde_json::Value| {
        let mut spec = json!({"gateways": [gateway], "proxy": proxy, "allow": {}});
        if spec["proxy"].is_null() {
            spec.as_object_mut().unwrap().remove("proxy");
        }
        spec
    };
    let mut range = Range::without_agent(lock(json!(null)));
    let gate = range.stand.pod(PodSpec::new("gate", "gate").label("app", "gate"));
    let words = ["serve-udp", "--port", "9999"];
    let _server = gate.serve(&Exec::probe(words)).unwrap();
    let client = range.stand.pod(PodSpec::new("a", "client").label("client", "yes"));
    range.stand.start();
    let gates = [gate.pod().v4().to_string(), format!("[{}]", gate.pod().v6())];
    for address in &gates {
        passes(&client, address);
        denied(&range.locked, address);
        passes(&range.free, address);
        passes(&gate, &outside()[0]);
    }
    // What a non-client sends to the gateway by other means does not reach it either.
    let target = gate.clone();
    let frame = injected("a frame to the gateway", "frame", &[], move |shot| {
        let address = if shot.v6 { target.pod().v6().into() } else { target.pod().v4().into() };
        egress_probe::packet::Packet::udp(
            shot.from(),
            SocketAddr::new(address, shot.port),
            shot.tag.as_bytes(),
        )
    });
    let (free, locked) = (range.free.clone(), range.locked.clone());
    range.prove_arrives(At::Bridge, &free, std::slice::from_ref(&frame));
    range.prove_stopped(At::Bridge, &locked, std::slice::from_ref(&frame));
    // Under a lock the client's other containers may not use it.
    range.stand.lock_down(lock(json!({"containers": ["istio-proxy"]})));
    let proxy = proxy(&range.stand, client.pod());
    for address in &gates {
        eventually("the lock is there", || !crate::common::udp(&client, address).succeeded());
        denied(&client, address);
        passes(&proxy, address);
    }
    range.prove_stopped(At::Bridge, &client, &[frame]);
}

#[test]
fn row_15_a_second_interface() {
    let mut range = Range::new(json!({}));
    for (container, last) in [(&range.free, 0x11), (&range.locked, 0x12)] {
        let v6 = [0xfd00, 0x99, 0, 0, 0, 0, 0, last].into();
        container.pod().add_interface("net1", [10, 99, 0, last as u8].into(), v6).unwrap();
    }
    let by_frame = |shot: &Shot<'_>| {
        let (from, target) = (shot.from().ip().to_string(), shot.to().ip().to_string());
        let port = shot.port.to_string();
        let words = ["packet", &target, "--interface", "net1", "--from", &from, "--port", &port];
        shot.probe(&[&words[..], &["--payload", &shot.tag, "--destination-mac", BRIDGE_MAC]].concat())
    };
    let by_socket = |text: &'static str| {
        attack("a datagram by a second interface", move |shot| shot.shell(text)).with(NET_ADMIN)
    };
    // What the socket hook sees is denied at any interface.
    range.prove(&[by_socket(BY_NET1)]);
    let (free, locked) = (range.free.clone(), range.locked.clone());
    let frames = [attack("a frame by a second interface", by_frame)];
    range.prove_arrives(At::Outside, &free, &frames);
    let told = || {
        let endpoints = range.stand.agent.ask(&["endpoints", "-o", "json"]).unwrap();
        let endpoints = String::from_utf8(endpoints.stdout).unwrap();
        let mut told = endpoints.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        told.find(|pod| pod["namespace"] == "a" && pod["name"] == "locked").unwrap()
    };
    eventually("both devices are known", || told()["veths"].as_array().unwrap().len() == 2);
    assert_eq!(told()["coverage"], "socket+veth", "{}", range.stand.agent.log());
    range.prove_stopped(At::Outside, &locked, &frames);
}

/// The agent finds a pod's veth by the network of its processes, of which the pod has as many as it likes.
#[test]
fn row_15_a_process_in_a_network_of_its_own() {
    let mut range = Range::without_agent(json!({}));
    let sleep = |container: &Container, before: &[&str]| {
        let words = [before, &["/usr/bin/sleep", "120"]].concat();
        container.spawn(&Exec::new(words[0], &words[1..])).unwrap()
    };
    let hidden = [&range.free, &range.locked].map(|container| {
        // What needs no capability.
        (sleep(container, &["/usr/bin/unshare", "--user", "--net"]), sleep(container, &[]))
    });
    let network = |process: &Process| std::fs::read_link(format!("/proc/{}/ns/net", process.id())).unwrap();
    eventually("they are where they want to be", || {
        hidden.iter().all(|(inner, outer)| network(inner) != network(outer))
    });
    range.stand.start();
    range.lawful();
    let endpoints = crate::common::endpoints(&range.stand.agent);
    let covered = endpoints.iter().filter(|pod| pod["coverage"] == "socket+veth").count();
    assert_eq!(covered, 3, "{endpoints:?}");
    range.prove(&[injected("a frame", "frame", &[], |shot| {
        egress_probe::packet::Packet::udp(shot.from(), shot.to(), shot.tag.as_bytes())
    })]);
}

const BY_NET1: &str = r#"
[ $FAMILY = -4 ] && bits=32 via=10.99.0.254 target=$OUT:$PORT || bits=128 via=fd00:99::fe target="[$OUT]:$PORT"
trap 'ip $FAMILY route del $OUT/$bits dev net1' EXIT
ip $FAMILY route add $OUT/$bits via $via dev net1 onlink src $OWN
ip neigh replace $via lladdr 02:00:0a:f4:01:01 dev net1 nud permanent
$PROBE udp $target --payload $TAG --timeout-ms 10
"#;

#[test]
fn row_15_a_pod_in_the_nodes_network() {
    let mut range = Range::new(json!({}));
    let host = |namespace: &str| range.stand.pod(PodSpec::new(namespace, "host").host_network());
    let (free, locked) = (host("b"), host("a"));
    eventually("both are known", || {
        let status = range.stand.agent.status().unwrap();
        status["unknown_pods"] == 0 && status["endpoints"]["Isolated"] == 2
    });
    let attacks = plain("NotAllowed");
    range.prove_arrives(At::Outside, &free, &attacks);
    range.prove_stopped(At::Outside, &locked, &attacks);
    range.lawful_of(&locked);
}

/// Whose datagrams began is known from before a policy selects it: clients with ports of their own go on asking.
#[test]
fn row_15_a_server_in_the_nodes_network_goes_on_answering() {
    const PORT: u16 = 9955;
    let range = Range::new(json!({}));
    let server = range.stand.pod(PodSpec::new("b", "host").host_network());
    let _serving = server.serve(&Exec::probe(["serve-udp", "--port", &PORT.to_string()])).unwrap();
    let ask = |node: IpAddr| {
        let target = SocketAddr::new(node, PORT).to_string();
        let words = ["udp", &target, "--source-port", "4321", "--timeout-ms", "700"];
        range.stand.topology.outside_attempt(&words).unwrap().outcome
    };
    let node = [IpAddr::from(NODE_V4), NODE_V6.into()];
    let asks = || node.map(ask) == [Outcome::Ok; 2];
    eventually("it is watched", || {
        endpoints(&range.stand.agent)
            .iter()
            .any(|known| known["name"] == "host" && known["state"] == "Unselected")
    });
    assert!((0..3).all(|_| asks()));
    let mut policy = policy(json!({"allow": {"inCluster": false}}));
    policy["metadata"]["name"] = json!("more");
    policy["spec"]["subjects"][0]["namespaces"]["matchLabels"]["kubernetes.io/metadata.name"] = json!("b");
    range.stand.write(policy);
    eventually("it is locked down", || {
        endpoints(&range.stand.agent)
            .iter()
            .any(|known| known["name"] == "host" && known["state"] == "Isolated")
    });
    assert!((0..3).all(|_| asks()));
    outside().iter().for_each(|address| denied(&server, address));
}

/// What comes in to it is watched from the first agent on: the next one believes of no connection by its looks that it came in.
#[test]
fn row_15_an_agent_that_starts_again_classifies_nobody_again() {
    const PORT: u16 = 9956;
    let mut range = Range::new(json!({}));
    let server = range.stand.pod(PodSpec::new("a", "host").host_network());
    let _serving = server.serve(&Exec::probe(["serve-echo", "--port", &PORT.to_string()])).unwrap();
    let known = |stand: &Stand| {
        endpoints(&stand.agent).iter().any(|known| known["name"] == "host" && known["state"] == "Isolated")
    };
    eventually("it is known", || known(&range.stand));
    let target = SocketAddr::new(NODE_V4.into(), PORT).to_string();
    let mut held = range
        .stand
        .topology
        .outside_exec(&Exec::probe(["hold", &target, "--for-ms", "60000", "--interval-ms", "200"]))
        .unwrap();
    let beat: Option<Value> = held.next_json(SOON).unwrap();
    assert_eq!(beat.unwrap()["outcome"], "ok");
    let stood = |stand: &Stand| {
        let seen = pinned_hash::<WitnessKey, Witness>(stand, "egress_inbound");
        let cgroup = cgroup_id(server.pod().cgroup()).unwrap();
        seen.iter().flatten().filter(|(_, seen)| seen.cgroup == cgroup && seen.kind == WITNESS_STOOD).count()
    };
    assert_eq!(stood(&range.stand), 0);
    range.stand.agent.kill().unwrap();
    range.stand.start();
    eventually("it is known again", || known(&range.stand));
    assert_eq!(stood(&range.stand), 0);
}
