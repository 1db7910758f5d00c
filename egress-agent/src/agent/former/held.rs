//! The objects that stand for what was: found by number, by service, by backend and by time, as thousands may be held while all pods of a
//! cluster change.
//!
//! Invariant: whatever takes one in, changes it or lets go of it keeps all four in step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egress_policy::index::Event;
use egress_policy::object::{Endpoint, EndpointSlice, Endpoints, Object, ObjectRef, Service, ServicePort};

/// How long kube-proxy may take to follow.
pub(super) const HOLD: Duration = Duration::from_secs(10);
/// How long it may take where it had stopped: a sync that failed is tried again after 30 seconds, and it is some time until it succeeds.
pub(super) const STOPPED: Duration = Duration::from_secs(40);
/// Objects that are held at a time by themselves. What else is to be held closes, by one service and one slice for each
/// service; of four times as many, the last ones are held.
const MOST: usize = 20_000;
/// Slices that are held of one service at a time, and services of one name. What else there is of it closes.
pub(super) const MOST_OF_ONE: usize = 64;
/// Addresses, and ports, that one service stands for that closes.
const MOST_CLOSED: usize = 1_000;
/// Backends that are held at a time. What there is no room for closes.
pub(super) const MOST_BACKENDS: usize = 50_000;
/// Between an object's name and a number: no name has spaces.
const BEFORE: &str = " (before, ";

/// The namespace and the service of a slice.
pub(super) type Of = (Arc<str>, Option<Arc<str>>);

/// What is held.
#[derive(Debug)]
pub(super) struct Held {
    /// In the order in which they came.
    objects: BTreeMap<u64, One>,
    slices: BTreeMap<Of, BTreeSet<u64>>,
    /// By namespace and the name that the service had.
    services: BTreeMap<Of, BTreeSet<u64>>,
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
            services: BTreeMap::new(),
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
        let found = [self.objects.len(), self.slices.len(), self.services.len(), self.backends.len()];
        assert!(found == [0; 4] || found[0] > 0, "{self:?}");
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

    /// Whether there is room for one more slice of a service.
    pub(super) fn has_room_for_slice(&self, of: &Of) -> bool {
        self.objects.len() < self.most && self.slices.get(of).is_none_or(|all| all.len() < MOST_OF_ONE)
    }

    /// Whether there is room for one more service of a name.
    pub(super) fn has_room_for_service(&self, of: &Of) -> bool {
        self.objects.len() < self.most && self.services.get(of).is_none_or(|all| all.len() < MOST_OF_ONE)
    }

    /// Makes a slice that is held for a service, if there is one, close the service.
    pub(super) fn close_slice(&mut self, of: &Of, now: Instant) -> Option<Event> {
        let number = *self.slices.get(of)?.first()?;
        let mut object = self.take(number)?.object;
        if let Object::EndpointSlice(slice) = &mut object {
            fill(slice, None);
        }
        let event = Event::Upsert(object.clone());
        self.put_from(now, number, object);
        Some(event)
    }

    /// Makes a service that is held under the name of this one, if there is one, stand for this one as well, and closes it.
    pub(super) fn close_service(&mut self, old: &Service, now: Instant) -> Option<Event> {
        let number = *self.services.get(&(old.namespace.clone(), Some(old.name.clone())))?.last()?;
        let held = self.objects.get(&number).and_then(|one| service(&one.object))?;
        if held.vips.len() + old.vips.len() > MOST_CLOSED || held.ports.len() + old.ports.len() > MOST_CLOSED
        {
            return None;
        }
        let mut object = self.take(number)?.object;
        let Object::Service(service) = &mut object else { return None };
        let vips: BTreeSet<IpAddr> = service.vips.iter().chain(&old.vips).copied().collect();
        service.vips = vips.into_iter().collect();
        service.external = service.vips.clone();
        let new: Vec<_> = old.ports.iter().filter(|port| !service.ports.contains(port)).cloned().collect();
        service.ports = service.ports.iter().cloned().chain(new).collect();
        service.unread = true;
        let event = Event::Upsert(object.clone());
        self.put_from(now, number, object);
        Some(event)
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
        if self.objects.len() > 4 * self.most {
            out.extend(self.objects.keys().next().copied().and_then(|first| self.let_go(first)));
        }
        (name, out)
    }

    /// Makes a slice lead to other backends as well, for the whole time from now on.
    pub(super) fn lead(&mut self, number: u64, to: Vec<IpAddr>, now: Instant) -> Option<Event> {
        let mut object = self.take(number)?.object;
        if let Object::EndpointSlice(slice) = &mut object {
            let room = MOST_BACKENDS.saturating_sub(self.backends.len());
            let to = bounded(to.into_iter().chain(slice.endpoints.iter().map(|one| one.address)), room);
            fill(slice, to.filter(|_| !slice.unread));
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
                slice.endpoints = slice.endpoints.iter().filter(|one| one.address != ip).collect();
            }
            out.push(Event::Upsert(one.object.clone()));
            self.put(number, one);
        }
        out
    }

    /// Each backend once, if there is room.
    pub(super) fn fit(&self, to: impl IntoIterator<Item = IpAddr>) -> Option<Endpoints> {
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
        if let Some(service) = service(&one.object) {
            self.services.entry(named(service)).or_default().insert(number);
        }
        self.objects.insert(number, one);
    }

    fn take(&mut self, number: u64) -> Option<One> {
        let one = self.objects.remove(&number)?;
        if let Some(service) = service(&one.object) {
            unlist(&mut self.services, &named(service), number);
        }
        if let Some(slice) = slice(&one.object) {
            unlist(&mut self.slices, &of(slice), number);
            for endpoint in slice.endpoints.iter() {
                self.backends.remove(&(endpoint.address, number));
            }
        }
        Some(one)
    }
}

fn unlist(lists: &mut BTreeMap<Of, BTreeSet<u64>>, of: &Of, number: u64) {
    if lists.get_mut(of).is_some_and(|numbers| numbers.remove(&number) && numbers.is_empty()) {
        lists.remove(of);
    }
}

/// By the name that it had.
fn named(service: &Service) -> Of {
    let was = service.name.rsplit_once(BEFORE).map_or(&*service.name, |(was, _)| was);
    (service.namespace.clone(), Some(was.into()))
}

fn service(object: &Object) -> Option<&Service> {
    if let Object::Service(service) = object { Some(service) } else { None }
}

pub(super) fn of(slice: &EndpointSlice) -> Of {
    (slice.namespace.clone(), slice.service.clone())
}

pub(super) fn slice(object: &Object) -> Option<&EndpointSlice> {
    if let Object::EndpointSlice(slice) = object { Some(slice) } else { None }
}

/// Gives a slice these backends; where there is no room for them its service may lead anywhere, which closes it.
pub(super) fn fill(slice: &mut EndpointSlice, to: Option<Endpoints>) {
    slice.unread = to.is_none();
    slice.endpoints = to.unwrap_or_default();
}

fn bounded(to: impl IntoIterator<Item = IpAddr>, room: usize) -> Option<Endpoints> {
    let each: BTreeSet<IpAddr> = to.into_iter().collect();
    let ready = |address| Endpoint { address, ready: true, last_resort: false };
    (each.len() <= room).then(|| each.into_iter().map(ready).collect())
}
