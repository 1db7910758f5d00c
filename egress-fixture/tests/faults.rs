//! What goes wrong on purpose goes wrong as it should, and no more than that.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Next, get, pod, send, watch, with_pods};
use egress_fixture::{Fault, Fixture, Verb};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::client::Body;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/pods";
const READ: [Verb; 2] = Verb::READ;

fn watched(fixture: &Fixture) -> String {
    format!("{PODS}?watch=true&resourceVersion={}", fixture.version())
}

#[tokio::test]
async fn answers_of_faults_are_the_real_servers() {
    let fixture = with_pods(1);
    let client = fixture.client().unwrap();
    let user = "system:serviceaccount:egress-enforcer:egress-agent";
    let cases = [
        (Fault::Unauthorized, 401, "Unauthorized".to_owned()),
        (
            Fault::Forbidden,
            403,
            format!(
                "pods is forbidden: User \"{user}\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
            ),
        ),
        (Fault::Initializing, 429, "storage is (re)initializing".to_owned()),
        (Fault::Internal, 500, "Internal error occurred: etcdserver: request timed out".to_owned()),
        (Fault::Unavailable, 503, "the server is currently unable to handle the request".to_owned()),
    ];
    for (fault, code, message) in cases {
        let standing = fixture.fault_times("pods", &READ, fault, 1);
        let said = get(&client, PODS).await;
        assert_eq!((said.code, said.message()), (code, message));
        assert_eq!(get(&client, PODS).await.code, 200);
        assert_eq!(standing.hits(), 1);
    }
    let standing = fixture.fault("pods", &READ, Fault::TooManyRequests(7));
    let said = get(&client, PODS).await;
    assert_eq!((said.code, said.retry_after.as_deref()), (429, Some("7")));
    assert_eq!(said.text, "Too many requests, please try again later.\n");
    standing.lift();
    fixture.fault("pods", &READ, Fault::NothingHere);
    assert_eq!(get(&client, PODS).await.text, "404 page not found\n");
    fixture.lift_faults();
    assert_eq!(get(&client, PODS).await.code, 200);
}

#[tokio::test]
async fn a_refusal_names_what_was_asked_for() {
    let fixture = Fixture::start().unwrap();
    fixture.fault("*", &Verb::ALL, Fault::Forbidden);
    let client = fixture.client().unwrap();
    let said = async |method: &str, path: &str| {
        send(&client, method, path, "application/json", &json!({})).await.message()
    };
    let user = "User \"system:serviceaccount:egress-enforcer:egress-agent\"";
    assert_eq!(
        said("PATCH", "/apis/egress-enforcer.io/v1alpha1/egressgatewaypolicies/mesh/status").await,
        format!(
            "egressgatewaypolicies.egress-enforcer.io \"mesh\" is forbidden: {user} cannot patch resource \
             \"egressgatewaypolicies/status\" in API group \"egress-enforcer.io\" at the cluster scope"
        )
    );
    assert_eq!(
        said("POST", "/apis/coordination.k8s.io/v1/namespaces/a/leases").await,
        format!(
            "leases.coordination.k8s.io is forbidden: {user} cannot create resource \"leases\" in API group \
             \"coordination.k8s.io\" in the namespace \"a\""
        )
    );
    assert!(said("GET", "/api/v1/pods?watch=1").await.contains("cannot watch resource \"pods\""));
}

