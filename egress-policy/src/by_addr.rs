//! Maps by address.
//!
//! Invariant: as a `BTreeMap` of addresses, but for the order: IPv4 addresses come first.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use egress_common::wire::Addr;
use smallvec::SmallVec;

use crate::pack::pack;

/// Something for each of some addresses. IPv4 addresses, which most are, take a quarter of the memory of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByAddr<T> {
    v4: BTreeMap<[u8; 4], T>,
    v6: BTreeMap<Addr, T>,
}

/// Lists by address; an empty list is not there.
pub(crate) type Lists<T> = ByAddr<SmallVec<[T; 2]>>;

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
    #[must_use]
    pub fn get(&self, addr: &Addr) -> Option<&T> {
        v4(addr).map_or_else(|| self.v6.get(addr), |v4| self.v4.get(&v4))
    }

    /// Whether there is anything of an address.
    #[must_use]
    pub fn contains_key(&self, addr: &Addr) -> bool {
        self.get(addr).is_some()
    }

    /// Puts something in the place of what there was of an address, and gives that.
    pub fn insert(&mut self, addr: Addr, one: T) -> Option<T> {
        match v4(&addr) {
            Some(v4) => self.v4.insert(v4, one),
            None => self.v6.insert(addr, one),
        }
    }

    /// Takes out what there is of an address.
    pub fn remove(&mut self, addr: &Addr) -> Option<T> {
        match v4(addr) {
            Some(v4) => self.v4.remove(&v4),
            None => self.v6.remove(addr),
        }
    }

    /// The addresses of which there is something.
    pub fn keys(&self) -> impl Iterator<Item = Addr> {
        self.iter().map(|(addr, _)| addr)
    }

    /// What there is of addresses.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.v4.values().chain(self.v6.values())
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.v4.values_mut().chain(self.v6.values_mut())
    }

    /// Addresses with what there is of them.
    pub fn iter(&self) -> impl Iterator<Item = (Addr, &T)> {
        let v4 = self.v4.iter().map(|(v4, one)| (Addr::v4(*v4), one));
        v4.chain(self.v6.iter().map(|(addr, one)| (*addr, one)))
    }

    /// Of how many addresses there is something.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is nothing of any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The addresses in a range of which there is something.
    pub(crate) fn within(&self, range: RangeInclusive<Addr>) -> impl Iterator<Item = Addr> + use<'_, T> {
        let from = v4(range.start().max(&Addr::v4([0; 4])));
        let to = v4(range.end().min(&Addr::v4([255; 4])));
        let both = from.zip(to).filter(|(from, to)| from <= to);
        let of_v4 = both.into_iter().flat_map(|(from, to)| self.v4.range(from..=to));
        let of_v4 = of_v4.map(|(v4, _)| Addr::v4(*v4));
        of_v4.chain(self.v6.range(range).map(|(addr, _)| *addr))
    }

    /// See [`pack`].
    pub(crate) fn pack(&mut self) {
        pack(&mut self.v4);
        pack(&mut self.v6);
    }
}

impl<T> Extend<(Addr, T)> for ByAddr<T> {
    fn extend<I: IntoIterator<Item = (Addr, T)>>(&mut self, entries: I) {
        for (addr, one) in entries {
            self.insert(addr, one);
        }
    }
}

impl<T> FromIterator<(Addr, T)> for ByAddr<T> {
    fn from_iter<I: IntoIterator<Item = (Addr, T)>>(entries: I) -> Self {
        let mut held = Self::default();
        held.extend(entries);
        held
    }
}

impl<T> Lists<T> {
    /// The list of an address.
    pub(crate) fn list(&self, addr: &Addr) -> &[T] {
        self.get(addr).map_or(&[], SmallVec::as_slice)
    }

    pub(crate) fn add(&mut self, addr: Addr, one: T) {
        let list = match v4(&addr) {
            Some(v4) => self.v4.entry(v4).or_default(),
            None => self.v6.entry(addr).or_default(),
        };
        list.push(one);
    }

    /// Takes what `is` says from the list of an address.
    pub(crate) fn unlist(&mut self, addr: &Addr, is: impl Fn(&T) -> bool) {
        match v4(addr) {
            Some(v4) => crate::index::unlist(&mut self.v4, &v4, is),
            None => crate::index::unlist(&mut self.v6, addr, is),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, Lists};

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
        let mut held = Lists::default();
        all.iter().for_each(|addr| held.add(*addr, ()));
        let sorted = |found: &mut dyn Iterator<Item = Addr>| {
            let mut found: Vec<Addr> = found.collect();
            found.sort_unstable();
            found
        };
        assert_eq!(sorted(&mut held.keys()), all);
        for (from, start) in all.iter().enumerate() {
            for (to, end) in all.iter().enumerate().skip(from) {
                assert_eq!(sorted(&mut held.within(*start..=*end)), all[from..=to]);
            }
        }
        for addr in &all {
            assert!(held.contains_key(addr) && held.list(addr).len() == 1);
            held.unlist(addr, |()| true);
            assert!(!held.contains_key(addr));
        }
        assert_eq!(held.keys().count() + held.len(), 0);
    }
}
