//! Answers of the running agent to `explain`, `simulate`, `plan` and `lint`.
//!
//! Invariant: the owner task does what takes no time, and reads; what takes time is done aside with a copy of the objects. Of the maps,
//! what the kernel holds is told, not what the agent remembers. Tested by `tests/operate.rs`.

use std::collections::BTreeSet;

use egress_common::wire::{Endpoint, IDENTITY_WORLD, RowKey};
use egress_policy::Index;
use egress_policy::compile::UnknownPods;
use egress_policy::explain::{Judge, Target};
use egress_policy::plan::{State, Step};

use super::Agent;
use crate::admin::Question;
use crate::admin::server::Asked;
use crate::cli::Output;
use crate::offline::{self, Kernel, Place, Sender, Told, in_maps, target};
use crate::source::read_text;
use crate::status::WatchStatus;

impl Agent {
    /// Answers, at once or when it has been thought about.
    pub(crate) fn answer(&self, asked: Asked) {
        let Asked { question, reply } = asked;
        let told = match question {
            Question::Explain { from, to, output } => match flow(&from, &to) {
                Ok((from, to)) => match self.explain_here(&from, to, output) {
                    Some(told) => Answer::Now(told),
                    None => {
                        let place = Place::NotHere(self.why_not_here(&from));
                        let (index, unknown) = (self.index.clone(), self.unknown_pods);
                        Answer::Aside(Box::new(move || {
                            elsewhere(&index, unknown, (&from, to), output, place)
                        }))
                    }
                },
                Err(error) => Answer::Now(Err(error)),
            },
            Question::Simulate { flows, with, output } => {
                let (index, unknown) = (self.index.clone(), self.unknown_pods);
                Answer::Aside(Box::new(move || {
                    let with = with.map(|(name, text)| read_text(&name, &text)).transpose()?;
                    offline::tell_flows(index, unknown.into(), &flows, with, output)
                }))
            }
            Question::Plan { output } => match self.datapath.read() {
                Ok(observed) => {
                    let desired = self.compiler.compiled().desired.clone();
                    let pending = self.pending();
                    Answer::Aside(Box::new(move || offline::tell_plan(&desired, &observed, pending, output)))
                }
                Err(error) => Answer::Now(Err(error)),
            },
            Question::Lint { asked, output } => {
                let index = self.index.clone();
                let mut errors: Vec<_> = self.source_state.errors.iter().map(ToString::to_string).collect();
                // What there is now may be worse than what was read last.
                let troubles: BTreeSet<_> =
                    self.source_state.watches.iter().filter_map(WatchStatus::trouble).collect();
                errors.extend(troubles.into_iter().map(str::to_owned));
                Answer::Aside(Box::new(move || {
                    let mut told = offline::tell_findings(&index, &[], &errors, &asked, output)?;
                    told.notes.splice(0..0, errors);
                    Ok(told)
                }))
            }
        };
        let sentence = |told: anyhow::Result<Told>| told.map_err(|error| format!("{error:#}"));
        // Who asked may have gone.
        match told {
            Answer::Now(told) => drop(reply.send(sentence(told))),
            Answer::Aside(think) => {
                tokio::task::spawn_blocking(move || drop(reply.send(sentence(think()))));
            }
        }
    }

    /// Judges a flow of a pod of this node as it was compiled, and as the kernel's maps say; nothing for any other pod.
    fn explain_here(&self, from: &Sender, to: Target, output: Output) -> Option<anyhow::Result<Told>> {
        let judge = Judge::of_node(&self.index, self.compiler.compiled());
        let cgroup = judge.cgroup((&from.namespace, &from.pod))?;
        let kernel = self.kernel(&judge, cgroup, from, to);
        Some(kernel.and_then(|kernel| {
            offline::tell_flow(&self.index, &judge, (from, to), output, Place::Here(kernel))
        }))
    }

