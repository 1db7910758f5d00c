//! `repeat`: one attempt again and again, to see from when on it ends in another way.

use std::thread;
use std::time::{Duration, Instant};

use egress_probe::{Change, Repeated};

use crate::cli::AttemptCommand;
use crate::net;

/// Prints a line for the first attempt, one for each that ends in another way than the one before, and a sum.
pub(crate) fn run(every_ms: u64, for_ms: u64, command: &AttemptCommand) -> anyhow::Result<()> {
    let start = Instant::now();
    let at = |moment: Instant| u64::try_from((moment - start).as_millis()).unwrap_or(u64::MAX);
    let mut sum = Repeated::default();
    let mut last = None;
    while start.elapsed() < Duration::from_millis(for_ms) {
        let began = Instant::now();
        let attempt = super::run(command);
        sum.count += 1;
        sum.longest_ms = sum.longest_ms.max(attempt.elapsed_ms);
        if !attempt.succeeded() {
            sum.failed += 1;
            sum.last_failure = Some(attempt.detail.clone());
        }
        if last != Some((attempt.outcome, attempt.status)) {
            last = Some((attempt.outcome, attempt.status));
            net::print_line(&Change { at_ms: at(began), attempt })?;
        }
        thread::sleep((began + Duration::from_millis(every_ms)).saturating_duration_since(Instant::now()));
    }
    sum.elapsed_ms = at(Instant::now());
    net::print_line(&sum)
}
