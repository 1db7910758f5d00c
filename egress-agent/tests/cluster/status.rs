//! The status of policies, by the leader alone.

use std::time::Duration;

use egress_fixture::{Fault, Fixture, Verb};
use egress_policy::index::{Event, Index};
use egress_policy::object::{Read, read};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{NODE, Services, services, until};

const POLICIES: &str = "egressgatewaypolicies";

fn spec() -> Value {
    json!({
        "subjects": [{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "app"}}}],
        "gateways": [{"pods": {"matchLabels": {"istio": "egressgateway"}}}],
    })
}

fn pod(labels: &Value, ip: &str) -> Value {
    json!({"metadata": {"labels": labels}, "status": {"podIP": ip, "podIPs": [{"ip": ip}]}})
}

fn cluster() -> Fixture {
    let fixture = Fixture::start().unwrap();
    fixture.apply("namespaces", "", "app", &json!({}));
    fixture.apply("pods", "app", "web", &pod(&json!({"app": "web"}), "10.0.0.1"));
    fixture.apply("pods", "gw", "gate", &pod(&json!({"istio": "egressgateway"}), "10.0.0.2"));
    fixture.apply(POLICIES, "", "mesh", &json!({"spec": spec()}));
    fixture
}

/// The objects of the fixture as an agent would have them.
fn index(fixture: &Fixture) -> Index {
    let mut index = Index::default();
    for (resource, version, kind) in [
        ("namespaces", "v1", "Namespace"),
        ("pods", "v1", "Pod"),
        (POLICIES, "egress-enforcer.io/v1alpha1", "EgressGatewayPolicy"),
    ] {
        for mut object in fixture.all(resource) {
            object["apiVersion"] = version.into();
            object["kind"] = kind.into();
            let events = read(object).unwrap().into_iter().filter_map(Read::event);
            events.for_each(|event: Event| drop(index.apply(event)));
        }
    }
    index
}

