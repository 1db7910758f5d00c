//! What cannot be understood denies for what it selects, and says why.

mod common;

use common::{Value, World, egp, error_of, json, labels, lock, mesh, namespace, np, pod, set};
use egress_common::Reason;
use egress_policy::compile::PodState;
use egress_policy::object::{Object, Read, read};

fn reason(world: &World, name: &str) -> Reason {
    world.verdict(name, "10.0.1.3", "tcp/80").reason
}

#[test]
fn every_mistake_in_a_lock_down_is_found_where_it_is() {
    let gateway = |field: &str, value| {
        let mut policy = lock(json!({}));
        policy["spec"]["gateways"][0][field] = value;
        policy
    };
    for (policy, path) in [
        (lock(json!({"proxy": {}})), "spec.proxy: missing field `containers`"),
        (
            lock(json!({"proxy": {"containers": [""]}})),
            "spec.proxy.containers[0]: a container's name must not be",
        ),
        (lock(json!({"proxy": {"containers": null}})), "spec.proxy.containers: null"),
        (
            lock(json!({"proxy": {"containers": ["p"], "scope": "egress"}})),
            "spec.proxy.scope: unknown variant `egress`",
        ),
        (lock(json!({"proxy": {"containers": ["p"], "names": []}})), "spec.proxy.names: unknown field"),
        (lock(json!({"gatways": []})), "spec.gatways: unknown field"),
        (lock(json!({"enforcement": "audit"})), "spec.enforcement: unknown variant"),
        (lock(json!({"enforcement": null})), "spec.enforcement: null"),
        (lock(json!({"subjects": []})), "spec.subjects: must not be empty"),
        (lock(json!({"subjects": {}})), "spec.subjects: not a list"),
        (lock(json!({"subjects": [{"namespace": {}}]})), "spec.subjects[0].namespace: unknown field"),
        (
            lock(json!({"subjects": [{"namespaces": {"matchLabels": {"a": 1}}}]})),
            "spec.subjects[0].namespaces.matchLabels.a",
        ),
        (lock(json!({"allow": {"dns": "cluster"}})), "spec.allow.dns"),
        (lock(json!({"allow": {"incluster": true}})), "spec.allow.incluster: unknown field"),
        (lock(json!({"allow": {"to": [{}]}})), "spec.allow.to[0]: needs exactly one"),
        (
            lock(json!({"allow": {"to": [{"cidr": "010.0.0.0/8"}]}})),
            "spec.allow.to[0].cidr: \"010.0.0.0/8\" ",
        ),
        (
            lock(json!({"allow": {"to": [{"cidr": "10.0.0.0/08"}]}})),
            "spec.allow.to[0].cidr: \"10.0.0.0/08\" has zeros in front",
        ),
        (
            lock(json!({"allow": {"to": [{"cidr": "10.0.0.1/8"}]}})),
            "spec.allow.to[0].cidr: \"10.0.0.1/8\" has host bits",
        ),
        (
            lock(json!({"allow": {"to": [{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}]}})),
            "spec.allow.to[0].except[0]",
        ),
        (lock(json!({"allow": {"to": [{"cidr": "::ffff:10.0.0.0/104"}]}})), "spec.allow.to[0].cidr"),
        (
            lock(json!({"allow": {"to": [{"pods": {}, "cidr": "10.0.0.0/8"}]}})),
            "spec.allow.to[0]: needs exactly one",
        ),
        (gateway("ports", json!([{"port": 0}])), "spec.gateways[0].ports[0].port: 0 is not a port"),
        (gateway("ports", json!([{"port": 70000}])), "spec.gateways[0].ports[0].port"),
        (gateway("ports", json!([{"protocol": "ICMP", "port": 1}])), "spec.gateways[0].ports[0].protocol"),
        (gateway("ports", json!([{"port": 80, "endPort": 79}])), "spec.gateways[0].ports[0].endPort"),
        (gateway("clients", json!([{"pod": {}}])), "spec.gateways[0].clients[0].pod: unknown field"),
        (
            gateway("addresses", json!(["10.0.0.1"])),
            "spec.gateways[0].addresses[0]: \"10.0.0.1\" is not a CIDR",
        ),
        (gateway("destinations", json!([{"cidr": "x"}])), "spec.gateways[0].destinations[0].cidr"),
        (gateway("destinations", json!(null)), "spec.gateways[0].destinations: null"),
    ] {
        let error = error_of(policy.clone());
        assert!(error.starts_with(path), "{error} is not about {path}");
        let said = mesh().with(policy).diagnostics();
        assert!(said.contains(&format!("error: EgressGatewayPolicy mesh: {error}")), "{said}");
    }
}

