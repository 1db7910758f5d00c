//! What is printed: one JSON object a line. `xtask` reads them, and says what they come to.

use std::io::Write as _;

use serde::Serialize;

use crate::loads::Metric;
use crate::stand::Variant;

#[derive(Debug, Serialize)]
#[serde(tag = "measured", rename_all = "snake_case")]
pub enum Record<'a> {
    /// A load by one variant.
    Traffic {
        /// Allowed destinations.
        size: usize,
        metric: Metric,
        variant: Variant,
        /// The value of each round; the rounds of all variants belong together.
        rounds: &'a [f64],
    },
    /// A program by itself.
    Program {
        /// Allowed destinations.
        size: usize,
        case: &'a str,
        /// Whether the packet passed.
        passed: bool,
        /// Nanoseconds of a run, sample by sample.
        nanoseconds: &'a [f64],
        /// What of them is above the empty program.
        above_empty: &'a [f64],
    },
    /// Something that was not measured.
    LeftOut {
        /// Allowed destinations.
        size: usize,
        variant: Variant,
        reason: String,
    },
}

/// Prints a record.
pub fn print(record: &Record<'_>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, record)?;
    writeln!(out)?;
    Ok(out.flush()?)
}
