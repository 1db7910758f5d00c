//! What is wrong with objects as they are written, whether or not they mean a pod of this node.

use egress_common::wire::ROW_ENTRIES;

use super::report::{Diagnostic, Severity};
use crate::index::Index;
use crate::object::{
    Destinations, EgressGatewayPolicy, Kind, NetworkPolicy, Object, ObjectError, ObjectRef, Peer, Pod, Port,
    Ports, Set,
};

/// What is wrong with one object; of a pod on the host network, with the lock-downs that mean it as a gateway.
pub(crate) fn diagnose(index: &Index, object: &ObjectRef) -> Vec<Diagnostic> {
    // Most pods have nothing said about them here.
    match object.kind {
        Kind::Node => return Vec::new(),
        Kind::Service | Kind::EndpointSlice => return unread(index, object).into_iter().collect(),
        _ => {}
    }
    match index.get(object) {
        Some(Object::EgressGatewayPolicy(policy)) => gateway_policy(&policy),
        Some(Object::NetworkPolicy(policy)) => network_policy(&policy),
        Some(Object::Namespace(namespace)) => {
            enforcement(object, namespace.enforcement.as_deref()).into_iter().collect()
        }
        Some(Object::Pod(pod)) => host_gateway(index, &pod),
        _ => Vec::new(),
    }
}

fn diagnostic(object: &ObjectRef, path: &str, reason: String, severity: Severity) -> Diagnostic {
    Diagnostic { object: Some(object.clone()), path: path.to_owned(), reason, severity }
}

/// That a service is closed because it, or this slice of it, cannot be read; what of it, the source says.
fn unread(index: &Index, object: &ObjectRef) -> Option<Diagnostic> {
    // No object has such a name: it is one of a moment ago, and its author has nothing to mend.
    if object.name.contains(' ') {
        return None;
    }
    let reason = match object.kind {
        Kind::Service => {
            index.service(object.namespace.as_deref()?, &object.name).filter(|service| service.unread)?;
            "some of it cannot be read: nothing at its addresses is allowed, nor at its node ports"
        }
        _ => {
            let slice = index.slice(object.namespace.as_deref()?, &object.name)?;
            Some(slice).filter(|slice| slice.unread && slice.proxied)?;
            "some of it cannot be read: its service may lead anywhere, and no port of that is allowed"
        }
    };
    Some(diagnostic(object, "", reason.to_owned(), Severity::Error))
}

fn errors<'a>(object: &'a ObjectRef, errors: &'a [ObjectError]) -> impl Iterator<Item = Diagnostic> + 'a {
    errors.iter().map(|error| diagnostic(object, &error.path, error.reason.clone(), Severity::Error))
}

fn gateway_policy(policy: &EgressGatewayPolicy) -> Vec<Diagnostic> {
    let object = policy.object_ref();
    let mut found: Vec<Diagnostic> = errors(&object, &policy.errors).collect();
    if policy.unreadable_subjects {
        let reason =
            "a subject cannot be read: every pod outside kube-system and egress-enforcer fails closed";
        found.push(diagnostic(&object, "spec.subjects", reason.to_owned(), Severity::Error));
    }
    let nothing = Ports::Listed(Set::default());
    // Of an invalid policy, what stands for an entry that cannot be read has no ports either.
    let gateways = policy.gateways.iter().filter(|_| policy.errors.is_empty());
    let mut warn =
        |path: String, reason: String| found.push(diagnostic(&object, &path, reason, Severity::Warning));
    for gateway in gateways.clone() {
        let path = format!("spec.gateways[{}]", gateway.index);
        if gateway.ports == nothing {
            warn(path.clone(), "ports is empty: nothing is allowed".to_owned());
        }
        if let Some(reason) = crowded(&gateway.ports) {
            warn(format!("{path}.ports"), reason);
        }
        if let Destinations::Only(destinations) = &gateway.destinations {
            for (i, (_, ports)) in destinations.iter().enumerate() {
                crowded(ports)
                    .into_iter()
                    .for_each(|reason| warn(format!("{path}.destinations[{i}]"), reason));
            }
        }
        if gateway.clients.as_ref().is_some_and(Vec::is_empty) {
            warn(path.clone(), "clients is empty: nobody may use it".to_owned());
        }
        let mut before = gateways.clone().take_while(|other| other.index < gateway.index);
        if let Some(other) = before.find(|other| !other.name.is_empty() && other.name == gateway.name) {
            warn(path, format!("has the name of spec.gateways[{}], {:?}", other.index, gateway.name));
        }
    }
    for (i, to) in policy.allow.to.iter().enumerate() {
        if to.ports == nothing {
            warn(format!("spec.allow.to[{i}]"), "ports is empty: nothing is allowed".to_owned());
        }
        crowded(&to.ports).into_iter().for_each(|reason| warn(format!("spec.allow.to[{i}]"), reason));
    }
    found
}

