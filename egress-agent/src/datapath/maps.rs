//! The maps from user space: reading what they say, and carrying out plans.
//!
//! Invariant: [`Maps::observed`] is what the kernel's maps hold: read once, then kept in step by every write that
//! succeeded. Tested by `tests/verdicts.rs`, which reads the maps again after many plans.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap as BpfHash, LpmTrie, Map, MapData, MapError};
use egress_common::wire::{
    ABI, Addr, Cidr, Config, Endpoint, FLAG_AUDIT, Keyed, Row, RowKey, STATE_INVALID, STATE_UNSELECTED,
};
use egress_policy::plan::{Plan, State, Step};
use serde::{Deserialize, Serialize};

use super::batch;
use super::pins::Pins;

const CONFIG: &str = "egress_config";
pub(crate) const ENDPOINTS: &str = "egress_endpoint";
const IPCACHE: &str = "egress_ipcache";
const CIDRS: &str = "egress_cidrs";
const ROWS: &str = "egress_rows";

/// Those of them that can be full.
pub(super) const FILLED: [&str; 4] = [ENDPOINTS, IPCACHE, CIDRS, ROWS];

/// The maps that say what is allowed; each is pinned under its name.
pub(super) const NAMES: [&str; 5] = [CONFIG, ENDPOINTS, IPCACHE, CIDRS, ROWS];

/// Size of key and value of each map: a pinned map of another shape is not ours to write.
const SHAPES: [(&str, usize, usize); 5] = [
    (CONFIG, 4, size_of::<Config>()),
    (ENDPOINTS, 8, size_of::<Keyed<u64, Endpoint>>()),
    (IPCACHE, 16, size_of::<Keyed<Addr, u64>>()),
    (CIDRS, 4 + 16, 8),
    (ROWS, size_of::<RowKey>(), size_of::<Keyed<RowKey, Row>>()),
];

/// Addresses that are written at once.
const BATCH: usize = 4096;

/// What a full map of addresses means.
const PLANS_WAIT: &str =
    "changes of policies wait until there is room; pods that they are about are closed altogether";

/// The open maps.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    endpoints: BpfHash<MapData, u64, Keyed<u64, Endpoint>>,
    ipcache: BpfHash<MapData, Addr, Keyed<Addr, u64>>,
    cidrs: LpmTrie<MapData, Addr, u64>,
    rows: BpfHash<MapData, RowKey, Keyed<RowKey, Row>>,
    capacity: BTreeMap<&'static str, u32>,
    observed: State,
}

/// Entries and capacity of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// The map's name.
    pub map: String,
    /// Entries in it.
    pub entries: usize,
    /// Most entries it can hold.
    pub capacity: u32,
    /// What it means that nothing more fits; nothing while there is room.
    #[serde(default)]
    pub full: Option<String>,
}

impl Fill {
    pub(super) fn new(map: &str, entries: usize, capacity: u32, meaning: &str) -> Self {
        let full = (entries as u64 >= u64::from(capacity)).then(|| meaning.to_owned());
        Self { map: map.to_owned(), entries, capacity, full }
    }
}

/// A step of a plan that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} in {}: {}{}", map_of(step), cause(error), if *stopped { "; the rest of the plan waits" } else { "" })]
pub struct StepError {
    /// The step.
    pub step: Box<Step>,
    /// The kernel's answer.
    pub error: MapError,
    /// The plan was not carried on after this step.
    pub stopped: bool,
}

