//! What the programs write: verdicts counted, denials of each pod, events, witnesses.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{HashMap as BpfHash, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use egress_common::connection;
use egress_common::reason::counter_slot;
use egress_common::wire::{Approval, Counter, Denial, DenialKey, WITNESS_STOOD, Witness, WitnessKey};
use egress_common::witness::{self, Half};
use egress_common::{Action, Addr, Hook, Reason};
use serde::{Deserialize, Serialize};

use super::maps::Fill;
use crate::network::Connection;

const COUNTERS: &str = "egress_counters";
const LOST: &str = "egress_lost";
const EVENTS: &str = "egress_events";
const DENIALS: &str = "egress_denials";
/// What came in.
pub(super) const INBOUND: &str = "egress_inbound";

/// The maps that programs write; each is pinned under its name, so that what was seen outlives the agent.
pub(super) const NAMES: [&str; 7] = [COUNTERS, LOST, EVENTS, DENIALS, INBOUND, APPROVALS, "egress_process"];
/// What is kept with sockets.
pub(super) const APPROVALS: &str = "egress_approval";

/// The open maps.
pub struct Seen {
    counters: PerCpuArray<MapData, Counter>,
    lost: PerCpuArray<MapData, u64>,
    denials: PerCpuHashMap<MapData, DenialKey, Denial>,
    inbound: BpfHash<MapData, WitnessKey, Witness>,
    events: Option<RingBuf<MapData>>,
    /// Entries of `inbound`, as of the last look.
    witnesses: usize,
    /// Most entries of `inbound`.
    capacity: u32,
}

/// Packets and bytes of one hook, action and reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterTotal {
    /// [`Hook::name`].
    pub hook: String,
    /// [`Action::name`].
    pub action: String,
    /// [`Reason::name`].
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

/// What one pod was denied, or audited, by one hook for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialTotal {
    /// Hook, action, reason, packets and bytes.
    #[serde(flatten)]
    pub total: CounterTotal,
    /// Packets of these that no event told of, because there were too many.
    pub suppressed: u64,
}

/// What one pod was denied, or audited, by one hook for one reason, in the kernel's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Id of the pod's cgroup.
    pub cgroup: u64,
    /// [`counter_slot`] of the next three.
    pub slot: u32,
    /// The hook.
    pub hook: Hook,
    /// Deny or audit.
    pub action: Action,
    /// The reason.
    pub reason: Reason,
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
    /// Packets of these that no event told of.
    pub suppressed: u64,
}

impl From<&Denied> for DenialTotal {
    fn from(one: &Denied) -> Self {
        let total = total(one.hook, one.action, one.reason, one.packets, one.bytes);
        Self { total, suppressed: one.suppressed }
    }
}

