//! Maps that were filled one by one, held tightly.
//!
//! Invariant: a packed map equals what it was. A `BTreeMap` whose keys come in order has nodes that are half full; one that is made of all
//! its entries at once has full ones.

use std::collections::BTreeMap;

/// Makes a map anew from its entries.
pub(crate) fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}