#[test]
fn subjects_of_an_invalid_policy_fail_closed_and_others_do_not() {
    let world = mesh().with(lock(json!({"gatways": []})));
    assert_eq!(reason(&world, "app/web"), Reason::InvalidPolicy);
    assert_eq!(reason(&world, "other/free"), Reason::Unselected);
    assert!(
        matches!(world.state("app/web"), PodState::Invalid { reasons } if reasons[0].contains("spec.gatways"))
    );
    let valid = mesh().with(lock(json!({})));
    assert_eq!(reason(&valid, "app/web"), Reason::Allowed);
}

#[test]
fn invalid_beats_audit_and_other_policies() {
    let world = mesh().with(lock(json!({"enforcement": "Audit", "gatways": []})));
    assert_eq!(reason(&world, "app/web"), Reason::InvalidPolicy);
    let world = world.with(egp("fine", json!({"subjects": [{"namespaces": {}}]})));
    assert_eq!(reason(&world, "app/web"), Reason::InvalidPolicy);
    assert_eq!(reason(&world, "other/free"), Reason::Allowed);
}

#[test]
fn a_subject_that_cannot_be_read_is_everyone_but_the_lifeline_and_gateways() {
    let world = mesh().with(lock(json!({"subjects": [{"namespaces": labels("mesh", "on")}, {"typo": 1}]})));
    for name in ["app/web", "other/free"] {
        assert_eq!(reason(&world, name), Reason::InvalidPolicy, "{name}");
    }
    for name in ["kube-system/dns", "gw/gate"] {
        assert_eq!(reason(&world, name), Reason::Unselected, "{name}");
    }
    assert!(world.diagnostics().contains("every pod outside kube-system"));
}

#[test]
fn an_empty_list_of_subjects_selects_nobody_and_a_missing_one_everybody() {
    let world = mesh().with(lock(json!({"subjects": []})));
    assert_eq!(reason(&world, "app/web"), Reason::Unselected);
    assert!(world.diagnostics().contains("must not be empty"));
    let world = mesh().with(egp("mesh", json!({"gateways": []})));
    assert_eq!(reason(&world, "app/web"), Reason::InvalidPolicy);
    assert!(world.diagnostics().contains("spec.subjects: missing"));
}

#[test]
fn a_gateway_whose_destinations_cannot_be_read_fails_closed() {
    let with = |destinations| {
        let mut policy = lock(json!({}));
        policy["spec"]["gateways"][0]["destinations"] = destinations;
        mesh().with(policy)
    };
    assert_eq!(reason(&with(json!([{"cidr": "nonsense"}])), "gw/gate"), Reason::InvalidPolicy);
    assert_eq!(reason(&with(json!([])), "gw/gate"), Reason::Allowed);
    // And stays a gateway to all others.
    let other =
        egp("other", json!({"subjects": [{"namespaces": labels("kubernetes.io/metadata.name", "other")}]}));
    let world = with(json!([{"cidr": "nonsense"}])).with(other);
    assert!(!world.allows("other/free", "10.0.2.1", "tcp/443"));
}

#[test]
fn a_gateway_with_a_misspelt_field_is_not_wider_than_it_was_meant() {
    let with = |edit: fn(&mut Value)| {
        let mut policy = lock(json!({}));
        edit(&mut policy["spec"]["gateways"][0]);
        mesh().with(policy)
    };
    let destinations = with(|gateway| gateway["destinatons"] = json!([{"cidr": "198.51.100.0/24"}]));
    assert_eq!(reason(&destinations, "gw/gate"), Reason::InvalidPolicy);
    // Without its namespaces it would be any pod with these labels, and free of every lock-down.
    let namespace = with(|gateway| {
        let namespaces = gateway["namespaces"].take();
        *gateway = json!({"pods": {}, "namespace": namespaces});
    });
    assert_eq!(reason(&namespace, "app/web"), Reason::InvalidPolicy);
    assert_eq!(reason(&namespace, "other/free"), Reason::Unselected, "nor closed for it");
    assert_eq!(reason(&with(|_| {}), "gw/gate"), Reason::Unselected);
}

