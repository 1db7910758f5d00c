//! The life of the enforcement: births, deaths, restarts, and its end. Real agent, real kernel.

mod common;

use std::time::Duration;

use common::{Stand, denied, entries, eventually, outside, passes, pod_object, policy, udp};
use egress_topology::{Agent, CgroupDriver, ContainerKind, Exec, OUTSIDE_V4, PodSpec, Qos, mount_bpffs};
use serde_json::json;

#[test]
fn pods_of_every_qos_class_and_driver_are_found() {
    for driver in [CgroupDriver::Systemd, CgroupDriver::Cgroupfs] {
        let mut stand = Stand::new(driver);
        let peer = stand.peer();
        stand.lock_down(json!({}));
        let classes = [(Qos::Guaranteed, "g"), (Qos::Burstable, "b"), (Qos::BestEffort, "e")];
        let pods = classes.map(|(qos, name)| stand.pod(PodSpec::new("a", name).qos(qos)));
        let free = stand.pod(PodSpec::new("b", "free").qos(Qos::Guaranteed));
        stand.start();
        for pod in &pods {
            for address in outside() {
                denied(pod, address);
            }
            passes(pod, peer.pod().v4());
            passes(pod, format!("[{}]", peer.pod().v6()));
        }
        for address in outside() {
            passes(&free, address);
        }
        let endpoints = stand.agent.ask(&["endpoints"]).unwrap();
        let table = String::from_utf8(endpoints.stdout).unwrap();
        assert_eq!(table.lines().count(), 1 + 5, "{table}");
    }
}

#[test]
fn enforcement_goes_on_without_the_agent_and_a_restart_writes_nothing() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    let check = || {
        outside().iter().for_each(|address| denied(&pod, address));
        passes(&pod, peer.pod().v4());
    };
    stand.start();
    check();
    let revision = stand.agent.status().unwrap()["revision"].clone();
    stand.agent.kill().unwrap();
    check();
    stand.start();
    check();
    let status = stand.agent.status().unwrap();
    assert_eq!(status["revision"], revision, "the state did not change, so nothing is to be written");
    assert_eq!(status["ready"], true);
}

#[test]
fn what_changed_while_no_agent_ran_is_made_up_for() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({}));
    let (old, gone) = (stand.pod(PodSpec::new("a", "old")), stand.pod(PodSpec::new("a", "gone")));
    stand.start();
    denied(&old, &outside()[0]);
    stand.agent.kill().unwrap();
    gone.pod().remove().unwrap();
    stand.remove(&pod_object(&stand, gone.pod()));
    stand.lock_down(json!({"allow": {"to": [{"cidr": "198.51.100.10/32"}]}}));
    denied(&old, &outside()[0]);
    stand.start();
    passes(&old, &outside()[0]);
    denied(&old, &outside()[1]);
    assert_eq!(entries(&stand.agent, "egress_endpoint"), 1);
}

#[test]
fn a_pod_is_unknown_until_its_object_is_there_and_gone_when_its_cgroup_is() {
    let mut stand = Stand::new(CgroupDriver::Cgroupfs);
    let peer = stand.peer();
    stand.start();
    let pod = stand.topology.add_pod(PodSpec::new("b", "late")).unwrap();
    let container = pod.add_container("app").unwrap();
    // At once, whether the agent has seen the cgroup or not.
    denied(&container, &outside()[0]);
    passes(&container, peer.pod().v4());
    eventually("the pod is counted as unknown", || stand.agent.status().unwrap()["unknown_pods"] == 1);
    denied(&container, &outside()[0]);
    stand.write(pod_object(&stand, &pod));
    eventually("the pod is known", || stand.agent.status().unwrap()["unknown_pods"] == 0);
    passes(&container, &outside()[0]);
    pod.remove().unwrap();
    eventually("its entry is gone", || entries(&stand.agent, "egress_endpoint") == 1);
}

