//! `explain`: one flow, and everything that leads to its verdict.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egress_common::wire::ROW_ENTRIES;
use egress_common::{Action, Reason};
use egress_policy::Index;
use egress_policy::compile::{Backend, Chain, Doubt, PodState, chain};
use egress_policy::explain::{Judge, Target};
use egress_policy::object::{Container, Kind, ObjectRef};
use egress_policy::plan::Difference;
use serde::Serialize;

use super::{Sender, Told, Verdict, load};
use crate::cli::{ExplainArgs, Output, SourceArgs};

/// What `explain` prints as JSON.
#[derive(Debug, Serialize)]
struct Explanation {
    from: String,
    to: String,
    #[serde(flatten)]
    verdict: Verdict,
    /// The objects have the pod.
    listed: bool,
    /// Why it is judged as an unknown pod, where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<&'static str>,
    /// `Unselected`, `Isolated`, `Invalid` with its reasons; absent for a pod that the objects do not have.
    endpoint: Option<PodState>,
    #[serde(flatten)]
    chain: Chain,
    /// What becomes of the same flow to each backend, in the order of `backends`.
    backend_verdicts: Vec<Verdict>,
    /// Of a bypass, what becomes of the same flow when a proxy of the lock sends it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    proxy_verdicts: BTreeMap<String, Verdict>,
    /// What the kernel's maps say, where a running agent was asked and the pod is on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<Kernel>,
    /// Why they say nothing of this pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_here: Option<String>,
}

/// What the kernel's maps say of a flow.
#[derive(Debug, Serialize)]
pub(crate) struct Kernel {
    /// The node.
    pub(crate) node: String,
    /// The revision that the maps have.
    pub(crate) revision: u64,
    /// What the kernel would do.
    pub(crate) action: &'static str,
    /// Why.
    pub(crate) reason: &'static str,
    /// What it would look up: the pod, the address, the rows.
    pub(crate) entries: Vec<String>,
    /// Where that is not what was compiled.
    pub(crate) differs: Vec<Difference>,
    /// What keeps the agent from being ready, which may be why.
    pub(crate) pending: Vec<String>,
}

/// Where a flow is judged.
pub(crate) enum Place {
    /// Nowhere: from objects alone.
    Objects,
    /// On the pod's own node.
    Here(Kernel),
    /// On another node than the pod's, for a reason.
    NotHere(String),
}

/// The verdict of a flow and what leads to it, from objects alone.
///
/// # Errors
/// The source cannot be read.
pub fn explain(args: &ExplainArgs, source: &SourceArgs) -> anyhow::Result<Told> {
    let loaded = load(source)?;
    let (index, from) = (&loaded.index, &args.from);
    let judge = judge(index, loaded.doubt(args.unknown_pods), from);
    let mut told = tell(index, &judge, (from, args.to), args.read.output, Place::Objects)?;
    told.notes.extend(loaded.note());
    Ok(told)
}

/// A judge over these objects of what a sender and the other containers of its pod send.
pub(crate) fn judge<'a>(index: &'a Index, doubt: impl Into<Doubt>, from: &Sender) -> Judge<'a> {
    let pod = (&*from.namespace, &*from.pod);
    let known = index.pod(pod.0, pod.1).into_iter().flat_map(|known| &known.spec.containers);
    let known =
        known.map(|container| &*container.name).filter(|name| from.container.as_deref() != Some(name));
    Judge::new(
        index,
        doubt,
        [from.container.as_deref()].into_iter().chain(known.map(Some)).map(|one| (pod, one)),
    )
}

/// The flow and, of a service, the same to each of its backends.
pub(crate) fn targets(to: Target, chain: &Chain) -> Vec<Target> {
    let backends =
        chain.backends.iter().map(|one| Target { address: one.address, port: one.port, behind: true, ..to });
    std::iter::once(to).chain(backends).collect()
}

