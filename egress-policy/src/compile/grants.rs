//! The grants that addresses are told apart for, and which of them lead to a pod or an address.
//!
//! Invariant: an id is not given to another grant while an identity may still speak of it: see [`Grants::reuse`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use egress_common::wire::{Addr, Cidr};

use super::grant::{Grant, Peer};
use super::identity::Matches;
use super::matcher::Matcher;
use crate::digest::Digest;
use crate::object::{NamespaceLabels, Pod, PodScope, SINGLE, cidr_contains, is_single, last_of};
use crate::plan::Prefixes;

/// Stands for a grant.
pub(super) type GrantId = u32;

#[derive(Debug)]
struct Entry {
    grant: Arc<Grant>,
    digest: Digest,
    /// How many terms of policies it is.
    uses: usize,
    /// It is held without them, too.
    standing: bool,
}

impl Entry {
    /// Whether a policy asks whether it leads somewhere.
    fn is_asked(&self) -> bool {
        self.uses > 0
    }
}

/// Grants by id, and by what they lead to.
#[derive(Debug, Default)]
pub(super) struct Grants {
    ids: BTreeMap<Arc<Grant>, GrantId>,
    entries: Vec<Option<Entry>>,
    free: Vec<GrantId>,
    /// Ids that go back to `free` with the next [`Grants::reuse`].
    released: Vec<GrantId>,
    /// Pods by labels in namespaces by labels; gateways, too.
    pods: Matcher<Matcher<BTreeSet<GrantId>>>,
    /// Pods by labels in a namespace by name.
    in_namespace: BTreeMap<Arc<str>, Matcher<BTreeSet<GrantId>>>,
    /// All other peers but prefixes.
    by_peer: BTreeMap<Peer, BTreeSet<GrantId>>,
    cidrs: BTreeSet<GrantId>,
    /// Those of one prefix each, by its first address and length: whoever contains a prefix comes before it.
    prefixed: BTreeMap<(Addr, u32), GrantId>,
    /// What there is of these, or is asked, is not what it was at the last [`Grants::divide`].
    undivided: bool,
    /// Every boundary of a prefix, with the grants that lead to what is between it and the next ones.
    regions: BTreeMap<Cidr, BTreeSet<GrantId>>,
    prefixes: Prefixes,
}

impl Grants {
    pub(super) fn get(&self, id: GrantId) -> Option<&Arc<Grant>> {
        Some(&self.entry(id)?.grant)
    }

    pub(super) fn digest(&self, id: GrantId) -> Option<&Digest> {
        Some(&self.entry(id)?.digest)
    }

    /// The id of a grant that is held.
    pub(super) fn id(&self, grant: &Grant) -> Option<GrantId> {
        self.ids.get(grant).copied()
    }

    fn entry(&self, id: GrantId) -> Option<&Entry> {
        self.entries.get(usize::try_from(id).ok()?)?.as_ref()
    }

