//! What services led to a moment ago. kube-proxy follows the API some hundred milliseconds behind this agent, and translates as before
//! until then: to backends that have left, by addresses and ports that are no service's any more.
//!
//! Invariant: where a service led counts for [`HOLD`] after the API says otherwise, beside where it leads now, as services and slices
//! under names that none can have. While a slice is there at which kube-proxy stops, and for [`STOPPED`] after it, nothing is let go of. What
//! is added counts at once; a pod that is gone is not waited for, as nothing is at its address. Tested
//! by `former/tests.rs` and `tests/former.rs`.

mod held;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use egress_policy::Index;
use egress_policy::index::Event;
use egress_policy::object::{
    Endpoint, EndpointSlice, Endpoints, Kind, Object, ObjectRef, Pod, Service, ServicePort,
};

use held::{HOLD, Held, MOST_OF_ONE, Of, STOPPED, fill, slice};

/// What services led to.
#[derive(Debug, Default)]
pub(super) struct Former {
    held: Held,
    /// Addresses that pods had until a moment ago, and since when they have not.
    gone: BTreeMap<IpAddr, Instant>,
    /// The same in the order of time; one whose address somebody has again is there too.
    since: VecDeque<(Instant, IpAddr)>,
    /// Slices at which kube-proxy stops, and with it all services of the node stay as they were.
    stops: BTreeSet<ObjectRef>,
}

impl Former {
    /// Whether an object is one of these.
    pub(super) fn holds(&self, object: &ObjectRef) -> bool {
        self.held.has(object)
    }

    /// Follows which slices kube-proxy stops at; for every event, also of those of a first look.
    pub(super) fn follow(&mut self, event: &Event, now: Instant) {
        let (name, stops) = match event {
            Event::Upsert(Object::EndpointSlice(slice)) => {
                // Those that it takes no backends from it does not look at.
                (slice.object_ref(), slice.stops_proxy && slice.proxied && slice.service.is_some())
            }
            Event::Delete(name) if name.kind == Kind::EndpointSlice => (name.clone(), false),
            _ => return,
        };
        if stops && self.stops.insert(name.clone()) {
            tracing::error!("{}", stopped_by(&name));
        } else if !stops && self.stops.remove(&name) && self.stops.is_empty() {
            tracing::info!("no EndpointSlice has a port any more that is none");
            self.held.hold_all(now + STOPPED);
        }
    }

    /// Why nothing is let go of: a sentence for each slice.
    pub(super) fn stopped(&self) -> impl Iterator<Item = String> {
        self.stops.iter().map(stopped_by)
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
                self.slice_changes(index, old.as_ref().and_then(slice), new.and_then(slice), now)
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
        self.stops.is_empty() && self.held.is_due(now)
    }

    /// What is to be taken in because its time is over.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Event> {
        if self.stops.is_empty() { self.held.over(now) } else { Vec::new() }
    }

    /// At a pod's former address there is nothing, until somebody else has it.
    fn pod_changes(&mut self, old: Option<&Pod>, new: Option<&Pod>, now: Instant) -> Vec<Event> {
        let owned = |pod: &Pod| if pod.owns_addresses() { pod.addresses.to_vec() } else { Vec::new() };
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

    /// Holds the backends to which the slice's service sent new connections by it, and sends none any more by any.
    fn slice_changes(
        &mut self,
        index: &Index,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
        now: Instant,
    ) -> Vec<Event> {
        let Some(old) = old.filter(|old| old.proxied) else { return Vec::new() };
        let service = old.service.as_ref().and_then(|name| index.service(&old.namespace, name));
        let Some(service) = service else { return Vec::new() };
        let same = new.filter(|new| new.proxied && new.service == old.service);
        // It may have led anywhere.
        if old.unread && same.is_none_or(|new| !new.unread) {
            return self.close(&old.name, held::of(old), now);
        }
        let mut left = &leads([old]) - &leads(same);
        if !left.is_empty() {
            let slices = index.slices_of(service);
            let others = slices.filter(|slice| slice.proxied && !slice.former && slice.name != old.name);
            left = &left - &leads(others);
        }
        left.retain(|(ip, ..)| !self.gone.contains_key(ip));
        lists(&left).into_iter().flat_map(|list| self.keep_slice(old, list, now)).collect()
    }

    /// Of a service that is changed again and again, one slice more is held for each list of ports.
    fn keep_slice(&mut self, old: &EndpointSlice, (ports, left): List, now: Instant) -> Vec<Event> {
        if let Some(number) = self.held.beside(old, &ports) {
            return self.held.lead(number, left, now).into_iter().collect();
        }
        let of = held::of(old);
        if self.held.has_room_for_slice(&of) {
            let endpoints = self.held.fit(left);
            return self.hold_slice(&old.name, of, (ports, endpoints), now);
        }
        self.close(&old.name, of, now)
    }

    /// A slice under another name; without backends where there is no room for them.
    fn hold_slice(
        &mut self,
        was: &str,
        (namespace, service): Of,
        (ports, backends): (Box<[ServicePort]>, Option<Endpoints>),
        now: Instant,
    ) -> Vec<Event> {
        let slice = |name| {
            let mut slice = EndpointSlice {
                namespace,
                name,
                service,
                ports,
                endpoints: Endpoints::default(),
                proxied: true,
                unread: false,
                stops_proxy: false,
                former: true,
            };
            fill(&mut slice, backends);
            Object::EndpointSlice(slice)
        };
        self.held.add(slice, was, now).1
    }

    /// Closes a service: where it led cannot be told, or there is no room for it.
    fn close(&mut self, was: &str, of: Of, now: Instant) -> Vec<Event> {
        match self.held.close_slice(&of, now) {
            Some(event) => vec![event],
            None => self.hold_slice(was, of, (Box::default(), None), now),
        }
    }

    /// A service under another name, with what was behind it; closed where that cannot be told, or there is no room for it.
    fn keep_service(&mut self, index: &Index, old: &Service, now: Instant) -> Vec<Event> {
        let behind: Vec<&EndpointSlice> = index.slices_of(old).filter(|slice| slice.proxied).collect();
        let anywhere = old.unread || behind.iter().any(|slice| slice.unread);
        let mut there = leads(behind.iter().copied());
        there.retain(|(ip, ..)| !self.gone.contains_key(ip));
        if there.is_empty() && !anywhere {
            return Vec::new();
        }
        let namespace = &old.namespace;
        let has_room = self.held.has_room_for_service(&(namespace.clone(), Some(old.name.clone())));
        if let Some(event) = if has_room { None } else { self.held.close_service(old, now) } {
            return vec![event];
        }
        let lists = lists(&there);
        let unread = anywhere || !has_room || lists.len() > MOST_OF_ONE;
        let service =
            |name| Object::Service(Service { name, external: old.vips.clone(), unread, ..old.clone() });
        let (service, mut out) = self.held.add(service, &old.name, now);
        for (ports, left) in if unread { Vec::new() } else { lists } {
            let (of, backends) = ((namespace.clone(), Some(service.clone())), self.held.fit(left));
            out.extend(self.hold_slice(&old.name, of, (ports, backends), now));
        }
        out
    }
}