/// Judges a flow and says what leads to the verdict.
pub(crate) fn tell(
    index: &Index,
    judge: &Judge<'_>,
    (from, to): (&Sender, Target),
    output: Output,
    place: Place,
) -> anyhow::Result<Told> {
    let container = from.container.as_deref();
    let pod = (&*from.namespace, &*from.pod);
    let chain = chain(index, pod, container, to.address, (to.protocol, to.port));
    let judged = judge.judge(pod, container, &targets(to, &chain));
    let Some((first, rest)) = judged.split_first() else { return Ok(Told::default()) };
    let known = index.pod(&from.namespace, &from.pod).map(|pod| &pod.spec.containers);
    let has = |name: &str| known.is_none_or(|containers| containers.iter().any(|one| *one.name == *name));
    let mut notes = super::absent(index, [from]);
    if let (Some(name), Reason::SidecarBypass) = (container, first.reason)
        && chain.proxies.contains(name)
    {
        let lasts = |one: &Container| one.kind.lasts() || *one.name != *name;
        if !known.is_none_or(|containers| containers.iter().all(lasts)) {
            notes.push(format!("{name} is no proxy: no init or ephemeral container is, whatever its name"));
        } else if matches!(place, Place::Here(_)) {
            notes.push(format!(
                "{name} is a proxy of the lock, but which cgroup it has is not known here (yet)"
            ));
        }
    }
    let proxies = chain.proxies.iter().filter(|name| first.reason == Reason::SidecarBypass && has(name));
    let judged_as = |name: &String| Some((name.clone(), judge.judge(pod, Some(name), &[to]).first()?.into()));
    let proxy_verdicts = proxies.filter_map(judged_as).collect();
    let all_allow = !chain.tiers.is_empty() && chain.tiers.iter().all(|tier| tier.rule.is_some());
    if first.reason == Reason::NotAllowed && all_allow && rest.iter().all(|one| one.action != Action::Deny) {
        notes.push(format!(
            "every rule allows it, but more than {ROW_ENTRIES} port ranges lead there, and this one did not fit: see the diagnostics of status, or plan"
        ));
    }
    let own = |one: &Backend| {
        index.pod(&from.namespace, &from.pod).is_some_and(|pod| pod.addresses.contains(&one.address))
    };
    let itself =
        chain.backends.iter().zip(rest).find(|(one, judged)| own(one) && judged.action == Action::Deny);
    if itself.is_some() {
        notes.push(
            "a pod reaches itself by its own address; by a service it has to be allowed as any other pod"
                .to_owned(),
        );
    }
    let addresses =
        index.pod(&from.namespace, &from.pod).map(|pod| pod.addresses.to_vec()).unwrap_or_default();
    if !addresses.is_empty() && !addresses.iter().any(|own| own.is_ipv4() == to.address.is_ipv4()) {
        let family = if to.address.is_ipv4() { 4 } else { 6 };
        notes.push(format!("{from} has no IPv{family} address to send from"));
    }
    if first.action == Action::Deny && index.address_names(to.address, (to.protocol, to.port)).pod.is_none() {
        notes.extend(index.service_says(to.address, (to.protocol, to.port)).or_else(|| {
            let service = index.address_names(to.address, (to.protocol, to.port)).service?;
            chain.backends.is_empty().then(|| format!("service {service} has no backend that may be chosen"))
        }));
    }
    let unknown = first.endpoint.is_none().then(|| why_unknown(index, pod, known.is_some(), &place));
    let (kernel, not_here) = match place {
        Place::Objects => (None, None),
        Place::Here(kernel) => (Some(kernel), None),
        Place::NotHere(why) => (None, Some(why)),
    };
    if kernel.as_ref().is_some_and(|kernel| kernel.action != first.action.name()) {
        notes
            .push("the kernel's maps give another verdict: they are not in step with the objects".to_owned());
    }
    let explanation = Explanation {
        from: from.to_string(),
        to: to.to_string(),
        verdict: first.into(),
        listed: known.is_some(),
        unknown,
        endpoint: first.endpoint.map(|endpoint| endpoint.state.clone()),
        backend_verdicts: rest.iter().map(Verdict::from).collect(),
        proxy_verdicts,
        chain,
        kernel,
        not_here,
    };
    let out = match output {
        Output::Json => serde_json::to_string(&explanation)? + "\n",
        Output::Table => text(&explanation, first.reason.describe()),
    };
    Ok(Told { fine: first.action != Action::Deny, out, notes })
}

/// Why a pod is judged as an unknown one.
fn why_unknown(index: &Index, (namespace, _): (&str, &str), listed: bool, place: &Place) -> &'static str {
    if !listed {
        "the objects have no such pod"
    } else if !index.namespaces().any(|one| *one.name == *namespace) {
        "its Namespace is not among the objects, and policies ask for its labels"
    } else if matches!(place, Place::Here(_)) {
        "its cgroup is not known here (yet), or several pods claim it"
    } else {
        "no policy that could be read selects it, and what could not be read may be one"
    }
}

