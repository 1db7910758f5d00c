//! Events of pods for what is denied.

use std::sync::Arc;
use std::time::Duration;

use egress_agent::admin::server::Published;
use egress_agent::cluster::LEASE;
use egress_agent::flow::Flow;
use egress_agent::status::EndpointStatus;
use egress_fixture::{Failure, Fault, Fixture, Verb};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{NODE, Services, services, until};

const EVENTS: &str = "corev1events";

fn flow(pod: u64, port: u16) -> Arc<Flow> {
    Arc::new(Flow {
        time: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
        node: NODE.to_owned(),
        pod: Some(format!("app/p{pod}")),
        cgroup: pod,
        container: Some("app".to_owned()),
        source: "10.0.0.1:40000".parse().unwrap(),
        destination: format!("198.51.100.7:{port}").parse().unwrap(),
        destination_name: None,
        destination_pod: None,
        destination_service: None,
        destination_node: None,
        uid: None,
        protocol: "TCP".to_owned(),
        action: "deny".to_owned(),
        reason: "SidecarBypass".to_owned(),
        policies: vec!["EgressGatewayPolicy mesh".to_owned()],
        rule: None,
        hook: "socket".to_owned(),
        process: None,
        suppressed: 0,
        length: 60,
        revision: 3,
    })
}

fn endpoint(pod: u64) -> EndpointStatus {
    EndpointStatus {
        namespace: "app".to_owned(),
        name: format!("p{pod}"),
        uid: format!("uid-{pod}"),
        cgroup: pod,
        state: "Isolated".to_owned(),
        addresses: Vec::new(),
        coverage: String::new(),
        veths: Vec::new(),
        denials: Vec::new(),
        policies: Vec::new(),
        policy: String::new(),
        lock: false,
        proxies: Vec::new(),
        containers: Vec::new(),
        revision: 1,
    }
}

fn start(pods: u64) -> (Fixture, Services) {
    let fixture = Fixture::start().unwrap();
    fixture.apply("namespaces", "", "app", &json!({}));
    let one = services(&fixture, NODE, false);
    let endpoints = (1..=pods).map(endpoint).collect();
    one.published.send_replace(Arc::new(Published { endpoints, ..Published::default() }));
    (fixture, one)
}

fn of_pod(fixture: &Fixture, pod: u64) -> Vec<Value> {
    let is = |event: &Value| event["involvedObject"]["name"] == format!("p{pod}");
    fixture.all(EVENTS).into_iter().filter(is).collect()
}

