//! `plan`: the map writes that bring a node to the desired state: from nothing, or from what its maps hold.

use anyhow::bail;
use egress_policy::compile::compile_every_pod;
use egress_policy::plan::{State, diff};

use super::{Told, load};
use crate::cli::{Output, PlanArgs, SourceArgs};

/// How many nodes are named where one is not among them.
const SHOWN: usize = 8;

/// The steps in their order. Without a node there are no cgroups, so pods are numbered from 1 by name.
///
/// # Errors
/// The source cannot be read, or knows nothing of the node.
pub fn plan(args: &PlanArgs, source: &SourceArgs) -> anyhow::Result<Told> {
    let loaded = load(source)?;
    let node = args.node_name.as_deref().unwrap_or_default();
    let empty =
        !node.is_empty() && !loaded.index.pods().any(|pod| pod.node().map(|node| &**node) == Some(node));
    if empty && !loaded.index.nodes().any(|known| &*known.name == node) {
        let known: Vec<&str> = loaded.index.nodes().map(|node| &*node.name).take(SHOWN).collect();
        let known = if known.is_empty() { "no nodes".to_owned() } else { known.join(", ") };
        bail!("there is neither a node {node:?} nor a pod on it among the objects (there are: {known})");
    }
    let compiled = compile_every_pod(&loaded.index, node, loaded.doubt(args.unknown_pods));
    let mut notes: Vec<_> = compiled.diagnostics.iter().map(ToString::to_string).collect();
    notes.extend(loaded.note());
    if empty {
        notes.push(format!("no pod of the objects is on a node {node:?}"));
    }
    tell(&compiled.desired, &State::default(), notes, args.read.output)
}

/// The steps from one state to another.
pub(crate) fn tell(
    desired: &State,
    observed: &State,
    mut notes: Vec<String>,
    output: Output,
) -> anyhow::Result<Told> {
    let plan = diff(desired, observed);
    if plan.steps.is_empty() {
        notes.push("nothing to write: the maps are as they are to be".to_owned());
    }
    let out = match output {
        Output::Json => serde_json::to_string(&plan)? + "\n",
        Output::Table => plan.to_string(),
    };
    Ok(Told { fine: true, out, notes })
}
