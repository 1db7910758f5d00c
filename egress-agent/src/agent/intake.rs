//! From what a source says to the index.
//!
//! Invariant: a Pod object that goes before its cgroup is kept until the cgroup is gone, and what a service led to until kube-proxy has
//! followed. Tested by `tests/lifecycle.rs` and `tests/unread.rs`.

use std::collections::BTreeMap;
use std::time::Instant;

use egress_policy::index::Event;
use egress_policy::object::{Kind, Object, ObjectRef, Pod};

use super::Agent;
use crate::clock::monotonic;
use crate::status::WatchStatus;

/// Between the name of a pod that is kept and its UID: no name has spaces.
const BEFORE: &str = " (before, UID ";

impl Agent {
    pub(crate) fn look_at_source(&mut self) {
        let mut changes = self.source.look();
        for event in std::mem::take(&mut changes.events) {
            self.take(event);
        }
        for (kind, listed) in std::mem::take(&mut changes.listed) {
            let known = self.index.objects().filter(|object| object.kind == kind);
            let gone = known.filter(|object| !listed.contains(object) && !self.former.holds(object));
            let gone: Vec<_> = gone.collect();
            for object in gone {
                self.take(Event::Delete(object));
            }
        }
        if self.held && !changes.incomplete {
            self.held = false;
            self.dirty = true;
        }
        for error in changes.errors.iter().filter(|error| !self.source_state.errors.contains(error)) {
            tracing::error!("{error}");
        }
        self.tell_watches(&changes.watches);
        self.dirty |=
            changes.errors != self.source_state.errors || changes.ignored != self.source_state.ignored;
        self.source_state = changes;
    }

    /// Tells the log what has come to stand in the way of watches, once where it is the same for all.
    fn tell_watches(&self, watches: &[WatchStatus]) {
        let new =
            |watch: &&WatchStatus| !self.source_state.watches.iter().any(|old| old.error == watch.error);
        let new = watches.iter().filter(new);
        let told: BTreeMap<&str, bool> =
            new.filter_map(|watch| Some((watch.error.as_deref()?, watch.trouble().is_some()))).collect();
        for (text, fails) in told {
            if fails { tracing::error!("{text}") } else { tracing::info!("{text}") }
        }
    }

    /// Takes an event in, and keeps the pods whose processes may still run.
    pub(super) fn take(&mut self, event: Event) {
        match self.own.complete(&self.node, event) {
            Event::Delete(object) => match self.kept_for(&object) {
                Some(name) => {
                    if !self.lingering.iter().any(|(_, of)| *of == object) {
                        self.lingering.push((name, object));
                    }
                }
                None => self.index(Event::Delete(object)),
            },
            Event::Upsert(object) => {
                if let Object::Pod(pod) = &object {
                    self.succeed(&object.object_ref(), pod);
                }
                self.index(Event::Upsert(object));
            }
        }
    }

    /// The pod of an object whose processes may still run, with the UID or hash in its cgroup's name. Without its object they
    /// would be unknown, which may be more than their policies allow.
    fn stands(&self, object: &ObjectRef) -> Option<(String, Pod)> {
        let Some(Object::Pod(pod)) = self.index.get(object) else { return None };
        let here = self.scan.pods.iter().find(|local| self.claims(&pod, &local.uid))?;
        Some((here.uid.clone(), pod))
    }

    /// The cgroup's name for which an object is kept that goes.
    fn kept_for(&self, object: &ObjectRef) -> Option<String> {
        self.stands(object).map(|(name, _)| name).or_else(|| self.followed(object))
    }

    /// The hash in the name of the cgroup of the static pod that is judged as the one of this object.
    fn followed(&self, object: &ObjectRef) -> Option<String> {
        let mut new = self.scan.pods.iter().filter(|local| self.is_told(local, object));
        let here = new.find(|local| self.predecessor(local).is_some())?;
        Some(here.uid.clone())
    }

