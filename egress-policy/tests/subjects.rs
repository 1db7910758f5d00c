//! Whom an EgressGatewayPolicy locks down.

mod common;

use common::{NODE, egp, json, labels, lock, mesh, pod, set};
use egress_common::wire::{Addr, Endpoint, FLAG_AUDIT, STATE_INVALID, STATE_ISOLATED, STATE_UNSELECTED};
use egress_policy::compile::{LocalPod, PodState, UnknownPods, compile_every_pod};

#[test]
fn a_subject_is_locked_down_and_others_are_not() {
    let world = mesh().with(lock(json!({})));
    assert!(!world.allows("app/web", "1.1.1.1", "tcp/443"));
    assert!(world.allows("other/free", "1.1.1.1", "tcp/443"));
    assert!(mesh().allows("app/web", "1.1.1.1", "tcp/443"));
    assert_eq!(world.state("other/free"), PodState::Unselected);
}

#[test]
fn subjects_by_pod_labels_and_service_accounts() {
    let by = |subject| mesh().with(set(lock(json!({})), "/spec/subjects", json!([subject])));
    let world = by(json!({"namespaces": {}, "pods": labels("app", "web")}));
    assert!(!world.allows("app/web", "1.1.1.1", "tcp/443"));
    assert!(world.allows("app/db", "1.1.1.1", "tcp/443"));
    let account =
        |name: &str| set(pod("app/web", "10.0.1.1", json!({})), "/spec/serviceAccountName", json!(name));
    let world = by(json!({"serviceAccounts": ["payer"]}));
    assert!(!world.with(account("payer")).allows("app/web", "1.1.1.1", "tcp/443"));
    assert!(world.with(account("other")).allows("app/web", "1.1.1.1", "tcp/443"));
    assert!(!by(json!({"serviceAccounts": []})).allows("app/db", "1.1.1.1", "tcp/443"));
    assert!(!by(json!({"serviceAccounts": ["default"]})).allows("app/db", "1.1.1.1", "tcp/443"));
}

#[test]
fn any_entry_may_match_and_a_missing_namespace_object_has_its_name() {
    let subjects = json!([{"pods": labels("app", "nobody")}, {"namespaces": labels("kubernetes.io/metadata.name", "other")}]);
    let world = mesh().with(set(lock(json!({})), "/spec/subjects", subjects));
    assert!(!world.allows("other/free", "1.1.1.1", "tcp/443"));
    assert!(world.allows("app/web", "1.1.1.1", "tcp/443"));
}

#[test]
fn the_lifeline_is_spared_unless_it_is_meant() {
    let everyone = |system: bool| {
        let subject = json!({"namespaces": {}, "systemNamespaces": system});
        let own = pod("egress-enforcer/agent", "10.0.3.2", json!({}));
        mesh().with(own).with(set(lock(json!({})), "/spec/subjects", json!([subject])))
    };
    for name in ["kube-system/dns", "egress-enforcer/agent"] {
        assert!(everyone(false).allows(name, "1.1.1.1", "tcp/443"));
        assert!(!everyone(true).allows(name, "1.1.1.1", "tcp/443"));
    }
    assert!(!everyone(false).allows("other/free", "1.1.1.1", "tcp/443"));
}

#[test]
fn a_host_network_pod_can_be_a_subject() {
    let host = set(pod("app/host", "192.168.0.1", json!({})), "/spec/hostNetwork", json!(true));
    let world = mesh().with(host).with(lock(json!({})));
    assert!(!world.allows("app/host", "1.1.1.1", "tcp/443"));
    assert!(world.allows("app/host", "10.0.1.2", "tcp/80"));
    assert!(world.compile().endpoints[&world.cgroup("app/host")].host_network);
}

