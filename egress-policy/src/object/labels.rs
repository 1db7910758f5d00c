//! Labels: sorted, shared, looked up by key.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

/// Labels of an object, in the order of their keys. Cloning shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    /// Every label with its value, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The labels with every text replaced by what `share` gives for it, which has to be equal.
    pub(crate) fn shared(&self, mut share: impl FnMut(&Arc<str>) -> Arc<str>) -> Self {
        Self(self.0.iter().map(|(key, value)| (share(key), share(value))).collect())
    }

    /// Whether these are the only ones that share this memory.
    pub(crate) fn unshared(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl<K: AsRef<str> + Ord, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    /// The last value of a key that is there twice counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let sorted: BTreeMap<K, V> = labels.into_iter().collect();
        Self(sorted.iter().map(|(key, value)| (Arc::from(key.as_ref()), Arc::from(value.as_ref()))).collect())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<String, String>::deserialize(deserializer)?.into_iter().collect())
    }
}
