//! `explain`: one flow, and everything that leads to its verdict.

use std::io::Write as _;

use egress_common::{Action, Reason};
use egress_policy::compile::{Chain, PodState, chain};
use egress_policy::explain::{Judge, Target};
use serde::Serialize;

use super::{Verdict, load};
use crate::cli::{ExplainArgs, Output};

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
}

/// Prints the verdict of a flow and what leads to it; tells whether it passes.
///
/// # Errors
/// The source cannot be read.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<bool> {
    let index = load(&args.source)?;
    let (from, to) = (&args.from, args.to);
    let container = from.container.as_deref();
    let pod = (&*from.namespace, &*from.pod);
    let chain = chain(&index, pod, container, to.address, (to.protocol, to.port));
    let backends = chain.backends.iter().map(|b| Target { address: b.address, port: b.port, ..to });
    let targets: Vec<Target> = std::iter::once(to).chain(backends).collect();
    let judge = Judge::new(&index, args.unknown_pods.into(), [(pod, container)]);
    let judged = judge.judge(pod, container, &targets);
    let Some((first, rest)) = judged.split_first() else { return Ok(false) };
    let passes = first.action != Action::Deny;
    let known = index.pod(&from.namespace, &from.pod).map(|pod| &pod.spec.containers);
    let has = |name: &str| known.is_none_or(|containers| containers.iter().any(|one| *one.name == *name));
    if let Some(name) = container.filter(|name| !has(name)) {
        eprintln!("egress-agent: {}/{} has no container {name} in its spec", from.namespace, from.pod);
    }
    let explanation = Explanation {
        from: from.to_string(),
        to: to.to_string(),
        verdict: first.into(),
        listed: known.is_some(),
        endpoint: first.endpoint.map(|endpoint| endpoint.state.clone()),
        backend_verdicts: rest.iter().map(Verdict::from).collect(),
        chain,
    };
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&explanation)?)?,
        Output::Table => write!(out, "{}", text(&explanation, first.reason.describe()))?,
    }
    Ok(passes)
}

fn text(explanation: &Explanation, reason: &str) -> String {
    let Explanation { from, to, verdict, listed, endpoint, chain, backend_verdicts } = explanation;
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
    lines.join("\n") + "\n"
}