fn stopped_by(name: &ObjectRef) -> String {
    format!(
        "{name} has a port that is none (1 to 65535), at which kube-proxy stops: it leads to where services led before, \
         and what that was goes on to count; remove the port"
    )
}

fn pod(object: &Object) -> Option<&Pod> {
    if let Object::Pod(pod) = object { Some(pod) } else { None }
}

/// A backend to which new connections are sent, by a service port's name and protocol, and its own port for that.
type Lead<'s> = (IpAddr, &'s str, u8, u16);

/// Backends that have these ports.
type List = (Box<[ServicePort]>, Vec<IpAddr>);

/// Where slices lead, as kube-proxy may choose: whatever is ready, and whatever terminates and serves. Which of those it is depends on the
/// others that have the same port in any slice of the service, on what a node has itself, and on which slice of several it believes.
fn leads<'s>(slices: impl IntoIterator<Item = &'s EndpointSlice>) -> BTreeSet<Lead<'s>> {
    let of = |slice: &'s EndpointSlice| {
        let takers = slice.endpoints.iter().filter(Endpoint::may_take);
        takers.flat_map(|one| {
            slice.ports.iter().map(move |port| (one.address, &*port.name, port.protocol, port.port))
        })
    };
    slices.into_iter().flat_map(of).collect()
}

/// The same as slices: a list of ports has each name and protocol once.
fn lists(leads: &BTreeSet<Lead<'_>>) -> Vec<List> {
    let leads: Vec<&Lead<'_>> = leads.iter().collect();
    let mut lists: BTreeMap<Vec<(&str, u8, u16)>, Vec<IpAddr>> = BTreeMap::new();
    for of_one in leads.chunk_by(|one, two| one.0 == two.0) {
        let mut own: Vec<Vec<(&str, u8, u16)>> = Vec::new();
        for (_, name, protocol, port) in of_one {
            // They are in order: where a list has this one, it is its last.
            let lacks = |list: &&mut Vec<(&str, u8, u16)>| {
                list.last().is_none_or(|last| (last.0, last.1) != (*name, *protocol))
            };
            match own.iter_mut().find(lacks) {
                Some(list) => list.push((name, *protocol, *port)),
                None => own.push(vec![(name, *protocol, *port)]),
            }
        }
        for list in own {
            lists.entry(list).or_default().extend(of_one.first().map(|lead| lead.0));
        }
    }
    let port = |(name, protocol, port): (&str, u8, u16)| ServicePort {
        name: Arc::from(name),
        protocol,
        port,
        node_port: 0,
    };
    lists.into_iter().map(|(ports, ips)| (ports.into_iter().map(port).collect(), ips)).collect()
}

/// Whether a service leads wherever it led before.
fn leads_as(old: &Service, new: &Service) -> bool {
    (!old.unread || new.unread)
        && old.vips.iter().all(|ip| new.vips.contains(ip))
        && old.ports.iter().all(|port| new.ports.contains(port))
}

#[cfg(test)]
mod tests;
