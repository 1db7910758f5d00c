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
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

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
    pub(super) fn differing(mut self, a: &State, b: &State) -> Self {
        self.endpoints.retain(|key| a.endpoints.get(key) != b.endpoints.get(key));
        self.addresses.retain(|key| a.addresses.get(key) != b.addresses.get(key));
        self.cidrs.retain(|key| a.cidrs.get(key) != b.cidrs.get(key));
        self.rows.retain(|key| a.rows.get(key) != b.rows.get(key));
        self
    }
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
