//! Whose an address is, of those on this node: so that no pod can send in the name of another one, or of the node.
//!
//! Invariant: an address has no other owner here than the one that was given last. Tested by `tests/threats/`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{HashMap as BpfHash, MapData, MapError};
use egress_common::wire::{Addr, Keyed};

use super::maps::values;

/// The map.
pub(super) const OWNERS: &str = "egress_owners";

/// Addresses by what they are the address of.
pub(super) struct Owners {
    map: BpfHash<MapData, Addr, Keyed<Addr, u64>>,
    /// As in the kernel.
    written: BTreeMap<Addr, u64>,
}

impl Owners {
    /// Opens the map, with what an earlier agent wrote.
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let map = ebpf.take_map(OWNERS).with_context(|| format!("the BPF object has no map {OWNERS}"))?;
        let map = BpfHash::try_from(map)?;
        let written = values(&map).with_context(|| format!("cannot read {OWNERS}"))?;
        Ok(Self { map, written })
    }

    /// Writes what is not as it is to be; what goes makes room first.
    pub(super) fn set(&mut self, wanted: &BTreeMap<Addr, u64>) -> anyhow::Result<()> {
        let gone: Vec<Addr> =
            self.written.keys().filter(|addr| !wanted.contains_key(addr)).copied().collect();
        for addr in gone {
            match self.map.remove(&addr) {
                Ok(()) | Err(MapError::KeyNotFound) => self.written.remove(&addr),
                Err(error) => return Err(error).context("cannot write that an address is nobody's"),
            };
        }
        for (addr, owner) in wanted {
            if self.written.get(addr) != Some(owner) {
                self.map
                    .insert(addr, Keyed { key: *addr, value: *owner }, 0)
                    .context("cannot write whose an address is")?;
                self.written.insert(*addr, *owner);
            }
        }
        Ok(())
    }
}
