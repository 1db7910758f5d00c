//! The part of a state that a pod's packets to some addresses are judged by, and how two of them differ.
//!
//! Invariant: judging by the part gives what judging by the whole would; what is no part of it makes no difference. Tested by
//! `tests/explain.rs`.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::wire::{Addr, Cidr, Config, Endpoint, IDENTITY_WORLD};
use serde::Serialize;

use super::{Prefixes, State, Step};

/// What two states say that is not the same. Each as one line of a plan, nothing where there is no such entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What the kernel's maps have.
    pub kernel: Option<String>,
    /// What was compiled.
    pub compiled: Option<String>,
}

impl State {
    /// The policies and identities that pods, the configuration and addresses lead to.
    #[must_use]
    pub fn in_use(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let Self { config, endpoints, addresses, cidrs, .. } = self;
        let of = |endpoint: &Endpoint| {
            endpoint.proxies.map(|proxy| proxy.policy).into_iter().chain([endpoint.policy, endpoint.lock])
        };
        let policies = endpoints.values().flat_map(of).chain([config.unknown_policy]).collect();
        let identities = addresses.values().chain(cidrs.values()).copied().chain([IDENTITY_WORLD]).collect();
        (policies, identities)
    }

    /// The entries of a pod and of addresses, and the rows that these lead to. Of prefixes, the longest one that holds an address,
    /// as a prefix of that address alone.
    #[must_use]
    pub fn narrowed(&self, cgroup: Option<u64>, addresses: &[Addr]) -> Self {
        let mut part = Self { config: self.config, ..Self::default() };
        let endpoint = cgroup.and_then(|cgroup| Some((cgroup, *self.endpoints.get(&cgroup)?)));
        part.endpoints.extend(endpoint);
        let prefixes = Prefixes::new(&self.cidrs);
        for addr in addresses {
            part.addresses.extend(self.addresses.get(addr).map(|identity| (*addr, *identity)));
            let longest = prefixes.lookup(&self.cidrs, addr);
            part.cidrs.extend(longest.map(|(_, identity)| (Cidr { bits: 128, addr: *addr }, *identity)));
        }
        let (policies, identities) = part.in_use();
        let used = |policy: &u64, identity: &u64| policies.contains(policy) && identities.contains(identity);
        let rows = self.rows.iter().filter(|(key, _)| used(&key.policy, &key.identity));
        part.rows = rows.map(|(key, row)| (*key, *row)).collect();
        part
    }

    /// Where the kernel's maps do not hold what this state wants of them, both narrowed to the same pod and addresses. Revisions do
    /// not count.
    #[must_use]
    pub fn differences(&self, kernel: &Self) -> Vec<Difference> {
        let config =
            |state: &Self| BTreeMap::from([((), Step::PutConfig(Config { revision: 0, ..state.config }))]);
        let endpoints = |state: &Self| keyed(&state.endpoints, |key, value| Step::PutEndpoint(*key, *value));
        let addresses = |state: &Self| -> BTreeMap<Addr, Step> {
            state.addresses.iter().map(|(addr, value)| (addr, Step::PutAddress(addr, *value))).collect()
        };
        let cidrs = |state: &Self| keyed(&state.cidrs, |key, value| Step::PutCidr(*key, *value));
        let rows = |state: &Self| keyed(&state.rows, |key, value| Step::PutRow(*key, Box::new(*value)));
        let mut found = Vec::new();
        compare(&config(kernel), &config(self), &mut found);
        compare(&endpoints(kernel), &endpoints(self), &mut found);
        compare(&addresses(kernel), &addresses(self), &mut found);
        compare(&cidrs(kernel), &cidrs(self), &mut found);
        compare(&rows(kernel), &rows(self), &mut found);
        found
    }
}

fn keyed<K: Ord + Copy, V>(map: &BTreeMap<K, V>, step: impl Fn(&K, &V) -> Step) -> BTreeMap<K, Step> {
    map.iter().map(|(key, value)| (*key, step(key, value))).collect()
}

fn compare<K: Ord>(kernel: &BTreeMap<K, Step>, compiled: &BTreeMap<K, Step>, found: &mut Vec<Difference>) {
    let keys: BTreeSet<&K> = kernel.keys().chain(compiled.keys()).collect();
    for (kernel, compiled) in keys.into_iter().map(|key| (kernel.get(key), compiled.get(key))) {
        if kernel != compiled {
            let text = |step: Option<&Step>| step.map(Step::entry);
            found.push(Difference { kernel: text(kernel), compiled: text(compiled) });
        }
    }
}

impl Step {
    /// The entry that the step writes, without the word for writing it.
    #[must_use]
    pub fn entry(&self) -> String {
        let text = self.to_string();
        text.strip_prefix("put ").map_or(text.clone(), str::to_owned)
    }
}
