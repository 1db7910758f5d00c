//! Containers' names from the container runtime: a pod with a proxy lock whose status names nobody. Real agent, real kernel, and a
//! runtime that speaks the real protocol at a real socket.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and prints what it measured"
)]

#[path = "../common/mod.rs"]
mod common;
mod runtime;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Stand, denied, endpoints, eventually, outside, passes, pod_object, udp};
use egress_agent::cri::api::{NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use egress_probe::Outcome;
use egress_topology::{CgroupDriver, Container, ContainerKind, PodSpec};
use runtime::{Mood, Runtime, babbles};
use serde_json::{Value, json};

/// A node whose agent asks the runtime at the socket, and a policy by which only proxies may leave.
fn stand() -> (Stand, PathBuf) {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    let socket = stand.dir.path().join("cri.sock");
    stand.agent = stand.agent.arguments(&["--cri-socket", socket.to_str().unwrap()]);
    stand.lock_down(json!({
        "proxy": {"containers": ["istio-proxy"]}, "allow": {"to": [{"cidr": "198.51.100.10/32"}]},
    }));
    (stand, socket)
}

/// The object of a pod before kubelet has written the status of its containers.
fn unnamed(stand: &Stand, container: &Container) -> Value {
    let mut object = pod_object(stand, container.pod());
    let status = object["status"].as_object_mut().unwrap();
    status.retain(|key, _| !key.to_lowercase().contains("containerstatuses"));
    object
}

/// A pod with an application and a proxy, and an object that names neither.
fn meshed(stand: &Stand) -> [Container; 2] {
    let app = stand.topology.add_pod(PodSpec::new("a", "pod")).unwrap().add_container("app").unwrap();
    let proxy = app.pod().add_container_of_kind("istio-proxy", ContainerKind::Sidecar).unwrap();
    stand.write(unnamed(stand, &app));
    [app, proxy]
}

/// Makes the runtime know a container as what it is.
fn tell(runtime: &Runtime, container: &Container) {
    runtime.knows(container.id(), container.name(), container.pod().uid());
}

fn names(stand: &Stand) -> Value {
    stand.agent.status().unwrap()["containers"].clone()
}

fn proxies(stand: &Stand) -> Value {
    let found = endpoints(&stand.agent).into_iter().find(|one| one["name"] == "pod");
    found.map_or(Value::Null, |one| one["proxies"].clone())
}

#[track_caller]
fn nobody_leaves(containers: &[&Container]) {
    containers.iter().for_each(|container| denied(container, &outside()[0]));
}

/// Waits until a container may leave, by sending; says how long it took.
#[track_caller]
fn leaves(container: &Container) -> Duration {
    let start = Instant::now();
    while udp(container, &outside()[0]).outcome != Outcome::Ok {
        assert!(start.elapsed() < Duration::from_secs(15), "it never may");
    }
    start.elapsed()
}

#[test]
fn the_runtime_names_the_proxy_before_its_pods_status_does() {
    let (mut stand, socket) = stand();
    let runtime = Runtime::new(&socket);
    let [app, proxy] = meshed(&stand);
    [&app, &proxy].iter().for_each(|container| tell(&runtime, container));
    stand.start();
    eventually("the proxy is known", || proxies(&stand) == json!(["istio-proxy"]));
    passes(&proxy, &outside()[0]);
    denied(&proxy, &outside()[1]);
    denied(&app, &outside()[0]);
    let said = names(&stand);
    assert_eq!((&said["by_runtime"], &said["by_status"]), (&json!(2), &json!(0)), "{said}");
    assert_eq!(said["runtimes"][0]["runtime"], "fixture v1.2.3", "{said}");
    eventually("the flow log names the container", || {
        let flows = stand.agent.flows().unwrap();
        flows.iter().any(|flow| flow["reason"] == "SidecarBypass" && flow["container"] == "app")
    });
    let table = stand.agent.ask(&["status"]).unwrap();
    assert!(String::from_utf8(table.stdout).unwrap().contains("2 by the runtime"));

    // Its status comes, and says the same.
    stand.write(pod_object(&stand, app.pod()));
    eventually("the status names them", || names(&stand)["by_status"] == 2);
    passes(&proxy, &outside()[0]);
    denied(&app, &outside()[0]);
}

#[test]
fn a_proxy_that_is_started_again_may_leave_at_once() {
    let (mut stand, socket) = stand();
    let runtime = Runtime::new(&socket);
    let [app, proxy] = meshed(&stand);
    stand.write(pod_object(&stand, app.pod()));
    stand.start();
    eventually("the proxy is known", || proxies(&stand) == json!(["istio-proxy"]));
    passes(&proxy, &outside()[0]);
    let mut fastest = Duration::MAX;
    let mut old = proxy;
    for _ in 0..5 {
        old.remove().unwrap();
        // The runtime knows what it makes before it makes its cgroup.
        let know = |id: &str| runtime.knows(id, "istio-proxy", app.pod().uid());
        old = app.pod().add_container_known("istio-proxy", ContainerKind::Sidecar, know).unwrap();
        fastest = fastest.min(leaves(&old));
        denied(&app, &outside()[0]);
    }
    eprintln!(
        "a new proxy may leave {fastest:?} after its cgroup was made, at most: that is how long trying takes"
    );
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
}

/// A pod's sandbox has a cgroup like its containers', and no name. The agent that comes when the pod's status names the containers asks
/// for the sandbox alone.
#[test]
fn a_sandbox_is_no_container_that_nobody_names() {
    let (mut stand, socket) = stand();
    let runtime = Runtime::new(&socket);
    let [app, proxy] = meshed(&stand);
    let pause = app.pod().add_container("pause").unwrap();
    for container in [&app, &proxy] {
        runtime.knows_in(pause.id(), container.id(), container.name(), container.pod().uid());
    }
    let mut object = pod_object(&stand, app.pod());
    let statuses = object["status"]["containerStatuses"].as_array_mut().unwrap();
    statuses.retain(|one| one["name"] != "pause");
    stand.write(object);
    stand.start();
    let counted =
        |names: &Value| [&names["by_status"], &names["by_runtime"], &names["unnamed"]].map(Value::as_u64);
    // The cgroup in which the pod's network is held, here, is one that no runtime knows.
    eventually("the sandbox is known as one", || counted(&names(&stand)) == [Some(2), Some(0), Some(1)]);
    denied(&pause, &outside()[0]);
    passes(&proxy, &outside()[0]);
}

/// The manifest of a static pod changes: kubelet starts it under another hash, then takes the mirror away, and then writes the next one, all
/// of which the API server has to answer, which may be that pod.
#[test]
fn a_static_pod_with_another_manifest_goes_on_as_it_was() {
    const HASHES: [&str; 4] = ["0a", "1b", "2c", "3d"];
    let (mut stand, socket) = stand();
    let runtime = Runtime::new(&socket);
    stand.start();
    let hash = |number: usize| HASHES[number].repeat(16);
    let start = |number: usize, spec: PodSpec, name: &str| {
        let container =
            stand.topology.add_pod(spec.uid(&hash(number))).unwrap().add_container("server").unwrap();
        let labels = [(NAME, "server"), (POD_UID, &hash(number)), (POD_NAMESPACE, "b"), (POD_NAME, name)];
        runtime.knows_by("s", container.id(), &labels);
        container
    };
    let mirror = |container: &Container, uid: &str| {
        let mut mirror = pod_object(&stand, container.pod());
        let hash = json!(container.pod().uid());
        mirror["metadata"]["uid"] = json!(uid);
        mirror["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash});
        mirror["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n"}]);
        mirror
    };
    let server = || PodSpec::new("b", "server").host_network();
    let first = start(0, server(), "server");
    let object = mirror(&first, "first");
    stand.write(object.clone());
    eventually("it is known", || udp(&first, &outside()[0]).succeeded());
    passes(&first, &outside()[0]);

    first.pod().remove().unwrap();
    let second = start(1, server(), "server");
    leaves(&second);
    // Others are unknown pods as ever: by another name, and in a network of its own.
    let other = start(2, PodSpec::new("b", "other").host_network(), "other");
    let elsewhere = start(3, PodSpec::new("b", "server"), "server");
    let known = |number: u64| eventually("the runtime is asked", || names(&stand)["by_runtime"] == number);
    known(3);
    for _ in 0..3 {
        [&other, &elsewhere].iter().for_each(|container| denied(container, &outside()[0]));
        std::thread::sleep(Duration::from_millis(500));
    }
    // kubelet writes the new one's status into the old mirror.
    let mut patched = object.clone();
    patched["metadata"]["labels"]["patched"] = json!("yes");
    let known = || stand.agent.status().unwrap()["source"]["objects"].as_u64();
    let before = known();
    stand.write(patched);
    // What is written after it is read with it or after it.
    stand.write(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "patched"}}));
    eventually("that is known", || known() > before);
    for _ in 0..5 {
        passes(&second, &outside()[0]);
        std::thread::sleep(Duration::from_millis(200));
    }
    // Whom a policy may lock down, whatever the labels, is unknown.
    let lock = |namespace: &str| {
        let subjects = json!([{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "pods": {"matchLabels": {"app": "another"}}}]);
        stand.write(json!({"apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy",
            "metadata": {"name": "other"}, "spec": {"subjects": subjects, "gateways": []}}));
    };
    lock("b");
    eventually("a policy may be about it", || !udp(&second, &outside()[0]).succeeded());
    lock("c");
    leaves(&second);
    stand.remove(&object);
    stand.write(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "marker"}}));
    for _ in 0..10 {
        passes(&second, &outside()[0]);
        std::thread::sleep(Duration::from_millis(200));
    }
    stand.write(mirror(&second, "second"));
    eventually("the mirror is known", || endpoints(&stand.agent).iter().any(|one| one["uid"] == "second"));
    passes(&second, &outside()[0]);
}

