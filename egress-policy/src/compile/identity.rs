//! Identities: which addresses the policies on this node can tell apart.
//!
//! Invariant: the number of an identity depends on its meaning alone: for a *base* identity the grants that lead to
//! the address, with the ports they have there; for a *composite* the base identities behind it. An identity that nothing
//! has any more is gone after [`Identities::collect`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use egress_common::decide::NO_RULE;
use egress_common::wire::{IDENTITY_WORLD, PROTOCOL_ANY, Ports, ROW_ENTRIES, Row, VERDICT_ALLOW};

use super::grants::{GrantId, Grants};
use crate::digest::{Digest, Encoder, Numbers};
use crate::object::PortRange;

/// Stands before all that the number of an identity is made of. Agents of two versions take the maps over from one another, and rows
/// are functions of their keys: what addresses are told apart for has another name here when it comes to mean something else.
const MEANING: &str = "identity by the smallest prefix";

/// The grants that lead somewhere, each with the ports that were found there, in order.
pub(super) type Matches = Vec<(GrantId, Vec<PortRange>)>;

/// Backends per protocol and service port: base identity and target port.
pub(super) type Backends = BTreeMap<(u8, u16), BTreeSet<(u64, u16)>>;

/// What an identity stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// These grants lead there, and those of the prefixes around what is the smallest prefix here.
    Base(Matches),
    /// Allowed where each of several identities is.
    Composite(Composite),
}

/// An address in front of others (a VIP), or with more than one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Composite {
    /// Base identities of the owners, every one of which must be allowed on the same port; without any, nothing but
    /// `ports` is allowed.
    pub(super) owners: BTreeSet<u64>,
    /// Per protocol and service port: base identities of the backends with their ports, every one of which must be
    /// allowed. Empty, or with the one that is [`Identities::nowhere`]: denied.
    pub(super) ports: Backends,
}

impl Composite {
    /// The base identities that it is made of.
    pub(super) fn parts(&self) -> BTreeSet<u64> {
        let backends = self.ports.values().flatten().map(|(identity, _)| *identity);
        self.owners.iter().copied().chain(backends).collect()
    }
}

#[derive(Debug)]
struct Entry {
    meaning: Meaning,
    digest: Digest,
    /// How many addresses and prefixes lead to it.
    uses: usize,
}

/// The identities by number.
#[derive(Debug)]
pub(super) struct Identities {
    numbers: Numbers,
    entries: BTreeMap<u64, Entry>,
    /// Base identities by the grants that lead to them.
    by_grant: BTreeMap<GrantId, BTreeSet<u64>>,
    /// Composites by the base identities that they are made of.
    by_part: BTreeMap<u64, BTreeSet<u64>>,
    /// Those that may have lost or found their use since the last [`Identities::collect`], with whether they had one then.
    touched: BTreeMap<u64, bool>,
}

impl Default for Identities {
    fn default() -> Self {
        let meaning = Meaning::Base(Matches::new());
        let world = Entry { meaning, digest: Digest::default(), uses: 1 };
        Self {
            numbers: Numbers::default(),
            entries: BTreeMap::from([(IDENTITY_WORLD, world)]),
            by_grant: BTreeMap::new(),
            by_part: BTreeMap::new(),
            touched: BTreeMap::from([(IDENTITY_WORLD, false)]),
        }
    }
}

/// What became of identities: those that addresses lead to now and did not before, and the other way round.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) found: BTreeSet<u64>,
    pub(super) lost: BTreeSet<u64>,
}

impl Identities {
    pub(super) fn meaning(&self, identity: u64) -> Option<&Meaning> {
        Some(&self.entries.get(&identity)?.meaning)
    }

    /// Those that an address or a prefix leads to, and the world.
    pub(super) fn used(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().filter(|(_, entry)| entry.uses > 0).map(|(identity, _)| *identity)
    }

    /// Those that one of these grants leads to, and what is made of them; and the world. Used or not.
    pub(super) fn led_to(&self, ids: impl IntoIterator<Item = GrantId>, grants: &Grants) -> BTreeSet<u64> {
        let told = ids.into_iter().flat_map(|id| grants.within(id));
        let bases = told.filter_map(|grant| self.by_grant.get(&grant)).flatten().copied();
        let bases: BTreeSet<u64> = bases.chain([IDENTITY_WORLD]).collect();
        let made = bases.iter().filter_map(|base| self.by_part.get(base)).flatten().copied();
        made.chain(bases.iter().copied()).collect()
    }

