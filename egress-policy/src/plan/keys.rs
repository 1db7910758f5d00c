//! The keys at which two states may differ.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::wire::{Addr, Cidr, RowKey};

use super::State;
use crate::by_addr::ByAddr;

/// Keys of a state that may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Pods, by cgroup id.
    pub endpoints: BTreeSet<u64>,
    /// Single addresses.
    pub addresses: BTreeSet<Addr>,
    /// Prefixes.
    pub cidrs: BTreeSet<Cidr>,
    /// Rows.
    pub rows: BTreeSet<RowKey>,
}

impl Keys {
    /// Those at which two states differ.
    pub(super) fn between(a: &State, b: &State) -> Self {
        Self {
            endpoints: differing(&a.endpoints, &b.endpoints),
            addresses: addresses(&a.addresses, &b.addresses),
            cidrs: differing(&a.cidrs, &b.cidrs),
            rows: differing(&a.rows, &b.rows),
        }
    }

    /// These keys without those at which the states are equal.
    pub(super) fn changes(mut self, desired: &State, observed: &State) -> Changes {
        self.endpoints.retain(|key| observed.endpoints.get(key) != desired.endpoints.get(key));
        self.rows.retain(|key| observed.rows.get(key) != desired.rows.get(key));
        let both = [observed, desired];
        Changes {
            endpoints: self.endpoints,
            addresses: moves(self.addresses, |key| both.map(|state| state.addresses.get(key).copied())),
            cidrs: moves(self.cidrs, |key| both.map(|state| state.cidrs.get(key).copied())),
            rows: self.rows,
        }
    }
}

/// Keys at which two states differ. Each address is looked up once for all that is made of it: there may be as many as the cluster has.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) endpoints: BTreeSet<u64>,
    pub(super) addresses: Vec<Move<Addr>>,
    pub(super) cidrs: Vec<Move<Cidr>>,
    pub(super) rows: BTreeSet<RowKey>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        let Self { endpoints, addresses, cidrs, rows } = self;
        endpoints.is_empty() && addresses.is_empty() && cidrs.is_empty() && rows.is_empty()
    }
}

/// The identity that a key has before and after; `None` where there is no such entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move<K> {
    pub(super) key: K,
    pub(super) old: Option<u64>,
    pub(super) new: Option<u64>,
}

/// In the order of the keys.
fn moves<K>(keys: BTreeSet<K>, leads: impl Fn(&K) -> [Option<u64>; 2]) -> Vec<Move<K>> {
    let both = keys.into_iter().map(|key| {
        let [old, new] = leads(&key);
        Move { key, old, new }
    });
    both.filter(|one| one.old != one.new).collect()
}

impl std::ops::BitOrAssign for Keys {
    fn bitor_assign(&mut self, other: Self) {
        self.endpoints.extend(other.endpoints);
        self.addresses.extend(other.addresses);
        self.cidrs.extend(other.cidrs);
        self.rows.extend(other.rows);
    }
}

fn addresses(a: &ByAddr<u64>, b: &ByAddr<u64>) -> BTreeSet<Addr> {
    let here = a.iter().filter(|(addr, identity)| b.get(addr) != Some(identity)).map(|(addr, _)| addr);
    here.chain(b.keys().filter(|addr| !a.contains_key(addr))).collect()
}

fn differing<K: Copy + Ord, V: PartialEq>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> BTreeSet<K> {
    let here = a.iter().filter(|(key, value)| b.get(key) != Some(value)).map(|(key, _)| *key);
    here.chain(b.keys().filter(|key| !a.contains_key(key)).copied()).collect()
}
