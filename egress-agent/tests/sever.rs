//! `run --sever`: what a change of policies denies is ended, and nothing else is. Real agent, real kernel.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use common::{Stand, eventually};
use egress_probe::{Beat, Outcome};
use egress_topology::{CgroupDriver, Container, Exec, OUTSIDE_V4, OUTSIDE_V6, PodSpec, Process};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
/// How long an echo is waited for. A connection that is ended says so well before.
const BEAT: u64 = 2000;
/// TCP echoes outside: what the change denies, and what it does not.
const DENIED: u16 = 7;
const ALLOWED: u16 = 70;

fn ports(ports: &[u16]) -> Value {
    let ports: Vec<_> = ports.iter().map(|port| json!({"protocol": "TCP", "port": port})).collect();
    let to = ["198.51.100.0/24", "2001:db8:51::/48"].map(|cidr| json!({"cidr": cidr, "ports": ports}));
    json!({"allow": {"to": to}})
}

fn hold_words(address: IpAddr, port: u16) -> Exec {
    let (target, beat) = (SocketAddr::new(address, port).to_string(), BEAT.to_string());
    Exec::probe(["hold", &target, "--for-ms", "120000", "--interval-ms", &beat])
}

fn hold(container: &Container, address: IpAddr, port: u16) -> Process {
    container.spawn(&hold_words(address, port)).unwrap()
}

#[track_caller]
fn beats(process: &mut Process) {
    let _before: Vec<Beat> = process.pending_json().unwrap();
    for _ in 0..2 {
        let beat: Beat = process.next_json(SOON).unwrap().unwrap();
        assert_eq!(beat.outcome, Outcome::Ok, "{beat:?}");
    }
}

