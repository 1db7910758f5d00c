//! The taint goes when the agent enforces, and nothing else goes with it.

use std::sync::Arc;
use std::time::Duration;

use egress_agent::admin::server::Published;
use egress_fixture::{Failure, Fault, Fixture, Verb};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{NODE, Services, TAINT, services};

fn taint(key: &str) -> Value {
    json!({"key": key, "effect": "NoSchedule"})
}

fn taints(fixture: &Fixture) -> Value {
    fixture.get("nodes", "", NODE).unwrap()["spec"]["taints"].clone()
}

fn node(keys: &[&str]) -> Fixture {
    let fixture = Fixture::start().unwrap();
    let taints: Vec<_> = keys.iter().map(|key| taint(key)).collect();
    fixture.apply("nodes", "", NODE, &json!({"spec": {"taints": taints, "podCIDR": "10.0.0.0/24"}}));
    fixture.apply("nodes", "", "node-b", &json!({"spec": {"taints": [taint(TAINT)]}}));
    fixture
}

fn ready(services: &Services, ready: bool) {
    let mut published = Published::default();
    published.status.ready = ready;
    services.published.send_replace(Arc::new(published));
}

#[tokio::test(start_paused = true)]
async fn the_taint_goes_once_the_agent_enforces() {
    let fixture = node(&["first", TAINT, "last"]);
    let one = services(&fixture, NODE, true);
    sleep(Duration::from_mins(2)).await;
    assert_eq!(taints(&fixture).as_array().map(Vec::len), Some(3), "not ready yet");
    ready(&one, true);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(taints(&fixture), json!([taint("first"), taint("last")]));
    assert_eq!(fixture.get("nodes", "", NODE).unwrap()["spec"]["podCIDR"], "10.0.0.0/24");
    assert_eq!(fixture.get("nodes", "", "node-b").unwrap()["spec"]["taints"], json!([taint(TAINT)]));
    // The node registers again.
    fixture.edit("nodes", "", NODE, |node| node["spec"]["taints"] = json!([taint(TAINT)]));
    sleep(Duration::from_mins(8)).await;
    assert_eq!(taints(&fixture), json!([]));
    // No longer ready: nothing is added.
    ready(&one, false);
    sleep(Duration::from_mins(8)).await;
    assert_eq!(taints(&fixture), json!([]));
}

#[tokio::test(start_paused = true)]
async fn without_the_flag_the_node_is_not_looked_at() {
    let fixture = node(&[TAINT]);
    let one = services(&fixture, NODE, false);
    ready(&one, true);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(taints(&fixture), json!([taint(TAINT)]));
    assert!(fixture.requests().iter().all(|request| request.resource != "nodes"));
}

#[tokio::test(start_paused = true)]
async fn taints_that_change_meanwhile_are_left_alone() {
    let fixture = node(&["first", TAINT]);
    // Between the look and the patch somebody else takes the first taint away.
    let slow = fixture.fault_times("nodes", &[Verb::Get], Fault::Delay(Duration::from_secs(5)), 1);
    let one = services(&fixture, NODE, true);
    ready(&one, true);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(slow.hits(), 1);
    fixture.edit("nodes", "", NODE, |node| {
        node["spec"]["taints"] = json!([taint(TAINT), taint("new")]);
    });
    sleep(Duration::from_secs(4)).await;
    assert_eq!(taints(&fixture), json!([taint(TAINT), taint("new")]), "the patch was refused");
    assert_eq!(fixture.requests_of("nodes", Verb::Patch).len(), 1);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(taints(&fixture), json!([taint("new")]));
}

#[tokio::test(start_paused = true)]
async fn every_failure_is_tried_again() {
    let fixture = node(&[TAINT]);
    for fault in
        [Fault::Unavailable, Fault::TooManyRequests(3), Fault::Refused, Fault::Silent, Fault::Garbage]
    {
        fixture.fault_times("nodes", &Verb::ALL, fault, 1);
    }
    fixture.fault_times("nodes", &[Verb::Patch], Fault::Lost, 1);
    let one = services(&fixture, NODE, true);
    ready(&one, true);
    sleep(Duration::from_mins(4)).await;
    assert_eq!(taints(&fixture), json!([]));
    assert_eq!(one.service("taint").error, None);
    fixture.edit("nodes", "", NODE, |node| node["spec"]["taints"] = json!([taint(TAINT)]));
    fixture.fault("nodes", &[Verb::Patch], Fault::Forbidden);
    let state = one.until_state("taint", "NotAllowed").await;
    let text = "the service account may not patch nodes: the node keeps its taint, and no pod starts there";
    assert_eq!(state.error.as_deref(), Some(text));
}

/// As a webhook or an admission policy for nodes does.
#[tokio::test(start_paused = true)]
async fn who_is_refused_the_patch_says_so() {
    let fixture = node(&[TAINT]);
    let text = "admission webhook \"nodes.example.com\" denied the request: agents cannot patch nodes";
    fixture.fault("nodes", &[Verb::Patch], Fault::Failure(Failure::new(403, "Forbidden", text)));
    let one = services(&fixture, NODE, true);
    ready(&one, true);
    let state = one.until_state("taint", "Failing").await;
    assert!(state.error.is_some_and(|error| error.contains(text)));
}
