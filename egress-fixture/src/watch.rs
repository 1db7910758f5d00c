//! Watches: what they begin with, what they say, and how they end.
//!
//! Invariant: a watch says every change after the version it began at, once and in order, unless a fault says otherwise; it
//! ends when it cannot. After "Efficient detection of changes" in the API concepts of kubernetes.io, and `Cacher.Watch`
//! (`apiserver/pkg/storage/cacher/cacher.go`). Held by `tests/watch.rs`.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream;
use http::{Response, header};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::answer::{Answer, Failure, body};
use crate::fault::Fault;
use crate::read::{Filter, Query, fresh, version};
use crate::resources::{Path, Resource};
use crate::state::{Command, Shared, Standee, StreamingLists};
use crate::store::with_kind;

/// How long before its end a watch gets its last bookmark (`bookmarkFrequency`, `nextBookmarkTime`).
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What `validateWatchOptions` refuses.
fn validate(query: &Query, lists: StreamingLists) -> Result<(), Failure> {
    let given = |name: &str| query.get(name).map_or("", String::as_str);
    let of_match = given("resourceVersionMatch");
    let initial = query.contains_key("sendInitialEvents");
    let mut errors = Vec::new();
    let mut forbidden = |field, text: &str| errors.push((field, "Forbidden", text.to_owned()));
    let field = "resourceVersionMatch";
    if lists == StreamingLists::Unknown {
        // Fields of a query that are not known are passed over; the other one was forbidden for every watch.
        if !of_match.is_empty() {
            forbidden(field, "resourceVersionMatch is forbidden for watch");
            if given("resourceVersion").is_empty() {
                forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
        }
    } else {
        if initial && of_match != "NotOlderThan" {
            forbidden(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if initial && lists == StreamingLists::GateOff {
            forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            );
        }
        if !of_match.is_empty() && !initial {
            forbidden(
                field,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if !of_match.is_empty() && of_match != "NotOlderThan" {
            errors.push((
                field,
                "NotSupported",
                format!("\"{of_match}\": supported values: \"NotOlderThan\""),
            ));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid("ListOptions", "meta.k8s.io", "", &errors))
}

/// Answers a watch, spoiled by a fault or not.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    path: &Path<'_>,
    query: &Query,
    fault: Option<&Fault>,
) -> Result<Answer, Failure> {
    let settings = shared.lock().settings.clone();
    validate(query, settings.streaming_lists)?;
    let filter = Filter::new(path, query)?;
    let asked = version(query)?;
    let given = |name: &str| query.get(name).map_or("", String::as_str);
    let flag = |name: &str| matches!(given(name), "true" | "1");
    let initial =
        settings.streaming_lists != StreamingLists::Unknown && query.contains_key("sendInitialEvents");
    let streaming = initial && flag("sendInitialEvents");
    let stands = match given("timeoutSeconds").parse() {
        Ok(0) | Err(_) => settings.watches,
        Ok(seconds) => Duration::from_secs(seconds),
    };
    let bookmarks = flag("allowWatchBookmarks");
    let stale = match fault {
        Some(Fault::Stale(version)) => Some(*version),
        _ => None,
    };
    let late = match (asked, stale) {
        // A replica that lags behind does not get there in time.
        (Some(version), Some(stale)) if streaming && version > stale => {
            Some(Failure::too_large(version, stale))
        }
        (Some(version), _) if streaming => fresh(shared, version).await.err(),
        _ => None,
    };
    // Without a version, or with any, a watch begins with everything that is there.
    let everything = streaming || (!initial && asked.unwrap_or(0) == 0);

    let mut queue = VecDeque::new();
    let (commands, received) = mpsc::unbounded_channel();
    let changes = shared.changes();
    let resource = path.resource;
    let (cursor, id) = {
        let mut state = shared.lock();
        let shelf = state.store.shelf(resource);
        let now = state.store.version;
        let mut cursor = asked.filter(|version| *version > 0).unwrap_or(now);
        let mut ends = false;
        if let Some(failure) = late {
            queue.push_back(error(&failure));
            ends = true;
        } else if everything {
            cursor = stale.unwrap_or(now);
            let old;
            let objects = if shelf.unchanged_since(cursor) {
                &shelf.objects
            } else {
                old = shelf.at(cursor).ok_or_else(|| Failure::too_old(cursor, shelf.oldest))?;
                &old
            };
            let found = objects.iter().filter(|(key, _)| filter.takes(key));
            queue.extend(found.map(|(_, text)| event("ADDED", &with_kind(resource, text))));
            if streaming && bookmarks {
                queue.push_back(bookmark(resource, cursor, true));
            }
        } else if let Err(failure) = shelf.since(cursor).map(|_| ()) {
            if settings.gone_as_answer {
                return Err(failure);
            }
            // Whatever goes wrong from here on is said by the stream (`newErrWatcher`).
            queue.push_back(error(&failure));
            ends = true;
        }
        let id = state.begun;
        state.begun += 1;
        if ends {
            let _ = commands.send(Command::End);
        }
        state.watches.insert(id, Standee { resource, commands });
        (cursor, id)
    };
    shared.tell();
    let now = Instant::now();
    let standing = Standing {
        watch: Guard { shared: Arc::clone(shared), id },
        resource,
        filter,
        cursor,
        queue,
        changes,
        commands: received,
        ends: now + stands,
        next_bookmark: bookmarks.then(|| now + settings.bookmarks.min(stands.saturating_sub(LAST_BOOKMARK))),
        every: settings.bookmarks,
        said: 0,
        spoil: fault.cloned(),
        stalled: false,
        ended: None,
    };
    let mut answer = Response::new(body(lines(standing)));
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(answer)
}

/// A line of a watch.
fn event(kind: &str, object: &[u8]) -> Bytes {
    let mut text = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
    text.extend_from_slice(object);
    text.extend_from_slice(b"}\n");
    text.into()
}

pub(crate) fn error(failure: &Failure) -> Bytes {
    event("ERROR", failure.status.to_string().as_bytes())
}

/// A bookmark: an empty object of the kind, with a version. Fields that every object of a Go type has are there; up to 1.33
/// `metadata` had a `creationTimestamp` of null, too.
fn bookmark(resource: &Resource, version: u64, initial_events_end: bool) -> Bytes {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if initial_events_end {
        metadata["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
    }
    let mut object: Value = json!({ "kind": resource.kind, "apiVersion": resource.api_version() });
    object["metadata"] = metadata;
    match resource.plural {
        "pods" => {
            object["spec"] = json!({ "containers": null });
            object["status"] = json!({});
        }
        "endpointslices" => {
            object["addressType"] = "".into();
            object["endpoints"] = Value::Null;
            object["ports"] = Value::Null;
        }
        "networkpolicies" => object["spec"] = json!({ "podSelector": {} }),
        "services" => {
            object["spec"] = json!({});
            object["status"] = json!({ "loadBalancer": {} });
        }
        "nodes" => {
            object["spec"] = json!({});
            object["status"] = json!({
                "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } },
                "nodeInfo": {
                    "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                    "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "",
                    "operatingSystem": "", "architecture": "",
                },
            });
        }
        _ if !resource.custom => object["spec"] = json!({}),
        _ => {}
    }
    event("BOOKMARK", object.to_string().as_bytes())
}

/// Takes the watch off the list, however it ends.
struct Guard {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.lock().watches.remove(&self.id);
        self.shared.tell();
    }
}

enum End {
    Well,
    Broken,
}

struct Standing {
    watch: Guard,
    resource: &'static Resource,
    filter: Filter,
    /// The last version said, or passed over.
    cursor: u64,
    queue: VecDeque<Bytes>,
    changes: watch::Receiver<u64>,
    commands: mpsc::UnboundedReceiver<Command>,
    ends: Instant,
    next_bookmark: Option<Instant>,
    every: Duration,
    /// Lines said.
    said: usize,
    spoil: Option<Fault>,
    stalled: bool,
    ended: Option<End>,
}

fn lines(standing: Standing) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(standing, |mut standing| async move { Some((standing.next().await?, standing)) })
}

impl Standing {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(line) = self.line() {
                return Some(line);
            }
            match self.ended {
                Some(End::Well) => return None,
                Some(End::Broken) => {
                    self.ended = Some(End::Well);
                    return Some(Err(break_off().await));
                }
                None => {}
            }
            self.changes.borrow_and_update();
            if !self.stalled && self.read() {
                continue;
            }
            let bookmark = self.next_bookmark.filter(|_| !self.stalled);
            let forever = Instant::now() + Duration::from_hours(24);
            tokio::select! {
                // What it is told comes first, so that a test knows what it gets.
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => self.ended = Some(End::Broken),
                },
                // The sender is in `Guard::shared`.
                _ = self.changes.changed() => {}
                () = tokio::time::sleep_until(bookmark.unwrap_or(forever)), if bookmark.is_some() => self.bookmark(),
                () = tokio::time::sleep_until(self.ends), if !self.stalled => self.ended = Some(End::Well),
            }
        }
    }

    /// The next line that waits, spoiled where a fault says so.
    fn line(&mut self) -> Option<io::Result<Bytes>> {
        if self.stalled {
            return None;
        }
        let limit = match self.spoil {
            Some(Fault::CutAfter(lines) | Fault::CutInside(lines) | Fault::EndAfter(lines)) => Some(lines),
            _ => None,
        };
        if limit.is_some_and(|limit| self.said >= limit) {
            let spoil = self.spoil.take()?;
            match spoil {
                Fault::CutInside(_) => {
                    // The line that is to be cut may not have come yet.
                    let Some(line) = self.queue.pop_front() else {
                        self.spoil = Some(spoil);
                        return None;
                    };
                    self.queue.clear();
                    self.ended = Some(End::Broken);
                    return Some(Ok(line.slice(..line.len() / 2)));
                }
                Fault::EndAfter(_) => self.ended = Some(End::Well),
                _ => self.ended = Some(End::Broken),
            }
            self.queue.clear();
            return None;
        }
        let line = self.queue.pop_front()?;
        self.said += 1;
        if self.spoil == Some(Fault::Duplicate) {
            return Some(Ok([&line[..], &line[..]].concat().into()));
        }
        Some(Ok(line))
    }

    /// Takes in what happened; tells whether there is anything to say.
    fn read(&mut self) -> bool {
        let state = self.watch.shared.lock();
        let shelf = state.store.shelf(self.resource);
        if let Ok(entries) = shelf.since(self.cursor) {
            for entry in entries {
                self.cursor = entry.version;
                if self.filter.takes(&entry.key) {
                    self.queue.push_back(event(entry.change.name(), &with_kind(self.resource, &entry.text)));
                }
            }
        } else {
            // A watcher that is too slow is ended (`cacheWatcher.add`, `forgetWatcher`).
            self.ended = Some(End::Well);
        }
        !self.queue.is_empty() || self.ended.is_some()
    }

    fn bookmark(&mut self) {
        let version = self.watch.shared.lock().store.version.max(self.cursor);
        self.queue.push_back(bookmark(self.resource, version, false));
        let now = Instant::now();
        let last = self.ends.checked_sub(LAST_BOOKMARK).filter(|last| *last > now);
        let next = now + self.every;
        self.next_bookmark = last.map(|last| next.min(last));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Cut => self.ended = Some(End::Broken),
            Command::CutInside => {
                let line = event("MODIFIED", b"{\"kind\":\"cut off here\"");
                self.queue.push_back(line.slice(..line.len() - 3));
                self.ended = Some(End::Broken);
            }
            Command::End => self.ended = Some(End::Well),
            Command::Raw(bytes) => self.queue.push_back(bytes),
            Command::Stall => self.stalled = true,
            Command::Resume => self.stalled = false,
            Command::Bookmark => self.bookmark(),
        }
    }
}

/// A connection that breaks off in the middle of an answer.
pub(crate) fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF during chunk: the fixture broke off")
}

/// The same once what was said before has left: hyper lets go of what it has not sent when a body fails.
pub(crate) async fn break_off() -> io::Error {
    tokio::time::sleep(Duration::from_millis(20)).await;
    broken()
}
