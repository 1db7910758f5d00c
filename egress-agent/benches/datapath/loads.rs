//! Traffic: every load by every variant in turn, round by round.

use std::collections::BTreeMap;
use std::time::Instant;

use egress_probe::Load;
use serde::Serialize;

use crate::Setting;
use crate::destinations::Destinations;
use crate::record::{self, Record};
use crate::stand::{Stand, Variant};

/// What a load is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Bytes a second of one TCP connection.
    Stream,
    /// Nanoseconds of the sender's processor for each of these bytes.
    StreamCpu,
    /// Small datagrams a second.
    Packets,
    /// Nanoseconds of the sender's processor for a datagram.
    PacketsCpu,
    /// Connections a second, with one request each.
    Connections,
    /// Nanoseconds of the client's processor for a connection.
    ConnectionsCpu,
    /// Median nanoseconds of a request on a connection that stands.
    RequestP50,
    /// Nanoseconds that one of a hundred requests exceeds.
    RequestP99,
}

/// The loads, as the probe calls them.
const KINDS: [&str; 4] = ["stream", "packets", "connections", "requests"];

/// What a load came to.
fn values(kind: &str, load: &Load) -> [(Metric, f64); 2] {
    match kind {
        "stream" => [(Metric::Stream, load.rate()), (Metric::StreamCpu, load.cpu_each())],
        "packets" => [(Metric::Packets, load.rate()), (Metric::PacketsCpu, load.cpu_each())],
        "connections" => [(Metric::Connections, load.rate()), (Metric::ConnectionsCpu, load.cpu_each())],
        _ => [
            (Metric::RequestP50, load.p50.unwrap_or_default() as f64),
            (Metric::RequestP99, load.p99.unwrap_or_default() as f64),
        ],
    }
}

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
            let start = Instant::now();
            match stand.allow(setting, &destinations) {
                Ok(()) => ready.push(&*stand),
                // The one that may not manage; it is said, and the others go on.
                Err(error) if stand.variant == Variant::Iptables => {
                    eprintln!("    {size} destinations, {:?}: left out: {error:#}", stand.variant);
                    let reason = format!("{error:#}");
                    record::print(&Record::LeftOut { size, variant: stand.variant, reason })?;
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
                let load = stand.load(kind, setting.effort.load).or_else(|error| {
                    // One that fails for once, on a machine that others use too, is not to cost all that was measured.
                    eprintln!("    once more: {error:#}");
                    stand.load(kind, setting.effort.load)
                })?;
                for (metric, value) in values(kind, &load) {
                    found.entry((metric, stand.variant)).or_default().push(value);
                }
            }
        }
    }
    Ok(found)
}

fn report(size: usize, rounds: &Rounds) -> anyhow::Result<()> {
    for ((metric, variant), rounds) in rounds {
        let (metric, variant) = (*metric, *variant);
        record::print(&Record::Traffic { size, metric, variant, rounds })?;
    }
    Ok(())
}
