//! Policies: whether they lock down what they seem to, and whether the way out is the gateway's alone.
//!
//! Invariant: of an invalid policy only that is told, and what its gateways exempt all the same. Tested by
//! `tests/lint.rs`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egress_common::wire::Cidr;

use super::mesh::{Member, only_proxy};
use super::{Check, Found, count, few};
use crate::compile::{Diagnostic, Severity, diagnose};
use crate::index::Index;
use crate::object::{
    CidrPeer, Destinations, EgressGatewayPolicy, Gateway, Kind, LIFELINE_NAMESPACES, MAPPED_V4, PodPeer,
    SINGLE, ToPeer, address, cidr_contains, is_single,
};

/// Prefix length of 10.0.0.0/8.
const WIDEST_PRIVATE_V4: u32 = 8;
/// Prefix length of fc00::/7.
const WIDEST_PRIVATE_V6: u32 = 7;

pub(super) fn lint(index: &Index, members: &[Member<'_>], found: &mut Found) {
    said(index, found);
    let unready = unready(index);
    for policy in index.gateway_policies() {
        for gateway in &policy.gateways {
            exemptions(policy, gateway, members, found);
        }
        if policy.errors.is_empty() {
            valid(index, policy, members, found);
            locks(index, policy, members, found);
            for gateway in &policy.gateways {
                way_out(index, policy, gateway, members, &unready, found);
            }
        } else {
            for error in &policy.errors {
                found.add(Check::PolicyInvalid, policy.object_ref(), error.to_string());
            }
            if policy.unreadable_subjects {
                let but = LIFELINE_NAMESPACES.join(" and ");
                let detail =
                    format!("spec.subjects: it may mean anybody, so every pod outside {but} is a subject");
                found.add(Check::PolicyInvalid, policy.object_ref(), detail);
            }
        }
    }
}

/// What the agents say of objects themselves; of an EgressGatewayPolicy's errors more is told elsewhere.
fn said(index: &Index, found: &mut Found) {
    for object in index.objects() {
        for Diagnostic { path, reason, severity, .. } in diagnose(index, &object) {
            let check = match (severity, object.kind) {
                (Severity::Error, Kind::EgressGatewayPolicy) => continue,
                (Severity::Error, _) => Check::PolicyInvalid,
                (Severity::Warning, _) => Check::LikelyMistake,
            };
            found.add(check, object.clone(), format!("{path}: {reason}"));
        }
    }
    let any = index.objects().any(|object| object.kind == Kind::Namespace);
    for object in index.objects().filter(|object| any && object.kind == Kind::NetworkPolicy) {
        let namespace = object.namespace.clone().unwrap_or_default();
        if index.namespace(&namespace).labels.is_none() {
            let detail = format!("metadata.namespace: there is no Namespace {namespace} among the objects");
            found.add(Check::LikelyMistake, object, detail);
        }
    }
}

fn valid(index: &Index, policy: &EgressGatewayPolicy, members: &[Member<'_>], found: &mut Found) {
    let object = policy.object_ref();
    if policy.audit {
        found.add(Check::PolicyAudits, object.clone(), "spec.enforcement is Audit");
        audits(index, policy, members, found);
    }
    // A pod that has finished was a subject, and its next run will be one; a pod that cannot be judged may be one.
    let finished = index.pods().filter(|pod| pod.finished).map(|pod| (pod, index.is_gateway(pod)));
    let all = finished.chain(members.iter().map(|member| (member.pod, member.gateway)));
    let mut selected = all.filter(|(pod, _)| policy.selects(pod, index.namespace(&pod.namespace))).peekable();
    if !no_pods(index, members) && !members.iter().any(|m| m.undecided) {
        let none = selected.peek().is_none();
        if selected.all(|(_, gateway)| gateway) {
            let what = if none { "no pod" } else { "pods of gateways alone, which are no subjects" };
            let detail = format!("spec.subjects select {what}");
            found.add(Check::PolicyWithoutSubjects, object.clone(), detail);
        }
    }
    for (i, to) in policy.allow.to.iter().enumerate() {
        let path = format!("spec.allow.to[{i}]");
        match &to.peer {
            ToPeer::Cidr(cidr) => open(policy, &path, cidr, found),
            ToPeer::Service { namespace, name }
                if index.service(namespace, name).is_none() && !no_pods(index, members) =>
            {
                let detail = format!("{path}: there is no Service {namespace}/{name} among the objects");
                found.add(Check::LikelyMistake, object.clone(), detail);
            }
            ToPeer::Service { .. } | ToPeer::Pods(_) => {}
        }
    }
    for gateway in &policy.gateways {
        clients(policy, gateway, members, found);
    }
}

/// Whether any subject is among the clients that a gateway names.
fn clients(policy: &EgressGatewayPolicy, gateway: &Gateway, members: &[Member<'_>], found: &mut Found) {
    let Some(clients) = gateway.clients.as_ref().filter(|clients| !clients.is_empty()) else { return };
    let mut subjects =
        members.iter().filter(|member| policy.selects(member.pod, member.namespace)).peekable();
    let is_client = |member: &Member<'_>| clients.iter().any(|one| one.matches(member.pod, member.namespace));
    if subjects.peek().is_some() && !members.iter().any(|one| one.undecided) && !subjects.any(is_client) {
        let detail = format!("{}: clients name none of the policy's subjects", path(gateway));
        found.add(Check::LikelyMistake, policy.object_ref(), detail);
    }
}

/// What a gateway entry takes out of every lock-down.
fn exemptions(policy: &EgressGatewayPolicy, gateway: &Gateway, members: &[Member<'_>], found: &mut Found) {
    let Some(peer) = &gateway.pods else { return };
    if peer.namespaces.0.is_empty() {
        let detail = format!("{} takes pods of every namespace", path(gateway));
        found.add(Check::GatewayAnyNamespace, policy.object_ref(), detail);
    }
    let exempt = of(peer, members).filter(|member| member.selected && !only_proxy(member.pod));
    let exempt: Vec<String> = exempt.map(|member| member.name()).collect();
    if !exempt.is_empty() {
        let names = few(exempt.iter().map(String::as_str));
        let detail = format!("{} exempts {}: {names}", path(gateway), count(exempt.len(), "subject"));
        found.add(Check::GatewayExemptsSubjects, policy.object_ref(), detail);
    }
}

/// Whom a policy that audits allows something, though others enforce.
fn audits(index: &Index, policy: &EgressGatewayPolicy, members: &[Member<'_>], found: &mut Found) {
    let enforced = |member: &&Member<'_>| {
        let mut others = index.gateway_policies().filter(|one| !one.audit && one.errors.is_empty());
        member.subject()
            && policy.selects(member.pod, member.namespace)
            && others.any(|one| one.selects(member.pod, member.namespace))
    };
    let enforced = members.iter().filter(enforced);
    let names: Vec<_> = enforced.map(Member::name).collect();
    if !names.is_empty() {
        let subjects = count(names.len(), "subject");
        let few = few(names.iter().map(String::as_str));
        let detail = format!("its rules allow, also {subjects} of policies that enforce: {few}");
        found.add(Check::AuditOpens, policy.object_ref(), detail);
    }
}

/// What a policy without a lock opens to subjects that another one locks.
fn locks(index: &Index, policy: &EgressGatewayPolicy, members: &[Member<'_>], found: &mut Found) {
    if policy.proxy.is_some() {
        return;
    }
    let locking: Vec<_> =
        index.gateway_policies().filter(|one| one.proxy.is_some() && one.errors.is_empty()).collect();
    for gateway in &policy.gateways {
        let is_client = |member: &&Member<'_>| {
            let mut clients = gateway.clients.iter().flatten();
            member.subject()
                && policy.selects(member.pod, member.namespace)
                && (gateway.clients.is_none() || clients.any(|one| one.matches(member.pod, member.namespace)))
        };
        let locks = |member: &Member<'_>| {
            let mut locking = locking.iter().filter(|one| one.selects(member.pod, member.namespace));
            Some((member.name(), &*locking.next()?.name))
        };
        let open: Vec<_> = members.iter().filter(is_client).filter_map(locks).collect();
        let by: BTreeSet<_> = open.iter().map(|(_, by)| *by).collect();
        if !open.is_empty() {
            let detail = format!(
                "{} is open to every container of {} that {} locks: {}",
                path(gateway),
                count(open.len(), "subject"),
                few(by),
                few(open.iter().map(|(pod, _)| &**pod))
            );
            found.add(Check::LockOpened, policy.object_ref(), detail);
        }
    }
}

fn way_out(
    index: &Index,
    policy: &EgressGatewayPolicy,
    gateway: &Gateway,
    members: &[Member<'_>],
    unready: &BTreeSet<IpAddr>,
    found: &mut Found,
) {
    for (i, cidr) in gateway.addresses.iter().enumerate() {
        let path = format!("{}.addresses[{i}]", path(gateway));
        open(policy, &path, cidr, found);
        others(index, policy, gateway, (&path, cidr), members, found);
    }
    let Some(peer) = &gateway.pods else { return };
    let mut restricted = of(peer, members).map(|member| is_restricted(index, member)).peekable();
    let never_seen = restricted.peek().is_none();
    let unrestricted = match &gateway.destinations {
        Destinations::Unrestricted if never_seen || restricted.any(|is| !is) => {
            Some("no destinations".to_owned())
        }
        Destinations::Only(listed) => {
            let wide = listed.iter().position(|(peer, _)| wide(&peer.cidr).is_some());
            wide.map(|at| format!("destinations[{at}] wider than any private network"))
        }
        _ => None,
    };
    if let Some(what) = unrestricted {
        found.add(Check::GatewayUnrestricted, policy.object_ref(), format!("{} has {what}", path(gateway)));
    }
    // Where there are pods, they tell; of what is not there yet nobody knows.
    let there = of(peer, members).any(|member| member.workload.is_none());
    let ready = |member: &Member<'_>| match member.workload {
        Some(workload) => !there && !workload.no_replicas,
        None => member.pod.addresses.iter().any(|ip| !unready.contains(ip)),
    };
    let undecided = members.iter().any(|member| !member.namespace.decides(&peer.namespaces));
    if gateway.addresses.is_empty()
        && !no_pods(index, members)
        && !undecided
        && !of(peer, members).any(|member| ready(&member))
    {
        let matched = of(peer, members).count();
        let what = if matched == 0 {
            "matches no pod".to_owned()
        } else {
            let pods = of(peer, members).filter(|member| member.workload.is_none()).count();
            match pods {
                0 => format!("matches {}, which has no replicas", count(matched, "workload")),
                _ => format!("matches {}, none of them ready", count(pods, "pod")),
            }
        };
        found.add(Check::NoWayOut, policy.object_ref(), format!("{} {what}", path(gateway)));
    }
}

/// Gateways within a prefix that another entry has: its clients and ports do not count for who uses the prefix.
fn others(
    index: &Index,
    policy: &EgressGatewayPolicy,
    gateway: &Gateway,
    (at, prefix): (&str, &CidrPeer),
    members: &[Member<'_>],
    found: &mut Found,
) {
    if is_single(&prefix.cidr) {
        return;
    }
    let holds = |cidr: &Cidr| cidr_contains(&prefix.cidr, cidr);
    let pod = |member: &Member<'_>| {
        let mut addresses = member.pod.addresses.iter().map(|ip| Cidr { bits: SINGLE, addr: address(*ip) });
        member.pod.owns_addresses() && addresses.any(|cidr| holds(&cidr))
    };
    for other in index.gateway_policies() {
        for one in other.gateways.iter().filter(|one| other.name != policy.name || one.index != gateway.index)
        {
            let single = one.addresses.iter().any(|listed| is_single(&listed.cidr) && holds(&listed.cidr));
            if single || one.pods.as_ref().is_some_and(|peer| of(peer, members).any(|member| pod(&member))) {
                let detail = format!(
                    "{at} holds {} of {}: whom that entry's clients and ports keep out gets there all the same",
                    path(one),
                    other.name
                );
                found.add(Check::OpenExit, policy.object_ref(), detail);
            }
        }
    }
}

/// Without any pod nothing can be said of which pods are meant.
fn no_pods(index: &Index, members: &[Member<'_>]) -> bool {
    members.is_empty() && index.pods().next().is_none()
}

/// The pods that a gateway entry means.
fn of<'m, 'a>(peer: &'m PodPeer, members: &'m [Member<'a>]) -> impl Iterator<Item = Member<'a>> + 'm {
    members.iter().copied().filter(|member| peer.matches(member.pod, member.namespace))
}

/// Whether any gateway entry that means a pod has destinations.
fn is_restricted(index: &Index, member: Member<'_>) -> bool {
    let mut gateways = index.gateway_policies().flat_map(|policy| &policy.gateways);
    gateways.any(|gateway| {
        gateway.destinations != Destinations::Unrestricted
            && gateway.pods.as_ref().is_some_and(|peer| peer.matches(member.pod, member.namespace))
    })
}

/// Addresses that services have as backends, and none of them as a ready one.
fn unready(index: &Index) -> BTreeSet<IpAddr> {
    let endpoints = || index.endpoint_slices().flat_map(|slice| slice.endpoints.iter());
    let ready: BTreeSet<IpAddr> = endpoints().filter(|e| e.ready).map(|e| e.address).collect();
    endpoints().map(|e| e.address).filter(|address| !ready.contains(address)).collect()
}

/// A block so wide that it is the outside.
fn open(policy: &EgressGatewayPolicy, path: &str, peer: &CidrPeer, found: &mut Found) {
    if let Some((address, bits)) = wide(&peer.cidr) {
        let detail = format!("{path} is {address}/{bits}, wider than any private network");
        found.add(Check::OpenExit, policy.object_ref(), detail);
    }
}

/// A prefix that is wider than any private network, as people write it.
fn wide(cidr: &Cidr) -> Option<(IpAddr, u32)> {
    let Cidr { bits, addr } = *cidr;
    let (address, bits, widest) = if cidr_contains(&MAPPED_V4, cidr) {
        let [.., a, b, c, d] = addr.0;
        (IpAddr::from([a, b, c, d]), bits.saturating_sub(96), WIDEST_PRIVATE_V4)
    } else {
        (IpAddr::from(addr.0), bits, WIDEST_PRIVATE_V6)
    };
    (bits < widest).then_some((address, bits))
}

fn path(gateway: &Gateway) -> String {
    let name = if gateway.name.is_empty() { String::new() } else { format!(" ({})", gateway.name) };
    format!("spec.gateways[{}]{name}", gateway.index)
}
