//! What all requests share: the store, the faults, the settings, the watches that stand, and what was asked.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::answer::Failure;
use crate::fault::{Fault, Standing, Verb};
use crate::resources::{Resource, resource};
use crate::store::{Change, Store};

/// What a server knows of streaming lists (`sendInitialEvents`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamingLists {
    /// It has them: 1.32, and from 1.34 on.
    On,
    /// It could have them: 1.27 to 1.31, and 1.33. The gate `WatchList` is off.
    GateOff,
    /// It has never heard of them: up to 1.26.
    Unknown,
}

/// What differs between servers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Streaming lists.
    pub streaming_lists: StreamingLists,
    /// Whether a watch from too far back is answered with HTTP 410, and not with a stream that says so.
    pub gone_as_answer: bool,
    /// Whether what nobody serves is answered with a Status, and not with plain text.
    pub newer_not_found: bool,
    /// How often watches get bookmarks (`defaultBookmarkFrequency`: a minute).
    pub bookmarks: Duration,
    /// How long a watch stands that asks for no time of its own (`minRequestTimeout`: half an hour and more).
    pub watches: Duration,
    /// The token that requests need, where they need one.
    pub token: Option<String>,
    /// Whom messages name.
    pub user: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            streaming_lists: StreamingLists::On,
            gone_as_answer: false,
            newer_not_found: false,
            bookmarks: Duration::from_mins(1),
            watches: Duration::from_mins(30),
            token: None,
            user: "system:serviceaccount:egress-enforcer:egress-agent".to_owned(),
        }
    }
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// GET and so on.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query.
    pub query: BTreeMap<String, String>,
    /// The body, where it is JSON.
    pub body: Value,
    /// The media type of the body.
    pub content_type: String,
    /// The plural of the resource, where the path names one.
    pub resource: String,
    /// What it does, where the path names a resource.
    pub verb: Option<Verb>,
}

/// What a standing watch is told to do.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Break off.
    Cut,
    /// Break off in the middle of a line.
    CutInside,
    /// End well.
    End,
    /// Say these bytes.
    Raw(Bytes),
    /// Say nothing any more.
    Stall,
    /// Go on after that, from where it was.
    Resume,
    /// Send a bookmark.
    Bookmark,
}

pub(crate) struct Standee {
    pub resource: &'static Resource,
    pub commands: mpsc::UnboundedSender<Command>,
}

#[derive(Default)]
pub(crate) struct State {
    pub store: Store,
    pub settings: Settings,
    pub faults: Vec<Standing>,
    pub requests: Vec<Recorded>,
    pub watches: BTreeMap<u64, Standee>,
    pub begun: u64,
    pub down: bool,
}

impl State {
    /// The fault that strikes a request.
    pub(crate) fn fault(&mut self, resource: &Resource, status: bool, verb: Verb) -> Option<Fault> {
        let name = if resource.group.is_empty() && resource.plural == "events" {
            "corev1events"
        } else {
            resource.plural
        };
        self.faults.iter().find_map(|fault| fault.strike(name, status, verb))
    }

    /// Whether a resource is served: a custom one has a definition.
    pub(crate) fn serves(&self, resource: &Resource) -> bool {
        !resource.custom || self.store.shelf(definitions()).objects.contains_key(&definition_key(resource))
    }

    /// What follows from a change. Without its definition a custom resource's objects go, and its watches end
    /// (`apiextensions-apiserver/pkg/controller/finalizer`, `customresource_handler.go`).
    pub(crate) fn follow(&mut self, resource: &Resource, change: Change, name: &str) {
        if resource != definitions() || change != Change::Deleted {
            return;
        }
        let gone = crate::resources::RESOURCES.iter().filter(|one| one.custom && one.qualified() == name);
        for resource in gone {
            let keys: Vec<_> = self.store.shelf(resource).objects.keys().cloned().collect();
            for key in keys {
                let _ = self.store.delete(resource, &key);
            }
            for watch in self.watches.values().filter(|watch| watch.resource == resource) {
                let _ = watch.commands.send(Command::End);
            }
        }
    }
}

/// The resource of definitions.
pub(crate) fn definitions() -> &'static Resource {
    resource("customresourcedefinitions")
}

pub(crate) fn definition_key(resource: &Resource) -> (String, String) {
    (String::new(), resource.qualified())
}

/// The state, and being told that it changed.
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(settings: Settings) -> Self {
        let state = Mutex::new(State { settings, ..State::default() });
        Self { state, changed: watch::channel(0).0 }
    }

    /// The state. Never kept over an `await`.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits to look again.
    pub(crate) fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Does something to the state, and tells everybody.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let result = change(&mut self.lock());
        self.tell();
        result
    }

    /// Waits until something holds.
    pub(crate) async fn wait<T>(&self, mut holds: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if let Some(found) = holds(&mut self.lock()) {
                return found;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }
}