#[test]
fn unknown_pods_follow_the_setting() {
    for (setting, inside, out) in
        [("deny", false, false), ("deny-outside", true, false), ("allow", true, true)]
    {
        let mut stand = Stand::new(CgroupDriver::Systemd);
        let peer = stand.peer();
        stand.agent = stand.agent.arguments(&["--unknown-pods", setting]);
        let pod =
            stand.topology.add_pod(PodSpec::new("b", "stranger")).unwrap().add_container("app").unwrap();
        stand.start();
        let expect = |wanted: bool, address: String| {
            if wanted {
                passes(&pod, address);
            } else {
                denied(&pod, address);
            }
        };
        expect(inside, peer.pod().v4().to_string());
        expect(out, outside()[0].clone());
    }
}

#[test]
fn processes_outside_the_pod_root_are_never_touched() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.agent = stand.agent.arguments(&["--unknown-pods", "deny"]);
    stand.start();
    let words = ["udp", "198.51.100.10:9999", "--timeout-ms", "1500"];
    let attempt: egress_probe::Attempt =
        stand.topology.node_exec(&Exec::probe(words)).unwrap().output_json(Duration::from_secs(5)).unwrap();
    assert!(attempt.succeeded(), "{attempt:?}");
}

#[test]
fn a_policy_change_acts_on_the_next_packet_of_an_open_socket() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.servers.push(stand.topology.outside_serve(&Exec::probe(["serve-echo", "--port", "7"])).unwrap());
    stand.lock_down(
        json!({"allow": {"to": [{"cidr": "198.51.100.0/24", "ports": [{"protocol": "TCP", "port": 7}]}]}}),
    );
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let words = ["hold", "198.51.100.10:7", "--for-ms", "300000", "--interval-ms", "300"];
    let mut hold = pod.spawn(&Exec::probe(words)).unwrap();
    let mut beat = || hold.next_json::<egress_probe::Beat>(Duration::from_secs(5)).unwrap().unwrap();
    for _ in 0..3 {
        assert_eq!(beat().outcome, egress_probe::Outcome::Ok);
    }
    stand.lock_down(json!({}));
    eventually("the open connection stops", || beat().outcome != egress_probe::Outcome::Ok);
    let flows = stand.agent.flows().unwrap();
    let denied = flows.iter().find(|flow| flow["destination"] == "198.51.100.10:7").unwrap();
    assert_eq!((&denied["action"], &denied["reason"]), (&json!("deny"), &json!("NotAllowed")));
    assert_eq!(denied["pod"], "a/pod");
}

#[test]
fn audit_lets_pass_and_reports() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({"enforcement": "Audit"}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    passes(&pod, &outside()[0]);
    eventually("it is reported", || {
        let flows = stand.agent.flows().unwrap();
        flows.iter().any(|flow| flow["action"] == "audit" && flow["destination"] == "198.51.100.10:9999")
    });
    stand.lock_down(json!({"enforcement": "Enforce"}));
    eventually("it enforces", || stand.agent.status().unwrap()["endpoints"]["Isolated"] == 1);
    denied(&pod, &outside()[0]);
}

#[test]
fn a_second_agent_on_the_node_is_refused() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.start();
    let refused = |agent: &Agent| {
        let finished = stand
            .topology
            .node_exec(&agent.run(&stand.topology))
            .unwrap()
            .finish(Duration::from_secs(10))
            .unwrap();
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains("another egress-agent"), "{finished:?}");
    };
    refused(&Agent::new(common::agent_binary(), stand.bpffs.path(), stand.dir.path()));
    // With pins elsewhere, but for the same pods.
    let elsewhere = mount_bpffs(&stand.dir.path().join("bpf2")).unwrap();
    refused(&Agent::new(common::agent_binary(), elsewhere.path(), stand.dir.path()));
    assert_eq!(stand.agent.status().unwrap()["ready"], true, "the first one is not disturbed");
}