impl Seen {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let mut take = |name: &str| -> anyhow::Result<Map> {
            ebpf.take_map(name).with_context(|| format!("the BPF object has no map {name}"))
        };
        let inbound = take(INBOUND)?;
        let capacity = match &inbound {
            Map::HashMap(data) => data.info()?.max_entries(),
            _ => 0,
        };
        Ok(Self {
            counters: take(COUNTERS)?.try_into()?,
            lost: take(LOST)?.try_into()?,
            denials: take(DENIALS)?.try_into()?,
            inbound: inbound.try_into()?,
            events: Some(take(EVENTS)?.try_into()?),
            witnesses: 0,
            capacity,
        })
    }

    /// Packets and bytes by hook, action and reason, where there were any, summed over the CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> anyhow::Result<Vec<CounterTotal>> {
        let mut totals = Vec::new();
        for (slot, hook, action, reason) in slots() {
            let cpus = self.counters.get(&slot, 0).context("cannot read the counters")?;
            let (packets, bytes) = cpus.iter().fold((0, 0), |sum, c| (sum.0 + c.packets, sum.1 + c.bytes));
            if packets > 0 {
                totals.push(total(hook, action, reason, packets, bytes));
            }
        }
        Ok(totals)
    }

    /// What pods were denied or audited, by pod, hook and reason: a look at each entry there is, not at each that could be.
    #[must_use]
    pub fn denied(&self) -> Vec<Denied> {
        let names: BTreeMap<u32, _> =
            slots().map(|(slot, hook, action, reason)| (slot, (hook, action, reason))).collect();
        let mut denied = Vec::new();
        // An entry that goes meanwhile is one of a pod that went.
        for (DenialKey { cgroup, slot, .. }, cpus) in self.denials.iter().flatten() {
            let Some(&(hook, action, reason)) = names.get(&slot) else { continue };
            let sum = |of: fn(&Denial) -> u64| cpus.iter().map(of).sum();
            let (packets, bytes, suppressed) = (sum(|d| d.packets), sum(|d| d.bytes), sum(|d| d.suppressed));
            denied.push(Denied { cgroup, slot, hook, action, reason, packets, bytes, suppressed });
        }
        denied.sort_by_key(|one| (one.cgroup, one.slot));
        denied
    }

    /// Events that found no room, in the ring buffer or in the map that counts them.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn lost(&self) -> anyhow::Result<u64> {
        Ok(self.lost.get(&0, 0).context("cannot read the count of lost events")?.iter().sum())
    }

    /// Remembers connections that came in before anybody watched. `now` is the time of the kernel's monotonic clock in nanoseconds.
    ///
    /// # Errors
    /// One does not fit: what its pod sends on it will be denied.
    pub fn stood(&mut self, cgroup: u64, connections: &[Connection], now: u64) -> anyhow::Result<()> {
        for connection in connections {
            let like = Approval {
                cgroup,
                source: address(connection.local.ip()),
                destination: address(connection.remote.ip()),
                source_port: connection.local.port(),
                destination_port: connection.remote.port(),
                ..Approval::default()
            };
            let half = connection::half(&like, WITNESS_STOOD);
            let (_, value) = half.entry(cgroup, now);
            let [first, second] = self.places(&half);
            let Some(choice) = witness::place(&value, first.as_ref(), second.as_ref()) else {
                continue;
            };
            self.inbound
                .insert(half.key(choice), value, 0)
                .context("cannot remember a connection that stands")?;
        }
        Ok(())
    }

    /// What was seen of the TCP connection that a socket kept.
    #[must_use]
    pub fn of(&self, kept: &Approval) -> Option<Witness> {
        let half = connection::half(kept, WITNESS_STOOD);
        self.places(&half).into_iter().flatten().find(|seen| half.is_of(seen, kept.cgroup))
    }

    /// What is in the places of a flow.
    fn places(&self, half: &Half) -> [Option<Witness>; 2] {
        [witness::FIRST, witness::SECOND].map(|choice| self.inbound.get(&half.key(choice), 0).ok())
    }

    /// Forgets what was denied of pods that are gone.
    pub fn forget_all_but(&mut self, cgroups: &BTreeSet<u64>) {
        let gone: Vec<_> =
            self.denials.keys().flatten().filter(|key| !cgroups.contains(&key.cgroup)).collect();
        for key in gone {
            let _gone_already = self.denials.remove(&key);
        }
    }

    /// Takes note of how many entries the map of what came in has.
    pub(super) fn count_witnesses(&mut self, number: usize) {
        self.witnesses = number;
    }

    /// How full the map of what came in was at the last look.
    pub(super) fn fill(&self) -> Fill {
        Fill::new(INBOUND, self.witnesses, self.capacity, "what comes in and does not fit cannot be answered")
    }

    pub(super) fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }
}

fn slots() -> impl Iterator<Item = (u32, Hook, Action, Reason)> {
    let pairs = Hook::ALL.into_iter().flat_map(|hook| Action::ALL.map(|action| (hook, action)));
    pairs.flat_map(|(hook, action)| {
        Reason::ALL.iter().map(move |&reason| (counter_slot(hook, action, reason), hook, action, reason))
    })
}

fn total(hook: Hook, action: Action, reason: Reason, packets: u64, bytes: u64) -> CounterTotal {
    let (hook, action, reason) = (hook.name().to_owned(), action.name().to_owned(), reason.name().to_owned());
    CounterTotal { hook, action, reason, packets, bytes }
}

fn address(ip: std::net::IpAddr) -> Addr {
    match ip {
        std::net::IpAddr::V4(v4) => Addr::v4(v4.octets()),
        std::net::IpAddr::V6(v6) => Addr(v6.octets()),
    }
}
