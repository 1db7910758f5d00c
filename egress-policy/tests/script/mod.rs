//! Scenario files: what they say. See `tests/scenarios/README.md`.
#![allow(
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "test helpers fail by panic where the tree itself is broken"
)]

pub mod run;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use egress_common::{Action, Reason};
use egress_policy::object::{ObjectRef, Read, read};
use egress_policy::reference::Protocol;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::Spanned;

/// The document that a scenario starts with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// What is shown, in a few words.
    pub title: String,
    /// What promises it, quoted.
    pub sentence: String,
    /// Where that is written.
    pub source: String,
    /// The cluster it starts from: a file beside the areas.
    pub base: String,
    /// What a reader should know besides.
    pub note: Option<String>,
    /// How the enforcer differs from the sentence, where it does so on purpose.
    pub differs: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    #[serde(default)]
    apply: Vec<Spanned<Value>>,
    #[serde(default)]
    delete: Vec<Spanned<String>>,
    #[serde(default)]
    expect: Vec<Spanned<BTreeMap<String, String>>>,
}

/// A scenario.
#[derive(Debug)]
pub struct Scenario {
    /// `area/slug`.
    pub name: String,
    pub path: PathBuf,
    pub header: Header,
    pub base: Vec<Value>,
    pub steps: Vec<Step>,
}

/// What happens, and what holds afterwards.
#[derive(Debug)]
pub struct Step {
    /// The line it starts at.
    pub line: u64,
    pub apply: Vec<Value>,
    /// Lines and names.
    pub delete: Vec<(u64, String)>,
    pub expect: Vec<Expectation>,
}

/// One line of `expect`.
#[derive(Clone, Debug)]
pub struct Expectation {
    pub line: u64,
    /// As written, without the verdict.
    pub flow: String,
    /// `namespace/name` of a pod.
    pub from: String,
    pub to: Destination,
    pub protocol: Protocol,
    pub port: u16,
    pub action: Action,
    /// Where the line names one.
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Address(IpAddr),
    /// Every address of a pod that is of one of the sender's families.
    Pod(String),
    /// Every address of a service that is of one of the sender's families.
    Service(String),
}

/// Where the scenarios are.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

/// What is in a directory, in order.
pub fn list(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// The files of all areas, in order.
pub fn files() -> Vec<PathBuf> {
    list(&root()).iter().filter(|path| path.is_dir()).flat_map(|area| list(area)).collect()
}

/// Reads every scenario; an error names file and line.
pub fn scenarios() -> (Vec<Scenario>, Vec<String>) {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for path in files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "yaml")) {
        match scenario(&path) {
            Ok(scenario) => found.push(scenario),
            Err((line, reason)) => errors.push(at(&path, line, &reason)),
        }
    }
    (found, errors)
}

/// A message about a line, with the file's path from `scenarios` on.
pub fn at(path: &Path, line: u64, reason: &str) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    format!("{}:{line}: {reason}", path.display())
}

/// A line and what is wrong with it.
type Wrong = (u64, String);

fn scenario(path: &Path) -> Result<Scenario, Wrong> {
    let text = fs::read_to_string(path).map_err(|error| (0, error.to_string()))?;
    let mut documents = documents(&text).into_iter();
    let (line, first) = documents.next().ok_or((1, "empty".to_owned()))?;
    let header: Header = yaml(line, first)?;
    let name = path.strip_prefix(root()).unwrap().with_extension("").display().to_string();
    let base = base(&header.base).map_err(|error| (1, format!("{}: {error}", header.base)))?;
    let steps = documents.map(|(line, text)| step(line, text)).collect::<Result<_, _>>()?;
    Ok(Scenario { name, path: path.to_owned(), header, base, steps })
}

fn base(file: &str) -> Result<Vec<Value>, String> {
    let text = fs::read_to_string(root().join(file)).map_err(|error| error.to_string())?;
    let mut objects = Vec::new();
    for (line, document) in documents(&text) {
        let listed: Vec<Value> =
            yaml(line, document).map_err(|(line, reason)| format!("{line}: {reason}"))?;
        objects.extend(listed);
    }
    objects.into_iter().map(|object| known(object, true)).collect()
}

