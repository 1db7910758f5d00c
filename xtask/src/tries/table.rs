//! The table: a line for each try, and how many were as expected.

use comfy_table::{Table, presets};
use serde::Serialize;

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// The state of the enforcer.
    pub(crate) when: &'static str,
    /// The container that tried.
    pub(crate) who: String,
    /// What it tried.
    pub(crate) how: String,
    pub(crate) expected: String,
    pub(crate) got: String,
    pub(crate) as_expected: bool,
    /// Why it was not tried; then it is not as expected either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<String>,
}

/// How many lines ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) as_expected: usize,
    pub(crate) skipped: usize,
    pub(crate) wrong: usize,
}

/// Counts.
pub(crate) fn sum(lines: &[Line]) -> Sum {
    let mut sum = Sum::default();
    for line in lines {
        match (&line.skipped, line.as_expected) {
            (Some(_), _) => sum.skipped += 1,
            (None, true) => sum.as_expected += 1,
            (None, false) => sum.wrong += 1,
        }
    }
    sum
}

/// The table as text.
pub(crate) fn render(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["WHEN", "WHO", "HOW", "EXPECTED", "GOT", ""]);
    let mut last = "";
    for line in lines {
        let when = if line.when == last { "" } else { line.when };
        let skipped = line.skipped.as_ref().map(|why| format!("skipped: {why}"));
        let mark = match (&skipped, line.as_expected) {
            (Some(_), _) => "-",
            (None, true) => "ok",
            (None, false) => "WRONG",
        };
        let got = skipped.as_ref().unwrap_or(&line.got);
        table.add_row([when, &line.who, &line.how, &line.expected, got, mark]);
        last = line.when;
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(when: &'static str, as_expected: bool, skipped: Option<&str>) -> Line {
        Line {
            when,
            who: "a/b".to_owned(),
            how: "direct".to_owned(),
            expected: "works".to_owned(),
            got: "200".to_owned(),
            as_expected,
            skipped: skipped.map(str::to_owned),
        }
    }

    #[test]
    fn what_was_skipped_is_neither_right_nor_wrong() {
        let lines = [line("x", true, None), line("x", false, None), line("x", true, Some("no IPv6"))];
        assert_eq!(sum(&lines), Sum { as_expected: 1, skipped: 1, wrong: 1 });
    }

    #[test]
    fn a_table_says_what_is_wrong_and_what_was_skipped() {
        let lines = [line("x", true, None), line("x", false, None), line("y", false, Some("no IPv6"))];
        let text = render(&lines);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 4);
        assert!(rows[1].trim_start().starts_with('x') && rows[1].ends_with("ok"), "{text}");
        assert!(rows[2].ends_with("WRONG") && !rows[2].contains(" x "), "{text}");
        assert!(rows[3].contains("skipped: no IPv6") && rows[3].trim_end().ends_with('-'), "{text}");
    }
}
