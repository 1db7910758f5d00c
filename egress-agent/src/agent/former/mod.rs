//! What services led to a moment ago. kube-proxy follows the API some hundred milliseconds behind this agent, and translates as before
//! until then: to backends that have left, by addresses and ports that are no service's any more.
//!
//! Invariant: where a service led counts for [`HOLD`] after the API says otherwise, beside where it leads now, as services and slices
//! under names that none can have. What is added counts at once; a pod that is gone is not waited for, as nothing is at its address. Tested
//! by `former/tests.rs` and `tests/former.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use egress_policy::Index;
use egress_policy::index::Event;
use egress_policy::object::{Endpoint, EndpointSlice, Kind, Object, ObjectRef, Pod, Service};

/// How long kube-proxy may take to follow.
const HOLD: Duration = Duration::from_secs(10);
/// Objects that are held at a time: of more, the last ones.
const MOST: usize = 20_000;
/// Backends that are held at a time. What there is no room for closes.
const MOST_BACKENDS: usize = 50_000;

/// An object that stands for what was.
#[derive(Debug)]
struct Held {
    object: Object,
    until: Instant,
    /// In which order they came.
    number: u64,
}

/// What services led to.
#[derive(Debug)]
pub(super) struct Former {
    held: BTreeMap<ObjectRef, Held>,
    /// How many at most.
    most: usize,
    /// Addresses that pods had until a moment ago.
    gone: BTreeMap<IpAddr, Instant>,
    /// Makes names differ.
    number: u64,
}

impl Default for Former {
    fn default() -> Self {
        Self { held: BTreeMap::new(), most: MOST, gone: BTreeMap::new(), number: 0 }
    }
}

impl Former {
    /// Whether an object is one of these.
    pub(super) fn holds(&self, object: &ObjectRef) -> bool {
        self.held.contains_key(object)
    }

