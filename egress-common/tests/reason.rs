//! The closed enums: numbers, names and slots are distinct, and every number on the wire comes back as itself.

use std::collections::BTreeSet;

use egress_common::reason::{COUNTER_SLOTS, counter_slot};
use egress_common::{Action, Hook, Reason};

#[test]
fn numbers_and_names_are_distinct_and_come_back() {
    let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for &reason in Reason::ALL {
        assert_eq!(Reason::from_wire(reason as u8), Some(reason));
        assert!(!reason.describe().is_empty());
    }
    for action in Action::ALL {
        assert_eq!(Action::from_wire(action as u8), Some(action));
    }
    assert_eq!((Reason::from_wire(0), Action::from_wire(0)), (None, None));
}

#[test]
fn each_action_and_reason_has_a_counter_of_its_own() {
    let mut slots = BTreeSet::new();
    for (hook, action) in Hook::ALL.iter().flat_map(|hook| Action::ALL.map(|action| (*hook, action))) {
        for &reason in Reason::ALL {
            let slot = counter_slot(hook, action, reason);
            assert!(slot < COUNTER_SLOTS);
            assert!(slots.insert(slot), "{hook:?} {action:?} {reason:?}");
        }
    }
}

#[test]
fn a_reason_never_audits_by_itself() {
    let allows = Reason::ALL.iter().filter(|reason| reason.action() == Action::Allow);
    assert_eq!(allows.count(), 7);
    assert!(Reason::ALL.iter().all(|reason| reason.action() != Action::Audit));
}
