//! The policies that apply on this node: what is said about pods, by number.
//!
//! Invariant: a policy stays so long as an endpoint, or the configuration, has its number; so do its grants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::grant::{Content, Grant};
use super::grants::Grants;
use super::row::{self, Prepared};
use super::terms::Terms;
use crate::digest::{Digest, Numbers};

#[derive(Debug)]
pub(super) struct Policy {
    pub(super) content: Content,
    pub(super) prepared: Prepared,
    digest: Digest,
    uses: usize,
}

/// The policies by number.
#[derive(Debug, Default)]
pub(super) struct Policies {
    numbers: Numbers,
    policies: BTreeMap<u64, Policy>,
    /// Those that came since the last [`Policies::collect`].
    born: BTreeSet<u64>,
    /// Those that may have lost their use since.
    dropped: BTreeSet<u64>,
    /// Grants that came since.
    grants: BTreeSet<Arc<Grant>>,
}

/// What became of policies and of the grants they are made of.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) born: BTreeSet<u64>,
    pub(super) gone: BTreeSet<u64>,
    /// Grants that were not held before, or are not any more.
    pub(super) grants: BTreeSet<Arc<Grant>>,
}

impl Policies {
    pub(super) fn get(&self, number: u64) -> Option<&Policy> {
        self.policies.get(&number)
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.policies.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Policy)> {
        self.policies.iter().map(|(number, policy)| (*number, policy))
    }

    /// Something has the number of a policy now; tells the number.
    pub(super) fn take(&mut self, content: Content, grants: &mut Grants) -> u64 {
        let digest = content.digest();
        let number = self.numbers.of(&digest);
        if let Some(policy) = self.policies.get_mut(&number) {
            policy.uses += 1;
            return number;
        }
        for grant in held(&content) {
            if grants.acquire(&grant) {
                self.grants.insert(grant);
            }
        }
        let prepared = row::prepare(&content, grants);
        self.policies.insert(number, Policy { content, prepared, digest, uses: 1 });
        self.born.insert(number);
        number
    }

    /// Holds grants for good, whether a policy has them or not.
    pub(super) fn hold(&mut self, standing: impl IntoIterator<Item = Arc<Grant>>, grants: &mut Grants) {
        self.grants.extend(standing.into_iter().filter(|grant| grants.hold(grant)));
    }

    /// Something does not have the number of a policy any more.
    pub(super) fn drop(&mut self, number: u64) {
        if let Some(policy) = self.policies.get_mut(&number) {
            policy.uses = policy.uses.saturating_sub(1);
            self.dropped.insert(number);
        }
    }

    /// Forgets the policies that nothing has any more, and tells what changed since the last time.
    pub(super) fn collect(&mut self, grants: &mut Grants) -> Changes {
        let mut changes = Changes {
            born: std::mem::take(&mut self.born),
            gone: BTreeSet::new(),
            grants: std::mem::take(&mut self.grants),
        };
        for number in std::mem::take(&mut self.dropped) {
            if self.policies.get(&number).is_none_or(|policy| policy.uses > 0) {
                continue;
            }
            let Some(policy) = self.policies.remove(&number) else { continue };
            self.numbers.forget(number, &policy.digest);
            if !changes.born.remove(&number) {
                changes.gone.insert(number);
            }
            for grant in held(&policy.content) {
                if grants.release(&grant) {
                    changes.grants.insert(grant);
                }
            }
        }
        changes
    }
}

/// The grants of a policy that addresses have to be told apart for.
fn held(content: &Content) -> impl Iterator<Item = Arc<Grant>> {
    let grants = content.rules().flat_map(|rule| &rule.grants).filter(|grant| grant.interned());
    grants.flat_map(|grant| Terms::new(grant).all())
}
