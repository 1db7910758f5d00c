//! The proxy lock: what only some containers of a pod may send.

mod common;

use common::{World, egp, json, labels, lock, mesh, np, set};
use egress_common::wire::PROXIES;
use egress_common::{Action, Reason, Verdict};

/// The mesh; `app/web` has an application and a proxy, and the lock-down names the proxy.
fn locked(scope: &str, extra: &common::Value) -> World {
    let mut policy = json!({"proxy": {"containers": ["istio-proxy"], "scope": scope}});
    for (field, value) in extra.as_object().into_iter().flatten() {
        policy[field] = value.clone();
    }
    with_proxy(mesh()).with(lock(policy))
}

fn with_proxy(mut world: World) -> World {
    let web = common::pod("app/web", "10.0.1.1", json!({"app": "web"}));
    let web =
        set(web, "/spec/containers", json!([{"name": "app"}, {"name": "istio-proxy"}, {"name": "debug"}]));
    world.local.clear();
    world.names.clear();
    world.add(web);
    world
}

const GATEWAY: (&str, &str) = ("10.0.2.1", "tcp/8443");
const OUTSIDE: (&str, &str) = ("198.51.100.7", "tcp/443");
const DATABASE: (&str, &str) = ("10.0.1.2", "tcp/5432");
const DNS: (&str, &str) = ("10.0.3.1", "udp/53");

fn verdict(world: &World, from: &str, to: (&str, &str)) -> Verdict {
    world.verdict(from, to.0, to.1)
}

fn allows(world: &World, from: &str, to: (&str, &str)) -> bool {
    verdict(world, from, to).action == Action::Allow
}

#[test]
fn egress_is_the_proxys_alone() {
    let world = locked("Egress", &json!({}));
    assert!(allows(&world, "app/web/istio-proxy", GATEWAY));
    assert!(world.allows("app/web/istio-proxy", "10.96.0.9", "tcp/443"), "by its service");
    for other in ["app/web/app", "app/web/debug", "app/web"] {
        assert_eq!(verdict(&world, other, GATEWAY).reason, Reason::SidecarBypass, "{other}");
        assert_eq!(world.verdict(other, "10.96.0.9", "tcp/443").reason, Reason::SidecarBypass, "{other}");
        assert_eq!(verdict(&world, other, OUTSIDE).reason, Reason::SidecarBypass, "{other}");
        assert!(allows(&world, other, DATABASE) && allows(&world, other, DNS), "{other}");
    }
    // Not its to send either, but no bypass.
    assert_eq!(verdict(&world, "app/web/istio-proxy", OUTSIDE).reason, Reason::NotAllowed);
}

#[test]
fn all_is_everything_but_dns() {
    let world = locked("All", &json!({}));
    assert!(
        allows(&world, "app/web/istio-proxy", DATABASE) && allows(&world, "app/web/istio-proxy", GATEWAY)
    );
    assert_eq!(verdict(&world, "app/web/app", DATABASE).reason, Reason::SidecarBypass);
    assert!(allows(&world, "app/web/app", DNS));
    let world = locked("All", &json!({"allow": {"dns": "None"}}));
    assert!(!allows(&world, "app/web/app", DNS), "not allowed, so not spared");
    assert!(allows(&world, "app/web/istio-proxy", DATABASE));
}

#[test]
fn absent_is_egress_and_an_empty_list_names_no_proxy() {
    let absent = with_proxy(mesh()).with(lock(json!({"proxy": {"containers": ["istio-proxy"]}})));
    assert!(allows(&absent, "app/web/app", DATABASE) && !allows(&absent, "app/web/app", GATEWAY));
    let nobody = with_proxy(mesh()).with(lock(json!({"proxy": {"containers": []}})));
    assert!(
        !allows(&nobody, "app/web/istio-proxy", GATEWAY) && allows(&nobody, "app/web/istio-proxy", DATABASE)
    );
}

#[test]
fn further_peers_are_left_to_others_inside_the_cluster_only() {
    let to = json!([{"cidr": "198.51.100.0/24"}, {"cidr": "10.0.1.0/24"}, {"cidr": "192.168.0.0/24"}]);
    let world = locked("Egress", &json!({"allow": {"inCluster": false, "to": to}}));
    assert!(allows(&world, "app/web/istio-proxy", OUTSIDE));
    assert_eq!(verdict(&world, "app/web/app", OUTSIDE).reason, Reason::SidecarBypass);
    assert!(allows(&world, "app/web/app", DATABASE), "a pod's address");
    assert!(world.allows("app/web/app", "192.168.0.2", "tcp/22"), "a node's address");
    assert!(!world.allows("app/web/app", "10.0.1.77", "tcp/22"), "nobody's address");
    assert!(world.allows("app/web/istio-proxy", "10.0.1.77", "tcp/22"));
}

