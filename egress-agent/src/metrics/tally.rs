//! Denials by policy: the kernel counts them by pod, and forgets them with the pod.
//!
//! Invariant: what a pod was denied counts once, for the policies that selected it when it was counted; the number of different
//! labels is bounded. What was counted before the agent was started counts for nobody, so that a restart looks like no denials, not like
//! all of them again. Tested below.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::datapath::Denied;

/// Most sets of policies that have a label of their own: more than pods fit on a node.
const SETS: usize = 256;
/// The label of what is beyond that.
const OTHER: &str = "other";
/// The label of pods that no policy selects, or that are not known.
pub(crate) const NONE: &str = "none";

/// What pods under the same policies were denied, or audited, by one hook for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTotal {
    /// The policies.
    pub policy: Arc<str>,
    /// The hook, [`Hook::name`](egress_common::Hook::name).
    pub hook: &'static str,
    /// The action, [`Action::name`](egress_common::Action::name).
    pub action: &'static str,
    /// The reason, [`Reason::name`](egress_common::Reason::name).
    pub reason: &'static str,
    /// Packets.
    pub packets: u64,
    /// Those of them that no event told of.
    pub suppressed: u64,
}

/// What was counted, and what the kernel said at the last look.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    begun: bool,
    last: BTreeMap<(u64, u32), (u64, u64)>,
    totals: BTreeMap<Arc<str>, BTreeMap<u32, PolicyTotal>>,
}

impl Tally {
    /// Takes in what the kernel has counted; `policies` are those of a pod, by its cgroup.
    pub(crate) fn take(&mut self, denied: &[Denied], policies: impl Fn(u64) -> Option<String>) {
        let mut now = BTreeMap::new();
        let first = !std::mem::replace(&mut self.begun, true);
        for one in denied {
            let (packets, suppressed) = (one.packets, one.suppressed);
            let key = (one.cgroup, one.slot);
            now.insert(key, (packets, suppressed));
            let (before, untold) = self.last.get(&key).copied().unwrap_or_default();
            if first || packets <= before {
                continue;
            }
            let label = policies(one.cgroup).filter(|label| !label.is_empty());
            let total = self.total(label.as_deref().unwrap_or(NONE), denied, &policies, one);
            total.packets += packets - before;
            total.suppressed += suppressed.saturating_sub(untold);
        }
        self.last = now;
    }

    fn total(
        &mut self,
        label: &str,
        denied: &[Denied],
        policies: &impl Fn(u64) -> Option<String>,
        one: &Denied,
    ) -> &mut PolicyTotal {
        if !self.totals.contains_key(label) && self.totals.len() >= SETS {
            // Policies come and go: what no pod has any more makes room.
            let held: BTreeSet<String> = denied.iter().filter_map(|one| policies(one.cgroup)).collect();
            self.totals.retain(|label, _| held.contains(&**label) || [OTHER, NONE].contains(&&**label));
        }
        let full = !self.totals.contains_key(label) && self.totals.len() >= SETS;
        let label: Arc<str> = Arc::from(if full { OTHER } else { label });
        let Denied { slot, hook, action, reason, .. } = *one;
        self.totals.entry(label.clone()).or_default().entry(slot).or_insert_with(|| PolicyTotal {
            policy: label,
            hook: hook.name(),
            action: action.name(),
            reason: reason.name(),
            packets: 0,
            suppressed: 0,
        })
    }

    /// What was counted.
    pub(crate) fn totals(&self) -> Vec<PolicyTotal> {
        self.totals.values().flat_map(BTreeMap::values).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{NONE, OTHER, SETS, Tally};
    use crate::datapath::Denied;
    use egress_common::{Action, Hook, Reason, reason::counter_slot};

    fn denied(cgroup: u64, packets: u64, suppressed: u64) -> Denied {
        let (hook, action, reason) = (Hook::Socket, Action::Deny, Reason::NotAllowed);
        let slot = counter_slot(hook, action, reason);
        Denied { cgroup, slot, hook, action, reason, packets, bytes: 0, suppressed }
    }

    fn told(tally: &Tally) -> Vec<(String, u64, u64)> {
        tally.totals().iter().map(|one| (one.policy.to_string(), one.packets, one.suppressed)).collect()
    }

    #[test]
    fn a_restart_counts_nothing_again_and_what_comes_after_counts_once() {
        let mut tally = Tally::default();
        let mesh = |_| Some("mesh".to_owned());
        tally.take(&[denied(1, 100, 50)], mesh);
        assert!(told(&tally).is_empty());
        tally.take(&[denied(1, 103, 51), denied(2, 4, 0)], mesh);
        tally.take(&[denied(1, 103, 51), denied(2, 4, 0)], mesh);
        assert_eq!(told(&tally), [("mesh".to_owned(), 7, 1)]);
        // The pod went, and with it what the kernel had counted; another policy selects the other one.
        tally.take(&[denied(2, 9, 3)], |_| None);
        assert_eq!(told(&tally), [("mesh".to_owned(), 7, 1), (NONE.to_owned(), 5, 3)]);
    }

    #[test]
    fn labels_are_bounded_and_make_room_when_their_pods_are_gone() {
        let mut tally = Tally::default();
        tally.take(&[], |_| None);
        let many = 2 * SETS as u64;
        let pods: Vec<_> = (0..many).map(|pod| denied(pod, 1, 0)).collect();
        let own = |pod: u64| Some(format!("policy {pod:04}"));
        tally.take(&pods, own);
        let labels = told(&tally);
        assert_eq!(labels.len(), SETS + 1);
        let other = labels.iter().find(|(label, ..)| label == OTHER).unwrap();
        assert_eq!(other.1, many - SETS as u64, "nothing is lost");
        tally.take(&[denied(many + 1, 1, 0)], own);
        let labels = told(&tally);
        assert_eq!(labels.len(), 2, "the new one and what is beyond");
        assert!(labels.iter().any(|(label, ..)| *label == format!("policy {:04}", many + 1)));
    }
}
