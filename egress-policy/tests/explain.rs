//! `explain`: the judge gives what the compiled state gives, and the chain says why.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::IpAddr;

use common::{json, lock, mesh, pod, service, set, slice};
use egress_common::{Action, Addr, Reason};
use egress_policy::compile::{UnknownPods, chain};
use egress_policy::explain::{Judge, Target};

fn target(address: &str, port: u16) -> Target {
    let address: IpAddr = address.parse().unwrap();
    Target { address, protocol: 6, port, behind: false }
}

#[test]
fn the_judge_gives_what_the_state_of_the_pods_node_gives() {
    let world = mesh().with(lock(json!({})));
    let names: Vec<_> = world.names.iter().map(|name| name.split_once('/').unwrap()).collect();
    let judge = Judge::new(&world.index, UnknownPods::DenyOutside, names.iter().map(|name| (*name, None)));
    let mut passed = 0;
    for (name, (namespace, pod)) in world.names.iter().zip(names) {
        let flows = [
            ("10.0.1.2", 80),
            ("10.0.2.1", 8443),
            ("10.96.0.9", 443),
            ("198.51.100.10", 443),
            ("10.96.0.10", 53),
        ];
        let targets: Vec<_> = flows.iter().map(|(address, port)| target(address, *port)).collect();
        let judged = judge.judge((namespace, pod), None, &targets);
        for ((address, port), judged) in flows.iter().zip(judged) {
            let own = &world.index.pod(namespace, pod).unwrap().addresses;
            if own.contains(&address.parse().unwrap()) {
                assert!(matches!(judged.reason, Reason::Loopback | Reason::Unselected), "{name}");
                continue;
            }
            let verdict = world.verdict(name, address, &format!("tcp/{port}"));
            assert_eq!((judged.action, judged.reason), (verdict.action, verdict.reason), "{name} {address}");
            passed += usize::from(judged.action == Action::Allow);
        }
    }
    assert!(passed > 5, "{passed}");
}

#[test]
fn what_stays_in_the_pod_is_judged_as_what_stays_there() {
    let world = mesh().with(lock(json!({"allow": {"inCluster": false}})));
    let judge = Judge::new(&world.index, UnknownPods::DenyOutside, [(("app", "web"), None)]);
    let own = target(&world.index.pod("app", "web").unwrap().addresses[0].to_string(), 80);
    let judged = judge.judge(
        ("app", "web"),
        None,
        &[own, target("127.0.0.1", 80), target("::1", 80), target("10.0.1.2", 80)],
    );
    let reasons: Vec<_> = judged.iter().map(|one| one.reason).collect();
    assert_eq!(reasons[..3], [Reason::Loopback; 3]);
    assert_eq!(reasons[3], Reason::NotAllowed);
}

/// Of a pod of the node's network, the node's own ports that lead elsewhere are translated before they are judged.
#[test]
fn a_port_of_its_node_that_leads_out_does_not_stay_there() {
    let host = set(pod("app/host", "192.168.0.1", json!({})), "/spec/hostNetwork", json!(true));
    let judged = |world: &common::World| {
        let judge = Judge::new(&world.index, UnknownPods::DenyOutside, [(("app", "host"), None)]);
        let targets = [target("192.168.0.1", 30443), target("192.168.0.1", 10250)];
        let [out, own] = &judge.judge(("app", "host"), None, &targets)[..] else { panic!() };
        assert_eq!(own.reason, Reason::Loopback, "a port beside it");
        out.reason
    };
    let world = mesh().with(lock(json!({}))).with(host);
    assert_eq!(judged(&world), Reason::Loopback);
    let world = world
        .with(service("app/out", "10.96.0.66", json!([{"name": "x", "port": 443, "nodePort": 30443}])))
        .with(slice("app/out", &["203.0.113.7"], json!([{"name": "x", "port": 443}])));
    assert_eq!(judged(&world), Reason::NotAllowed);
}

#[test]
fn a_pod_that_is_not_there_is_unknown() {
    let world = mesh().with(lock(json!({})));
    let judge = Judge::new(&world.index, UnknownPods::DenyOutside, [(("no", "body"), None)]);
    let judged = judge.judge(("no", "body"), None, &[target("198.51.100.10", 443), target("10.0.1.2", 80)]);
    assert_eq!(
        judged.iter().map(|one| one.reason).collect::<Vec<_>>(),
        [Reason::UnknownPod, Reason::UnknownPodAllowed]
    );
}