    /// What is to be taken in before an event, so that what it ends goes on to count.
    pub(super) fn before(&mut self, index: &Index, event: &Event, now: Instant) -> Vec<Event> {
        let (name, new) = match event {
            Event::Upsert(object) => (object.object_ref(), Some(object)),
            Event::Delete(name) => (name.clone(), None),
        };
        // Where the API server is, it says itself; what it has left is not to close it to everybody.
        let is_server = (name.namespace.as_deref(), &*name.name) == (Some("default"), "kubernetes");
        match name.kind {
            Kind::Pod => {
                let old = index.get(&name);
                self.pod_changes(old.as_ref().and_then(pod), new.and_then(pod), now)
            }
            Kind::EndpointSlice if !is_server => {
                let old = index.get(&name);
                self.slice_changes(index, &name, old.as_ref().and_then(slice), new.and_then(slice), now)
            }
            Kind::Service if !is_server => match (index.get(&name), new) {
                (Some(Object::Service(old)), Some(Object::Service(new))) if leads_as(&old, new) => Vec::new(),
                (Some(Object::Service(old)), _) => self.keep_service(index, &old, now),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Whether the time of something is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.held.values().any(|held| held.until <= now)
    }

    /// What is to be taken in because its time is over.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Event> {
        let over = self.held.iter().filter(|(_, held)| held.until <= now).map(|(name, _)| name.clone());
        let over: Vec<ObjectRef> = over.collect();
        self.let_go(over)
    }

    /// At a pod's former address there is nothing, until somebody else has it.
    fn pod_changes(&mut self, old: Option<&Pod>, new: Option<&Pod>, now: Instant) -> Vec<Event> {
        let owned = |pod: &Pod| {
            if pod.finished || pod.host_network { Vec::new() } else { pod.addresses.to_vec() }
        };
        let has = new.map(owned).unwrap_or_default();
        self.gone.retain(|ip, since| now.duration_since(*since) <= HOLD && !has.contains(ip));
        let had = old.map(owned).unwrap_or_default();
        let gone: Vec<IpAddr> = had.into_iter().filter(|ip| !has.contains(ip)).collect();
        if gone.is_empty() {
            return Vec::new();
        }
        let mut out = Vec::new();
        for held in self.held.values_mut() {
            if let Object::EndpointSlice(slice) = &mut held.object
                && slice.endpoints.iter().any(|one| gone.contains(&one.address))
            {
                slice.endpoints =
                    slice.endpoints.iter().filter(|one| !gone.contains(&one.address)).copied().collect();
                out.push(Event::Upsert(held.object.clone()));
            }
        }
        self.gone.extend(gone.into_iter().map(|ip| (ip, now)));
        out
    }

    /// Holds the backends to which the slice's service sent new connections, and sends none any more.
    fn slice_changes(
        &mut self,
        index: &Index,
        name: &ObjectRef,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
        now: Instant,
    ) -> Vec<Event> {
        let services = [old, new].into_iter().flatten().filter_map(|slice| slice.service.clone());
        let services: BTreeSet<Arc<str>> = services.collect();
        let mut left = Vec::new();
        for service in services {
            let namespace = name.namespace.as_deref().unwrap_or_default();
            let Some(service) = index.service(namespace, &service) else { continue };
            let before: Vec<&EndpointSlice> =
                index.slices_of(service).filter(|slice| slice.proxied && !slice.former).collect();
            let others = before.iter().copied().filter(|slice| *slice.name != *name.name);
            let same =
                |slice: &&EndpointSlice| slice.proxied && slice.service.as_deref() == Some(&*service.name);
            let after: Vec<&EndpointSlice> = others.chain(new.filter(same)).collect();
            for group in groups(&before) {
                let still = chosen(&after, group, service.local);
                let gone = |ip: &IpAddr| !still.contains(ip) && !self.gone.contains_key(ip);
                let endpoints: Vec<Endpoint> = chosen(&before, group, service.local)
                    .into_iter()
                    .filter(gone)
                    .map(|address| Endpoint { address, ready: true, last_resort: false })
                    .collect();
                if !endpoints.is_empty() {
                    left.push((group.clone(), endpoints));
                }
            }
        }
        left.into_iter().flat_map(|(of, endpoints)| self.keep_slice(&of, endpoints, now)).collect()
    }

    fn is_gone(&self, endpoint: &Endpoint) -> bool {
        self.gone.contains_key(&endpoint.address)
    }

    /// Of a service that is changed again and again, one slice more is held for each list of ports.
    fn keep_slice(&mut self, old: &EndpointSlice, left: Vec<Endpoint>, now: Instant) -> Vec<Event> {
        let room = self.room();
        let beside = self.held.values_mut().find_map(|held| match &mut held.object {
            Object::EndpointSlice(slice)
                if (&slice.namespace, &slice.service, &slice.ports)
                    == (&old.namespace, &old.service, &old.ports) =>
            {
                Some((slice, &mut held.until))
            }
            _ => None,
        });
        let Some((slice, until)) = beside else {
            let slice = EndpointSlice { endpoints: bounded(left, room), former: true, ..old.clone() };
            return self.keep(|name| Object::EndpointSlice(EndpointSlice { name, ..slice }), &old.name, now);
        };
        let room = room + slice.endpoints.len();
        slice.endpoints = bounded(left.into_iter().chain(slice.endpoints.iter().copied()), room);
        *until = now + HOLD;
        vec![Event::Upsert(Object::EndpointSlice(slice.clone()))]
    }

    /// A service under another name, with what was behind it.
    fn keep_service(&mut self, index: &Index, old: &Service, now: Instant) -> Vec<Event> {
        let room = self.room();
        let behind: Vec<EndpointSlice> = index
            .slices_of(old)
            .filter(|slice| slice.proxied)
            .map(|slice| {
                let there = slice.endpoints.iter().filter(|one| one.may_take() && !self.is_gone(one));
                EndpointSlice { endpoints: bounded(there.copied(), room), former: true, ..slice.clone() }
            })
            .filter(|slice| !slice.endpoints.is_empty())
            .collect();
        if behind.is_empty() {
            return Vec::new();
        }
        let mut out = self.keep(
            |name| Object::Service(Service { name, external: old.vips.clone(), ..old.clone() }),
            &old.name,
            now,
        );
        let name = out.first().map(|event| match event {
            Event::Upsert(object) => object.object_ref().name,
            Event::Delete(name) => name.name.clone(),
        });
        for slice in behind {
            let (name, service) = (slice.name.clone(), name.clone());
            let keep = |name| Object::EndpointSlice(EndpointSlice { name, service, ..slice });
            out.extend(self.keep(keep, &name, now));
        }
        out
    }

    /// How many backends more there is room for.
    fn room(&self) -> usize {
        let backends =
            self.held.values().filter_map(|held| slice(&held.object)).map(|slice| slice.endpoints.len());
        MOST_BACKENDS.saturating_sub(backends.sum())
    }

    /// Holds an object under a name that none can have.
    fn keep(&mut self, object: impl FnOnce(Arc<str>) -> Object, of: &str, now: Instant) -> Vec<Event> {
        self.number += 1;
        let object = object(format!("{of}{BEFORE}{})", self.number).into());
        let mut out = vec![Event::Upsert(object.clone())];
        self.held.insert(object.object_ref(), Held { object, until: now + HOLD, number: self.number });
        if self.held.len() > self.most {
            let first = self.held.iter().min_by_key(|(_, held)| held.number).map(|(name, _)| name.clone());
            out.extend(self.let_go(first));
        }
        out
    }

    fn let_go(&mut self, names: impl IntoIterator<Item = ObjectRef>) -> Vec<Event> {
        let names = names.into_iter().filter(|name| self.held.remove(name).is_some());
        names.map(Event::Delete).collect()
    }
}

/// Between an object's name and a number: no name has spaces.
const BEFORE: &str = " (before, ";

fn pod(object: &Object) -> Option<&Pod> {
    if let Object::Pod(pod) = object { Some(pod) } else { None }
}

fn slice(object: &Object) -> Option<&EndpointSlice> {
    if let Object::EndpointSlice(slice) = object { Some(slice) } else { None }
}

/// One slice for each list of ports and each family.
fn groups<'s>(slices: &[&'s EndpointSlice]) -> Vec<&'s EndpointSlice> {
    let mut groups: Vec<&EndpointSlice> = Vec::new();
    for slice in slices {
        if !groups.iter().any(|group| alike(group, slice)) {
            groups.push(slice);
        }
    }
    groups
}