#[test]
fn every_mistake_in_a_network_policy_closes_the_pods_it_selects() {
    let rule =
        |rule| json!({"podSelector": labels("app", "web"), "policyTypes": ["Egress"], "egress": [rule]});
    let port = |port| rule(json!({"ports": [port]}));
    let peer = |peer| rule(json!({"to": [peer]}));
    for (spec, path) in [
        (peer(json!({"ipBlock": {"cidr": "10.0.0.0/33"}})), "spec.egress[0].to[0].ipBlock.cidr"),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}})),
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        (
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})),
            "spec.egress[0].to[0]: ipBlock cannot",
        ),
        (peer(json!({})), "spec.egress[0].to[0]: one of"),
        (peer(json!({"podselector": {}})), "spec.egress[0].to[0].podselector: unknown field"),
        (
            peer(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}})),
            "spec.egress[0].to[0].podSelector.matchExpressions[0].operator",
        ),
        (
            peer(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
            "spec.egress[0].to[0].podSelector.matchExpressions[0].values",
        ),
        (port(json!({"port": 80, "endPort": 79})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"port": "http", "endPort": 79})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"endPort": 79})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"port": "80"})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": 0})), "spec.egress[0].ports[0].port"),
        (port(json!({"protocol": "tcp"})), "spec.egress[0].ports[0].protocol"),
        (set(port(json!({})), "/policyTypes", json!(["egress"])), "spec.policyTypes[0]"),
    ] {
        let policy = np("app/p", spec);
        let error = error_of(policy.clone());
        assert!(error.starts_with(path), "{error} is not about {path}");
        let world = mesh().with(policy);
        assert_eq!(reason(&world, "app/web"), Reason::InvalidPolicy, "{error}");
        assert_eq!(reason(&world, "app/db"), Reason::Unselected, "{error}");
        assert!(world.diagnostics().contains(&format!("error: NetworkPolicy app/p: {error}")));
    }
}

#[test]
fn a_network_policy_whose_selector_cannot_be_read_closes_its_namespace() {
    let policy = |types| np("app/p", json!({"podSelector": {"matchlabels": {}}, "policyTypes": [types]}));
    let world = mesh().with(policy("Egress"));
    for name in ["app/web", "app/db"] {
        assert_eq!(reason(&world, name), Reason::InvalidPolicy);
    }
    assert_eq!(reason(&world, "other/free"), Reason::Unselected);
    assert_eq!(
        reason(&mesh().with(policy("Ingress")), "app/web"),
        Reason::Unselected,
        "says nothing about egress"
    );
}

#[test]
fn lists_are_flattened_and_what_does_not_count_is_ignored() {
    let pod = common::pod("app/x", "10.0.1.7", json!({}));
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [pod, config]});
    let found = read(list).unwrap();
    assert!(matches!(&found[0], Read::Object(object) if object.object_ref().to_string() == "Pod app/x"));
    assert_eq!(found[1], Read::Ignored { kind: "ConfigMap".to_owned(), name: "c".to_owned() });
    let typed = json!({"apiVersion": "v1", "kind": "NodeList", "items": [{"metadata": {"name": "n"}}]});
    assert!(
        matches!(&read(typed).unwrap()[0], Read::Object(object) if object.object_ref().to_string() == "Node n")
    );
    let other = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "s"}});
    assert!(matches!(read(other).unwrap()[0], Read::Ignored { .. }));
    let nameless = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"});
    assert!(matches!(read(nameless).unwrap()[0], Read::Ignored { .. }));
    assert!(read(json!({"apiVersion": "v1", "kind": "Pod"})).is_err());
    assert_eq!(read(json!({"apiVersion": "v1", "kind": "List", "items": null})).unwrap(), []);
}

#[test]
fn what_cannot_be_named_is_an_error() {
    for (value, path) in [
        (json!([]), "document"),
        (json!({"apiVersion": "v1", "metadata": {"name": "x"}}), "kind"),
        (json!({"kind": "Pod", "metadata": {"name": "x"}}), "apiVersion"),
        (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}}), "metadata.name"),
        (
            json!({"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod"}]}),
            "items[0].metadata.name",
        ),
    ] {
        assert_eq!(read(value).unwrap_err().path, path);
    }
}

/// A field that is misspelt may have been the one that made it one about egress.
#[test]
fn a_network_policy_with_an_unknown_field_may_be_about_egress() {
    for (spec, expected) in [
        (json!({"podSelector": {}, "egres": [{}]}), Reason::InvalidPolicy),
        (json!({"podSelector": {}, "egres": [{}], "ingress": []}), Reason::InvalidPolicy),
        (json!({"podSelector": {}, "egres": [{}], "policyTypes": ["Ingress"]}), Reason::Unselected),
        (json!({"podSelector": {}, "ingress": []}), Reason::Unselected),
        // What else is wrong does not make it so.
        (json!({"podSelector": {"matchLabel": {}}, "ingress": []}), Reason::Unselected),
    ] {
        assert_eq!(reason(&mesh().with(np("app/p", spec.clone())), "app/web"), expected, "{spec}");
    }
    let mut missing = lock(json!({}));
    missing["spec"].as_object_mut().unwrap().remove("subjects");
    assert!(error_of(missing).contains("spec.subjects: missing"));
}