fn step(line: u64, text: &str) -> Result<Step, Wrong> {
    let raw: RawStep = yaml(line, text)?;
    let mut step = Step { line, apply: Vec::new(), delete: Vec::new(), expect: Vec::new() };
    let within = |at: u64| line + at.saturating_sub(1);
    for object in raw.apply {
        let at = within(object.referenced.line());
        step.apply.push(known(object.value, false).map_err(|reason| (at, reason))?);
    }
    step.delete = raw.delete.into_iter().map(|name| (within(name.referenced.line()), name.value)).collect();
    for entry in raw.expect {
        let at = within(entry.referenced.line());
        let one = entry.value.len() == 1;
        let (flow, verdict) = entry.value.into_iter().next().filter(|_| one).ok_or((at, FORM.to_owned()))?;
        step.expect.push(expectation(at, &flow, &verdict).ok_or((at, FORM.to_owned()))?);
    }
    Ok(step)
}

const FORM: &str = "an expectation is `NS/POD -> DESTINATION:PORT/PROTOCOL: allow|deny|audit [Reason]`";

/// Reads one line of `expect`; `None` where it does not have the form.
pub fn expectation(line: u64, flow: &str, verdict: &str) -> Option<Expectation> {
    let (from, rest) = flow.split_once(" -> ")?;
    let (rest, protocol) = rest.rsplit_once('/')?;
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        "ICMP" => Protocol::Icmp,
        _ => return None,
    };
    let (host, port) = match protocol {
        Protocol::Icmp => (rest, 0),
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            let (host, port) = rest.rsplit_once(':')?;
            (host, port.parse().ok()?)
        }
    };
    let name = |text: &str| text.split('/').count() == 2;
    let sender = |text: &str| {
        let parts: Vec<&str> = text.split('/').collect();
        matches!(parts.len(), 2 | 3) && parts.iter().all(|part| !part.is_empty())
    };
    let to = match host.strip_prefix("svc:") {
        Some(service) => name(service).then(|| Destination::Service(service.to_owned()))?,
        None if host.contains('/') => name(host).then(|| Destination::Pod(host.to_owned()))?,
        None => Destination::Address(host.trim_start_matches('[').trim_end_matches(']').parse().ok()?),
    };
    let (action, reason) = verdict.split_once(' ').map_or((verdict, None), |(a, r)| (a, Some(r)));
    if let Some(reason) = reason {
        Reason::ALL.iter().find(|known| known.name() == reason)?;
    }
    Some(Expectation {
        line,
        flow: flow.to_owned(),
        from: sender(from).then(|| from.to_owned())?,
        to,
        protocol,
        port,
        action: Action::ALL.into_iter().find(|known| known.name() == action)?,
        reason: reason.map(str::to_owned),
    })
}

/// An object that the index takes; a pod without a UID gets one made of its name.
fn known(mut object: Value, valid: bool) -> Result<Value, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if object["kind"] == "Pod" && object["metadata"].is_object() {
        let metadata = &mut object["metadata"];
        let uid = format!("uid-{}-{}", text(&metadata["namespace"]), text(&metadata["name"]));
        if metadata.get("uid").is_none() {
            metadata["uid"] = Value::String(uid);
        }
    }
    for read in read(object.clone()).map_err(|error| error.to_string())? {
        match read {
            Read::Workload { kind, .. } | Read::Ignored { kind, .. } => {
                return Err(format!("a {kind} is nothing that counts"));
            }
            Read::Invalid { object, error, stand_in } if valid || stand_in.is_none() => {
                return Err(format!("{object}: {error}"));
            }
            Read::Object(_) | Read::Invalid { .. } => {}
        }
    }
    Ok(object)
}

/// The name of an object as `kind ns/name`, found among all there are.
pub fn named(objects: impl Iterator<Item = ObjectRef>, name: &str) -> Option<ObjectRef> {
    let mut objects = objects;
    objects.find(|object| object.to_string() == name)
}

fn yaml<T: DeserializeOwned>(first_line: u64, text: &str) -> Result<T, Wrong> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        (first_line + line.saturating_sub(1), error.without_snippet().to_string())
    })
}

/// The documents of a text that are more than comments, each with the number of its first line.
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut found = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 1, 0);
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        if content.trim_end() == "---" {
            found.push((first_line, &text[start..offset]));
            (start, first_line) = (offset, line);
        }
        offset += content.len();
    }
    found.push((first_line, &text[start..]));
    let says = |line: &str| !line.is_empty() && !line.starts_with('#') && line != "---";
    found.retain(|(_, text)| text.lines().any(|line| says(line.trim_end())));
    found
}
