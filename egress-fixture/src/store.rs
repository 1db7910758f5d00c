//! What the server keeps: the objects, and the history that watches read.
//!
//! Invariants: one counter of resource versions for everything, as etcd's revision; a write that changes nothing is none
//! (`etcd3/store.go`: `GuaranteedUpdate` compares the bytes). What was at an older version is found by taking history
//! back, and nothing is found that history does not reach. Held by the tests here and by `tests/read.rs`.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use jiff::{Timestamp, Unit};
use serde_json::{Map, Value};

use crate::answer::Failure;
use crate::resources::{RESOURCES, Resource};

/// Namespace and name, in the order of etcd's keys.
pub(crate) type Key = (String, String);

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is new.
    Added,
    /// It is another.
    Modified,
    /// It is gone.
    Deleted,
}

impl Change {
    /// The type of its watch event.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// An entry of the history.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The resource version of the change.
    pub(crate) version: u64,
    /// What happened.
    pub(crate) change: Change,
    /// To which object.
    pub(crate) key: Key,
    /// The object as it is then; a deleted one as it was last, with the version of its deletion. JSON without kind.
    pub(crate) text: Bytes,
    /// What was there before.
    previous: Option<Bytes>,
}

/// Objects of one resource, as JSON without `kind` and `apiVersion`.
pub(crate) type Objects = BTreeMap<Key, Bytes>;

/// One resource's objects and history.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    /// What is there now.
    pub(crate) objects: Objects,
    /// What happened, oldest first.
    history: VecDeque<Entry>,
    /// The version that history reaches back to: a watch from it misses nothing.
    pub(crate) oldest: u64,
}

impl Shelf {
    /// What happened after a version.
    ///
    /// # Errors
    /// History does not reach back that far.
    pub(crate) fn since(&self, version: u64) -> Result<impl Iterator<Item = &Entry>, Failure> {
        if version < self.oldest {
            return Err(Failure::too_old(version, self.oldest));
        }
        let from = self.history.partition_point(|entry| entry.version <= version);
        Ok(self.history.range(from..))
    }

    /// What was there at a version, where history reaches back that far.
    #[must_use]
    pub(crate) fn at(&self, version: u64) -> Option<Objects> {
        let mut objects = self.objects.clone();
        if version < self.oldest {
            return None;
        }
        for entry in self.history.iter().rev().take_while(|entry| entry.version > version) {
            match &entry.previous {
                Some(text) => objects.insert(entry.key.clone(), text.clone()),
                None => objects.remove(&entry.key),
            };
        }
        Some(objects)
    }

    /// Whether nothing happened after a version.
    #[must_use]
    pub(crate) fn unchanged_since(&self, version: u64) -> bool {
        self.history.back().is_none_or(|entry| entry.version <= version) && version >= self.oldest
    }

    /// Forgets what happened up to a version.
    pub(crate) fn forget(&mut self, version: u64) {
        while self.history.front().is_some_and(|entry| entry.version <= version) {
            self.history.pop_front();
        }
        self.oldest = self.oldest.max(version);
    }
}

/// Everything that is kept.
#[derive(Debug)]
pub(crate) struct Store {
    shelves: Vec<Shelf>,
    /// The last resource version given out.
    pub(crate) version: u64,
    /// Entries of history kept for each resource.
    pub(crate) window: usize,
    uids: u64,
}

impl Default for Store {
    fn default() -> Self {
        let shelves = RESOURCES.iter().map(|_| Shelf { oldest: 1, ..Shelf::default() }).collect();
        Self { shelves, version: 1, window: 10_000, uids: 0 }
    }
}

fn position(resource: &Resource) -> usize {
    RESOURCES.iter().position(|one| one == resource).unwrap_or_default()
}

impl Store {
    /// The shelf of a resource.
    #[must_use]
    pub(crate) fn shelf(&self, resource: &Resource) -> &Shelf {
        &self.shelves[position(resource)]
    }

    /// The shelf of a resource.
    pub(crate) fn shelf_mut(&mut self, resource: &Resource) -> &mut Shelf {
        &mut self.shelves[position(resource)]
    }

    /// Forgets all history.
    pub(crate) fn forget(&mut self) {
        let version = self.version;
        for shelf in &mut self.shelves {
            shelf.forget(version);
        }
    }