    fn kernel(&self, judge: &Judge<'_>, cgroup: u64, from: &Sender, to: Target) -> anyhow::Result<Kernel> {
        let addr = in_maps(to.address);
        let holds = self.datapath.read_of(Some(cgroup), &[addr])?;
        let compiled = self.compiler.compiled();
        let pod = (&*from.namespace, &*from.pod);
        let judged = judge.judge_by(&holds, pod, from.container.as_deref(), &[to]);
        let verdict = judged.first().map(|one| (one.action.name(), one.reason.name()));
        let proxies = compiled.endpoints.get(&cgroup).map(|info| &info.proxies[..]).unwrap_or_default();
        let proxy = proxies.iter().find(|proxy| Some(&*proxy.name) == from.container.as_deref());
        Ok(Kernel {
            node: self.node.clone(),
            revision: holds.config.revision,
            action: verdict.map_or("", |one| one.0),
            reason: verdict.map_or("", |one| one.1),
            entries: entries(&holds, cgroup, proxy.map(|proxy| proxy.cgroup), to),
            differs: compiled.desired.narrowed(Some(cgroup), &[addr]).differences(&holds),
            pending: self.pending(),
        })
    }

    /// Why the maps of this node do not have a pod.
    fn why_not_here(&self, from: &Sender) -> String {
        let here = &self.node;
        match self.index.pod(&from.namespace, &from.pod).map(|pod| pod.node().map(|node| &**node)) {
            None => format!("{here} has no pod of that name"),
            Some(None) => format!("the pod is on no node yet, and the maps of {here} do not have it"),
            Some(Some(node)) if node == here => {
                format!("the pod has no cgroup on {here} (yet), so that its maps do not have it")
            }
            Some(Some(node)) => format!("the pod is on {node}, and the maps of {here} do not have it"),
        }
    }
}

/// How an answer is come by.
enum Answer {
    Now(anyhow::Result<Told>),
    Aside(Box<dyn FnOnce() -> anyhow::Result<Told> + Send>),
}

fn flow(from: &str, to: &str) -> anyhow::Result<(Sender, Target)> {
    let from: Sender = from.parse().map_err(anyhow::Error::msg)?;
    Ok((from, target(to).map_err(anyhow::Error::msg)?))
}

fn elsewhere(
    index: &Index,
    unknown: UnknownPods,
    (from, to): (&Sender, Target),
    output: Output,
    place: Place,
) -> anyhow::Result<Told> {
    let judge = offline::judge(index, unknown, from);
    offline::tell_flow(index, &judge, (from, to), output, place)
}

/// What the maps hold of a flow, in the order in which the kernel looks it up.
fn entries(state: &State, cgroup: u64, proxy: Option<u64>, to: Target) -> Vec<String> {
    let addr = in_maps(to.address);
    let Some(endpoint) = state.endpoints.get(&cgroup) else {
        return vec![format!("endpoint {cgroup}: no entry, which is an unknown pod")];
    };
    let mut lines = vec![Step::PutEndpoint(cgroup, *endpoint).entry()];
    let prefix = state.cidrs.iter().find(|(cidr, _)| cidr.addr == addr).map(|(_, identity)| *identity);
    let (identity, from) = match (state.addresses.get(&addr), prefix) {
        (Some(identity), _) => (*identity, "an address"),
        (None, Some(identity)) => (identity, "a prefix"),
        (None, None) => (IDENTITY_WORLD, "neither address nor prefix: the world"),
    };
    lines.push(format!("{}: identity {identity:016x}, by {from}", to.address));
    let policy = policy(endpoint, proxy);
    let row = state.rows.get(&RowKey { policy, identity });
    lines.push(match row {
        Some(row) => Step::PutRow(RowKey { policy, identity }, Box::new(*row)).entry(),
        None => format!("row {policy:016x}/{identity:016x}: no entry, which allows nothing"),
    });
    lines
}

/// The policy that applies to a container.
fn policy(endpoint: &Endpoint, proxy: Option<u64>) -> u64 {
    let own = |cgroup| endpoint.proxies.iter().find(|one| one.cgroup == cgroup);
    proxy.and_then(own).map_or(endpoint.policy, |one| one.policy)
}
