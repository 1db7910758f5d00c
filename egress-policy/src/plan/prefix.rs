//! Longest prefix match over an ordered map.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::wire::{Addr, Cidr};

use crate::object::masked;

/// The prefix lengths of a map, longest first: one lookup for each finds the longest match.
#[derive(Clone, Debug)]
pub(crate) struct Prefixes {
    lengths: Vec<u32>,
}

impl Prefixes {
    /// The lengths in a map.
    pub(crate) fn new<T>(cidrs: &BTreeMap<Cidr, T>) -> Self {
        let lengths: BTreeSet<u32> = cidrs.keys().map(|cidr| cidr.bits).collect();
        Self { lengths: lengths.into_iter().rev().collect() }
    }

    /// The longest prefix that holds an address.
    pub(crate) fn lookup<'m, T>(
        &self,
        cidrs: &'m BTreeMap<Cidr, T>,
        addr: &Addr,
    ) -> Option<(&'m Cidr, &'m T)> {
        self.lengths.iter().find_map(|bits| cidrs.get_key_value(&masked(*addr, *bits)))
    }

    /// The longest prefix that holds all of a prefix, itself included.
    pub(crate) fn within<'m, T>(
        &self,
        cidrs: &'m BTreeMap<Cidr, T>,
        cidr: &Cidr,
    ) -> Option<(&'m Cidr, &'m T)> {
        let lengths = self.lengths.iter().filter(|bits| **bits <= cidr.bits);
        lengths.into_iter().find_map(|bits| cidrs.get_key_value(&masked(cidr.addr, *bits)))
    }

    /// The longest prefix that holds all of a prefix and more.
    pub(crate) fn around<'m, T>(
        &self,
        cidrs: &'m BTreeMap<Cidr, T>,
        cidr: &Cidr,
    ) -> Option<(&'m Cidr, &'m T)> {
        let lengths = self.lengths.iter().filter(|bits| **bits < cidr.bits);
        lengths.into_iter().find_map(|bits| cidrs.get_key_value(&masked(cidr.addr, *bits)))
    }
}
