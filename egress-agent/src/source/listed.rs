//! What a list named, which tells what is gone.
//!
//! Invariant: a name that was put in is in. One that was not is in with a probability of 2⁻¹²⁸ for each that was: an object that is gone
//! would stay. Names themselves would be freed between what came of the objects, and leave holes of a third of it in the heap.

#[expect(clippy::disallowed_types, reason = "in one piece of memory; nobody looks at its order")]
use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use egress_policy::object::ObjectRef;

/// Names of objects, as numbers that nobody can foresee.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    keys: [RandomState; 2],
    #[expect(clippy::disallowed_types, reason = "as above")]
    numbers: HashSet<[u64; 2]>,
}

impl Listed {
    fn number(&self, name: &ObjectRef) -> [u64; 2] {
        self.keys.each_ref().map(|key| key.hash_one(name))
    }

    /// Puts a name in.
    pub(crate) fn insert(&mut self, name: &ObjectRef) {
        self.numbers.insert(self.number(name));
    }

    /// Takes a name out again.
    pub(crate) fn remove(&mut self, name: &ObjectRef) {
        self.numbers.remove(&self.number(name));
    }

    /// Whether a name is in.
    pub(crate) fn contains(&self, name: &ObjectRef) -> bool {
        self.numbers.contains(&self.number(name))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use egress_policy::object::Kind;

    use super::*;

    fn name(kind: Kind, namespace: Option<&str>, name: &str) -> ObjectRef {
        ObjectRef { kind, namespace: namespace.map(Arc::from), name: Arc::from(name) }
    }

    #[test]
    fn what_was_put_in_is_in_and_nothing_else() {
        let mut listed = Listed::default();
        let pods: Vec<_> = (0..1000).map(|at| name(Kind::Pod, Some("n"), &format!("p{at}"))).collect();
        pods.iter().for_each(|pod| listed.insert(pod));
        listed.remove(&pods[7]);
        for (at, pod) in pods.iter().enumerate() {
            assert_eq!(listed.contains(pod), at != 7, "{pod}");
        }
        let others = [
            name(Kind::Pod, Some("np"), "1"),
            name(Kind::Pod, Some("m"), "p1"),
            name(Kind::Service, Some("n"), "p1"),
            name(Kind::Namespace, None, "n"),
        ];
        assert!(others.iter().all(|other| !listed.contains(other)));
        assert!(!Listed::default().contains(&pods[1]));
    }
}
