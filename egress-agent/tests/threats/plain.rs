//! Rows 1 and 10: sockets as everybody opens them, past the sidecar.

use std::net::{IpAddr, SocketAddr};

use egress_probe::Outcome;
use egress_topology::{
    Capabilities, Container, ContainerKind, NODE_V4, NODE_V6, Pod, PodSpec, Protocol, Service, kubernetes,
};
use serde_json::{Value, json};

use crate::attack::{Attack, Shot, attack};
use crate::common::{Stand, UDP, eventually, pod_object};
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
fn row_1_through_a_port_of_the_node() {
    const NODE_PORT: u16 = 30999;
    let gateway = |clients: Value| {
        json!({"allow": {"node": true}, "gateways": [{"pods": {}, "clients": clients,
            "namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}]})
    };
    let mut range = Range::without_agent(gateway(json!([])));
    let addresses = ["10.96.7.7".parse().unwrap(), "fd00:10:96::77".parse().unwrap()];
    let service =
        Service::new("default", "exposed", &addresses).port(Protocol::Udp, 9, UDP).node_port(NODE_PORT);
    let service = service.backend(range.peer.pod());
    range.stand.topology.set_services(std::slice::from_ref(&service)).unwrap();
    range.stand.write(kubernetes::node(&range.stand.topology));
    range.stand.write(kubernetes::service(&service));
    kubernetes::endpoint_slices(&service, range.stand.topology.node_name())
        .into_iter()
        .for_each(|slice| range.stand.write(slice));
    range.stand.start();
    let outcome = |from: &Container, node: IpAddr, port: u16| {
        let target = SocketAddr::new(node, port).to_string();
        from.attempt(&["udp", &target, "--timeout-ms", "1500"]).unwrap().outcome
    };
    for node in [IpAddr::from(NODE_V4), NODE_V6.into()] {
        assert_eq!(outcome(&range.free, node, NODE_PORT), Outcome::Ok, "it leads to the gateway");
        assert_eq!(outcome(&range.locked, node, NODE_PORT), Outcome::Denied, "{node}");
        // Nobody listens there: it is the node that refuses.
        assert_eq!(outcome(&range.locked, node, NODE_PORT + 1), Outcome::Refused, "{node}");
    }
    range.stand.lock_down(gateway(json!([{"namespaces": {}}])));
    for node in [IpAddr::from(NODE_V4), NODE_V6.into()] {
        eventually("its clients get there", || outcome(&range.locked, node, NODE_PORT) == Outcome::Ok);
    }
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
