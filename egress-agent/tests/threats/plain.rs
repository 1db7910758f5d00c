//! Rows 1 and 10: sockets as everybody opens them, past the sidecar.

use egress_topology::{Capabilities, Container, ContainerKind, Pod, PodSpec};
use serde_json::json;

use crate::attack::{Attack, Shot, attack};
use crate::common::{Stand, eventually, pod_object};
use crate::range::{At, Range};

/// What any program can do.
pub(crate) fn plain(reason: &'static str) -> Vec<Attack> {
    let connect = |words: &'static [&'static str]| {
        move |shot: &Shot<'_>| {
            let target = shot.to().to_string();
            shot.probe(&[words, &[target.as_str(), "--timeout-ms", "150"]].concat())
        }
    };
    let datagram = |shot: &Shot<'_>| {
        let target = shot.to().to_string();
        shot.probe(&["udp", &target, "--payload", &shot.tag, "--timeout-ms", "20"])
    };
    let ping = |shot: &Shot<'_>| {
        let target = shot.to().ip().to_string();
        shot.probe(&["ping", &target, "--payload", &shot.tag, "--timeout-ms", "200"])
    };
    vec![
        attack("connect", connect(&["tcp"])).reason(reason),
        attack("connect by MPTCP", connect(&["tcp", "--mptcp"])).reason(reason),
        attack("a datagram", datagram).reason(reason),
        attack("an echo request", ping).reason(reason),
        attack("connect as the sidecar's user", connect(&["tcp"])).user(1337).reason(reason),
        attack("a datagram as the sidecar's user", datagram).user(1337).reason(reason),
        attack("a datagram without any capability", datagram).with(Capabilities::NONE),
    ]
}

#[test]
fn row_1_plain_sockets_of_every_container() {
    let mut range = Range::new(json!({}));
    range.prove(&plain("NotAllowed"));
    for kind in [ContainerKind::Init, ContainerKind::Ephemeral] {
        let container = range.locked.pod().add_container_of_kind("more", kind).unwrap();
        range.prove_stopped(At::Outside, &container, &plain("NotAllowed"));
        range.lawful_of(&container);
    }
    range.stand.agent.kill().unwrap();
    let attacks: Vec<_> = plain("").into_iter().map(Attack::quiet).collect();
    range.prove(&attacks);
}

/// The proxy's container of a pod, once the agent knows it.
pub(crate) fn proxy(stand: &Stand, pod: &Pod) -> Container {
    let proxy = pod.add_container_of_kind("istio-proxy", ContainerKind::Sidecar).unwrap();
    stand.write(pod_object(stand, pod));
    eventually("the proxy is known", || {
        let endpoints = stand.agent.ask(&["endpoints", "-o", "json"]).unwrap();
        String::from_utf8(endpoints.stdout).unwrap().contains(r#""proxies":["istio-proxy"]"#)
    });
    proxy
}

#[test]
fn row_1_under_a_proxy_lock_only_the_proxy_gets_out() {
    let mut range = Range::locked_to_proxy();
    range.stand.start();
    let proxy = proxy(&range.stand, range.locked.pod());
    let app = range.locked.clone();
    range.prove_stopped(At::Outside, &app, &plain("SidecarBypass"));
    for kind in [ContainerKind::Init, ContainerKind::Ephemeral] {
        // Of the proxy's name, and as its user, but not the proxy.
        let container = range.locked.pod().add_container_of_kind("istio-proxy", kind).unwrap();
        range.prove_stopped(At::Outside, &container, &plain("SidecarBypass"));
    }
    // The same bytes, by the one who may.
    range.prove_arrives(At::Outside, &proxy, &plain(""));
    range.stand.agent.kill().unwrap();
    let attacks: Vec<_> = plain("").into_iter().map(Attack::quiet).collect();
    range.prove_stopped(At::Outside, &app, &attacks);
    range.prove_arrives(At::Outside, &proxy, &attacks);
}

#[test]
fn row_10_a_pod_that_nobody_knows_yet() {
    let mut range = Range::new(json!({}));
    let pod = range.stand.topology.add_pod(PodSpec::new("a", "stranger")).unwrap();
    let stranger = pod.add_container("app").unwrap();
    let attacks: Vec<_> = plain("").into_iter().map(Attack::quiet).collect();
    // At once, and when the agent has seen its cgroup.
    range.prove_stopped(At::Outside, &stranger, &attacks);
    eventually("it is counted", || range.stand.agent.status().unwrap()["unknown_pods"] == 1);
    range.prove_stopped(At::Outside, &stranger, &attacks);
    range.prove_stopped(At::Outside, &stranger, &crate::frames::frames(None));
    range.stand.write(pod_object(&range.stand, &pod));
    eventually("it is known", || range.stand.agent.status().unwrap()["unknown_pods"] == 0);
    range.prove_stopped(At::Outside, &stranger, &plain("NotAllowed"));
    range.lawful_of(&stranger);
}