impl Maps {
    /// Takes the maps out of the loaded object, checks their shapes and reads them.
    pub(super) fn take(ebpf: &mut Ebpf, pins: &Pins) -> anyhow::Result<Self> {
        let mut capacity = BTreeMap::new();
        for (name, key, value) in SHAPES {
            let info = aya::maps::MapInfo::from_pin(pins.map(name)).with_context(|| format!("map {name}"))?;
            if (info.key_size() as usize, info.value_size() as usize) != (key, value) {
                bail!(
                    "the pinned map {} is of another version: run `egress-agent cleanup`, then start again",
                    pins.map(name).display()
                );
            }
            capacity.insert(name, info.max_entries());
        }
        let mut take = |name: &str| -> anyhow::Result<Map> {
            ebpf.take_map(name).with_context(|| format!("the BPF object has no map {name}"))
        };
        let mut maps = Self {
            config: take(CONFIG)?.try_into()?,
            endpoints: take(ENDPOINTS)?.try_into()?,
            ipcache: take(IPCACHE)?.try_into()?,
            cidrs: take(CIDRS)?.try_into()?,
            rows: take(ROWS)?.try_into()?,
            capacity,
            observed: State::default(),
        };
        maps.observed = maps.read().context("cannot read the maps")?;
        Ok(maps)
    }

    pub(super) fn read(&self) -> Result<State, MapError> {
        let cidr = |key: Key<Addr>| Cidr { bits: key.prefix_len(), addr: key.data() };
        let of_addresses = self.ipcache.iter().map(|entry| entry.map(|(addr, found)| (addr, found.value)));
        Ok(State {
            config: self.config.get(&0, 0)?,
            endpoints: values(&self.endpoints)?,
            addresses: of_addresses.collect::<Result<_, _>>()?,
            cidrs: self.cidrs.iter().map(|e| e.map(|(k, v)| (cidr(k), v))).collect::<Result<_, _>>()?,
            rows: values(&self.rows)?,
        })
    }

    pub(super) fn pack(&mut self) {
        self.observed.pack();
    }

    pub(super) fn observed(&self) -> &State {
        &self.observed
    }

    /// What the kernel's maps hold now of a pod, of the identities of addresses, and of the rows that these lead to: of prefixes the
    /// longest one, as a prefix of the address alone.
    pub(super) fn read_of(&self, cgroup: Option<u64>, addresses: &[Addr]) -> Result<State, MapError> {
        let mut state = State { config: self.config.get(&0, 0)?, ..State::default() };
        if let Some(cgroup) = cgroup
            && let Some(endpoint) = found(self.endpoints.get(&cgroup, 0))?
        {
            state.endpoints.insert(cgroup, endpoint.value);
        }
        for addr in addresses {
            if let Some(identity) = found(self.ipcache.get(addr, 0))? {
                state.addresses.insert(*addr, identity.value);
            }
            if let Some(identity) = found(self.cidrs.get(&Key::new(128, *addr), 0))? {
                state.cidrs.insert(Cidr { bits: 128, addr: *addr }, identity);
            }
        }
        let (policies, identities) = state.in_use();
        for policy in policies {
            for identity in &identities {
                let key = RowKey { policy, identity: *identity };
                if let Some(row) = found(self.rows.get(&key, 0))? {
                    state.rows.insert(key, row.value);
                }
            }
        }
        Ok(state)
    }

    /// A row that does not fit is left out, which denies; a pod that does not fit stays unknown. Anything else that fails stops
    /// the plan, because every prefix of a plan is safe and a plan with a hole need not be.
    pub(super) fn apply(&mut self, plan: &Plan) -> Result<(), Vec<StepError>> {
        let mut errors = Vec::new();
        let mut rest = plan.steps.as_slice();
        let mut batches = true;
        while let Some((step, after)) = rest.split_first() {
            if batches {
                let run =
                    rest.iter().take(BATCH).take_while(|step| matches!(step, Step::PutAddress(..))).count();
                let written = self.put_addresses(&rest[..run]);
                // What comes next says by itself why it cannot be written.
                batches = written == run;
                if written > 0 {
                    rest = &rest[written..];
                    continue;
                }
            }
            rest = after;
            if let Err(error) = self.step(step) {
                let left_out = match step {
                    Step::PutRow(..) => true,
                    Step::PutEndpoint(..) => is_full(&error),
                    _ => false,
                };
                errors.push(StepError { step: Box::new(step.clone()), error, stopped: !left_out });
                if !left_out {
                    break;
                }
            }
        }
        if rest.is_empty() {
            return if errors.is_empty() { Ok(()) } else { Err(errors) };
        }
        self.make_room(plan, rest);
        for step in rest {
            if let Step::PutEndpoint(cgroup, endpoint) = step
                && let Err(error) = self.close(*cgroup, endpoint)
            {
                errors.push(StepError { step: Box::new(step.clone()), error, stopped: true });
            }
        }
        // Verdicts that sockets keep are none of what was done of the plan.
        let observed = self.observed.config;
        if observed.abi == ABI {
            let step = Step::PutConfig(Config { revision: observed.revision.wrapping_add(1), ..observed });
            if let Err(error) = self.step(&step) {
                errors.push(StepError { step: Box::new(step), error, stopped: true });
            }
        }
        Err(errors)
    }

