//! Refuses fields that are unknown or null, which a definition alone cannot: preserved fields are not shown to its rules.

use serde_json::{Value, json};

use super::{GROUP, PLURAL, VERSION, structural};

/// A step from an object to one that is in it.
#[derive(Clone, Debug)]
enum Step {
    /// To a field.
    Field(String),
    /// To each entry of a list.
    Each,
}

/// A `ValidatingAdmissionPolicy` and its binding (`admissionregistration.k8s.io/v1`, Kubernetes 1.30), which refuse a policy with a
/// field that is unknown or null, whoever writes it and however.
#[must_use]
pub fn strict_fields() -> [Value; 2] {
    let name = format!("{PLURAL}.{GROUP}");
    let mut objects = Vec::new();
    find(&structural::spec(), &mut vec![Step::Field("spec".to_owned())], &mut objects);
    let validations: Vec<_> = objects.iter().map(|(path, fields)| validation(path, fields)).collect();
    [
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [GROUP],
                    "apiVersions": [VERSION],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": [PLURAL],
                }]},
                "validations": validations,
            },
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        }),
    ]
}

/// Every object with fields of its own: how to get there, and the fields.
fn find(schema: &Value, path: &mut Vec<Step>, found: &mut Vec<(Vec<Step>, Vec<String>)>) {
    if let Some(fields) = schema["properties"].as_object() {
        found.push((path.clone(), fields.keys().cloned().collect()));
        for (name, schema) in fields {
            path.push(Step::Field(name.clone()));
            find(schema, path, found);
            path.pop();
        }
    }
    if schema["items"].is_object() {
        path.push(Step::Each);
        find(&schema["items"], path, found);
        path.pop();
    }
}

fn validation(path: &[Step], fields: &[String]) -> Value {
    let shown = path.iter().fold(String::new(), |shown, step| match step {
        Step::Field(name) if shown.is_empty() => name.clone(),
        Step::Field(name) => format!("{shown}.{name}"),
        Step::Each => format!("{shown}[]"),
    });
    let known: Vec<_> = fields.iter().map(|name| format!("'{name}'")).collect();
    let known = known.join(", ");
    let there_are = format!("there are {}", fields.join(", "));
    let names = names("object", path, &known, 0);
    json!({
        "expression": expression("object", path, &known, 0),
        // Where the names cannot be told.
        "message": format!("{shown}: a field is unknown or null; {there_are}"),
        "messageExpression": format!("'{shown}: unknown or null: ' + {names} + '; {there_are}'"),
        "reason": "Invalid",
    })
}

/// Follows the path from `at`; what is absent is fine.
fn expression(at: &str, path: &[Step], known: &str, depth: usize) -> String {
    match path.split_first() {
        None => format!("{at}.all(key, key in [{known}] && {at}[key] != null)"),
        Some((Step::Field(name), rest)) => {
            let at = format!("{at}.{name}");
            format!("!has({at}) || {}", expression(&at, rest, known, depth))
        }
        Some((Step::Each, rest)) => {
            let each = format!("e{depth}");
            format!("{at}.all({each}, {})", expression(&each, rest, known, depth + 1))
        }
    }
}

/// The names of what is unknown or null at the end of the path, as one text.
fn names(at: &str, path: &[Step], known: &str, depth: usize) -> String {
    match path.split_first() {
        None => format!("{at}.filter(key, !(key in [{known}]) || {at}[key] == null).join(', ')"),
        Some((Step::Field(name), rest)) => {
            let at = format!("{at}.{name}");
            format!("(has({at}) ? {} : '')", names(&at, rest, known, depth))
        }
        Some((Step::Each, rest)) => {
            let each = format!("e{depth}");
            let of_each = names(&each, rest, known, depth + 1);
            format!("{at}.map({each}, {of_each}).filter(names, names != '').join(', ')")
        }
    }
}