#[test]
fn cleanup_removes_everything_and_not_under_a_running_agent() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let status = stand.agent.status().unwrap();
    let program = status["hooks"][0]["id"].as_u64().unwrap();
    let loaded = || aya::programs::loaded_programs().flatten().any(|info| u64::from(info.id()) == program);
    assert!(loaded());

    let finished = stand.agent.try_cleanup(&stand.topology).unwrap();
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("stop it first"), "{finished:?}");
    denied(&pod, &outside()[0]);

    stand.agent.stop().unwrap();
    denied(&pod, &outside()[0]);
    assert!(!common::exists(&stand.agent.socket()), "an agent that ends takes its socket along");
    stand.agent.cleanup(&stand.topology).unwrap();
    passes(&pod, &outside()[0]);
    assert!(stand.agent.pins().unwrap().is_empty());
    assert!(!loaded());
    // Once more has nothing to do, and is no error.
    stand.agent.cleanup(&stand.topology).unwrap();
}

#[test]
fn an_invalid_policy_fails_closed_and_says_why() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    stand.lock_down(json!({"allow": {"to": [{"cidr": "198.51.100.10/24"}]}}));
    let (pod, free) = (stand.pod(PodSpec::new("a", "pod")), stand.pod(PodSpec::new("b", "free")));
    stand.start();
    denied(&pod, &outside()[0]);
    denied(&pod, peer.pod().v4());
    passes(&free, &outside()[0]);
    let status = stand.agent.status().unwrap();
    assert_eq!(status["endpoints"]["Invalid"], 1, "{status}");
    let text = status.to_string();
    assert!(text.contains("spec.allow.to[0]") && text.contains("EgressGatewayPolicy lock"), "{text}");
}

#[test]
fn malformed_yaml_is_named_with_file_and_line_and_the_rest_applies() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    let broken = stand.agent.objects().join("zz-broken.yaml");
    std::fs::write(&broken, "apiVersion: v1\nkind: Pod\nmetadata: {name: [\n---\nkind: Nonsense\n").unwrap();
    stand.start();
    denied(&pod, &outside()[0]);
    let status = stand.agent.status().unwrap();
    let errors = status["source"]["errors"].as_array().unwrap();
    assert!(
        errors.iter().any(|e| e["place"].as_str().unwrap().ends_with("zz-broken.yaml") && e["line"].is_u64()),
        "{status}"
    );
    let table = stand.agent.ask(&["status"]).unwrap();
    assert!(String::from_utf8_lossy(&table.stdout).contains("zz-broken.yaml:"));
    std::fs::remove_file(&broken).unwrap();
    eventually("the error goes with the file", || {
        stand.agent.status().unwrap()["source"]["errors"].as_array().unwrap().is_empty()
    });
}

#[test]
fn a_policy_file_that_breaks_goes_on_being_enforced() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let path = stand.agent.objects().join("lock.yaml");
    std::fs::write(&path, policy(json!({})).to_string()).unwrap();
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    denied(&pod, &outside()[0]);
    std::fs::write(&path, "apiVersion: [").unwrap();
    eventually("the error is shown", || {
        !stand.agent.status().unwrap()["source"]["errors"].as_array().unwrap().is_empty()
    });
    denied(&pod, &outside()[0]);
    std::fs::remove_file(&path).unwrap();
    eventually("the policy is gone", || stand.agent.status().unwrap()["endpoints"]["Unselected"] == 1);
    passes(&pod, &outside()[0]);
}

#[test]
fn a_pod_root_that_is_made_anew_is_enforced_again() {
    let mut stand = Stand::new(CgroupDriver::Cgroupfs);
    stand.agent = stand.agent.arguments(&["--unknown-pods", "deny"]);
    stand.start();
    let root = stand.topology.pod_root().path().to_owned();
    let classes: Vec<_> =
        std::fs::read_dir(&root).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    for dir in classes.iter().chain([&root]) {
        std::fs::remove_dir(dir).unwrap();
    }
    for dir in [&root].into_iter().chain(&classes) {
        std::fs::create_dir(dir).unwrap();
    }
    eventually("the new pod root has the hook", || {
        let pod =
            stand.topology.add_pod(PodSpec::new("b", &format!("p{}", stand.topology.pods().len()))).unwrap();
        let container = pod.add_container("app").unwrap();
        let outcome = common::udp(&container, &outside()[0]).outcome;
        pod.remove().unwrap();
        outcome == egress_probe::Outcome::Denied
    });
}

