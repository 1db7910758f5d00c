//! `docs/metrics.md`, made of the list.
//!
//! Invariant: the page says what the list says; `tests/metrics.rs` compares it with the one in the tree.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::list::{Behaviour, Label, METRICS};

const HEAD: &str = "\
# Metrics

Served at `/metrics` of the address given with `run --listen ADDR:PORT`, as OpenMetrics to who asks for it, else as Prometheus' own text.
Without `--listen` no port is open. Names of pods are not in it; names of policies are, so whoever may scrape may know them.

This page is made of the list that the agent's metrics are made of (`UPDATE_GOLDEN=1 cargo test -p egress-agent --test metrics` writes it anew),
and a test holds it, the dashboard ([`deploy/dashboards`](../deploy/dashboards)) and the alert rules
([`deploy/alerts`](../deploy/alerts)) against that list.

Packets are counted in the kernel, in maps that outlive the agent: these counters go on over its restarts. The others begin anew with it.
Verdicts and denials that never happened have no series; bypass attempts have theirs from the beginning.

";

/// The page.
#[must_use]
pub fn document() -> String {
    let mut out = HEAD.to_owned();
    out.push_str("| metric | kind | labels | what it tells |\n|---|---|---|---|\n");
    let mut used = BTreeSet::<Label>::new();
    for metric in METRICS {
        let (name, kind) = match metric.behaviour {
            Behaviour::Counter => (metric.series().concat(), "counter"),
            Behaviour::Gauge => (metric.series().concat(), "gauge"),
            Behaviour::Histogram => (format!("{}_{}", super::PREFIX, metric.name), "histogram"),
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{}`", label.name())).collect();
        used.extend(metric.labels);
        // Writing to a string does not fail.
        let _ = writeln!(out, "| `{name}` | {kind} | {} | {}. |", labels.join(", "), metric.help);
    }
    out.push_str("\n## Labels\n\n| label | values | what it says |\n|---|---|---|\n");
    for label in Label::ALL.iter().filter(|label| used.contains(label)) {
        let of = match label {
            Label::Watch => " (of `watch_state`)",
            Label::ServiceState => " (of `service_state`)",
            _ => "",
        };
        let values = label.values().map_or_else(
            || "open".to_owned(),
            |values| values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", "),
        );
        let _ = writeln!(out, "| `{}`{of} | {values} | {} |", label.name(), label.describe());
    }
    out
}
