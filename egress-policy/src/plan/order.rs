//! The order in which addresses and prefixes change where they lead.
//!
//! Invariant: after every step each address leads where it led before all of them or where it leads after all of
//! them. New and changed entries are written from the longest to the shortest: so long as the entry that will hold an
//! address is not there, no shorter one is either. What goes is removed from the shortest to the longest: an address
//! stays with the longest old prefix that holds it until no other old one is left for it to fall to.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::wire::{Addr, Cidr, IDENTITY_WORLD};

use super::prefix::Prefixes;
use super::{Keys, State, Step};
use crate::by_addr::ByAddr;

/// Where addresses lead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout<'a> {
    pub(super) addresses: &'a ByAddr<u64>,
    pub(super) cidrs: &'a BTreeMap<Cidr, u64>,
}

impl State {
    pub(super) fn layout(&self) -> Layout<'_> {
        Layout { addresses: &self.addresses, cidrs: &self.cidrs }
    }
}

impl Layout<'_> {
    /// Every identity that an address can have.
    pub(super) fn identities(&self) -> BTreeSet<u64> {
        self.addresses.values().chain(self.cidrs.values()).copied().chain([IDENTITY_WORLD]).collect()
    }
}

/// Where something leads before and after, per address or per prefix.
pub(super) type Pairs<K> = BTreeMap<K, (u64, u64)>;

/// Each of these addresses, and of these prefixes without the longer ones in it, with where it leads before and after.
pub(super) fn pairs(old: Layout<'_>, new: Layout<'_>, keys: &Keys) -> (Pairs<Addr>, Pairs<Cidr>) {
    let (old_prefixes, new_prefixes) = (Prefixes::new(old.cidrs), Prefixes::new(new.cidrs));
    let exact = |layout: Layout<'_>, prefixes: &Prefixes, addr: &Addr| match layout.addresses.get(addr) {
        Some(identity) => *identity,
        None => prefixes.lookup(layout.cidrs, addr).map_or(IDENTITY_WORLD, |(_, identity)| *identity),
    };
    let region = |layout: Layout<'_>, prefixes: &Prefixes, cidr: &Cidr| {
        prefixes.within(layout.cidrs, cidr).map_or(IDENTITY_WORLD, |(_, identity)| *identity)
    };
    let addresses = keys.addresses.iter().map(|addr| {
        let pair = (exact(old, &old_prefixes, addr), exact(new, &new_prefixes, addr));
        (*addr, pair)
    });
    let cidrs = keys.cidrs.iter().map(|cidr| {
        let pair = (region(old, &old_prefixes, cidr), region(new, &new_prefixes, cidr));
        (*cidr, pair)
    });
    (addresses.collect(), cidrs.collect())
}

/// The steps from one layout to another, which differ at these keys only.
pub(super) fn moves(old: Layout<'_>, new: Layout<'_>, keys: &Keys, steps: &mut Vec<Step>) {
    let mut leave = Vec::new();
    for addr in &keys.addresses {
        match (old.addresses.get(addr), new.addresses.get(addr)) {
            (before, Some(identity)) if before != Some(identity) => {
                steps.push(Step::PutAddress(*addr, *identity));
            }
            (Some(_), None) => leave.push(Step::DeleteAddress(*addr)),
            _ => {}
        }
    }
    // Ordered by length first.
    for cidr in keys.cidrs.iter().rev() {
        match new.cidrs.get(cidr) {
            Some(identity) if old.cidrs.get(cidr) != Some(identity) => {
                steps.push(Step::PutCidr(*cidr, *identity));
            }
            _ => {}
        }
    }
    let gone = keys.cidrs.iter().filter(|cidr| old.cidrs.contains_key(cidr) && !new.cidrs.contains_key(cidr));
    steps.extend(gone.map(|cidr| Step::DeleteCidr(*cidr)));
    steps.append(&mut leave);
}
