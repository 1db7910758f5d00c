//! What a compilation tells people: endpoints by name, where rows come from, and what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use egress_common::wire::{Addr, RowKey};
use serde::Serialize;

use crate::object::ObjectRef;

/// What is known of a local pod besides its map entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointInfo {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID (`metadata.uid`).
    pub uid: String,
    /// How it is judged.
    #[serde(flatten)]
    pub state: PodState,
    /// The policies that select it, in order.
    pub policies: Vec<ObjectRef>,
    /// The number of what they say together, 0 unless isolated.
    pub policy: u64,
    /// The number of what its proxy lock does not cover, 0 without a lock.
    pub lock: u64,
    /// The containers that are a proxy of the lock.
    pub proxies: Vec<ProxyInfo>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
}

/// What is known of a container that is a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyInfo {
    /// Its name.
    pub name: String,
    /// Id of its cgroup.
    pub cgroup: u64,
    /// The number of what policies say about it together.
    pub policy: u64,
}

/// How a pod is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub enum PodState {
    /// No policy selects it.
    Unselected,
    /// It may do what its policies allow.
    Isolated {
        /// Every tier that selects it only audits.
        audit: bool,
    },
    /// A policy that selects it is invalid: it fails closed.
    Invalid {
        /// What is wrong, one line each.
        reasons: Vec<String>,
    },
}

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// Something has less effect than its author may think.
    Warning,
    /// Something is denied because it cannot be understood or does not fit.
    Error,
}

/// Something that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// The object, `None` for the node as a whole.
    pub object: Option<ObjectRef>,
    /// The field, empty for the whole object.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: ")?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

/// What a diagnostic hangs on: with it the diagnostic goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    Object(ObjectRef),
    Endpoint(u64),
    Address(Addr),
    Row(RowKey),
}

/// The diagnostics by what they hang on.
#[derive(Debug, Default)]
pub(super) struct Diagnostics {
    by_origin: BTreeMap<Origin, Vec<Diagnostic>>,
    /// They changed since they were last put together.
    changed: bool,
}

impl Diagnostics {
    /// Takes what is wrong now in the place of what was.
    pub(super) fn say(&mut self, origin: Origin, diagnostics: Vec<Diagnostic>) {
        if self.by_origin.get(&origin).map_or(&[][..], Vec::as_slice) == diagnostics {
            return;
        }
        self.changed = true;
        if diagnostics.is_empty() {
            self.by_origin.remove(&origin);
        } else {
            self.by_origin.insert(origin, diagnostics);
        }
    }

    /// All of them in order, each once; `None` if none came or went since the last time.
    pub(super) fn changed(&mut self) -> Option<Vec<Diagnostic>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let all: BTreeSet<&Diagnostic> = self.by_origin.values().flatten().collect();
        Some(all.into_iter().cloned().collect())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_origin.is_empty()
    }
}

/// A rule of a policy, by the number that rows and events carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleInfo {
    /// The object it is written in; the node for the rules of unknown pods.
    pub object: ObjectRef,
    /// The field, like `spec.allow.to[0]` or `spec.gateways[0] (istio-egress)`; for what is audited, that none of the rules
    /// of the policies that audit allows it, by the first of those policies.
    pub path: String,
}

/// Where numbers come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    pub(super) policies: BTreeMap<u64, PolicyInfo>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PolicyInfo {
    pub(super) objects: Vec<ObjectRef>,
    pub(super) rules: Vec<RuleInfo>,
}

impl Provenance {
    /// The rule of this number within a policy.
    #[must_use]
    pub fn rule(&self, policy: u64, rule: u16) -> Option<&RuleInfo> {
        self.policies.get(&policy)?.rules.get(usize::from(rule))
    }

    /// The objects that a policy number stands for, in order; none for the policy of unknown pods.
    #[must_use]
    pub fn policies(&self, policy: u64) -> &[ObjectRef] {
        self.policies.get(&policy).map_or(&[], |info| &info.objects)
    }
}
