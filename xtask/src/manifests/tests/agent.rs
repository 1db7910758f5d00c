//! The DaemonSet against the program that it starts: flags, rights, ports, mounts.

use std::collections::BTreeSet;
use std::fs;

use clap::CommandFactory as _;
use egress_agent::cli::Cli;
use egress_policy::{Kind, schema};
use serde_json::{Value, json};

use super::super::render;
use super::{EVERYTHING, helm, kustomize, one, texts, tools};
use crate::command::root;

fn pod(objects: &[Value]) -> &Value {
    &one(objects, "DaemonSet")["spec"]["template"]["spec"]
}

#[test]
fn every_flag_and_variable_is_one_of_the_agents() {
    let cli = Cli::command();
    let rendered: Vec<_> =
        render::KUSTOMIZE.map(kustomize).into_iter().chain([helm(&["--set", EVERYTHING])]).collect();
    let containers = rendered.iter().flat_map(|objects| {
        let of = |field: &str| pod(objects)[field].as_array().into_iter().flatten();
        of("initContainers").chain(of("containers"))
    });
    for container in containers {
        let args = texts(&container["args"]);
        let command =
            cli.find_subcommand(args[0]).unwrap_or_else(|| panic!("there is no command {}", args[0]));
        let known = || command.get_arguments().chain(cli.get_arguments());
        for arg in &args[1..] {
            let (flag, value) = arg.split_once('=').map_or((*arg, None), |(flag, value)| (flag, Some(value)));
            let flag = flag.strip_prefix("--").unwrap();
            let found = known().find(|known| known.get_long() == Some(flag));
            let found = found.unwrap_or_else(|| panic!("egress-agent {} has no --{flag}", args[0]));
            let may_be_bare = found.get_num_args().is_some_and(|number| number.min_values() == 0);
            assert!(may_be_bare || found.get_action().takes_values() == value.is_some(), "--{flag}");
            let possible = found.get_possible_values();
            let fits = |value| possible.is_empty() || possible.iter().any(|p| p.matches(value, false));
            assert!(value.is_none_or(fits), "--{flag} does not take {value:?}");
        }
        // Named by the help of --node-name, and by an argument.
        for variable in container["env"].as_array().into_iter().flatten() {
            let variable = variable["name"].as_str().unwrap();
            let is_flags = known().any(|known| known.get_env().is_some_and(|env| env == variable));
            let is_said =
                known().any(|known| known.get_help().is_some_and(|help| help.to_string().contains(variable)));
            let is_used = args.iter().any(|arg| arg.contains(&format!("$({variable})")));
            assert!(is_flags || is_said || is_used, "{variable} is nobody's");
        }
    }
}

/// Every right of the roles: verb, group and resource, and the one object that it is limited to.
fn rights(objects: &[Value]) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for role in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Role")) {
        for rule in role["rules"].as_array().unwrap() {
            let names = texts(&rule["resourceNames"]);
            let of = names.first().map_or(String::new(), |name| format!(" {name}"));
            assert!(names.len() < 2, "{rule}");
            for verb in texts(&rule["verbs"]) {
                for group in texts(&rule["apiGroups"]) {
                    let resources = texts(&rule["resources"]).into_iter();
                    rights.extend(resources.map(|resource| format!("{verb} {group}/{resource}{of}")));
                }
            }
        }
    }
    rights
}