#[tokio::test]
async fn a_token_is_asked_for() {
    let fixture = Fixture::start().unwrap();
    fixture.set(|settings| settings.token = Some("new".to_owned()));
    let client = fixture.client().unwrap();
    assert_eq!(get(&client, PODS).await.message(), "Unauthorized");
    let ask = Request::get(PODS).header("authorization", "Bearer new").body(Body::empty()).unwrap();
    assert_eq!(client.send(ask).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_server_that_is_stopped_refuses_and_comes_back_on_its_port_without_history() {
    let mut fixture = with_pods(1);
    let from = fixture.version();
    let url = fixture.url();
    let client = fixture.client().unwrap();
    let without = fixture.client_without_socket();
    let mut lines = watch(&client, &watched(&fixture)).await;
    let mut lines_without = watch(&without, &watched(&fixture)).await;
    fixture.stop().await.unwrap();
    assert!(matches!(lines.next().await, Next::Broken(_) | Next::Ended(_)));
    assert!(matches!(lines_without.next().await, Next::Broken(_)));
    fixture.apply("pods", "default", "p1", &pod(1));
    for client in [&client, &without] {
        let asked = client.send(Request::get(PODS).body(Body::empty()).unwrap()).await;
        let error = format!("{:?}", asked.unwrap_err());
        assert!(error.contains("ConnectionRefused") || error.contains("refused"), "{error}");
    }
    fixture.start_again().unwrap();
    assert_eq!(fixture.url(), url);
    let list = get(&client, PODS).await.json();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let mut lines = watch(&client, &format!("{PODS}?watch=true&resourceVersion={from}")).await;
    assert_eq!(lines.next().await.event()["object"]["code"], 410);
}

#[tokio::test]
async fn watches_break_off_where_they_are_told_to() {
    let fixture = with_pods(0);
    let client = fixture.client().unwrap();
    for (fault, events, broken) in [
        (Fault::CutAfter(2), 2, Some(true)),
        (Fault::CutInside(1), 1, Some(true)),
        (Fault::EndAfter(1), 1, None),
    ] {
        let path = watched(&fixture);
        fixture.fault_times("pods", &[Verb::Watch], fault.clone(), 1);
        let mut lines = watch(&client, &path).await;
        for n in 0..3 {
            fixture.apply("pods", "default", &format!("{}{n}", fixture.version()), &pod(n));
        }
        for _ in 0..events {
            assert!(matches!(lines.next().await, Next::Event(_)));
        }
        match (lines.next().await, broken) {
            (Next::Ended(rest), None) => assert_eq!(rest, ""),
            (Next::Broken(rest), Some(_)) => {
                assert_eq!(!rest.is_empty(), matches!(fault, Fault::CutInside(_)), "{rest}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn standing_watches_do_what_they_are_told() {
    let fixture = with_pods(0);
    let client = fixture.client().unwrap();
    let short = Duration::from_millis(100);
    let mut lines = watch(&client, &watched(&fixture)).await;
    assert_eq!(fixture.stall_watches("pods"), 1);
    fixture.apply("pods", "default", "p0", &pod(0));
    assert_eq!(lines.next_within(short).await, Next::Silence);
    fixture.resume_watches("pods");
    assert_eq!(lines.short().await.1, "p0");
    fixture.say_in_watches("pods", "{\"type\":\"ADDED\",\"object\":7}\n");
    assert_eq!(lines.next().await.event(), json!({"type": "ADDED", "object": 7}));
    fixture.fail_watches("pods", &egress_fixture::Failure::too_old(1, 9));
    assert_eq!(lines.next().await.event()["object"]["code"], 410);
    fixture.end_watches("pods");
    assert_eq!(lines.next().await, Next::Ended(String::new()));
    let mut lines = watch(&client, &watched(&fixture)).await;
    fixture.cut_watches_inside("pods");
    let Next::Broken(rest) = lines.next().await else { panic!() };
    assert!(rest.starts_with("{\"type\":\"MODIFIED\""), "{rest}");
    let mut lines = watch(&client, &watched(&fixture)).await;
    assert_eq!(fixture.watches("pods"), 1);
    fixture.cut_watches("pods");
    assert!(matches!(lines.next().await, Next::Broken(rest) if rest.is_empty()));
    fixture.until_watches("pods", 0).await;
}

#[tokio::test]
async fn events_come_twice_where_a_fault_says_so() {
    let fixture = with_pods(0);
    let client = fixture.client().unwrap();
    let standing = fixture.fault("pods", &[Verb::Watch], Fault::Duplicate);
    let mut lines = watch(&client, &watched(&fixture)).await;
    fixture.apply("pods", "default", "p0", &pod(0));
    assert_eq!(lines.short().await, lines.short().await);
    assert_eq!(standing.hits(), 1);
}

#[tokio::test]
async fn a_replica_that_lags_answers_from_before() {
    let fixture = with_pods(1);
    let old = fixture.version();
    fixture.delete("pods", "default", "p0");
    fixture.apply("pods", "default", "p1", &pod(1));
    fixture.fault("pods", &READ, Fault::Stale(old));
    let client = fixture.client().unwrap();
    let list = get(&client, &format!("{PODS}?resourceVersion=0")).await.json();
    assert_eq!(list["metadata"]["resourceVersion"], old.to_string());
    assert_eq!(list["items"][0]["metadata"]["name"], "p0");
    let ask = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut lines = watch(&client, &format!("{PODS}?{ask}")).await;
    assert_eq!(lines.short().await.1, "p0");
    assert_eq!(lines.short().await, ("BOOKMARK".to_owned(), String::new(), old.to_string()));
    // Then it catches up.
    assert_eq!(lines.short().await.0, "DELETED");
    assert_eq!(lines.short().await.1, "p1");
}

#[tokio::test]
async fn garbage_halves_and_lost_answers_are_errors_for_kubes_client() {
    let fixture = with_pods(3);
    let pods: Api<Pod> = Api::all(fixture.client().unwrap());
    for fault in [Fault::Garbage, Fault::CutInside(0), Fault::Refused, Fault::Lost] {
        fixture.fault_times("pods", &READ, fault.clone(), 1);
        assert!(pods.list(&ListParams::default()).await.is_err(), "{fault:?}");
    }
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 3);
    // A write whose answer is lost is done.
    let client = fixture.client().unwrap();
    fixture.fault_times("pods", &[Verb::Delete], Fault::Lost, 1);
    let ask = Request::delete("/api/v1/namespaces/default/pods/p0").body(Body::empty()).unwrap();
    assert!(client.send(ask).await.is_err());
    assert_eq!(fixture.get("pods", "default", "p0"), None);
}

#[tokio::test(start_paused = true)]
async fn answers_come_late_in_pieces_or_never() {
    let fixture = with_pods(1);
    let client = fixture.client_without_socket();
    let begun = tokio::time::Instant::now();
    fixture.fault_times("pods", &READ, Fault::Delay(Duration::from_secs(5)), 1);
    assert_eq!(get(&client, PODS).await.code, 200);
    assert_eq!(begun.elapsed().as_secs(), 5);
    let whole = get(&client, PODS).await.text;
    fixture.fault_times("pods", &READ, Fault::Dribble(10, Duration::from_secs(1)), 1);
    assert_eq!(get(&client, PODS).await.text, whole);
    assert_eq!(begun.elapsed().as_secs(), 5 + whole.len().div_ceil(10) as u64);
    fixture.fault_times("pods", &READ, Fault::Silent, 1);
    let minute = Duration::from_mins(1);
    assert!(tokio::time::timeout(minute, get(&client, PODS)).await.is_err());
    fixture.fault_times("pods", &READ, Fault::Stalled, 1);
    let mut lines = watch(&client, &watched(&fixture)).await;
    assert_eq!(fixture.watches("pods"), 1);
    fixture.apply("pods", "default", "p1", &pod(1));
    assert_eq!(lines.next_within(minute).await, Next::Silence);
}

#[tokio::test]
async fn an_object_of_a_mebibyte_arrives_whole() {
    let fixture = Fixture::start().unwrap();
    let long = "x".repeat(1 << 20);
    fixture.apply("pods", "default", "big", &json!({"metadata": {"annotations": {"a": long}}}));
    let client = fixture.client().unwrap();
    let list = get(&client, PODS).await.json();
    assert_eq!(list["items"][0]["metadata"]["annotations"]["a"].as_str().map(str::len), Some(1 << 20));
    let mut lines = watch(&client, &format!("{PODS}?watch=true")).await;
    let event: Value = lines.next().await.event();
    assert_eq!(event["object"]["metadata"]["annotations"]["a"].as_str().map(str::len), Some(1 << 20));
}
