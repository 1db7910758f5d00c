//! The fixture answers as a real API server did: every question here was put to one, and its answers are in `real.json`, with
//! what differs from run to run masked.
//!
//! `EGRESS_FIXTURE_REAL` names the kubeconfig of a cluster administrator: then the real server is asked as well, and must
//! answer as it did; with `EGRESS_FIXTURE_BLESS` its answers are written down instead. It is left with a namespace, a
//! definition and a few small objects more. Its API server must have been started again since its first start: only then is
//! the first resource version too old for it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Next, send, watch};
use egress_fixture::{Fault, Fixture, Verb};
use http::Request;
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Map, Value, json};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STEPS: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const GROUP: &str = "/apis/egress-enforcer.io/v1alpha1";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const USER: &str = "system:serviceaccount:egress-enforcer:egress-agent";

type Answers = BTreeMap<String, Value>;

/// Asks one server, and notes its answers.
struct Asker<'a> {
    client: &'a Client,
    /// Makes names of this run.
    run: String,
    answers: Answers,
}

/// Numbers differ from run to run.
fn masked(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let digit = c.is_ascii_digit();
        if !digit {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out
}

fn mask(value: &Value) -> Value {
    match value {
        Value::String(text) => masked(text).into(),
        Value::Array(items) => items.iter().map(mask).collect(),
        Value::Object(fields) => {
            // Whatever field order and time stamps there are.
            let drop = ["managedFields", "uid", "creationTimestamp"];
            let kept =
                fields.iter().filter(|(name, value)| !drop.contains(&name.as_str()) || value.is_null());
            kept.map(|(name, value)| (name.clone(), mask(value))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

impl Asker<'_> {
    fn name(&self, base: &str) -> String {
        format!("{base}{}", self.run)
    }

    async fn ask(&mut self, what: &str, method: &str, path: &str, media: &str, body: &Value) -> Value {
        let said = send(self.client, method, path, media, body).await;
        let answer = serde_json::from_str(&said.text).unwrap_or_else(|_| Value::String(said.text.clone()));
        let noted = json!({ "code": said.code, "retryAfter": said.retry_after, "body": mask(&answer) });
        self.note(what, noted);
        answer
    }

    /// The same where only how it ended is of interest: a success has defaults of the kind in it.
    async fn code(&mut self, what: &str, method: &str, path: &str, media: &str, body: &Value) -> Value {
        let said = send(self.client, method, path, media, body).await;
        self.note(what, json!({ "code": said.code }));
        serde_json::from_str(&said.text).unwrap_or_default()
    }

    fn note(&mut self, what: &str, answer: Value) {
        assert!(self.answers.insert(what.to_owned(), answer).is_none(), "{what} twice");
    }

    async fn get(&mut self, what: &str, path: &str) -> Value {
        self.ask(what, "GET", path, JSON, &Value::Null).await
    }

    /// The first lines of a watch, until a bookmark, an end, or enough.
    async fn lines(&mut self, what: &str, path: &str, most: usize) {
        let mut lines = watch(self.client, path).await;
        let mut noted = Vec::new();
        while noted.len() < most {
            match lines.next_within(Duration::from_secs(5)).await {
                Next::Event(event) => {
                    let mark = event["type"] == "BOOKMARK";
                    noted.push(mask(&event));
                    if mark {
                        break;
                    }
                }
                Next::Silence => break,
                other => {
                    noted.push(format!("{other:?}").into());
                    break;
                }
            }
        }
        self.note(what, noted.into());
    }
}

/// Everything that is asked of both.
async fn questions(client: &Client, run: &str) -> Answers {
    let mut asker = Asker { client, run: run.to_owned(), answers: Answers::new() };
    let namespace = asker.name("twin");
    let made = json!({ "metadata": { "name": namespace } });
    asker.code("a namespace", "POST", "/api/v1/namespaces", JSON, &made).await;
    nothing_there(&mut asker, &namespace).await;
    lists(&mut asker).await;
    leases(&mut asker, &namespace).await;
    patches(&mut asker, &namespace).await;
    events(&mut asker, &namespace).await;
    definitions(&mut asker).await;
    watches(&mut asker, &namespace).await;
    asker.answers
}

async fn nothing_there(asker: &mut Asker<'_>, namespace: &str) {
    asker.get("a pod that is not there", &format!("/api/v1/namespaces/{namespace}/pods/none")).await;
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    asker.get("a lease that is not there", &format!("{leases}/none")).await;
    asker.get("a resource that is not served", "/apis/nobody.example/v1/things").await;
    let patch = json!({ "metadata": { "labels": { "a": "b" } } });
    asker.ask("a patch of nothing", "PATCH", &format!("{leases}/none"), MERGE, &patch).await;
    asker.ask("a deletion of nothing", "DELETE", &format!("{leases}/none"), JSON, &Value::Null).await;
    let pod =
        json!({ "metadata": { "name": "x" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    asker.ask("a pod in no namespace", "POST", "/api/v1/namespaces/nowhere/pods", JSON, &pod).await;
}

async fn lists(asker: &mut Asker<'_>) {
    let nodes = "/api/v1/nodes";
    asker.get("a list with a match and no version", &format!("{nodes}?resourceVersionMatch=Exact")).await;
    asker
        .get(
            "a list at exactly any version",
            &format!("{nodes}?resourceVersion=0&resourceVersionMatch=Exact"),
        )
        .await;
    asker
        .get("a list with a match that is none", &format!("{nodes}?resourceVersion=1&resourceVersionMatch=X"))
        .await;
    asker.get("a list at no number", &format!("{nodes}?resourceVersion=x")).await;
    asker.get("a list with initial events", &format!("{nodes}?sendInitialEvents=true")).await;
    asker.get("a list from the future", &format!("{nodes}?resourceVersion=900000000")).await;
    for number in 0..3 {
        let node = json!({ "metadata": { "name": asker.name(&format!("n{}-", ["a", "b", "c"][number])) } });
        asker.code(&format!("node {number}"), "POST", nodes, JSON, &node).await;
    }
    let list = send(asker.client, "GET", &format!("{nodes}?limit=1"), JSON, &Value::Null).await.json();
    let item = &list["items"][0];
    let fields = (item.get("kind").is_some(), list["metadata"].get("continue").is_some());
    let shape = json!({
        "kind": list["kind"], "apiVersion": list["apiVersion"], "items": list["items"].as_array().map(Vec::len),
        "items name their kind": fields.0, "goes on": fields.1,
    });
    asker.note("a page", shape);
    let token = list["metadata"]["continue"].as_str().unwrap().to_owned();
    let both = format!("{nodes}?limit=1&resourceVersion=5&continue={token}");
    asker.get("a page with a version", &both).await;
    let next = send(asker.client, "GET", &format!("{nodes}?limit=1&continue={token}"), JSON, &Value::Null)
        .await
        .json();
    let same = next["metadata"]["resourceVersion"] == list["metadata"]["resourceVersion"];
    asker.note("the next page is of the same version", same.into());
    let any = format!("{nodes}?limit=1&resourceVersion=0");
    let any = send(asker.client, "GET", &any, JSON, &Value::Null).await.json();
    let whole = any["items"].as_array().is_some_and(|items| items.len() >= 3);
    asker.note("any version has no pages", (whole && any["metadata"].get("continue").is_none()).into());
    asker
        .code("a token that is none", "GET", &format!("{nodes}?limit=1&continue=zz"), JSON, &Value::Null)
        .await;
}

async fn leases(asker: &mut Asker<'_>, namespace: &str) {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    let lease = |spec: Value| json!({ "metadata": { "name": "l" }, "spec": spec });
    for (what, spec) in [
        ("a lease for no time", json!({ "leaseDurationSeconds": 0 })),
        ("a lease that fell back", json!({ "leaseDurationSeconds": 1, "leaseTransitions": -1 })),
        ("a lease of nobody", json!({ "leaseDurationSeconds": 1, "holderIdentity": "" })),
        ("a lease renewed to the second", json!({ "renewTime": "2026-01-02T03:04:05Z" })),
        ("a lease renewed to the millisecond", json!({ "renewTime": "2026-01-02T03:04:05.123Z" })),
    ] {
        asker.code(what, "POST", &path, JSON, &lease(spec)).await;
        // What passed is not to be in the way.
        send(asker.client, "DELETE", &format!("{path}/l"), JSON, &Value::Null).await;
    }
    let good = json!({ "holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2026-01-02T03:04:05.000006Z" });
    let made = asker.ask("a lease", "POST", &path, JSON, &lease(good.clone())).await;
    asker.ask("a lease again", "POST", &path, JSON, &lease(good.clone())).await;
    let one = format!("{path}/l");
    asker.ask("a lease without a version", "PUT", &one, JSON, &lease(good.clone())).await;
    let mut newer = made.clone();
    newer["spec"]["holderIdentity"] = "b".into();
    asker.code("a lease of this version", "PUT", &one, JSON, &newer).await;
    newer["spec"]["holderIdentity"] = "c".into();
    asker.ask("a lease of an older version", "PUT", &one, JSON, &newer).await;
    let stale = json!({ "metadata": { "resourceVersion": made["metadata"]["resourceVersion"] }, "spec": { "holderIdentity": "d" } });
    asker.ask("a patch of an older version", "PATCH", &one, MERGE, &stale).await;
    let mut other = newer.clone();
    other["metadata"]["name"] = "m".into();
    asker.ask("a lease of another name", "PUT", &one, JSON, &other).await;
    let mut other = newer.clone();
    other["metadata"]["namespace"] = "default".into();
    asker.ask("a lease of another namespace", "POST", &path, JSON, &other).await;
    let mut absent = lease(good.clone());
    absent["metadata"] = json!({ "name": "absent" });
    asker.code("a lease made by a PUT", "PUT", &format!("{path}/absent"), JSON, &absent).await;
    let mut versioned = lease(good);
    versioned["metadata"] = json!({ "name": "versioned", "resourceVersion": "5" });
    asker.code("a new lease with a version", "POST", &path, JSON, &versioned).await;
    let before = send(asker.client, "GET", &one, JSON, &Value::Null).await.json();
    let same = json!({ "spec": { "holderIdentity": "b" } });
    let after = send(asker.client, "PATCH", &one, MERGE, &same).await.json();
    let unchanged = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"];
    asker.note("a patch that changes nothing is no write", unchanged.into());
    let wrong = json!({ "preconditions": { "resourceVersion": "5" } });
    asker.code("a deletion of an older version", "DELETE", &one, JSON, &wrong).await;
    asker.ask("a deletion", "DELETE", &one, JSON, &Value::Null).await;
}

async fn patches(asker: &mut Asker<'_>, namespace: &str) {
    let node = format!("/api/v1/nodes/{}", asker.name("na-"));
    let taints = json!({ "spec": { "taints": [{ "key": "example.com/a", "effect": "NoSchedule" }] } });
    asker.code("a taint", "PATCH", &node, MERGE, &taints).await;
    let steps = |value: &str| {
        json!([
            { "op": "test", "path": "/spec/taints/0/key", "value": value },
            { "op": "remove", "path": "/spec/taints/0" },
        ])
    };
    asker.ask("a test that fails", "PATCH", &node, STEPS, &steps("other")).await;
    asker.code("a test that holds", "PATCH", &node, STEPS, &steps("example.com/a")).await;
    asker.code("a patch of no type", "PATCH", &node, "application/x", &json!({})).await;
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/p");
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "p" },
        "spec": { "podSelector": {} },
    });
    asker.ask("an apply by nobody", "PATCH", &path, APPLY, &policy).await;
    let named = format!("{path}?fieldManager=t");
    asker.code("an apply that makes", "PATCH", &named, APPLY, &policy).await;
    asker.code("an apply that changes nothing", "PATCH", &named, APPLY, &policy).await;
}

async fn events(asker: &mut Asker<'_>, namespace: &str) {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let event = json!({
        "metadata": { "name": "e", "namespace": namespace },
        "regarding": { "kind": "Pod", "namespace": namespace, "name": "p" },
        "eventTime": "2026-01-02T03:04:05.000006Z", "type": "Warning", "reason": "R", "action": "A", "note": "n",
        "reportingController": "example.com/c", "reportingInstance": "i",
    });
    for (what, field, value) in [
        ("an event of no time", "eventTime", Value::Null),
        ("an event of no type", "type", json!("Bad")),
        ("an event of no action", "action", Value::Null),
        ("an event of no reason", "reason", Value::Null),
        ("an event with a count", "deprecatedCount", json!(1)),
        ("an event with a long note", "note", json!("x".repeat(1025))),
        ("an event from afar", "reportingInstance", json!("x".repeat(129))),
        (
            "a series of one",
            "series",
            json!({ "count": 1, "lastObservedTime": "2026-01-02T03:04:05.000006Z" }),
        ),
        ("an event to the second", "eventTime", json!("2026-01-02T03:04:05Z")),
    ] {
        let mut bad = event.clone();
        bad[field] = value;
        asker.code(what, "POST", &path, JSON, &bad).await;
    }
    asker.code("an event", "POST", &path, JSON, &event).await;
    let one = format!("{path}/e");
    let series = json!({ "series": { "count": 2, "lastObservedTime": "2026-01-02T03:05:05.000006Z" } });
    asker.code("an event's series", "PATCH", &one, MERGE, &series).await;
    asker.code("an event's note", "PATCH", &one, MERGE, &json!({ "note": "other" })).await;
    let path = format!("/api/v1/namespaces/{namespace}/events");
    let mut core = json!({
        "metadata": { "name": "c" }, "involvedObject": { "kind": "Pod", "namespace": namespace, "name": "p" },
        "reason": "R", "message": "m", "type": "Warning", "count": 1, "source": { "component": "c", "host": "h" },
    });
    asker.code("an event of the core group", "POST", &path, JSON, &core).await;
    let count = json!({ "count": 2, "lastTimestamp": "2026-01-02T03:04:05Z" });
    asker.code("its count", "PATCH", &format!("{path}/c"), MERGE, &count).await;
    core["metadata"]["name"] = "d".into();
    core["involvedObject"]["namespace"] = "default".into();
    asker.code("an event of another namespace", "POST", &path, JSON, &core).await;
}

async fn definitions(asker: &mut Asker<'_>) {
    let name = "egressgatewaypolicies.egress-enforcer.io";
    let policies = format!("{GROUP}/egressgatewaypolicies");
    asker.get("a custom resource without a definition", &policies).await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": name },
        "spec": {
            "group": "egress-enforcer.io", "scope": "Cluster",
            "names": { "plural": "egressgatewaypolicies", "singular": "egressgatewaypolicy", "kind": "EgressGatewayPolicy",
                "listKind": "EgressGatewayPolicyList" },
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            }],
        },
    });
    asker.code("a definition", "POST", DEFINITIONS, JSON, &definition).await;
    for _ in 0..100 {
        if send(asker.client, "GET", &policies, JSON, &Value::Null).await.code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let policy = json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy", "metadata": { "name": "mesh" },
        "spec": { "a": 1 }, "status": { "subjects": 1 },
    });
    asker.ask("a policy", "POST", &policies, JSON, &policy).await;
    let list = send(asker.client, "GET", &policies, JSON, &Value::Null).await.json();
    let shape = json!({ "kind": list["kind"], "item": list["items"][0]["kind"], "version": list["items"][0]["apiVersion"] });
    asker.note("a list of policies", shape);
    let one = format!("{policies}/mesh");
    let both = json!({ "spec": { "a": 2 }, "status": { "subjects": 2 } });
    asker.ask("a status", "PATCH", &format!("{one}/status"), MERGE, &both).await;
    asker
        .ask(
            "a specification",
            "PATCH",
            &one,
            MERGE,
            &json!({ "spec": { "a": 3 }, "status": { "subjects": 3 } }),
        )
        .await;
    let stale = json!({ "metadata": { "resourceVersion": "1" }, "status": { "subjects": 4 } });
    asker.ask("a status of an older version", "PATCH", &format!("{one}/status"), MERGE, &stale).await;
    asker.ask("a status of nothing", "PATCH", &format!("{policies}/none/status"), MERGE, &both).await;
    let ask = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=5";
    asker.lines("a streaming list of policies", &format!("{policies}?{ask}"), 5).await;
    asker.ask("a policy's deletion", "DELETE", &one, JSON, &Value::Null).await;
    let mut lines =
        watch(asker.client, &format!("{policies}?watch=true&resourceVersion={}", u64::MAX >> 2)).await;
    send(asker.client, "DELETE", &format!("{DEFINITIONS}/{name}"), JSON, &Value::Null).await;
    let end = lines.next_within(Duration::from_secs(20)).await;
    asker.note("a watch whose definition goes", format!("{end:?}").into());
}

