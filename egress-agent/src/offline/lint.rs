//! `lint`: what weakens the mesh's exit.
//!
//! Invariant: "no findings" is said only of objects that were all read. Tested by `tests/lint.rs`.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write as _};

use egress_policy::Index;
use egress_policy::lint::{Check, Finding, Severity, lint as findings};

use super::load_what_can_be;
use crate::cli::{LintArgs, Output};
use crate::table::{print, table};

/// The checks, as `lint --help` shows them.
#[must_use]
pub fn checks() -> String {
    let line = |check: Check| {
        let (name, severity) = (check.name(), check.severity().name());
        format!("\n  {name:24}  {severity:7}  {}", check.describe())
    };
    format!("Checks:{}", Check::ALL.into_iter().map(line).collect::<String>())
}

/// Prints what weakens the exit; tells whether nothing does.
///
/// # Errors
/// The source cannot be read.
pub fn lint(args: &LintArgs) -> anyhow::Result<bool> {
    let (index, unread) = load_what_can_be(&args.source)?;
    let found = findings(&index);
    match args.output {
        Output::Json => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            for finding in &found {
                serde_json::to_writer(&mut out, finding)?;
                out.write_all(b"\n")?;
            }
            out.flush()?;
        }
        Output::Table => text(&index, &found)?,
    }
    if index.pods().next().is_none() {
        eprintln!("egress-agent: there are no pods among the objects: only policies were looked at");
    }
    if index.gateway_policies().next().is_none() {
        eprintln!("egress-agent: there is no EgressGatewayPolicy among the objects: no pod is a subject");
    }
    if unread > 0 {
        eprintln!("egress-agent: what could not be read was not looked at ({unread} above)");
    }
    Ok(found.is_empty() && unread == 0)
}

/// The findings, what to do about each kind of them, and how many there are.
fn text(index: &Index, found: &[Finding]) -> anyhow::Result<()> {
    if !found.is_empty() {
        let mut rows = table(&["SEVERITY", "CHECK", "OBJECT", "FINDING"]);
        for Finding { check, object, detail } in found {
            rows.add_row([check.severity().name(), check.name(), &object.to_string(), detail]);
        }
        print(&rows)?;
        let mut advice = table(&["CHECK", "WHAT TO DO"]);
        let checks: BTreeSet<(Severity, Check)> =
            found.iter().map(|f| (f.check.severity(), f.check)).collect();
        for (_, check) in checks {
            advice.add_row([check.name(), check.advice()]);
        }
        writeln!(std::io::stdout())?;
        print(&advice)?;
        writeln!(std::io::stdout())?;
    }
    let number = |severity| found.iter().filter(|finding| finding.check.severity() == severity).count();
    let of = [(number(Severity::Error), "error"), (number(Severity::Warning), "warning")];
    let of: Vec<String> = of.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| count(n, what)).collect();
    let what = if of.is_empty() { "no findings".to_owned() } else { of.join(", ") };
    let pods = count(index.pods().count(), "pod");
    let policies = match index.gateway_policies().count() {
        1 => "1 policy".to_owned(),
        number => format!("{number} policies"),
    };
    Ok(writeln!(std::io::stdout(), "{what} in {pods}, {policies}")?)
}

fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