/// What the owner of the objects does at its turns.
async fn turns(fixture: &Fixture, agents: &[&Services], time: Duration) {
    for _ in 0..time.as_secs() {
        for agent in agents {
            if agent.cluster.wants_census() {
                agent.cluster.count(true, || index(fixture).census());
            }
        }
        sleep(Duration::from_secs(1)).await;
        // Counting runs on a thread that a stopped clock does not wait for.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn status(fixture: &Fixture, name: &str) -> Value {
    fixture.get(POLICIES, "", name).unwrap()["status"].clone()
}

fn condition(fixture: &Fixture, name: &str) -> Value {
    status(fixture, name)["conditions"][0].clone()
}

async fn leader(fixture: &Fixture) -> Services {
    let one = services(fixture, NODE, false);
    until("the lead", || one.cluster.leads().then_some(())).await;
    one
}

#[tokio::test(start_paused = true)]
async fn the_leader_writes_and_only_what_changed() {
    let fixture = cluster();
    let one = leader(&fixture).await;
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    let written = status(&fixture, "mesh");
    let numbers = [&written["subjects"], &written["gateways"], &written["readyGatewayEndpoints"]];
    assert_eq!(numbers, [&json!(1), &json!(1), &json!(1)]);
    assert_eq!(written["observedGeneration"], 1);
    let accepted = condition(&fixture, "mesh");
    assert_eq!((&accepted["type"], &accepted["status"]), (&json!("Accepted"), &json!("True")));
    assert_eq!((&accepted["reason"], &accepted["observedGeneration"]), (&json!("Accepted"), &json!(1)));
    // Nothing changes: nothing is written, and nothing is asked.
    let asked = fixture.requests_of(POLICIES, Verb::Get).len();
    turns(&fixture, &[&one], Duration::from_mins(5)).await;
    assert_eq!(fixture.requests_of(POLICIES, Verb::Patch).len(), 1);
    assert_eq!(fixture.requests_of(POLICIES, Verb::Get).len(), asked);
    // A pod comes.
    fixture.apply("pods", "app", "more", &pod(&json!({"app": "more"}), "10.0.0.3"));
    turns(&fixture, &[&one], Duration::from_secs(15)).await;
    assert_eq!(status(&fixture, "mesh")["subjects"], 2);
    assert_eq!(condition(&fixture, "mesh"), accepted);
    let written = fixture.requests_of(POLICIES, Verb::Patch);
    assert_eq!(written.len(), 2);
    assert!(written.iter().all(|request| request.path.ends_with("/mesh/status")));
    // A pod that comes and goes at every turn is told of every few seconds at most.
    for n in 0..60 {
        let ip = format!("10.0.1.{n}");
        fixture.apply("pods", "app", &format!("storm-{n}"), &pod(&json!({}), &ip));
        turns(&fixture, &[&one], Duration::from_secs(1)).await;
    }
    let storm = fixture.requests_of(POLICIES, Verb::Patch).len() - 2;
    assert!((5..=13).contains(&storm), "{storm}");
}

#[tokio::test(start_paused = true)]
async fn what_has_not_changed_is_counted_once_and_compared_again() {
    let fixture = cluster();
    let one = leader(&fixture).await;
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    let (mut turned, mut looked) = (0, 0);
    let written = status(&fixture, "mesh");
    fixture.edit(POLICIES, "", "mesh", |policy| policy["status"]["subjects"] = 77.into());
    for _ in 0..660 {
        if one.cluster.wants_census() {
            turned += 1;
            one.cluster.count(false, || {
                looked += 1;
                index(&fixture).census()
            });
        }
        sleep(Duration::from_secs(1)).await;
    }
    assert!(turned > 100 && looked == 0, "{turned} {looked}");
    // Somebody else had written it.
    assert_eq!(status(&fixture, "mesh")["subjects"], written["subjects"]);
    // Who never had anything is given it.
    let other = services(&fixture, "node-b", false);
    other.cluster.count(false, || {
        looked += 1;
        index(&fixture).census()
    });
    assert_eq!(looked, 1);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_policy_says_what_is_wrong_until_it_is_put_right() {
    let fixture = cluster();
    let one = leader(&fixture).await;
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    let valid = condition(&fixture, "mesh");
    fixture.edit(POLICIES, "", "mesh", |policy| policy["spec"]["allow"] = json!({"dns": 7}));
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    let invalid = condition(&fixture, "mesh");
    assert_eq!((&invalid["status"], &invalid["reason"]), (&json!("False"), &json!("Invalid")));
    assert_eq!(invalid["observedGeneration"], 2);
    assert!(invalid["message"].as_str().unwrap().starts_with("spec.allow.dns: "), "{invalid}");
    fixture.edit(POLICIES, "", "mesh", |policy| policy["spec"] = spec());
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    assert_eq!(condition(&fixture, "mesh")["status"], valid["status"]);
    assert_eq!(status(&fixture, "mesh")["observedGeneration"], 3);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_made_anew_gets_its_status_again() {
    let fixture = cluster();
    let one = leader(&fixture).await;
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    fixture.delete(POLICIES, "", "mesh");
    fixture.apply(POLICIES, "", "mesh", &json!({"spec": spec()}));
    assert_eq!(status(&fixture, "mesh"), Value::Null);
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    assert_eq!(status(&fixture, "mesh")["subjects"], 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_not_told_of_another_generation() {
    let fixture = cluster();
    let one = leader(&fixture).await;
    // What the agent has read is older than what stands in the cluster.
    let old = index(&fixture);
    fixture.edit(POLICIES, "", "mesh", |policy| policy["spec"]["enforcement"] = "Audit".into());
    until("a wish", || one.cluster.wants_census().then_some(())).await;
    one.cluster.count(true, || old.census());
    sleep(Duration::from_secs(2)).await;
    until("the status", || Some(status(&fixture, "mesh")).filter(|status| !status.is_null())).await;
    assert_eq!(status(&fixture, "mesh")["observedGeneration"], 1, "it says of which generation it tells");
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    assert_eq!(status(&fixture, "mesh")["observedGeneration"], 2);
    // Another leader knew better: it is not overwritten by what is older.
    until("a wish", || one.cluster.wants_census().then_some(())).await;
    one.cluster.count(true, || old.census());
    turns(&fixture, &[], Duration::from_secs(4)).await;
    assert_eq!(status(&fixture, "mesh")["observedGeneration"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_tried_again_and_conditions_of_others_stay() {
    let fixture = cluster();
    fixture.edit(POLICIES, "", "mesh", |policy| {
        policy["status"] = json!({"conditions": [{"type": "Audited", "status": "True"}], "more": 1});
    });
    let stale = egress_fixture::Failure::new(409, "Conflict", "the object has been modified");
    let fault = fixture.fault_times("egressgatewaypolicies/status", &[Verb::Patch], Fault::Failure(stale), 2);
    let one = leader(&fixture).await;
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    assert_eq!(fault.hits(), 2);
    let written = status(&fixture, "mesh");
    assert_eq!((&written["conditions"][0]["type"], &written["more"]), (&json!("Audited"), &json!(1)));
    assert_eq!(written["conditions"][1]["type"], "Accepted");
    let patch = &fixture.requests_of(POLICIES, Verb::Patch)[0].body;
    assert!(patch["metadata"]["resourceVersion"].is_string(), "{patch}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_writes_nothing() {
    let fixture = cluster();
    let all = [services(&fixture, "node-a", false), services(&fixture, "node-b", false)];
    let both = [&all[0], &all[1]];
    let first = until("a leader", || (0..2).find(|n| all[*n].cluster.leads())).await;
    turns(&fixture, &both, Duration::from_secs(10)).await;
    assert!(!all[1 - first].cluster.wants_census());
    assert_eq!(all[1 - first].service("policy status").written, 0);
    // Cut off in the middle of a write: it is not finished after the lead is lost.
    let slow = fixture.fault("egressgatewaypolicies/status", &[Verb::Patch], Fault::Silent);
    fixture.apply("pods", "app", "more", &pod(&json!({}), "10.0.0.3"));
    let held = fixture.fault("leases", &Verb::WRITE, Fault::Silent);
    turns(&fixture, &both, Duration::from_secs(60)).await;
    assert!(slow.hits() >= 1);
    assert!(!all[first].cluster.leads());
    let stopped = fixture.requests_of(POLICIES, Verb::Patch).len();
    turns(&fixture, &both, Duration::from_secs(20)).await;
    assert_eq!(fixture.requests_of(POLICIES, Verb::Patch).len(), stopped);
    slow.lift();
    held.lift();
    turns(&fixture, &both, Duration::from_mins(4)).await;
    assert_eq!(status(&fixture, "mesh")["subjects"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_writes_nothing_that_stands() {
    let fixture = cluster();
    let one = leader(&fixture).await;
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    one.cluster.end().await;
    let written = fixture.requests_of(POLICIES, Verb::Patch).len();
    let next = services(&fixture, "node-b", false);
    until("the lead", || next.cluster.leads().then_some(())).await;
    let asked = fixture.requests_of(POLICIES, Verb::Get).len();
    turns(&fixture, &[&next], Duration::from_secs(30)).await;
    assert_eq!(fixture.requests_of(POLICIES, Verb::Get).len(), asked + 1, "it looks once");
    assert_eq!(fixture.requests_of(POLICIES, Verb::Patch).len(), written);
    // After a while it looks again, and puts right what somebody else has written.
    fixture.edit(POLICIES, "", "mesh", |policy| policy["status"]["subjects"] = 77.into());
    turns(&fixture, &[&next], Duration::from_mins(11)).await;
    assert_eq!(status(&fixture, "mesh")["subjects"], 1);
}

/// It refuses everything, in the same words as where a right is missing.
#[tokio::test(start_paused = true)]
async fn a_server_that_has_not_read_its_roles_yet_costs_seconds() {
    let fixture = cluster();
    let fault = fixture.fault("egressgatewaypolicies/status", &[Verb::Patch], Fault::Forbidden);
    let one = leader(&fixture).await;
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    assert_eq!(one.service("policy status").state, "NotAllowed");
    fault.lift();
    turns(&fixture, &[&one], Duration::from_secs(20)).await;
    assert_eq!(status(&fixture, "mesh")["subjects"], 1);
    assert_eq!(one.service("policy status").error, None);
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_is_named_and_a_missing_definition_is_no_error() {
    let fixture = cluster();
    let fault = fixture.fault("egressgatewaypolicies/status", &[Verb::Patch], Fault::Forbidden);
    let one = leader(&fixture).await;
    turns(&fixture, &[&one], Duration::from_secs(10)).await;
    let state = one.service("policy status");
    assert_eq!(state.state, "NotAllowed");
    let text = "the service account may not patch egressgatewaypolicies/status (egress-enforcer.io): the status of policies \
                is not written";
    assert_eq!(state.error.as_deref(), Some(text));
    turns(&fixture, &[&one], Duration::from_mins(4)).await;
    assert!(fault.hits() <= 9, "it is not asked for all the time: {} times", fault.hits());
    fault.lift();
    turns(&fixture, &[&one], Duration::from_mins(5)).await;
    assert_eq!(status(&fixture, "mesh")["subjects"], 1);
    fixture.remove_definition();
    turns(&fixture, &[&one], Duration::from_mins(1)).await;
    assert_eq!(one.service("policy status").error, None);
}
