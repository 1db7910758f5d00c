//! The custom resource's schema says what the reader says, only earlier.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod random;
mod server;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Value, egp, json};
use egress_policy::object::{Object, Read, read};
use egress_policy::schema;
use random::Random;
use server::{Server, every, list, text};

/// What the reader says to a `spec`: the policy, or the first error.
fn reader(spec: &Value) -> Result<Object, String> {
    match read(egp("mesh", spec.clone())).unwrap().remove(0) {
        Read::Object(object) => Ok(object),
        Read::Invalid { error, .. } => Err(error.to_string()),
        Read::Workload { .. } | Read::Ignored { .. } => panic!("not read at all"),
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Specs of the policies that are in the repository: those that users start from, and those of scenarios.
fn corpus() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let is_policy = |object: &Value| object["kind"] == "EgressGatewayPolicy";
    for entry in fs::read_dir(repository().join("deploy/examples")).unwrap() {
        let path = entry.unwrap().path();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(&path).unwrap()).unwrap();
        let specs = documents.into_iter().filter(is_policy).map(|policy| policy["spec"].clone());
        found.extend(specs.map(|spec| (path.display().to_string(), spec)));
    }
    assert!(!found.is_empty());
    let examples = found.len();
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/egress-gateway-policy");
    let yaml = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "yaml");
    for path in fs::read_dir(scenarios).unwrap().map(|entry| entry.unwrap().path()).filter(yaml) {
        let text = fs::read_to_string(&path).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let objects = documents.iter().flat_map(|step| list(step, "apply"));
        let specs = objects.filter(|object| is_policy(object)).map(|policy| policy["spec"].clone());
        found.extend(specs.map(|spec| (path.display().to_string(), spec)));
    }
    assert!(found.len() > examples + 50, "{}", found.len());
    found
}

#[test]
fn the_schema_is_structural_and_bounded_and_explained() {
    let spec = Server::new().spec;
    let mut objects = 0;
    every(&spec, "spec", &mut |path, schema| {
        let has = |keyword: &str| schema.get(keyword).is_some();
        let kind = text(&schema["type"]);
        for keyword in schema.as_object().unwrap().keys() {
            let known = [
                "type",
                "description",
                "properties",
                "required",
                "items",
                "additionalProperties",
                "enum",
                "default",
                "nullable",
                "format",
                "pattern",
                "minimum",
                "maximum",
                "minLength",
                "maxLength",
                "minItems",
                "maxItems",
                "maxProperties",
                "x-kubernetes-preserve-unknown-fields",
                "x-kubernetes-validations",
            ];
            assert!(known.contains(&keyword.as_str()), "{path}: {keyword}");
        }
        assert!(has("description") || path.ends_with("[]"), "{path}");
        assert!(kind != "array" || has("maxItems"), "{path}");
        assert!(kind != "string" || has("maxLength") || has("enum"), "{path}");
        assert!(!(has("properties") && has("additionalProperties")), "{path}");
        assert!(!(has("default") && has("nullable")), "{path}");
        if kind == "object" && has("properties") {
            assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{path}");
            objects += 1;
        }
    });
    assert!(objects > 20, "{objects}");
    let [policy, binding] = schema::strict_fields();
    assert_eq!(list(&policy["spec"], "validations").len(), objects);
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
}

#[test]
fn what_users_write_is_accepted_and_means_the_same_when_stored() {
    let server = Server::new();
    let mut accepted = 0;
    for (path, spec) in corpus() {
        let (refused, denied, read) = (server.refuses(&spec), server.denies(&spec), reader(&spec));
        // A scenario may be about a policy that is wrong.
        if path.contains("/invalid-") && read.is_err() {
            assert!(!refused.is_empty() || !denied.is_empty(), "{path}: {read:?} is not refused: {spec}");
            continue;
        }
        assert!(refused.is_empty() && denied.is_empty(), "{path}: {refused:?} {denied:?}");
        assert_eq!(reader(&server.stored(&spec)), read, "{path}");
        assert!(read.is_ok(), "{path}: {read:?}");
        accepted += 1;
    }
    assert!(accepted > 40, "{accepted}");
}

