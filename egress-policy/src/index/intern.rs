//! What many objects have in common is held once.
//!
//! Invariant: what comes out is equal to what went in. What nobody holds any more goes when as much was added since.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::object::{EndpointSlice, Labels, Pod, PodSpec, Service, Template};

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

/// Texts, labels, and what pods have in common, by their value.
#[derive(Clone, Debug, Default)]
pub(super) struct Interner {
    texts: Pool<Arc<str>>,
    nodes: Pool<Arc<Arc<str>>>,
    labels: Pool<Labels>,
    specs: Pool<Arc<PodSpec>>,
    templates: Pool<Arc<Template>>,
}

impl Interner {
    pub(super) fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        self.texts.share(text, |text| Arc::strong_count(text) == 1)
    }

    /// Makes a pod share all that it has in common with others. Its name, UID and addresses are its own.
    pub(super) fn pod(&mut self, pod: &mut Pod) {
        let shared = |node| self.nodes.share(node, |node| Arc::strong_count(node) == 1);
        pod.node = pod.node.as_ref().map(shared);
        if !self.templates.held.contains(&pod.template) {
            pod.template = Arc::new(Template {
                namespace: self.text(&pod.namespace),
                labels: self.labels(&pod.labels),
                spec: self.spec(&pod.spec),
                host_network: pod.host_network,
                finished: pod.finished,
            });
        }
        pod.template = self.templates.share(&pod.template, |template| Arc::strong_count(template) == 1);
    }

    fn spec(&mut self, spec: &Arc<PodSpec>) -> Arc<PodSpec> {
        let mut shared = spec.clone();
        if !self.specs.held.contains(spec) {
            let mut spec = PodSpec::clone(spec);
            let texts = spec.named_ports.iter_mut().map(|port| &mut port.name);
            let texts = texts.chain(spec.containers.iter_mut().map(|container| &mut container.name));
            for text in texts.chain([&mut spec.service_account]) {
                *text = self.texts.share(text, |text| Arc::strong_count(text) == 1);
            }
            shared = Arc::new(spec);
        }
        self.specs.share(&shared, |spec| Arc::strong_count(spec) == 1)
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

    use serde_json::json;

    use super::{Interner, KEPT};
    use crate::object::{Kind, Object, Pod, Read, read_as};

    fn pod(name: &str, labels: &serde_json::Value) -> Pod {
        let metadata = json!({"namespace": "app", "name": name, "labels": labels});
        match read_as(Kind::Pod, &json!({"metadata": metadata, "spec": {"nodeName": "a"}})) {
            Ok(Read::Object(Object::Pod(pod))) => pod,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn replicas_share_what_they_have_in_common_and_stay_what_they_are() {
        let mut interner = Interner::default();
        let (web, db) = (json!({"app": "web"}), json!({"app": "db"}));
        let read = [pod("web-1", &web), pod("web-2", &web), pod("db-1", &db)];
        let mut held = read.clone();
        held.iter_mut().for_each(|pod| interner.pod(pod));
        assert_eq!(held, read);
        let [one, two, other] = &held;
        assert!(Arc::ptr_eq(&one.template, &two.template) && !Arc::ptr_eq(&one.template, &other.template));
        assert!(Arc::ptr_eq(&one.spec, &other.spec) && Arc::ptr_eq(&one.namespace, &other.namespace));
        // Of 100,000 pods, each word more is a megabyte.
        assert!(size_of::<Pod>() <= 88, "{}", size_of::<Pod>());
    }

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
