//! What weakens the mesh's exit, as far as the objects tell: pods that get round their sidecar, gateways that are none,
//! policies that do not do what they seem to.
//!
//! Invariants: equal objects give equal findings, in one order; a pod is a subject here when the compiler locks it
//! down, and a workload when it would its pods; what could not be looked at is a finding, never silence. Tested by
//! `tests/lint.rs`, with a lawful twin for each check.

mod check;
mod mesh;
mod pods;
mod policies;

pub use check::{Check, Severity};

use std::fmt;
use std::sync::Arc;

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use crate::index::Index;
use crate::object::{ObjectRef, Workload};

/// What a finding is about. Displayed as `Pod ns/name` or `Deployment ns/name`, serialised as that string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// An object that counts.
    Object(ObjectRef),
    /// Something that makes pods.
    Workload {
        /// Its kind.
        kind: Arc<str>,
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(object) => object.fmt(f),
            Self::Workload { kind, namespace, name } => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

impl From<ObjectRef> for Place {
    fn from(object: ObjectRef) -> Self {
        Self::Object(object)
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that weakens the exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked for.
    pub check: Check,
    /// Where it is.
    pub object: Place,
    /// What it is here.
    pub detail: String,
}

/// Keys `check`, `severity`, `object`, `detail`, `advice`.
impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_struct("Finding", 5)?;
        line.serialize_field("check", &self.check)?;
        line.serialize_field("severity", &self.check.severity())?;
        line.serialize_field("object", &self.object)?;
        line.serialize_field("detail", &self.detail)?;
        line.serialize_field("advice", self.check.advice())?;
        line.end()
    }
}

/// What the checks put their findings into.
#[derive(Debug, Default)]
struct Found(Vec<Finding>);

impl Found {
    fn add(&mut self, check: Check, object: impl Into<Place>, detail: impl Into<String>) {
        self.0.push(Finding { check, object: object.into(), detail: detail.into() });
    }
}

/// Everything that weakens the exit, the worst first, then by object, check and detail. `workloads` are looked at as pods into which a
/// mesh will put its proxy.
#[must_use]
pub fn lint(index: &Index, workloads: &[Workload]) -> Vec<Finding> {
    let members = mesh::members(index, workloads);
    let mut found = Found::default();
    pods::lint(&members, &mut found);
    policies::lint(index, &members, &mut found);
    let Found(mut found) = found;
    found.sort_by(|a, b| {
        let key = |finding: &Finding| (finding.check.severity(), finding.object.clone(), finding.check);
        key(a).cmp(&key(b)).then_with(|| a.detail.cmp(&b.detail))
    });
    found.dedup();
    found
}

/// The first of some names, and how many more there are.
fn few<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    const SHOWN: usize = 3;
    let names: Vec<&str> = names.into_iter().collect();
    let (shown, rest) = names.split_at(names.len().min(SHOWN));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    shown.join(", ") + &more
}

/// A number of things, as in `1 pod` and `2 pods`.
fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
