//! What services led to a moment ago: connections that go on, and new ones before kube-proxy has followed. Real agent, real kernel, and
//! nftables as kube-proxy has it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use common::Stand;
use egress_probe::{Beat, Outcome};
use egress_topology::{
    Backend, CgroupDriver, Container, Exec, NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, PodSpec, Process,
    Protocol, Service, kubernetes,
};
use serde_json::json;

/// The port of the services, and that of the servers.
const PORT: u16 = 80;
const ECHO: u16 = 7;
/// What a service led to counts for ten seconds, looked at every five; then connections are looked at.
const FOLLOWED: Duration = Duration::from_secs(40);

struct Scene {
    stand: Stand,
    /// The pod that asks.
    app: Container,
    /// A server in the cluster.
    peer: Container,
}

impl Scene {
    fn new() -> Self {
        let mut stand = Stand::new(CgroupDriver::Systemd);
        let echo = Exec::probe(["serve-echo", "--port", &ECHO.to_string()]);
        stand.servers.push(stand.topology.outside_serve(&echo).unwrap());
        let peer = stand.pod(PodSpec::new("default", "peer"));
        stand.servers.push(peer.serve(&echo).unwrap());
        let app = stand.pod(PodSpec::new("a", "app"));
        stand.write(kubernetes::node(&stand.topology));
        Self { stand, app, peer }
    }

    fn service(name: &str, number: u8, backend: impl Into<Backend>) -> Service {
        let addresses = [format!("10.96.7.{number}"), format!("fd00:10:96::{number}")];
        let addresses = addresses.map(|one| one.parse::<IpAddr>().unwrap());
        Service::new("default", name, &addresses).port(Protocol::Tcp, PORT, ECHO).backend(backend)
    }

    fn outside() -> Backend {
        Backend { v4: Some(OUTSIDE_V4), v6: Some(OUTSIDE_V6), pod: None }
    }

    fn write(&self, service: &Service) {
        self.stand.write(kubernetes::service(service));
        for slice in kubernetes::endpoint_slices(service, self.stand.topology.node_name()) {
            self.stand.write(slice);
        }
    }

    fn hold(&self, service: &Service) -> Vec<Process> {
        self.hold_at(&service.addresses, PORT)
    }

    fn hold_at(&self, addresses: &[IpAddr], port: u16) -> Vec<Process> {
        let words = |ip: &IpAddr| {
            let target = SocketAddr::new(*ip, port).to_string();
            Exec::probe(["hold", &target, "--for-ms", "120000", "--interval-ms", "300"])
        };
        addresses.iter().map(|ip| self.app.spawn(&words(ip)).unwrap()).collect()
    }

    fn reaches(&self, service: &Service) -> bool {
        service.addresses.iter().all(|ip| {
            let target = SocketAddr::new(*ip, PORT).to_string();
            self.app.attempt(&["tcp", &target, "--timeout-ms", "700"]).unwrap().outcome == Outcome::Ok
        })
    }

    #[track_caller]
    fn waits(&self, service: &Service) {
        let start = Instant::now();
        while !self.reaches(service) {
            assert!(start.elapsed() < FOLLOWED, "new connections never pass: {}", self.stand.agent.log());
        }
    }
}

/// Waits for the next echo; some may have been missed.
#[track_caller]
fn goes_on(process: &mut Process) {
    let start = Instant::now();
    let _before = echoes(process);
    while process.next_json::<Beat>(FOLLOWED).unwrap().unwrap().outcome != Outcome::Ok {
        assert!(start.elapsed() < FOLLOWED, "it does not go on");
    }
}

/// How many echoes came since the last call.
fn echoes(process: &mut Process) -> usize {
    let beats: Vec<Beat> = process.pending_json().unwrap();
    beats.iter().filter(|beat| beat.outcome == Outcome::Ok).count()
}

fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[test]
fn a_connection_goes_on_to_nothing_that_is_denied_whatever_the_service_leads_to_now() {
    let mut scene = Scene::new();
    let (out, inside) =
        (Scene::service("out", 7, Scene::outside()), Scene::service("in", 8, scene.peer.pod()));
    scene.stand.topology.set_services(&[out.clone(), inside.clone()]).unwrap();
    [&out, &inside].into_iter().for_each(|one| scene.write(one));
    scene.stand.start();
    let (mut doomed, mut lawful) = (scene.hold(&out), scene.hold(&inside));
    doomed.iter_mut().chain(&mut lawful).for_each(goes_on);

    scene.stand.lock_down(json!({}));
    pause(Duration::from_secs(1));
    doomed.iter_mut().for_each(|process| _ = echoes(process));
    let moved = Scene::service("out", 7, scene.peer.pod());
    scene.stand.topology.set_services(&[moved.clone(), inside.clone()]).unwrap();
    scene.write(&moved);
    scene.waits(&moved);
    pause(Duration::from_secs(3));
    for process in &mut doomed {
        assert_eq!(echoes(process), 0, "{}", scene.stand.agent.log());
    }
    for process in &mut lawful {
        assert!(echoes(process) > 10, "the other service's connections go on");
    }
    let log = scene.stand.agent.log();
    assert!(log.contains("goes on to what is denied now") && log.contains("198.51.100.10:7"), "{log}");
}

