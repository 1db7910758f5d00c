//! Letting go of what was seen of flows, beside the one task: what belongs to pods that are gone, what came in from pods that are gone, and
//! what is too long ago to count. A busy server's clients would fill the map otherwise, and with it that of all pods.
//!
//! Invariant: nothing goes that counts. Tested by `what_is_too_long_ago_goes` and in `tests/storms/full.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::{HashMap as BpfHash, Map, MapData};
use egress_common::wire::{Addr, Witness, WitnessKey};

use crate::beside::Beside;

/// What is under way; gives how many entries there are.
pub(crate) type Witnesses = Beside<usize>;

/// The least time from one look to the next.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// Who is there.
#[derive(Debug)]
pub(crate) struct Here {
    /// The pods of this node.
    pub(crate) cgroups: BTreeSet<u64>,
    /// Addresses that a pod left, and nobody has, with since when on the kernel's monotonic clock in nanoseconds.
    pub(crate) gone: BTreeMap<Addr, u64>,
}

impl Witnesses {
    /// Looks through the map, given who is there and the time of the kernel's monotonic clock.
    pub(crate) fn sweep(&mut self, map: MapData, here: Here, now: u64) {
        self.begin(move || {
            sweep(map, &here, now).map_err(|error| format!("cannot look through what was seen: {error:#}"))
        });
    }
}

/// How long ago what was seen of a pod has to be before the pod can be gone: one may be born meanwhile. Nanoseconds.
const BIRTH: u64 = 2_000_000_000;

fn sweep(map: MapData, here: &Here, now: u64) -> anyhow::Result<usize> {
    let mut map: BpfHash<_, WitnessKey, Witness> = Map::HashMap(map).try_into()?;
    let is_gone = |seen: &Witness| !here.cgroups.contains(&seen.cgroup) && seen.seen + BIRTH < now;
    let asks_no_more = |seen: &Witness| here.gone.get(&seen.remote).is_some_and(|since| seen.seen < *since);
    let is_over = |seen: &Witness| is_gone(seen) || asks_no_more(seen) || seen.is_over(now);
    let (mut stay, mut over) = (0, Vec::new());
    for entry in &map {
        match entry.context("cannot read it")? {
            (key, seen) if is_over(&seen) => over.push(key),
            _ => stay += 1,
        }
    }
    for key in over {
        // It may have been seen again, or be another one's by now.
        if map.get(&key, 0).is_ok_and(|seen| is_over(&seen)) {
            let _gone_already = map.remove(&key);
        } else {
            stay += 1;
        }
    }
    Ok(stay)
}
