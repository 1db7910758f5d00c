//! What a change of the objects may have changed.

use std::collections::BTreeSet;
use std::ops::BitOrAssign;
use std::sync::Arc;

use egress_common::wire::Addr;

use crate::object::{ObjectRef, Uid};

/// What has to be looked at again after events. Never less than what they changed; empty where they changed nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Addresses that may lead elsewhere.
    pub(crate) addresses: BTreeSet<Addr>,
    /// Pods, by UID or the hash of a static pod, that policies may say something else about.
    pub(crate) uids: BTreeSet<Uid>,
    /// Namespaces for all pods of which that is so.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    /// It is so for every pod.
    pub(crate) every_pod: bool,
    /// Objects that may be wrong in another way.
    pub(crate) objects: BTreeSet<ObjectRef>,
}

impl Dirty {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl BitOrAssign for Dirty {
    /// What either of two changes may have changed.
    fn bitor_assign(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.uids.extend(other.uids);
        self.namespaces.extend(other.namespaces);
        self.every_pod |= other.every_pod;
        self.objects.extend(other.objects);
    }
}
