//! `plan`: the map writes that bring a node from nothing to the desired state.

use std::io::Write as _;

use egress_policy::compile::compile_every_pod;
use egress_policy::plan::{State, diff};

use super::load;
use crate::cli::{Output, PlanArgs};

/// Prints the steps in their order. Without a node there are no cgroups, so pods are numbered from 1 by name.
///
/// # Errors
/// The source cannot be read.
pub fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let index = load(&args.source)?;
    let compiled = compile_every_pod(&index, &args.node_name, args.unknown_pods.into());
    for diagnostic in &compiled.diagnostics {
        eprintln!("egress-agent: {diagnostic}");
    }
    let plan = diff(&compiled.desired, &State::default());
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&plan)?)?,
        Output::Table => write!(out, "{plan}")?,
    }
    Ok(())
}