    fn entry_mut(&mut self, id: GrantId) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(id).ok()?)?.as_mut()
    }

    /// Holds a grant; tells whether it was not held before.
    pub(super) fn acquire(&mut self, grant: &Arc<Grant>) -> bool {
        let (id, is_new) = self.put(grant);
        let Some(entry) = self.entry_mut(id) else { return is_new };
        entry.uses += 1;
        self.undivided |= entry.uses == 1 && matches!(grant.peer, Peer::Within(_));
        is_new
    }

    /// Holds a grant for good; tells whether it was not held before.
    pub(super) fn hold(&mut self, grant: &Arc<Grant>) -> bool {
        let (id, is_new) = self.put(grant);
        self.entry_mut(id).into_iter().for_each(|entry| entry.standing = true);
        is_new
    }

    /// The id of a grant, which it is given where it has none; whether it had none.
    fn put(&mut self, grant: &Arc<Grant>) -> (GrantId, bool) {
        if let Some(id) = self.id(grant) {
            return (id, false);
        }
        let entry = Some(Entry { grant: grant.clone(), digest: grant.digest(), uses: 0, standing: false });
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(place) = usize::try_from(id).ok().and_then(|at| self.entries.get_mut(at)) {
                    *place = entry;
                }
                id
            }
            None => {
                self.entries.push(entry);
                GrantId::try_from(self.entries.len() - 1).unwrap_or(GrantId::MAX)
            }
        };
        self.ids.insert(grant.clone(), id);
        self.list(grant, |ids| {
            ids.insert(id);
        });
        if let Peer::Within(_) = grant.peer {
            self.cidrs.insert(id);
            self.undivided = true;
        }
        self.prefixed.extend(grant.prefix().map(|cidr| ((cidr.addr, cidr.bits), id)));
        (id, true)
    }

    /// Lets go of a grant; tells whether nothing holds it any more.
    pub(super) fn release(&mut self, grant: &Arc<Grant>) -> bool {
        let Some(id) = self.id(grant) else { return false };
        let Some(entry) = self.entry_mut(id) else { return false };
        entry.uses = entry.uses.saturating_sub(1);
        if entry.is_asked() {
            return false;
        }
        let standing = entry.standing;
        self.undivided |= matches!(grant.peer, Peer::Within(_));
        if standing {
            return false;
        }
        if let Some(place) = usize::try_from(id).ok().and_then(|at| self.entries.get_mut(at)) {
            *place = None;
        }
        self.ids.remove(grant);
        self.released.push(id);
        self.list(grant, |ids| {
            ids.remove(&id);
        });
        self.prune(grant);
        self.cidrs.remove(&id);
        grant.prefix().map(|cidr| self.prefixed.remove(&(cidr.addr, cidr.bits)));
        true
    }

    /// Says that no identity speaks of a released grant any more.
    pub(super) fn reuse(&mut self) {
        self.free.append(&mut self.released);
    }

    fn list(&mut self, grant: &Grant, change: impl Fn(&mut BTreeSet<GrantId>)) {
        match &grant.peer {
            Peer::Pods(PodScope::Namespace(name), pods) => {
                self.in_namespace.entry(name.clone()).or_default().change(pods, change);
            }
            Peer::Pods(PodScope::Matching(namespaces), pods) => {
                self.pods.change(namespaces, |inner| inner.change(pods, &change));
            }
            Peer::Gateway(peer) => {
                self.pods.change(&peer.namespaces, |inner| inner.change(&peer.pods, &change));
            }
            Peer::Within(_) => {}
            peer => change(self.by_peer.entry(peer.clone()).or_default()),
        }
    }

    fn prune(&mut self, grant: &Grant) {
        let (namespaces, pods) = match &grant.peer {
            Peer::Pods(PodScope::Namespace(name), pods) => {
                if let Some(inner) = self.in_namespace.get_mut(name) {
                    inner.prune(pods, BTreeSet::is_empty);
                    if inner.is_empty() {
                        self.in_namespace.remove(name);
                    }
                }
                return;
            }
            Peer::Pods(PodScope::Matching(namespaces), pods) => (namespaces, pods),
            Peer::Gateway(peer) => (&peer.namespaces, &peer.pods),
            Peer::Within(_) => return,
            peer => {
                if self.by_peer.get(peer).is_some_and(BTreeSet::is_empty) {
                    self.by_peer.remove(peer);
                }
                return;
            }
        };
        self.pods.change(namespaces, |inner| inner.prune(pods, BTreeSet::is_empty));
        self.pods.prune(namespaces, Matcher::is_empty);
    }

    /// The grants that lead to a pod by its labels.
    pub(super) fn of_pod<'a>(
        &'a self,
        pod: &'a Pod,
        namespace: NamespaceLabels<'a>,
    ) -> impl Iterator<Item = GrantId> + 'a {
        let by_labels = move |inner: &'a Matcher<BTreeSet<GrantId>>| {
            inner.matching(pod.labels.iter(), |selector| selector.matches_labels(&pod.labels)).flatten()
        };
        let matching =
            self.pods.matching(namespace.iter(), move |selector| namespace.match_selector(selector));
        let named = self.in_namespace.get(&pod.namespace);
        matching.chain(named).flat_map(by_labels).copied()
    }

    /// The grants of a peer that is not told by labels or prefixes.
    pub(super) fn of_peer(&self, peer: &Peer) -> impl Iterator<Item = GrantId> {
        self.by_peer.get(peer).into_iter().flatten().copied()
    }

    /// The grants that lead to an address by prefixes.
    pub(super) fn of_address(&self, addr: &Addr) -> impl Iterator<Item = GrantId> {
        self.prefixes.lookup(&self.regions, addr).into_iter().flat_map(|(_, ids)| ids.iter().copied())
    }

    fn prefix(&self, id: GrantId) -> Option<Cidr> {
        self.get(id)?.prefix()
    }

    /// These without the prefixes around the smallest one: who is in that is in them.
    pub(super) fn told(&self, mut matches: Matches) -> Matches {
        let bits = |id: GrantId| self.prefix(id).map(|cidr| cidr.bits);
        let smallest = matches.iter().filter_map(|(id, _)| bits(*id)).max();
        matches.retain(|(id, _)| bits(*id).is_none_or(|bits| Some(bits) == smallest));
        matches
    }

    /// These with the prefixes around the smallest one, in order; `None` if that is not held.
    pub(super) fn whole(&self, told: &Matches) -> Option<Matches> {
        let mut whole = told.clone();
        for (id, _) in told {
            let Some(cidr) = self.get(*id)?.prefix() else { continue };
            let around =
                self.regions.get(&cidr)?.iter().filter(|one| *one != id && self.prefix(**one).is_some());
            whole.extend(around.map(|one| (*one, Vec::new())));
        }
        whole.sort_unstable();
        Some(whole)
    }

    /// A grant, and those of the prefixes within its prefix, which lead where it does.
    pub(super) fn within(&self, id: GrantId) -> impl Iterator<Item = GrantId> {
        let cidr = self.prefix(id);
        let inner = cidr.into_iter().flat_map(|outer| self.prefixes_within(outer)).map(|(_, id)| id);
        inner.chain([id])
    }

    /// The prefixes within a prefix, itself not.
    fn prefixes_within(&self, outer: Cidr) -> impl Iterator<Item = (Cidr, GrantId)> {
        let after = self.prefixed.range((outer.addr, outer.bits + 1)..);
        let after = after.map(|((addr, bits), id)| (Cidr { bits: *bits, addr: *addr }, *id));
        after.take_while(move |(inner, _)| cidr_contains(&outer, inner))
    }

    /// The ranges of addresses that a prefix has for itself: they are in none of the prefixes within it.
    pub(super) fn own(&self, outer: Cidr) -> Vec<RangeInclusive<Addr>> {
        let number = |addr: Addr| u128::from_be_bytes(addr.0);
        let range = |from: u128, to: u128| Addr(from.to_be_bytes())..=Addr(to.to_be_bytes());
        let end = number(last_of(&outer));
        let (mut own, mut next) = (Vec::new(), Some(number(outer.addr)));
        for (inner, _) in self.prefixes_within(outer) {
            let first = number(inner.addr);
            // What is within one that was passed already.
            let Some(from) = next.filter(|next| *next <= first) else { continue };
            own.extend((from < first).then(|| range(from, first - 1)));
            next = number(last_of(&inner)).checked_add(1);
        }
        own.extend(next.filter(|next| *next <= end).map(|from| range(from, end)));
        own
    }

    /// The region that an address is in, of those that tell grants with prefixes apart.
    pub(super) fn region(&self, addr: &Addr) -> Option<Cidr> {
        self.prefixes.lookup(&self.regions, addr).map(|(region, _)| *region)
    }

    /// The grants that lead to an address by the prefixes that it is within, but not by one of its own.
    pub(super) fn around(&self, addr: &Addr) -> impl Iterator<Item = GrantId> {
        let single = Cidr { bits: SINGLE, addr: *addr };
        self.prefixes.around(&self.regions, &single).into_iter().flat_map(|(_, ids)| ids.iter().copied())
    }

    /// The regions of more than one address, with the grants that policies ask for which lead there.
    pub(super) fn asked(&self) -> impl Iterator<Item = (Cidr, impl Iterator<Item = GrantId>)> {
        let asked = |id: &GrantId| self.entry(*id).is_some_and(Entry::is_asked);
        let more = self.regions.iter().filter(|(cidr, _)| !is_single(cidr));
        more.map(move |(cidr, ids)| (*cidr, ids.iter().copied().filter(asked)))
    }

    /// Adds the single addresses that a grant with a prefix tells apart, and those that other grants tell apart within it.
    pub(super) fn singles(&self, grant: &Grant, found: &mut BTreeSet<Addr>) {
        let Peer::Within(cidrs) = &grant.peer else { return };
        let first = |addr| Cidr { bits: SINGLE, addr };
        for outer in cidrs {
            found.extend(is_single(outer).then_some(outer.addr));
            let within = self.regions.range(first(outer.addr)..);
            let within = within.take_while(|(cidr, _)| cidr_contains(outer, cidr));
            found.extend(within.map(|(cidr, _)| cidr.addr));
        }
    }

    /// Finds the regions anew, where grants with prefixes came, or went, or are asked that were not; tells whether they did.
    pub(super) fn divide(&mut self) -> bool {
        if !std::mem::take(&mut self.undivided) {
            return false;
        }
        self.regions.clear();
        let mut begins: BTreeMap<(Addr, u32), BTreeSet<GrantId>> = BTreeMap::new();
        for id in &self.cidrs {
            let Some(Peer::Within(cidrs)) = self.get(*id).map(|grant| &grant.peer) else { continue };
            for cidr in cidrs {
                begins.entry((cidr.addr, cidr.bits)).or_default().insert(*id);
            }
        }
        // By address, then length: whoever contains a prefix comes before it.
        let mut around: Vec<(Cidr, BTreeSet<GrantId>)> = Vec::new();
        for ((addr, bits), mut here) in begins {
            let cidr = Cidr { bits, addr };
            while around.last().is_some_and(|(outer, _)| !cidr_contains(outer, &cidr)) {
                around.pop();
            }
            here.extend(around.last().into_iter().flat_map(|(_, grants)| grants));
            self.regions.insert(cidr, here.clone());
            around.push((cidr, here));
        }
        self.prefixes = Prefixes::new(&self.regions);
        true
    }
}

#[cfg(test)]
impl Grants {
    /// How many grants there is room for, and all that is listed.
    pub(super) fn held(&self) -> (usize, String) {
        let by_labels = (&self.pods, &self.in_namespace);
        (
            self.entries.len(),
            format!("{:?}", (&self.ids, by_labels, &self.by_peer, &self.cidrs, &self.regions)),
        )
    }
}
