//! Objects in the order of what names them, which the objects alone hold.
//!
//! Invariant: each name is there once; it is as a map from what names an object to the object.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use crate::object::{EndpointSlice, NetworkPolicy, Pod, Service, Uid};

/// What names an object: a UID where that counts, a namespace, a name.
pub(super) type Key<'a> = (Option<&'a Uid>, &'a str, &'a str);

/// What has a name: an object, or what is asked for.
pub(super) trait Keyed {
    fn key(&self) -> Key<'_>;
}

impl Keyed for Key<'_> {
    fn key(&self) -> Key<'_> {
        *self
    }
}

macro_rules! keyed {
    ($($object:ty),*) => {$(
        impl Keyed for $object {
            fn key(&self) -> Key<'_> {
                (None, &self.namespace, &self.name)
            }
        }
    )*};
}
keyed!(Arc<Pod>, Arc<Service>, Arc<EndpointSlice>, NetworkPolicy);

/// A pod that is found by its UID.
#[derive(Clone, Debug)]
pub(super) struct ByUid(pub(super) Arc<Pod>);

impl Keyed for ByUid {
    fn key(&self) -> Key<'_> {
        (Some(&self.0.uid), &self.0.namespace, &self.0.name)
    }
}

impl Ord for dyn Keyed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for dyn Keyed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Keyed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Keyed + '_ {}

/// An object, ordered by what names it.
#[derive(Clone, Debug)]
struct Placed<T>(T);

impl<T: Keyed> Ord for Placed<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key().cmp(&other.0.key())
    }
}

impl<T: Keyed> PartialOrd for Placed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Keyed> PartialEq for Placed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Keyed> Eq for Placed<T> {}

impl<'a, T: Keyed + 'a> Borrow<dyn Keyed + 'a> for Placed<T> {
    fn borrow(&self) -> &(dyn Keyed + 'a) {
        &self.0
    }
}

/// Objects by what names them.
#[derive(Clone, Debug)]
pub(super) struct Sorted<T>(BTreeSet<Placed<T>>);

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<T: PartialEq> PartialEq for Sorted<T> {
    /// Equal objects, not names alone.
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.iter().eq(other.iter())
    }
}

impl<T> Sorted<T> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|placed| &placed.0)
    }
}

impl<T: Keyed> Sorted<T> {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&T> {
        let key: Key<'_> = (None, namespace, name);
        self.0.get(&key as &dyn Keyed).map(|placed| &placed.0)
    }

    /// Puts an object in the place of the one that has its name.
    pub(super) fn put(&mut self, object: T) {
        self.0.replace(Placed(object));
    }

    /// Takes out what has the name of this.
    pub(super) fn take(&mut self, named: &impl Keyed) -> Option<T> {
        self.0.take(named as &dyn Keyed).map(|placed| placed.0)
    }

    /// All objects from this name on.
    pub(super) fn from(&self, key: Key<'_>) -> impl Iterator<Item = &T> + use<'_, T> {
        let from = Bound::Included(&key as &dyn Keyed);
        self.0.range::<dyn Keyed, _>((from, Bound::Unbounded)).map(|placed| &placed.0)
    }

    /// What there is in a namespace.
    pub(super) fn of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a T> {
        self.from((None, namespace, "")).take_while(move |one| one.key().1 == namespace)
    }

    /// See [`pack`](crate::pack::pack).
    pub(super) fn pack(&mut self) {
        self.0 = std::mem::take(&mut self.0).into_iter().collect();
    }
}