#[test]
fn several_policies_allow_their_union() {
    let more = egp(
        "more",
        json!({"subjects": [{"pods": labels("app", "web")}],
        "allow": {"dns": "None", "inCluster": false, "to": [{"cidr": "1.1.1.0/24"}]}}),
    );
    let world = mesh().with(lock(json!({}))).with(more);
    assert!(world.allows("app/web", "1.1.1.1", "tcp/443"));
    assert!(world.allows("app/web", "10.0.2.1", "tcp/443"));
    assert!(!world.allows("app/web", "1.1.2.1", "tcp/443"));
    assert!(!world.allows("app/db", "1.1.1.1", "tcp/443"));
    let info = &world.compile().endpoints[&world.cgroup("app/web")];
    assert_eq!(
        info.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["EgressGatewayPolicy mesh", "EgressGatewayPolicy more"]
    );
}

#[test]
fn a_static_pod_is_found_by_its_hash_on_its_own_node_only() {
    let mut mirror = pod("app/static", "10.0.1.8", json!({}));
    let as_kubelet =
        |hash: &str| json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash});
    mirror["metadata"]["annotations"] = as_kubelet("abc");
    mirror["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "n"}]);
    let mut world = mesh().with(lock(json!({})));
    world.local.push(LocalPod { uid: "abc".to_owned(), cgroup: 77, containers: Vec::new(), left: None });
    world.names.push("by-hash".to_owned());
    assert!(!world.compile().endpoints.contains_key(&77));
    assert_eq!(world.with(mirror.clone()).compile().endpoints[&77].name, "static");
    let elsewhere = set(mirror.clone(), "/spec/nodeName", json!("node-b"));
    assert!(!world.with(elsewhere).compile().endpoints.contains_key(&77));
    // The annotation of anybody else does not make it one, and takes nothing from the one that is.
    let mut evil = set(mirror.clone(), "/metadata/name", json!("evil"));
    evil["metadata"]["ownerReferences"] = json!([]);
    assert!(!world.with(evil.clone()).compile().endpoints.contains_key(&77));
    assert_eq!(world.with(mirror.clone()).with(evil).compile().endpoints[&77].name, "static");
    // Another one that looks the same makes it nobody's, and closes what a policy locks down.
    let mut twin = set(mirror.clone(), "/metadata/namespace", json!("other"));
    twin["metadata"]["uid"] = json!("twin");
    let both = world.with(mirror.clone()).with(twin.clone());
    assert!(!both.compile().endpoints.contains_key(&77));
    assert_eq!(both.compile().desired.endpoints[&77].state, STATE_INVALID);
    assert!(both.diagnostics().contains("claimed by several pods; its cgroup is closed"));
    let free = set(mirror.clone(), "/metadata/namespace", json!("gw"));
    let free = world.with(set(free, "/metadata/uid", json!("free"))).with(twin);
    assert!(!free.compile().desired.endpoints.contains_key(&77), "no policy says anything about either");
    // The hash of a pod's UID does not take the pod over.
    mirror["metadata"]["annotations"] = as_kubelet("uid-app-web");
    let world = world.with(mirror);
    assert_eq!(world.compile().endpoints[&world.cgroup("app/web")].name, "web");
}

#[test]
fn a_uid_of_two_pods_is_nobodys() {
    let twin = set(pod("other/twin", "10.0.1.9", json!({})), "/metadata/uid", json!("uid-app-web"));
    let mut world = mesh().with(lock(json!({})));
    for read in egress_policy::object::read(twin).unwrap() {
        world.index.apply(read.event().unwrap());
    }
    let compiled = world.compile();
    assert!(!compiled.endpoints.contains_key(&world.cgroup("app/web")));
    assert!(world.diagnostics().contains("claimed by several pods"));
}