#[test]
fn the_agent_has_the_rights_that_it_uses_and_no_more() {
    let objects = kustomize("base");
    // Each kind is followed by lists and watches (`source/kube`).
    let mut used = BTreeSet::new();
    for kind in Kind::ALL {
        let group = kind.api_version().split_once('/').map_or("", |(group, _)| group);
        let plural = match kind {
            Kind::NetworkPolicy => "networkpolicies".to_owned(),
            Kind::EgressGatewayPolicy => schema::PLURAL.to_owned(),
            kind => format!("{}s", kind.name().to_lowercase()),
        };
        used.extend(["list", "watch"].map(|verb| format!("{verb} {group}/{plural}")));
    }
    // And single objects are asked for, or written (`source/kube/stop.rs`, `cluster`).
    let single = [
        "create /events",
        "create coordination.k8s.io/leases",
        "get apiextensions.k8s.io/customresourcedefinitions egressgatewaypolicies.egress-enforcer.io",
        "get coordination.k8s.io/leases egress-agent-leader",
        "get egress-enforcer.io/egressgatewaypolicies",
        "patch /events",
        "patch egress-enforcer.io/egressgatewaypolicies/status",
        "update coordination.k8s.io/leases egress-agent-leader",
    ];
    used.extend(single.map(str::to_owned));
    assert_eq!(rights(&objects), used);
    let lifts = helm(&["--set", "nodeTaint.enabled=true"]);
    used.extend(["get /nodes", "patch /nodes"].map(str::to_owned));
    assert_eq!(rights(&lifts), used);
    let definition = schema::definition();
    let named = format!("customresourcedefinitions {}", definition["metadata"]["name"].as_str().unwrap());
    assert!(used.iter().any(|right| right.ends_with(&named)), "{named}");
    // Who has the roles is who the pods are.
    for binding in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Binding")) {
        if let Some(subjects) = binding.get("subjects") {
            let account = one(&objects, "ServiceAccount");
            assert_eq!(subjects.as_array().unwrap().len(), 1);
            assert_eq!(subjects[0]["name"], account["metadata"]["name"]);
            assert_eq!(subjects[0]["namespace"], account["metadata"]["namespace"]);
        }
    }
    assert_eq!(pod(&objects)["serviceAccountName"], one(&objects, "ServiceAccount")["metadata"]["name"]);
}

#[test]
fn the_port_that_the_agent_listens_at_is_the_pods() {
    for path in ["base", "overlays/audit-first", "overlays/enforce", "overlays/kind"] {
        let objects = kustomize(path);
        let container = &pod(&objects)["containers"][0];
        let port = &container["ports"][0];
        assert_eq!(port["containerPort"], port["hostPort"]);
        let listen = format!("--listen=$(HOST_IP):{}", port["hostPort"]);
        assert!(texts(&container["args"]).contains(&listen.as_str()), "{path}");
    }
}

/// `egress-agent/tests/kube.rs` runs the base's where the port is somebody else's, and where another agent has the node.
#[test]
fn probes_ask_the_agent_and_not_whoever_has_a_port() {
    for objects in [kustomize("base"), helm(&[])] {
        let container = &pod(&objects)["containers"][0];
        let asked = ["startupProbe", "livenessProbe", "readinessProbe"].map(|probe| {
            // The program waits eight seconds.
            assert!(container[probe]["timeoutSeconds"].as_u64().unwrap() > 8, "{probe}");
            texts(&container[probe]["exec"]["command"]).join(" ")
        });
        assert_eq!(
            asked,
            ["egress-agent probe alive", "egress-agent probe alive", "egress-agent probe ready"]
        );
        let names = container["env"].as_array().unwrap();
        let pod = names.iter().find(|one| one["name"] == "POD_NAME").unwrap();
        assert_eq!(pod["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
    }
}

#[test]
fn the_pod_may_do_what_is_listed_and_no_more() {
    let objects = kustomize("base");
    let pod = pod(&objects);
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["privileged"], false);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(texts(&security["capabilities"]["drop"]), ["ALL"]);
    // `egress-agent/tests/capabilities.rs` runs the agent with what the base says here, and without each.
    assert_eq!(texts(&security["capabilities"]["add"]), ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]);
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["priorityClassName"], "system-node-critical");

    let volumes: BTreeSet<_> =
        pod["volumes"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert_eq!(mounts.iter().map(|m| m["name"].as_str().unwrap()).collect::<BTreeSet<_>>(), volumes);
    // What is mounted on the node later, such as a runtime's directory that is a mount of its own, is seen.
    for mount in mounts.iter().filter(|m| m["name"] != "run") {
        assert_eq!(mount["mountPropagation"], "HostToContainer", "{mount}");
    }
    let writable: BTreeSet<_> =
        mounts.iter().filter(|m| m["readOnly"] != true).map(|m| m["mountPath"].as_str().unwrap()).collect();
    assert_eq!(writable, ["/run/egress-enforcer", "/sys/fs/bpf"].into());
    let namespace = one(&objects, "Namespace");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    assert!(
        egress_policy::object::LIFELINE_NAMESPACES.contains(&namespace["metadata"]["name"].as_str().unwrap()),
        "the agent's own pods could be locked down"
    );
}