/// The first beat that is not answered.
#[track_caller]
fn ends(process: &mut Process) -> Beat {
    let start = Instant::now();
    loop {
        let beat: Beat = process.next_json(SOON).unwrap().unwrap();
        if beat.outcome != Outcome::Ok {
            return beat;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it goes on: {beat:?}");
    }
}

fn stand(arguments: &[&str]) -> Stand {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.agent = stand.agent.arguments(arguments);
    for port in [DENIED, ALLOWED] {
        let words = ["serve-echo", "--port", &port.to_string()];
        stand.servers.push(stand.topology.outside_serve(&Exec::probe(words)).unwrap());
    }
    stand.lock_down(ports(&[DENIED, ALLOWED]));
    stand
}

fn severed(stand: &Stand) -> Value {
    stand.agent.status().unwrap()["severed"].clone()
}

#[test]
fn a_connection_that_a_new_policy_denies_is_ended_and_no_other() {
    let mut stand = stand(&["--sever"]);
    let pod = stand.pod(PodSpec::new("a", "pod"));
    let free = stand.pod(PodSpec::new("b", "free"));
    stand.servers.push(pod.serve(&Exec::probe(["serve-echo", "--port", "9"])).unwrap());
    stand.start();
    assert_eq!(stand.agent.status().unwrap()["lacks"], common::lacks(), "this kernel ends connections");
    let outside: [IpAddr; 2] = [OUTSIDE_V4.into(), OUTSIDE_V6.into()];
    let own: [IpAddr; 2] = [pod.pod().v4().into(), pod.pod().v6().into()];
    let mut doomed = outside.map(|address| hold(&pod, address, DENIED));
    let mut others: Vec<_> = outside
        .iter()
        .flat_map(|address| [hold(&pod, *address, ALLOWED), hold(&free, *address, DENIED)])
        .chain(own.map(|address| stand.topology.outside_exec(&hold_words(address, 9)).unwrap()))
        .collect();
    // Within the pod nothing is judged.
    others.push(hold(&pod, own[0], 9));
    doomed.iter_mut().chain(&mut others).for_each(beats);
    assert_eq!(severed(&stand), 0);

    stand.lock_down(ports(&[ALLOWED]));
    for process in &mut doomed {
        let last = ends(process);
        assert_eq!(last.outcome, Outcome::Error, "an error, not a time-out: {last:?}");
        assert!(last.detail.contains("103") || last.detail.contains("abort"), "ECONNABORTED: {last:?}");
        assert!(last.elapsed_ms < BEAT, "at once: {last:?}");
    }
    others.iter_mut().for_each(beats);
    eventually("both are counted", || severed(&stand) == 2);
    let log = stand.agent.log();
    for target in ["198.51.100.10:7", &SocketAddr::new(OUTSIDE_V6.into(), DENIED).to_string()] {
        let told = log.lines().filter(|line| line.contains("severed") && line.contains(target));
        let told: Vec<_> = told.collect();
        assert!(told.len() == 1 && told[0].contains("a/pod") && told[0].contains("NotAllowed"), "{log}");
    }
}

#[test]
fn a_pod_with_a_process_in_another_pods_network_is_looked_at_where_it_is_at_home() {
    let mut stand = stand(&["--sever"]);
    // Its network is the older one, which has the lower number.
    let other = stand.pod(PodSpec::new("b", "other"));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let guest = pod.spawn_in(&Exec::new("/usr/bin/sleep", ["120"]), other.pod()).unwrap();
    let mut doomed = hold(&pod, OUTSIDE_V4.into(), DENIED);
    let mut others = hold(&other, OUTSIDE_V4.into(), DENIED);
    beats(&mut doomed);
    // All that is in a pod is looked at every five seconds.
    eventually("the guest was seen", || {
        let pods = common::endpoints(&stand.agent);
        pods.iter().any(|one| one["name"] == "pod" && one["coverage"] != common::COVERED[0])
    });
    stand.lock_down(ports(&[ALLOWED]));
    assert_eq!(ends(&mut doomed).outcome, Outcome::Error);
    beats(&mut others);
    assert_eq!(severed(&stand), 1);
    guest.kill().unwrap();
}

#[test]
fn without_sever_it_hangs() {
    let mut stand = stand(&[]);
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let mut held = hold(&pod, OUTSIDE_V4.into(), DENIED);
    beats(&mut held);
    stand.lock_down(ports(&[ALLOWED]));
    let last = ends(&mut held);
    assert_eq!(last.outcome, Outcome::Timeout, "{last:?}");
    assert_eq!(severed(&stand), json!(null));
}

#[test]
fn what_the_pod_hands_to_its_own_proxy_is_not_what_leaves_it() {
    let mut stand = stand(&["--sever"]);
    let pod = stand.pod(PodSpec::new("a", "pod"));
    // As the redirect has it: the socket says that it is connected to the outside, and is to the pod.
    stand.servers.push(pod.serve(&Exec::probe(["serve-echo", "--port", "15001"])).unwrap());
    stand.start();
    let mut direct = hold(&pod, OUTSIDE_V4.into(), DENIED);
    beats(&mut direct);
    stand.topology.istio_redirect(pod.pod()).unwrap();
    let mut handed = hold(&pod, OUTSIDE_V4.into(), DENIED);
    beats(&mut handed);
    stand.lock_down(ports(&[ALLOWED]));
    assert_eq!(ends(&mut direct).outcome, Outcome::Error);
    beats(&mut handed);
    eventually("it is counted", || severed(&stand) == 1);
}

#[test]
fn a_lock_ends_the_connections_of_every_container_but_the_proxy() {
    let mut stand = stand(&["--sever"]);
    let app = stand.pod(PodSpec::new("a", "pod"));
    let proxy = app.pod().add_container("istio-proxy").unwrap();
    stand.write(common::pod_object(&stand, app.pod()));
    stand.start();
    let mut held = [hold(&app, OUTSIDE_V4.into(), DENIED), hold(&proxy, OUTSIDE_V4.into(), DENIED)];
    held.iter_mut().for_each(beats);
    let mut lock = ports(&[DENIED, ALLOWED]);
    lock["proxy"] = json!({"containers": ["istio-proxy"]});
    stand.lock_down(lock);
    let [of_app, of_proxy] = &mut held;
    assert_eq!(ends(of_app).outcome, Outcome::Error);
    beats(of_proxy);
    assert_eq!(severed(&stand), 1);
    assert!(stand.agent.log().contains("SidecarBypass"), "{}", stand.agent.log());
}

#[test]
fn audit_ends_nothing_and_enforcing_does() {
    let mut stand = stand(&["--sever"]);
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let mut held = hold(&pod, OUTSIDE_V4.into(), DENIED);
    beats(&mut held);
    let mut audit = ports(&[ALLOWED]);
    audit["enforcement"] = json!("Audit");
    stand.lock_down(audit);
    eventually("it is audited", || stand.agent.status().unwrap()["endpoints"]["Isolated (audit)"] == 1);
    beats(&mut held);
    assert_eq!(severed(&stand), 0);
    stand.lock_down(ports(&[ALLOWED]));
    assert_eq!(ends(&mut held).outcome, Outcome::Error);
    assert_eq!(severed(&stand), 1);
}

#[test]
fn in_the_nodes_network_only_the_pods_connections_are_ended() {
    let mut stand = stand(&["--sever"]);
    let pod = stand.pod(PodSpec::new("a", "host").host_network());
    stand.start();
    let words = hold_words(OUTSIDE_V4.into(), DENIED);
    let mut of_node = stand.topology.node_exec(&words).unwrap();
    let mut of_pod = pod.spawn(&words).unwrap();
    [&mut of_node, &mut of_pod].into_iter().for_each(beats);
    stand.lock_down(ports(&[ALLOWED]));
    assert_eq!(ends(&mut of_pod).outcome, Outcome::Error);
    beats(&mut of_node);
    assert_eq!(severed(&stand), 1);
}

#[test]
fn a_connection_that_came_in_stays_though_nobody_listens_any_more() {
    let mut stand = stand(&["--sever"]);
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let server = pod.serve(&Exec::probe(["serve-echo", "--port", "9", "--once"])).unwrap();
    stand.servers.push(server);
    let mut came_in = stand.topology.outside_exec(&hold_words(pod.pod().v4().into(), 9)).unwrap();
    let mut went_out = hold(&pod, OUTSIDE_V4.into(), DENIED);
    [&mut came_in, &mut went_out].into_iter().for_each(beats);
    stand.lock_down(ports(&[ALLOWED]));
    assert_eq!(ends(&mut went_out).outcome, Outcome::Error);
    beats(&mut came_in);
    assert_eq!(severed(&stand), 1);
}

/// What does not fit closes the pod for as long as that lasts; nothing is ended for it.
#[test]
fn what_is_closed_for_want_of_room_is_not_ended() {
    let mut stand = stand(&["--sever", "--map-entries", "egress_cidrs=2"]);
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let mut held = hold(&pod, OUTSIDE_V4.into(), DENIED);
    beats(&mut held);

    let mut more = ports(&[DENIED]);
    more["allow"]["to"][0]["except"] = json!(["198.51.100.16/30"]);
    stand.lock_down(more);
    assert_eq!(ends(&mut held).outcome, Outcome::Timeout, "{}", stand.agent.log());
    assert_eq!(stand.agent.status().unwrap()["ready"], false);
    assert_eq!(severed(&stand), 0);

    // As soon as all is known again, what is denied is.
    stand.lock_down(ports(&[DENIED, ALLOWED]));
    eventually("everything fits again", || stand.agent.status().unwrap()["ready"] == true);
    let mut other = hold(&pod, OUTSIDE_V6.into(), ALLOWED);
    beats(&mut other);
    stand.lock_down(ports(&[DENIED]));
    assert_eq!(ends(&mut other).outcome, Outcome::Error);
    eventually("it is counted", || severed(&stand) == 1);
}
