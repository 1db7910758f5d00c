//! The table of kernels: what each can do, and which tests pass on it. `docs/kernels.md` is written from here.
//!
//! Invariant: what a run did not try stays as it was. Emulation takes hours, so that a table is made of several runs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::report::Report;

/// Groups of rows, with a column for each kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    releases: Vec<String>,
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    rows: Vec<Row>,
}

/// Its name, and a cell for each kernel.
type Row = (String, Vec<String>);

const NOT_TRIED: &str = "not tried";
const TESTS: &str = "Tests";

impl Table {
    /// What was found. Of tests, those binaries count that were run as a whole, with the commit that they are of.
    pub(crate) fn of(reports: &[Report], commit: &str) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for feature in reports.iter().flat_map(|report| &report.features) {
            let name = capital(&feature.group);
            let at = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
                groups.push(Group { name, rows: Vec::new() });
                groups.len() - 1
            });
            let Some(group) = groups.get_mut(at) else { continue };
            if group.rows.iter().all(|(name, _)| *name != feature.name) {
                let cells = reports.iter().map(|report| found(report, &feature.group, &feature.name));
                group.rows.push((feature.name.clone(), cells.collect()));
            }
        }
        let binaries: BTreeSet<_> = reports.iter().flat_map(Report::whole).collect();
        let cell = |report: &Report, binary: &str| {
            let count = || format!("{} ({commit})", report.total(Some(binary)));
            if report.whole().any(|whole| whole == binary) { count() } else { NOT_TRIED.to_owned() }
        };
        let row = |binary: &&str| {
            ((*binary).to_owned(), reports.iter().map(|report| cell(report, binary)).collect())
        };
        if !binaries.is_empty() {
            groups.push(Group { name: TESTS.to_owned(), rows: binaries.iter().map(row).collect() });
        }
        Self { releases: reports.iter().map(|report| report.release.clone()).collect(), groups }
    }

    /// Reads what [`Self::markdown`] wrote.
    pub(crate) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("### ") {
                table.groups.push(Group { name: name.to_owned(), rows: Vec::new() });
            } else if let Some(cells) = cells(line)
                && let [first, rest @ ..] = &cells[..]
            {
                match (first.as_str(), table.groups.last_mut()) {
                    ("", _) => table.releases = rest.to_vec(),
                    (name, Some(group)) => group.rows.push((name.to_owned(), rest.to_vec())),
                    (_, None) => {}
                }
            }
        }
        table
    }

    /// This table with what a later one found. A kernel is the same in both where major and minor version are.
    pub(crate) fn with(mut self, new: &Self) -> Self {
        for release in &new.releases {
            match self.column(release) {
                Some(at) => self.releases[at].clone_from(release),
                None => self.releases.push(release.clone()),
            }
        }
        let columns: Vec<_> = new.releases.iter().filter_map(|release| self.column(release)).collect();
        for group in &new.groups {
            let old = self.groups.iter().position(|old| old.name == group.name);
            let mut rows = Vec::new();
            if let Some(old) = old {
                rows = std::mem::take(&mut self.groups[old].rows);
                // Each run looks for every feature there is.
                rows.retain(|(name, _)| group.name == TESTS || group.rows.iter().any(|(new, _)| new == name));
            }
            for (name, cells) in &group.rows {
                let at = rows.iter().position(|(old, _)| old == name).unwrap_or_else(|| {
                    rows.push((name.clone(), Vec::new()));
                    rows.len() - 1
                });
                let row = &mut rows[at].1;
                row.resize(self.releases.len(), NOT_TRIED.to_owned());
                for (cell, column) in cells.iter().zip(&columns) {
                    if cell != NOT_TRIED {
                        row[*column].clone_from(cell);
                    }
                }
            }
            if group.name == TESTS {
                rows.sort();
            }
            match old {
                Some(old) => self.groups[old].rows = rows,
                None => self.groups.push(Group { name: group.name.clone(), rows }),
            }
        }
        let columns = self.releases.len();
        let rows = self.groups.iter_mut().flat_map(|group| &mut group.rows);
        rows.for_each(|(_, cells)| cells.resize(columns, NOT_TRIED.to_owned()));
        self
    }

    fn column(&self, release: &str) -> Option<usize> {
        let series = |release: &str| release.split('.').take(2).map(str::to_owned).collect::<Vec<_>>();
        self.releases.iter().position(|known| series(known) == series(release))
    }

    /// Everything as Markdown.
    pub(crate) fn markdown(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        for Group { name, rows } in &self.groups {
            writeln!(out, "### {name}\n\n| | {} |", self.releases.join(" | "))?;
            writeln!(out, "|---|{}", "---|".repeat(self.releases.len()))?;
            for (name, cells) in rows {
                write!(out, "| {} |", escape(name))?;
                cells.iter().try_for_each(|cell| write!(out, " {} |", escape(cell)))?;
                writeln!(out)?;
            }
            writeln!(out)?;
        }
        Ok(out.trim_end().to_owned() + "\n")
    }

    /// What differs between kernels, for the end of a run.
    pub(crate) fn differences(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        for (group, (name, cells)) in
            self.groups.iter().flat_map(|group| group.rows.iter().map(move |row| (group, row)))
        {
            if cells.iter().any(|cell| Some(cell) != cells.first()) {
                writeln!(out, "    {}: {name}", group.name)?;
                for (release, cell) in self.releases.iter().zip(cells) {
                    writeln!(out, "        {release:24} {cell}")?;
                }
            }
        }
        Ok(out)
    }
}

