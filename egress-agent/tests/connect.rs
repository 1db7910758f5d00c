//! Who asks for a connection that is sure to be denied is told at once; whatever may still turn out otherwise is left to its
//! packets. Real agent, real kernel.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::{Stand, eventually};
use egress_probe::{Attempt, Outcome};
use egress_topology::{CgroupDriver, Container, Exec, OUTSIDE_V4, OUTSIDE_V6, PodSpec};
use serde_json::{Value, json};

/// Nobody is reached there by whom may not.
const PORT: u16 = 7;
/// Who is denied by packets alone waits for this time in vain.
const PATIENCE: &str = "400";

fn outside() -> [IpAddr; 2] {
    [OUTSIDE_V4.into(), OUTSIDE_V6.into()]
}

fn tcp(container: &Container, to: IpAddr) -> Attempt {
    let target = SocketAddr::new(to, PORT).to_string();
    container.attempt(&["tcp", &target, "--timeout-ms", PATIENCE]).unwrap()
}

#[track_caller]
fn comes_to(container: &Container, outcome: Outcome) {
    for to in outside() {
        let attempt = tcp(container, to);
        assert_eq!(attempt.outcome, outcome, "{attempt:?}");
    }
}

/// A pod that is locked down, one that is not, and a server outside.
fn stand(policy: Value) -> (Stand, Container, Container) {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(policy);
    stand.start();
    let locked = stand.pod(PodSpec::new("a", "locked"));
    let free = stand.pod(PodSpec::new("b", "free"));
    eventually("both pods are known", || {
        let status = stand.agent.status().unwrap();
        status["endpoints"]["Isolated"] == 1 && status["endpoints"]["Unselected"] == 1
    });
    (stand, locked, free)
}

fn serve(stand: &Stand) -> egress_topology::Process {
    stand.topology.outside_serve(&Exec::probe(["serve-echo", "--port", &PORT.to_string()])).unwrap()
}

#[test]
fn a_connection_that_is_denied_fails_at_once_and_says_who_asked() {
    let (stand, locked, free) = stand(json!({}));
    let _server = serve(&stand);
    comes_to(&locked, Outcome::Denied);
    comes_to(&free, Outcome::Ok);
    // The address of one family in the form of the other.
    let mapped = tcp(&locked, OUTSIDE_V4.to_ipv6_mapped().into());
    assert_eq!(mapped.outcome, Outcome::Denied, "{mapped:?}");
    eventually("the flows are there", || stand.agent.flows().unwrap().len() >= 3);
    for flow in stand.agent.flows().unwrap() {
        let told = (&flow["hook"], &flow["reason"], &flow["protocol"], &flow["pod"]);
        assert_eq!(
            told,
            (&json!("connect"), &json!("NotAllowed"), &json!("TCP"), &json!("a/locked")),
            "{flow}"
        );
        assert!(flow["process"]["pid"].as_u64().unwrap() > 1, "{flow}");
        assert_eq!(
            (&flow["process"]["uid"], &flow["process"]["command"]),
            (&json!(0), &json!("egress-probe"))
        );
    }
    // What is denied to one is not denied to the address: the pod's own and the loopback's are nobody's business.
    for own in [
        "127.0.0.1".parse().unwrap(),
        "::1".parse().unwrap(),
        "0.0.0.0".parse().unwrap(),
        IpAddr::from(locked.pod().v4()),
    ] {
        let attempt = tcp(&locked, own);
        assert_eq!(attempt.outcome, Outcome::Refused, "nobody listens there: {attempt:?}");
    }
    // Denied as long as the programs are there.
    let mut stand = stand;
    stand.agent.kill().unwrap();
    comes_to(&locked, Outcome::Denied);
    comes_to(&free, Outcome::Ok);
}

#[test]
fn what_is_allowed_or_audited_is_let_go_on() {
    let to = ["198.51.100.0/24", "2001:db8:51::/48"].map(|cidr| json!({"cidr": cidr}));
    let (stand, locked, _free) = stand(json!({"allow": {"to": to}}));
    let _server = serve(&stand);
    comes_to(&locked, Outcome::Ok);
    stand.lock_down(json!({}));
    eventually("it is denied", || tcp(&locked, OUTSIDE_V4.into()).outcome == Outcome::Denied);
    comes_to(&locked, Outcome::Denied);
    stand.lock_down(json!({"enforcement": "Audit"}));
    eventually("it is audited", || tcp(&locked, OUTSIDE_V4.into()).outcome == Outcome::Ok);
    comes_to(&locked, Outcome::Ok);
}

/// As the sidecar's redirect does, or any rule that might.
#[test]
fn what_the_pod_may_send_elsewhere_is_left_to_its_packets() {
    let (stand, locked, _free) = stand(json!({}));
    let _server = serve(&stand);
    let _own = locked.serve(&Exec::probe(["serve-echo", "--port", "15001"])).unwrap();
    comes_to(&locked, Outcome::Denied);
    let netns = locked.pod().netns();
    let redirect = "table inet sidecar {\n chain out {\n type nat hook output priority -100; policy accept;\n \
                    tcp dport 7 redirect to :15001\n }\n}\n";
    netns.nft(redirect).unwrap();
    comes_to(&locked, Outcome::Ok);
    netns.nft("delete table inet sidecar\n").unwrap();
    // Whatever hook there is may do it.
    netns.nft("table inet counted {\n chain out {\n type filter hook output priority 0; policy accept;\n counter\n }\n}\n").unwrap();
    comes_to(&locked, Outcome::Timeout);
    netns.nft("delete table inet counted\n").unwrap();
    // The kernel lets go of the hooks some time after their table.
    eventually("there are no hooks any more", || tcp(&locked, OUTSIDE_V4.into()).outcome == Outcome::Denied);
    comes_to(&locked, Outcome::Denied);
}

#[test]
fn a_pod_that_is_not_known_yet_may_be_in_a_moment() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.start();
    let pod = stand.topology.add_pod(PodSpec::new("a", "unannounced")).unwrap();
    let container = pod.add_container("app").unwrap();
    let waits = std::time::Instant::now();
    let attempt = tcp(&container, OUTSIDE_V4.into());
    assert_eq!(attempt.outcome, Outcome::Timeout, "{attempt:?}");
    assert!(waits.elapsed() >= Duration::from_millis(400));
}
