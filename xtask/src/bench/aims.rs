//! What `bench datapath` is to show, and whether it does.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::datapath::{Metric, Results, Variant};
use super::estimate::{Answer, Estimate};
use super::report::name;

/// The size from which on others are to be left behind.
const LARGE: u64 = 1_000;
/// How much longer a program may take at the largest size than at the smallest.
const FLAT: f64 = 1.2;

/// A line for each aim.
pub(super) fn aims(results: &Results) -> anyhow::Result<String> {
    let mut out = String::new();
    if !results.programs.is_empty() {
        let first =
            ["first packet, to a pod", "first packet, to an address outside", "first packet, to a prefix"];
        below(results, "an established flow", &["established"], 40.0, &mut out)?;
        below(results, "a first packet", &first, 150.0, &mut out)?;
        for case in ["established"].iter().chain(&first) {
            flat(results, case, &mut out)?;
        }
    }
    if !results.traffic.is_empty() {
        near(results, "a stream", Metric::Stream, 0.98, &mut out)?;
        near(results, "the connection rate", Metric::Connections, 0.95, &mut out)?;
        for other in [Variant::Nftables, Variant::Iptables, Variant::PlainLpm] {
            ahead(results, other, &mut out)?;
        }
    }
    Ok(format!("Aims:\n\n{out}"))
}

fn sizes(results: &Results) -> BTreeSet<u64> {
    let traffic = results.traffic.keys().map(|(.., size)| *size);
    traffic.chain(results.programs.keys().map(|(_, size)| *size)).collect()
}

/// Nanoseconds above the empty program, at the worst size.
fn below(results: &Results, what: &str, cases: &[&str], limit: f64, out: &mut String) -> anyhow::Result<()> {
    let found = results.programs.iter().filter(|((case, _), _)| cases.contains(&case.as_str()));
    let medians =
        found.filter_map(|((_, size), program)| Some((Estimate::of(&program.above_empty)?.median, *size)));
    let Some((worst, size)) = medians.max_by(|one, other| one.0.total_cmp(&other.0)) else { return Ok(()) };
    let met = if worst < limit { "met" } else { "NOT MET" };
    writeln!(out, "- {what} less than {limit} ns above the empty program: {met}, {worst:.0} ns at {size}.")?;
    Ok(())
}

/// The largest of all sizes' nanoseconds and the smallest.
fn flat(results: &Results, case: &str, out: &mut String) -> anyhow::Result<()> {
    let found = results.programs.iter().filter(|((this, _), _)| this == case);
    let medians: Vec<f64> =
        found.filter_map(|(_, program)| Some(Estimate::of(&program.nanoseconds)?.median)).collect();
    let (least, most) = medians
        .iter()
        .fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(*value), most.max(*value)));
    let met = if most <= least * FLAT { "met" } else { "NOT MET" };
    writeln!(out, "- {case}: flat in size: {met}, {least:.0} to {most:.0} ns.")?;
    Ok(())
}

/// The enforcer beside nothing, at every size.
fn near(results: &Results, what: &str, metric: Metric, bound: f64, out: &mut String) -> anyhow::Result<()> {
    write!(out, "- {what} at least {bound} of what it is without a filter:")?;
    for size in sizes(results) {
        let of = |variant| results.traffic.get(&(metric, variant, size)).map(Vec::as_slice);
        let Some(nothing) = of(Variant::Nothing) else { continue };
        let ratio = |variant| Estimate::of_ratios(of(variant)?, nothing);
        let (Some(ours), Some(noise)) = (ratio(Variant::Enforcer), ratio(Variant::NothingAgain)) else {
            continue;
        };
        let met = match ours.at_least(bound) {
            Answer::Yes => "met",
            Answer::No => "NOT MET",
            Answer::Unclear => "unclear",
        };
        let Estimate { median, low, high } = ours;
        write!(
            out,
            " {size}: {met}, {median:.3} ({low:.3} to {high:.3}; noise {:.3} to {:.3});",
            noise.low, noise.high
        )?;
    }
    out.pop();
    Ok(writeln!(out, ".")?)
}

/// The enforcer beside another filter, at the larger sizes.
fn ahead(results: &Results, other: Variant, out: &mut String) -> anyhow::Result<()> {
    // What is a rate is better where it is more, what is a time where it is less.
    let metrics = [
        (Metric::Stream, "stream", true),
        (Metric::Packets, "datagrams", true),
        (Metric::PacketsCpu, "datagrams' processor time", false),
        (Metric::Connections, "connections", true),
        (Metric::ConnectionsCpu, "connections' processor time", false),
        (Metric::RequestP50, "requests", false),
    ];
    let (mut counts, mut worse) = ([0; 3], Vec::new());
    for size in sizes(results).into_iter().filter(|size| *size >= LARGE) {
        for (metric, what, more) in metrics {
            let of = |variant| results.traffic.get(&(metric, variant, size));
            let (Some(ours), Some(theirs)) = (of(Variant::Enforcer), of(other)) else { continue };
            let Some(ratio) = Estimate::of_ratios(ours, theirs) else { continue };
            let ratio = if more { ratio } else { ratio.inverse() };
            match ratio.at_least(1.0) {
                Answer::Yes => counts[0] += 1,
                Answer::Unclear => counts[1] += 1,
                Answer::No => {
                    counts[2] += 1;
                    worse.push(format!("{what} at {size}, {:.3}", ratio.median));
                }
            }
        }
    }
    let [ahead, level, behind] = counts;
    let met = match (level, behind) {
        (_, 1..) => "NOT MET",
        (1.., 0) => "not behind",
        (0, 0) => "met",
        _ => "unclear",
    };
    write!(
        out,
        "- ahead of {} from {LARGE} on: {met}: ahead in {ahead}, level in {level}, behind in {behind}",
        name(other)
    )?;
    if !worse.is_empty() {
        write!(out, " ({})", worse.join("; "))?;
    }
    Ok(writeln!(out, ".")?)
}
