//! What services led to a moment ago. kube-proxy follows the API some hundred milliseconds behind this agent, and translates as before
//! until then: to backends that have left, by addresses and ports that are no service's any more.
//!
//! Invariant: where a service led counts for [`HOLD`] after the API says otherwise, beside where it leads now, as services and slices
//! under names that none can have. What is added counts at once; a pod that is gone is not waited for, as nothing is at its address. Tested
//! by `former/tests.rs` and `tests/former.rs`.

mod held;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use egress_policy::Index;
use egress_policy::index::Event;
use egress_policy::object::{Endpoint, EndpointSlice, Kind, Object, ObjectRef, Pod, Service};

use held::{HOLD, Held, slice};

/// What services led to.
#[derive(Debug, Default)]
pub(super) struct Former {
    held: Held,
    /// Addresses that pods had until a moment ago, and since when they have not.
    gone: BTreeMap<IpAddr, Instant>,
    /// The same in the order of time; one whose address somebody has again is there too.
    since: VecDeque<(Instant, IpAddr)>,
}

impl Former {
    /// Whether an object is one of these.
    pub(super) fn holds(&self, object: &ObjectRef) -> bool {
        self.held.has(object)
    }

    /// What is to be taken in before an event, so that what it ends goes on to count.
    pub(super) fn before(&mut self, index: &Index, event: &Event, now: Instant) -> Vec<Event> {
        let (name, new) = match event {
            Event::Upsert(object) => (object.object_ref(), Some(object)),
            Event::Delete(name) => (name.clone(), None),
        };
        // Where the API server is, it says itself; what it has left is not to close it to everybody.
        let is_server = (name.namespace.as_deref(), &*name.name) == (Some("default"), "kubernetes");
        self.forget_gone(now);
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
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        self.held.is_due(now)
    }

    /// What is to be taken in because its time is over.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Event> {
        self.held.over(now)
    }

    /// At a pod's former address there is nothing, until somebody else has it.
    fn pod_changes(&mut self, old: Option<&Pod>, new: Option<&Pod>, now: Instant) -> Vec<Event> {
        let owned = |pod: &Pod| {
            if pod.finished || pod.host_network { Vec::new() } else { pod.addresses.to_vec() }
        };
        let has = new.map(owned).unwrap_or_default();
        for ip in &has {
            self.gone.remove(ip);
        }
        let had = old.map(owned).unwrap_or_default();
        let mut out = Vec::new();
        for ip in had.into_iter().filter(|ip| !has.contains(ip)) {
            self.gone.insert(ip, now);
            self.since.push_back((now, ip));
            out.extend(self.held.leave(ip));
        }
        out
    }

    /// Forgets which addresses are nobody's where that was long ago.
    fn forget_gone(&mut self, now: Instant) {
        while let Some((since, ip)) = self.since.front().copied().filter(|(since, _)| now > *since + HOLD) {
            self.since.pop_front();
            if self.gone.get(&ip) == Some(&since) {
                self.gone.remove(&ip);
            }
        }
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
        let beside = self.held.beside(old);
        if let Some(number) = beside {
            return self.held.lead(number, left, now).into_iter().collect();
        }
        let slice = EndpointSlice { endpoints: self.held.fit(left), former: true, ..old.clone() };
        self.held.add(|name| Object::EndpointSlice(EndpointSlice { name, ..slice }), &old.name, now).1
    }

    /// A service under another name, with what was behind it.
    fn keep_service(&mut self, index: &Index, old: &Service, now: Instant) -> Vec<Event> {
        let there = |slice: &EndpointSlice| -> Vec<Endpoint> {
            slice.endpoints.iter().filter(|one| one.may_take() && !self.is_gone(one)).copied().collect()
        };
        let behind = index.slices_of(old).filter(|slice| slice.proxied).map(|slice| (slice, there(slice)));
        let behind: Vec<(&EndpointSlice, Vec<Endpoint>)> =
            behind.filter(|(_, there)| !there.is_empty()).collect();
        if behind.is_empty() {
            return Vec::new();
        }
        let service = |name| Object::Service(Service { name, external: old.vips.clone(), ..old.clone() });
        let (service, mut out) = self.held.add(service, &old.name, now);
        for (slice, there) in behind {
            let (endpoints, service) = (self.held.fit(there), Some(service.clone()));
            let slice = EndpointSlice { endpoints, service, former: true, ..slice.clone() };
            let keep = |name| Object::EndpointSlice(EndpointSlice { name, ..slice });
            out.extend(self.held.add(keep, &slice.name, now).1);
        }
        out
    }
}

fn pod(object: &Object) -> Option<&Pod> {
    if let Object::Pod(pod) = object { Some(pod) } else { None }
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

/// Whether a service leads wherever it led before.
fn leads_as(old: &Service, new: &Service) -> bool {
    old.local == new.local
        && old.vips.iter().all(|ip| new.vips.contains(ip))
        && old.ports.iter().all(|port| new.ports.contains(port))
}

#[cfg(test)]
mod tests;
