//! From the API server to the packet: objects are written to an API server, and real pods find out what they may send.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Stand, denied, eventually, outside, passes, pod_object, policy, udp};
use egress_agent::cluster::LEASE;
use egress_fixture::{Fault, Fixture, Verb};
use egress_probe::Outcome;
use egress_topology::{CgroupDriver, Container, PodSpec, kubernetes};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// A node whose agent follows an API server.
struct World {
    stand: Stand,
    fixture: Fixture,
    runtime: Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let mut stand = Stand::new(CgroupDriver::Systemd);
        // Its sockets are the node's.
        let fixture = stand.topology.node().run(|| {
            let _context = runtime.enter();
            Fixture::start()
        });
        let fixture = fixture.unwrap();
        let path = stand.dir.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": fixture.url()}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&path, config.to_string()).unwrap();
        stand.agent = stand.agent.kubeconfig(&path);
        let world = Self { stand, fixture, runtime };
        world.apply(&kubernetes::node(&world.stand.topology));
        for name in ["a", "b"] {
            world.apply(&kubernetes::namespace(name, &[].into()));
        }
        world
    }

    fn apply(&self, object: &Value) {
        self.fixture.apply_manifest(plural(object), object);
    }

    fn delete(&self, object: &Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        assert!(self.fixture.delete(plural(object), text("namespace"), text("name")));
    }

    fn pod(&self, spec: PodSpec) -> Container {
        let container = self.stand.topology.add_pod(spec).unwrap().add_container("app").unwrap();
        self.apply(&pod_object(&self.stand, container.pod()));
        container
    }

    /// Takes the API server down.
    fn stop(&mut self) {
        let (fixture, runtime) = (&mut self.fixture, &self.runtime);
        self.stand.topology.node().run(|| runtime.block_on(fixture.stop())).unwrap();
    }

    /// Has it come back, on the same port, with what is there now.
    fn start_again(&mut self) {
        let (fixture, runtime) = (&mut self.fixture, &self.runtime);
        let again = self.stand.topology.node().run(|| {
            let _context = runtime.enter();
            fixture.start_again()
        });
        again.unwrap();
    }

    fn status(&self) -> Value {
        self.stand.agent.status().unwrap()
    }

    fn watch(&self, kind: &str) -> Value {
        let status = self.status();
        status["source"]["watches"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["kind"] == kind)
            .unwrap()
            .clone()
    }
}

fn plural(object: &Value) -> &'static str {
    match object["kind"].as_str().unwrap() {
        "Pod" => "pods",
        "Namespace" => "namespaces",
        "Node" => "nodes",
        "NetworkPolicy" => "networkpolicies",
        "EgressGatewayPolicy" => "egressgatewaypolicies",
        other => panic!("{other}"),
    }
}

fn deny_all(namespace: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": "deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    })
}

#[track_caller]
fn becomes(outcome: Outcome, container: &Container) {
    eventually(&format!("{outcome:?}"), || udp(container, &outside()[0]).outcome == outcome);
}

#[test]
fn what_is_written_to_the_api_server_is_enforced() {
    let mut world = World::new();
    let (pod, free) = (world.pod(PodSpec::new("a", "pod")), world.pod(PodSpec::new("b", "free")));
    world.stand.start();
    passes(&pod, &outside()[0]);
    world.apply(&policy(json!({})));
    becomes(Outcome::Denied, &pod);
    passes(&free, &outside()[0]);
    // A policy that does not parse is still a policy.
    let mut broken = policy(json!({}));
    broken["spec"]["allow"] = json!(7);
    world.apply(&broken);
    eventually("it is shown", || world.status()["source"]["errors"].to_string().contains("spec.allow"));
    denied(&pod, &outside()[0]);
    world.apply(&policy(json!({"allow": {"to": [{"cidr": "198.51.100.0/24"}]}})));
    becomes(Outcome::Ok, &pod);
    world.apply(&deny_all("b"));
    becomes(Outcome::Denied, &free);
    world.delete(&deny_all("b"));
    becomes(Outcome::Ok, &free);
    assert_eq!(world.watch("NetworkPolicy")["state"], "Watching");
    assert_eq!(world.watch("Pod")["objects"], 2);
}

