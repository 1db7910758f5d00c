//! The capabilities that the DaemonSet asks for are enough for everything that the agent does, and none is too many. Real agent, real
//! kernel, as root without any other capability, and with `no_new_privs` as the manifest has it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Stand, denied, endpoints, eventually, passes};
use egress_probe::{Beat, Outcome};
use egress_topology::{Capabilities, CgroupDriver, Exec, OUTSIDE_V4, PodSpec};
use serde_json::{Value, json};

/// What `kubectl apply` is given.
const MANIFEST: &str = include_str!("../../deploy/kustomize/base/daemonset.yaml");

fn listed() -> Vec<String> {
    let manifest: Value = serde_saphyr::from_str(MANIFEST).unwrap();
    let capabilities =
        &manifest["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"];
    assert_eq!(capabilities["drop"], json!(["ALL"]));
    capabilities["add"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn set<'n>(names: impl IntoIterator<Item = &'n String>) -> Capabilities {
    let named = names.into_iter().map(|name| Capabilities::named(name).unwrap());
    named.fold(Capabilities::NONE, Capabilities::with)
}

/// The user of Kubernetes' pause container.
const PAUSE: u32 = 65535;
const ECHO: u16 = 7;

/// What became of an agent with some capabilities, tried in the order in which it is needed; `Err` says what did not work.
fn works_with(capabilities: Capabilities) -> Result<(), String> {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.agent = stand.agent.arguments(&["--sever"]);
    let words = ["serve-echo", "--port", &ECHO.to_string()];
    stand.servers.push(stand.topology.outside_serve(&Exec::probe(words)).unwrap());
    stand.lock_down(json!({"allow": {"to": [{"cidr": "198.51.100.0/24"}]}}));
    let pod = stand.pod(PodSpec::new("a", "pod").pause_user(PAUSE));
    stand.agent = stand.agent.capabilities(capabilities).patience(Duration::from_secs(10));
    stand.agent.start(&stand.topology).map_err(|error| format!("start: {error:#}"))?;

    // Both hooks, found by processes of another user.
    let covered =
        || endpoints(&stand.agent).iter().all(|e| e["coverage"].as_str().unwrap().starts_with("socket+veth"));
    within(Duration::from_secs(5), covered)
        .then_some(())
        .ok_or_else(|| format!("coverage: {:?}", endpoints(&stand.agent)))?;
    let lacks = stand.agent.status().unwrap()["lacks"].clone();
    if lacks != common::lacks() {
        return Err(format!("lacks: {lacks}"));
    }
    passes(&pod, OUTSIDE_V4);
    // Connections that a new policy denies are ended.
    let target = format!("{OUTSIDE_V4}:{ECHO}");
    let mut held =
        pod.spawn(&Exec::probe(["hold", &target, "--for-ms", "300000", "--interval-ms", "500"])).unwrap();
    for _ in 0..2 {
        let beat: Beat = held.next_json(Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!(beat.outcome, Outcome::Ok, "{beat:?}");
    }
    stand.lock_down(json!({}));
    eventually("the change is enforced", || {
        stand.agent.log().contains("severed") || !stand.agent.flows().unwrap().is_empty()
    });
    denied(&pod, OUTSIDE_V4);
    let severed = within(Duration::from_secs(5), || stand.agent.status().unwrap()["severed"] == 1);
    severed.then_some(()).ok_or_else(|| format!("severed nothing: {}", stand.agent.log()))?;
    // And what comes after it is covered as well.
    let later = stand.pod(PodSpec::new("a", "later").pause_user(PAUSE));
    denied(&later, OUTSIDE_V4);
    stand.agent.stop().map_err(|error| format!("stop: {error:#}"))?;
    stand.agent.cleanup(&stand.topology).map_err(|error| format!("cleanup: {error:#}"))?;
    if stand.agent.pins().unwrap().is_empty() { Ok(()) } else { Err("cleanup: pins are left".to_owned()) }
}

fn within(time: Duration, holds: impl Fn() -> bool) -> bool {
    let start = std::time::Instant::now();
    while start.elapsed() < time {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

#[test]
fn the_listed_capabilities_are_enough() {
    works_with(set(&listed())).unwrap();
}

#[test]
fn each_listed_capability_is_needed() {
    let all = listed();
    for left_out in &all {
        let result = works_with(set(all.iter().filter(|name| *name != left_out)));
        let error = result.expect_err(&format!("{left_out} is not needed"));
        eprintln!("without {left_out}: {}", error.lines().next().unwrap_or_default());
    }
}
