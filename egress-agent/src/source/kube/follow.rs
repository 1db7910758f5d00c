//! Follows one kind: everything once, then each change from there on.
//!
//! Invariant: a list counts when it is complete, and not when it is older than what is known; a watch goes on from the last version
//! that was taken in whole, and only where the server has forgotten that version everything is listed anew.
//!
//! Everything is asked for as a streaming list (`sendInitialEvents`, Kubernetes 1.32 on), and in pages where the server has none.
//! kube's own watcher is not used: it takes a stream of garbage for one without events, asks for streaming lists of any age
//! (`resourceVersion=0`), and does not tell a kind that is not installed from an error.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use egress_policy::object::Kind;
use futures::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};
use kube::Client;
use kube::api::{ListParams, Request, WatchParams};
use tokio::time::{Instant, timeout};

use super::connect::Connector;
use super::inbox::{Inbox, State};
use super::stop::{DEFINITION, Stop, meaning, path, resource, silent};
use super::wire::{self, Event};
use crate::chance::{jittered, random};
use crate::source::Listed;

/// Objects of a page: those of a tenant may have more than a MiB each, and a page is held as a whole.
const PAGE: u32 = 100;
/// The same, where the server forgot what it was listing before it came to the end: it keeps that for five minutes
/// (`--etcd-compaction-interval`). After these there is no limit, as in `client-go` (`FullListIfExpired` of its pager).
const LARGE: u32 = 1000;
/// And where these were too many still.
const HUGE: u32 = 10_000;
/// How long the server is asked to keep a watch open, in seconds: this, and up to as much again by chance, as
/// `client-go` does (`minWatchTimeout` of its reflector). Otherwise all agents would ask for all watches at once again
/// for ever after each start of the server.
const WATCH: u32 = 300;
/// Longest line of a watch. The API server's own limit for an object is 3 MiB.
const LINE: u64 = 16 << 20;
/// How often the same version may be followed by what is not understood, before everything is listed anew.
const PATIENCE: u32 = 3;
/// How often a streaming list may end half-way, before pages are asked for.
const HALVES: u32 = 2;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// An answer to a list, or the start of a watch.
    pub(super) answer: Duration,
    /// A watch that says nothing. Servers send bookmarks about every minute.
    pub(super) silence: Duration,
    /// A watch that ends sooner has brought nothing: the next one waits.
    pub(super) brief: Duration,
    /// An older state than what is known is refused. A cluster that was restored from a backup stays older.
    pub(super) older: Duration,
    /// Between looks for a kind that is not installed, at first; up to half as long again by chance.
    pub(super) installed: Duration,
    /// The same, where it stays away: every agent of a cluster without it asks for ever.
    pub(super) away: Duration,
    /// The longest wait after failures.
    pub(super) wait: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(60),
            silence: Duration::from_secs(150),
            brief: Duration::from_secs(5),
            older: Duration::from_secs(60),
            installed: Duration::from_secs(5),
            away: Duration::from_secs(20),
            wait: Duration::from_secs(15),
        }
    }
}

fn backoff(longest: Duration) -> ExponentialBackoff {
    let builder = ExponentialBuilder::new().with_min_delay(Duration::from_millis(250)).with_factor(2.0);
    builder.with_max_delay(longest).without_max_times().with_jitter().build()
}

/// A version as a number, by which they can be compared (Kubernetes 1.35 says so of all its own); 0 where it is none.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

