//! The order in which addresses and prefixes change where they lead.
//!
//! Invariant: after every step each address leads where it led before all of them or where it leads after all of
//! them. New and changed entries are written from the longest to the shortest: so long as the entry that will hold an
//! address is not there, no shorter one is either. What goes is removed from the shortest to the longest: an address
//! stays with the longest old prefix that holds it until no other old one is left for it to fall to.

use std::collections::BTreeSet;

use egress_common::wire::{Addr, Cidr, IDENTITY_WORLD};

use super::keys::Move;
use super::prefix::Prefixes;
use super::{State, Step};

impl State {
    /// Every identity that an address can have.
    pub(super) fn identities(&self) -> BTreeSet<u64> {
        self.addresses.values().chain(self.cidrs.values()).copied().chain([IDENTITY_WORLD]).collect()
    }
}

/// Where each of these addresses leads before and after.
pub(super) fn of_addresses(old: &State, new: &State, moves: &[Move<Addr>]) -> Vec<(u64, u64)> {
    let (old_prefixes, new_prefixes) = (Prefixes::new(&old.cidrs), Prefixes::new(&new.cidrs));
    let exact = |own: Option<u64>, state: &State, prefixes: &Prefixes, addr: &Addr| {
        let of_prefix = || prefixes.lookup(&state.cidrs, addr).map(|(_, identity)| *identity);
        own.or_else(of_prefix).unwrap_or(IDENTITY_WORLD)
    };
    let pair = |one: &Move<Addr>| {
        (exact(one.old, old, &old_prefixes, &one.key), exact(one.new, new, &new_prefixes, &one.key))
    };
    moves.iter().map(pair).collect()
}

/// Where what is in each of these prefixes, but not in longer ones, leads before and after.
pub(super) fn of_cidrs(old: &State, new: &State, moves: &[Move<Cidr>]) -> Vec<(u64, u64)> {
    let (old_prefixes, new_prefixes) = (Prefixes::new(&old.cidrs), Prefixes::new(&new.cidrs));
    let region = |state: &State, prefixes: &Prefixes, cidr: &Cidr| {
        prefixes.within(&state.cidrs, cidr).map_or(IDENTITY_WORLD, |(_, identity)| *identity)
    };
    let pair =
        |one: &Move<Cidr>| (region(old, &old_prefixes, &one.key), region(new, &new_prefixes, &one.key));
    moves.iter().map(pair).collect()
}

/// The steps that move these, which are in the order of their keys.
pub(super) fn moves(addresses: &[Move<Addr>], cidrs: &[Move<Cidr>], steps: &mut Vec<Step>) {
    let mut leave = Vec::new();
    for Move { key, old, new } in addresses {
        match new {
            Some(identity) if old != new => steps.push(Step::PutAddress(*key, *identity)),
            None if old.is_some() => leave.push(Step::DeleteAddress(*key)),
            _ => {}
        }
    }
    // Ordered by length first.
    for Move { key, old, new } in cidrs.iter().rev() {
        if let Some(identity) = new
            && old != new
        {
            steps.push(Step::PutCidr(*key, *identity));
        }
    }
    let gone = cidrs.iter().filter(|one| one.old.is_some() && one.new.is_none());
    steps.extend(gone.map(|one| Step::DeleteCidr(one.key)));
    steps.append(&mut leave);
}