#[test]
fn mistakes_are_refused_before_they_are_stored() {
    let server = Server::new();
    let subjects = json!([{"namespaces": {}}]);
    let gateway = |field: &str, value: Value| {
        let mut gateway = json!({"pods": {}});
        gateway[field] = value;
        json!({"subjects": subjects, "gateways": [gateway]})
    };
    let to = |to: Value| json!({"subjects": subjects, "allow": {"to": [to]}});
    let subject = |subject: Value| json!({"subjects": [subject]});
    let destination =
        |except: &[&str]| gateway("destinations", json!([{"cidr": "10.0.0.0/8", "except": except}]));
    for (spec, said) in [
        (json!({}), "subjects is required"),
        (subject(json!(null)), "not of type object"),
        (json!({"subjects": []}), "spec.subjects: 0 items"),
        (json!({"subjects": subjects, "enforcement": "audit"}), "spec.enforcement: not one of"),
        (subject(json!({"pods": {"matchLabels": {"": "a"}}})), "a label key must not be empty"),
        (
            subject(json!({"pods": {"matchLabels": {"a": 1}}})),
            "spec.subjects[0].pods.matchLabels.a: not of type string",
        ),
        (
            subject(json!({"pods": {"matchLabels": {"a": "on "}}})),
            "spec.subjects[0].pods.matchLabels.a: pattern",
        ),
        (subject(json!({"pods": {"matchExpressions": [{"key": "a", "operator": "In"}]}})), "need values"),
        (
            subject(json!({"pods": {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": []}]}})),
            "need values",
        ),
        (
            subject(
                json!({"pods": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
            ),
            "DoesNotExist have none",
        ),
        (
            subject(json!({"pods": {"matchExpressions": [{"key": "a", "operator": "in"}]}})),
            "operator: not one of",
        ),
        (
            json!({"subjects": subjects, "gateways": [{"name": "none"}]}),
            "needs namespaces, pods or addresses",
        ),
        (
            json!({"subjects": subjects, "gateways": [{"addresses": []}]}),
            "needs namespaces, pods or addresses",
        ),
        (gateway("addresses", json!(["10.0.0.1"])), "addresses[0]: must be a prefix"),
        (gateway("addresses", json!(["10.0.0.1/8"])), "addresses[0]: must be a prefix"),
        (gateway("addresses", json!(["::ffff:10.0.0.0/104"])), "addresses[0]: must be a prefix"),
        (gateway("ports", json!([{"port": 0}])), "ports[0].port: 0"),
        (gateway("ports", json!([{"port": 65536}])), "ports[0].port: 65536"),
        (gateway("ports", json!([{"port": 80, "endPort": 79}])), "endPort must not be below port"),
        (gateway("ports", json!([{"protocol": "ICMP", "port": 1}])), "protocol: not one of"),
        (gateway("ports", json!([{"protocol": "TCP"}])), "port is required"),
        (destination(&["10.0.0.0/8"]), "strictly within"),
        (destination(&["11.0.0.0/16"]), "strictly within"),
        (destination(&["0.0.0.0/0"]), "strictly within"),
        (destination(&["2001:db8::/32"]), "strictly within"),
        (destination(&["10.1.0.0/16", "10.1.2.0/24"]), "must not overlap"),
        (destination(&["10.1.0.0/24", "10.1.0.0/16"]), "must not overlap"),
        (destination(&["10.1.0.0/16", "10.1.0.0/16"]), "must not overlap"),
        (to(json!({})), "exactly one of"),
        (to(json!({"pods": {}, "cidr": "10.0.0.0/8"})), "exactly one of"),
        (to(json!({"cidr": "10.0.0.0/8", "service": {"namespace": "a", "name": "b"}})), "exactly one of"),
        (to(json!({"pods": {}, "except": ["10.0.0.0/8"]})), "except needs cidr"),
        (to(json!({"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]})), "strictly within"),
        (to(json!({"service": {"name": "b"}})), "namespace is required"),
        (json!({"subjects": subjects, "proxy": {}}), "containers is required"),
        (json!({"subjects": subjects, "proxy": {"containers": [""]}}), "proxy.containers[0]"),
        (json!({"subjects": subjects, "allow": {"dns": "cluster"}}), "allow.dns: not one of"),
    ] {
        let errors = server.refuses(&spec);
        assert!(errors.iter().any(|error| error.contains(said)), "{errors:?} do not say {said:?}: {spec}");
    }
    // And next to them, what is right.
    for spec in [
        subject(json!({"pods": {"matchLabels": {"a": ""}}})),
        subject(
            json!({"pods": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}, {"key": "a", "operator": "Exists"}]}}),
        ),
        gateway("addresses", json!(["10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0", "::/0", "192.0.2.7/32"])),
        gateway(
            "ports",
            json!([{"port": 80, "endPort": 80}, {"protocol": "SCTP", "port": 1, "endPort": 65535}]),
        ),
        destination(&["10.1.0.0/16", "10.2.0.0/16", "10.0.0.0/16"]),
        to(json!({"namespaces": {}, "pods": {}})),
        to(json!({"cidr": "2001:db8::/32", "except": ["2001:db8:1::/48"]})),
    ] {
        assert_eq!((server.refuses(&spec), server.denies(&spec)), (vec![], vec![]), "{spec}");
        assert!(reader(&spec).is_ok(), "{spec}");
    }
}

/// In each object of a policy that has them all, an unknown field and a null: both are stored, the admission policy denies them, and
/// where it is not there the reader refuses them.
#[test]
fn unknown_fields_and_nulls_reach_the_reader_and_are_denied() {
    let server = Server::new();
    let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]});
    let who = json!({"namespaces": selector, "pods": selector, "serviceAccounts": ["a"]});
    let ports = json!([{"protocol": "TCP", "port": 1, "endPort": 2}]);
    let whole = json!({
        "enforcement": "Enforce",
        "subjects": [{"namespaces": selector, "pods": selector, "serviceAccounts": ["a"], "systemNamespaces": false}],
        "proxy": {"containers": ["a"], "scope": "All"},
        "gateways": [{
            "name": "a", "namespaces": selector, "pods": selector, "addresses": ["10.0.0.0/8"], "ports": ports,
            "clients": [who], "destinations": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"], "ports": ports}],
        }],
        "allow": {
            "dns": "None", "inCluster": false, "apiServer": true, "node": true,
            "to": [
                {"namespaces": selector, "pods": selector, "ports": ports},
                {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]},
                {"service": {"namespace": "a", "name": "b"}},
            ],
        },
    });
    assert_eq!((server.refuses(&whole), server.denies(&whole)), (vec![], vec![]));
    assert!(reader(&whole).is_ok());
    let mut objects = Vec::new();
    pointers(&whole, &server.spec, "", &mut objects);
    let mut seen = 0;
    for (pointer, fields) in objects {
        let with = |field: &str, value: Value| {
            let mut changed = whole.clone();
            changed.pointer_mut(&pointer).unwrap()[field] = value;
            changed
        };
        let unknown = with("excepts", json!(["10.0.0.0/8"]));
        let stored = server.stored(&unknown);
        assert_eq!(stored.pointer(&pointer).unwrap()["excepts"], json!(["10.0.0.0/8"]), "{pointer}");
        let denials = server.denies(&unknown);
        let named = |message: &str| message.contains(": unknown or null: excepts; there are ");
        assert!(denials.len() == 1 && named(&denials[0]), "{pointer}: {denials:?}");
        assert!(reader(&stored).unwrap_err().contains("unknown field"), "{pointer}");
        for field in fields {
            let null = with(&field, Value::Null);
            let stored = server.stored(&null);
            // A default takes the place of null, and is what the reader takes a missing field for.
            if stored.pointer(&pointer).unwrap().get(&field).is_some_and(|value| !value.is_null()) {
                let mut absent = whole.clone();
                absent.pointer_mut(&pointer).unwrap().as_object_mut().unwrap().remove(&field);
                assert_eq!(reader(&stored), reader(&absent), "{pointer}/{field}");
            } else {
                let refused = !server.refuses(&null).is_empty();
                assert!(refused || !server.denies(&null).is_empty(), "{pointer}/{field}");
                assert!(reader(&stored).is_err(), "{pointer}/{field}");
            }
            seen += 1;
        }
    }
    assert!(seen > 80, "{seen}");
}

/// Where the objects with fields of their own are in a value, and their fields.
fn pointers(value: &Value, schema: &Value, at: &str, found: &mut Vec<(String, Vec<String>)>) {
    if let (Value::Object(fields), Some(known)) = (value, schema["properties"].as_object()) {
        found.push((at.to_owned(), fields.keys().cloned().collect()));
        for (name, value) in fields {
            pointers(value, &known[name], &format!("{at}/{name}"), found);
        }
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        pointers(item, &schema["items"], &format!("{at}/{i}"), found);
    }
}

#[test]
fn what_the_schema_accepts_the_reader_accepts() {
    let server = Server::new();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..2_000 {
        let spec = random.value(&server.spec);
        if !server.refuses(&spec).is_empty() || !server.denies(&spec).is_empty() {
            refused += 1;
            continue;
        }
        let stored = server.stored(&spec);
        assert!(reader(&stored).is_ok(), "{:?}: {stored}", reader(&stored));
        // But for a null in the place of which a default is stored.
        if let Ok(written) = reader(&spec) {
            assert_eq!(reader(&stored).unwrap(), written, "{spec}");
        }
        accepted += 1;
    }
    assert!(accepted > 150 && refused > 150, "{accepted} accepted, {refused} refused");
}