#[test]
fn on_a_node_without_pins_nothing_is_cut_before_everything_was_read() {
    let mut world = World::new();
    let pod = world.pod(PodSpec::new("a", "pod"));
    world.apply(&policy(json!({})));
    let fault = world.fixture.fault("networkpolicies", &Verb::READ, Fault::Forbidden);
    world.stand.agent.spawn(&world.stand.topology).unwrap();
    let waits = |status: &Value| {
        status["pending"].to_string().contains("first complete list of NetworkPolicy")
            && status["source"]["watches"]
                .to_string()
                .contains("needs the verbs list and watch on networkpolicies")
    };
    world.stand.agent.wait("it says what it may not", waits).unwrap();
    passes(&pod, &outside()[0]);
    assert_eq!(world.status()["hooks"], json!([]));
    fault.lift();
    world.stand.agent.wait("it is ready", |status| status["ready"] == true).unwrap();
    denied(&pod, &outside()[0]);
}

#[test]
fn nobody_is_said_to_be_gone_before_everything_was_read() {
    let mut world = World::new();
    let pod = world.pod(PodSpec::new("a", "pod"));
    world.apply(&policy(json!({})));
    world.stand.start();
    denied(&pod, &outside()[0]);
    world.stand.agent.kill().unwrap();
    world.delete(&pod_object(&world.stand, pod.pod()));
    let said = |status: &Value| {
        let gone = format!("UID {} was locked down before", pod.pod().uid());
        status["diagnostics"].to_string().contains(&gone)
    };
    // Where pods cannot be listed, every one would be gone.
    for kind in ["pods", "namespaces"] {
        let fault = world.fixture.fault(kind, &Verb::READ, Fault::Forbidden);
        world.stand.agent.spawn(&world.stand.topology).unwrap();
        let waits = |status: &Value| {
            assert!(!said(status), "{status}");
            status["source"]["watches"].to_string().contains(&format!("on {kind}"))
        };
        world.stand.agent.wait("it says what it may not", waits).unwrap();
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            assert!(!said(&world.status()));
            denied(&pod, &outside()[0]);
        }
        world.stand.agent.kill().unwrap();
        fault.lift();
    }
    world.stand.start();
    eventually("it is said", || said(&world.status()));
    denied(&pod, &outside()[0]);
}

#[test]
fn another_agent_on_the_node_is_waited_for() {
    let mut world = World::new();
    let pod = world.pod(PodSpec::new("a", "pod"));
    world.apply(&policy(json!({})));
    world.stand.start();
    let second = world.stand.topology.node_exec(&world.stand.agent.run(&world.stand.topology)).unwrap();
    eventually("it waits", || second.stderr().contains("waiting for its end"));
    denied(&pod, &outside()[0]);
    world.stand.agent.stop().unwrap();
    eventually("it enforces", || second.stderr().contains("enforcing"));
    denied(&pod, &outside()[0]);
    assert_eq!(world.status()["ready"], true);
}

/// The manifest's probes: none of these is mended by a restart, which would take what follows policies away.
#[test]
fn kubelet_starts_no_agent_anew_whose_port_is_taken_or_whose_node_another_one_has() {
    const PORT: &str = "127.0.0.1:9464";
    const MANIFEST: &str = include_str!("../../deploy/kustomize/base/daemonset.yaml");
    let manifest: Value = serde_saphyr::from_str(MANIFEST).unwrap();
    let container = &manifest["spec"]["template"]["spec"]["containers"][0];
    let command = |probe: &str| -> Vec<String> {
        let words = container[probe]["exec"]["command"].as_array().unwrap().iter();
        words.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut world = World::new();
    let agent = world.stand.agent.launched_by(["/usr/bin/env", "POD_NAME=first"]);
    world.stand.agent = agent.arguments(&["--listen", PORT]);
    let (binary, socket) = (world.stand.agent.binary().to_owned(), world.stand.agent.socket());
    // As kubelet asks in a pod.
    let ask = |world: &World, probe: &str, pod: &str| {
        let command = command(probe);
        assert_eq!(command[0], "egress-agent");
        let exec = egress_topology::Exec::new(&binary, &command[1..]).environment("POD_NAME", pod);
        let exec = exec.argument("--socket").argument(&socket);
        let finished =
            world.stand.topology.node_exec(&exec).unwrap().finish(Duration::from_secs(20)).unwrap();
        (finished.status.code(), finished.stdout)
    };
    assert_eq!(ask(&world, "startupProbe", "first").0, Some(3), "there is none yet");

    let stranger = world.stand.topology.node().run(|| Ok(std::net::TcpListener::bind(PORT)?)).unwrap();
    world.stand.start();
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(ask(&world, probe, "first"), (Some(0), "ok\n".to_owned()), "{probe}");
    }
    assert_eq!(ask(&world, "readinessProbe", "first"), (Some(0), "ready\n".to_owned()));
    drop(stranger);
    eventually("it listens after all", || {
        let connect = || Ok(std::net::TcpStream::connect(PORT)?);
        world.stand.topology.node().run(connect).is_ok()
    });

    let second = world.stand.agent.run(&world.stand.topology).argument("--pod-name").argument("second");
    let second = world.stand.topology.node_exec(&second).unwrap();
    eventually("it waits", || second.stderr().contains("waiting for its end"));
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(ask(&world, probe, "second").0, Some(0), "{probe}");
    }
    let (code, said) = ask(&world, "readinessProbe", "second");
    assert!(code == Some(1) && said.contains("in pod first has this node"), "{said}");
    assert_eq!(ask(&world, "readinessProbe", "first").0, Some(0));
}