    /// The object, without kind.
    #[must_use]
    pub(crate) fn get(&self, resource: &Resource, key: &Key) -> Option<Value> {
        self.shelf(resource).objects.get(key).and_then(|text| serde_json::from_slice(text).ok())
    }

    /// Puts a new object with a new UID there.
    ///
    /// # Errors
    /// There is one already.
    pub(crate) fn create(
        &mut self,
        resource: &Resource,
        key: Key,
        mut object: Value,
    ) -> Result<Bytes, Failure> {
        if self.shelf(resource).objects.contains_key(&key) {
            return Err(Failure::already_exists(resource, &key.1));
        }
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012x}", self.uids);
        let metadata = metadata(&mut object);
        metadata.remove("resourceVersion");
        if metadata.get("uid").is_none_or(Value::is_null) {
            metadata.insert("uid".to_owned(), uid.into());
        }
        metadata.entry("creationTimestamp").or_insert_with(|| now().into());
        metadata.insert("name".to_owned(), key.1.clone().into());
        if resource.namespaced {
            metadata.insert("namespace".to_owned(), key.0.clone().into());
        }
        if resource.generation {
            metadata.insert("generation".to_owned(), 1.into());
        }
        Ok(self.put(resource, key, object))
    }

    /// Puts an object in another's place. What the server alone sets is kept.
    pub(crate) fn replace(&mut self, resource: &Resource, key: Key, old: &Value, mut object: Value) -> Bytes {
        let old_metadata = old["metadata"].as_object();
        bare(&mut object);
        let kept = ["uid", "creationTimestamp", "generation", "name", "namespace", "resourceVersion"];
        let changed = resource.generation && significant(resource, &object) != significant(resource, old);
        let metadata = metadata(&mut object);
        for field in kept {
            match old_metadata.and_then(|old| old.get(field)) {
                Some(value) => metadata.insert(field.to_owned(), value.clone()),
                None => metadata.remove(field),
            };
        }
        if changed {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(0);
            metadata.insert("generation".to_owned(), (generation + 1).into());
        }
        if object == *old
            && let Some(text) = self.shelf(resource).objects.get(&key)
        {
            return text.clone();
        }
        self.put(resource, key, object)
    }

    /// Puts an object there, as it is but for its version.
    pub(crate) fn put(&mut self, resource: &Resource, key: Key, mut object: Value) -> Bytes {
        self.version += 1;
        let version = self.version;
        bare(&mut object);
        metadata(&mut object).insert("resourceVersion".to_owned(), version.to_string().into());
        let text = Bytes::from(object.to_string());
        let shelf = self.shelf_mut(resource);
        let previous = shelf.objects.insert(key.clone(), text.clone());
        let change = if previous.is_some() { Change::Modified } else { Change::Added };
        self.note(resource, Entry { version, change, key, text: text.clone(), previous });
        text
    }

    /// Takes an object away, and gives it as it was, with the version of its deletion.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn delete(&mut self, resource: &Resource, key: &Key) -> Result<Bytes, Failure> {
        let Some(previous) = self.shelf_mut(resource).objects.remove(key) else {
            return Err(Failure::not_found(resource, &key.1));
        };
        self.version += 1;
        let version = self.version;
        let mut object: Value = serde_json::from_slice(&previous).unwrap_or_default();
        metadata(&mut object).insert("resourceVersion".to_owned(), version.to_string().into());
        let text = Bytes::from(object.to_string());
        let entry = Entry {
            version,
            change: Change::Deleted,
            key: key.clone(),
            text: text.clone(),
            previous: Some(previous),
        };
        self.note(resource, entry);
        Ok(text)
    }

    fn note(&mut self, resource: &Resource, entry: Entry) {
        let window = self.window;
        let shelf = self.shelf_mut(resource);
        shelf.history.push_back(entry);
        while shelf.history.len() > window {
            if let Some(gone) = shelf.history.pop_front() {
                shelf.oldest = gone.version;
            }
        }
    }
}

/// Takes the kind away, which every object of a shelf has in common.
fn bare(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
}

