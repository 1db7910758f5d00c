//! Real traffic between pods, through service addresses, through the proxy and to the outside. Needs root.

#![expect(clippy::unwrap_used, reason = "test code outside of #[test] functions too")]

mod common;

use std::time::Duration;

use egress_probe::{Beat, Captured, Outcome};
use egress_topology::{
    CgroupDriver, Container, ContainerKind, Exec, NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, Pod, PodSpec,
    Process, Protocol, Service, Topology, pod_v4,
};

const SECONDS: Duration = Duration::from_secs(5);

fn pod(topology: &Topology, name: &str) -> (Pod, Container) {
    let pod = topology.add_pod(PodSpec::new("default", name)).unwrap();
    let container = pod.add_container("app").unwrap();
    (pod, container)
}

fn http(container: &Container, port: &str, name: &str) -> Process {
    container.serve(&Exec::probe(["serve-http", "--port", port, "--name", name])).unwrap()
}

#[test]
fn pods_the_node_and_the_outside_reach_each_other_under_their_own_addresses() {
    let topology = common::topology("egress-test-reach", CgroupDriver::Systemd);
    let ((a, in_a), (b, in_b)) = (pod(&topology, "a"), pod(&topology, "b"));
    let outside = [OUTSIDE_V4.to_string(), OUTSIDE_V6.to_string(), NODE_V4.to_string(), NODE_V6.to_string()];
    for target in [b.v4().to_string(), b.v6().to_string()].into_iter().chain(outside) {
        let attempt = in_a.attempt(&["ping", &target]).unwrap();
        assert_eq!(attempt.outcome, Outcome::Ok, "{target}: {attempt:?}");
        assert!(attempt.detail.contains("raw socket"), "{attempt:?}");
    }
    let _b_server = http(&in_b, "8080", "b");
    for (url, peer) in [
        (format!("http://{}:8080/x", b.v4()), a.v4().to_string()),
        (format!("http://[{}]:8080/x", b.v6()), format!("[{}]", a.v6())),
    ] {
        let reply = in_a.attempt(&["get", &url]).unwrap().http_reply().unwrap();
        assert_eq!((reply.server.as_str(), reply.path.as_str()), ("b", "/x"));
        assert!(reply.peer.starts_with(&peer), "{} sees {}", reply.server, reply.peer);
        let from_outside = topology.outside_attempt(&["get", &url]).unwrap();
        assert!(from_outside.succeeded(), "{from_outside:?}");
    }
    let nobody = format!("http://{}:8080/", pod_v4(200));
    assert_eq!(in_a.attempt(&["get", &nobody]).unwrap().outcome, Outcome::Error);
    let closed = format!("{}:81", b.v4());
    assert_eq!(in_a.attempt(&["tcp", &closed]).unwrap().outcome, Outcome::Refused);
}

