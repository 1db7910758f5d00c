//! What the API server does with a custom resource, as far as it matters here: it takes out null and fills in defaults, checks the
//! schema, evaluates the rules, and asks the admission policy.
//!
//! A model, held by what was seen with a real API server (docs/install.md says which); a keyword that it does not know is a panic.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cel::extractors::This;
use cel::{Context, Program};
use egress_policy::schema;
use ipnet::IpNet;
use regex::Regex;
use serde_json::{Map, Value};

/// One of the admission policy.
struct Validation {
    expression: Program,
    message: Program,
    /// Where that one fails.
    else_message: String,
}

/// The API server, with the definition and the admission policy.
pub(crate) struct Server {
    pub(crate) spec: Value,
    strict: Vec<Validation>,
    rules: BTreeMap<String, Program>,
    patterns: BTreeMap<String, Regex>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let definition = schema::definition();
        let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let [policy, _] = schema::strict_fields();
        let compiled = |validation: &Value, field| Program::compile(text(&validation[field])).unwrap();
        let validation = |of: &Value| Validation {
            expression: compiled(of, "expression"),
            message: compiled(of, "messageExpression"),
            else_message: text(&of["message"]).to_owned(),
        };
        let strict = policy["spec"]["validations"].as_array().unwrap().iter().map(validation).collect();
        let (mut rules, mut patterns) = (BTreeMap::new(), BTreeMap::new());
        every(spec, "spec", &mut |_, schema| {
            for rule in list(schema, "x-kubernetes-validations") {
                let rule = text(&rule["rule"]);
                rules.insert(rule.to_owned(), Program::compile(rule).unwrap());
            }
            if let Some(pattern) = schema.get("pattern").map(text) {
                patterns.insert(pattern.to_owned(), Regex::new(pattern).unwrap());
            }
        });
        Self { spec: spec.clone(), strict, rules, patterns }
    }

    /// What is stored of a policy's `spec`.
    pub(crate) fn stored(&self, spec: &Value) -> Value {
        let mut stored = spec.clone();
        default(&mut stored, &self.spec);
        stored
    }

    /// What is wrong with a `spec` by schema and rules.
    pub(crate) fn refuses(&self, spec: &Value) -> Vec<String> {
        let mut errors = Vec::new();
        self.check(&self.stored(spec), &self.spec, "spec", &mut errors);
        errors
    }

    /// What the admission policy says to it.
    pub(crate) fn denies(&self, spec: &Value) -> Vec<String> {
        let object = serde_json::json!({"spec": self.stored(spec)});
        let denied = |of: &&Validation| evaluate(&of.expression, "object", &object) != Ok(true);
        let message = |of: &Validation| match execute(&of.message, "object", &object) {
            Ok(cel::Value::String(message)) => message.to_string(),
            Ok(other) => panic!("{other:?}"),
            Err(_) => of.else_message.clone(),
        };
        self.strict.iter().filter(denied).map(message).collect()
    }

    fn check(&self, value: &Value, schema: &Value, path: &str, errors: &mut Vec<String>) {
        if value.is_null() && schema["nullable"] == true {
            return;
        }
        let before = errors.len();
        let mut wrong = |what: String| errors.push(format!("{path}: {what}"));
        let length = |keyword: &str| schema[keyword].as_u64().map(|n| n as usize);
        match (text(&schema["type"]), value) {
            ("object", Value::Object(fields)) => {
                if length("maxProperties").is_some_and(|most| fields.len() > most) {
                    wrong("too many properties".to_owned());
                }
                for name in list(schema, "required").iter().map(text) {
                    if !fields.contains_key(name) {
                        wrong(format!("{name} is required"));
                    }
                }
                for (name, value) in fields {
                    let inner = schema["properties"].get(name).or(schema.get("additionalProperties"));
                    if let Some(inner) = inner {
                        self.check(value, inner, &format!("{path}.{name}"), errors);
                    }
                }
            }
            ("array", Value::Array(items)) => {
                let (least, most) = (length("minItems").unwrap_or(0), length("maxItems").unwrap());
                if items.len() < least || items.len() > most {
                    wrong(format!("{} items", items.len()));
                }
                for (i, item) in items.iter().enumerate() {
                    self.check(item, &schema["items"], &format!("{path}[{i}]"), errors);
                }
            }
            ("string", Value::String(said)) => {
                let chars = said.chars().count();
                let most = length("maxLength").unwrap_or(usize::MAX);
                if chars < length("minLength").unwrap_or(0) || chars > most {
                    wrong("length".to_owned());
                }
                if schema.get("pattern").is_some_and(|pattern| !self.patterns[text(pattern)].is_match(said)) {
                    wrong("pattern".to_owned());
                }
            }
            ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => {
                let number = number.as_i64().unwrap();
                let (least, most) =
                    (schema["minimum"].as_i64().unwrap(), schema["maximum"].as_i64().unwrap());
                if number < least || number > most {
                    wrong(format!("{number}"));
                }
            }
            ("boolean", Value::Bool(_)) => {}
            (kind, _) => wrong(format!("not of type {kind}")),
        }
        if schema.get("enum").is_some_and(|one_of| !one_of.as_array().unwrap().contains(value)) {
            errors.push(format!("{path}: not one of {}", schema["enum"]));
        }
        // Rules are about what is of the right type.
        if errors.len() > before {
            return;
        }
        for rule in list(schema, "x-kubernetes-validations") {
            if evaluate(&self.rules[text(&rule["rule"])], "self", value) != Ok(true) {
                errors.push(format!("{path}: {}", text(&rule["message"])));
            }
        }
    }
}

