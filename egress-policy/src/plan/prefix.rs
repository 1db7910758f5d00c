//! Longest prefix match over an ordered map.

use std::collections::BTreeMap;

use egress_common::wire::{Addr, Cidr};

use crate::object::masked;

/// The prefix lengths of a map, longest first: one lookup for each finds the longest match.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefixes {
    lengths: Vec<u32>,
}

impl Prefixes {
    /// The lengths in a map.
    pub(crate) fn new<T>(cidrs: &BTreeMap<Cidr, T>) -> Self {
        // Ordered by length first, so that each length leads to the next.
        let first = |bits| Cidr { bits, addr: Addr::default() };
        let next = |from: u32| cidrs.range(first(from)..).next().map(|(cidr, _)| cidr.bits);
        let mut lengths: Vec<u32> = std::iter::successors(next(0), |bits| next(bits + 1)).collect();
        lengths.reverse();
        Self { lengths }
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