/// What nobody but a NetworkPolicy's author writes is not of another kind.
#[test]
fn kinds_and_groups_that_are_misspelt_are_errors() {
    for (version, kind, invalid) in [
        ("networking.k8s.io/v1", "NetwrokPolicy", true),
        ("networking.k8s.io/v1", "networkpolicy", true),
        ("network.k8s.io/v1", "NetworkPolicy", true),
        ("networking/v1", "NetworkPolicy", true),
        ("v1", "NetworkPolicy", true),
        ("egress-enforcer.io/v1alpha1", "EgressPolicy", true),
        ("networking.k8s.io/v1", "Ingress", false),
        ("networking.k8s.io/v1", "IngressClass", false),
        ("crd.projectcalico.org/v1", "NetworkPolicy", false),
        ("cilium.io/v2", "CiliumNetworkPolicy", false),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", false),
    ] {
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": {}});
        let read = read(object).unwrap().pop().unwrap();
        assert_eq!(matches!(read, Read::Invalid { .. }), invalid, "{version} {kind}: {read:?}");
        assert_eq!(matches!(read, Read::Ignored { .. }), !invalid, "{version} {kind}");
    }
}

#[test]
fn a_delete_needs_no_valid_object_and_a_broken_one_replaces_the_old() {
    let world = mesh().with(np("app/p", json!({"podSelector": {}, "policyTypes": ["Egress"]})));
    assert_eq!(reason(&world, "app/web"), Reason::NotAllowed);
    let broken = world.with(np("app/p", json!({"podSelector": {}, "egress": "x"})));
    assert_eq!(reason(&broken, "app/web"), Reason::InvalidPolicy);
    assert_eq!(reason(&broken.without("NetworkPolicy app/p"), "app/web"), Reason::Unselected);
    let pod = set(common::pod("app/web", "10.0.1.1", json!({})), "/status/podIP", json!("not an address"));
    let world = world.with(pod);
    assert!(!world.compile().endpoints.contains_key(&world.cgroup("app/web")));
    let version = set(lock(json!({})), "/apiVersion", json!("egress-enforcer.io/v9"));
    assert!(error_of(version.clone()).contains("is not supported"));
    assert_eq!(reason(&mesh().with(version), "app/web"), Reason::InvalidPolicy);
}

#[test]
fn what_is_odd_but_valid_is_said_where_it_is_and_nowhere_else() {
    let annotated = |value: &str| {
        let mut namespace = namespace("app", json!({"mesh": "on"}));
        namespace["metadata"]["annotations"] = json!({"egress-enforcer.io/enforcement": value});
        mesh().with(namespace).diagnostics()
    };
    assert!(
        annotated("audit").starts_with("warning: Namespace app: metadata.annotations"),
        "{}",
        annotated("audit")
    );
    assert_eq!((annotated("Audit"), annotated("Enforce")), (String::new(), String::new()));

    let gateway = |ports: Value| {
        let mut policy = lock(json!({}));
        policy["spec"]["gateways"][0]["ports"] = ports;
        mesh().with(policy).diagnostics()
    };
    assert!(gateway(json!([])).contains("spec.gateways[0]: ports is empty"), "{}", gateway(json!([])));
    assert_eq!(gateway(json!([{"port": 443}])), "");

    let rule = |to: Value, port: Value| {
        let egress = json!([{"to": to, "ports": [{"port": port}]}]);
        mesh().with(np("app/p", json!({"podSelector": {}, "egress": egress}))).diagnostics()
    };
    let block = || json!([{"ipBlock": {"cidr": "198.51.100.0/24"}}]);
    assert!(
        rule(block(), json!("http")).contains("a port's name means nothing"),
        "{}",
        rule(block(), json!("http"))
    );
    let (pods, both) = (
        json!([{"podSelector": {}}]),
        json!([{"podSelector": {}}, {"ipBlock": {"cidr": "198.51.100.0/24"}}]),
    );
    assert_eq!(rule(block(), json!(443)), "");
    assert_eq!((rule(pods, json!("http")), rule(both, json!("http"))), (String::new(), String::new()));

    let host = |labels: Value| {
        let gate = set(pod("gw/host", "192.168.0.1", labels), "/spec/hostNetwork", json!(true));
        mesh().with(gate).with(lock(json!({}))).diagnostics()
    };
    assert!(host(json!({"istio": "egressgateway"})).contains("Pod gw/host is on the host network"));
    assert_eq!(host(json!({})), "");
}

/// As the DaemonSet's node selector and affinity choose them.
#[test]
fn nodes_that_run_no_agent_are_told_from_others() {
    let has_agent = |labels: serde_json::Value| {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": labels}});
        match read(node).unwrap().remove(0) {
            Read::Object(Object::Node(node)) => node.has_agent,
            other => panic!("{other:?}"),
        }
    };
    assert!(has_agent(json!({})) && has_agent(json!({"kubernetes.io/os": "linux", "type": "large"})));
    for label in [
        ("kubernetes.io/os", "windows"),
        ("eks.amazonaws.com/compute-type", "fargate"),
        ("type", "virtual-kubelet"),
    ] {
        assert!(!has_agent(json!({label.0: label.1})), "{label:?}");
    }
}