#[test]
fn the_api_server_may_go_and_come_back() {
    let mut world = World::new();
    let (pod, free) = (world.pod(PodSpec::new("a", "pod")), world.pod(PodSpec::new("b", "free")));
    world.apply(&policy(json!({})));
    world.stand.start();
    denied(&pod, &outside()[0]);
    world.stop();
    eventually("it is said", || {
        world.status()["source"]["watches"].to_string().contains("cannot reach the API server")
    });
    // That is a state of the watches, and nothing in the source that cannot be read.
    assert_eq!(world.status()["source"]["errors"], json!([]));
    let table = String::from_utf8(world.stand.agent.ask(&["status"]).unwrap().stdout).unwrap();
    assert!(table.contains("Pod: Failing") && table.contains("cannot reach the API server"), "{table}");
    // Who looks for findings is told that there may be more.
    let findings = world.stand.agent.ask(&["lint"]).unwrap();
    assert_eq!(findings.status.code(), Some(1), "{findings:?}");
    assert!(
        String::from_utf8_lossy(&findings.stderr).contains("cannot reach the API server"),
        "{findings:?}"
    );
    // Once for each kind, by who knows what was asked for.
    let log = world.stand.agent.log();
    assert!(log.contains("cannot reach the API server") && !log.contains("failed with error"), "{log}");
    denied(&pod, &outside()[0]);
    passes(&free, &outside()[0]);
    // What is pinned rules, also for a new agent.
    world.stand.agent.kill().unwrap();
    world.stand.agent.spawn(&world.stand.topology).unwrap();
    let waits = |status: &Value| status["pending"].to_string().contains("first complete list of Pod");
    world.stand.agent.wait("it waits for the API server", waits).unwrap();
    denied(&pod, &outside()[0]);
    passes(&free, &outside()[0]);
    // A pod that is born now is not known: it reaches nothing outside.
    let new = world.pod(PodSpec::new("b", "new"));
    denied(&new, &outside()[0]);
    world.delete(&policy(json!({})));
    world.apply(&deny_all("b"));
    world.start_again();
    world.stand.agent.wait("it is ready", |status| status["ready"] == true).unwrap();
    becomes(Outcome::Ok, &pod);
    denied(&free, &outside()[0]);
    denied(&new, &outside()[0]);
    assert_eq!(world.watch("Pod")["error"], Value::Null);
}

#[test]
fn a_pod_that_a_list_does_not_have_any_more_keeps_its_policy_until_its_processes_are_gone() {
    let mut world = World::new();
    let pod = world.pod(PodSpec::new("a", "pod"));
    world.apply(&policy(json!({"allow": {"inCluster": false}})));
    world.stand.start();
    let peer = world.pod(PodSpec::new("b", "peer"));
    denied(&pod, peer.pod().v4());
    let revision = world.status()["revision"].clone();
    // The deletion is seen by a list alone.
    world.stop();
    world.delete(&pod_object(&world.stand, pod.pod()));
    world.start_again();
    let other = world.pod(PodSpec::new("b", "other"));
    eventually("the other pod is known", || world.status()["revision"] != revision);
    eventually("all was listed anew", || world.watch("Pod")["relists"] == 1);
    becomes(Outcome::Ok, &other);
    denied(&pod, peer.pod().v4());
    pod.pod().remove().unwrap();
    eventually("its entry is gone", || common::entries(&world.stand.agent, "egress_endpoint") == 2);
}

