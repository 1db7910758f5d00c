//! The custom resource as the API server needs it: its definition, and an admission policy for what a definition cannot say.
//!
//! Invariant: made from the types that the reader reads, so that no field is in one of them alone. A field that is unknown or null
//! reaches the agent, which refuses the policy and closes its subjects: dropped on the way (the API server *prunes* what a schema does
//! not name, and null where it is not `nullable`), a misspelt `except` or an empty `destinations:` would quietly allow more than is
//! written. Both are refused at once where [`strict_fields`] is applied as well.
//!
//! Tested by `tests/schema/`; what is checked in under `deploy/` is compared by `xtask`.

mod rules;
mod strict;
mod structural;

use serde_json::{Value, json};

pub use strict::strict_fields;

/// The resource's plural name, which is in its API path.
pub const PLURAL: &str = "egressgatewaypolicies";
/// The API group.
pub const GROUP: &str = "egress-enforcer.io";
/// The API version.
pub const VERSION: &str = "v1alpha1";

/// The `CustomResourceDefinition` of EgressGatewayPolicy, as `apiextensions.k8s.io/v1`. Needs Kubernetes 1.31 or later, for its rules
/// about prefixes.
#[must_use]
pub fn definition() -> Value {
    let column = |name: &str, kind: &str, path: &str, description: &str| json!({"name": name, "type": kind, "jsonPath": path, "description": description});
    let wide = |mut column: Value| {
        column["priority"] = json!(1);
        column
    };
    let accepted = r#".status.conditions[?(@.type=="Accepted")]"#;
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{PLURAL}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": "EgressGatewayPolicy",
                "listKind": "EgressGatewayPolicyList",
                "plural": PLURAL,
                "singular": "egressgatewaypolicy",
                "shortNames": ["egp"],
                "categories": ["egress-enforcer"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Enforcement", "string", ".spec.enforcement", "Enforce or Audit"),
                    column("Subjects", "integer", ".status.subjects", "Pods that are locked down"),
                    column("Gateways", "integer", ".status.gateways", "Gateways of the policy"),
                    column("Accepted", "string", &format!("{accepted}.status"), "Whether it could be understood"),
                    wide(column("Ready", "integer", ".status.readyGatewayEndpoints", "Endpoints of gateways that are ready")),
                    wide(column("Reason", "string", &format!("{accepted}.reason"), "Why it is accepted, or not")),
                    column("Age", "date", ".metadata.creationTimestamp", "Since when there is this policy"),
                ],
                "schema": {"openAPIV3Schema": object()},
            }],
        },
    })
}

/// The schema of the whole object.
fn object() -> Value {
    json!({
        "type": "object",
        "description": "Locks pods down to egress gateways: nothing that the selected pods send leaves, except through a gateway or where \
            the policy allows it. Enforced on the node, also where a sidecar is bypassed.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "The version of this schema."},
            "kind": {"type": "string", "description": "EgressGatewayPolicy."},
            "metadata": {"type": "object"},
            "spec": structural::spec(),
            "status": status(),
        },
    })
}

/// The schema of `status`, which one elected agent writes. Unknown fields are pruned: nobody's security rests on them.
fn status() -> Value {
    let count = |what: &str| json!({"type": "integer", "format": "int32", "minimum": 0, "description": what});
    json!({
        "type": "object",
        "description": "What the enforcer made of the policy; written by one agent.",
        "properties": {
            "observedGeneration": {
                "type": "integer", "format": "int64", "minimum": 0,
                "description": "The metadata.generation that this status is about.",
            },
            "subjects": count("How many pods are locked down by it."),
            "gateways": count("How many gateways it has."),
            "readyGatewayEndpoints": count("How many endpoints of its gateways are ready. With 0 there is no way out."),
            "conditions": {
                "type": "array",
                "description": "Accepted: True where the policy could be understood, else False with what is wrong; its subjects are closed then.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "maxItems": 8,
                "items": {
                    "type": "object",
                    "description": "A condition, as in metav1.Condition.",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": {"type": "string", "minLength": 1, "maxLength": 316, "description": "What it is about, such as Accepted."},
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                        "observedGeneration": {
                            "type": "integer", "format": "int64", "minimum": 0,
                            "description": "The metadata.generation that the condition is about.",
                        },
                        "lastTransitionTime": {
                            "type": "string", "format": "date-time", "description": "When the condition's status last changed.",
                        },
                        "reason": {
                            "type": "string", "minLength": 1, "maxLength": 1024,
                            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "description": "Why, in one word.",
                        },
                        "message": {"type": "string", "maxLength": 32768, "description": "Why, in a sentence."},
                    },
                },
            },
        },
    })
}
