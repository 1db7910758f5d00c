//! Lists by address.
//!
//! Invariant: as a map from each address to a list; an empty list is not there.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use egress_common::wire::Addr;
use smallvec::SmallVec;

use crate::pack::pack;

type List<T> = SmallVec<[T; 2]>;

/// Lists by address. IPv4 addresses, which most are, take a quarter of the memory of others.
#[derive(Clone, Debug)]
pub(super) struct ByAddr<T> {
    v4: BTreeMap<[u8; 4], List<T>>,
    v6: BTreeMap<Addr, List<T>>,
}

impl<T> Default for ByAddr<T> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}

fn v4(addr: &Addr) -> Option<[u8; 4]> {
    let [.., a, b, c, d] = addr.0;
    addr.is_v4().then_some([a, b, c, d])
}

impl<T> ByAddr<T> {
    /// What there is of an address.
    pub(super) fn get(&self, addr: &Addr) -> &[T] {
        let list = v4(addr).map_or_else(|| self.v6.get(addr), |v4| self.v4.get(&v4));
        list.map_or(&[], SmallVec::as_slice)
    }

    /// Whether there is anything of an address.
    pub(super) fn contains(&self, addr: &Addr) -> bool {
        !self.get(addr).is_empty()
    }

    pub(super) fn add(&mut self, addr: Addr, one: T) {
        let list = match v4(&addr) {
            Some(v4) => self.v4.entry(v4).or_default(),
            None => self.v6.entry(addr).or_default(),
        };
        list.push(one);
    }

    /// Takes what `is` says from the list of an address.
    pub(super) fn remove(&mut self, addr: &Addr, is: impl Fn(&T) -> bool) {
        match v4(addr) {
            Some(v4) => super::unlist(&mut self.v4, &v4, is),
            None => super::unlist(&mut self.v6, addr, is),
        }
    }

    /// The addresses of which there is something.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Addr> {
        self.v4.keys().map(|v4| Addr::v4(*v4)).chain(self.v6.keys().copied())
    }

    /// Those in a range.
    pub(super) fn within(&self, range: RangeInclusive<Addr>) -> impl Iterator<Item = Addr> + use<'_, T> {
        let from = v4(range.start().max(&Addr::v4([0; 4])));
        let to = v4(range.end().min(&Addr::v4([255; 4])));
        let both = from.zip(to).filter(|(from, to)| from <= to);
        let of_v4 = both.into_iter().flat_map(|(from, to)| self.v4.range(from..=to));
        let of_v4 = of_v4.map(|(v4, _)| Addr::v4(*v4));
        of_v4.chain(self.v6.range(range).map(|(addr, _)| *addr))
    }

    /// See [`pack`].
    pub(super) fn pack(&mut self) {
        pack(&mut self.v4);
        pack(&mut self.v6);
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, ByAddr};

    #[test]
    fn a_range_holds_what_is_between_its_ends() {
        let byte = |first: u8, last: u8| {
            let mut addr = [0; 16];
            (addr[0], addr[15]) = (first, last);
            Addr(addr)
        };
        let last_v4 = Addr::v4([255; 4]);
        let next = Addr((u128::from_be_bytes(last_v4.0) + 1).to_be_bytes());
        let mut all = vec![byte(0, 0), byte(0, 1), byte(32, 1), byte(255, 255), next, last_v4];
        all.extend([[0; 4], [10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 1, 0]].map(Addr::v4));
        all.sort_unstable();
        let mut held = ByAddr::default();
        all.iter().for_each(|addr| held.add(*addr, ()));
        let sorted = |found: &mut dyn Iterator<Item = Addr>| {
            let mut found: Vec<Addr> = found.collect();
            found.sort_unstable();
            found
        };
        assert_eq!(sorted(&mut held.addresses()), all);
        for (from, start) in all.iter().enumerate() {
            for (to, end) in all.iter().enumerate().skip(from) {
                assert_eq!(sorted(&mut held.within(*start..=*end)), all[from..=to]);
            }
        }
        for addr in &all {
            assert!(held.contains(addr) && held.get(addr).len() == 1);
            held.remove(addr, |()| true);
            assert!(!held.contains(addr));
        }
        assert_eq!(held.addresses().count() + held.v4.len() + held.v6.len(), 0);
    }
}