#[test]
fn without_the_definition_network_policies_count_and_lock_downs_from_when_it_comes() {
    let mut world = World::new();
    let (pod, other) = (world.pod(PodSpec::new("a", "pod")), world.pod(PodSpec::new("b", "other")));
    world.fixture.remove_definition();
    world.apply(&deny_all("b"));
    world.stand.start();
    denied(&other, &outside()[0]);
    passes(&pod, &outside()[0]);
    assert_eq!(world.watch("EgressGatewayPolicy")["state"], "NotInstalled");
    // That is a way to run it, and nothing wrong.
    let status = world.status();
    assert_eq!((&status["source"]["errors"], &status["ready"]), (&json!([]), &json!(true)));
    assert!(world.watch("EgressGatewayPolicy")["error"].to_string().contains("deploy/crd"), "{status}");
    let table = String::from_utf8(world.stand.agent.ask(&["status"]).unwrap().stdout).unwrap();
    assert!(table.contains("NotInstalled, 0 objects") && table.contains("deploy/crd"), "{table}");
    assert!(!table.contains("source error"), "{table}");
    let log = world.stand.agent.log();
    let line = log.lines().find(|line| line.contains("deploy/crd")).unwrap();
    assert!(line.contains("INFO"), "{line}");
    world.fixture.install_definition();
    world.apply(&policy(json!({})));
    // Within half a minute.
    let start = Instant::now();
    while udp(&pod, &outside()[0]).outcome != Outcome::Denied {
        assert!(start.elapsed() < Duration::from_secs(35));
    }
}

#[test]
fn a_flood_of_updates_of_one_pod_delays_nobody() {
    let mut world = World::new();
    let (pod, noisy) = (world.pod(PodSpec::new("a", "pod")), world.pod(PodSpec::new("b", "noisy")));
    world.stand.start();
    passes(&pod, &outside()[0]);
    let object = pod_object(&world.stand, noisy.pod());
    let mut number = 0;
    let mut flood = || {
        for _ in 0..500 {
            number += 1;
            let mut object = object.clone();
            object["metadata"]["labels"] = json!({"n": number.to_string()});
            world.apply(&object);
        }
    };
    for _ in 0..10 {
        flood();
    }
    let start = Instant::now();
    world.apply(&policy(json!({})));
    flood();
    becomes(Outcome::Denied, &pod);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    eventually("the last state is there", || world.watch("Pod")["events"].as_u64().unwrap() > 2000);
    passes(&noisy, &outside()[0]);
}

#[test]
fn the_api_server_is_told_what_became_of_policies_and_packets() {
    let mut world = World::new();
    let pod = world.pod(PodSpec::new("a", "pod"));
    world.apply(&policy(json!({})));
    world.stand.start();
    denied(&pod, &outside()[0]);
    let endpoint = common::endpoints(&world.stand.agent).remove(0);
    assert_eq!(endpoint["containers"][0]["name"], "app", "{endpoint}");
    assert_eq!(endpoint["containers"][0]["role"], "other", "{endpoint}");
    assert_eq!(endpoint["revision"], world.status()["revision"]);
    let accepted = |world: &World| {
        let policy = world.fixture.get("egressgatewaypolicies", "", "lock").unwrap();
        (policy["status"]["conditions"][0]["status"].clone(), policy["status"]["subjects"].clone())
    };
    eventually("the policy is accepted", || accepted(&world) == (json!("True"), json!(1)));
    let told = |world: &World| -> Vec<String> {
        let events = world.fixture.all("corev1events");
        let text = |event: Value| {
            event["note"].as_str().or(event["message"].as_str()).unwrap_or_default().to_owned()
        };
        events.into_iter().map(text).collect()
    };
    eventually("the pod has an event", || {
        told(&world).iter().any(|text| text.contains("denied by EgressGatewayPolicy lock"))
    });
    let mut broken = policy(json!({}));
    broken["spec"]["allow"] = json!(7);
    world.apply(&broken);
    eventually("the policy is not accepted", || accepted(&world).0 == json!("False"));
    let services = world.status()["services"].to_string();
    assert!(services.contains("Leading") && !services.contains("NotAllowed"), "{services}");
}