async fn watches(asker: &mut Asker<'_>, namespace: &str) {
    let nodes = "/api/v1/nodes?watch=true&timeoutSeconds=5";
    asker.get("a watch with initial events and no match", &format!("{nodes}&sendInitialEvents=true")).await;
    asker.get("a watch with a match alone", &format!("{nodes}&resourceVersionMatch=NotOlderThan")).await;
    asker
        .get(
            "a watch that must be exact",
            &format!("{nodes}&sendInitialEvents=true&resourceVersionMatch=Exact"),
        )
        .await;
    asker.get("a watch at no number", &format!("{nodes}&resourceVersion=x")).await;
    asker.lines("a watch from too far back", &format!("{nodes}&resourceVersion=1"), 2).await;
    let ask = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=5";
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    for (what, path) in [
        ("pods", format!("/api/v1/namespaces/{namespace}/pods")),
        ("endpoint slices", format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")),
        ("services", format!("/api/v1/namespaces/{namespace}/services")),
    ] {
        asker.lines(&format!("an empty streaming list of {what}"), &format!("{path}?{ask}"), 3).await;
    }
    for (what, path) in [
        ("network policies", format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")),
        ("nodes", format!("/api/v1/nodes?fieldSelector=metadata.name%3D{}&x=", asker.name("na-"))),
    ] {
        let path = if path.contains('?') { format!("{path}&{ask}") } else { format!("{path}?{ask}") };
        let mut lines = watch(asker.client, &path).await;
        let added = lines.next().await.event();
        let mark = lines.next().await.event();
        let noted =
            json!([added["type"], added["object"]["kind"], added["object"]["apiVersion"], mask(&mark)]);
        asker.note(&format!("a streaming list of {what}"), noted);
    }
    let list = send(asker.client, "GET", &leases, JSON, &Value::Null).await.json();
    let from = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let lease = json!({ "metadata": { "name": "w" }, "spec": { "holderIdentity": "a" } });
    send(asker.client, "POST", &leases, JSON, &lease).await;
    let one = format!("{leases}/w");
    send(asker.client, "PATCH", &one, MERGE, &json!({ "spec": { "holderIdentity": "b" } })).await;
    send(asker.client, "DELETE", &one, JSON, &Value::Null).await;
    let mut lines =
        watch(asker.client, &format!("{leases}?watch=true&resourceVersion={from}&timeoutSeconds=5")).await;
    let mut versions = Vec::new();
    for what in ["added", "modified", "deleted"] {
        let event = lines.next().await.event();
        versions
            .push(event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap());
        asker.note(&format!("a lease is {what}"), mask(&event));
    }
    let rising = versions.windows(2).all(|pair| pair[0] < pair[1]);
    asker.note("versions rise, that of the deletion too", rising.into());
}

/// What a client is told that may not do what it asks, or is not known.
async fn refused(client: &Client, answers: &mut Answers) {
    for (what, method, path) in [
        ("a list that is not allowed", "GET", "/api/v1/pods"),
        ("a watch that is not allowed", "GET", "/api/v1/pods?watch=true"),
        ("a lease that is not allowed", "GET", "/apis/coordination.k8s.io/v1/namespaces/default/leases/l"),
        ("a status that is not allowed", "PATCH", "/api/v1/nodes/n/status"),
        ("an event that is not allowed", "POST", "/apis/events.k8s.io/v1/namespaces/default/events"),
    ] {
        let request = Request::builder().method(method).uri(path).header("content-type", MERGE);
        let request = request.header("impersonate-user", USER).body(Body::from(b"{}".to_vec())).unwrap();
        let answer = client.send(request).await.unwrap();
        let code = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&text).unwrap();
        answers.insert(what.to_owned(), json!({ "code": code, "body": mask(&answer) }));
    }
}

async fn ask_the_fixture() -> Answers {
    let fixture = Fixture::start().unwrap();
    fixture.remove_definition();
    // Every real cluster has had more changes than these.
    fixture.skip_to_version(1000);
    fixture.forget_history();
    let client = fixture.client().unwrap();
    let mut answers = questions(&client, "1").await;
    fixture.fault("*", &Verb::ALL, Fault::Forbidden);
    refused(&client, &mut answers).await;
    fixture.lift_faults();
    fixture.set(|settings| settings.token = Some("good".to_owned()));
    refused_token(&client, &mut answers).await;
    answers
}

async fn refused_token(client: &Client, answers: &mut Answers) {
    let said = send(client, "GET", "/api/v1/pods", JSON, &Value::Null).await;
    let noted = json!({ "code": said.code, "body": mask(&said.json()) });
    answers.insert("a token that nobody knows".to_owned(), noted);
}

async fn ask_the_real_one(kubeconfig: &str) -> Answers {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    let client = Client::try_from(config.clone()).unwrap();
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().to_string();
    let mut answers = questions(&client, &run).await;
    refused(&client, &mut answers).await;
    let mut stranger = config;
    stranger.auth_info =
        kube::config::AuthInfo { token: Some("unknown".to_owned().into()), ..Default::default() };
    refused_token(&Client::try_from(stranger).unwrap(), &mut answers).await;
    answers
}

fn compare(who: &str, answers: &Answers, expected: &Answers) {
    let mut differ = Vec::new();
    for (what, answer) in expected {
        match answers.get(what) {
            Some(found) if found == answer => {}
            found => {
                differ
                    .push(format!("{what}:\n  real    {answer}\n  {who} {}", found.unwrap_or(&Value::Null)));
            }
        }
    }
    let more = answers.keys().filter(|what| !expected.contains_key(*what));
    differ.extend(more.map(|what| format!("{what}: the real one was never asked")));
    assert!(differ.is_empty(), "{} answers differ:\n{}", differ.len(), differ.join("\n"));
}

#[tokio::test]
async fn the_fixture_answers_as_a_real_server() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real.json");
    if let Ok(kubeconfig) = std::env::var("EGRESS_FIXTURE_REAL") {
        let answers = ask_the_real_one(&kubeconfig).await;
        if std::env::var_os("EGRESS_FIXTURE_BLESS").is_some() {
            fs::write(&recorded, serde_json::to_string_pretty(&answers).unwrap() + "\n").unwrap();
        } else {
            let expected = serde_json::from_str(&fs::read_to_string(&recorded).unwrap()).unwrap();
            compare("now    ", &answers, &expected);
        }
    }
    let expected: Answers = serde_json::from_str(&fs::read_to_string(&recorded).unwrap()).unwrap();
    assert!(expected.len() > 60, "{}", expected.len());
    compare("fixture", &ask_the_fixture().await, &expected);
}
