//! What cannot be read, what goes too early, and what somebody takes away: none of it opens the door.

mod common;

use std::fs;
use std::time::Duration;

use common::{Stand, denied, eventually, outside, passes, pod_object, policy};
use egress_common::wire::ABI;
use egress_topology::{CgroupDriver, PodSpec};
use serde_json::json;

#[test]
fn a_policy_that_breaks_while_no_agent_runs_goes_on_being_enforced() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let path = stand.agent.objects().join("lock.yaml");
    let text = policy(json!({})).to_string();
    fs::write(&path, &text).unwrap();
    let (pod, free) = (stand.pod(PodSpec::new("a", "pod")), stand.pod(PodSpec::new("b", "free")));
    stand.start();
    denied(&pod, &outside()[0]);
    stand.agent.kill().unwrap();
    fs::write(&path, format!("{text}]")).unwrap();
    stand.agent.spawn(&stand.topology).unwrap();
    stand
        .agent
        .wait("it is held", |status| status["pending"].to_string().contains("may be a policy"))
        .unwrap();
    denied(&pod, &outside()[0]);
    passes(&free, &outside()[0]);
    fs::write(&path, &text).unwrap();
    stand.agent.wait("it is read", |status| status["ready"] == true).unwrap();
    denied(&pod, &outside()[0]);
    passes(&free, &outside()[0]);
}

#[test]
fn without_pins_pods_stay_unknown_until_every_policy_is_read() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    let path = stand.agent.objects().join("lock.yaml");
    let text = policy(json!({})).to_string();
    fs::write(&path, format!("{text}]")).unwrap();
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.agent.spawn(&stand.topology).unwrap();
    stand
        .agent
        .wait("it is held", |status| status["pending"].to_string().contains("may be a policy"))
        .unwrap();
    denied(&pod, &outside()[0]);
    passes(&pod, peer.pod().v4());
    // What can be read applies meanwhile, also what comes later.
    let deny_all = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "a", "name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    });
    stand.write(deny_all.clone());
    stand.agent.wait("the other policy applies", |status| status["endpoints"]["Isolated"] == 1).unwrap();
    denied(&pod, peer.pod().v4());
    stand.remove(&deny_all);
    fs::remove_file(&path).unwrap();
    stand.agent.wait("it is gone", |status| status["ready"] == true).unwrap();
    passes(&pod, &outside()[0]);
}

#[test]
fn a_file_that_is_emptied_before_it_is_written_opens_nothing() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let path = stand.agent.objects().join("lock.yaml");
    fs::write(&path, policy(json!({})).to_string()).unwrap();
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    fs::write(&path, "").unwrap();
    eventually("the error is shown", || {
        stand.agent.status().unwrap()["source"]["errors"].to_string().contains("is empty")
    });
    denied(&pod, &outside()[0]);
    fs::remove_file(&path).unwrap();
    eventually("the policy is gone", || stand.agent.status().unwrap()["endpoints"]["Unselected"] == 1);
    passes(&pod, &outside()[0]);
}

#[test]
fn a_pod_object_that_goes_before_its_processes_leaves_its_policy_in_place() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let peer = stand.peer();
    stand.lock_down(json!({"allow": {"inCluster": false}}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    denied(&pod, peer.pod().v4());
    let revision = stand.agent.status().unwrap()["revision"].clone();
    stand.remove(&pod_object(&stand, pod.pod()));
    // Another object shows that the directory was read since.
    let other = stand.pod(PodSpec::new("b", "other"));
    eventually("the other pod is known", || stand.agent.status().unwrap()["revision"] != revision);
    passes(&other, &outside()[0]);
    denied(&pod, peer.pod().v4());
    pod.pod().remove().unwrap();
    eventually("its entry is gone", || common::entries(&stand.agent, "egress_endpoint") == 2);
}

/// Anybody may write the annotations of a static pod, with the UID of a pod whose object went.
#[test]
fn a_pod_whose_object_went_is_not_taken_over_by_an_annotation() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({"allow": {"inCluster": false}}));
    let pods = ["victim", "other"].map(|name| stand.pod(PodSpec::new("a", name)));
    stand.start();
    pods.iter().for_each(|pod| denied(pod, &outside()[0]));
    let thief = |namespace: &str, name: &str, of: &serde_json::Value, uid: &str| {
        let mut thief = of.clone();
        let hash = thief["metadata"]["uid"].take();
        thief["metadata"] = json!({"namespace": namespace, "name": name, "uid": uid, "labels": {"taken": "over"},
            "annotations": {"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n"}]});
        thief["status"] = json!({});
        thief
    };
    let objects = [&pods[0], &pods[1]].map(|pod| pod_object(&stand, pod.pod()));
    let endpoints = || common::endpoints(&stand.agent);
    // In another namespace, after the object went; and in its place, by one event.
    stand.remove(&objects[0]);
    stand.write(thief("b", "q", &objects[0], "q"));
    stand.write(thief("a", "other", &objects[1], "second"));
    let marker = stand.pod(PodSpec::new("b", "marker"));
    stand.write(thief("b", "last", &objects[1], "last"));
    eventually("the objects were read", || {
        endpoints().iter().any(|one| one["name"].as_str().unwrap().starts_with("other (before"))
    });
    passes(&marker, &outside()[0]);
    pods.iter().for_each(|pod| denied(pod, &outside()[0]));
    let names: Vec<_> = endpoints().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
    assert!(names.contains(&"victim".to_owned()) && !names.contains(&"q".to_owned()), "{names:?}");
    // It comes back itself, and goes.
    stand.remove(&thief("b", "q", &objects[0], "q"));
    stand.write(objects[0].clone());
    denied(&pods[0], &outside()[0]);
    pods[0].pod().remove().unwrap();
    stand.remove(&objects[0]);
    eventually("it is let go", || !endpoints().iter().any(|one| one["name"] == "victim"));
}

