//! One of the agents leads, and never two.

use std::time::Duration;

use egress_agent::cluster::LEASE;
use egress_fixture::{Fault, Fixture, Verb};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{Services, services, until};

const NAMESPACE: &str = "egress-enforcer";

fn lease(fixture: &Fixture) -> Value {
    fixture.get("leases", NAMESPACE, LEASE).unwrap_or_default()
}

fn leaders(all: &[Services]) -> Vec<usize> {
    (0..all.len()).filter(|n| all[*n].cluster.leads()).collect()
}

async fn one_leads(all: &[Services]) -> usize {
    until("a leader", || leaders(all).first().copied()).await
}

/// Looks at every tenth of a second.
async fn never_two(all: &[Services], time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let leaders = leaders(all);
        assert!(leaders.len() <= 1, "{leaders:?} lead after {:?}", begun.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_many_leads_and_goes_on_leading() {
    let fixture = Fixture::start().unwrap();
    let all: Vec<_> = (0..5).map(|n| services(&fixture, &format!("node-{n}"), false)).collect();
    let leader = one_leads(&all).await;
    never_two(&all, Duration::from_mins(20)).await;
    assert_eq!(leaders(&all), [leader]);
    let spec = &lease(&fixture)["spec"];
    assert!(spec["holderIdentity"].as_str().unwrap().starts_with(&format!("node-{leader}_")));
    assert_eq!((&spec["leaseDurationSeconds"], &spec["leaseTransitions"]), (&json!(60), &json!(1)));
    // Those who follow ask the cache, and seldom; the leader writes without asking.
    let asked = fixture.requests_of("leases", Verb::Get);
    assert!(asked.iter().all(|request| request.query["resourceVersion"] == "0"));
    assert!(asked.len() < 4 * 20 * 2 + 20, "{}", asked.len());
    let states: Vec<_> = all.iter().map(|one| one.service("leader election").state).collect();
    assert_eq!(states.iter().filter(|state| *state == "Following").count(), 4, "{states:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_is_followed_after_its_time() {
    let fixture = Fixture::start().unwrap();
    let mut all: Vec<_> = (0..3).map(|n| services(&fixture, &format!("node-{n}"), false)).collect();
    let leader = one_leads(&all).await;
    sleep(Duration::from_mins(2)).await;
    drop(all.remove(leader));
    let died = Instant::now();
    one_leads(&all).await;
    let took = died.elapsed().as_secs();
    assert!((40..=150).contains(&took), "{took} s");
    assert_eq!(lease(&fixture)["spec"]["leaseTransitions"], 2);
    never_two(&all, Duration::from_mins(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_gives_the_lease_back() {
    let fixture = Fixture::start().unwrap();
    let mut all: Vec<_> = (0..3).map(|n| services(&fixture, &format!("node-{n}"), false)).collect();
    let leader = one_leads(&all).await;
    all.remove(leader).cluster.end().await;
    assert_eq!(lease(&fixture)["spec"].get("holderIdentity"), None);
    let ended = Instant::now();
    one_leads(&all).await;
    assert!(ended.elapsed() <= Duration::from_secs(46), "{:?}", ended.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_begins() {
    let fixture = Fixture::start().unwrap();
    let all: Vec<_> = (0..4).map(|n| services(&fixture, &format!("node-{n}"), false)).collect();
    for _ in 0..5 {
        let leader = one_leads(&all).await;
        all[leader].connect(false);
        let cut = Instant::now();
        until("the leader stops", || (!all[leader].cluster.leads()).then_some(())).await;
        assert!(cut.elapsed() <= Duration::from_secs(41), "{:?}", cut.elapsed());
        assert_eq!(all[leader].service("leader election").state, "Failing");
        never_two(&all, Duration::from_mins(3)).await;
        let next = one_leads(&all).await;
        assert_ne!(next, leader);
        all[leader].connect(true);
        never_two(&all, Duration::from_mins(2)).await;
        assert_eq!(leaders(&all), [next], "it does not take the lease back");
    }
}

#[tokio::test(start_paused = true)]
async fn clocks_of_others_are_not_believed() {
    let fixture = Fixture::start().unwrap();
    let held = |renewed: &str| {
        json!({"spec": {
            "holderIdentity": "other", "leaseDurationSeconds": 60, "leaseTransitions": 7, "renewTime": renewed,
        }})
    };
    // Renewed long ago, by a clock that is behind: it is still not taken before it was seen to stand still.
    fixture.apply("leases", NAMESPACE, LEASE, &held("1999-01-01T00:00:00.000000Z"));
    let one = services(&fixture, "node-a", false);
    let begun = Instant::now();
    for minute in 0..10 {
        sleep(Duration::from_secs(50)).await;
        assert!(!one.cluster.leads(), "after {:?}", begun.elapsed());
        fixture.apply("leases", NAMESPACE, LEASE, &held(&format!("1999-01-01T00:00:{minute:02}.500000Z")));
    }
    // Renewed in the future, by a clock that is ahead: it is taken all the same when nobody renews it.
    fixture.apply("leases", NAMESPACE, LEASE, &held("2999-01-01T00:00:00.000000Z"));
    let last = Instant::now();
    until("the lead", || one.cluster.leads().then_some(())).await;
    let took = last.elapsed().as_secs();
    assert!((60..=170).contains(&took), "{took} s");
    assert_eq!(lease(&fixture)["spec"]["leaseTransitions"], 8);
}

#[tokio::test(start_paused = true)]
async fn who_lost_a_race_follows() {
    let fixture = Fixture::start().unwrap();
    let one = services(&fixture, "node-a", false);
    until("the lead", || one.cluster.leads().then_some(())).await;
    // Somebody takes it by force, such as an operator.
    fixture.edit("leases", NAMESPACE, LEASE, |lease| lease["spec"]["holderIdentity"] = "other".into());
    let taken = Instant::now();
    until("it stops", || (!one.cluster.leads()).then_some(())).await;
    assert!(taken.elapsed() <= Duration::from_secs(16), "{:?}", taken.elapsed());
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_lost_and_leases_that_are_deleted_do_no_harm() {
    let fixture = Fixture::start().unwrap();
    let one = services(&fixture, "node-a", false);
    until("the lead", || one.cluster.leads().then_some(())).await;
    let lost = fixture.fault_times("leases", &[Verb::Update], Fault::Lost, 2);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(lost.hits(), 2);
    assert!(one.cluster.leads());
    fixture.delete("leases", NAMESPACE, LEASE);
    sleep(Duration::from_mins(1)).await;
    assert!(one.cluster.leads());
    assert!(lease(&fixture)["spec"]["holderIdentity"].is_string());
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_is_named_and_found_again() {
    let fixture = Fixture::start().unwrap();
    let fault = fixture.fault("leases", &Verb::ALL, Fault::Forbidden);
    let one = services(&fixture, "node-a", false);
    let status = one.until_state("leader election", "NotAllowed").await;
    let text = "the service account may not get leases.coordination.k8s.io: no agent can be elected to write the status of policies";
    assert_eq!(status.error.as_deref(), Some(text));
    fault.lift();
    until("the lead", || one.cluster.leads().then_some(())).await;
    assert_eq!(one.service("leader election").error, None);
}