/// The cells of a row; nothing of another line.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    let cell = |text: &str| text.trim().replace("\\|", "|");
    (!inner.starts_with("---")).then(|| inner.split(" |").map(cell).collect())
}

fn found(report: &Report, group: &str, name: &str) -> String {
    let found = report.features.iter().find(|feature| feature.group == group && feature.name == name);
    found.map_or_else(|| NOT_TRIED.to_owned(), |feature| feature.found.clone())
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

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "### Helpers\n\n| | 6.1.0-1 | 6.18.44-a |\n|---|---|---|\n| loop \\| jump | yes | no: EPERM |\n\
                       | gone | yes | yes |\n\n### Tests\n\n| | 6.1.0-1 | 6.18.44-a |\n|---|---|---|\n| b | 1 passed (x) | 1 passed (x) |\n";

    #[test]
    fn what_was_written_is_read() {
        let table = Table::parse(OLD);
        assert_eq!(table.releases, ["6.1.0-1", "6.18.44-a"]);
        assert_eq!(
            table.groups[0].rows[0],
            ("loop | jump".to_owned(), vec!["yes".to_owned(), "no: EPERM".to_owned()])
        );
        assert_eq!(table.markdown().unwrap(), OLD);
    }

    #[test]
    fn what_was_not_tried_stays() {
        let new = "### Helpers\n\n| | 6.12.1 | 6.18.44-b |\n|---|---|---|\n| loop \\| jump | yes | yes |\n\n\
                   ### Tests\n\n| | 6.12.1 | 6.18.44-b |\n|---|---|---|\n| a | 2 passed (y) | not tried |\n| b | not tried | 2 passed (y) |\n";
        let merged = Table::parse(OLD).with(&Table::parse(new)).markdown().unwrap();
        let expected = "### Helpers\n\n| | 6.1.0-1 | 6.18.44-b | 6.12.1 |\n|---|---|---|---|\n| loop \\| jump | yes | yes | yes |\n\n\
                        ### Tests\n\n| | 6.1.0-1 | 6.18.44-b | 6.12.1 |\n|---|---|---|---|\n\
                        | a | not tried | not tried | 2 passed (y) |\n| b | 1 passed (x) | 2 passed (y) | not tried |\n";
        assert_eq!(merged, expected);
    }
}
