//! `run`: the one task that owns the index and the datapath.
//!
//! Invariant: everything that happens ends in the same path: look again, compile, diff against what the maps hold,
//! apply. The hook is attached after the first apply. Ending, however it happens, takes nothing down. Tested by
//! `tests/lifecycle.rs`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::admin::server::{FlowLog, Server};
use crate::agent::Agent;
use crate::cli::{Hooks, RunArgs, Source};
use crate::coverage::Look;
use crate::cri::Runtimes;
use crate::datapath::events::Events;
use crate::datapath::{Datapath, Loading};
use crate::lock::Lock;
use crate::network::Monitor;
use crate::pods::PodRoot;
use crate::preflight;
use crate::sever::Severing;
use crate::source::FileSource;
use crate::watch::{Interest, Watcher};

/// Looking again without a notice, and retrying what failed.
const TICK: Duration = Duration::from_secs(5);
/// How often counters are published.
const PUBLISH: Duration = Duration::from_secs(1);
/// How often a new pod is looked at until it has a process, whose network is the pod's.
const PROCESSES: Duration = Duration::from_millis(10);
/// Changes of a directory come in bursts: it is read once nothing has changed for this long,
const SETTLE: Duration = Duration::from_millis(30);
/// or this long after the first change.
const SETTLED: Duration = Duration::from_millis(500);
/// Events handled before other work has its turn.
const EVENT_BATCH: usize = 256;

/// Enforces until SIGTERM or SIGINT.
///
/// # Errors
/// [`preflight::Missing`], [`Busy`](crate::lock::Busy), or what the kernel refuses at the start; nothing is attached then.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    preflight::kernel()?;
    let root = PodRoot::find(args.pod_root.as_deref())?;
    let Source::File(dir) = &args.source;
    // Without a first look at the objects nothing may be planned: what is pinned goes on as it is.
    std::fs::read_dir(dir).with_context(|| format!("cannot read the source directory {}", dir.display()))?;
    let name = node_name(args.node_name.as_deref())?;
    preflight::bpffs(&args.bpffs.bpffs)?;
    let _node_lock = Lock::pod_root(&root)?;
    let _pins_lock = Lock::bpffs(&args.bpffs.bpffs)?;
    raise_memory_limit();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let server = Server::bind(&args.socket.socket)?;
    let mut datapath = open(&args)?;
    let ring = datapath.take_events().context("the ring buffer was taken before")?;
    let mut events = Events::new(ring).context("cannot wait for the ring buffer")?;
    let mut pod_watcher = Watcher::new(Interest::Entries).context("cannot watch the pod cgroups")?;
    let mut file_watcher = Watcher::new(Interest::Contents).context("cannot watch the source")?;
    file_watcher.watch(std::slice::from_ref(dir));

    let mut devices = Monitor::new().context("cannot watch the node's devices")?;

    let mut agent = Agent::new(name, root, args.unknown_pods.into(), datapath, FileSource::new(dir.clone()));
    if args.hooks == Hooks::Socket {
        agent.leave_veths_alone();
    }
    if args.pod_root.is_none() {
        agent.search_for_pods();
    }
    let (mut runtimes, wants) = Runtimes::ask(args.cri_socket.as_deref());
    agent.ask_runtimes(&runtimes.places, wants);
    agent.look_at_source();
    agent.look_at_pods(&mut pod_watcher);
    agent.enforce();
    agent.cover(Look::Whole);
    agent.announce();

    let mut severing = Severing::default();
    if args.sever {
        agent.sever_from_now_on();
    }
    let flows = FlowLog::default();
    let (publish, published) = watch::channel(Arc::new(agent.published()));
    tokio::spawn(server.serve(published, flows.clone()));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counters = tokio::time::interval(PUBLISH);
    counters.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut processes = tokio::time::interval(PROCESSES);
    processes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut look = Look::New;
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = pod_watcher.changed() => agent.look_at_pods(&mut pod_watcher),
            () = file_watcher.changed() => {
                settle(&file_watcher).await;
                agent.look_at_source();
            }
            _ = tick.tick() => {
                agent.look_at_pods(&mut pod_watcher);
                agent.look_at_source();
                agent.check();
                look = Look::Whole;
            }
            heard = runtimes.heard() => agent.heard(heard),
            result = devices.changed() => {
                result?;
                look = Look::Devices;
            }
            _ = processes.tick(), if agent.waits_for_processes() => {}
            result = events.read(EVENT_BATCH, |event| flows.push(agent.flow(&event))) => result?,
            turn = severing.turn() => agent.sever(&mut severing, turn),
            _ = counters.tick() => {
                publish.send_replace(Arc::new(agent.published()));
            }
        }
        let applied = agent.enforce();
        let covered = agent.cover(look);
        if agent.has_applied() {
            severing.want();
        }
        if applied || covered {
            publish.send_replace(Arc::new(agent.published()));
        }
    }
    tracing::info!("ending; enforcement stays in place (`egress-agent cleanup` removes it)");
    Ok(())
}

fn open(args: &RunArgs) -> anyhow::Result<Datapath> {
    // What is ended is told by what its socket keeps.
    let loading = Loading { map_entries: &args.map_entries, keep_always: args.sever, ..Loading::default() };
    #[cfg(feature = "trace")]
    if let Some(object) = &args.trace_object {
        return crate::trace::open(&args.bpffs.bpffs, object, loading);
    }
    Datapath::open_with(&args.bpffs.bpffs, &loading)
}

fn node_name(given: Option<&str>) -> anyhow::Result<String> {
    if let Some(name) = given {
        return Ok(name.to_owned());
    }
    if let Ok(name) = std::env::var("NODE_NAME") {
        return Ok(name);
    }
    let name =
        nix::unistd::gethostname().context("cannot read the host name: name the node with --node-name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Waits for the end of a burst of changes, so that a file is not read while it is written.
async fn settle(watcher: &Watcher) {
    let burst = async { while tokio::time::timeout(SETTLE, watcher.changed()).await.is_ok() {} };
    // A directory that never comes to rest is read all the same.
    let _ = tokio::time::timeout(SETTLED, burst).await;
}

/// Kernels before 5.11 count maps against this limit. Where it may not be raised, making the maps says so.
fn raise_memory_limit() {
    let limit = nix::sys::resource::RLIM_INFINITY;
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK, limit, limit);
}
