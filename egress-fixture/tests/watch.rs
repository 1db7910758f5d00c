//! Watches as the real server keeps them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Next, get, pod, watch, with_pods};
use egress_fixture::{Fixture, Settings, StreamingLists};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use serde_json::json;

const PODS: &str = "/api/v1/pods?watch=true";
const POLICIES: &str = "/apis/egress-enforcer.io/v1alpha1/egressgatewaypolicies?watch=true";

fn is(event: &(String, String, String), kind: &str, name: &str, version: u64) -> bool {
    *event == (kind.to_owned(), name.to_owned(), version.to_string())
}

#[tokio::test]
async fn a_watch_says_every_change_after_its_version_once_and_in_order() {
    let fixture = with_pods(2);
    let from = fixture.version();
    let changed = fixture.apply("pods", "default", "p0", &pod(9));
    fixture.apply("nodes", "", "a", &json!({}));
    let client = fixture.client().unwrap();
    let mut lines = watch(&client, &format!("{PODS}&resourceVersion={from}")).await;
    let new = fixture.apply("pods", "default", "p2", &pod(2));
    fixture.delete("pods", "default", "p1");
    assert!(is(&lines.short().await, "MODIFIED", "p0", changed));
    assert!(is(&lines.short().await, "ADDED", "p2", new));
    // A deleted object has the version of its deletion.
    assert!(is(&lines.short().await, "DELETED", "p1", new + 1));
    // A write that changes nothing says nothing.
    fixture.apply("pods", "default", "p2", &pod(2));
    assert_eq!(lines.next_within(Duration::from_millis(100)).await, Next::Silence);
}

#[tokio::test]
async fn events_name_their_kind_and_kubes_client_reads_them() {
    let fixture = with_pods(1);
    let client = fixture.client().unwrap();
    let pods: Api<Pod> = Api::all(client.clone());
    let list = pods.list(&ListParams::default()).await.unwrap();
    let params = WatchParams::default();
    let mut events =
        pods.watch(&params, list.metadata.resource_version.as_deref().unwrap()).await.unwrap().boxed();
    fixture.until_watches("pods", 1).await;
    fixture.delete("pods", "default", "p0");
    let Some(WatchEvent::Deleted(gone)) = events.try_next().await.unwrap() else { panic!() };
    assert_eq!(gone.metadata.name.as_deref(), Some("p0"));
    fixture.bookmark_watches("pods");
    let Some(WatchEvent::Bookmark(mark)) = events.try_next().await.unwrap() else { panic!() };
    assert_eq!(mark.metadata.resource_version, fixture.version().to_string());
    drop(events);
    // A client that goes away leaves no watch.
    fixture.until_watches("pods", 0).await;
    let mut lines = watch(&client, &format!("{PODS}&resourceVersion={}", fixture.version())).await;
    fixture.apply("pods", "default", "p1", &pod(1));
    let event = lines.next().await.event();
    assert_eq!((&event["object"]["kind"], &event["object"]["apiVersion"]), (&json!("Pod"), &json!("v1")));
}

#[tokio::test]
async fn without_a_version_a_watch_begins_with_what_is_there() {
    let fixture = with_pods(2);
    let client = fixture.client().unwrap();
    for query in ["", "&resourceVersion=0"] {
        let mut lines = watch(&client, &format!("{PODS}{query}")).await;
        assert_eq!(lines.short().await.0, "ADDED");
        assert_eq!(lines.short().await.1, "p1");
        assert_eq!(lines.next_within(Duration::from_millis(50)).await, Next::Silence);
    }
}

#[tokio::test]
async fn a_watch_from_too_far_back_says_so_in_its_stream_or_by_its_answer() {
    let fixture = with_pods(3);
    fixture.keep_history(1);
    fixture.apply("pods", "default", "p3", &pod(3));
    let oldest = fixture.version() - 1;
    let client = fixture.client().unwrap();
    let path = format!("{PODS}&resourceVersion=2");
    let mut lines = watch(&client, &path).await;
    let event = lines.next().await.event();
    assert_eq!(event["type"], "ERROR");
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("too old resource version: 2 ({oldest})"), "reason": "Expired", "code": 410,
    });
    assert_eq!(event["object"], status);
    assert_eq!(lines.next().await, Next::Ended(String::new()));
    fixture.set(|settings| settings.gone_as_answer = true);
    let gone = get(&client, &path).await;
    assert_eq!((gone.code, gone.json()), (410, status));
    // The oldest that it reaches is not too old.
    let mut lines = watch(&client, &format!("{PODS}&resourceVersion={oldest}")).await;
    assert_eq!(lines.short().await.1, "p3");
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_marked_bookmark() {
    let fixture = with_pods(2);
    let at = fixture.version();
    let client = fixture.client().unwrap();
    let ask = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut lines = watch(&client, &format!("{PODS}{ask}")).await;
    assert_eq!((lines.short().await.1, lines.short().await.1), ("p0".to_owned(), "p1".to_owned()));
    let mark = lines.next().await.event();
    assert_eq!((mark["type"].as_str(), mark["object"]["kind"].as_str()), (Some("BOOKMARK"), Some("Pod")));
    let metadata = &mark["object"]["metadata"];
    assert_eq!(metadata["resourceVersion"], at.to_string());
    assert_eq!(metadata["annotations"], json!({ "k8s.io/initial-events-end": "true" }));
    let new = fixture.apply("pods", "default", "p2", &pod(2));
    assert!(is(&lines.short().await, "ADDED", "p2", new));
    // An empty collection has its bookmark, too; and without bookmarks there is none.
    let mut lines = watch(&client, &format!("{POLICIES}{ask}")).await;
    assert_eq!(lines.next().await.event()["object"]["kind"], "EgressGatewayPolicy");
    let ask = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut lines = watch(&client, &format!("{POLICIES}{ask}")).await;
    assert_eq!(lines.next_within(Duration::from_millis(50)).await, Next::Silence);
    // kube's client reads it.
    let pods: Api<Pod> = Api::all(client);
    let events = pods.watch(&WatchParams::default().initial_events(), "0").await.unwrap();
    let events: Vec<_> = events.take(4).try_collect().await.unwrap();
    assert!(
        matches!(&events[3], WatchEvent::Bookmark(mark) if mark.metadata.annotations.contains_key("k8s.io/initial-events-end"))
    );
}

