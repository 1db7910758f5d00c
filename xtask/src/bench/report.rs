//! The tables of `bench datapath`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::json;

use super::aims;
use super::datapath::{Metric, Results, Variant};
use super::estimate::Estimate;

const VARIANTS: [(Variant, &str); 7] = [
    (Variant::Nothing, "nothing"),
    (Variant::NothingAgain, "nothing, once more"),
    (Variant::Enforcer, "the enforcer"),
    (Variant::SocketHook, "its socket hook alone"),
    (Variant::Nftables, "nftables, a set"),
    (Variant::Iptables, "iptables, a list"),
    (Variant::PlainLpm, "a plain LPM filter"),
];

const METRICS: [(Metric, &str); 8] = [
    (Metric::Stream, "one TCP stream"),
    (Metric::StreamCpu, "one TCP stream, processor time of the sender per MiB"),
    (Metric::Packets, "datagrams of 32 bytes"),
    (Metric::PacketsCpu, "datagrams of 32 bytes, processor time of the sender"),
    (Metric::Connections, "connections with one request each"),
    (Metric::ConnectionsCpu, "connections with one request each, processor time of the client"),
    (Metric::RequestP50, "requests on one connection, median"),
    (Metric::RequestP99, "requests on one connection, 99th percentile"),
];

/// The name of a variant.
pub(super) fn name(variant: Variant) -> &'static str {
    VARIANTS.iter().find(|(this, _)| *this == variant).map_or("", |(_, name)| name)
}

/// Everything, with what it says about the aims.
pub(super) fn tables(results: &Results) -> anyhow::Result<String> {
    let mut out = String::new();
    programs(results, &mut out)?;
    traffic(results, &mut out)?;
    for ((variant, size), reason) in &results.left_out {
        writeln!(out, "Left out: {}, {size} destinations: {}.\n", name(*variant), reason.replace('\n', " "))?;
    }
    out.push_str(&aims::aims(results)?);
    Ok(out)
}

fn head(first: &str, sizes: &BTreeSet<u64>, out: &mut String) -> anyhow::Result<()> {
    write!(out, "| {first} |")?;
    sizes.iter().try_for_each(|size| write!(out, " {size} |"))?;
    write!(out, "\n|---|")?;
    sizes.iter().try_for_each(|_| write!(out, "---:|"))?;
    Ok(writeln!(out)?)
}

fn programs(results: &Results, out: &mut String) -> anyhow::Result<()> {
    if results.programs.is_empty() {
        return Ok(());
    }
    let sizes: BTreeSet<u64> = results.programs.keys().map(|(_, size)| *size).collect();
    writeln!(
        out,
        "Nanoseconds a packet, by `BPF_PROG_TEST_RUN`; in parentheses what is above the empty program.\n"
    )?;
    head("allowed destinations", &sizes, out)?;
    for case in &results.cases {
        write!(out, "| {case} |")?;
        for size in &sizes {
            let Some(program) = results.programs.get(&(case.clone(), *size)) else {
                write!(out, " |")?;
                continue;
            };
            let median = |values| Estimate::of(values).map_or(f64::NAN, |estimate| estimate.median);
            write!(out, " {:.0} ns", median(&program.nanoseconds))?;
            if !case.starts_with("empty") {
                write!(out, " (+{:.0})", median(&program.above_empty))?;
            }
            write!(out, "{} |", if case == "reply" && !program.passed { ", denied" } else { "" })?;
        }
        writeln!(out)?;
    }
    Ok(writeln!(out)?)
}

fn traffic(results: &Results, out: &mut String) -> anyhow::Result<()> {
    if results.traffic.is_empty() {
        return Ok(());
    }
    let sizes: BTreeSet<u64> = results.traffic.keys().map(|(.., size)| *size).collect();
    writeln!(out, "Traffic; in parentheses the median of what the rounds are to those of *nothing*.\n")?;
    for (metric, what) in METRICS {
        head(what, &sizes, out)?;
        for (variant, name) in VARIANTS {
            write!(out, "| {name} |")?;
            for size in &sizes {
                let rounds = results.traffic.get(&(metric, variant, *size));
                let Some((rounds, value)) = rounds.and_then(|rounds| Some((rounds, Estimate::of(rounds)?)))
                else {
                    write!(out, " |")?;
                    continue;
                };
                write!(out, " {}", amount(metric, value.median))?;
                let nothing = results.traffic.get(&(metric, Variant::Nothing, *size));
                let ratio = nothing.and_then(|nothing| Estimate::of_ratios(rounds, nothing));
                if let Some(ratio) = ratio.filter(|_| variant != Variant::Nothing) {
                    write!(out, " ({:.3})", ratio.median)?;
                }
                write!(out, " |")?;
            }
            writeln!(out)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn amount(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Stream => format!("{:.2} Gbit/s", value * 8.0 / 1e9),
        Metric::StreamCpu => format!("{:.0} µs", value * 1_048_576.0 / 1e3),
        Metric::Packets => format!("{:.0} k/s", value / 1e3),
        Metric::Connections => format!("{value:.0} /s"),
        Metric::PacketsCpu => format!("{:.2} µs", value / 1e3),
        Metric::ConnectionsCpu | Metric::RequestP50 | Metric::RequestP99 => format!("{:.1} µs", value / 1e3),
    }
}

/// Everything for programs: medians, ratios and their bounds, and what they were made from.
pub(super) fn json_lines(results: &Results) -> anyhow::Result<String> {
    let mut out = String::new();
    for ((case, size), program) in &results.programs {
        let median = |values| Estimate::of(values).map(|estimate| estimate.median);
        let line = json!({
            "measured": "program", "size": size, "case": case, "passed": program.passed,
            "nanoseconds": median(&program.nanoseconds), "above_empty": median(&program.above_empty),
            "samples": program.nanoseconds,
        });
        writeln!(out, "{line}")?;
    }
    for ((metric, variant, size), rounds) in &results.traffic {
        let nothing = results.traffic.get(&(*metric, Variant::Nothing, *size));
        let ratio = nothing.and_then(|nothing| Estimate::of_ratios(rounds, nothing));
        let line = json!({
            "measured": "traffic", "size": size, "metric": metric, "variant": variant,
            "median": Estimate::of(rounds).map(|estimate| estimate.median),
            "ratio": ratio.map(|ratio| ratio.median),
            "ratio_bounds": ratio.map(|ratio| [ratio.low, ratio.high]),
            "rounds": rounds,
        });
        writeln!(out, "{line}")?;
    }
    for ((variant, size), reason) in &results.left_out {
        writeln!(
            out,
            "{}",
            json!({"measured": "left_out", "size": size, "variant": variant, "reason": reason})
        )?;
    }
    Ok(out)
}