#[test]
fn a_policy_without_a_lock_allows_what_it_allows() {
    let free = egp(
        "free",
        json!({"subjects": [{"pods": labels("app", "web")}], "allow": {"to": [{"cidr": "203.0.113.0/24"}]}}),
    );
    let world = locked("All", &json!({})).with(free);
    assert!(world.allows("app/web/app", "203.0.113.1", "tcp/443"), "the union of what each allows");
    assert!(!allows(&world, "app/web/app", GATEWAY) && allows(&world, "app/web/istio-proxy", GATEWAY));
}

#[test]
fn each_lock_has_its_own_proxy() {
    let mut other =
        lock(json!({"proxy": {"containers": ["debug"]}, "allow": {"to": [{"cidr": "203.0.113.0/24"}]}}));
    other["metadata"]["name"] = json!("other");
    other["spec"]["gateways"] = json!([]);
    let world = locked("Egress", &json!({})).with(other);
    let far = ("203.0.113.1", "tcp/443");
    assert!(allows(&world, "app/web/debug", far) && !allows(&world, "app/web/debug", GATEWAY));
    assert!(!allows(&world, "app/web/istio-proxy", far) && allows(&world, "app/web/istio-proxy", GATEWAY));
    assert!(!allows(&world, "app/web/app", far) && !allows(&world, "app/web/app", GATEWAY));
}

#[test]
fn a_network_policy_binds_the_proxy_as_well() {
    let deny = np(
        "app/deny",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"ipBlock": {"cidr": "10.0.1.0/24"}}]}]}),
    );
    let world = locked("Egress", &json!({})).with(deny);
    assert_eq!(verdict(&world, "app/web/istio-proxy", GATEWAY).reason, Reason::NotAllowed);
    assert_eq!(verdict(&world, "app/web/app", GATEWAY).reason, Reason::SidecarBypass);
    assert!(allows(&world, "app/web/app", DATABASE));
    // Inside the cluster: no bypass, and denied all the same.
    assert_eq!(verdict(&world, "app/web/app", DNS).reason, Reason::NotAllowed);
}

#[test]
fn an_auditing_lock_lets_pass_and_says_so() {
    let world = locked("Egress", &json!({"enforcement": "Audit"}));
    let verdict = verdict(&world, "app/web/app", GATEWAY);
    assert_eq!((verdict.action, verdict.reason), (Action::Audit, Reason::SidecarBypass));
    assert!(allows(&world, "app/web/istio-proxy", GATEWAY));
}

#[test]
fn without_a_lock_containers_are_not_told_apart() {
    let world = with_proxy(mesh()).with(lock(json!({})));
    let endpoint = world.compile().desired.endpoints[&world.cgroup("app/web")];
    assert_eq!((endpoint.lock, endpoint.proxies), (0, Default::default()));
    assert!(allows(&world, "app/web/app", GATEWAY));
}

#[test]
fn proxies_that_do_not_fit_count_as_none() {
    let names: Vec<String> = (0..PROXIES + 2).map(|i| format!("p{i}")).collect();
    let mut world = mesh();
    let web = common::pod("app/web", "10.0.1.1", json!({"app": "web"}));
    let containers: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    world.local.clear();
    world.names.clear();
    world.add(set(web, "/spec/containers", json!(containers)));
    let world = world.with(lock(json!({"proxy": {"containers": names}})));
    let allowed = |i: usize| allows(&world, &format!("app/web/p{i}"), GATEWAY);
    assert!((0..PROXIES).all(allowed) && !(PROXIES..PROXIES + 2).any(allowed));
    assert!(world.diagnostics().contains("more than 4 containers are proxies"), "{}", world.diagnostics());
}

#[test]
fn a_container_put_into_a_running_pod_is_no_proxy() {
    let containers = |kind: &str| {
        let mut web = common::pod("app/web", "10.0.1.1", json!({"app": "web"}));
        let mut world = mesh();
        world.local.clear();
        world.names.clear();
        // Cgroups are made for what `spec.containers` names; what kind each is the object says.
        web["spec"]["containers"] = json!([{"name": "app"}, {"name": "istio-proxy"}]);
        world.add(web.clone());
        web["spec"]["containers"] = json!([{"name": "app"}]);
        web["spec"][kind] = json!([{"name": "istio-proxy", "restartPolicy": "Always"}]);
        world.with(web).with(lock(json!({"proxy": {"containers": ["istio-proxy"]}})))
    };
    assert!(allows(&containers("initContainers"), "app/web/istio-proxy", GATEWAY), "a sidecar");
    let debugger = containers("ephemeralContainers");
    assert_eq!(verdict(&debugger, "app/web/istio-proxy", GATEWAY).reason, Reason::SidecarBypass);
}

#[test]
fn a_pod_that_names_another_node_is_said() {
    let world = locked("Egress", &json!({}));
    assert_eq!(world.diagnostics(), "");
    let web = set(common::pod("app/web", "10.0.1.1", json!({})), "/spec/nodeName", json!("node-a.example"));
    let diagnostics = world.with(web).diagnostics();
    assert!(diagnostics.contains("it runs here, on node-a, but names node-a.example"), "{diagnostics}");
}
