//! The objects that stand for what was: found by number, by service, by backend and by time, as thousands may be held while all pods of a
//! cluster change.
//!
//! Invariant: whatever takes one in, changes it or lets go of it keeps all four in step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use egress_policy::index::Event;
use egress_policy::object::{Endpoint, EndpointSlice, Object, ObjectRef, ServicePort};

/// How long kube-proxy may take to follow.
pub(super) const HOLD: Duration = Duration::from_secs(10);
/// How long it may take where it had stopped: a sync that failed is tried again after 30 seconds, and it is some time until it succeeds.
pub(super) const STOPPED: Duration = Duration::from_secs(40);
/// Objects that are held at a time: of more, the last ones.
const MOST: usize = 20_000;
/// Backends that are held at a time. What there is no room for closes.
pub(super) const MOST_BACKENDS: usize = 50_000;
/// Between an object's name and a number: no name has spaces.
const BEFORE: &str = " (before, ";

/// The namespace and the service of a slice.
type Of = (Arc<str>, Option<Arc<str>>);

/// What is held.
#[derive(Debug)]
pub(super) struct Held {
    /// In the order in which they came.
    objects: BTreeMap<u64, One>,
    slices: BTreeMap<Of, BTreeSet<u64>>,
    backends: BTreeSet<(IpAddr, u64)>,
    /// When the time of each is over; one that was given more time is there twice.
    due: VecDeque<(Instant, u64)>,
    number: u64,
    /// Nothing is over before then.
    not_before: Option<Instant>,
    /// How many at most.
    pub(super) most: usize,
}

#[derive(Debug)]
struct One {
    object: Object,
    until: Instant,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            slices: BTreeMap::new(),
            backends: BTreeSet::new(),
            due: VecDeque::new(),
            number: 0,
            not_before: None,
            most: MOST,
        }
    }
}

impl Held {
    /// Whether an object is one of these.
    pub(super) fn has(&self, object: &ObjectRef) -> bool {
        let number = object.name.strip_suffix(')').and_then(|name| name.rsplit_once(BEFORE)?.1.parse().ok());
        number
            .and_then(|number: u64| self.objects.get(&number))
            .is_some_and(|one| one.object.object_ref() == *object)
    }

