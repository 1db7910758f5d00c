//! What many objects have in common is held once.
//!
//! Invariant: what comes out is equal to what went in. What nobody holds any more goes when as much was added since.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::object::{EndpointSlice, Labels, Pod, PodSpec, Service};

/// Held at least before anything is let go of.
const KEPT: usize = 1024;

#[derive(Clone, Debug)]
struct Pool<T> {
    held: BTreeSet<T>,
    /// The size at which to look for what nobody else holds.
    limit: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { held: BTreeSet::new(), limit: KEPT }
    }
}

impl<T: Clone + Ord> Pool<T> {
    fn share(&mut self, value: &T, unshared: impl Fn(&T) -> bool) -> T {
        if let Some(held) = self.held.get(value) {
            return held.clone();
        }
        if self.held.len() >= self.limit {
            self.held.retain(|held| !unshared(held));
            self.limit = KEPT.max(self.held.len() * 2);
        }
        self.held.insert(value.clone());
        value.clone()
    }
}

/// Texts, labels and pod specs by their value.
#[derive(Clone, Debug, Default)]
pub(super) struct Interner {
    texts: Pool<Arc<str>>,
    labels: Pool<Labels>,
    specs: Pool<Arc<PodSpec>>,
}

impl Interner {
    pub(super) fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        self.texts.share(text, |text| Arc::strong_count(text) == 1)
    }

    /// Makes a pod share all that it has in common with others. Its name, UID and addresses are its own.
    pub(super) fn pod(&mut self, pod: &mut Pod) {
        pod.namespace = self.text(&pod.namespace);
        pod.node = pod.node.as_ref().map(|node| self.text(node));
        pod.labels = self.labels(&pod.labels);
        if !self.specs.held.contains(&pod.spec) {
            let mut spec = PodSpec::clone(&pod.spec);
            let texts = spec.named_ports.iter_mut().map(|port| &mut port.name);
            let texts = texts.chain(spec.containers.iter_mut().map(|container| &mut container.name));
            for text in texts.chain([&mut spec.service_account]) {
                *text = self.texts.share(text, |text| Arc::strong_count(text) == 1);
            }
            pod.spec = Arc::new(spec);
        }
        pod.spec = self.specs.share(&pod.spec, |spec| Arc::strong_count(spec) == 1);
    }

    pub(super) fn service(&mut self, service: &mut Service) {
        service.namespace = self.text(&service.namespace);
        service.name = self.text(&service.name);
        service.labels = self.labels(&service.labels);
        service.ports.iter_mut().for_each(|port| port.name = self.text(&port.name));
    }

    pub(super) fn slice(&mut self, slice: &mut EndpointSlice) {
        slice.namespace = self.text(&slice.namespace);
        slice.service = slice.service.as_ref().map(|service| self.text(service));
        slice.ports.iter_mut().for_each(|port| port.name = self.text(&port.name));
    }

    fn labels(&mut self, labels: &Labels) -> Labels {
        if self.labels.held.contains(labels) {
            return self.labels.share(labels, Labels::unshared);
        }
        let shared = labels.shared(|text| self.text(text));
        self.labels.share(&shared, Labels::unshared)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Interner, KEPT};

    #[test]
    fn what_nobody_holds_goes_and_what_is_held_stays() {
        let mut interner = Interner::default();
        let kept = interner.text(&Arc::from("kept"));
        for i in 0..KEPT * 4 {
            interner.text(&Arc::from(format!("text {i}")));
        }
        assert!(interner.texts.held.len() <= KEPT);
        assert!(Arc::ptr_eq(&kept, &interner.text(&Arc::from("kept"))));
    }
}