#[test]
fn service_addresses_lead_to_their_backends_and_are_replaced_as_a_whole() {
    let topology = common::topology("egress-test-service", CgroupDriver::Systemd);
    let ((_, client), (web, in_web), (dns, in_dns)) =
        (pod(&topology, "client"), pod(&topology, "web"), pod(&topology, "dns"));
    let (v4, v6) = ("10.96.0.20".parse().unwrap(), "fd00:10:96::20".parse().unwrap());
    let _web = http(&in_web, "8080", "web");
    let record = format!("web.default.svc.cluster.local={v4},{v6}");
    let _dns = in_dns.serve(&Exec::probe(["serve-dns", "--port", "53", "--record", &record])).unwrap();
    let services = [
        Service::new("default", "web", &[v4, v6]).port(Protocol::Tcp, 80, 8080).backend(&web),
        Service::new("kube-system", "dns", &["10.96.0.10".parse().unwrap()])
            .port(Protocol::Udp, 53, 53)
            .backend(&dns),
    ];
    topology.set_services(&services).unwrap();
    for url in ["http://10.96.0.20/", "http://[fd00:10:96::20]/"] {
        let attempt = client.attempt(&["get", url]).unwrap();
        assert_eq!(attempt.http_reply().map(|reply| reply.server).as_deref(), Some("web"), "{attempt:?}");
    }
    let words = ["resolve", "web.default.svc.cluster.local", "--dns", "10.96.0.10"];
    assert_eq!(client.attempt(&words).unwrap().addresses(), [v4, v6]);
    let by_name = ["get", "http://web.default.svc.cluster.local/", "--dns", "10.96.0.10:53"];
    assert!(client.attempt(&by_name).unwrap().succeeded());
    let node = topology.node_exec(&Exec::probe(["get", "http://10.96.0.20/"])).unwrap();
    assert!(node.output_json::<egress_probe::Attempt>(SECONDS).unwrap().succeeded());

    let unserved = Service::new("default", "web", &[v4]).port(Protocol::Tcp, 80, 8080);
    topology.set_services(&[unserved]).unwrap();
    assert_eq!(client.attempt(&["get", "http://10.96.0.20/"]).unwrap().outcome, Outcome::Refused);
    let gone = client.attempt(&["resolve", "a", "--dns", "10.96.0.10", "--timeout-ms", "300"]).unwrap();
    assert_ne!(gone.outcome, Outcome::Ok);

    let (second, in_second) = pod(&topology, "web2");
    let _second = http(&in_second, "8080", "web2");
    let two = Service::new("default", "web", &[v4, v6])
        .port(Protocol::Tcp, 80, 8080)
        .backend(&web)
        .backend(&second);
    topology.set_services(&[two]).unwrap();
    for url in ["http://10.96.0.20/", "http://[fd00:10:96::20]/"] {
        let mut servers: Vec<String> =
            (0..2).map(|_| client.attempt(&["get", url]).unwrap().http_reply().unwrap().server).collect();
        servers.sort();
        assert_eq!(servers, ["web", "web2"], "{url}");
    }
}

#[test]
fn redirected_tcp_goes_through_the_proxy_and_the_gateway() {
    let topology = common::topology("egress-test-mesh", CgroupDriver::Systemd);
    let ((app_pod, app), (peer, in_peer), (gateway, in_gateway)) =
        (pod(&topology, "app"), pod(&topology, "peer"), pod(&topology, "gateway"));
    let sidecar = app_pod.add_container_of_kind("istio-proxy", ContainerKind::Sidecar).unwrap();
    let _gateway = in_gateway.serve(&Exec::probe(["gateway", "--port", "15443"])).unwrap();
    let by = format!("{}:15443", gateway.v4());
    let proxy = Exec::probe(["proxy", "--mesh", "10.244.0.0/16", "fd00:10:244::/48", "--gateway", &by]);
    let _proxy = sidecar.serve(&proxy.user(1337)).unwrap();
    topology.istio_redirect(&app_pod).unwrap();
    let serve = Exec::probe(["serve-http", "--port", "80", "--name", "world"]);
    let _world = topology.outside_serve(&serve).unwrap();
    let _peer = http(&in_peer, "8080", "peer");

    for (url, source) in [
        (format!("http://{OUTSIDE_V4}/"), gateway.v4().to_string()),
        (format!("http://[{OUTSIDE_V6}]/"), format!("[{}]", gateway.v6())),
    ] {
        let attempt = app.attempt(&["get", &url]).unwrap();
        let reply = attempt.http_reply().unwrap_or_else(|| panic!("{attempt:?}"));
        assert_eq!(attempt.status, Some(200));
        assert!(reply.server == "world" && reply.peer.starts_with(&source), "{reply:?}");
    }
    for (url, source) in [
        (format!("http://{}:8080/", peer.v4()), app_pod.v4().to_string()),
        (format!("http://[{}]:8080/", peer.v6()), format!("[{}]", app_pod.v6())),
    ] {
        let reply = app.attempt(&["get", &url]).unwrap().http_reply().unwrap();
        assert!(reply.server == "peer" && reply.peer.starts_with(&source), "{reply:?}");
    }
    // User 1337 passes by, as the attacker would; nothing listens on the proxy's behalf for a closed port.
    let bypass = Exec::probe(["get", &format!("http://{OUTSIDE_V4}/")]).user(1337);
    let reply: egress_probe::Attempt = app.spawn(&bypass).unwrap().output_json(SECONDS).unwrap();
    assert!(reply.http_reply().unwrap().peer.starts_with(&app_pod.v4().to_string()));
    for url in [format!("http://{OUTSIDE_V4}:81/"), format!("http://{}:81/", peer.v4())] {
        let attempt = app.attempt(&["get", &url]).unwrap();
        assert_eq!(attempt.status, Some(503), "{attempt:?}");
        assert!(attempt.body.unwrap().starts_with("upstream connect error"));
    }
    let own = app.attempt(&["get", &format!("http://{}:15001/", app_pod.v4())]).unwrap();
    assert!(!own.succeeded(), "the proxy must not proxy to itself: {own:?}");
}

