//! Lists and gets as the real server answers them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{get, pod, with_pods};
use egress_fixture::{Fixture, Settings};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/pods";

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn items_of_built_in_kinds_do_not_name_their_kind_and_custom_ones_do() {
    let fixture = with_pods(1);
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({ "spec": {} }));
    let client = fixture.client().unwrap();
    let list = get(&client, PODS).await.json();
    assert_eq!((list["kind"].as_str(), list["apiVersion"].as_str()), (Some("PodList"), Some("v1")));
    assert_eq!(list["items"][0].get("kind"), None);
    assert_eq!(list["metadata"]["resourceVersion"], fixture.version().to_string());
    let list = get(&client, "/apis/egress-enforcer.io/v1alpha1/egressgatewaypolicies").await.json();
    assert_eq!(list["items"][0]["kind"], "EgressGatewayPolicy");
    assert_eq!(list["items"][0]["metadata"]["generation"], 1);
    let one = get(&client, "/api/v1/namespaces/default/pods/p0").await.json();
    assert_eq!((one["kind"].as_str(), one["metadata"]["namespace"].as_str()), (Some("Pod"), Some("default")));
    let pods: Api<Pod> = Api::all(client);
    let all = pods.list(&ListParams::default()).await.unwrap();
    assert_eq!(all.items[0].status.as_ref().unwrap().pod_ip.as_deref(), Some("10.0.0.0"));
}

