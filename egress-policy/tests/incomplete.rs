//! What is missing is not absent: objects that were not read, or not read right, open nothing.

mod common;

use common::{NODE, json, labels, lock, mesh, namespace, np, pod, set};
use egress_common::Reason;
use egress_policy::compile::{Node, PodState, compile};

#[test]
fn a_policy_whose_subjects_are_missing_could_mean_anybody() {
    let world = mesh();
    assert_eq!(world.state("app/web"), PodState::Unselected);
    let mut typo = lock(json!({}));
    let subjects = typo["spec"].as_object_mut().unwrap().remove("subjects").unwrap();
    typo["spec"]["subject"] = subjects;
    assert!(matches!(world.with(typo).state("app/web"), PodState::Invalid { .. }));
    let mut cut = lock(json!({}));
    cut["spec"] = json!(null);
    assert!(matches!(world.with(cut).state("app/web"), PodState::Invalid { .. }));
    // A list that is there and empty says that nobody is meant.
    let none = set(lock(json!({})), "/spec/subjects", json!([]));
    assert_eq!(world.with(none).state("app/web"), PodState::Unselected);
}

/// Fields narrow: what is left of an entry without one that cannot be read means more pods, but not all there are.
#[test]
fn a_mistake_in_a_subject_closes_no_more_than_the_rest_of_it_means() {
    let shop = || {
        let world =
            mesh().with(namespace("shop", json!({"team": "shop"}))).with(namespace("free", json!({})));
        world
            .with(pod("shop/web", "10.0.1.71", json!({"app": "web"})))
            .with(pod("shop/db", "10.0.1.72", json!({})))
            .with(pod("free/free", "10.0.1.73", json!({"app": "web"})))
    };
    let team = json!({"matchLabels": {"team": "shop"}});
    let web = json!({"matchLabels": {"app": "web"}});
    let wrong = json!({"matchLabel": {"a": "b"}});
    for (subject, closed) in [
        (json!({"namespaces": team, "serviceAccount": ["x"]}), ["shop/web", "shop/db", ""]),
        (json!({"namespaces": team, "pods": web, "serviceAccounts": "x"}), ["shop/web", "", ""]),
        (json!({"namespaces": team, "pods": wrong}), ["shop/web", "shop/db", ""]),
        (json!({"namespaces": null, "pods": web}), ["shop/web", "", "free/free"]),
        (json!({"namespace": team, "pods": web}), ["shop/web", "", "free/free"]),
        (json!({"namespaces": wrong}), ["shop/web", "shop/db", "free/free"]),
        (json!({"namespaces": {}, "pod": web}), ["shop/web", "shop/db", "free/free"]),
        (json!("shop"), ["shop/web", "shop/db", "free/free"]),
    ] {
        let world = shop().with(set(lock(json!({})), "/spec/subjects", json!([subject])));
        for name in ["shop/web", "shop/db", "free/free"] {
            let invalid = matches!(world.state(name), PodState::Invalid { .. });
            assert_eq!(invalid, closed.contains(&name), "{name}: {subject}");
        }
    }
}

#[test]
fn without_its_namespace_a_pod_stays_unknown_where_labels_decide() {
    let by_label =
        set(lock(json!({})), "/spec/subjects", json!([{"namespaces": {"matchLabels": {"team": "x"}}}]));
    let lost = pod("lost/pod", "10.0.1.77", json!({}));
    let world = mesh().with(lost.clone());
    assert!(world.compile().endpoints.contains_key(&world.cgroup("lost/pod")));
    let world = mesh().with(by_label).with(lost.clone());
    assert!(!world.compile().endpoints.contains_key(&world.cgroup("lost/pod")));
    assert!(world.diagnostics().contains("Namespace is not known"));
    // Its name is known without the object.
    let by_name = json!([{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}]);
    let world = mesh().with(set(lock(json!({})), "/spec/subjects", by_name)).with(lost);
    assert_eq!(world.state("lost/pod"), PodState::Unselected);
}

#[test]
fn while_objects_are_missing_unselected_pods_stay_unknown() {
    let world = mesh().with(lock(json!({}))).with(namespace("free", json!({}))).with(pod(
        "free/free",
        "10.0.1.78",
        json!({}),
    ));
    assert_eq!(world.state("free/free"), PodState::Unselected);
    let node = Node {
        name: NODE,
        pod_root_level: 2,
        unknown_pods: world.unknown,
        incomplete: true,
        pods: &world.local,
    };
    let compiled = compile(&world.index, &node);
    assert!(!compiled.endpoints.contains_key(&world.cgroup("free/free")));
    assert!(compiled.endpoints.contains_key(&world.cgroup("app/web")));
}

#[test]
fn a_service_that_kube_proxy_leaves_alone_has_no_address() {
    let outside = "198.51.100.10";
    let service = |spec: common::Value| {
        let mut spec = spec;
        spec["externalIPs"] = json!([outside]);
        spec["ports"] = json!([{"port": 443, "protocol": "TCP", "targetPort": 443}]);
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "app", "name": "trick"}, "spec": spec})
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "app", "name": "trick-1", "labels": {"kubernetes.io/service-name": "trick"}},
        "addressType": "IPv4", "ports": [{"port": 443, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.1.77"], "conditions": {"ready": true}}],
    });
    let world = mesh().with(lock(json!({}))).with(pod("app/backend", "10.0.1.77", json!({}))).with(slice);
    let real = service(json!({"clusterIP": "10.96.0.77"}));
    // The address is the outside's as well: nodes that do not translate it yet send to it.
    assert!(!world.with(real.clone()).allows("app/web", outside, "tcp/443"));
    let world = world.with(lock(json!({"allow": {"to": [{"cidr": "198.51.100.10/32", "ports": []}]}})));
    assert!(!world.with(real.clone()).allows("app/web", outside, "tcp/443"));
    assert!(!world.with(service(json!({"clusterIP": "None"}))).allows("app/web", outside, "tcp/443"));
    assert!(!world.with(service(json!({"type": "ExternalName"}))).allows("app/web", outside, "tcp/443"));
    let mut labelled = real;
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    assert!(!world.with(labelled).allows("app/web", outside, "tcp/443"));
}

#[test]
fn without_its_namespace_object_a_pod_is_closed_where_something_selects_it_for_certain() {
    let mut world = mesh().with(lock(json!({}))).without("Namespace app");
    assert!(!world.compile().endpoints.contains_key(&world.cgroup("app/web")), "unknown");
    assert!(world.allows("app/web", "10.0.1.2", "tcp/80"), "as unknown pods may");
    // What a network policy says may be less than unknown pods may do, and together with what is not known less still.
    world.add(np("app/deny", json!({"podSelector": labels("app", "web"), "policyTypes": ["Egress"]})));
    for to in ["10.0.1.2", "198.51.100.1"] {
        assert_eq!(world.verdict("app/web", to, "tcp/80").reason, Reason::InvalidPolicy, "{to}");
    }
    assert!(world.allows("app/db", "10.0.1.1", "tcp/80"), "not selected");
    let known = world.with(namespace("app", json!({})));
    assert_eq!(known.verdict("app/web", "10.0.1.2", "tcp/80").reason, Reason::NotAllowed);
}