/// What generation counts changes of: everything but metadata and, where that is a part of its own, status.
fn significant(resource: &Resource, object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.retain(|field, _| {
            let apart = resource.status && field == "status";
            !(apart || ["metadata", "kind", "apiVersion"].contains(&field.as_str()))
        });
    }
    object
}

/// The metadata, made where there are none.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let entry = &mut object["metadata"];
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    match entry {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            unreachable!("made an object above")
        }
    }
}

/// The present, as `metav1.Time` writes it: to the second.
#[must_use]
pub(crate) fn now() -> String {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now).to_string()
}

/// An object's JSON with its kind before it.
#[must_use]
pub(crate) fn with_kind(resource: &Resource, text: &Bytes) -> Vec<u8> {
    let mut whole = format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\"", resource.kind, resource.api_version())
        .into_bytes();
    let rest = text.get(1..).unwrap_or(b"}");
    if rest.first() != Some(&b'}') {
        whole.push(b',');
    }
    whole.extend_from_slice(rest);
    whole
}

#[cfg(test)]
mod tests {
    use super::{Change, Store};
    use crate::resources::resource;
    use serde_json::json;

    fn key(name: &str) -> (String, String) {
        ("a".to_owned(), name.to_owned())
    }

    #[test]
    fn what_was_there_before_is_found_as_far_as_history_goes() {
        let mut store = Store::default();
        let pods = resource("pods");
        store.create(pods, key("x"), json!({"n": 1})).unwrap();
        let first = store.version;
        let old = store.get(pods, &key("x")).unwrap();
        store.replace(pods, key("x"), &old, json!({"n": 2}));
        store.create(pods, key("y"), json!({})).unwrap();
        store.delete(pods, &key("x")).unwrap();
        let shelf = store.shelf(pods);
        let then = shelf.at(first).unwrap();
        assert_eq!(then.len(), 1);
        assert!(String::from_utf8_lossy(&then[&key("x")]).contains("\"n\":1"));
        assert_eq!(shelf.at(first + 2).unwrap().len(), 2);
        assert_eq!(shelf.at(1).unwrap().len(), 0);
        let changes: Vec<_> =
            shelf.since(first).unwrap().map(|entry| (entry.change, entry.version)).collect();
        let expected =
            vec![(Change::Modified, first + 1), (Change::Added, first + 2), (Change::Deleted, first + 3)];
        assert_eq!(changes, expected);
        store.shelf_mut(pods).forget(first + 1);
        let shelf = store.shelf(pods);
        assert!(shelf.at(first).is_none() && shelf.since(first).is_err());
        assert_eq!(shelf.at(first + 1).unwrap().len(), 1);
    }

    #[test]
    fn the_window_bounds_history() {
        let mut store = Store { window: 2, ..Store::default() };
        let pods = resource("pods");
        for name in ["x", "y", "z"] {
            store.create(pods, key(name), json!({})).unwrap();
        }
        assert_eq!(store.shelf(pods).oldest, 2);
        assert!(store.shelf(pods).since(1).is_err());
        assert_eq!(store.shelf(pods).since(2).unwrap().count(), 2);
    }

    #[test]
    fn a_write_that_changes_nothing_is_none() {
        let mut store = Store::default();
        let policies = resource("networkpolicies");
        store.create(policies, key("x"), json!({"spec": {"n": 1}})).unwrap();
        let (old, version) = (store.get(policies, &key("x")).unwrap(), store.version);
        store.replace(policies, key("x"), &old, json!({"spec": {"n": 1}}));
        assert_eq!(store.version, version);
        store.replace(policies, key("x"), &old, json!({"spec": {"n": 2}}));
        assert_eq!(store.version, version + 1);
        assert_eq!(store.get(policies, &key("x")).unwrap()["metadata"]["generation"], 2);
    }

    #[test]
    fn resource_versions_are_common_to_all_resources() {
        let mut store = Store::default();
        store.create(resource("pods"), key("x"), json!({})).unwrap();
        store.create(resource("nodes"), (String::new(), "n".to_owned()), json!({})).unwrap();
        assert_eq!(store.version, 3);
        assert_eq!(
            store.get(resource("nodes"), &(String::new(), "n".to_owned())).unwrap()["metadata"]["resourceVersion"],
            "3"
        );
    }
}