    /// Removes what a stopped plan would have removed last, so that there is room the next time: else what comes would wait for
    /// what goes, which waits for what comes. It is as if the objects that are gone had gone by themselves before. An address that is
    /// removed falls to a prefix, so only where that does not change; and of rows only those that nothing leads to.
    fn make_room(&mut self, plan: &Plan, rest: &[Step]) {
        let moves = |addr: &Addr| {
            plan.steps.iter().any(|step| match step {
                Step::PutCidr(cidr, _) | Step::DeleteCidr(cidr) => holds(cidr, addr),
                _ => false,
            })
        };
        for step in rest {
            let goes = match step {
                Step::DeleteEndpoint(_) => true,
                Step::DeleteAddress(addr) => !moves(addr),
                _ => false,
            };
            if goes {
                // What fails here is tried again with the whole plan.
                let _not_yet = self.step(step);
            }
        }
        let (policies, identities) = self.observed.in_use();
        for step in rest {
            if let Step::DeleteRow(key) = step
                && !(policies.contains(&key.policy) && identities.contains(&key.identity))
            {
                let _not_yet = self.step(step);
            }
        }
    }

    /// A pod that is to be under other policies than it is now is closed altogether, where the plan that would have said what it may
    /// do could not be carried out: it may be less. Who is only audited, or set free, stays under those that it had.
    fn close(&mut self, cgroup: u64, endpoint: &Endpoint) -> Result<(), MapError> {
        let same = |was: &Endpoint| {
            (was.state, was.policy, was.lock) == (endpoint.state, endpoint.policy, endpoint.lock)
        };
        let denies = endpoint.state != STATE_UNSELECTED && endpoint.flags & FLAG_AUDIT == 0;
        if denies && !self.observed.endpoints.get(&cgroup).is_some_and(same) {
            return self.step(&Step::PutEndpoint(cgroup, Endpoint { state: STATE_INVALID, ..*endpoint }));
        }
        Ok(())
    }

    /// Writes the addresses of these steps in order, until one cannot be; tells how many were.
    fn put_addresses(&mut self, steps: &[Step]) -> usize {
        let entries = steps.iter().filter_map(|step| match step {
            Step::PutAddress(addr, identity) => Some((*addr, Keyed { key: *addr, value: *identity })),
            _ => None,
        });
        let (keys, values): (Vec<Addr>, Vec<Keyed<Addr, u64>>) = entries.unzip();
        if keys.is_empty() {
            return 0;
        }
        let written = batch::update(&self.ipcache, &keys, &values);
        self.observed.addresses.extend(values.iter().take(written).map(|entry| (entry.key, entry.value)));
        written
    }

