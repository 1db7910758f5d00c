//! Which of many selectors match some labels, without asking each of them.
//!
//! Invariant: it finds what asking each would find. Tested below.

use std::collections::BTreeMap;

use crate::object::{Requirement, Selector, Set};

type Slot<T> = BTreeMap<Selector, T>;

/// Values by selector.
#[derive(Clone, Debug)]
pub(super) struct Matcher<T> {
    /// Selectors that ask for a value of a label, by label and value.
    by_label: BTreeMap<String, BTreeMap<String, Slot<T>>>,
    /// All others.
    rest: Slot<T>,
}

impl<T> Default for Matcher<T> {
    fn default() -> Self {
        Self { by_label: BTreeMap::new(), rest: Slot::new() }
    }
}

impl<T: Default> Matcher<T> {
    /// Changes the value of a selector in each place that it is kept at.
    pub(super) fn change(&mut self, selector: &Selector, change: impl Fn(&mut T)) {
        match asked(selector) {
            None => change(self.rest.entry(selector.clone()).or_default()),
            Some((key, values)) => {
                let by_value = self.by_label.entry(key.clone()).or_default();
                for value in values {
                    let slot = by_value.entry(value.clone()).or_default();
                    change(slot.entry(selector.clone()).or_default());
                }
            }
        }
    }

    /// Drops a selector where its value `is_empty`.
    pub(super) fn prune(&mut self, selector: &Selector, is_empty: impl Fn(&T) -> bool) {
        let prune = |slot: &mut Slot<T>| {
            if slot.get(selector).is_some_and(&is_empty) {
                slot.remove(selector);
            }
        };
        match asked(selector) {
            None => prune(&mut self.rest),
            Some((key, values)) => {
                let Some(by_value) = self.by_label.get_mut(key) else { return };
                for value in values {
                    if let Some(slot) = by_value.get_mut(value) {
                        prune(slot);
                        if slot.is_empty() {
                            by_value.remove(value);
                        }
                    }
                }
                if by_value.is_empty() {
                    self.by_label.remove(key);
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_label.is_empty() && self.rest.is_empty()
    }

    /// The values of the selectors that `matches` these labels.
    pub(super) fn matching<'a, 'l>(
        &'a self,
        labels: impl Iterator<Item = (&'l str, &'l str)>,
        matches: impl Fn(&Selector) -> bool,
    ) -> impl Iterator<Item = &'a T> {
        let candidates = labels.filter_map(|(key, value)| self.by_label.get(key)?.get(value));
        let candidates = candidates.chain([&self.rest]).flatten();
        candidates.filter(move |(selector, _)| matches(selector)).map(|(_, value)| value)
    }
}

/// The requirement of a selector by which to find it: one that asks for few values of a label.
fn asked(selector: &Selector) -> Option<(&String, &Set<String>)> {
    let asking = selector.0.iter().filter_map(|requirement| match requirement {
        Requirement::In(key, values) => Some((key, values)),
        _ => None,
    });
    asking.min_by_key(|(_, values)| values.len())
}

#[cfg(test)]
mod tests {
    use super::Matcher;
    use crate::object::{Labels, Requirement, Selector, Set};

    fn one(requirement: Requirement) -> Selector {
        Selector(Set::from([requirement]))
    }

    #[test]
    fn finds_what_matches_and_nothing_else() {
        let values = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<Set<_>>();
        let selectors = [
            Selector::default(),
            one(Requirement::In("app".into(), values(&["a"]))),
            one(Requirement::In("app".into(), values(&["a", "b"]))),
            one(Requirement::NotIn("app".into(), values(&["a"]))),
            one(Requirement::Exists("tier".into())),
            one(Requirement::DoesNotExist("tier".into())),
            Selector(Set::from([
                Requirement::In("app".into(), values(&["b"])),
                Requirement::In("tier".into(), values(&["x", "y"])),
            ])),
        ];
        let mut matcher: Matcher<Vec<usize>> = Matcher::default();
        for (i, selector) in selectors.iter().enumerate() {
            matcher.change(selector, |found| found.push(i));
        }
        let found = |matcher: &Matcher<Vec<usize>>, labels: &[(&str, &str)]| {
            let labels: Labels = labels.iter().copied().collect();
            let mut found: Vec<usize> =
                matcher.matching(labels.iter(), |s| s.matches_labels(&labels)).flatten().copied().collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found(&matcher, &[]), [0, 3, 5]);
        assert_eq!(found(&matcher, &[("app", "a")]), [0, 1, 2, 5]);
        assert_eq!(found(&matcher, &[("app", "b"), ("tier", "y")]), [0, 2, 3, 4, 6]);
        for (left, selector) in (0..selectors.len()).rev().zip(&selectors) {
            assert!(!matcher.is_empty());
            matcher.prune(selector, Vec::is_empty);
            matcher.change(selector, Vec::clear);
            matcher.prune(selector, Vec::is_empty);
            let all = found(&matcher, &[("app", "a"), ("tier", "x")]);
            assert!(all.iter().all(|i| *i >= selectors.len() - left), "{all:?}");
        }
        assert!(matcher.is_empty());
        matcher.change(&selectors[1], |found| found.push(0));
        assert!(!matcher.is_empty(), "by a label alone");
        let mut other: Matcher<Vec<usize>> = Matcher::default();
        other.change(&selectors[0], |found| found.push(0));
        assert!(!other.is_empty(), "by none alone");
    }
}