fn alike(one: &EndpointSlice, two: &EndpointSlice) -> bool {
    let v4 = |slice: &EndpointSlice| slice.endpoints.first().map(|one| one.address.is_ipv4());
    one.ports == two.ports && v4(one) == v4(two)
}

/// To whom new connections are sent: those that are ready, or what terminates and serves where none is; on some node none may be
/// where they go to backends of one node only.
fn chosen(slices: &[&EndpointSlice], group: &EndpointSlice, local: bool) -> BTreeSet<IpAddr> {
    let all = || slices.iter().filter(|slice| alike(slice, group)).flat_map(|slice| &slice.endpoints);
    let ready: BTreeSet<IpAddr> = all().filter(|one| one.ready).map(|one| one.address).collect();
    if local || ready.is_empty() {
        all().filter(|one| one.may_take()).map(|one| one.address).collect()
    } else {
        ready
    }
}

/// Each once, if there is room; else addresses that are nobody's stand for all.
fn bounded(endpoints: impl IntoIterator<Item = Endpoint>, room: usize) -> Box<[Endpoint]> {
    let mut each: BTreeSet<IpAddr> = endpoints.into_iter().map(|one| one.address).collect();
    if each.len() > room {
        each = BTreeSet::from([NOBODY_V4, NOBODY_V6]);
    }
    each.into_iter().map(|address| Endpoint { address, ready: true, last_resort: false }).collect()
}

/// Reserved (RFC 1112), and discarded (RFC 6666).
const NOBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1));
const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));

/// Whether a service leads wherever it led before.
fn leads_as(old: &Service, new: &Service) -> bool {
    old.local == new.local
        && old.vips.iter().all(|ip| new.vips.contains(ip))
        && old.ports.iter().all(|port| new.ports.contains(port))
}

#[cfg(test)]
mod tests;