#[test]
fn what_is_denied_while_the_api_server_refuses_the_agent_is_told_afterwards() {
    let mut world = World::new();
    let pod = world.pod(PodSpec::new("a", "pod"));
    world.apply(&policy(json!({})));
    world.stand.start();
    denied(&pod, &outside()[0]);
    let lease = |world: &World| {
        world.fixture.get("leases", "egress-enforcer", LEASE).unwrap_or_default()["spec"].clone()
    };
    eventually("it leads", || world.status()["services"].to_string().contains("Leading"));
    let before = lease(&world);
    eventually("the pod has an event", || !world.fixture.all("corev1events").is_empty());
    // Whoever is refused makes a new client at every try.
    world.fixture.set(|settings| settings.token = Some("another".to_owned()));
    world.fixture.cut_watches("pods");
    eventually("it is said", || {
        world.status().to_string().contains("does not accept the agent's credentials")
    });
    let other = format!("{}:9", outside()[0]);
    world.fixture.forget_requests();
    assert_eq!(pod.attempt(&["udp", &other, "--timeout-ms", "1500"]).unwrap().outcome, Outcome::Denied);
    let refused = |world: &World| world.fixture.requests_of("pods", Verb::Watch).len();
    eventually("it was refused again", || refused(&world) >= 3);
    world.fixture.set(|settings| settings.token = None);
    let told = |world: &World| {
        let events = world.fixture.all("corev1events");
        events
            .iter()
            .any(|event| event["message"].as_str().unwrap_or_default().contains(&format!("{other}/UDP")))
    };
    eventually("it is told", || told(&world));
    assert_eq!(world.status()["services"].to_string().matches("\"left_out\":0").count(), 3);
    let after = lease(&world);
    assert_eq!(
        (&after["holderIdentity"], &after["leaseTransitions"]),
        (&before["holderIdentity"], &before["leaseTransitions"])
    );
}

#[test]
fn commands_that_judge_from_objects_read_the_cluster() {
    let world = World::new();
    let pod = world.pod(PodSpec::new("a", "pod"));
    world.apply(&policy(json!({})));
    let config = world.stand.dir.path().join("kubeconfig");
    let run = |words: &[&str]| {
        let exec = egress_topology::Exec::new(world.stand.agent.binary(), words);
        let exec = exec.argument("--source").argument("kube").argument("--kubeconfig").argument(&config);
        world.stand.topology.node_exec(&exec).unwrap().finish(Duration::from_secs(20)).unwrap()
    };
    let from = format!("a/{}", pod.pod().name());
    let denied = run(&["explain", "--from", &from, "--to", "198.51.100.10:443/TCP", "-o", "json"]);
    assert_eq!(denied.status.code(), Some(1), "{denied:?}");
    assert!(denied.stdout.contains("EgressGatewayPolicy lock"), "{denied:?}");
    let found = run(&["lint"]);
    assert!(found.stdout.contains("in 1 pod, 1 policy"), "{found:?}");
    world.delete(&policy(json!({})));
    let allowed = run(&["explain", "--from", &from, "--to", "198.51.100.10:443/TCP"]);
    assert_eq!(allowed.status.code(), Some(0), "{allowed:?}");
    // Without the definition they say so, and find nothing wrong with that.
    world.fixture.remove_definition();
    let without = run(&["lint"]);
    assert!(without.status.code() == Some(0) && without.stderr.contains("deploy/crd"), "{without:?}");
    world.fixture.install_definition();
    // Who is refused is told so well before a slow server would have been given up.
    for (of, fault, said) in [
        ("pods", Fault::Forbidden, "needs the verbs list and watch on pods"),
        ("*", Fault::Unauthorized, "does not accept the agent's credentials"),
    ] {
        let fault = world.fixture.fault(of, &Verb::READ, fault);
        let refused = run(&["lint"]);
        assert!(refused.status.code() == Some(2) && refused.stderr.contains(said), "{refused:?}");
        fault.lift();
    }
}