/// Follows a kind for as long as it is polled.
pub(super) async fn follow(kind: Kind, timing: Timing, connector: Arc<Connector>, inbox: Arc<Inbox>) {
    let mut follower = Follower::new(kind, timing, inbox);
    let mut waits = backoff(timing.wait);
    let mut garbage = 0;
    let (mut unreachable, mut look) = (None, timing.installed);
    loop {
        let (started, version) = (Instant::now(), follower.version.clone());
        let stop = match connector.client().await {
            Ok((client, number)) => {
                let stop = follower.run(&client).await;
                let since = match &stop {
                    Err(Stop::Unreachable(_)) => *unreachable.get_or_insert(started),
                    _ => {
                        unreachable = None;
                        Instant::now()
                    }
                };
                // Its address, or who signs for it, may be another by now.
                let elsewhere = since.elapsed() > timing.older;
                if elsewhere || matches!(stop, Err(Stop::Refused(_))) {
                    unreachable = None;
                    connector.refused(number).await;
                }
                stop
            }
            Err(error) => Err(Stop::Failed(format!("{error:#}"))),
        };
        if !matches!(stop, Err(Stop::NotInstalled)) {
            (follower.absent, look) = (None, timing.installed);
        }
        let wait = match stop {
            // The server ends watches from time to time.
            Ok(()) if started.elapsed() > timing.brief => Duration::ZERO,
            Ok(()) => waits.next().unwrap_or_default(),
            Err(Stop::NoStreaming) => {
                follower.streaming = false;
                continue;
            }
            Err(Stop::NotInstalled) => {
                let wait = jittered(look);
                if follower.not_installed() {
                    look = (look * 2).min(timing.away);
                }
                wait
            }
            Err(Stop::Gone) => {
                tracing::info!(%kind, "listing anew: the API server does not keep the version that was read last");
                follower.version = None;
                follower.inbox.state(kind, State::Listing, None);
                waits.next().unwrap_or_default()
            }
            Err(stop) => {
                garbage = match stop {
                    Stop::Garbage(_) if follower.version == version => garbage + 1,
                    _ => 0,
                };
                if garbage >= PATIENCE {
                    (follower.version, garbage) = (None, 0);
                }
                let reason = format!("{stop}; trying again");
                follower.inbox.state(kind, State::Failing, Some(reason));
                let wait = waits.next().unwrap_or_default();
                if let Stop::Busy(_, asked) = stop { wait.max(asked) } else { wait }
            }
        };
        // Whoever brings something new is not waited for longer and longer.
        if started.elapsed() > timing.brief || (follower.version.is_some() && follower.version != version) {
            waits = backoff(timing.wait);
        }
        tokio::time::sleep(wait).await;
    }
}

struct Follower {
    kind: Kind,
    timing: Timing,
    inbox: Arc<Inbox>,
    /// Up to which everything was taken in.
    version: Option<String>,
    /// Whether the server may have streaming lists.
    streaming: bool,
    /// Streaming lists that ended half-way, since the last whole one.
    halves: u32,
    /// Objects of the next page, where they are limited.
    page: Option<u32>,
    /// The highest version seen.
    newest: u64,
    /// Since when lists have been older than that.
    older: Option<Instant>,
    /// Since when every answer has been that the kind is not installed: one blip after another must not add up.
    absent: Option<Instant>,
}

impl Follower {
    fn new(kind: Kind, timing: Timing, inbox: Arc<Inbox>) -> Self {
        Self {
            kind,
            timing,
            inbox,
            version: None,
            streaming: true,
            halves: 0,
            page: Some(PAGE),
            newest: 0,
            older: None,
            absent: None,
        }
    }

    async fn run(&mut self, client: &Client) -> Result<(), Stop> {
        match self.version.clone() {
            Some(version) => self.watch(client, &version, None).await,
            None if self.streaming && self.halves < HALVES => {
                // Nothing that is older than what is known, unless the cluster stays older.
                let older = self.older.is_some_and(|since| since.elapsed() >= self.timing.older);
                let least = if self.newest == 0 || older { String::new() } else { self.newest.to_string() };
                let stop = self.watch(client, &least, Some(Listed::default())).await;
                // A server may be unable to stream what it can list: the next but one is asked for pages.
                if self.version.is_none()
                    && matches!(stop, Err(Stop::Failed(_) | Stop::Busy(..) | Stop::Garbage(_)))
                {
                    self.halves += 1;
                }
                stop
            }
            None => {
                let mut more = None;
                let done = self.pages(client, &mut more).await;
                self.page = match (&done, self.page) {
                    (Ok(()), _) => Some(PAGE),
                    (Err(Stop::Gone), Some(PAGE)) if more.is_some() => Some(LARGE),
                    (Err(Stop::Gone), Some(LARGE)) if more.is_some() => Some(HUGE),
                    (Err(Stop::Gone), Some(_)) if more.is_some() => None,
                    // Everything at once may be too much for it as well.
                    (Err(_), None) => Some(LARGE),
                    (Err(_), page) => page,
                };
                done?;
                let version = self.version.clone().unwrap_or_default();
                self.watch(client, &version, None).await
            }
        }
    }

