//! Tables for people.
//!
//! Invariant: a pipe gets one line per row, without trailing blanks; only a screen gets its lines folded. Tested by
//! `tests/cli.rs` and `tests/lint.rs`.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};

/// An empty table.
pub(crate) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// Prints a table on stdout.
pub(crate) fn print(table: &Table) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", table.trim_fmt())?)
}