/// Fills in defaults, where a field is absent or null; a null without default goes, unless the schema keeps it.
fn default(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            let none = Map::new();
            let known = schema["properties"].as_object().unwrap_or(&none);
            for (name, inner) in known {
                let absent = fields.get(name).is_none_or(|v| v.is_null() && inner["nullable"] != true);
                match inner.get("default") {
                    Some(default) if absent => _ = fields.insert(name.clone(), default.clone()),
                    None if absent => _ = fields.remove(name),
                    _ => {}
                }
            }
            for (name, value) in fields.iter_mut() {
                if let Some(inner) = known.get(name).or(schema.get("additionalProperties")) {
                    default(value, inner);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| default(item, &schema["items"])),
        _ => {}
    }
}

/// Whether an expression is true; an error is one.
fn evaluate(program: &Program, name: &str, value: &Value) -> Result<bool, String> {
    match execute(program, name, value) {
        Ok(cel::Value::Bool(held)) => Ok(held),
        other => Err(format!("{other:?}")),
    }
}

fn execute(program: &Program, name: &str, value: &Value) -> Result<cel::Value, cel::ExecutionError> {
    let mut context = Context::default();
    context.add_variable(name, value).unwrap();
    // Prefixes and addresses are texts here, in the one form that they have.
    let net = |text: &str| text.parse::<IpNet>().ok().filter(|net| !mapped(net.addr()));
    let parse = move |text: &str| {
        net(text).ok_or_else(|| cel::ExecutionError::function_error("cidr", format!("{text} is none")))
    };
    let added = [
        context.add_function("isCIDR", move |text: Arc<String>| net(&text).is_some()),
        context
            .add_function("cidr", move |text: Arc<String>| parse(&text).map(|net| Arc::new(net.to_string()))),
        context.add_function("masked", move |This(of): This<Arc<String>>| {
            parse(&of).map(|net| Arc::new(net.trunc().to_string()))
        }),
        context.add_function("ip", move |This(of): This<Arc<String>>| {
            parse(&of).map(|net| Arc::new(net.addr().to_string()))
        }),
        context.add_function("prefixLength", move |This(of): This<Arc<String>>| {
            parse(&of).map(|net| i64::from(net.prefix_len()))
        }),
        context.add_function("containsIP", move |This(of): This<Arc<String>>, ip: Arc<String>| {
            parse(&of).map(|net| net.contains(&ip.parse::<IpAddr>().unwrap()))
        }),
        context.add_function("join", |This(of): This<Arc<Vec<cel::Value>>>, between: Arc<String>| {
            let text = |one: &cel::Value| match one {
                cel::Value::String(text) => text.to_string(),
                other => panic!("{other:?} is no text"),
            };
            Arc::new(of.iter().map(text).collect::<Vec<_>>().join(&between))
        }),
    ];
    assert!(added.iter().all(Result::is_ok));
    program.execute(&context)
}

fn mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

/// Visits a schema and all that are in it.
pub(crate) fn every(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        every(inner, &format!("{path}.{name}"), visit);
    }
    for inner in ["items", "additionalProperties"].into_iter().filter_map(|name| schema.get(name)) {
        every(inner, &format!("{path}[]"), visit);
    }
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

pub(crate) fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