    /// The kind is not installed; tells whether that counts. Where it was, it has to last: all its objects go with it.
    fn not_installed(&mut self) -> bool {
        let since = *self.absent.get_or_insert_with(Instant::now);
        if self.newest > 0 && since.elapsed() < self.timing.older {
            let reason = format!(
                "{DEFINITION} is not installed any more; those of its policies that were not deleted with it count for a minute"
            );
            self.inbox.state(self.kind, State::Failing, Some(reason));
            return false;
        }
        (self.version, self.newest) = (None, 0);
        self.inbox.listed(self.kind, Listed::default());
        let reason = format!(
            "the cluster has no {}: only NetworkPolicies count until deploy/crd is applied",
            resource(self.kind).0
        );
        self.inbox.state(self.kind, State::NotInstalled, Some(reason));
        true
    }

    /// Takes in everything, page by page; `next` is where the next one begins.
    async fn pages(&mut self, client: &Client, next: &mut Option<String>) -> Result<(), Stop> {
        let request = Request::new(path(self.kind));
        let mut listed = Listed::default();
        loop {
            let (limit, continue_token) = (self.page, next.clone());
            let params = ListParams { limit, continue_token, ..ListParams::default() };
            let request = request.list(&params).map_err(|error| Stop::Failed(error.to_string()))?;
            let answer = timeout(self.timing.answer, client.request_text(request)).await;
            let text = match answer {
                Ok(Ok(text)) => text,
                Ok(Err(error)) => {
                    return Err(meaning(self.kind, client, "list", error, self.timing.answer).await);
                }
                Err(_) => return Err(silent(self.kind, "list")),
            };
            let page = wire::page(&text)?;
            self.not_older(page.metadata.resource_version.as_deref().unwrap_or_default())?;
            for item in page.items.into_iter().flatten() {
                let arrived = wire::arrived(self.kind, item)?;
                listed.insert(&arrived.name);
                self.inbox.upsert(arrived.name, arrived.object, arrived.error);
            }
            *next = page.metadata.r#continue.filter(|token| !token.is_empty());
            if next.is_none() {
                let version = page.metadata.resource_version.unwrap_or_default();
                return self.listed(listed, version);
            }
        }
    }

    /// A list is complete.
    fn listed(&mut self, listed: Listed, version: String) -> Result<(), Stop> {
        if version.is_empty() || version == "0" {
            return Err(Stop::Failed(format!("the list of {}s has no version", self.kind)));
        }
        self.not_older(&version)?;
        (self.older, self.halves) = (None, 0);
        self.newest = number(&version);
        self.inbox.listed(self.kind, listed);
        self.inbox.state(self.kind, State::Watching, None);
        self.version = Some(version);
        Ok(())
    }

    /// Refuses a list of an older state than what is known, for a while.
    fn not_older(&mut self, version: &str) -> Result<(), Stop> {
        if number(version) >= self.newest {
            return Ok(());
        }
        let since = *self.older.get_or_insert_with(Instant::now);
        if since.elapsed() < self.timing.older {
            return Err(Stop::Failed(format!(
                "the API server told an older state of {}s ({version} after {})",
                self.kind, self.newest
            )));
        }
        tracing::warn!(kind = %self.kind, version, "the API server's state stays older: taking it");
        Ok(())
    }

