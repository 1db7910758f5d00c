//! What is wrong with the policies as they are written.

use std::collections::BTreeSet;

use super::cluster::Cluster;
use super::pod_ref;
use super::report::{Diagnostic, Severity};
use crate::index::Index;
use crate::object::{Kind, ObjectRef, Pod, Port, Ports};

/// What is wrong with policies, whether or not they select a pod of this node.
pub(super) fn diagnose(index: &Index, cluster: &Cluster<'_>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut add = |object: ObjectRef, path: &str, reason: String, severity| {
        found.push(Diagnostic { object: Some(object), path: path.to_owned(), reason, severity });
    };
    for policy in index.gateway_policies() {
        for error in &policy.errors {
            add(policy.object_ref(), &error.path, error.reason.clone(), Severity::Error);
        }
        if policy.unreadable_subjects {
            let reason =
                "a subject cannot be read: every pod outside kube-system and egress-enforcer fails closed";
            add(policy.object_ref(), "spec.subjects", reason.to_owned(), Severity::Error);
        }
        for gateway in &policy.gateways {
            let path = format!("spec.gateways[{}]", gateway.index);
            if gateway.ports == Ports::Listed(BTreeSet::new()) {
                add(
                    policy.object_ref(),
                    &path,
                    "ports is empty: nothing is allowed".to_owned(),
                    Severity::Warning,
                );
            }
            let Some(peer) = &gateway.pods else { continue };
            let labels = |pod: &Pod| peer.pods.matches_labels(&pod.labels);
            let space = |pod: &Pod| cluster.namespace(&pod.namespace).match_selector(&peer.namespaces);
            for member in
                cluster.members.iter().filter(|m| m.pod.host_network && labels(m.pod) && space(m.pod))
            {
                let reason =
                    format!("{} is on the host network and no gateway by its labels", pod_ref(member.pod));
                add(policy.object_ref(), &path, reason, Severity::Warning);
            }
        }
    }
    for policy in index.network_policies() {
        for error in &policy.errors {
            add(policy.object_ref(), &error.path, error.reason.clone(), Severity::Error);
        }
        for rule in &policy.rules {
            let cidr_only = rule
                .to
                .as_ref()
                .is_some_and(|to| to.iter().all(|p| matches!(p, crate::object::Peer::Cidr(_))));
            let named = match &rule.ports {
                Ports::All => false,
                Ports::Listed(ports) => ports.iter().any(|port| matches!(port, Port::Named(..))),
            };
            if cidr_only && named {
                let reason = "a port's name means nothing outside of pods".to_owned();
                add(policy.object_ref(), "spec.egress", reason, Severity::Warning);
            }
        }
        enforcement(&mut add, policy.object_ref(), policy.enforcement.as_deref());
    }
    for namespace in index.namespaces() {
        let object = ObjectRef { kind: Kind::Namespace, namespace: None, name: namespace.name.clone() };
        enforcement(&mut add, object, namespace.enforcement.as_deref());
    }
    found
}

fn enforcement(
    add: &mut impl FnMut(ObjectRef, &str, String, Severity),
    object: ObjectRef,
    value: Option<&str>,
) {
    if let Some(value) = value.filter(|value| !matches!(*value, "Audit" | "Enforce")) {
        let path = format!("metadata.annotations[{}]", crate::object::ENFORCEMENT_ANNOTATION);
        add(object, &path, format!("{value:?} is not Audit or Enforce; enforced"), Severity::Warning);
    }
}
