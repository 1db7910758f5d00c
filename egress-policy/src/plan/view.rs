//! A [`State`] judged as the maps would be.

use egress_common::View;
use egress_common::wire::{Addr, Config, Endpoint, Row, RowKey, Witness, WitnessKey};

use super::State;
use super::prefix::Prefixes;

impl View for State {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn endpoint(&self, cgroup: u64) -> Option<(&u64, &Endpoint)> {
        self.endpoints.get_key_value(&cgroup)
    }

    fn address(&self, addr: &Addr) -> Option<u64> {
        self.addresses.get(addr).copied()
    }

    /// Looks through all prefix lengths in use; for tests and tools, not for packets.
    fn prefix(&self, addr: &Addr) -> Option<u64> {
        Prefixes::new(&self.cidrs).lookup(&self.cidrs, addr).map(|(_, identity)| *identity)
    }

    fn row(&self, key: &RowKey) -> Option<(&RowKey, &Row)> {
        self.rows.get_key_value(key)
    }

    /// A state is what policies say; what comes in is not in it, so nothing is a reply.
    fn device(&self, _: u32) -> Option<u64> {
        None
    }

    fn owner(&self, _: &Addr) -> u64 {
        0
    }

    fn witness(&self, _: &WitnessKey) -> Option<&Witness> {
        None
    }

    fn now(&self) -> u64 {
        0
    }
}