/// Its object went while no agent ran, and then somebody wrote its UID into an annotation.
#[test]
fn what_was_locked_down_under_a_uid_is_nobodys_who_only_names_that() {
    const UID: &str = "0c5e7b2e-0000-4000-8000-0000000000aa";
    let claims = |name: &str, ip: &str, hash: &str| {
        let mut pod = pod(name, ip, json!({}));
        pod["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash});
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "n"}]);
        pod
    };
    let v4 = Addr::v4([10, 0, 1, 77]);
    let left = |v4| Some(Endpoint { state: STATE_ISOLATED, v4, ..Endpoint::default() });
    let world = |uid: &str, left| {
        let mut world = mesh().with(lock(json!({})));
        world.local.push(LocalPod { uid: uid.to_owned(), cgroup: 77, containers: Vec::new(), left });
        world.names.push("left".to_owned());
        world
    };
    for (uid, left, ip, is_closed) in [
        (UID, left(v4), "10.0.9.9", true),
        (UID, left(Addr::default()), "10.0.9.9", true),
        // A static pod may have such a UID, and has the address that it had.
        (UID, left(v4), "10.0.1.77", false),
        (UID, None, "10.0.9.9", false),
        // The hash of a manifest.
        ("0c5e7b2e000040008000000000000000", left(v4), "10.0.9.9", false),
    ] {
        let world = world(uid, left).with(claims("other/q", ip, uid));
        assert_eq!(world.compile().endpoints.contains_key(&77), !is_closed, "{uid} {ip}");
        let state = world.compile().desired.endpoints[&77].state;
        assert_eq!(state == STATE_INVALID, is_closed, "{uid} {ip}");
    }
    // The pod itself comes back.
    let own = set(pod("app/back", "10.0.9.8", json!({})), "/metadata/uid", json!(UID));
    let world = world(UID, left(v4)).with(claims("other/q", "10.0.9.9", UID)).with(own);
    assert_eq!(world.compile().endpoints[&77].name, "back");
}

#[test]
fn a_cgroup_without_an_object_is_unknown_and_nothing_is_wrong() {
    let mut world = mesh();
    world.local.push(LocalPod { uid: "nobody".to_owned(), cgroup: 77, containers: Vec::new(), left: None });
    assert_eq!(world.diagnostics(), "");
    let compiled = world.compile();
    assert!(!compiled.endpoints.contains_key(&77) && compiled.endpoints.len() == world.names.len());
}

#[test]
fn what_was_locked_down_and_would_be_unknown_is_closed() {
    let own = Addr::v4([10, 0, 1, 77]);
    let left = Endpoint {
        policy: 5,
        lock: 6,
        state: STATE_ISOLATED,
        flags: FLAG_AUDIT,
        v4: own,
        ..Endpoint::default()
    };
    let mut world = mesh().with(lock(json!({})));
    world.local.push(LocalPod {
        uid: "nobody".to_owned(),
        cgroup: 77,
        containers: Vec::new(),
        left: Some(left),
    });
    world.names.push("nobody".to_owned());
    let compiled = world.compile();
    let closed = Endpoint { state: STATE_INVALID, v4: own, ..Endpoint::default() };
    assert_eq!(compiled.desired.endpoints[&77], closed);
    assert!(!compiled.endpoints.contains_key(&77), "nobody knows what it is called");
    assert!(world.diagnostics().contains("UID nobody was locked down before"));
    // What an object says comes first, whatever it says.
    for local in &mut world.local {
        local.left = Some(left);
    }
    let known = world.compile();
    assert_eq!(known.endpoints, compiled.endpoints);
    assert!(known.desired.endpoints.values().any(|endpoint| endpoint.state == STATE_UNSELECTED));
    assert_eq!(known.desired, compiled.desired);
}

#[test]
fn every_pod_of_a_node_counts_without_cgroups() {
    let elsewhere = set(pod("app/far", "10.0.9.9", json!({})), "/spec/nodeName", json!("node-b"));
    let world = mesh().with(elsewhere).with(lock(json!({"proxy": {"containers": ["c"]}})));
    let compiled = compile_every_pod(&world.index, NODE, UnknownPods::Deny);
    let names: Vec<_> =
        compiled.endpoints.values().map(|one| format!("{}/{}", one.namespace, one.name)).collect();
    assert_eq!(names, ["app/db", "app/web", "gw/gate", "kube-system/dns", "other/free"]);
    assert_eq!(compiled.endpoints.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let proxies: Vec<_> = compiled.endpoints.values().flat_map(|one| &one.proxies).collect();
    assert_eq!(proxies.iter().map(|one| (&*one.name, one.cgroup)).collect::<Vec<_>>(), [("c", 6), ("c", 7)]);
    let far = compile_every_pod(&world.index, "node-b", UnknownPods::Deny);
    assert_eq!(far.endpoints.len(), 1);
}
