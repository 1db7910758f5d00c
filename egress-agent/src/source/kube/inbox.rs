//! What arrived from the API server and was not taken yet.
//!
//! Invariant: bounded by the number of objects, not of events: of each object the last state counts. What was told about an object
//! after a list is not undone by that list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use egress_policy::index::Event;
use egress_policy::object::{Kind, Object, ObjectRef};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::source::{Changes, Listed, SourceError};
use crate::status::WatchStatus;

/// Objects that cannot be read, of which the status tells.
const ERRORS: usize = 100;

/// How the watch of a kind stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// Everything is being listed.
    #[default]
    Listing,
    /// Changes are followed.
    Watching,
    /// Something is wrong, and tried again.
    Failing,
    /// The cluster has no such kind.
    NotInstalled,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Listing => "Listing",
            Self::Watching => "Watching",
            Self::Failing => "Failing",
            Self::NotInstalled => "NotInstalled",
        }
    }
}

#[derive(Debug, Default)]
struct Watch {
    state: State,
    synced: bool,
    events: u64,
    lists: u64,
    error: Option<String>,
    /// Since when it has been failing, or, after the first whole list, making another one.
    failing: Option<Instant>,
    /// When, before everything was listed, something came that was not there yet.
    arrived: Option<Instant>,
}

#[derive(Debug, Default)]
struct Contents {
    /// `None` for what is gone.
    pending: BTreeMap<ObjectRef, Option<Box<Object>>>,
    listed: BTreeMap<Kind, Listed>,
    watches: BTreeMap<Kind, Watch>,
    /// Why an object cannot be read.
    unread: BTreeMap<ObjectRef, String>,
}

