//! What the types cannot say: bounds, defaults, and rules in CEL.
//!
//! The reader is the judge; what is here says the same earlier, to who writes a policy. Bounds besides keep the API server's estimate
//! of what the rules cost within its limits (10,000,000 per rule, 100,000,000 in all), which are reckoned from the longest lists that
//! a schema allows.

use serde_json::{Value, json};

/// The type that has no name to be referred by.
pub(super) const ROOT: &str = "RawSpec";

/// The longest text of a prefix: an IPv6 address that ends in IPv4's notation, and `/128`.
const CIDR_LENGTH: usize = 49;
/// What Kubernetes takes for the value of a label.
const LABEL_VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
/// What Kubernetes takes for the name of a container, of a namespace, and of a service.
const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// What is to be added to the schema of each type.
pub(super) fn by_type() -> Vec<(&'static str, Value)> {
    vec![
        (ROOT, spec()),
        (
            "RawSubject",
            json!({"properties": {
                "serviceAccounts": service_accounts(),
                "systemNamespaces": {"default": false},
            }}),
        ),
        ("RawClient", json!({"properties": {"serviceAccounts": service_accounts()}})),
        ("RawSelector", selector()),
        ("RawExpression", expression()),
        ("RawGateway", gateway()),
        ("RawPort", port()),
        (
            "RawCidr",
            json!({
                "properties": {"cidr": cidr(), "except": except(), "ports": {"maxItems": 32}},
                "x-kubernetes-validations": [within()],
            }),
        ),
        (
            "RawAllow",
            json!({"properties": {
                "dns": {"default": "Cluster"},
                "inCluster": {"default": true},
                "apiServer": {"default": false},
                "node": {"default": false},
                "to": {"maxItems": 128},
            }}),
        ),
        (
            "RawProxy",
            json!({"properties": {
                "containers": {"maxItems": 16, "items": {"minLength": 1, "maxLength": 63, "pattern": LABEL}},
                "scope": {"default": "Egress"},
            }}),
        ),
        ("RawTo", to()),
        (
            "RawServiceName",
            json!({"properties": {
                "namespace": {"minLength": 1, "maxLength": 63, "pattern": LABEL},
                "name": {"minLength": 1, "maxLength": 63, "pattern": LABEL},
            }}),
        ),
    ]
}

fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

fn spec() -> Value {
    json!({"properties": {
        "enforcement": {"default": "Enforce"},
        "subjects": {"minItems": 1, "maxItems": 128},
        "gateways": {"maxItems": 16},
    }})
}

fn service_accounts() -> Value {
    json!({"maxItems": 128, "items": {"minLength": 1, "maxLength": 253}})
}

fn selector() -> Value {
    json!({"properties": {
        "matchLabels": {
            "maxProperties": 32,
            "additionalProperties": {"maxLength": 63, "pattern": LABEL_VALUE},
            "x-kubernetes-validations": [rule("!('' in self)", "a label key must not be empty")],
        },
        "matchExpressions": {"maxItems": 16},
    }})
}

fn expression() -> Value {
    json!({
        "properties": {
            "key": {"minLength": 1, "maxLength": 317},
            "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            "values": {"maxItems": 64, "items": {"maxLength": 63, "pattern": LABEL_VALUE}},
        },
        "x-kubernetes-validations": [rule(
            "(self.operator == 'In' || self.operator == 'NotIn') == (has(self.values) && size(self.values) > 0)",
            "In and NotIn need values; Exists and DoesNotExist have none",
        )],
    })
}

fn gateway() -> Value {
    json!({
        "properties": {
            "name": {"maxLength": 253},
            "addresses": {"maxItems": 64, "items": cidr()},
            "ports": {"maxItems": 32},
            "clients": {"maxItems": 64},
            "destinations": {"maxItems": 128},
        },
        "x-kubernetes-validations": [rule(
            "has(self.namespaces) || has(self.pods) || (has(self.addresses) && size(self.addresses) > 0)",
            "needs namespaces, pods or addresses",
        )],
    })
}

fn port() -> Value {
    let number = || json!({"format": "int32", "minimum": 1, "maximum": 65535});
    json!({
        "properties": {
            "protocol": {"default": "TCP", "enum": ["TCP", "UDP", "SCTP"]},
            "port": number(),
            "endPort": number(),
        },
        "x-kubernetes-validations": [rule(
            "!has(self.endPort) || self.endPort >= self.port",
            "endPort must not be below port",
        )],
    })
}

/// A prefix. `containsCIDR` is not used anywhere: API servers before its repair take 10.1.0.0/16 not to be in 10.0.0.0/8.
fn cidr() -> Value {
    json!({
        "minLength": 1,
        "maxLength": CIDR_LENGTH,
        "x-kubernetes-validations": [rule(
            "isCIDR(self) && cidr(self).masked() == cidr(self)",
            "must be a prefix without host bits, such as 10.0.0.0/8, 192.0.2.7/32 or 2001:db8::/32",
        )],
    })
}

/// Exceptions: prefixes overlap exactly where one of them holds the first address of the other.
fn except() -> Value {
    json!({
        "maxItems": 8,
        "items": cidr(),
        "x-kubernetes-validations": [rule(
            "self.all(e, self.exists_one(f, cidr(e).containsIP(cidr(f).ip())))",
            "exceptions must not overlap",
        )],
    })
}

/// Exceptions are strictly within their prefix.
fn within() -> Value {
    rule(
        "!has(self.except) || self.except.all(e, cidr(self.cidr).containsIP(cidr(e).ip()) \
         && cidr(self.cidr).prefixLength() < cidr(e).prefixLength())",
        "each exception must be strictly within cidr",
    )
}

fn to() -> Value {
    let mut within = within();
    within["rule"] = json!(format!("!has(self.cidr) || ({})", within["rule"].as_str().unwrap_or_default()));
    json!({
        "properties": {"cidr": cidr(), "except": except(), "ports": {"maxItems": 32}},
        "x-kubernetes-validations": [
            rule(
                "[has(self.namespaces) || has(self.pods), has(self.cidr), has(self.service)].exists_one(one, one)",
                "needs exactly one of namespaces and pods, cidr, service",
            ),
            rule("!has(self.except) || has(self.cidr)", "except needs cidr"),
            within,
        ],
    })
}
