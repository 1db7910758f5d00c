//! The verdict: what passes has a ground, and nothing passes because an entry is missing.

use egress_common::{Action, Decision, Hook, decide};

use super::grounds;
use super::scenario::Scenario;

/// Checks one scenario.
pub fn check(data: &[u8]) {
    let scenario = Scenario::of(data);
    let decision = judge(&scenario);
    grounds::check(&scenario, &decision);
    without_configuration(&scenario);
    without_device(&scenario);
    if decision.verdict.action == Action::Deny {
        without_one(&scenario);
    }
}

fn judge(scenario: &Scenario) -> Decision {
    decide(&scenario.maps, &scenario.sender, scenario.packet.as_slice(), scenario.meta)
}

fn without_configuration(scenario: &Scenario) {
    let mut less = scenario.clone();
    less.maps.config = None;
    assert_eq!(judge(&less).verdict.action, Action::Deny, "{less:?}");
}

fn without_device(scenario: &Scenario) {
    if scenario.meta.hook == Hook::Veth {
        let mut less = scenario.clone();
        less.maps.devices.clear();
        assert_eq!(judge(&less).verdict.action, Action::Deny, "{less:?}");
    }
}

/// Takes one entry after the other out of the maps of a packet that is denied.
fn without_one(scenario: &Scenario) {
    let maps = &scenario.maps;
    for key in maps.rows.keys() {
        let mut less = scenario.clone();
        less.maps.rows.remove(key);
        still_denied(&less);
    }
    for key in maps.witnesses.keys() {
        let mut less = scenario.clone();
        less.maps.witnesses.remove(key);
        still_denied(&less);
    }
    let mut less = scenario.clone();
    less.sender.2 = None;
    still_denied(&less);
    // An address that is not known by itself is what the longest prefix says it is, a prefix what the next one says: it may
    // pass, but on that ground.
    for key in maps.addresses.keys() {
        let mut less = scenario.clone();
        less.maps.addresses.remove(key);
        grounds::check(&less, &judge(&less));
    }
    for key in maps.cidrs.keys() {
        let mut less = scenario.clone();
        less.maps.cidrs.remove(key);
        grounds::check(&less, &judge(&less));
    }
}

/// Denied, or audited where the pod audits: a row that cannot be read denies even there, and one that is not there does not.
fn still_denied(less: &Scenario) {
    let decision = judge(less);
    let audits = less.maps.endpoints.get(&decision.cgroup).is_some_and(|pod| pod.flags & 1 != 0);
    let passes = match decision.verdict.action {
        Action::Deny => false,
        Action::Audit => !audits,
        Action::Allow => true,
    };
    assert!(!passes, "{decision:?} {less:?}");
    grounds::check(less, &decision);
}