#[test]
fn what_reaches_the_outside_is_captured_also_past_ip_sockets() {
    let topology = common::topology("egress-test-capture", CgroupDriver::Cgroupfs);
    let (pod, container) = pod(&topology, "a");
    let mut capture = topology.outside_serve(&Exec::probe(["capture", "--interface", "eth0"])).unwrap();
    let target = OUTSIDE_V4.to_string();
    let mut expect = |words: &[&str], src: &str, dport: u16| {
        let attempt = container.attempt(words).unwrap();
        assert_eq!(attempt.outcome, Outcome::Ok, "{words:?}: {attempt:?}");
        let packet: Captured = capture.next_json(SECONDS).unwrap().expect("a packet");
        assert_eq!((packet.src.to_string().as_str(), packet.dport), (src, Some(dport)), "{packet:?}");
        assert_eq!(packet.protocol, "UDP");
    };
    expect(&["raw", &target, "--from", "203.0.113.7", "--port", "4001"], "203.0.113.7", 4001);
    expect(&["packet", &target, "--port", "4002"], &pod.v4().to_string(), 4002);
    expect(&["packet", &OUTSIDE_V6.to_string(), "--port", "4003"], &pod.v6().to_string(), 4003);
    assert!(capture.pending_json::<Captured>().unwrap().is_empty(), "nothing else arrives");
}

#[test]
fn scripts_and_held_connections_go_on() {
    let topology = common::topology("egress-test-hold", CgroupDriver::Systemd);
    let (_, container) = pod(&topology, "a");
    let _udp = topology.outside_serve(&Exec::probe(["serve-udp", "--port", "7"])).unwrap();
    let echo = topology.outside_serve(&Exec::probe(["serve-echo", "--port", "7"])).unwrap();
    let mut script = container.serve(&Exec::probe(["script"]).with_stdin()).unwrap();
    for target in [format!("{OUTSIDE_V4}:7"), format!("[{OUTSIDE_V6}]:7")] {
        assert_eq!(script.attempt(&["udp", &target], SECONDS).unwrap().body.as_deref(), Some("probe"));
        assert!(script.attempt(&["tcp", &target], SECONDS).unwrap().succeeded());
    }
    let closed = format!("{OUTSIDE_V4}:8");
    assert_eq!(script.attempt(&["udp", &closed], SECONDS).unwrap().outcome, Outcome::Refused);
    let target = format!("{OUTSIDE_V4}:7");
    let mut hold = container.spawn(&Exec::probe(["hold", &target, "--interval-ms", "50"])).unwrap();
    for sequence in 0..4 {
        let beat: Beat = hold.next_json(SECONDS).unwrap().unwrap();
        assert_eq!((beat.sequence, beat.outcome), (sequence, Outcome::Ok), "{beat:?}");
    }
    topology.outside().ip(&["link set eth0 down"]).unwrap();
    let timed_out =
        (0..6).any(|_| hold.next_json::<Beat>(SECONDS).unwrap().unwrap().outcome == Outcome::Timeout);
    assert!(timed_out, "a dead link shows in the held connection");
    drop(echo);
}