#[test]
fn without_a_socket_the_pods_status_is_waited_for() {
    let (mut stand, socket) = stand();
    let [app, proxy] = meshed(&stand);
    stand.start();
    nobody_leaves(&[&app, &proxy]);
    eventually("status says so", || !names(&stand)["no_runtime"].is_null());
    let said = names(&stand)["no_runtime"].as_str().unwrap().to_owned();
    assert!(said.contains(socket.to_str().unwrap()), "{said}");
    assert_eq!(stand.agent.log().matches("no CRI socket").count(), 1, "one line: {}", stand.agent.log());
    assert_eq!(stand.agent.status().unwrap()["ready"], true, "that is no reason not to enforce");
    nobody_leaves(&[&app, &proxy]);
    // A runtime that comes later is found.
    let mut runtime = Runtime::new(&socket);
    [&app, &proxy].iter().for_each(|container| tell(&runtime, container));
    leaves(&proxy);
    denied(&app, &outside()[0]);
    // It is replaced, as by an upgrade: what it said holds, and the next one is asked.
    runtime.stop();
    passes(&proxy, &outside()[0]);
    runtime.start();
    let second = app.pod().add_container_of_kind("istio-proxy", ContainerKind::Sidecar).unwrap();
    tell(&runtime, &second);
    leaves(&second);
    denied(&app, &outside()[0]);
}

