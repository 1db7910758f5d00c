//! What is below `deploy/`, rendered with the real tools.

mod agent;
mod monitoring;
mod objects;
mod scripts;

use std::sync::OnceLock;

use serde_json::Value;

use super::render::{self, Tools};

/// Values with which the chart sets every flag of the agent that it knows.
const EVERYTHING: &str = "agent.unknownPods=allow,agent.hooks=socket,agent.sever=true,agent.log=debug,agent.logFormat=json,\
    agent.flowLog=-,nodeTaint.enabled=true,bpffs.mount=true";

/// The renderers; installed once where they are missing.
fn tools() -> &'static Tools {
    static TOOLS: OnceLock<Tools> = OnceLock::new();
    TOOLS.get_or_init(|| render::tools().unwrap())
}

/// The objects of a rendering.
fn parse(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|object| !object.is_null()).collect()
}

fn kustomize(path: &str) -> Vec<Value> {
    parse(&tools().kustomize(path).unwrap())
}

fn helm(arguments: &[&str]) -> Vec<Value> {
    parse(&tools().helm(arguments).unwrap())
}

/// Kind, namespace and name of an object.
fn name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    format!("{} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

fn one<'o>(objects: &'o [Value], kind: &str) -> &'o Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    object
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}
