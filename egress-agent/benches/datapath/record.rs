//! What is printed: one JSON object a line.

use std::io::Write as _;

use serde::Serialize;
use serde_json::json;

use crate::loads::Metric;
use crate::stand::Variant;

/// A load by one variant.
#[derive(Debug, Serialize)]
pub struct Traffic<'a> {
    /// `traffic`.
    pub measured: &'static str,
    /// Allowed destinations.
    pub size: usize,
    pub metric: Metric,
    pub variant: Variant,
    /// Of the rounds.
    pub median: f64,
    /// Median of the rounds' ratios to `nothing`.
    pub ratio: f64,
    pub rounds: &'a [f64],
}

/// A program by itself.
#[derive(Debug, Serialize)]
pub struct Program<'a> {
    /// `program`.
    pub measured: &'static str,
    /// Allowed destinations.
    pub size: usize,
    pub case: &'a str,
    /// Median nanoseconds of a run, that of the empty program included.
    pub nanoseconds: f64,
    /// Median of what is above the empty program, sample by sample.
    pub above_empty: f64,
    /// Whether the packet passed.
    pub passed: bool,
    pub samples: &'a [f64],
}

/// Prints a record.
pub fn print(record: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, record)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Prints that something was not measured.
pub fn left_out(variant: Variant, size: usize, reason: &str) -> anyhow::Result<()> {
    print(&json!({"measured": "left_out", "size": size, "variant": variant, "reason": reason}))
}

/// The median; of none, nothing that can be compared.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}