    fn step(&mut self, step: &Step) -> Result<(), MapError> {
        let observed = &mut self.observed;
        let lpm = |cidr: &Cidr| Key::new(cidr.bits, cidr.addr);
        match step {
            Step::PutRow(key, row) => {
                self.rows.insert(key, Keyed { key: *key, value: **row }, 0)?;
                observed.rows.insert(*key, **row);
            }
            Step::PutAddress(addr, identity) => {
                self.ipcache.insert(addr, Keyed { key: *addr, value: *identity }, 0)?;
                observed.addresses.insert(*addr, *identity);
            }
            Step::PutCidr(cidr, identity) => {
                self.cidrs.insert(&lpm(cidr), identity, 0)?;
                observed.cidrs.insert(*cidr, *identity);
            }
            Step::PutEndpoint(cgroup, endpoint) => {
                self.endpoints.insert(cgroup, Keyed { key: *cgroup, value: *endpoint }, 0)?;
                observed.endpoints.insert(*cgroup, *endpoint);
            }
            Step::PutConfig(config) => {
                self.config.set(0, config, 0)?;
                observed.config = *config;
            }
            Step::DeleteEndpoint(cgroup) => {
                gone(self.endpoints.remove(cgroup))?;
                observed.endpoints.remove(cgroup);
            }
            Step::DeleteAddress(addr) => {
                gone(self.ipcache.remove(addr))?;
                observed.addresses.remove(addr);
            }
            Step::DeleteCidr(cidr) => {
                gone(self.cidrs.remove(&lpm(cidr)))?;
                observed.cidrs.remove(cidr);
            }
            Step::DeleteRow(key) => {
                gone(self.rows.remove(key))?;
                observed.rows.remove(key);
            }
        }
        Ok(())
    }

    pub(super) fn fill(&self) -> Vec<Fill> {
        let observed = &self.observed;
        let maps = [
            (observed.endpoints.len(), "pods that do not fit stay unknown"),
            (observed.addresses.len(), PLANS_WAIT),
            (observed.cidrs.len(), PLANS_WAIT),
            (observed.rows.len(), "what the rows that do not fit allow is denied"),
        ];
        let capacity = |name| self.capacity.get(name).copied().unwrap_or(0);
        let fill = |(map, (entries, meaning))| Fill::new(map, entries, capacity(map), meaning);
        FILLED.into_iter().zip(maps).map(fill).collect()
    }
}

/// What a map says, by its keys.
pub(super) fn values<K: aya::Pod + Ord, V>(
    map: &BpfHash<MapData, K, Keyed<K, V>>,
) -> Result<BTreeMap<K, V>, MapError>
where
    Keyed<K, V>: aya::Pod,
{
    map.iter().map(|entry| entry.map(|(key, found)| (key, found.value))).collect()
}

/// What a lookup found; that there is no such key is no error.
fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an address is within a prefix.
fn holds(cidr: &Cidr, addr: &Addr) -> bool {
    let [a, b] = [cidr.addr.0, addr.0].map(u128::from_be_bytes);
    (a ^ b).checked_shr(128 - cidr.bits.min(128)).unwrap_or(0) == 0
}

/// Whether there was no room: E2BIG from hash maps, ENOSPC from tries.
fn is_full(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else { return false };
    matches!(error.io_error.raw_os_error(), Some(nix::libc::E2BIG | nix::libc::ENOSPC))
}

/// Why a step failed, to the kernel's own word.
fn cause(error: &MapError) -> String {
    match error {
        _ if is_full(error) => "the map is full".to_owned(),
        MapError::SyscallError(syscall) => format!("{error}: {}", syscall.io_error),
        _ => error.to_string(),
    }
}

/// The map that a step writes.
fn map_of(step: &Step) -> &'static str {
    match step {
        Step::PutRow(..) | Step::DeleteRow(_) => ROWS,
        Step::PutAddress(..) | Step::DeleteAddress(_) => IPCACHE,
        Step::PutCidr(..) | Step::DeleteCidr(_) => CIDRS,
        Step::PutEndpoint(..) | Step::DeleteEndpoint(_) => ENDPOINTS,
        Step::PutConfig(_) => CONFIG,
    }
}

/// What is to be gone and is not there has gone.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, Cidr, holds};

    #[test]
    fn a_prefix_holds_what_its_bits_say() {
        let addr = |last| Addr::v4([198, 51, 100, last]);
        let of = |bits| Cidr { bits, addr: addr(16) };
        assert!(holds(&of(128), &addr(16)) && !holds(&of(128), &addr(17)));
        assert!(holds(&of(124), &addr(31)) && !holds(&of(124), &addr(32)));
        assert!(holds(&of(0), &Addr([0xff; 16])));
    }
}