    /// Follows changes from a version on, or, with `listing`, everything first.
    async fn watch(
        &mut self,
        client: &Client,
        version: &str,
        mut listing: Option<Listed>,
    ) -> Result<(), Stop> {
        let params = WatchParams {
            send_initial_events: listing.is_some(),
            timeout: Some(WATCH + u32::try_from(random() % u64::from(WATCH)).unwrap_or(0)),
            ..WatchParams::default()
        };
        let request = Request::new(path(self.kind)).watch(&params, version);
        let request = request.map_err(|error| Stop::Failed(error.to_string()))?;
        let stream = match timeout(self.timing.answer, client.request_stream(request)).await {
            Ok(Ok(stream)) => stream,
            // How servers without them refuse streaming lists, by version: 422 Invalid, 400 BadRequest.
            Ok(Err(kube::Error::Api(status))) if listing.is_some() && matches!(status.code, 400 | 422) => {
                return Err(Stop::NoStreaming);
            }
            Ok(Err(error)) => {
                return Err(meaning(self.kind, client, "watch", error, self.timing.answer).await);
            }
            Err(_) => return Err(silent(self.kind, "watch")),
        };
        if listing.is_none() {
            self.inbox.state(self.kind, State::Watching, None);
        }
        let mut stream = std::pin::pin!(stream);
        let mut line = Vec::new();
        while self.line(&mut stream, &mut line).await? {
            match wire::event(self.kind, &line)? {
                Event::Upsert(arrived) => {
                    let Some(version) = arrived.version else {
                        return Err(Stop::Failed(format!("{} has no version", arrived.name)));
                    };
                    if let Some(listed) = &mut listing {
                        listed.insert(&arrived.name);
                    }
                    self.inbox.upsert(arrived.name, arrived.object, arrived.error);
                    self.reached(listing.as_ref(), version)?;
                }
                Event::Delete(name, version) => {
                    if let Some(listed) = &mut listing {
                        listed.remove(&name);
                    }
                    self.inbox.delete(name);
                    self.reached(listing.as_ref(), version.unwrap_or_default())?;
                }
                Event::Bookmark(version, true) => {
                    if let Some(listed) = listing.take() {
                        self.listed(listed, version)?;
                    }
                }
                Event::Bookmark(version, false) => self.reached(listing.as_ref(), version)?,
                Event::Error(410, _) => return Err(Stop::Gone),
                Event::Error(code, text) => {
                    return Err(Stop::Failed(format!(
                        "the API server ended the watch of {}s: {code} {text}",
                        self.kind
                    )));
                }
            }
        }
        match listing {
            Some(_) => Err(Stop::Failed(format!("the list of {}s ended half-way", self.kind))),
            None => Ok(()),
        }
    }

    /// Everything up to a version was taken in, where it was not a part of a list. Versions that go back are those of another history.
    fn reached(&mut self, listing: Option<&Listed>, version: String) -> Result<(), Stop> {
        if listing.is_some() || version.is_empty() {
            return Ok(());
        }
        match number(&version) {
            0 => {}
            reached if reached < self.newest => return Err(Stop::Gone),
            reached => self.newest = reached,
        }
        self.version = Some(version);
        Ok(())
    }

    /// Reads a line; `false` at the end of the stream, where half a line does not count.
    async fn line(&self, stream: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> Result<bool, Stop> {
        line.clear();
        let mut bounded = stream.take(LINE);
        let Ok(read) = timeout(self.timing.silence, bounded.read_until(b'\n', line)).await else {
            return Ok(false);
        };
        match read {
            Ok(_) if line.last() == Some(&b'\n') => Ok(true),
            Ok(_) if line.len() as u64 >= LINE => {
                Err(Stop::Failed("a line of a watch is too long".to_owned()))
            }
            // The connection went; what was not whole is told again.
            Ok(_) | Err(_) => Ok(false),
        }
    }
}
