//! How often the prefixes of a policy lie over one another.
//!
//! Every part of the address space that prefixes divide is judged by every peer over it. That is bounded here, as a policy of some hundred
//! kilobytes could otherwise take minutes and all memory of every agent. Tested by `tests/overlaps.rs`.

use std::collections::BTreeMap;

use egress_common::wire::{Addr, Cidr};

use super::{CidrPeer, ObjectError, cidr_contains};

/// Peers over all parts of the address space together, at most: 5,000 addresses under 200 rules for every destination are a million.
const MOST: usize = 1_500_000;

/// An error where the prefixes of a policy overlap too often.
pub(super) fn check<'a>(
    path: &str,
    peers: impl IntoIterator<Item = &'a CidrPeer>,
) -> Result<(), ObjectError> {
    let mut begins: BTreeMap<(Addr, u32), usize> = BTreeMap::new();
    for peer in peers {
        *begins.entry((peer.cidr.addr, peer.cidr.bits)).or_default() += 1;
        // A part of its own, over which the peer counts all the same: exceptions may overlap.
        for except in &peer.except {
            begins.entry((except.addr, except.bits)).or_default();
        }
    }
    // By address, then length: whoever contains a prefix comes before it.
    let mut around: Vec<(Cidr, usize)> = Vec::new();
    let mut sum = 0_usize;
    for ((addr, bits), added) in begins {
        let cidr = Cidr { bits, addr };
        while around.last().is_some_and(|(outer, _)| !cidr_contains(outer, &cidr)) {
            around.pop();
        }
        let over = around.last().map_or(0, |(_, over)| *over).saturating_add(added);
        sum = sum.saturating_add(over);
        around.push((cidr, over));
    }
    if sum > MOST {
        let reason =
            format!("too many overlapping prefixes: {sum} over all parts together, of at most {MOST}");
        return Err(ObjectError::new(path, reason));
    }
    Ok(())
}