    /// Whether there is nothing, however it is looked for.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let found = [self.objects.len(), self.slices.len(), self.backends.len()];
        assert!(found == [0; 3] || found[0] > 0, "{self:?}");
        self.objects.is_empty()
    }

    /// How many objects there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// The number of the slice that is held for the same service and ports.
    pub(super) fn beside(&self, old: &EndpointSlice, ports: &[ServicePort]) -> Option<u64> {
        let same = |number: &&u64| {
            let held = self.objects.get(*number).and_then(|one| slice(&one.object));
            held.is_some_and(|held| *held.ports == *ports)
        };
        self.slices.get(&of(old))?.iter().find(same).copied()
    }

    /// Holds an object under a name that none can have, made of the name it had. Gives that name, and what is to be taken in.
    pub(super) fn add(
        &mut self,
        object: impl FnOnce(Arc<str>) -> Object,
        was: &str,
        now: Instant,
    ) -> (Arc<str>, Vec<Event>) {
        self.number += 1;
        let name: Arc<str> = format!("{was}{BEFORE}{})", self.number).into();
        let object = object(name.clone());
        let mut out = vec![Event::Upsert(object.clone())];
        self.put_from(now, self.number, object);
        if self.objects.len() > self.most {
            out.extend(self.objects.keys().next().copied().and_then(|first| self.let_go(first)));
        }
        (name, out)
    }

    /// Makes a slice lead to other backends as well, for the whole time from now on.
    pub(super) fn lead(&mut self, number: u64, to: Vec<IpAddr>, now: Instant) -> Option<Event> {
        let mut object = self.take(number)?.object;
        if let Object::EndpointSlice(slice) = &mut object {
            let room = MOST_BACKENDS.saturating_sub(self.backends.len());
            slice.endpoints =
                bounded(to.into_iter().chain(slice.endpoints.iter().map(|one| one.address)), room);
        }
        let event = Event::Upsert(object.clone());
        self.put_from(now, number, object);
        Some(event)
    }

    /// Makes nothing lead to an address any more.
    pub(super) fn leave(&mut self, ip: IpAddr) -> Vec<Event> {
        let numbers: Vec<u64> =
            self.backends.range((ip, 0)..=(ip, u64::MAX)).map(|(_, number)| *number).collect();
        let mut out = Vec::new();
        for number in numbers {
            let Some(mut one) = self.take(number) else { continue };
            if let Object::EndpointSlice(slice) = &mut one.object {
                slice.endpoints = slice.endpoints.iter().filter(|one| one.address != ip).copied().collect();
            }
            out.push(Event::Upsert(one.object.clone()));
            self.put(number, one);
        }
        out
    }

    /// Each backend once, if there is room; else addresses that are nobody's stand for all.
    pub(super) fn fit(&self, to: impl IntoIterator<Item = IpAddr>) -> Box<[Endpoint]> {
        bounded(to, MOST_BACKENDS.saturating_sub(self.backends.len()))
    }

    /// Whether the time of something is over.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        while let Some((until, number)) = self.due.front() {
            if self.objects.get(number).is_some_and(|one| one.until == *until) {
                return *until <= now;
            }
            self.due.pop_front();
        }
        false
    }

    /// Holds everything until then, at least, and what comes before then.
    pub(super) fn hold_all(&mut self, until: Instant) {
        self.not_before = Some(until);
        for one in self.objects.values_mut() {
            one.until = one.until.max(until);
        }
        let mut due: Vec<(Instant, u64)> =
            self.objects.iter().map(|(number, one)| (one.until, *number)).collect();
        due.sort_unstable();
        self.due = due.into();
    }

    /// What is to be taken in because its time is over.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Event> {
        let mut out = Vec::new();
        while self.is_due(now) {
            let next = self.due.pop_front();
            out.extend(next.and_then(|(_, number)| self.let_go(number)));
        }
        out
    }

    fn let_go(&mut self, number: u64) -> Option<Event> {
        self.take(number).map(|one| Event::Delete(one.object.object_ref()))
    }

    fn put_from(&mut self, now: Instant, number: u64, object: Object) {
        let until = self.not_before.map_or(now + HOLD, |least| least.max(now + HOLD));
        self.due.push_back((until, number));
        self.put(number, One { object, until });
    }

    fn put(&mut self, number: u64, one: One) {
        if let Some(slice) = slice(&one.object) {
            self.slices.entry(of(slice)).or_default().insert(number);
            self.backends.extend(slice.endpoints.iter().map(|one| (one.address, number)));
        }
        self.objects.insert(number, one);
    }

    fn take(&mut self, number: u64) -> Option<One> {
        let one = self.objects.remove(&number)?;
        if let Some(slice) = slice(&one.object) {
            let of = of(slice);
            let left =
                self.slices.get_mut(&of).is_some_and(|numbers| numbers.remove(&number) && numbers.is_empty());
            if left {
                self.slices.remove(&of);
            }
            for endpoint in &slice.endpoints {
                self.backends.remove(&(endpoint.address, number));
            }
        }
        Some(one)
    }
}

fn of(slice: &EndpointSlice) -> Of {
    (slice.namespace.clone(), slice.service.clone())
}

pub(super) fn slice(object: &Object) -> Option<&EndpointSlice> {
    if let Object::EndpointSlice(slice) = object { Some(slice) } else { None }
}

fn bounded(to: impl IntoIterator<Item = IpAddr>, room: usize) -> Box<[Endpoint]> {
    let mut each: BTreeSet<IpAddr> = to.into_iter().collect();
    if each.len() > room {
        each = BTreeSet::from([NOBODY_V4, NOBODY_V6]);
    }
    each.into_iter().map(|address| Endpoint { address, ready: true, last_resort: false }).collect()
}

/// Reserved (RFC 1112), and discarded (RFC 6666).
const NOBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1));
const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));