    /// How many base identities a grant leads to; as soon as it has looked at `most`, no less than these.
    pub(super) fn reach(&self, grant: GrantId, grants: &Grants, most: usize) -> usize {
        let (mut reach, mut looked) = (0, 0);
        for told in grants.within(grant) {
            let count = self.by_grant.get(&told).map_or(0, BTreeSet::len);
            reach += count;
            looked += count.max(1);
            if looked >= most {
                return looked;
            }
        }
        reach
    }

    /// Whether an address or a prefix leads to it.
    pub(super) fn is_used(&self, identity: u64) -> bool {
        self.entries.get(&identity).is_some_and(|entry| entry.uses > 0)
    }

    /// The ports of an address of a pod or node at which packets to it do not end: services, and ports of nodes, lead on from there. As a
    /// row, where there are any; where it has no room for them, with the ports between those that are nearest to one another.
    pub(super) fn sent_on(&self, identity: u64) -> Option<Row> {
        let Meaning::Composite(composite) = self.meaning(identity)? else { return None };
        let entry =
            |protocol, low, high| Ports { protocol, verdict: VERDICT_ALLOW, rule: NO_RULE, low, high };
        // Where nobody can tell what leads on from there, all may.
        if *composite == Composite::default() {
            return Row::new(&[entry(PROTOCOL_ANY, 0, u16::MAX)]);
        }
        if composite.owners.is_empty() || composite.ports.is_empty() {
            return None;
        }
        let ports: Vec<(u8, u16)> = composite.ports.keys().copied().collect();
        let gap = |after: &usize| match (ports.get(after - 1), ports.get(*after)) {
            (Some((one, low)), Some((other, high))) if one == other => u32::from(high - low),
            _ => u32::MAX,
        };
        let mut starts: Vec<usize> = (1..ports.len()).filter(|start| gap(start) > 1).collect();
        starts.sort_by_key(|start| Reverse(gap(start)));
        starts.truncate(ROW_ENTRIES - 1);
        starts.sort_unstable();
        let ends = starts.iter().copied().chain([ports.len()]);
        let ranges = [0].into_iter().chain(starts.iter().copied()).zip(ends);
        let entries = ranges.filter_map(|(start, end)| {
            let ((protocol, low), (_, high)) = (ports.get(start)?, ports.get(end - 1)?);
            Some(entry(*protocol, *low, *high))
        });
        Row::new(&entries.collect::<Vec<_>>())
    }

    /// The identity of what these grants lead to.
    pub(super) fn base(&mut self, matches: Matches, grants: &Grants) -> u64 {
        let matches = grants.told(matches);
        if matches.is_empty() {
            return IDENTITY_WORLD;
        }
        let mut sorted: Vec<_> =
            matches.iter().filter_map(|(grant, ports)| Some((grants.digest(*grant)?, ports))).collect();
        sorted.sort();
        let mut out = Encoder::new(MEANING);
        out.list(sorted.len());
        for (grant, ports) in sorted {
            out.bytes(grant);
            out.list(ports.len());
            for port in ports {
                out.number(u64::from(port.protocol));
                out.number(u64::from(port.low));
                out.number(u64::from(port.high));
            }
        }
        self.intern(out, || Meaning::Base(matches))
    }

    /// The identity to which nothing leads, not even a rule for every destination.
    pub(super) fn nowhere(&mut self) -> u64 {
        self.composite(Composite::default())
    }

    pub(super) fn composite(&mut self, composite: Composite) -> u64 {
        let mut out = Encoder::new("composite");
        self.encode(&mut out, composite.owners.iter().map(|identity| (*identity, 0)));
        out.list(composite.ports.len());
        for ((protocol, port), backends) in &composite.ports {
            out.number(u64::from(*protocol));
            out.number(u64::from(*port));
            self.encode(&mut out, backends.iter().copied());
        }
        self.intern(out, || Meaning::Composite(composite))
    }