#[test]
fn a_proxy_lock_lets_only_the_proxy_out() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    stand.lock_down(json!({
        "proxy": {"containers": ["istio-proxy"]}, "allow": {"to": [{"cidr": "198.51.100.10/32"}]},
    }));
    let app = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    denied(&app, &outside()[0]);
    passes(&app, peer.pod().v4());
    // A container that nobody knows yet is no proxy; once its status says which it is, it is.
    let proxy = app.pod().add_container_of_kind("istio-proxy", ContainerKind::Sidecar).unwrap();
    denied(&proxy, &outside()[0]);
    stand.write(pod_object(&stand, app.pod()));
    eventually("the proxy is known", || {
        let endpoints = stand.agent.ask(&["endpoints", "-o", "json"]).unwrap();
        String::from_utf8(endpoints.stdout).unwrap().contains(r#""proxies":["istio-proxy"]"#)
    });
    passes(&proxy, &outside()[0]);
    denied(&proxy, &outside()[1]);
    denied(&app, &outside()[0]);
    // A container with the right name in another pod's status, or one that comes after, is another container.
    let debugger = app.pod().add_container_of_kind("debugger", ContainerKind::Ephemeral).unwrap();
    stand.write(pod_object(&stand, app.pod()));
    denied(&debugger, &outside()[0]);
    eventually("the flow log names the container", || {
        let flows = stand.agent.ask(&["flows", "-o", "json", "--pod", "a/pod"]).unwrap();
        let flows = String::from_utf8(flows.stdout).unwrap();
        flows.lines().any(|flow| flow.contains("SidecarBypass") && flow.contains(r#""container":"app""#))
    });
    // It holds while no agent runs, and ends with the policy's.
    stand.agent.kill().unwrap();
    denied(&app, &outside()[0]);
    passes(&proxy, &outside()[0]);
    stand.lock_down(json!({"allow": {"to": [{"cidr": "198.51.100.10/32"}]}}));
    stand.start();
    passes(&app, &outside()[0]);
}

#[test]
fn a_pod_that_comes_again_under_its_name_leaves_the_one_before_locked_down() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    // Less than what unknown pods may do.
    stand.lock_down(json!({"allow": {"inCluster": false, "dns": "None"}}));
    let old = stand.pod(PodSpec::new("a", "web-0"));
    stand.start();
    denied(&old, peer.pod().v4());
    let mut new = pod_object(&stand, old.pod());
    new["metadata"]["uid"] = json!("0c5e7b2e-0000-4000-8000-0000000000aa");
    new["status"]["podIPs"] = json!([]);
    new["status"]["podIP"] = json!("");
    stand.write(new);
    eventually("the object was read", || {
        let endpoints = stand.agent.ask(&["endpoints", "-o", "json"]).unwrap();
        String::from_utf8(endpoints.stdout).unwrap().contains("web-0 (before, UID")
    });
    denied(&old, peer.pod().v4());
    old.pod().remove().unwrap();
    eventually("it is let go", || entries(&stand.agent, "egress_endpoint") == 1);
}

#[test]
fn a_pod_whose_object_went_while_no_agent_ran_is_closed_as_long_as_its_processes_run() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    // Less than what unknown pods may do.
    stand.lock_down(json!({"allow": {"to": [{"cidr": format!("{OUTSIDE_V4}/32")}], "inCluster": false}}));
    stand.write(json!({"apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy", "metadata": {"name": "audit"},
        "spec": {"enforcement": "Audit", "subjects": [{"pods": {"matchLabels": {"only": "audited"}}}]}}));
    let (locked, free) = (stand.pod(PodSpec::new("a", "locked")), stand.pod(PodSpec::new("b", "free")));
    let audited = stand.pod(PodSpec::new("b", "audited").label("only", "audited"));
    stand.start();
    denied(&locked, peer.pod().v4());
    passes(&locked, OUTSIDE_V4);
    passes(&audited, OUTSIDE_V4);
    stand.agent.kill().unwrap();
    let objects = [&locked, &free, &audited].map(|container| pod_object(&stand, container.pod()));
    objects.iter().for_each(|object| stand.remove(object));
    stand.start();
    // One that was not locked down, or audited only, is unknown like any other.
    for container in [&free, &audited] {
        eventually("it is unknown", || !udp(container, OUTSIDE_V4).succeeded());
        passes(container, peer.pod().v4());
    }
    denied(&locked, peer.pod().v4());
    denied(&locked, OUTSIDE_V4);
    let told = stand.agent.status().unwrap()["diagnostics"].to_string();
    assert!(told.contains(&format!("UID {} was locked down before", locked.pod().uid())), "{told}");
    // Also by the next agent; and what comes back counts.
    stand.agent.kill().unwrap();
    stand.start();
    denied(&locked, peer.pod().v4());
    objects.iter().for_each(|object| stand.write(object.clone()));
    eventually("it is known again", || udp(&locked, OUTSIDE_V4).succeeded());
    denied(&locked, peer.pod().v4());
    eventually("the other, too", || udp(&free, OUTSIDE_V4).succeeded());
}

