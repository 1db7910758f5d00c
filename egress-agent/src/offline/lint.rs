//! `lint`: what weakens the mesh's exit.
//!
//! Invariant: "no findings" is said only of objects that were all read. Tested by `tests/lint.rs`.

use std::collections::BTreeSet;

use egress_policy::Index;
use egress_policy::lint::{Check, Finding, Severity, lint as findings};
use egress_policy::object::{Kind, Workload, by_themselves};
use serde_json::json;

use super::{Aside, Loaded, Told, nothing_counts, tell_ignored};
use crate::cli::{Asked, LintArgs, Output, SourceArgs};
use crate::table::table;

/// The name of what is found of them.
const UNREAD: &str = "unreadable";
/// What to do about what could not be read.
const UNREADABLE: &str = "what cannot be read is not looked at, or not as a whole: put it right";

/// The checks, as `lint --help` shows them.
#[must_use]
pub fn checks() -> String {
    let line = |check: Check| {
        let (name, severity) = (check.name(), check.severity().name());
        format!("\n  {name:24}  {severity:7}  {}", check.describe())
    };
    let unreadable = format!("\n  {UNREAD:24}  error    an object cannot be read; it is always told");
    format!("Checks:{}{unreadable}", Check::ALL.into_iter().map(line).collect::<String>())
}

/// What weakens the exit; it is fine that nothing does.
///
/// # Errors
/// The source cannot be read.
pub fn lint(args: &LintArgs, source: &SourceArgs) -> anyhow::Result<Told> {
    let (Loaded { index, mut unread, .. }, Aside { mut ignored, workloads: read }) = super::read(source)?;
    if index.is_empty() && read.is_empty() {
        return Err(nothing_counts(source));
    }
    let mut workloads = Vec::new();
    for workload in read {
        match workload {
            Ok(workload) => {
                if let Some(number) = ignored.get_mut(&*workload.kind) {
                    *number -= 1;
                }
                workloads.push(workload);
            }
            Err(error) => {
                eprintln!("egress-agent: {error}");
                unread.push(error.to_string());
            }
        }
    }
    ignored.retain(|_, number| *number > 0);
    let workloads = by_themselves(workloads);
    tell_ignored(&ignored);
    tell(&index, &workloads, &unread, &args.asked, args.read.output)
}

/// What weakens the exit, of these objects; some things could not be read, which was said.
pub(crate) fn tell(
    index: &Index,
    workloads: &[Workload],
    unread: &[String],
    asked: &Asked,
    output: Output,
) -> anyhow::Result<Told> {
    let is_asked = |finding: &Finding| {
        let check = finding.check;
        !asked.skip.iter().any(|name| *name == check.name())
            && (!asked.errors_only || check.severity() == Severity::Error)
    };
    let (found, left): (Vec<_>, Vec<_>) = findings(index, workloads).into_iter().partition(is_asked);
    let out = match output {
        Output::Json => {
            let unread = unread.iter().map(|detail| {
                json!({"check": UNREAD, "severity": "error", "object": null, "detail": detail, "advice": UNREADABLE})
            });
            let unread = unread.map(|line| line.to_string() + "\n");
            let lines = found.iter().map(|finding| Ok(serde_json::to_string(finding)? + "\n"));
            unread.map(Ok).chain(lines).collect::<anyhow::Result<String>>()?
        }
        Output::Table => text(index, workloads.len(), &found),
    };
    let mut notes = Vec::new();
    if index.pods().next().is_none() && workloads.is_empty() {
        notes.push("there are no pods among the objects: only policies were looked at".to_owned());
    }
    if index.gateway_policies().next().is_none() {
        notes.push("there is no EgressGatewayPolicy among the objects: no pod is a subject".to_owned());
    }
    if !left.is_empty() {
        notes.push(format!("{} left out, as asked", count(left.len(), "finding")));
    }
    if !unread.is_empty() {
        notes.push(format!("{} above: {UNREADABLE}", count(unread.len(), "error")));
    }
    Ok(Told { fine: found.is_empty() && unread.is_empty(), out, notes })
}

/// The findings, what to do about each kind of them, and how many there are.
fn text(index: &Index, workloads: usize, found: &[Finding]) -> String {
    let mut out = String::new();
    if !found.is_empty() {
        let mut rows = table(&["SEVERITY", "CHECK", "OBJECT", "FINDING"]);
        for Finding { check, object, detail } in found {
            rows.add_row([check.severity().name(), check.name(), &object.to_string(), detail]);
        }
        out += &format!("{}\n\n", rows.trim_fmt());
        let mut advice = table(&["CHECK", "WHAT TO DO"]);
        let checks: BTreeSet<(Severity, Check)> =
            found.iter().map(|f| (f.check.severity(), f.check)).collect();
        for (_, check) in checks {
            advice.add_row([check.name(), check.advice()]);
        }
        out += &format!("{}\n\n", advice.trim_fmt());
    }
    let number = |severity| found.iter().filter(|finding| finding.check.severity() == severity).count();
    let of = [(number(Severity::Error), "error"), (number(Severity::Warning), "warning")];
    let of: Vec<String> = of.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| count(n, what)).collect();
    let what = if of.is_empty() { "no findings".to_owned() } else { of.join(", ") };
    let number = index.pods().count();
    let pods = match (number, workloads) {
        (_, 0) => count(number, "pod"),
        (0, _) => count(workloads, "workload"),
        _ => format!("{}, {}", count(number, "pod"), count(workloads, "workload")),
    };
    let network_policies = index.objects().filter(|object| object.kind == Kind::NetworkPolicy).count();
    let policies = match index.gateway_policies().count() + network_policies {
        1 => "1 policy".to_owned(),
        number => format!("{number} policies"),
    };
    out + &format!("{what} in {pods}, {policies}\n")
}

fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