fn text(explanation: &Explanation, reason: &str) -> String {
    let Explanation {
        from,
        to,
        verdict,
        listed: _,
        unknown,
        endpoint,
        chain,
        backend_verdicts,
        proxy_verdicts,
        kernel,
        not_here,
    } = explanation;
    let of = verdict.destination.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    let mut lines =
        vec![format!("{} {}: {from} -> {to}{of}", verdict.action, verdict.reason), format!("  {reason}")];
    match endpoint {
        None => lines.extend(unknown.map(|why| format!("  {why}: judged as an unknown pod"))),
        Some(PodState::Unselected) => {}
        Some(PodState::Invalid { reasons }) => {
            lines.extend(reasons.iter().map(|reason| format!("  invalid: {reason}")));
        }
        Some(PodState::Isolated { .. }) => {
            for tier in &chain.tiers {
                let names: Vec<_> = tier.policies.iter().map(ToString::to_string).collect();
                let mode = if tier.audit { " (audit)" } else { "" };
                let says = match &tier.rule {
                    Some(rule) => format!("allows: {} {}", rule.object, rule.path),
                    None => "no rule allows it".to_owned(),
                };
                lines.push(format!("  {}{mode}: {says}", names.join(", ")));
            }
            let subject = chain.tiers.iter().any(|tier| tier.tier == Kind::EgressGatewayPolicy.name());
            if verdict.reason == Reason::NotAllowed.name() && subject && !chain.gateway_of.is_empty() {
                let names: Vec<_> = chain.gateway_of.iter().map(ToString::to_string).collect();
                lines.push(format!(
                    "  a gateway of {}: spec.gateways alone leads there, to its clients, on its ports",
                    names.join(", ")
                ));
            }
            let closes = |one: &ObjectRef| {
                let why = if one.name.contains(' ') {
                    "is of a moment ago, and where it led cannot be told"
                } else {
                    "cannot be read"
                };
                format!("  {one} {why}: its service may lead anywhere, which denies it")
            };
            lines.extend(chain.unread.iter().map(closes));
            if verdict.reason == Reason::SidecarBypass.name() {
                let names: Vec<&str> = chain.proxies.iter().map(String::as_str).collect();
                let who = if names.is_empty() { "no container".to_owned() } else { names.join(" or ") };
                lines.push(format!("  proxy lock: {who} alone may send this"));
                let as_proxy =
                    |(name, one): (&String, &Verdict)| format!("  as {name}: {} {}", one.action, one.reason);
                lines.extend(proxy_verdicts.iter().map(as_proxy));
            }
        }
    }
    for (backend, verdict) in chain.backends.iter().zip(backend_verdicts) {
        let name = verdict.destination.as_ref().map_or_else(String::new, |name| format!(" {name}"));
        let address = std::net::SocketAddr::new(backend.address, backend.port);
        let closes = if verdict.action == "deny" { ", which denies the service's port" } else { "" };
        lines.push(format!("  backend {address}{name}: {}{closes}", verdict.action));
    }
    lines.extend(kernel.iter().flat_map(kernel_text));
    lines.extend(not_here.iter().map(|why| format!("  judged from the objects: {why}")));
    lines.join("\n") + "\n"
}

fn kernel_text(kernel: &Kernel) -> Vec<String> {
    let Kernel { node, revision, action, reason, entries, differs, pending } = kernel;
    let mut lines = vec![format!("  the kernel of {node}, revision {revision}: {action} {reason}")];
    lines.extend(entries.iter().map(|entry| format!("    {entry}")));
    for Difference { kernel, compiled } in differs {
        let has = |entry: &Option<String>| entry.clone().unwrap_or_else(|| "no such entry".to_owned());
        lines.push(format!("    differs: the map has {}; compiled is {}", has(kernel), has(compiled)));
    }
    if !differs.is_empty() {
        lines.extend(pending.iter().map(|pending| format!("    the agent is not ready: {pending}")));
    }
    lines
}

/// An address as it is in maps.
pub(crate) fn in_maps(address: IpAddr) -> egress_common::Addr {
    match address.to_canonical() {
        IpAddr::V4(v4) => egress_common::Addr::v4(v4.octets()),
        IpAddr::V6(v6) => egress_common::Addr(v6.octets()),
    }
}
