//! Asking one runtime, for as long as the agent runs.
//!
//! Invariant: a runtime that does not answer is asked less and less often; a container that it does not know is asked for
//! [`TRIES`] times and then left to its pod's status. Tested by `tests/cri/`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{Client, Silent};
use super::{Heard, Told, Wanted, What};

/// How often a container is asked for that the runtime does not know (yet): CRI-O lists it after its cgroup was made.
const TRIES: u32 = 10;
/// How long to wait after the first time; twice as long after each further one.
const FIRST: Duration = Duration::from_millis(10);
/// More containers than these are looked for among all.
const ONE_BY_ONE: usize = 8;
/// How often to look for a socket that is not there, and whether a runtime that is not asked for anything still answers.
const LOOK: Duration = Duration::from_secs(5);
/// How long to wait after errors, at least and at most.
const ERRORS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// A container that was asked for in vain.
#[derive(Clone, Copy, Debug)]
struct Tried {
    times: u32,
    next: Instant,
}

/// Asks the runtime at a socket until nobody wants to know any more.
pub(super) async fn follow(socket: PathBuf, mut wanted: watch::Receiver<Wanted>, tell: mpsc::Sender<Heard>) {
    // Nobody listens any more where this gives nothing.
    let _ = ask(&socket, &mut wanted, &tell).await;
}

async fn ask(
    socket: &Path,
    wanted: &mut watch::Receiver<Wanted>,
    tell: &mpsc::Sender<Heard>,
) -> Option<Infallible> {
    let waits = ExponentialBuilder::default()
        .with_min_delay(ERRORS.0)
        .with_max_delay(ERRORS.1)
        .with_jitter()
        .without_max_times();
    let mut wait = waits.build();
    let mut tried = BTreeMap::new();
    let tell = async |what| tell.send(Heard { socket: socket.to_owned(), what }).await.ok();
    loop {
        let silent = match Client::connect(socket).await {
            Ok((mut client, name)) => {
                // It may be one that knows more than the one before.
                tried.clear();
                let mut name = Some(name);
                loop {
                    let wants = wanted.borrow_and_update().clone();
                    let told = match turn(&mut client, &wants, &mut tried).await {
                        Ok(told) => told,
                        Err(silent) => break silent,
                    };
                    // Who connects and then fails each time does not answer, and is asked less and less often, too.
                    wait = waits.build();
                    if let Some(name) = name.take() {
                        tell(What::Answers(name)).await?;
                    }
                    if !told.is_empty() {
                        tell(What::Told(told)).await?;
                    }
                    let again =
                        tried.values().filter(|tried| tried.times < TRIES).map(|tried| tried.next).min();
                    tokio::select! {
                        changed = wanted.changed() => changed.ok()?,
                        () = until(again) => {}
                        // Nobody wants to know anything; whether it still answers is told all the same.
                        () = sleep(LOOK) => if let Err(silent) = client.name().await {
                            break silent;
                        },
                    }
                }
            }
            Err(silent) => silent,
        };
        let (what, pause) = match silent {
            Silent::Absent => (What::Absent, LOOK),
            silent => (What::Silent(silent.to_string()), wait.next().unwrap_or(ERRORS.1)),
        };
        tell(what).await?;
        sleep(pause).await;
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Asks for the containers that it is time to ask for.
async fn turn(
    client: &mut Client,
    wanted: &Wanted,
    tried: &mut BTreeMap<String, Tried>,
) -> Result<Told, Silent> {
    tried.retain(|id, _| wanted.contains_key(id));
    let now = Instant::now();
    let due = |id: &str| tried.get(id).is_none_or(|tried| tried.times < TRIES && tried.next <= now);
    let due: Vec<&String> = wanted.keys().filter(|id| due(id)).collect();
    let mut containers = Vec::new();
    if due.len() > ONE_BY_ONE {
        containers = client.containers().await?;
    } else {
        for id in &due {
            containers.extend(client.containers_of(id).await?);
        }
    }
    let told = Told::by(wanted, &containers);
    for id in due {
        let times = if told.is_about(id) { TRIES } else { tried.get(id).map_or(0, |tried| tried.times) + 1 };
        let next = Instant::now() + FIRST * 2_u32.pow(times.min(TRIES) - 1);
        tried.insert(id.clone(), Tried { times, next });
    }
    Ok(told)
}
