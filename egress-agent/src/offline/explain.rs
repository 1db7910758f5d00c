//! `explain`: one flow, and everything that leads to its verdict.

use std::net::IpAddr;

use egress_common::{Action, Reason};
use egress_policy::Index;
use egress_policy::compile::{Chain, PodState, chain};
use egress_policy::explain::{Judge, Target};
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
    #[serde(skip)]
    listed: bool,
    /// `Unselected`, `Isolated`, `Invalid` with its reasons; absent for a pod that the objects do not have.
    endpoint: Option<PodState>,
    #[serde(flatten)]
    chain: Chain,
    /// What becomes of the same flow to each backend, in the order of `backends`.
    backend_verdicts: Vec<Verdict>,
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
    let index = load(source)?;
    let from = &args.from;
    let sender = ((&*from.namespace, &*from.pod), from.container.as_deref());
    let judge = Judge::new(&index, args.unknown_pods.into(), [sender]);
    tell(&index, &judge, (from, args.to), args.read.output, Place::Objects)
}

/// The flow and, of a service, the same to each of its backends.
pub(crate) fn targets(to: Target, chain: &Chain) -> Vec<Target> {
    let backends = chain.backends.iter().map(|one| Target { address: one.address, port: one.port, ..to });
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
    let mut notes = Vec::new();
    if let Some(name) = container.filter(|name| !has(name)) {
        notes.push(format!("{}/{} has no container {name} in its spec", from.namespace, from.pod));
    }
    if let (Place::Here(_), Some(name), Reason::SidecarBypass) = (&place, container, first.reason)
        && chain.proxies.contains(name)
    {
        notes.push(format!("{name} is a proxy of the lock, but which cgroup it has is not known here (yet)"));
    }
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
        endpoint: first.endpoint.map(|endpoint| endpoint.state.clone()),
        backend_verdicts: rest.iter().map(Verdict::from).collect(),
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

fn text(explanation: &Explanation, reason: &str) -> String {
    let Explanation { from, to, verdict, listed, endpoint, chain, backend_verdicts, kernel, not_here } =
        explanation;
    let of = verdict.destination.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    let mut lines =
        vec![format!("{} {}: {from} -> {to}{of}", verdict.action, verdict.reason), format!("  {reason}")];
    match endpoint {
        None if *listed => {
            lines.push("  its Namespace is not among the objects, and policies ask for its labels: judged as an unknown pod".to_owned());
        }
        None => lines.push("  the objects have no such pod: judged as an unknown pod".to_owned()),
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
            if verdict.reason == Reason::SidecarBypass.name() {
                let names: Vec<&str> = chain.proxies.iter().map(String::as_str).collect();
                let who = if names.is_empty() { "no container".to_owned() } else { names.join(" or ") };
                lines.push(format!("  proxy lock: {who} alone may send this"));
            }
        }
    }
    for (backend, verdict) in chain.backends.iter().zip(backend_verdicts) {
        let name = verdict.destination.clone().unwrap_or_default();
        let address = std::net::SocketAddr::new(backend.address, backend.port);
        let closes = if verdict.action == "deny" { ", which denies the service's port" } else { "" };
        lines.push(format!("  backend {address} {name}: {}{closes}", verdict.action));
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