    /// Base identities by their digests, so that the number does not depend on numbers.
    fn encode(&self, out: &mut Encoder, identities: impl Iterator<Item = (u64, u16)>) {
        let digest = |identity| self.entries.get(&identity).map_or(Digest::default(), |entry| entry.digest);
        let sorted: BTreeSet<(Digest, u16)> =
            identities.map(|(identity, port)| (digest(identity), port)).collect();
        out.list(sorted.len());
        for (digest, port) in sorted {
            out.bytes(&digest);
            out.number(u64::from(port));
        }
    }

    fn intern(&mut self, out: Encoder, meaning: impl FnOnce() -> Meaning) -> u64 {
        let digest = out.digest();
        let number = self.numbers.of(&digest);
        if !self.entries.contains_key(&number) {
            let meaning = meaning();
            match &meaning {
                Meaning::Base(matches) => {
                    for (grant, _) in matches {
                        self.by_grant.entry(*grant).or_default().insert(number);
                    }
                }
                Meaning::Composite(composite) => {
                    for part in composite.parts() {
                        self.by_part.entry(part).or_default().insert(number);
                    }
                }
            }
            self.entries.insert(number, Entry { meaning, digest, uses: 0 });
            // Gone again unless something comes to lead to it.
            self.touched.insert(number, false);
        }
        number
    }

    /// Something leads to an identity now.
    pub(super) fn take(&mut self, identity: u64) {
        if let Some(entry) = self.entries.get_mut(&identity) {
            self.touched.entry(identity).or_insert(entry.uses > 0);
            entry.uses += 1;
        }
    }

    /// Something does not lead to an identity any more.
    pub(super) fn drop(&mut self, identity: u64) {
        if let Some(entry) = self.entries.get_mut(&identity) {
            self.touched.entry(identity).or_insert(entry.uses > 0);
            entry.uses = entry.uses.saturating_sub(1);
        }
    }

    /// Forgets the identities that nothing has any more.
    pub(super) fn collect(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut touched = std::mem::take(&mut self.touched);
        while let Some((identity, had_use)) = touched.pop_first() {
            let Some(entry) = self.entries.get(&identity) else { continue };
            match (had_use, entry.uses > 0) {
                (false, true) => {
                    changes.found.insert(identity);
                }
                (true, false) => {
                    changes.lost.insert(identity);
                }
                (true, true) | (false, false) => {}
            }
            if entry.uses > 0 || self.by_part.contains_key(&identity) {
                continue;
            }
            let Some(entry) = self.entries.remove(&identity) else { continue };
            self.numbers.forget(identity, &entry.digest);
            match &entry.meaning {
                Meaning::Base(matches) => {
                    matches.iter().for_each(|(grant, _)| unlist(&mut self.by_grant, *grant, identity));
                }
                Meaning::Composite(composite) => {
                    for part in composite.parts() {
                        unlist(&mut self.by_part, part, identity);
                        if let Some(entry) = self.entries.get(&part) {
                            touched.entry(part).or_insert(entry.uses > 0);
                        }
                    }
                }
            }
        }
        changes
    }
}

#[cfg(test)]
impl Identities {
    /// How many there are, the world included, and how many lists.
    pub(super) fn held(&self) -> (usize, usize) {
        (self.entries.len(), self.by_grant.len() + self.by_part.len())
    }
}

/// Takes a number off a list, and the list away with its last number.
fn unlist<K: Copy + Ord>(lists: &mut BTreeMap<K, BTreeSet<u64>>, key: K, number: u64) {
    if let Some(list) = lists.get_mut(&key) {
        list.remove(&number);
        if list.is_empty() {
            lists.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Grants, Identities};
    use crate::compile::grant::{Grant, Peer};
    use crate::object::Ports;

    /// Rows are functions of their keys across versions, too: a number that changes here needs another [`super::MEANING`], and a number that
    /// means something else as well.
    #[test]
    fn numbers_are_those_of_other_agents_with_this_meaning() {
        let (mut grants, mut identities) = (Grants::default(), Identities::default());
        let grant = Grant { peer: Peer::Cluster, ports: Ports::All, spare_gateways: false, inside: false };
        grants.acquire(&Arc::new(grant.clone()));
        let id = grants.id(&grant).unwrap_or_default();
        assert_eq!(super::MEANING, "identity by the smallest prefix");
        assert_eq!(identities.base(vec![(id, Vec::new())], &grants), 14_013_931_394_176_923_175);
    }
}
