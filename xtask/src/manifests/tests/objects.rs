//! Objects: that Kubernetes knows their fields, that kustomize and the chart agree, what the overlays mean.

use std::collections::BTreeMap;
use std::fs;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::{made, render};
use super::{EVERYTHING, helm, kustomize, name, one, texts, tools};
use crate::command::root;

/// What was understood of an object of one kind.
type Through = fn(&Value) -> Value;

/// Reads an object as what it says it is, and gives what was understood of it.
fn understood(object: &Value) -> Value {
    fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
        let typed: T =
            serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{}: {e}", name(object)));
        serde_json::to_value(typed).unwrap()
    }
    let known: [(&str, Through); 11] = [
        ("Namespace", through::<Namespace>),
        ("ServiceAccount", through::<ServiceAccount>),
        ("ResourceQuota", through::<ResourceQuota>),
        ("ClusterRole", through::<ClusterRole>),
        ("ClusterRoleBinding", through::<ClusterRoleBinding>),
        ("Role", through::<Role>),
        ("RoleBinding", through::<RoleBinding>),
        ("DaemonSet", through::<DaemonSet>),
        ("CustomResourceDefinition", through::<CustomResourceDefinition>),
        ("ValidatingAdmissionPolicy", through::<ValidatingAdmissionPolicy>),
        ("ValidatingAdmissionPolicyBinding", through::<ValidatingAdmissionPolicyBinding>),
    ];
    let kind = object["kind"].as_str().unwrap();
    known.iter().find(|(name, _)| *name == kind).unwrap_or_else(|| panic!("{kind} is not known")).1(object)
}

/// Every field of `said` is in `heard`, with the same value.
fn compare(said: &Value, heard: &Value, path: &str) {
    match (said, heard) {
        (Value::Object(said), Value::Object(heard)) => {
            for (field, value) in said {
                let path = format!("{path}.{field}");
                compare(value, heard.get(field).unwrap_or_else(|| panic!("Kubernetes has no {path}")), &path);
            }
        }
        (Value::Array(said), Value::Array(heard)) if said.len() == heard.len() => {
            said.iter().zip(heard).enumerate().for_each(|(i, (s, h))| compare(s, h, &format!("{path}[{i}]")));
        }
        // Kubernetes has floats in schemas, where we write whole numbers.
        (Value::Number(said), Value::Number(heard)) => assert_eq!(said.as_f64(), heard.as_f64(), "{path}"),
        _ => assert_eq!(said, heard, "{path}"),
    }
}