#[tokio::test]
async fn pages_are_of_one_moment_and_expire() {
    let fixture = with_pods(5);
    let client = fixture.client().unwrap();
    let first = get(&client, &format!("{PODS}?limit=2")).await.json();
    assert_eq!(names(&first), ["p0", "p1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap();
    // What comes and goes between the pages is not in them.
    fixture.delete("pods", "default", "p3");
    fixture.apply("pods", "default", "p2a", &pod(9));
    let second = get(&client, &format!("{PODS}?limit=2&continue={token}")).await.json();
    assert_eq!(names(&second), ["p2", "p3"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap().to_owned();
    fixture.forget_history();
    let gone = get(&client, &format!("{PODS}?limit=2&continue={token}")).await;
    assert_eq!((gone.code, gone.json()["reason"].as_str()), (410, Some("Expired")));
    assert!(gone.message().starts_with("The provided continue parameter is too old"));
    // The token that comes with the refusal goes on with what is there now.
    let token = gone.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = get(&client, &format!("{PODS}?limit=2&continue={token}")).await.json();
    assert_eq!(names(&rest), ["p4"]);
    assert_eq!(rest["metadata"].get("continue"), None);
    assert_eq!(rest["metadata"]["resourceVersion"], fixture.version().to_string());
}

#[tokio::test]
async fn a_namespace_and_a_name_narrow_a_list_and_other_selectors_are_refused() {
    let fixture = with_pods(2);
    fixture.apply("pods", "kube-system", "p0", &pod(7));
    let client = fixture.client().unwrap();
    assert_eq!(names(&get(&client, "/api/v1/namespaces/kube-system/pods").await.json()), ["p0"]);
    assert_eq!(
        names(&get(&client, &format!("{PODS}?fieldSelector=metadata.name%3Dp1")).await.json()),
        ["p1"]
    );
    assert_eq!(get(&client, &format!("{PODS}?labelSelector=a%3Db")).await.code, 400);
    assert_eq!(get(&client, &format!("{PODS}?fieldSelector=spec.nodeName%3Da")).await.code, 400);
}

#[tokio::test]
async fn resource_versions_of_lists_mean_what_they_should() {
    let fixture = with_pods(2);
    let before = fixture.version();
    fixture.apply("pods", "default", "p2", &pod(2));
    let client = fixture.client().unwrap();
    let ask = async |query: &str| get(&client, &format!("{PODS}?{query}")).await;
    // Any version: from the cache, which takes no notice of the limit.
    let any = ask("resourceVersion=0&limit=1").await.json();
    assert_eq!(names(&any).len(), 3);
    assert_eq!(any["metadata"].get("continue"), None);
    assert_eq!(names(&ask(&format!("resourceVersion={before}")).await.json()).len(), 3);
    let exact = ask(&format!("resourceVersion={before}&resourceVersionMatch=Exact")).await.json();
    assert_eq!(names(&exact), ["p0", "p1"]);
    assert_eq!(exact["metadata"]["resourceVersion"], before.to_string());
    // With a limit a version is exact.
    assert_eq!(names(&ask(&format!("resourceVersion={before}&limit=9")).await.json()), ["p0", "p1"]);
    let none = ask("resourceVersionMatch=Exact").await;
    assert_eq!(none.code, 422);
    let text = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is \
                forbidden unless resourceVersion is provided";
    assert_eq!(none.message(), text);
    assert_eq!(none.json()["details"]["causes"][0]["reason"], "FieldValueForbidden");
    assert_eq!(ask("resourceVersion=x").await.code, 400);
    assert_eq!(ask("sendInitialEvents=true").await.code, 422);
    fixture.forget_history();
    let gone = ask(&format!("resourceVersion={before}&resourceVersionMatch=Exact")).await;
    assert_eq!((gone.code, gone.json()["reason"].as_str()), (410, Some("Expired")));
}

#[tokio::test(start_paused = true)]
async fn a_version_from_the_future_is_waited_for_and_then_refused() {
    let fixture = with_pods(1);
    let client = fixture.client_without_socket();
    let next = fixture.version() + 1;
    let path = format!("{PODS}?resourceVersion={next}");
    let waits = get(&client, &path);
    let comes = async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        fixture.apply("pods", "default", "p1", &pod(1));
    };
    let (list, ()) = futures::join!(waits, comes);
    assert_eq!(names(&list.json()).len(), 2);
    let late = get(&client, &format!("{PODS}?resourceVersion=1000")).await;
    assert_eq!((late.code, late.retry_after.as_deref()), (504, Some("1")));
    assert_eq!(late.message(), format!("Timeout: Too large resource version: 1000, current: {next}"));
    assert_eq!(late.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_real_servers_words() {
    let fixture = Fixture::start().unwrap();
    let client = fixture.client().unwrap();
    let none = get(&client, "/api/v1/namespaces/default/pods/x").await;
    assert_eq!(none.code, 404);
    assert_eq!(
        none.json(),
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "pods \"x\" not found", "reason": "NotFound",
            "details": { "name": "x", "kind": "pods" }, "code": 404,
        })
    );
    let none = get(&client, "/apis/coordination.k8s.io/v1/namespaces/default/leases/x").await;
    assert_eq!(none.message(), "leases.coordination.k8s.io \"x\" not found");
    // What was not taught is not there either.
    let none = get(&client, "/apis/apps/v1/deployments").await;
    assert_eq!((none.code, none.text.as_str()), (404, "404 page not found\n"));
}

#[tokio::test]
async fn a_custom_resource_is_there_while_its_definition_is() {
    let path = "/apis/egress-enforcer.io/v1alpha1/egressgatewaypolicies";
    let fixture = Fixture::start().unwrap();
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({ "spec": {} }));
    let client = fixture.client().unwrap();
    fixture.remove_definition();
    let none = get(&client, path).await;
    assert_eq!((none.code, none.text.as_str()), (404, "404 page not found\n"));
    fixture.set(|settings: &mut Settings| settings.newer_not_found = true);
    let none = get(&client, path).await;
    assert_eq!(none.message(), "the server could not find the requested resource");
    fixture.install_definition();
    let list = get(&client, path).await;
    assert_eq!((list.code, names(&list.json()).len()), (200, 0));
}

#[tokio::test]
async fn requests_are_recorded() {
    let fixture = with_pods(1);
    let client = fixture.client().unwrap();
    get(&client, &format!("{PODS}?limit=2&resourceVersion=0")).await;
    let asked = fixture.requests_of("pods", egress_fixture::Verb::List);
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].method.as_str(), asked[0].path.as_str()), ("GET", PODS));
    assert_eq!((asked[0].query["limit"].as_str(), asked[0].query["resourceVersion"].as_str()), ("2", "0"));
}
