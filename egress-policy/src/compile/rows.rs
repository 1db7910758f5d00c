//! The rows of one policy, for whatever identity is asked.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::wire::{Addr, Row};

use super::address::{Addresses, Pass};
use super::grant::Content;
use super::grants::Grants;
use super::identity::{Identities, Matches, Meaning};
use super::place::Place;
use super::policies::{Policies, Policy};
use super::row::{self, Cells};
use crate::by_addr::ByAddr;
use crate::index::Index;

/// Base identities as policies ask for them, each made once for all policies.
pub(super) struct Wholes<'a> {
    identities: &'a Identities,
    grants: &'a Grants,
    /// The grants that lead to each; `None` where it is no base identity, or not all of them are held.
    known: BTreeMap<u64, Option<Matches>>,
}

impl<'a> Wholes<'a> {
    pub(super) fn new(identities: &'a Identities, grants: &'a Grants) -> Self {
        Self { identities, grants, known: BTreeMap::new() }
    }

    fn of(&mut self, identity: u64) -> Option<&Matches> {
        let made = || match self.identities.meaning(identity) {
            Some(Meaning::Base(told)) => self.grants.whole(told),
            _ => None,
        };
        self.known.entry(identity).or_insert_with(made).as_ref()
    }
}

/// Makes the rows of one policy.
pub(super) struct Rows<'a, 'w> {
    policy: &'a Policy,
    wholes: &'w mut Wholes<'a>,
    identities: &'a Identities,
    grants: &'a Grants,
    /// The verdicts for base identities that composites ask for; `None` where nothing is allowed.
    parts: BTreeMap<u64, Option<Cells>>,
    /// Rows made, and stretches of ports told apart in them.
    pub(super) work: u64,
}

impl<'a, 'w> Rows<'a, 'w> {
    pub(super) fn new(policy: &'a Policy, wholes: &'w mut Wholes<'a>) -> Self {
        let (identities, grants) = (wholes.identities, wholes.grants);
        Self { policy, wholes, identities, grants, parts: BTreeMap::new(), work: 0 }
    }

    /// The identities in use for which there may be a row.
    pub(super) fn candidates(&self) -> BTreeSet<u64> {
        match self.policy.prepared.needed(|grant| self.identities.reach(grant, self.grants, usize::MAX)) {
            None => self.identities.used().collect(),
            Some(grants) => {
                let led_to = self.identities.led_to(grants, self.grants);
                led_to.into_iter().filter(|identity| self.identities.is_used(*identity)).collect()
            }
        }
    }

    /// Those of these identities for which there may be a row, and perhaps more of them.
    pub(super) fn candidates_in(&self, found: &BTreeSet<u64>) -> BTreeSet<u64> {
        let prepared = &self.policy.prepared;
        // Where there are few, it costs less to ask each of them.
        if found.len() <= prepared.grants() {
            return found.clone();
        }
        let reach = |grant| self.identities.reach(grant, self.grants, found.len());
        match prepared.needed(reach) {
            Some(grants) if grants.iter().map(|grant| reach(*grant)).sum::<usize>() < found.len() => {
                self.identities.led_to(grants, self.grants).intersection(found).copied().collect()
            }
            _ => found.clone(),
        }
    }

    /// The row for an identity, and how many ranges did not fit.
    pub(super) fn row(&mut self, identity: u64) -> (Option<Row>, usize) {
        self.work += 1;
        let Some(cells) = self.cells(identity) else { return (None, 0) };
        self.work += cells.len();
        row::row(&cells)
    }

    /// The verdicts for an identity; `None` where nothing is allowed.
    fn cells(&mut self, identity: u64) -> Option<Cells> {
        match self.identities.meaning(identity) {
            None => None,
            Some(Meaning::Base(_)) => self.base(identity),
            Some(Meaning::Composite(composite)) => {
                let parts = composite.parts();
                for part in &parts {
                    if !self.parts.contains_key(part) {
                        let cells = self.base(*part);
                        self.parts.insert(*part, cells);
                    }
                }
                let known = |part: u64| self.parts.get(&part).and_then(Option::as_ref);
                let any = parts.iter().any(|part| known(*part).is_some());
                any.then(|| row::composite(composite, known))
            }
        }
    }

    fn base(&mut self, identity: u64) -> Option<Cells> {
        let prepared = &self.policy.prepared;
        let matches = self.wholes.of(identity)?;
        prepared.may_allow(matches).then(|| row::base(prepared, matches))
    }
}

/// The number of the rule by which a policy allows one address on a protocol and port, without compiling any other address.
pub(super) fn rule(index: &Index, content: Content, addr: &Addr, (protocol, port): (u8, u16)) -> Option<u16> {
    let (mut grants, mut policies, mut identities) =
        (Grants::default(), Policies::default(), Identities::default());
    let number = policies.take(content, &mut grants);
    grants.divide();
    let (known, mut pass, mut work) = (ByAddr::default(), Pass::new(index), 0);
    let mut judge = Addresses {
        pass: &mut pass,
        grants: &grants,
        identities: &mut identities,
        known: &known,
        work: &mut work,
    };
    let identity = judge.identity(&Place::at(index, *addr));
    let policy = policies.get(number)?;
    let mut wholes = Wholes::new(&identities, &grants);
    Some(Rows::new(policy, &mut wholes).cells(identity)?.at(protocol, port)?.1)
}
