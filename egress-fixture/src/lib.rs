//! A Kubernetes API server inside the test.
//!
//! It knows only what it was taught, and each rule it was taught is one of the real server's, named where it stands. What it
//! was not taught it refuses. It can be told to fail in the ways that real servers, networks and proxies fail.
//!
//! Tests talk to it over a socket ([`Fixture::client`]) or, where they stop the clock, without one
//! ([`Fixture::client_without_socket`]): tokio's stopped clock runs on by itself while only sockets are waited for.
//!
//! Invariant: two clients that ask the same get the same, and every change is told to every watch once, unless a fault was
//! set up. Held by `tests/`, which asks with kube's own client.

mod answer;
mod fault;
mod read;
mod resources;
mod serve;
mod state;
mod store;
mod validate;
mod watch;
mod write;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use serde_json::{Value, json};

pub use answer::Failure;
pub use fault::{Fault, Standing, Verb};
pub use resources::{RESOURCES, Resource, resource};
use serve::Server;
use state::{Command, Shared, State, definition_key, definitions};
pub use state::{Recorded, Settings, StreamingLists};
use store::{Change, Key};

/// How long [`Fixture::until`] and its like wait before they fail the test.
const PATIENCE: Duration = Duration::from_mins(1);

/// The server. It ends when it is dropped.
pub struct Fixture {
    shared: Arc<Shared>,
    server: Server,
}