#[tokio::test]
async fn servers_without_streaming_lists_refuse_them_in_their_own_words() {
    let fixture = with_pods(1);
    let client = fixture.client().unwrap();
    let ask = async |query: &str| get(&client, &format!("{PODS}{query}")).await;
    let full = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=0";
    fixture.set(|settings: &mut Settings| settings.streaming_lists = StreamingLists::GateOff);
    let refused = ask(full).await;
    assert_eq!((refused.code, refused.json()["reason"].as_str()), (422, Some("Invalid")));
    let text = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for \
                watch unless the WatchList feature gate is enabled";
    assert_eq!(refused.message(), text);
    fixture.set(|settings: &mut Settings| settings.streaming_lists = StreamingLists::Unknown);
    let refused = ask(full).await;
    let text = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch";
    assert_eq!((refused.code, refused.message().as_str()), (422, text));
    fixture.set(|settings: &mut Settings| settings.streaming_lists = StreamingLists::On);
    let refused = ask("&sendInitialEvents=true").await;
    assert!(
        refused
            .message()
            .ends_with("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
    );
    assert_eq!(ask("&resourceVersionMatch=NotOlderThan").await.code, 422);
}

#[tokio::test(start_paused = true)]
async fn bookmarks_come_every_minute_and_before_the_end() {
    let fixture = with_pods(1);
    let client = fixture.client_without_socket();
    let from = fixture.version();
    let begun = tokio::time::Instant::now();
    let path = format!("{PODS}&resourceVersion={from}&timeoutSeconds=100");
    let mut marked = watch(&client, &format!("{path}&allowWatchBookmarks=true")).await;
    fixture.apply("nodes", "", "a", &json!({}));
    let long = Duration::from_secs(200);
    let mark = marked.next_within(long).await.event();
    assert_eq!((mark["type"].as_str(), begun.elapsed().as_secs()), (Some("BOOKMARK"), 60));
    // The version of everything that it knows it has said, not of its last event.
    assert_eq!(mark["object"]["metadata"]["resourceVersion"], (from + 1).to_string());
    assert_eq!(marked.next_within(long).await.event()["type"], "BOOKMARK");
    assert_eq!(begun.elapsed().as_secs(), 98);
    assert_eq!(marked.next_within(long).await, Next::Ended(String::new()));
    assert_eq!(begun.elapsed().as_secs(), 100);
    let mut unmarked = watch(&client, &path).await;
    assert_eq!(unmarked.next_within(long).await, Next::Ended(String::new()));
}

#[tokio::test]
async fn a_watch_of_a_custom_resource_ends_with_its_definition() {
    let fixture = Fixture::start().unwrap();
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({ "spec": {} }));
    let client = fixture.client().unwrap();
    let mut lines = watch(&client, &format!("{POLICIES}&resourceVersion={}", fixture.version())).await;
    fixture.remove_definition();
    fixture.until_watches("egressgatewaypolicies", 0).await;
    // Whether the deletion of its objects is still said is a race in the real server, too.
    match lines.next().await {
        Next::Event(event) => assert_eq!(event["type"], "DELETED"),
        other => assert_eq!(other, Next::Ended(String::new())),
    }
}

#[tokio::test]
async fn a_name_narrows_a_watch() {
    let fixture = Fixture::start().unwrap();
    let client = fixture.client().unwrap();
    let mut lines = watch(&client, "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Db").await;
    fixture.apply("nodes", "", "a", &json!({}));
    fixture.apply("nodes", "", "b", &json!({}));
    assert_eq!(lines.short().await.1, "b");
}