/// Labels of nodes, and whether they get an agent: as the scheduler reads it, absent labels are in no list.
#[test]
fn nodes_that_run_no_pods_of_daemon_sets_are_left_out() {
    let meant = |objects: &[Value], labels: &Value| {
        let pod = pod(objects);
        let selector = pod["nodeSelector"].as_object().into_iter().flatten();
        let terms = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let [term] = &terms["nodeSelectorTerms"].as_array().unwrap()[..] else { panic!("{terms}") };
        let expressions = term["matchExpressions"].as_array().unwrap();
        selector.into_iter().all(|(label, value)| labels[label] == *value)
            && expressions.iter().all(|one| {
                assert_eq!(one["operator"], "NotIn");
                !one["values"].as_array().unwrap().contains(&labels[one["key"].as_str().unwrap()])
            })
    };
    for objects in render::KUSTOMIZE.map(kustomize).into_iter().chain([helm(&[])]) {
        let is = |more: Value| {
            let mut labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"});
            labels.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            meant(&objects, &labels)
        };
        assert!(is(json!({})) && is(json!({"type": "gpu", "eks.amazonaws.com/compute-type": "ec2"})));
        assert!(is(json!({"eks.amazonaws.com/compute-type": "auto"})));
        assert!(!is(json!({"eks.amazonaws.com/compute-type": "fargate"})));
        assert!(!is(json!({"type": "virtual-kubelet"})));
        assert!(!is(json!({"kubernetes.io/os": "windows"})));
    }
    let bare = helm(&["--set", "affinity.nodeAffinity=null"]);
    assert!(pod(&bare).get("affinity").is_none());
}

#[test]
fn uninstalling_runs_cleanup_with_what_the_agent_has() {
    let script = fs::read_to_string(root().join("deploy/uninstall.sh")).unwrap();
    let patch = root().join("deploy/uninstall.patch.yaml");
    let directory = tempfile::tempdir().unwrap();
    let patched = |object: &Value| -> Value {
        let file = directory.path().join("daemonset.json");
        fs::write(&file, object.to_string()).unwrap();
        serde_json::from_str(&tools().patched(&file, &patch).unwrap()).unwrap()
    };
    let by_helm = helm(&["--set", "image.repository=registry.example/agent,nodeTaint.enabled=true"]);
    for objects in [kustomize("base"), by_helm] {
        let before = one(&objects, "DaemonSet");
        let after = patched(before);
        assert_eq!(patched(&after), after, "it cannot be run again");
        let mut expected = before.clone();
        expected["spec"]["updateStrategy"]["rollingUpdate"] =
            json!({"maxUnavailable": "100%", "maxSurge": 0});
        let container = expected["spec"]["template"]["spec"]["containers"][0].as_object_mut().unwrap();
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert!(container.remove(probe).is_some(), "{probe}");
        }
        container.insert("args".to_owned(), json!(["cleanup"]));
        assert_eq!(after, expected);
        assert!(script.contains(&format!("daemonset {} ", before["metadata"]["name"].as_str().unwrap())));
        for (label, value) in before["spec"]["selector"]["matchLabels"].as_object().unwrap() {
            let selected = format!("{label}={}", value.as_str().unwrap());
            assert!(script.contains(&selected), "{selected}");
        }
    }
    assert!(Cli::command().find_subcommand("cleanup").is_some());
}