#[test]
fn who_is_locked_down_later_keeps_no_connection_to_what_a_service_led_to() {
    let mut scene = Scene::new();
    let out = Scene::service("out", 7, Scene::outside());
    scene.stand.topology.set_services(std::slice::from_ref(&out)).unwrap();
    scene.write(&out);
    scene.stand.start();
    let mut doomed = scene.hold(&out);
    doomed.iter_mut().for_each(goes_on);
    let moved = Scene::service("out", 7, scene.peer.pod());
    scene.stand.topology.set_services(std::slice::from_ref(&moved)).unwrap();
    scene.write(&moved);
    // Until that is forgotten.
    pause(Duration::from_secs(18));
    doomed.iter_mut().for_each(goes_on);
    scene.stand.lock_down(json!({}));
    scene.waits(&moved);
    pause(Duration::from_secs(2));
    doomed.iter_mut().for_each(|process| _ = echoes(process));
    pause(Duration::from_secs(2));
    doomed.iter_mut().for_each(|process| assert_eq!(echoes(process), 0, "{}", scene.stand.agent.log()));
}

/// By a port of the node, whose address a service has as well: its own port there leads to what is denied.
#[test]
fn by_a_port_of_the_node_nothing_goes_on_that_is_denied_and_nothing_ends_that_is_not() {
    const OUT: u16 = 30_666;
    const IN: u16 = 30_991;
    let node = [IpAddr::from(NODE_V4), NODE_V6.into()];
    let mut scene = Scene::new();
    let out = Scene::service("out", 7, Scene::outside()).node_port(OUT);
    let inside = Scene::service("in", 8, scene.peer.pod()).node_port(IN);
    let of_node = Scene::service("of-node", 9, scene.peer.pod());
    scene.stand.topology.set_services(&[out.clone(), inside.clone()]).unwrap();
    [&out, &inside, &of_node].into_iter().for_each(|one| scene.write(one));
    let mut chosen = kubernetes::service(&of_node);
    chosen["spec"]["externalIPs"] = json!(node);
    scene.stand.write(chosen);
    let to = [format!("{OUTSIDE_V4}/32"), format!("{OUTSIDE_V6}/128")].map(|cidr| json!({"cidr": cidr}));
    scene.stand.lock_down(json!({"allow": {"inCluster": false, "node": true, "to": to}}));
    scene.stand.start();
    let (mut doomed, mut lawful) = (scene.hold_at(&node, OUT), scene.hold_at(&node, IN));
    doomed.iter_mut().chain(&mut lawful).for_each(goes_on);

    let moved = Scene::service("out", 7, scene.peer.pod()).node_port(OUT);
    scene.stand.topology.set_services(&[moved.clone(), inside.clone()]).unwrap();
    scene.write(&moved);
    // Until it is forgotten where it led. As long as it counts, the pod closes the port, which may not be reached by itself.
    pause(Duration::from_secs(18));
    doomed.iter_mut().for_each(goes_on);
    scene.stand.lock_down(json!({"allow": {"inCluster": false, "node": true}}));
    pause(Duration::from_secs(6));
    doomed.iter_mut().chain(&mut lawful).for_each(|process| _ = echoes(process));
    pause(Duration::from_secs(2));
    doomed.iter_mut().for_each(|process| assert_eq!(echoes(process), 0, "{}", scene.stand.agent.log()));
    // A connection that is forgotten, and translated as before, goes on here, and would not where the node hides its pods.
    let log = scene.stand.agent.log();
    assert!(log.contains(&format!(":{OUT} ")) && !log.contains(&format!(":{IN} ")), "{log}");
    lawful.iter_mut().for_each(|process| assert!(echoes(process) > 2, "{log}"));
}

/// kube-proxy is late: the objects say otherwise already.
#[test]
fn nothing_new_gets_through_before_the_node_has_followed() {
    let mut scene = Scene::new();
    let out = Scene::service("out", 7, Scene::outside());
    scene.stand.topology.set_services(std::slice::from_ref(&out)).unwrap();
    scene.write(&out);
    scene.stand.lock_down(json!({"allow": {"to": [{"cidr": "10.0.0.0/8"}, {"cidr": "fd00::/8"}]}}));
    scene.stand.start();
    assert!(!scene.reaches(&out));
    let moved = Scene::service("out", 7, scene.peer.pod());
    scene.write(&moved);
    let late = Instant::now();
    while late.elapsed() < Duration::from_secs(4) {
        assert!(!out.addresses.iter().any(|ip| {
            let target = SocketAddr::new(*ip, PORT).to_string();
            scene.app.attempt(&["tcp", &target, "--timeout-ms", "200"]).unwrap().outcome == Outcome::Ok
        }));
    }
    scene.stand.topology.set_services(std::slice::from_ref(&moved)).unwrap();
    scene.waits(&moved);
}
