//! Who may be connected at the same time.
//!
//! Invariant: no address can take the places of another one, and strangers together cannot take those of the node itself, where the
//! health checks come from. Tested below.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most connections of one address.
const EACH: usize = 8;
/// Most connections of all addresses but the node's own.
const STRANGERS: usize = 56;

/// The places.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<BTreeMap<IpAddr, Taken>>>);

#[derive(Clone, Copy, Debug)]
struct Taken {
    number: usize,
    own: bool,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of an address to `local`, if there is one.
    pub(super) fn take(&self, address: IpAddr, local: IpAddr) -> Option<Place> {
        let (address, own) = (address.to_canonical(), address.to_canonical() == local.to_canonical());
        let mut taken = self.taken();
        let strangers: usize = taken.values().filter(|one| !one.own).map(|one| one.number).sum();
        let number = taken.get(&address).map_or(0, |one| one.number);
        if number >= EACH || (!own && strangers >= STRANGERS) {
            return None;
        }
        taken.insert(address, Taken { number: number + 1, own });
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(one) = taken.get_mut(&self.address) {
            one.number -= 1;
            if one.number == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EACH, Places, STRANGERS};
    use std::net::{IpAddr, Ipv4Addr};

    fn address(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap()).into()
    }

    #[test]
    fn nobody_takes_the_places_of_others() {
        let (places, local) = (Places::default(), address(0));
        let mut held: Vec<_> = (0..EACH).map(|_| places.take(address(1), local).unwrap()).collect();
        assert!(places.take(address(1), local).is_none());
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert!(places.take(mapped, local).is_none(), "it is the same address");
        held.push(places.take(address(2), local).unwrap());
        held.remove(0);
        held.push(places.take(address(1), local).unwrap());
        let more = (3..).flat_map(|number| [address(number); EACH]).take(STRANGERS - EACH - 1);
        held.extend(more.map(|address| places.take(address, local).unwrap()));
        assert!(places.take(address(100), local).is_none(), "all places of strangers are taken");
        let own: Vec<_> = (0..EACH).map(|_| places.take(local, local).unwrap()).collect();
        assert!(places.take(local, local).is_none());
        drop((held, own));
        assert!(places.taken().is_empty(), "all were given back");
    }
}