/// Nobody asks it for anything at that time.
#[test]
fn a_runtime_that_goes_is_said_to_and_so_is_its_return() {
    let (mut stand, socket) = stand();
    let mut runtime = Runtime::new(&socket);
    stand.start();
    let answers = |stand: &Stand| names(stand)["runtimes"][0]["runtime"].is_string();
    eventually("it answers", || answers(&stand));
    runtime.stop();
    eventually("it is missed", || !answers(&stand));
    eventually("none is left", || !names(&stand)["no_runtime"].is_null());
    runtime.start();
    eventually("it is back", || answers(&stand));
}

/// With something at the socket that gives no answer: nobody leaves, everything else goes on at once, and the pod's status counts.
#[track_caller]
fn no_answer(wanted: &str, put: impl FnOnce(&Path) -> Option<Runtime>) {
    let (mut stand, socket) = stand();
    let runtime = put(&socket);
    let [app, proxy] = meshed(&stand);
    if let Some(runtime) = &runtime {
        [&app, &proxy].iter().for_each(|container| tell(runtime, container));
    }
    stand.start();
    nobody_leaves(&[&app, &proxy]);
    // The one task is not held up: a pod that comes is judged at once.
    let free = stand.pod(PodSpec::new("b", "free"));
    passes(&free, &outside()[0]);
    let said = || names(&stand)["runtimes"][0]["error"].as_str().map(str::to_owned);
    eventually("status says so", || said().is_some());
    let said = said().unwrap();
    assert!(said.contains(wanted) && !said.contains('\n'), "{said}");
    assert_eq!(names(&stand)["by_runtime"], 0);
    nobody_leaves(&[&app, &proxy]);
    stand.write(pod_object(&stand, app.pod()));
    leaves(&proxy);
    denied(&app, &outside()[0]);
    let log = stand.agent.log();
    assert_eq!(log.matches("the runtime does not name containers").count(), 1, "one line: {log}");
    assert_eq!(stand.agent.status().unwrap()["ready"], true, "that is no reason not to enforce");
}

#[test]
fn a_runtime_that_hangs_delays_nobody() {
    no_answer("no answer within 2 seconds", |socket| {
        let runtime = Runtime::new(socket);
        runtime.mood(Mood::Hangs);
        Some(runtime)
    });
}