#[tokio::test(start_paused = true)]
async fn an_event_tells_of_pod_container_policy_and_node() {
    let (fixture, one) = start(1);
    one.flows.send(flow(1, 443)).unwrap();
    sleep(Duration::from_secs(1)).await;
    let events = of_pod(&fixture, 1);
    assert_eq!(events.len(), 1);
    let event = &events[0];
    let text =
        "egress to 198.51.100.7:443/TCP denied by EgressGatewayPolicy mesh: SidecarBypass, container app";
    assert_eq!(event["message"], text);
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("SidecarBypass")));
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": "app", "name": "p1", "uid": "uid-1",
        "fieldPath": "spec.containers{app}",
    });
    assert_eq!(event["involvedObject"], object);
    assert_eq!(event["source"], json!({"component": "egress-agent", "host": NODE}));
    assert_eq!((&event["count"], &event["firstTimestamp"]), (&json!(1), &json!("2023-11-14T22:13:20Z")));
    assert!(event["metadata"]["name"].as_str().unwrap().starts_with("p1."));
    assert_eq!(one.service("pod events").state, "Working");
    // The same again is counted, not told again.
    for _ in 0..500 {
        one.flows.send(flow(1, 443)).unwrap();
    }
    sleep(Duration::from_mins(2)).await;
    let events = of_pod(&fixture, 1);
    assert_eq!((events.len(), &events[0]["count"]), (1, &json!(501)));
    assert_eq!(fixture.requests_of("events", Verb::Patch).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_bounded_and_hides_no_other_pod() {
    let (fixture, one) = start(20);
    for port in 1..4000 {
        one.flows.send(flow(1, port)).unwrap();
        tokio::task::yield_now().await;
    }
    for pod in 2..=20 {
        one.flows.send(flow(pod, 443)).unwrap();
    }
    sleep(Duration::from_secs(5)).await;
    for pod in 2..=20 {
        assert_eq!(of_pod(&fixture, pod).len(), 1, "pod {pod}");
    }
    assert!(of_pod(&fixture, 1).len() <= 9);
    sleep(Duration::from_mins(9)).await;
    let flood = of_pod(&fixture, 1);
    assert!(flood.len() <= 17, "{}", flood.len());
    assert!(flood.iter().any(|event| event["message"].as_str().unwrap().contains("many more destinations")));
    let writes =
        fixture.requests_of("events", Verb::Create).len() + fixture.requests_of("events", Verb::Patch).len();
    assert!(writes < 20 + 8 + 2 * 10, "{writes}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_costs_no_event_and_little_memory() {
    let (fixture, one) = start(3);
    let away = fixture.fault("*", &Verb::ALL, Fault::Silent);
    for round in 0..100 {
        for pod in 1..=3 {
            one.flows.send(flow(pod, 443)).unwrap();
        }
        // Whoever is not among the endpoints is nobody's event.
        one.flows.send(flow(99, round + 1)).unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(one.service("pod events").state, "Failing");
    assert_eq!(one.service("pod events").left_out, 100);
    assert!(away.hits() < 30, "{}", away.hits());
    away.lift();
    until("three events", || (fixture.all(EVENTS).len() == 3).then_some(())).await;
    for pod in 1..=3 {
        assert_eq!(of_pod(&fixture, pod)[0]["count"], 100);
    }
    assert_eq!(one.service("pod events").error, None);
}

#[tokio::test(start_paused = true)]
async fn an_outage_after_which_another_client_is_used_costs_no_event() {
    let (fixture, one) = start(2);
    until("it leads", || one.cluster.leads().then_some(())).await;
    one.flows.send(flow(99, 443)).unwrap();
    one.flows.send(flow(1, 443)).unwrap();
    until("an event", || of_pod(&fixture, 1).first().map(|_| ())).await;
    // For good: whoever goes on with this client reaches nobody.
    one.connect(false);
    for _ in 0..120 {
        one.flows.send(flow(1, 443)).unwrap();
        one.flows.send(flow(2, 443)).unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    assert!(!one.cluster.leads() && of_pod(&fixture, 2).is_empty());
    one.cluster.reach_by(fixture.client_without_socket());
    until("it is told", || of_pod(&fixture, 2).first().map(|_| ())).await;
    assert_eq!(of_pod(&fixture, 2)[0]["count"], 120);
    until("it is counted", || (of_pod(&fixture, 1)[0]["count"] == 121).then_some(())).await;
    assert_eq!((of_pod(&fixture, 1).len(), one.service("pod events").left_out), (1, 1));
    // As who it was before, at its next look.
    until("it leads on", || one.cluster.leads().then_some(())).await;
    let lease = fixture.get("leases", "egress-enforcer", LEASE).unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
    one.cluster.end().await;
    let lease = fixture.get("leases", "egress-enforcer", LEASE).unwrap();
    assert_eq!(lease["spec"].get("holderIdentity"), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_makes_no_second_event() {
    let (fixture, one) = start(1);
    fixture.fault_times("corev1events", &[Verb::Create], Fault::Lost, 2);
    one.flows.send(flow(1, 443)).unwrap();
    sleep(Duration::from_mins(1)).await;
    assert_eq!(fixture.requests_of("events", Verb::Create).len(), 3);
    assert_eq!(of_pod(&fixture, 1).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_server_has_forgotten_is_made_anew() {
    let (fixture, one) = start(1);
    one.flows.send(flow(1, 443)).unwrap();
    sleep(Duration::from_secs(1)).await;
    let name = of_pod(&fixture, 1)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    fixture.delete(EVENTS, "app", &name);
    one.flows.send(flow(1, 443)).unwrap();
    sleep(Duration::from_mins(2)).await;
    let events = of_pod(&fixture, 1);
    assert_eq!((events.len(), &events[0]["count"]), (1, &json!(1)));
    assert_ne!(events[0]["metadata"]["name"], *name);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_goes_and_a_right_that_is_missing_are_told_apart() {
    let (fixture, one) = start(2);
    let text = "events \"p1.x\" is forbidden: unable to create new content in namespace app because it is being terminated";
    let going = Fault::Failure(Failure::new(403, "Forbidden", text));
    fixture.fault_times("corev1events", &[Verb::Create], going, 1);
    one.flows.send(flow(1, 443)).unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(one.service("pod events").state, "Working");
    assert_eq!(one.service("pod events").left_out, 1);
    let forbidden = fixture.fault("corev1events", &Verb::ALL, Fault::Forbidden);
    one.flows.send(flow(2, 443)).unwrap();
    let state = one.until_state("pod events", "NotAllowed").await;
    let text = "the service account may not create events: pods have no events of denied egress";
    assert_eq!(state.error.as_deref(), Some(text));
    sleep(Duration::from_mins(4)).await;
    assert!(forbidden.hits() <= 9, "it is asked for {} times", forbidden.hits());
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_refuses_events_silences_nobody_else() {
    let (fixture, one) = start(2);
    let text =
        "admission webhook \"events.example.com\" denied the request: agents cannot create events here";
    let refused = Fault::Failure(Failure::new(403, "Forbidden", text));
    let refused = fixture.fault_times("corev1events", &[Verb::Create], refused, 1);
    one.flows.send(flow(1, 443)).unwrap();
    until("it is refused", || (refused.hits() == 1).then_some(())).await;
    one.flows.send(flow(2, 443)).unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!((of_pod(&fixture, 1).len(), of_pod(&fixture, 2).len()), (0, 1));
    let service = one.service("pod events");
    assert_eq!((service.state.as_str(), service.error, service.left_out), ("Working", None, 1));
}

#[tokio::test(start_paused = true)]
async fn what_failed_and_is_over_is_no_failure_any_more() {
    let (fixture, one) = start(2);
    let away = fixture.fault("corev1events", &Verb::ALL, Fault::Unavailable);
    one.flows.send(flow(1, 443)).unwrap();
    one.until_state("pod events", "Failing").await;
    sleep(Duration::from_mins(12)).await;
    away.lift();
    // Nothing is denied any more, so that nothing is written that could go right.
    sleep(Duration::from_mins(12)).await;
    let service = one.service("pod events");
    assert!(service.error.is_none() && service.state != "Failing", "{service:?}");
    assert_eq!(service.left_out + service.written, 1, "{service:?}");
}