/// Filled by the watches, emptied by the agent.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    contents: Mutex<Contents>,
    changed: Arc<Notify>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// An object is there. Without one it cannot be read, and what was read of it last stays; an `error` may come with either.
    pub(super) fn upsert(&self, name: ObjectRef, object: Option<Object>, error: Option<String>) {
        let mut contents = self.lock();
        let kind = name.kind;
        let mut fresh = false;
        match error {
            Some(error) => fresh |= contents.unread.insert(name.clone(), error).is_none(),
            None => drop(contents.unread.remove(&name)),
        }
        if let Some(listed) = contents.listed.get_mut(&name.kind) {
            listed.insert(&name);
        }
        if let Some(object) = object {
            fresh |= contents.pending.insert(name, Some(Box::new(object))).is_none();
        }
        let watch = contents.watches.entry(kind).or_default();
        watch.events += 1;
        if fresh && !watch.synced {
            watch.arrived = Some(Instant::now());
        }
        self.changed.notify_one();
    }

    /// An object is gone.
    pub(super) fn delete(&self, name: ObjectRef) {
        let mut contents = self.lock();
        contents.watches.entry(name.kind).or_default().events += 1;
        contents.unread.remove(&name);
        if let Some(listed) = contents.listed.get_mut(&name.kind) {
            listed.remove(&name);
        }
        contents.pending.insert(name, None);
        self.changed.notify_one();
    }

    /// Everything of a kind was told: what is not `listed` is gone.
    pub(super) fn listed(&self, kind: Kind, listed: Listed) {
        let mut contents = self.lock();
        contents.unread.retain(|name, _| name.kind != kind || listed.contains(name));
        contents.pending.retain(|name, _| name.kind != kind || listed.contains(name));
        let watch = contents.watches.entry(kind).or_default();
        if !std::mem::replace(&mut watch.synced, true) {
            watch.arrived = Some(Instant::now());
        }
        // That there is no such kind is found again and again.
        watch.lists += u64::from(watch.state != State::NotInstalled);
        contents.listed.insert(kind, listed);
        self.changed.notify_one();
    }

    /// The watch of a kind goes on, or cannot.
    pub(super) fn state(&self, kind: Kind, state: State, error: Option<String>) {
        let mut contents = self.lock();
        let watch = contents.watches.entry(kind).or_default();
        if watch.state == state && watch.error == error {
            return;
        }
        (watch.state, watch.error) = (state, error);
        // Who lists anew has no news either, and may have to begin again and again.
        let stale = state == State::Failing || state == State::Listing && watch.synced;
        watch.failing = stale.then(|| watch.failing.unwrap_or_else(Instant::now));
        self.changed.notify_one();
    }

    /// Whether everything of every kind was listed once.
    pub(super) fn complete(&self) -> bool {
        let contents = self.lock();
        Kind::ALL.iter().all(|kind| contents.watches.get(kind).is_some_and(|watch| watch.synced))
    }

    /// For how long everything that was not listed yet has been failing, without anything new of it; `None` where something is still on
    /// its way.
    pub(super) fn failing_for(&self) -> Option<Duration> {
        let contents = self.lock();
        let kinds = Kind::ALL.iter().map(|kind| contents.watches.get(kind));
        let missing = kinds.filter(|watch| watch.is_none_or(|watch| !watch.synced));
        let since = |watch: &Watch| {
            let failing = watch.failing?;
            Some(watch.arrived.unwrap_or(failing).max(failing))
        };
        let since: Option<Vec<Instant>> = missing.map(|watch| since(watch?)).collect();
        since?.into_iter().map(|since| since.elapsed()).min()
    }

    /// When something came last that was not there yet, of what was not listed by then.
    pub(super) fn arrived(&self) -> Option<Instant> {
        self.lock().watches.values().filter_map(|watch| watch.arrived).max()
    }

    /// What was not listed yet, and why.
    pub(super) fn missing(&self) -> Vec<String> {
        let contents = self.lock();
        let missing = Kind::ALL.iter().filter_map(|kind| {
            let watch = contents.watches.get(kind);
            if watch.is_some_and(|watch| watch.synced) {
                return None;
            }
            let error = watch.and_then(|watch| watch.error.clone());
            Some(error.unwrap_or_else(|| format!("no answer yet about {kind}")))
        });
        let missing: BTreeSet<String> = missing.collect();
        missing.into_iter().collect()
    }

    /// Empties the inbox.
    pub(super) fn take(&self) -> Changes {
        let incomplete = !self.complete();
        let mut contents = self.lock();
        let event = |(name, object): (ObjectRef, Option<Box<Object>>)| match object {
            Some(object) => Event::Upsert(*object),
            None => Event::Delete(name),
        };
        let watch = |kind: &Kind| {
            let default = Watch::default();
            let watch = contents.watches.get(kind).unwrap_or(&default);
            WatchStatus {
                kind: kind.name().to_owned(),
                state: watch.state.name().to_owned(),
                synced: watch.synced,
                objects: 0,
                events: watch.events,
                relists: watch.lists.saturating_sub(1),
                failing_seconds: watch.failing.map_or(0, |since| since.elapsed().as_secs()),
                error: watch.error.clone(),
            }
        };
        let watches = Kind::ALL.iter().map(watch).collect();
        let error = |(name, reason): (&ObjectRef, &String)| SourceError {
            place: name.to_string(),
            line: None,
            reason: reason.clone(),
        };
        let mut errors: Vec<_> = contents.unread.iter().take(ERRORS).map(error).collect();
        if contents.unread.len() > ERRORS {
            let reason = format!("{} more objects cannot be read", contents.unread.len() - ERRORS);
            errors.push(SourceError { place: "kube".to_owned(), line: None, reason });
        }
        Changes {
            incomplete,
            events: std::mem::take(&mut contents.pending).into_iter().map(event).collect(),
            listed: std::mem::take(&mut contents.listed).into_iter().collect(),
            errors,
            ignored: BTreeMap::new(),
            workloads: Vec::new(),
            watches,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Inbox, State};
    use egress_policy::index::Event;
    use egress_policy::object::{Kind, Object, ObjectRef, Read, read};

    use std::time::Duration;

    use crate::source::Listed;

    fn namespace(name: &str) -> (ObjectRef, Option<Object>) {
        let object = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let Read::Object(object) = read(object).unwrap().remove(0) else { panic!("not read") };
        (object.object_ref(), Some(object))
    }

    #[test]
    fn of_each_object_the_last_state_counts() {
        let inbox = Inbox::default();
        let (name, object) = namespace("a");
        for _ in 0..10_000 {
            inbox.upsert(name.clone(), object.clone(), None);
        }
        inbox.delete(name.clone());
        let changes = inbox.take();
        assert!(matches!(&changes.events[..], [Event::Delete(gone)] if *gone == name));
        assert_eq!(changes.watches[1].events, 10_001);
        assert!(inbox.take().events.is_empty());
    }

    #[test]
    fn what_came_after_a_list_is_not_undone_by_it() {
        let inbox = Inbox::default();
        let ((old, object), (new, later)) = (namespace("old"), namespace("new"));
        inbox.upsert(old.clone(), object, None);
        let mut listed = Listed::default();
        listed.insert(&old);
        inbox.listed(Kind::Namespace, listed);
        inbox.upsert(new.clone(), later, None);
        inbox.delete(old.clone());
        let changes = inbox.take();
        let [(Kind::Namespace, listed)] = &changes.listed[..] else { panic!("{changes:?}") };
        assert!(listed.contains(&new) && !listed.contains(&old));
    }

    #[test]
    fn what_cannot_be_read_keeps_what_was_read_and_is_told() {
        let inbox = Inbox::default();
        let (name, object) = namespace("a");
        inbox.upsert(name.clone(), object.clone(), None);
        inbox.take();
        inbox.upsert(name.clone(), None, Some("metadata.labels: a list".to_owned()));
        let changes = inbox.take();
        assert!(changes.events.is_empty() && changes.errors[0].place == "Namespace a", "{changes:?}");
        inbox.upsert(name, object, None);
        assert!(inbox.take().errors.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_lists_anew_has_no_news_until_the_list_is_whole() {
        let inbox = Inbox::default();
        let stale = |inbox: &Inbox| {
            let watches = inbox.take().watches;
            watches.iter().find(|watch| watch.kind == "Node").unwrap().failing_seconds
        };
        let pass = || tokio::time::advance(Duration::from_secs(30));
        inbox.state(Kind::Node, State::Listing, None);
        pass().await;
        assert_eq!(stale(&inbox), 0, "the first one is waited for otherwise");
        inbox.listed(Kind::Node, Listed::default());
        inbox.state(Kind::Node, State::Watching, None);
        // Again and again, of a list that the server forgets before its end.
        for round in 1..4 {
            inbox.state(Kind::Node, State::Listing, None);
            pass().await;
            assert_eq!(stale(&inbox), round * 60 - 30);
            inbox.state(Kind::Node, State::Failing, Some("busy".to_owned()));
            pass().await;
        }
        inbox.state(Kind::Node, State::Watching, None);
        assert_eq!(stale(&inbox), 0);
    }

    #[test]
    fn it_is_complete_when_every_kind_was_listed() {
        let inbox = Inbox::default();
        for kind in Kind::ALL {
            assert!(inbox.take().incomplete);
            inbox.listed(kind, Listed::default());
        }
        assert!(!inbox.take().incomplete && inbox.missing().is_empty());
        inbox.state(Kind::Pod, State::Failing, Some("no answer".to_owned()));
        let changes = inbox.take();
        assert!(!changes.incomplete, "what was read stays");
        assert_eq!(changes.watches[0].error.as_deref(), Some("no answer"));
        // An object that cannot be read is told for as long as it is there; a watch has its own state.
        assert!(changes.errors.is_empty(), "{changes:?}");
    }
}