#[test]
fn a_runtime_that_fails_is_said_to() {
    no_answer("Internal: the store is on fire", |socket| {
        let runtime = Runtime::new(socket);
        runtime.mood(Mood::Refuses);
        Some(runtime)
    });
}

#[test]
fn a_runtime_that_floods_is_not_read_to_the_end() {
    no_answer("OutOfRange", |socket| {
        let runtime = Runtime::new(socket);
        runtime.mood(Mood::Floods);
        Some(runtime)
    });
}

#[test]
fn garbage_is_no_runtime() {
    no_answer("", |socket| {
        babbles(socket, b"HTTP/1.1 400 Bad Request\r\n\r\n\0\0\0\0garbage");
        None
    });
}

#[test]
fn silence_is_no_runtime() {
    no_answer("no answer within 2 seconds", |socket| {
        babbles(socket, b"");
        None
    });
}

#[test]
fn a_file_is_no_runtime() {
    no_answer("not a socket of root's", |socket| {
        std::fs::write(socket, "").unwrap();
        None
    });
}

#[test]
fn a_socket_of_somebody_else_is_not_asked() {
    no_answer("not a socket of root's", |socket| {
        let runtime = Runtime::new(socket);
        std::os::unix::fs::chown(socket, Some(1000), None).unwrap();
        Some(runtime)
    });
}

#[test]
fn a_slow_runtime_is_waited_for_by_its_container_alone() {
    let (mut stand, socket) = stand();
    let runtime = Runtime::new(&socket);
    runtime.mood(Mood::Slow(Duration::from_millis(1500)));
    let [app, proxy] = meshed(&stand);
    [&app, &proxy].iter().for_each(|container| tell(&runtime, container));
    stand.start();
    let revision = stand.agent.status().unwrap()["revision"].clone();
    let start = Instant::now();
    stand.lock_down(json!({
        "proxy": {"containers": ["istio-proxy"]}, "allow": {"to": [{"cidr": "198.51.100.0/24"}]},
    }));
    eventually("the change is applied", || stand.agent.status().unwrap()["revision"] != revision);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(names(&stand)["by_runtime"], 0, "it has not answered yet");
    leaves(&proxy);
    denied(&app, &outside()[0]);
}

#[test]
fn a_container_of_another_pod_is_not_believed() {
    let (mut stand, socket) = stand();
    let runtime = Runtime::new(&socket);
    let [app, proxy] = meshed(&stand);
    let other = stand.pod(PodSpec::new("a", "other"));
    runtime.knows(app.id(), "istio-proxy", other.pod().uid());
    runtime.knows(proxy.id(), "istio-proxy", "");
    stand.start();
    eventually("the log says so", || stand.agent.log().matches("not believed").count() == 2);
    nobody_leaves(&[&app, &proxy, &other]);
    assert_eq!(proxies(&stand), json!([]));
    assert_eq!(names(&stand)["by_runtime"], 0);
}

#[test]
fn a_name_alone_makes_no_proxy() {
    let (mut stand, socket) = stand();
    let runtime = Runtime::new(&socket);
    // A pod without a sidecar, into which somebody has put a container with the proxy's name.
    let app = stand.topology.add_pod(PodSpec::new("a", "pod")).unwrap().add_container("app").unwrap();
    stand.write(unnamed(&stand, &app));
    stand.start();
    let debugger = app.pod().add_container_of_kind("istio-proxy", ContainerKind::Ephemeral).unwrap();
    tell(&runtime, &debugger);
    eventually("the runtime names it", || names(&stand)["by_runtime"] == 1);
    // The object does not have it yet, and then has it as what it is.
    nobody_leaves(&[&app, &debugger]);
    stand.write(unnamed(&stand, &app));
    stand.write(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "marker"}}));
    eventually("the object was read", || stand.agent.status().unwrap()["source"]["objects"] == 3);
    nobody_leaves(&[&app, &debugger]);
    assert_eq!(proxies(&stand), json!([]));
    eventually("the flow log names it all the same", || {
        stand.agent.flows().unwrap().iter().any(|flow| flow["container"] == "istio-proxy")
    });
}

#[test]
fn a_container_that_the_runtime_does_not_know_yet_is_asked_for_again() {
    let (mut stand, socket) = stand();
    let runtime = Runtime::new(&socket);
    let [app, proxy] = meshed(&stand);
    stand.start();
    eventually("it was asked", || runtime.lists() > 3);
    nobody_leaves(&[&app, &proxy]);
    // As CRI-O, which lists a container some time after it has made its cgroup.
    tell(&runtime, &proxy);
    leaves(&proxy);
    denied(&app, &outside()[0]);
}