    /// Makes room for a pod: another one that stands under its name is kept under one that no pod can have, and one that
    /// was kept is not needed any more where this one takes its place.
    fn succeed(&mut self, object: &ObjectRef, new: &Pod) {
        // It came back.
        self.lingering.retain(|(_, of)| of != object);
        let replaced = |(name, of): &(String, ObjectRef)| {
            let Some(Object::Pod(kept)) = self.index.get(of) else { return true };
            self.succeeds(&kept, new, name)
        };
        let (replaced, kept): (Vec<_>, Vec<_>) = self.lingering.iter().cloned().partition(replaced);
        self.lingering = kept;
        for (_, of) in replaced {
            self.index(Event::Delete(of));
        }
        let before = self.stands(object).filter(|(name, old)| !self.succeeds(old, new, name));
        if let Some((name, mut pod)) = before {
            pod.name = format!("{}{BEFORE}{})", pod.name, pod.uid).into();
            self.lingering.push((name, pod.object_ref()));
            self.index(Event::Upsert(Object::Pod(pod)));
        }
    }

    /// Whether a cgroup is another pod's now than before: by its own UID, or as the next mirror of the same static pod. Anybody may write a
    /// hash into an annotation, and what a UID names is not taken over by it.
    fn succeeds(&self, old: &Pod, new: &Pod, cgroup: &str) -> bool {
        let was = old.name.split_once(BEFORE).map_or(&*old.name, |(name, _)| name);
        let same = (&*old.namespace, was) == (&*new.namespace, &*new.name);
        new.uid == *cgroup || (same && old.uid != *cgroup && self.claims(new, cgroup))
    }

    /// Lets go of the pods whose cgroup has gone since their object went.
    pub(super) fn let_go(&mut self) {
        let stands = |uid: &str| self.scan.pods.iter().any(|local| local.uid == uid);
        let (stay, gone): (Vec<_>, Vec<_>) = self.lingering.drain(..).partition(|(uid, _)| stands(uid));
        self.lingering = stay;
        for (_, object) in gone {
            match self.followed(&object) {
                Some(hash) => self.lingering.push((hash, object)),
                None => self.index(Event::Delete(object)),
            }
        }
    }

    fn index(&mut self, event: Event) {
        let now = Instant::now();
        self.former.follow(&event, now);
        let before = if self.held { Vec::new() } else { self.former.before(&self.index, &event, now) };
        for event in before.into_iter().chain([event]) {
            self.apply_event(event);
        }
    }

    /// Lets go of what services led to where its time was over at `then`.
    pub(super) fn forget_former(&mut self, then: Instant) {
        for event in self.former.over(then) {
            self.apply_event(event);
        }
    }

    fn apply_event(&mut self, event: Event) {
        let object = match &event {
            Event::Upsert(object) => object.object_ref(),
            Event::Delete(object) => object.clone(),
        };
        // As `Census` has them.
        let counts = [Kind::Pod, Kind::Namespace, Kind::EndpointSlice, Kind::EgressGatewayPolicy];
        self.uncounted |= counts.contains(&object.kind);
        let had = if object.kind == Kind::Pod { self.index.own_addresses(&object) } else { Vec::new() };
        let changed = self.index.apply(event);
        let now = monotonic();
        had.into_iter().filter(|addr| !self.index.owned(addr)).for_each(|addr| self.gone.leave(addr, now));
        self.dirty |= !changed.is_empty();
        // The first look is at everything, whatever has changed before it.
        if !self.waits_for_source() {
            self.changed |= changed;
        }
    }

    /// Whether a pod says that a cgroup of this name (a UID, or the hash of a static pod of this node) is its own.
    fn claims(&self, pod: &Pod, name: &str) -> bool {
        let is_here = pod.node().map(|node| &**node) == Some(&self.node);
        !name.is_empty()
            && (pod.uid == *name || (is_here && pod.static_hash().is_some_and(|hash| **hash == *name)))
    }
}
