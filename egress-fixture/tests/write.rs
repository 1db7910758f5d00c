//! Writes as the real server takes or refuses them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{pod, send, with_pods};
use egress_fixture::Fixture;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/egress-enforcer/leases";
const POLICY: &str = "/apis/egress-enforcer.io/v1alpha1/egressgatewaypolicies/mesh";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

#[tokio::test]
async fn a_write_from_an_older_version_is_a_conflict() {
    let fixture = Fixture::start().unwrap();
    let leases: Api<Lease> = Api::namespaced(fixture.client().unwrap(), "egress-enforcer");
    let now = jiff::Timestamp::now();
    let lease = Lease {
        metadata: ObjectMeta { name: Some("leader".to_owned()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some("a".to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    };
    let params = PostParams::default();
    let mut made = leases.create(&params, &lease).await.unwrap();
    let error = leases.create(&params, &lease).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(status.message, "leases.coordination.k8s.io \"leader\" already exists");
    let old = made.clone();
    made.spec.as_mut().unwrap().holder_identity = Some("b".to_owned());
    let newer = leases.replace("leader", &params, &made).await.unwrap();
    assert_ne!(newer.metadata.resource_version, old.metadata.resource_version);
    let error = leases.replace("leader", &params, &old).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let text = "Operation cannot be fulfilled on leases.coordination.k8s.io \"leader\": the object has been modified; please \
                apply your changes to the latest version and try again";
    assert_eq!(status.message, text);
    // Without a version the kind's registry decides.
    let mut blind = newer.clone();
    blind.metadata.resource_version = None;
    let error = leases.replace("leader", &params, &blind).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!(status.code, 422);
    leases.delete("leader", &DeleteParams::default()).await.unwrap();
    // A PUT makes a lease that is gone, as its strategy allows.
    leases.replace("leader", &params, &newer).await.unwrap();
    assert!(fixture.get("leases", "egress-enforcer", "leader").is_some());
}

#[tokio::test]
async fn a_patch_can_name_the_version_it_expects() {
    let fixture = with_pods(1);
    let client = fixture.client().unwrap();
    let path = "/api/v1/namespaces/default/pods/p0";
    let old = fixture.version();
    let done = send(&client, "PATCH", path, MERGE, &json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!((done.code, done.json()["metadata"]["labels"].clone()), (200, json!({"a": "b"})));
    let stale = json!({"metadata": {"resourceVersion": old.to_string(), "labels": {"a": null}}});
    assert_eq!(send(&client, "PATCH", path, MERGE, &stale).await.code, 409);
    let done = send(&client, "PATCH", path, MERGE, &json!({"metadata": {"labels": null}})).await;
    assert_eq!(done.json()["metadata"].get("labels"), None);
    let before = fixture.version();
    send(&client, "PATCH", path, MERGE, &json!({"metadata": {"labels": null}})).await;
    assert_eq!(fixture.version(), before, "a patch that changes nothing is no write");
    assert_eq!(
        send(&client, "PATCH", path, "application/strategic-merge-patch+json", &json!({})).await.code,
        415
    );
}

#[tokio::test]
async fn a_json_patch_whose_test_fails_cannot_be_processed() {
    let fixture = Fixture::start().unwrap();
    let taints = json!([{"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "NoExecute"}]);
    fixture.apply("nodes", "", "n", &json!({"spec": {"taints": taints}}));
    let client = fixture.client().unwrap();
    let patch = |key: &str| {
        json!([
            {"op": "test", "path": "/spec/taints/1/key", "value": key},
            {"op": "remove", "path": "/spec/taints/1"},
        ])
    };
    let media = "application/json-patch+json";
    let refused = send(&client, "PATCH", "/api/v1/nodes/n", media, &patch("x")).await;
    assert_eq!((refused.code, refused.json()["reason"].as_str()), (422, Some("Invalid")));
    assert_eq!(refused.message(), "the server rejected our request due to an error in our request");
    let done = send(&client, "PATCH", "/api/v1/nodes/n", media, &patch("b")).await;
    assert_eq!(done.json()["spec"]["taints"], json!([{"key": "a", "effect": "NoSchedule"}]));
}

#[tokio::test]
async fn status_and_the_rest_are_written_apart_and_generation_counts_the_rest() {
    let fixture = Fixture::start().unwrap();
    fixture.apply("egressgatewaypolicies", "", "mesh", &json!({"spec": {"enforcement": "Enforce"}}));
    let client = fixture.client().unwrap();
    let both = json!({"spec": {"enforcement": "Audit"}, "status": {"subjects": 3}});
    let status = send(&client, "PATCH", &format!("{POLICY}/status"), MERGE, &both).await.json();
    assert_eq!(
        (&status["spec"]["enforcement"], &status["status"]["subjects"]),
        (&json!("Enforce"), &json!(3))
    );
    assert_eq!(status["metadata"]["generation"], 1);
    let both = json!({"spec": {"enforcement": "Audit"}, "status": {"subjects": 4}});
    let rest = send(&client, "PATCH", POLICY, MERGE, &both).await.json();
    assert_eq!((&rest["spec"]["enforcement"], &rest["status"]["subjects"]), (&json!("Audit"), &json!(3)));
    assert_eq!(rest["metadata"]["generation"], 2);
    // A PUT of the status with a stale version is a conflict, as any other.
    let mut stale = rest.clone();
    stale["metadata"]["resourceVersion"] = "2".into();
    assert_eq!(send(&client, "PUT", &format!("{POLICY}/status"), JSON, &stale).await.code, 409);
    assert_eq!(send(&client, "PUT", &format!("{POLICY}/status"), JSON, &rest).await.code, 200);
    assert_eq!(send(&client, "PATCH", &format!("{POLICY}x/status"), MERGE, &both).await.code, 404);
}

#[tokio::test]
async fn an_apply_needs_a_manager_and_makes_what_is_not_there() {
    let fixture = Fixture::start().unwrap();
    let client = fixture.client().unwrap();
    let media = "application/apply-patch+yaml";
    let object =
        json!({"apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy", "spec": {"a": 1}});
    let refused = send(&client, "PATCH", POLICY, media, &object).await;
    let text =
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
    assert_eq!((refused.code, refused.message().as_str()), (422, text));
    let named = format!("{POLICY}?fieldManager=t");
    assert_eq!(send(&client, "PATCH", &named, media, &object).await.code, 201);
    assert_eq!(send(&client, "PATCH", &named, media, &object).await.code, 200);
    assert_eq!(fixture.get("egressgatewaypolicies", "", "mesh").unwrap()["spec"]["a"], 1);
}

#[tokio::test]
async fn what_does_not_fit_its_path_is_refused() {
    let fixture = with_pods(1);
    let client = fixture.client().unwrap();
    let pods = "/api/v1/namespaces/default/pods";
    let ask = async |method: &str, path: &str, body: Value| send(&client, method, path, JSON, &body).await;
    let refused = ask("POST", pods, json!({"metadata": {"name": "x", "namespace": "other"}})).await;
    assert_eq!(refused.code, 400);
    assert!(refused.message().starts_with("the namespace of the provided object does not match"));
    let refused = ask("POST", "/api/v1/namespaces/none/pods", json!({"metadata": {"name": "x"}})).await;
    assert_eq!((refused.code, refused.message().as_str()), (404, "namespaces \"none\" not found"));
    let refused = ask("PUT", &format!("{pods}/p0"), json!({"metadata": {"name": "p1"}})).await;
    assert_eq!(refused.message(), "the name of the object (p1) does not match the name on the URL (p0)");
    assert_eq!(ask("POST", pods, json!({"metadata": {"generateName": "g-"}})).await.code, 201);
    assert_eq!(ask("POST", pods, json!([])).await.code, 400);
    assert_eq!(ask("PUT", &format!("{pods}/none"), json!({"metadata": {"name": "none"}})).await.code, 404);
    let other = json!({"metadata": {"name": "p0", "uid": "other"}});
    assert_eq!(ask("PUT", &format!("{pods}/p0"), other).await.code, 409);
}

#[tokio::test]
async fn deletions_have_preconditions() {
    let fixture = with_pods(1);
    fixture.apply("networkpolicies", "default", "n", &json!({"spec": {}}));
    let client = fixture.client().unwrap();
    let path = "/api/v1/namespaces/default/pods/p0";
    let wrong = json!({"preconditions": {"uid": "x"}});
    let refused = send(&client, "DELETE", path, JSON, &wrong).await;
    assert_eq!(refused.code, 409);
    assert!(
        refused.message().contains("Precondition failed: UID in precondition: x, UID in object meta: 0000")
    );
    let gone = send(&client, "DELETE", path, JSON, &json!({})).await.json();
    assert_eq!(gone["kind"], "Pod");
    let path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/n";
    let gone = send(&client, "DELETE", path, JSON, &json!({})).await.json();
    assert_eq!(
        (&gone["status"], &gone["details"]["group"]),
        (&json!("Success"), &json!("networking.k8s.io"))
    );
    assert_eq!(send(&client, "DELETE", path, JSON, &json!({})).await.code, 404);
}

fn event() -> Value {
    json!({
        "metadata": {"name": "e", "namespace": "default"},
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p0"},
        "eventTime": "2026-01-02T03:04:05.000006Z", "type": "Warning", "reason": "EgressDenied", "action": "Egress",
        "note": "n", "reportingController": "egress-enforcer.io/agent", "reportingInstance": "node-a",
    })
}

#[tokio::test]
async fn events_are_checked_as_strictly_as_by_the_real_server() {
    let fixture = with_pods(1);
    let client = fixture.client().unwrap();
    let ask = async |method: &str, path: &str, body: &Value| send(&client, method, path, JSON, body).await;
    for (field, value, said) in [
        ("eventTime", Value::Null, "eventTime: Required value"),
        ("type", json!("Bad"), "type: Invalid value: \"\": has invalid value: Bad"),
        ("action", Value::Null, "action: Required value"),
        ("reportingInstance", json!("x".repeat(129)), "can have at most 128 characters"),
        ("note", json!("x".repeat(1025)), "message: Invalid value: \"\": can have at most 1024 characters"),
        ("deprecatedCount", json!(1), "count: Invalid value: \"\": needs to be unset"),
        (
            "series",
            json!({"count": 1, "lastObservedTime": "2026-01-02T03:04:05.000006Z"}),
            "should be at least 2",
        ),
    ] {
        let mut bad = event();
        bad[field] = value;
        let refused = ask("POST", EVENTS, &bad).await;
        assert_eq!(refused.code, 422, "{field}");
        assert!(refused.message().contains(said), "{}", refused.message());
    }
    let mut bad = event();
    bad["eventTime"] = "2026-01-02T03:04:05Z".into();
    let refused = ask("POST", EVENTS, &bad).await;
    assert_eq!(refused.code, 400);
    assert!(refused.message().contains("as \"2006-01-02T15:04:05.000000Z07:00\""), "{}", refused.message());
    assert_eq!(ask("POST", EVENTS, &event()).await.code, 201);
    // Only the series may change.
    let path = format!("{EVENTS}/e");
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-02T03:05:05.000006Z"}});
    assert_eq!(send(&client, "PATCH", &path, MERGE, &series).await.code, 200);
    let refused = send(&client, "PATCH", &path, MERGE, &json!({"note": "other"})).await;
    assert_eq!(refused.code, 422);
    assert!(refused.message().contains("message: Invalid value: \"other\": field is immutable"));
    // Those of the core group need only agree on the namespace.
    let path = "/api/v1/namespaces/default/events";
    let mut core =
        json!({"metadata": {"name": "c"}, "involvedObject": {"kind": "Pod", "namespace": "default"}});
    assert_eq!(ask("POST", path, &core).await.code, 201);
    core["involvedObject"]["namespace"] = "other".into();
    assert!(ask("POST", path, &core).await.message().contains("does not match event.namespace"));
}

#[tokio::test]
async fn leases_are_checked() {
    let fixture = Fixture::start().unwrap();
    let client = fixture.client().unwrap();
    for (field, value, code) in [
        ("leaseDurationSeconds", json!(0), 422),
        ("leaseTransitions", json!(-1), 422),
        ("renewTime", json!("2026-01-02T03:04:05.123Z"), 400),
        ("renewTime", json!("2026-01-02T03:04:05.123456Z"), 201),
    ] {
        let lease = json!({"metadata": {"name": "l"}, "spec": {field: value}});
        assert_eq!(send(&client, "POST", LEASES, JSON, &lease).await.code, code, "{field}");
    }
}

#[tokio::test]
async fn what_rust_calls_put_there_is_taken_as_given() {
    let fixture = Fixture::start().unwrap();
    let mut gone = pod(1);
    gone["metadata"] = json!({"deletionTimestamp": "2026-01-02T03:04:05Z", "labels": ["a", "list"]});
    fixture.apply("pods", "nowhere", "x", &gone);
    let kept = fixture.get("pods", "nowhere", "x").unwrap();
    assert_eq!(kept["metadata"]["labels"], json!(["a", "list"]));
    assert_eq!(kept["status"]["podIP"], "10.0.0.1");
    assert!(fixture.edit("pods", "nowhere", "x", |pod| pod["status"]["phase"] = "Failed".into()));
    let again = fixture.get("pods", "nowhere", "x").unwrap();
    assert_eq!(again["metadata"]["uid"], kept["metadata"]["uid"]);
    assert_eq!(again["status"]["phase"], "Failed");
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::all(fixture.client().unwrap());
    assert!(matches!(pods.list(&kube::api::ListParams::default()).await, Err(kube::Error::SerdeError(_))));
}