#[test]
fn the_chain_names_tiers_rules_and_backends() {
    let deny_all = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "app", "name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    });
    let world = mesh().with(lock(json!({}))).with(deny_all);
    let to = target("10.96.0.9", 443);
    let chain = chain(&world.index, ("app", "web"), None, to.address, (to.protocol, to.port));
    let [mesh, network] = &chain.tiers[..] else { panic!("{chain:?}") };
    assert!(mesh.rule.as_ref().unwrap().path.starts_with("spec.gateways[0]"), "{mesh:?}");
    assert_eq!((network.policies[0].to_string().as_str(), &network.rule), ("NetworkPolicy app/deny", &None));
    let backends: Vec<_> = chain.backends.iter().map(|b| (b.address.to_string(), b.port)).collect();
    assert_eq!(backends, [("10.0.2.1".to_owned(), 8443)]);
    assert!(!world.allows("app/web", "10.96.0.9", "tcp/443"));
}

#[test]
fn the_chain_names_whose_gateway_the_destination_is() {
    let gateway = json!({"addresses": ["203.0.113.9/32", "198.51.100.0/24"]});
    let world = mesh()
        .with(lock(json!({"gateways": [gateway, {"pods": {"matchLabels": {"istio": "egressgateway"}}}]})));
    let of = |address: &str, port| {
        let chain = chain(&world.index, ("app", "web"), None, address.parse().unwrap(), (6, port));
        chain.gateway_of.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for (address, port) in [("10.0.2.1", 8443), ("10.96.0.9", 443), ("203.0.113.9", 443)] {
        assert_eq!(of(address, port), ["EgressGatewayPolicy mesh"], "{address}");
    }
    for address in ["198.51.100.10", "10.0.1.2"] {
        assert!(of(address, 443).is_empty(), "{address}");
    }
}

#[test]
fn a_container_is_taken_at_its_word() {
    let world = mesh().with(lock(json!({"proxy": {"containers": ["istio-proxy"]}})));
    let (web, proxy) = (("app", "web"), Some("istio-proxy"));
    let judge =
        Judge::new(&world.index, UnknownPods::DenyOutside, [(web, proxy), (web, None), (web, Some("app"))]);
    let reason = |container| judge.judge(web, container, &[target("10.0.2.1", 8443)])[0].reason;
    assert_eq!(reason(proxy), Reason::Allowed);
    assert_eq!([reason(None), reason(Some("app"))], [Reason::SidecarBypass; 2]);
    let tiers = |container| chain(&world.index, web, container, "10.0.2.1".parse().unwrap(), (6, 8443)).tiers;
    assert!(tiers(proxy)[0].rule.is_some() && tiers(None)[0].rule.is_none());
    assert_eq!(tiers(None)[0].tier, "EgressGatewayPolicy");
    let proxies = chain(&world.index, web, None, "10.0.2.1".parse().unwrap(), (6, 8443)).proxies;
    assert_eq!(proxies.into_iter().collect::<Vec<_>>(), ["istio-proxy"]);
    assert!(
        chain(&world.index, ("other", "free"), None, "10.0.2.1".parse().unwrap(), (6, 1)).proxies.is_empty()
    );
}

#[test]
fn the_part_of_a_state_that_counts_judges_as_the_whole_and_its_differences_are_found() {
    let to = json!([{"cidr": "198.51.100.0/24", "ports": [{"protocol": "TCP", "port": 443}]}]);
    let world = mesh().with(lock(json!({"allow": {"to": to}})));
    let compiled = world.compile();
    let judge = Judge::of_node(&world.index, &compiled);
    let flows = [("10.0.1.2", 80), ("10.96.0.9", 443), ("198.51.100.10", 443), ("203.0.113.1", 443)];
    for name in &world.names {
        let pod = name.split_once('/').unwrap();
        let cgroup = judge.cgroup(pod);
        assert_eq!(cgroup, Some(world.cgroup(name)));
        for (to, port) in flows {
            let to = target(to, port);
            let IpAddr::V4(v4) = to.address else { panic!("{to}") };
            let part = compiled.desired.narrowed(cgroup, &[Addr::v4(v4.octets())]);
            assert!(part.endpoints.len() == 1 && part.rows.len() < compiled.desired.rows.len());
            assert_eq!(judge.judge_by(&part, pod, None, &[to]), judge.judge(pod, None, &[to]), "{name} {to}");

            let mut kernel = part.clone();
            kernel.config.revision = 7;
            assert_eq!(part.differences(&kernel), []);
            kernel.endpoints.clear();
            assert_eq!(judge.judge_by(&kernel, pod, None, &[to])[0].reason.name()[..10], *"UnknownPod");
            let [difference] = &part.differences(&kernel)[..] else { panic!("{kernel:?}") };
            assert!(difference.kernel.is_none(), "{difference:?}");
            assert!(difference.compiled.as_ref().unwrap().starts_with("endpoint "), "{difference:?}");
            let mut kernel = part.clone();
            kernel.addresses.values_mut().for_each(|identity| *identity ^= 1);
            let differences = part.differences(&kernel);
            assert_eq!(differences.len(), part.addresses.len());
            assert!(
                differences.iter().all(|one| one.kernel.is_some() && one.compiled.is_some()),
                "{differences:?}"
            );
        }
    }
}
