//! From the types' JSON schema to a *structural* one: no references, one type everywhere, what is unknown preserved.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::rules;
use crate::object::RawSpec;

/// Where schemars keeps the types that are referred to, and how it refers to them.
const DEFINITIONS: &str = "$defs";
const REFERENCE: &str = "#/$defs/";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";

/// The schema of `spec`.
pub(super) fn spec() -> Value {
    let mut root =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<RawSpec>().to_value();
    let mut types = match root.as_object_mut().and_then(|root| root.remove(DEFINITIONS)) {
        Some(Value::Object(types)) => types,
        _ => Map::new(),
    };
    for (name, more) in rules::by_type() {
        match name {
            rules::ROOT => merge(&mut root, &more),
            name => merge(types.entry(name).or_insert_with(|| json!({})), &more),
        }
    }
    structural(&root, &types)
}

/// Adds what `more` says: objects are merged, everything else is replaced.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

/// One schema without references, `null` types and `additionalProperties: false`.
fn structural(schema: &Value, types: &Map<String, Value>) -> Value {
    let Some(said) = schema.as_object() else { return json!({}) };
    // What a type says, and what a field says besides or instead.
    let mut merged = Value::Object(said.clone());
    if let Some(inner) =
        said.get("anyOf").and_then(Value::as_array).and_then(|any| any.iter().find(|s| !is_null(s)))
    {
        merged = inner.clone();
        merge(&mut merged, schema);
    }
    let name =
        merged["$ref"].as_str().and_then(|reference| reference.strip_prefix(REFERENCE)).map(str::to_owned);
    if let Some(referred) = name.and_then(|name| types.get(&name)) {
        let outer = std::mem::replace(&mut merged, referred.clone());
        merge(&mut merged, &outer);
    }
    let mut clean = Map::new();
    for (key, value) in merged.as_object().into_iter().flatten() {
        let value = match key.as_str() {
            "$schema" | "$ref" | "title" | "anyOf" | "additionalProperties" => continue,
            "default" if value.is_null() => continue,
            "type" => one_type(value),
            "description" => json!(paragraphs(value.as_str().unwrap_or_default())),
            "enum" => value.as_array().into_iter().flatten().filter(|v| !v.is_null()).cloned().collect(),
            "items" => structural(value, types),
            "properties" => properties(value, &merged["required"], types),
            _ => value.clone(),
        };
        clean.insert(key.clone(), value);
    }
    match merged.get("additionalProperties") {
        Some(Value::Bool(false)) => clean.insert(PRESERVE.to_owned(), json!(true)),
        Some(values @ Value::Object(_)) => {
            clean.insert("additionalProperties".to_owned(), structural(values, types))
        }
        _ => None,
    };
    Value::Object(clean)
}

/// Fields; those that may be absent and have no default keep their null, for the reader to refuse.
fn properties(fields: &Value, required: &Value, types: &Map<String, Value>) -> Value {
    let required: Vec<_> = required.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let field = |(name, schema): (&String, &Value)| {
        let mut schema = structural(schema, types);
        if !required.contains(&name.as_str()) && schema.get("default").is_none() {
            schema["nullable"] = json!(true);
        }
        (name.clone(), schema)
    };
    fields.as_object().into_iter().flatten().map(field).collect()
}

fn is_null(schema: &Value) -> bool {
    schema["type"] == "null"
}

/// Text whose lines were broken for who reads the source.
fn paragraphs(text: &str) -> String {
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

/// The type that is not null.
fn one_type(types: &Value) -> Value {
    let any = types.as_array().and_then(|types| types.iter().find(|name| *name != "null"));
    any.unwrap_or(types).clone()
}