impl Fixture {
    /// Starts on a free port of 127.0.0.1. The definition of EgressGatewayPolicy is installed, and the namespaces
    /// `default`, `kube-system` and `egress-enforcer` are there.
    ///
    /// # Errors
    /// There is no free port.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(Settings::default())
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// There is no free port.
    pub fn start_with(settings: Settings) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::new(settings));
        let server = Server::start(&shared)?;
        let fixture = Self { shared, server };
        fixture.install_definition();
        for name in ["default", "kube-system", "egress-enforcer"] {
            let namespace = json!({ "metadata": { "labels": { "kubernetes.io/metadata.name": name } } });
            fixture.apply("namespaces", "", name, &namespace);
        }
        Ok(fixture)
    }

    /// Where it listens, as in `http://127.0.0.1:40000`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// A client over a socket, with kube's usual layers but for its own retries.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn client(&self) -> anyhow::Result<kube::Client> {
        let mut config = kube::Config::new(self.url().parse().context("the fixture's URL")?);
        config.default_retry = false;
        Ok(kube::Client::try_from(config)?)
    }

    /// A client without a socket, for tests with a stopped clock. A request to a server that is down is refused, and one
    /// whose connection is closed fails, as over a socket; kube's layers are not there.
    #[must_use]
    pub fn client_without_socket(&self) -> kube::Client {
        serve::client(&self.shared)
    }

    /// Changes the settings, for requests from now on.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.shared.lock().settings);
        self.shared.tell();
    }

    // Objects.

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.shared.lock());
        self.shared.tell();
        result
    }

    /// Puts an object there, new or in place of the one with its name, whatever is in it: nothing is checked, and parts that
    /// only the server sets in a real one, such as `status` or `deletionTimestamp`, are taken as given. A UID and a creation
    /// time are made where there are none. Nothing happens where nothing changes. Gives the resource version.
    pub fn apply(&self, of: &str, namespace: &str, name: &str, object: &Value) -> u64 {
        let (of, key) = (resource(of), key(namespace, name));
        self.change(|state| {
            match state.store.get(of, &key) {
                Some(old) => {
                    state.store.replace(of, key, &old, object.clone());
                }
                None => {
                    // There is none of the name.
                    let _ = state.store.create(of, key, object.clone());
                    state.follow(of, Change::Added, name);
                }
            }
            state.store.version
        })
    }

    /// Puts a whole manifest there, by its `metadata`.
    pub fn apply_manifest(&self, of: &str, object: &Value) -> u64 {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        self.apply(of, text("namespace"), text("name"), object)
    }

    /// Changes an object that is there; tells whether it was.
    pub fn edit(&self, of: &str, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) -> bool {
        let (of, key) = (resource(of), key(namespace, name));
        self.change(|state| {
            let Some(old) = state.store.get(of, &key) else {
                return false;
            };
            let mut new = old.clone();
            edit(&mut new);
            state.store.replace(of, key, &old, new);
            true
        })
    }

    /// Takes an object away; tells whether it was there.
    pub fn delete(&self, of: &str, namespace: &str, name: &str) -> bool {
        let (of, key) = (resource(of), key(namespace, name));
        self.change(|state| {
            let gone = state.store.delete(of, &key).is_ok();
            if gone {
                state.follow(of, Change::Deleted, name);
            }
            gone
        })
    }

    /// An object, without `kind` and `apiVersion`.
    #[must_use]
    pub fn get(&self, of: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.lock().store.get(resource(of), &key(namespace, name))
    }

    /// Every object of a resource, in the order of namespace and name.
    #[must_use]
    pub fn all(&self, of: &str) -> Vec<Value> {
        let state = self.shared.lock();
        let objects = &state.store.shelf(resource(of)).objects;
        objects.values().filter_map(|text| serde_json::from_slice(text).ok()).collect()
    }

    /// Installs the definition of EgressGatewayPolicy; without one its paths are not served.
    pub fn install_definition(&self) {
        let policies = resource("egressgatewaypolicies");
        let (_, name) = definition_key(policies);
        let definition = json!({ "spec": {
            "group": policies.group,
            "names": { "kind": policies.kind, "plural": policies.plural },
            "scope": "Cluster",
        } });
        self.change(|state| {
            // What a new definition serves has no history.
            let version = state.store.version;
            state.store.shelf_mut(policies).forget(version);
        });
        self.apply(definitions().plural, "", &name, &definition);
    }

    /// Takes the definition away, with all its objects; watches of them end.
    pub fn remove_definition(&self) {
        self.delete(definitions().plural, "", &definition_key(resource("egressgatewaypolicies")).1);
    }

    // History.

    /// The last resource version given out.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.lock().store.version
    }

    /// Gives out no resource version below this one any more.
    pub fn skip_to_version(&self, version: u64) {
        self.change(|state| state.store.version = state.store.version.max(version));
    }

    /// Forgets history: a watch from before now is too old, and so are pages of lists that began before.
    pub fn forget_history(&self) {
        self.change(|state| state.store.forget());
    }

    /// Bounds the history of each resource from now on.
    pub fn keep_history(&self, entries: usize) {
        self.change(|state| state.store.window = entries);
    }

    // Life.

    /// Closes every connection and refuses new ones, until [`start_again`](Self::start_again). Objects can be changed
    /// meanwhile.
    ///
    /// # Errors
    /// The port cannot be kept.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.change(|state| {
            state.down = true;
            for watch in state.watches.values() {
                let _ = watch.commands.send(Command::Cut);
            }
        });
        self.server.down().await
    }

    /// Listens again, on the same port. The history is gone, as a new process' watch cache has none; resource versions
    /// go on.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.server.up(&self.shared)?;
        self.change(|state| {
            state.store.forget();
            state.down = false;
        });
        Ok(())
    }

    // Faults.

    /// Sets up a fault for requests of a resource: `pods`, `nodes/status` for the part alone, `*` for all. Of several faults
    /// the one that was set up first strikes.
    pub fn fault(&self, of: &str, verbs: &[Verb], fault: Fault) -> Standing {
        self.add(Standing::new(of, verbs, fault, None))
    }

    /// The same, for so many requests.
    pub fn fault_times(&self, of: &str, verbs: &[Verb], fault: Fault, times: usize) -> Standing {
        self.add(Standing::new(of, verbs, fault, Some(times)))
    }

    fn add(&self, fault: Standing) -> Standing {
        self.shared.lock().faults.push(fault.clone());
        fault
    }

    /// Lifts every fault.
    pub fn lift_faults(&self) {
        for fault in self.shared.lock().faults.drain(..) {
            fault.lift();
        }
    }

    /// Tells the standing watches of a resource something; gives how many there are.
    fn tell(&self, of: &str, command: &Command) -> usize {
        let of = resource(of);
        let state = self.shared.lock();
        let watches = state.watches.values().filter(|watch| watch.resource == of);
        watches.filter(|watch| watch.commands.send(command.clone()).is_ok()).count()
    }

    /// Breaks off the watches that stand.
    pub fn cut_watches(&self, of: &str) -> usize {
        self.tell(of, &Command::Cut)
    }

    /// Breaks them off in the middle of a line.
    pub fn cut_watches_inside(&self, of: &str) -> usize {
        self.tell(of, &Command::CutInside)
    }

    /// Ends them well, as when their time is over.
    pub fn end_watches(&self, of: &str) -> usize {
        self.tell(of, &Command::End)
    }

    /// Has them say nothing any more, with their connections open.
    pub fn stall_watches(&self, of: &str) -> usize {
        self.tell(of, &Command::Stall)
    }

    /// Has stalled watches go on from where they were.
    pub fn resume_watches(&self, of: &str) -> usize {
        self.tell(of, &Command::Resume)
    }

    /// Has them say these bytes.
    pub fn say_in_watches(&self, of: &str, bytes: impl Into<Bytes>) -> usize {
        self.tell(of, &Command::Raw(bytes.into()))
    }

    /// Has them say that something failed, as with 410 when history has gone on without them.
    pub fn fail_watches(&self, of: &str, failure: &Failure) -> usize {
        self.tell(of, &Command::Raw(watch::error(failure)))
    }

    /// Has them say a bookmark now.
    pub fn bookmark_watches(&self, of: &str) -> usize {
        self.tell(of, &Command::Bookmark)
    }

    // What was asked.

    /// Every request since the start, or since they were forgotten.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.lock().requests.clone()
    }

    /// Those of a resource and verb.
    #[must_use]
    pub fn requests_of(&self, of: &str, verb: Verb) -> Vec<Recorded> {
        let takes = |one: &&Recorded| one.resource == of && one.verb == Some(verb);
        self.shared.lock().requests.iter().filter(takes).cloned().collect()
    }

    /// Forgets them.
    pub fn forget_requests(&self) {
        self.shared.lock().requests.clear();
    }

    /// Watches of a resource that stand.
    #[must_use]
    pub fn watches(&self, of: &str) -> usize {
        let of = resource(of);
        self.shared.lock().watches.values().filter(|watch| watch.resource == of).count()
    }

    /// Waits until so many watches of a resource stand.
    ///
    /// # Panics
    /// They do not come to.
    pub async fn until_watches(&self, of: &str, number: usize) {
        let of = resource(of);
        let what = format!("{number} watches of {}", of.plural);
        self.until_state(&what, |state| {
            state.watches.values().filter(|watch| watch.resource == of).count() == number
        })
        .await;
    }

    /// Waits until so many requests of a resource and verb have come, or more.
    ///
    /// # Panics
    /// They do not come.
    pub async fn until_requests(&self, of: &str, verb: Verb, number: usize) {
        let what = format!("{number} times {} {of}", verb.name());
        self.until_state(&what, |state| {
            let takes = |one: &&Recorded| one.resource == of && one.verb == Some(verb);
            state.requests.iter().filter(takes).count() >= number
        })
        .await;
    }

    /// Waits until an object is as it should be; `None` where there is none.
    ///
    /// # Panics
    /// It does not come to be.
    pub async fn until(&self, of: &str, namespace: &str, name: &str, holds: impl Fn(Option<&Value>) -> bool) {
        let (resource, key) = (resource(of), key(namespace, name));
        let what = format!("{of} {namespace}/{name}");
        self.until_state(&what, |state| holds(state.store.get(resource, &key).as_ref())).await;
    }

    async fn until_state(&self, what: &str, mut holds: impl FnMut(&mut State) -> bool) {
        let come = self.shared.wait(|state| holds(state).then_some(()));
        let waited = tokio::time::timeout(PATIENCE, come).await;
        assert!(waited.is_ok(), "waited {} s for {what}", PATIENCE.as_secs());
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}
