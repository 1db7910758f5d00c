//! Rows 1, 8 and 9 of the threat model by SCTP, with the kernel's own sockets.
//!
//! Where the kernel has no SCTP, these tests fail; `cargo xtask test` leaves them out there and says so. Debian's kernels have it:
//! `cargo xtask test --vm`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::{Stand, endpoints};
use egress_probe::{Captured, Outcome};
use egress_topology::{CgroupDriver, Container, Exec, OUTSIDE_V4, OUTSIDE_V6, PodSpec, Process};
use serde_json::{Value, json};

/// Where each association of a server has a socket of its own.
const ONE: u16 = 36_412;
/// Where one socket has all of them.
const MANY: u16 = 36_413;

/// The servers of a pod, or of the outside.
fn serve(start: impl Fn(&Exec) -> anyhow::Result<Process>) -> [Process; 2] {
    let one = ["serve-sctp", "--port", &ONE.to_string()];
    let many = ["serve-sctp", "--many", "--port", &MANY.to_string()];
    [&one[..], &many[..]].map(|words| {
        let mut server = start(&Exec::probe(words)).unwrap();
        server.wait_ready(Duration::from_secs(5)).unwrap();
        server
    })
}

fn own(container: &Container, v6: bool) -> IpAddr {
    if v6 { container.pod().v6().into() } else { container.pod().v4().into() }
}

fn outside(v6: bool) -> IpAddr {
    if v6 { OUTSIDE_V6.into() } else { OUTSIDE_V4.into() }
}

/// A pod under a policy and one under none.
fn stand(more: Value) -> (Stand, [Container; 2]) {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(more);
    let pods = [PodSpec::new("a", "locked"), PodSpec::new("b", "free")].map(|spec| stand.pod(spec));
    stand.start();
    for pod in &pods {
        common::eventually("the pods are covered", || {
            let known = endpoints(&stand.agent);
            known.iter().any(|one| one["name"] == pod.pod().name() && one["coverage"] == "socket+veth")
        });
    }
    (stand, pods)
}

#[test]
fn sctp_servers_answer() {
    let (mut stand, pods) = stand(json!({}));
    let _servers = pods.each_ref().map(|pod| serve(|exec| pod.spawn(exec)));
    let ask = |stand: &Stand, alone: bool| {
        for (pod, v6, port) in all(&pods, [ONE, MANY]) {
            let (target, from) = (SocketAddr::new(own(pod, v6), port).to_string(), outside(v6).to_string());
            let more: &[&str] = if alone { &["--from", &from] } else { &[] };
            let words = [&["sctp", &target, "--timeout-ms", "8000"], more].concat();
            let attempt = stand.topology.outside_attempt(&words).unwrap();
            assert_eq!(attempt.outcome, Outcome::Ok, "{target} of {}: {attempt:?}", pod.pod().name());
        }
    };
    // Of one address each, so that nobody looks whether others can be reached.
    ask(&stand, true);
    // Nothing had to be sent twice.
    for endpoint in endpoints(&stand.agent) {
        assert_eq!(endpoint["denials"], json!([]), "{endpoint}");
    }
    ask(&stand, false);
    stand.agent.kill().unwrap();
    ask(&stand, true);
}

#[test]
fn sctp_clients_reach_what_is_allowed_by_sctp() {
    // The same ports by UDP open nothing.
    let ports = json!([{"protocol": "SCTP", "port": ONE}, {"protocol": "UDP", "port": MANY}]);
    let to = [format!("{OUTSIDE_V4}/32"), format!("{OUTSIDE_V6}/128")];
    let to = to.map(|cidr| json!({"cidr": cidr, "ports": ports}));
    let (stand, pods) = stand(json!({"allow": {"to": to}}));
    let _servers = serve(|exec| stand.topology.outside_exec(exec));
    let mut capture = stand.topology.outside_exec(&Exec::probe(["capture"])).unwrap();
    capture.wait_ready(Duration::from_secs(5)).unwrap();
    let mut arrived = |from: IpAddr, port: u16| {
        std::thread::sleep(Duration::from_millis(300));
        let seen: Vec<Captured> = capture.pending_json().unwrap();
        let meant = |one: &&Captured| one.src == from && one.protocol == "SCTP" && one.dport == Some(port);
        seen.iter().filter(meant).count()
    };
    for (pod, v6, port) in all(&pods, [ONE, MANY]) {
        let target = SocketAddr::new(outside(v6), port).to_string();
        let attempt = pod.attempt(&["sctp", &target, "--timeout-ms", "4000"]).unwrap();
        let lawful = pod.pod().name() == "free" || port == ONE;
        let expected = if lawful { Outcome::Ok } else { Outcome::Timeout };
        assert_eq!(attempt.outcome, expected, "{target} from {}: {attempt:?}", pod.pod().name());
        assert_eq!(arrived(own(pod, v6), port) > 0, lawful, "{target} from {}", pod.pod().name());
    }
}

/// Each pod, by each family, at each port.
fn all(pods: &[Container; 2], ports: [u16; 2]) -> impl Iterator<Item = (&Container, bool, u16)> {
    let families = move |pod| [false, true].into_iter().flat_map(move |v6| ports.map(|port| (pod, v6, port)));
    pods.iter().flat_map(families)
}