#[test]
fn a_pinned_link_that_somebody_removes_is_attached_again() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    let link = stand.bpffs.path().join(format!("egress-enforcer/v{ABI}/link_egress_socket"));
    fs::remove_file(&link).unwrap();
    eventually("it is pinned again", || common::exists(&link));
    denied(&pod, &outside()[0]);
}

#[test]
fn a_pin_directory_that_is_not_roots_alone_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let dir = stand.bpffs.path().join("egress-enforcer");
    let run = |stand: &Stand| {
        let exec = stand.agent.run(&stand.topology);
        stand.topology.node_exec(&exec).unwrap().finish(Duration::from_secs(10)).unwrap()
    };
    for (mode, owner) in [(0o777, 0), (0o700, 65534)] {
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&dir, Some(owner), None).unwrap();
        let finished = run(&stand);
        assert_eq!(finished.status.code(), Some(77), "{finished:?}");
        assert!(finished.stderr.contains("must be root's"), "{finished:?}");
        fs::remove_dir(&dir).unwrap();
    }
    stand.start();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn followers_that_go_away_leave_nothing_behind() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.start();
    let descriptors =
        |stand: &Stand| fs::read_dir(format!("/proc/{}/fd", stand.agent.id().unwrap())).unwrap().count();
    let before = descriptors(&stand);
    for _ in 0..100 {
        use std::io::Write as _;
        let mut stream = std::os::unix::net::UnixStream::connect(stand.agent.socket()).unwrap();
        stream.write_all(b"{\"flows\":{\"follow\":true}}\n").unwrap();
    }
    eventually("their sockets are closed", || descriptors(&stand) <= before + 2);
    assert_eq!(stand.agent.status().unwrap()["ready"], true);
}

/// Otherwise it could not ask for what unknown pods may do by now, and under `deny` not even answer its probes.
#[test]
fn an_agent_in_a_pod_that_the_pinned_maps_do_not_know_can_reach_its_source() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let arguments = ["--unknown-pods", "deny"];
    stand.agent = stand.agent.arguments(&arguments);
    let path = stand.agent.objects().join("lock.yaml");
    let text = policy(json!({})).to_string();
    fs::write(&path, &text).unwrap();
    stand.start();
    stand.agent.kill().unwrap();
    // The next one's pod is as new as another, and its source is not whole yet.
    fs::write(&path, format!("{text}]")).unwrap();
    let strangers = ["agent", "other"].map(|name| {
        let pod = stand.topology.add_pod(PodSpec::new("system", name).host_network()).unwrap();
        pod.add_container("app").unwrap()
    });
    strangers.iter().for_each(|container| denied(container, &outside()[0]));
    let [own, other] = &strangers;
    stand.agent.spawn_in(&stand.topology, own).unwrap();
    stand
        .agent
        .wait("it is held", |status| status["pending"].to_string().contains("may be a policy"))
        .unwrap();
    for address in outside() {
        passes(own, &address);
        denied(other, &address);
    }
    // What is known of it counts once that was read; it is ready as soon as the last file can be.
    stand.write(pod_object(&stand, other.pod()));
    fs::write(&path, &text).unwrap();
    stand.agent.wait("it is read", |status| status["ready"] == true).unwrap();
    passes(other, &outside()[0]);
    denied(own, &outside()[0]);
}