/// Lock-downs that mean a pod on the host network as a gateway, which it cannot be.
fn host_gateway(index: &Index, pod: &Pod) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let labels = index.namespace(&pod.namespace);
    for policy in index.gateway_policies().filter(|_| pod.host_network) {
        for gateway in &policy.gateways {
            if gateway.pods.as_ref().is_some_and(|peer| peer.matches_labels(pod, labels)) {
                let path = format!("spec.gateways[{}]", gateway.index);
                let reason =
                    format!("{} is on the host network and no gateway by its labels", pod.object_ref());
                found.push(diagnostic(&policy.object_ref(), &path, reason, Severity::Warning));
            }
        }
    }
    found
}

fn network_policy(policy: &NetworkPolicy) -> Vec<Diagnostic> {
    let object = policy.object_ref();
    let mut found: Vec<Diagnostic> = errors(&object, &policy.errors).collect();
    for rule in &policy.rules {
        let cidr_only =
            rule.to.as_ref().is_some_and(|to| to.iter().all(|peer| matches!(peer, Peer::Cidr(_))));
        let named = match &rule.ports {
            Ports::All => false,
            Ports::Listed(ports) => ports.iter().any(|port| matches!(port, Port::Named(..))),
        };
        if cidr_only && named {
            let reason = "a port's name means nothing outside of pods".to_owned();
            found.push(diagnostic(&object, "spec.egress", reason, Severity::Warning));
        }
        let crowded = crowded(&rule.ports);
        found.extend(crowded.map(|reason| diagnostic(&object, "spec.egress", reason, Severity::Warning)));
    }
    let remark = |one: &ObjectError| diagnostic(&object, &one.path, one.reason.clone(), Severity::Warning);
    found.extend(policy.remarks.iter().map(remark));
    found.extend(enforcement(&object, policy.enforcement.as_deref()));
    found
}

/// That a list has more ports than the maps have room for at one destination, whichever that is.
fn crowded(ports: &Ports) -> Option<String> {
    let Ports::Listed(ports) = ports else { return None };
    let ranges = ports.iter().filter_map(|port| match port {
        Port::Range(range) => Some(range),
        Port::Named(..) => None,
    });
    let mut ranges: Vec<_> = ranges.map(|range| (range.protocol, range.low, range.high)).collect();
    ranges.sort_unstable();
    // Those that overlap or touch are one.
    ranges.dedup_by(|next, last| {
        let joins = next.0 == last.0 && next.1 <= last.2.saturating_add(1);
        if joins {
            last.2 = last.2.max(next.2);
        }
        joins
    });
    let count = ranges.len();
    (count > ROW_ENTRIES).then(|| {
        let room =
            format!("to one destination a pod has at most {ROW_ENTRIES}, and the narrowest are denied");
        format!("{count} ranges of ports: {room}")
    })
}

fn enforcement(object: &ObjectRef, value: Option<&str>) -> Option<Diagnostic> {
    let value = value.filter(|value| !matches!(*value, "Audit" | "Enforce"))?;
    let path = format!("metadata.annotations[{}]", crate::object::ENFORCEMENT_ANNOTATION);
    let reason = format!("{value:?} is not Audit or Enforce; enforced");
    Some(diagnostic(object, &path, reason, Severity::Warning))
}
