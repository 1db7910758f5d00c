//! Traffic: every load by every variant in turn, round by round.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Setting;
use crate::destinations::Destinations;
use crate::record::{self, Traffic, median};
use crate::stand::{Stand, Variant};

/// What a load is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Bytes a second of one TCP connection.
    Stream,
    /// Small datagrams a second.
    Packets,
    /// Connections a second, with one request each.
    Connections,
    /// Median nanoseconds of a request on a connection that stands.
    RequestP50,
    /// Nanoseconds that one of a hundred requests exceeds.
    RequestP99,
}

const KINDS: [&str; 4] = ["stream", "packets", "connections", "requests"];

/// Values of the rounds.
type Rounds = BTreeMap<(Metric, Variant), Vec<f64>>;

/// Measures all variants at all sizes.
pub fn measure(setting: &Setting, sizes: &[usize]) -> anyhow::Result<()> {
    eprintln!("==> set up {} nodes", Variant::ALL.len());
    let mut stands = Vec::new();
    for variant in Variant::ALL {
        setting.check()?;
        stands.push(Stand::new(setting, variant)?);
    }
    for &size in sizes {
        let destinations = Destinations::new(size);
        let mut ready = Vec::new();
        for stand in &mut stands {
            setting.check()?;
            let start = std::time::Instant::now();
            match stand.allow(setting, &destinations) {
                Ok(()) => ready.push(&*stand),
                // The one that may not manage; it is said, and the others go on.
                Err(error) if stand.variant == Variant::Iptables => {
                    eprintln!("    {size} destinations, {:?}: left out: {error:#}", stand.variant);
                    record::left_out(stand.variant, size, &format!("{error:#}"))?;
                }
                Err(error) => return Err(error.context(format!("{size} destinations, {:?}", stand.variant))),
            }
            eprintln!("    {size} destinations, {:?}: {:.1} s", stand.variant, start.elapsed().as_secs_f32());
        }
        let rounds = rounds(setting, size, &ready)?;
        report(size, &rounds)?;
    }
    Ok(())
}

fn rounds(setting: &Setting, size: usize, stands: &[&Stand]) -> anyhow::Result<Rounds> {
    let mut found = Rounds::new();
    for round in 0..setting.effort.rounds {
        eprintln!("    {size} destinations: round {} of {}", round + 1, setting.effort.rounds);
        for kind in KINDS {
            // Every round begins with another variant: none is always the one after the break.
            for place in 0..stands.len() {
                setting.check()?;
                let Some(stand) = stands.get((place + round) % stands.len()) else { continue };
                let load = stand.load(kind, setting.effort.load)?;
                let mut add = |metric, value| found.entry((metric, stand.variant)).or_default().push(value);
                match kind {
                    "stream" => add(Metric::Stream, load.rate()),
                    "packets" => add(Metric::Packets, load.rate()),
                    "connections" => add(Metric::Connections, load.rate()),
                    _ => {
                        add(Metric::RequestP50, load.p50.unwrap_or_default() as f64);
                        add(Metric::RequestP99, load.p99.unwrap_or_default() as f64);
                    }
                }
            }
        }
    }
    Ok(found)
}

fn report(size: usize, rounds: &Rounds) -> anyhow::Result<()> {
    for ((metric, variant), values) in rounds {
        let nothing = rounds.get(&(*metric, Variant::Nothing)).map_or(&[][..], Vec::as_slice);
        // Round by round: what slows a whole round down does not count.
        let ratios: Vec<f64> = values.iter().zip(nothing).map(|(value, nothing)| value / nothing).collect();
        record::print(&Traffic {
            measured: "traffic",
            size,
            metric: *metric,
            variant: *variant,
            median: median(values),
            ratio: median(&ratios),
            rounds: values,
        })?;
    }
    Ok(())
}
