//! The table of kernels: what each can do, and which tests pass on it. `docs/kernels.md` is written from here.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::report::Report;

/// A group of rows.
struct Group {
    name: String,
    rows: Vec<(String, Vec<String>)>,
}

/// Everything as Markdown.
pub(crate) fn markdown(reports: &[Report]) -> anyhow::Result<String> {
    let mut out = String::new();
    for group in groups(reports) {
        writeln!(out, "### {}\n", capital(&group.name))?;
        write!(out, "| |")?;
        reports.iter().try_for_each(|report| write!(out, " {} |", report.release))?;
        write!(out, "\n|---|")?;
        reports.iter().try_for_each(|_| write!(out, "---|"))?;
        writeln!(out)?;
        for (name, cells) in group.rows {
            write!(out, "| {} |", escape(&name))?;
            cells.iter().try_for_each(|cell| write!(out, " {} |", escape(cell)))?;
            writeln!(out)?;
        }
        writeln!(out)?;
    }
    Ok(out.trim_end().to_owned() + "\n")
}

/// What differs between kernels, for the end of a run.
pub(crate) fn differences(reports: &[Report]) -> anyhow::Result<String> {
    let mut out = String::new();
    for group in groups(reports) {
        for (name, cells) in group.rows {
            if cells.iter().any(|cell| Some(cell) != cells.first()) {
                writeln!(out, "    {}: {name}", group.name)?;
                for (report, cell) in reports.iter().zip(&cells) {
                    writeln!(out, "        {:5} {cell}", report.kernel)?;
                }
            }
        }
    }
    Ok(out)
}

fn groups(reports: &[Report]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for feature in reports.iter().flat_map(|report| &report.features) {
        let at = match groups.iter().position(|group| group.name == feature.group) {
            Some(at) => at,
            None => {
                groups.push(Group { name: feature.group.clone(), rows: Vec::new() });
                groups.len() - 1
            }
        };
        let Some(group) = groups.get_mut(at) else { continue };
        if group.rows.iter().all(|(name, _)| *name != feature.name) {
            let cells = reports.iter().map(|report| cell(report, &feature.group, &feature.name));
            group.rows.push((feature.name.clone(), cells.collect()));
        }
    }
    let binaries: BTreeSet<_> =
        reports.iter().flat_map(|report| &report.outcomes).map(|outcome| outcome.binary.as_str()).collect();
    if !binaries.is_empty() {
        let row = |name: Option<&str>| {
            let cells = reports.iter().map(|report| report.total(name).to_string());
            (name.unwrap_or("all").to_owned(), cells.collect())
        };
        let rows = binaries.iter().map(|name| row(Some(name))).chain([row(None)]).collect();
        groups.push(Group { name: "tests".to_owned(), rows });
    }
    groups
}

fn cell(report: &Report, group: &str, name: &str) -> String {
    let found = report.features.iter().find(|feature| feature.group == group && feature.name == name);
    found.map_or_else(|| "not tried".to_owned(), |feature| feature.found.clone())
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + letters.as_str())
}

/// A bar would end the cell.
fn escape(text: &str) -> String {
    text.replace('|', "\\|")
}