#[test]
fn every_field_is_one_that_kubernetes_has() {
    let mut seen = 0;
    let chart = helm(&["--set", "namespace.create=true,nodeTaint.enabled=true,openshift=true"]);
    for objects in render::KUSTOMIZE.map(kustomize).into_iter().chain([chart]) {
        for object in objects.iter().filter(|object| object["kind"] != "EgressGatewayPolicy") {
            compare(object, &understood(object), &name(object));
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
    let mut misspelt = one(&kustomize("base"), "DaemonSet").clone();
    misspelt["spec"]["template"]["spec"]["hostNetworks"] = json!(true);
    let found = std::panic::catch_unwind(|| compare(&misspelt, &understood(&misspelt), ""));
    assert!(found.is_err(), "a misspelt field was not found");
}

/// Without what Helm adds to every object. What is made from types has no labels of its own.
fn plain(mut object: Value) -> Value {
    let mut added = vec![
        "helm.sh/chart",
        "helm.sh/resource-policy",
        "app.kubernetes.io/managed-by",
        "app.kubernetes.io/version",
    ];
    let made = ["CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    if made.iter().any(|kind| object["kind"] == *kind) {
        added.push("app.kubernetes.io/name");
    }
    let metadata = object["metadata"].as_object_mut().unwrap();
    for field in ["labels", "annotations"] {
        if let Some(Value::Object(fields)) = metadata.get_mut(field) {
            fields.retain(|name, _| !added.contains(&name.as_str()));
            if fields.is_empty() {
                metadata.remove(field);
            }
        }
    }
    object
}

fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let count = objects.len();
    let named: BTreeMap<_, _> = objects.into_iter().map(|object| (name(&object), plain(object))).collect();
    assert_eq!(named.len(), count, "two objects have one name");
    named
}

#[test]
fn the_chart_is_the_base() {
    let base = by_name(kustomize("base"));
    assert_eq!(by_name(helm(&["--set", "namespace.create=true"])), base);
    let mut but_namespace = base;
    assert!(but_namespace.remove("Namespace /egress-enforcer").is_some());
    assert_eq!(by_name(helm(&[])), but_namespace);
}

#[test]
fn the_chart_refuses_values_that_it_does_not_have() {
    for (values, said) in [
        ("agent.unknownPods=all", "unknownPods"),
        ("agent.port=70000", "port"),
        ("agents.port=1", "agents"),
        ("image.tag=a b", "tag"),
        ("nodeTaint.enabled=maybe", "enabled"),
        ("openshift=maybe", "openshift"),
        ("agent.criSocketDirs={run/k0s}", "criSocketDirs"),
        ("agent.criSocketDirs={/run/k0s/}", "criSocketDirs"),
        ("agent.criSocketDirs={/run/../etc}", "criSocketDirs"),
        ("agent.criSocketDirs={/}", "criSocketDirs"),
        ("agent.criSocketDirs={/run/k0s,/run/k0s}", "criSocketDirs"),
        ("agent.criSocketDirs={/run/crio}", "/run/crio is mounted by the chart already"),
        ("agent.criSocketDirs={/run/egress-enforcer}", "is mounted by the chart already"),
        ("affinity.nodeAffinities.a=b", "nodeAffinities"),
        ("agent.logFormat=xml", "logFormat"),
        // The root filesystem is read-only.
        ("agent.flowLog=/var/log/flows", "flowLog"),
        ("agent.extraArgs={cleanup}", "extraArgs"),
        ("agent.extraArgs={--pod-root /a}", "extraArgs"),
        // The API server refuses these.
        ("maxUnavailable=0", "maxUnavailable"),
        ("maxUnavailable=0%", "maxUnavailable"),
        ("maxUnavailable=101%", "maxUnavailable"),
        ("maxUnavailable=200%", "maxUnavailable"),
        // A tag is appended to it.
        ("image.repository=", "repository"),
        ("image.repository=registry.example/x:1", "repository"),
        ("image.repository=localhost:5000/x:1", "repository"),
        ("image.repository=registry.example/x@sha256:abc", "repository"),
        ("image.repository=https://registry.example/x", "repository"),
        ("image.tag=1@sha256:abc", "tag"),
        ("image.digest=sha256:abc", "digest"),
    ] {
        let error = tools().helm(&["--set", values]).unwrap_err().to_string();
        assert!(error.contains(said), "{values}: {error}");
    }
    let error = tools().helm(&["--namespace", "default"]).unwrap_err().to_string();
    assert!(error.contains("install into the namespace egress-enforcer"), "{error}");
}

#[test]
fn the_image_is_named_by_tag_or_by_digest() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let version = env!("CARGO_PKG_VERSION");
    for (values, image) in [
        ("image.repository=x", format!("x:{version}")),
        ("image.repository=localhost:5000/a/b-c,image.tag=2.0", "localhost:5000/a/b-c:2.0".to_owned()),
        (&format!("image.repository=r.example/x,image.digest={digest}"), format!("r.example/x@{digest}")),
        (
            &format!("image.repository=r.example:1/x,image.tag=2.0,image.digest={digest}"),
            format!("r.example:1/x@{digest}"),
        ),
    ] {
        let objects = helm(&["--set", values, "--set", "bpffs.mount=true"]);
        let pod = &one(&objects, "DaemonSet")["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], image, "{values}");
        assert_eq!(pod["initContainers"][0]["image"], image, "{values}");
    }
}

#[test]
fn an_update_takes_nodes_by_number_or_by_share() {
    for number in ["1", "100%", "1%", "25"] {
        let objects = helm(&["--set", &format!("maxUnavailable={number}")]);
        let strategy = &one(&objects, "DaemonSet")["spec"]["updateStrategy"];
        let most = strategy["rollingUpdate"]["maxUnavailable"].to_string();
        assert_eq!(most.trim_matches('"'), number);
    }
}

#[test]
fn labels_and_annotations_of_the_charts_are_its_own() {
    let objects = helm(&["--set", "podMonitor.enabled=true,podLabels.team=net,podAnnotations.a=b"]);
    let pod = &one(&objects, "DaemonSet")["spec"]["template"]["metadata"];
    assert_eq!((&pod["labels"]["team"], &pod["annotations"]["a"]), (&json!("net"), &json!("b")));
    let monitor = &one(&objects, "PodMonitor")["metadata"]["labels"];
    for (value, there) in [
        ("podLabels", &pod["labels"]),
        ("podAnnotations", &pod["annotations"]),
        ("podMonitor.labels", monitor),
    ] {
        let own = there.as_object().unwrap().keys().filter(|key| !["team", "a"].contains(&key.as_str()));
        let own: Vec<_> = own.collect();
        assert!(!own.is_empty(), "{value}");
        for key in own {
            let set = format!("{value}.{}=x", key.replace('.', "\\."));
            let error = tools().helm(&["--set", &set]).unwrap_err().to_string();
            assert!(
                error.contains(key.as_str()) && error.contains("specifications of the schema"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_flag_of_the_charts_is_no_further_argument() {
    let objects = helm(&["--set", EVERYTHING]);
    let container = &one(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let args = texts(&container["args"]);
    assert!(args.len() > 8, "{args:?}");
    for arg in &args[1..] {
        // The flag is refused where the chart leaves it at its default, too.
        let error = tools().helm(&["--set", &format!("agent.extraArgs={{{arg}}}")]).unwrap_err().to_string();
        let flag = arg.split('=').next().unwrap();
        assert!(error.contains(&format!("agent.extraArgs: {flag} is the chart's own")), "{error}");
    }
    // It is not known by its beginning.
    helm(&["--set", "agent.extraArgs={--socket=/run/egress-enforcer/x.sock}"]);
}

#[test]
fn a_value_that_is_taken_away_is_missed_by_name_or_not_at_all() {
    let text = fs::read_to_string(root().join("deploy/helm/egress-enforcer/values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let mut paths = Vec::new();
    for (section, inside) in values.as_object().unwrap() {
        paths.push(section.clone());
        let inside = inside.as_object().into_iter().flatten();
        paths.extend(inside.map(|(field, _)| format!("{section}.{}", field.replace('.', "\\."))));
    }
    let mut missed = 0;
    for path in &paths {
        let set = format!("podMonitor.enabled=true,bpffs.mount=true,{path}=null");
        match tools().helm(&["--set", &set]) {
            Ok(rendered) => {
                let objects = super::parse(&rendered);
                for text in ["DaemonSet", "PodMonitor"].map(|kind| one(&objects, kind).to_string()) {
                    assert!(!text.contains("null") && !text.contains("nil"), "{path}: {text}");
                }
            }
            Err(error) => {
                let (error, field) = (error.to_string(), path.rsplit('.').next().unwrap());
                let named =
                    error.contains("specifications of the schema") && error.contains(&format!("'{field}'"));
                assert!(named, "{path}: {error}");
                missed += 1;
            }
        }
    }
    assert!(missed > 15, "{missed} of {paths:?}");
}

#[test]
fn the_admission_policy_comes_without_the_custom_resource() {
    let count = |values: &str, kind: &str| {
        helm(&["--set", values]).iter().filter(|object| object["kind"] == kind).count()
    };
    for (values, definitions, policies) in [
        ("crd.install=true", 1, 1),
        ("crd.install=false", 0, 1),
        ("crd.strictFields=false", 1, 0),
        ("crd.install=false,crd.strictFields=false", 0, 0),
    ] {
        assert_eq!(count(values, "CustomResourceDefinition"), definitions, "{values}");
        assert_eq!(count(values, "ValidatingAdmissionPolicy"), policies, "{values}");
        assert_eq!(count(values, "ValidatingAdmissionPolicyBinding"), policies, "{values}");
    }
}

#[test]
fn values_reach_the_agent() {
    let set = "agent.unknownPods=allow,agent.hooks=socket,agent.sever=true,agent.log=debug,agent.port=9000,\
        agent.criSockets=false,agent.logFormat=json,agent.flowLog=-,agent.extraArgs={--pod-root=/a,--cri-socket=/b},\
        nodeTaint.enabled=true,podMonitor.enabled=true,image.tag=2.0,crd.install=false,image.pullSecrets={mine}";
    let objects = helm(&["--set", set]);
    let pod = &one(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let args = [
        "run",
        "--source=kube",
        "--listen=$(HOST_IP):9000",
        "--unknown-pods=allow",
        "--hooks=socket",
        "--sever",
        "--log=debug",
        "--log-format=json",
        "--flow-log=-",
        "--lift-taint=egress-enforcer.io/agent-not-ready",
        "--pod-root=/a",
        "--cri-socket=/b",
    ];
    assert_eq!(texts(&container["args"]), args);
    assert_eq!(container["image"], "localhost/egress-enforcer/egress-agent:2.0");
    assert_eq!(container["ports"][0]["hostPort"], 9000);
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "mine"}]));
    assert_eq!(pod["volumes"].as_array().unwrap().len(), 3);
    assert!(objects.iter().any(|object| name(object) == "ClusterRole /egress-enforcer-node-taint"));
    assert!(!objects.iter().any(|object| object["kind"] == "CustomResourceDefinition"));
    let monitor = one(&objects, "PodMonitor");
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], container["ports"][0]["name"]);
    let labels = one(&objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(labels.get(label), Some(value), "{label}");
    }
    // The name of the job that comes of it is the one that the alert rules ask for.
    let job = labels[monitor["spec"]["jobLabel"].as_str().unwrap()].as_str().unwrap();
    let alerts = fs::read_to_string(root().join("deploy/alerts/egress-enforcer.yaml")).unwrap();
    let asked: Vec<_> = alerts.split("job=\"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
    assert!(asked.len() >= 2 && asked.iter().all(|one| *one == job), "{asked:?}");
}

#[test]
fn the_example_audits_in_audit_first_and_is_enforced_in_enforce() {
    for (overlay, enforcement, unknown) in [
        ("overlays/audit-first", "Audit", Some("--unknown-pods=allow")),
        ("overlays/enforce", "Enforce", None),
    ] {
        let objects = kustomize(overlay);
        assert_eq!(one(&objects, "EgressGatewayPolicy")["spec"]["enforcement"], enforcement);
        let args = &one(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["args"];
        assert_eq!(texts(args).into_iter().find(|arg| arg.starts_with("--unknown-pods")), unknown);
        // But for these it is the base.
        let mut rest = by_name(objects);
        rest.retain(|name, _| !name.starts_with("DaemonSet") && !name.starts_with("EgressGatewayPolicy"));
        let mut base = by_name(kustomize("base"));
        base.retain(|name, _| !name.starts_with("DaemonSet"));
        assert_eq!(rest, base);
    }
}

/// The base with a component.
fn component(name: &str) -> Vec<Value> {
    let directory = tempfile::tempdir_in(root().join("deploy/kustomize/overlays")).unwrap();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\n\
         components: [../../components/{name}]\n"
    );
    fs::write(directory.path().join("kustomization.yaml"), text).unwrap();
    super::parse(&tools().kustomize_at(directory.path()).unwrap())
}

/// The base with the patch that the guide has after some words.
fn guides_patch(after: &str) -> Vec<Value> {
    let guide = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let (_, rest) = guide.split_once(after).unwrap();
    let (_, rest) = rest.split_once("```yaml\n").unwrap();
    let (patch, _) = rest.split_once("```").unwrap();
    let directory = tempfile::tempdir_in(root().join("deploy/kustomize/overlays")).unwrap();
    let text = format!("resources: [../../base]\npatches:\n{patch}");
    fs::write(directory.path().join("kustomization.yaml"), text).unwrap();
    super::parse(&tools().kustomize_at(directory.path()).unwrap())
}

#[test]
fn sockets_of_other_runtimes_are_mounted_where_the_agent_looks() {
    let set = "namespace.create=true,agent.criSocketDirs={/run/k0s}";
    assert_eq!(
        by_name(helm(&["--set", set])),
        by_name(guides_patch("agent.criSocketDirs`, or in your overlay"))
    );
    let all = "agent.criSocketDirs={/run/k0s,/var/snap/microk8s/common/run,/run}";
    let objects = helm(&["--set", all]);
    let pod = &one(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let mounted = |directory: &str| {
        let mount = mounts.iter().find(|mount| mount["mountPath"] == directory)?;
        let volume =
            pod["volumes"].as_array().unwrap().iter().find(|one| one["name"] == mount["name"]).unwrap();
        assert_eq!(volume["hostPath"], json!({"path": directory, "type": ""}), "{directory}");
        let how = (&mount["readOnly"], &mount["mountPropagation"]);
        assert_eq!(how, (&json!(true), &json!("HostToContainer")), "{directory}");
        Some(())
    };
    let source = fs::read_to_string(root().join("egress-agent/src/cri/mod.rs")).unwrap();
    let (_, rest) = source.split_once("const PLACES: ").unwrap();
    let places: Vec<_> = rest.split_once("];\n").unwrap().0.split('"').skip(1).step_by(2).collect();
    assert_eq!(places.len(), 6, "{places:?}");
    for place in places {
        mounted(place.rsplit_once('/').unwrap().0).unwrap_or_else(|| panic!("{place} is not mounted"));
    }
    // One that the chart would mount is there once where it does not.
    helm(&["--set", "agent.criSockets=false,agent.criSocketDirs={/run/crio}"]);
}

#[test]
fn the_guides_overlay_has_the_image_that_it_names() {
    let guide = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let (_, rest) = guide.split_once("overlays/mine/kustomization.yaml`:\n\n```yaml\n").unwrap();
    let (overlay, _) = rest.split_once("```").unwrap();
    let directory = tempfile::tempdir_in(root().join("deploy/kustomize/overlays")).unwrap();
    fs::write(directory.path().join("kustomization.yaml"), overlay).unwrap();
    let objects = super::parse(&tools().kustomize_at(directory.path()).unwrap());
    let pod = &one(&objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry.example/egress-agent:0.1.0");
    let policy = one(&objects, "EgressGatewayPolicy");
    assert_eq!(policy["spec"], one(&kustomize("overlays/enforce"), "EgressGatewayPolicy")["spec"]);
}

#[test]
fn the_node_taint_is_a_component_with_a_role_of_its_own() {
    let chart = helm(&["--set", "namespace.create=true,nodeTaint.enabled=true"]);
    assert_eq!(by_name(component("node-taint")), by_name(chart));
}

#[test]
fn openshift_is_a_component_that_lets_the_account_use_one_constraint() {
    let objects = component("openshift");
    let chart = helm(&["--set", "namespace.create=true,openshift=true"]);
    assert_eq!(by_name(objects.clone()), by_name(chart));
    let (base, mut with) = (by_name(kustomize("base")), by_name(objects));
    let binding = with.remove("RoleBinding egress-enforcer/egress-enforcer-openshift").unwrap();
    assert_eq!(binding["roleRef"]["name"], "system:openshift:scc:privileged");
    assert_eq!(binding["subjects"], one(&kustomize("base"), "ClusterRoleBinding")["subjects"]);
    let namespace = with.get_mut("Namespace /egress-enforcer").unwrap()["metadata"].as_object_mut().unwrap();
    assert_eq!(namespace.remove("annotations"), Some(json!({"openshift.io/node-selector": ""})));
    assert_eq!(with, base);
}

#[test]
fn the_pods_priority_has_a_quota_beside_it() {
    let of = |objects: &[Value]| -> Option<(String, Value)> {
        let class = one(objects, "DaemonSet")["spec"]["template"]["spec"]["priorityClassName"].clone();
        let quota = objects.iter().find(|object| object["kind"] == "ResourceQuota")?;
        let scope = quota.pointer("/spec/scopeSelector/matchExpressions/0").unwrap();
        assert_eq!(scope, &json!({"scopeName": "PriorityClass", "operator": "In", "values": [class]}));
        Some((name(quota), quota["spec"]["hard"].clone()))
    };
    let quota = Some(("ResourceQuota egress-enforcer/egress-agent".to_owned(), json!({"pods": "1G"})));
    for path in render::KUSTOMIZE {
        assert_eq!(of(&kustomize(path)), quota, "{path}");
    }
    assert_eq!(of(&helm(&[])), quota);
    assert_eq!(of(&helm(&["--set", "priorityClassName=mine"])), quota);
    assert_eq!(of(&helm(&["--set", "priorityClassName="])), None);
    // In there it would count, and could stop, the pods of others.
    assert_eq!(of(&helm(&["--namespace", "kube-system"])), None);
}

#[test]
fn a_bpffs_is_mounted_by_a_component_that_alone_is_privileged() {
    let objects = component("mount-bpffs");
    let pod = &one(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let [init] = &pod["initContainers"].as_array().unwrap()[..] else { panic!("{pod}") };
    assert_eq!(init["securityContext"]["privileged"], true);
    assert_eq!(pod["containers"][0]["securityContext"]["privileged"], false);
    // The agent looks where this has mounted.
    let [mount] = &init["volumeMounts"].as_array().unwrap()[..] else { panic!("{init}") };
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let agents = mounts.iter().find(|one| one["name"] == mount["name"]).unwrap();
    assert_eq!(
        (&mount["mountPath"], &mount["mountPropagation"]),
        (&agents["mountPath"], &json!("Bidirectional"))
    );
    assert_eq!(init["image"], pod["containers"][0]["image"]);
    let chart = helm(&["--set", "namespace.create=true,bpffs.mount=true"]);
    assert_eq!(by_name(objects), by_name(chart));
}

#[test]
fn what_is_made_from_types_is_checked_in() {
    for (path, text) in made().unwrap() {
        let there = fs::read_to_string(root().join(&path)).unwrap_or_default();
        assert!(there == text, "{path} is not what the types say: run `cargo xtask manifests`");
    }
}

#[test]
fn versions_are_the_workspaces() {
    let version = env!("CARGO_PKG_VERSION");
    let chart: Value = serde_saphyr::from_str(
        &fs::read_to_string(root().join("deploy/helm/egress-enforcer/Chart.yaml")).unwrap(),
    )
    .unwrap();
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
    for path in render::KUSTOMIZE {
        let pod = one(&kustomize(path), "DaemonSet")["spec"]["template"]["spec"].clone();
        let of = |field: &str| pod[field].as_array().cloned().unwrap_or_default();
        for container in of("initContainers").into_iter().chain(of("containers")) {
            let image = &container["image"];
            assert_eq!(image, &format!("localhost/egress-enforcer/egress-agent:{version}"), "{path}");
        }
    }
}