#[test]
fn a_static_pod_stays_locked_down_whatever_becomes_of_its_mirror() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    // Less than what unknown pods may do.
    stand.lock_down(json!({"allow": {"inCluster": false, "dns": "None"}}));
    let pod = stand.pod(PodSpec::new("a", "static"));
    // As kubelet writes it: the cgroup has the manifest's hash in its name, the mirror a UID of its own.
    let object = pod_object(&stand, pod.pod());
    let hash = object["metadata"]["uid"].clone();
    let mirror = |uid: &str| {
        let mut mirror = object.clone();
        mirror["metadata"]["uid"] = json!(uid);
        mirror["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash});
        mirror["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n"}]);
        mirror
    };
    let seen = |stand: &Stand, uid: &str| {
        eventually("the mirror was read", || {
            let endpoints = stand.agent.ask(&["endpoints", "-o", "json"]).unwrap();
            String::from_utf8(endpoints.stdout).unwrap().contains(&format!(r#""uid":"{uid}""#))
        });
    };
    stand.write(mirror("first"));
    stand.start();
    seen(&stand, "first");
    denied(&pod, peer.pod().v4());
    stand.write(mirror("second"));
    seen(&stand, "second");
    denied(&pod, peer.pod().v4());
    stand.remove(&object);
    // What is written after it is read with it or after it.
    stand.write(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "marker"}}));
    eventually("the object went", || stand.agent.status().unwrap()["source"]["objects"] == 4);
    denied(&pod, peer.pod().v4());
    stand.write(mirror("third"));
    seen(&stand, "third");
    denied(&pod, peer.pod().v4());
    // One of the same name with another hash is another pod.
    let mut other = mirror("fourth");
    other["metadata"]["annotations"] =
        json!({"kubernetes.io/config.hash": "x", "kubernetes.io/config.mirror": "x"});
    stand.write(other);
    eventually("the one before is kept", || {
        let endpoints = stand.agent.ask(&["endpoints", "-o", "json"]).unwrap();
        String::from_utf8(endpoints.stdout).unwrap().contains("static (before, UID third)")
    });
    denied(&pod, peer.pod().v4());
    // And back: there are not two that claim the cgroup.
    stand.write(mirror("third"));
    eventually("nobody is kept", || {
        let endpoints = stand.agent.ask(&["endpoints", "-o", "json"]).unwrap();
        let endpoints = String::from_utf8(endpoints.stdout).unwrap();
        endpoints.contains(r#""uid":"third""#) && !endpoints.contains("before")
    });
    denied(&pod, peer.pod().v4());
}
