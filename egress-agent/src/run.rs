//! `run`: the one task that owns the index and the datapath.
//!
//! Invariant: everything that happens ends in the same path: look again, compile, diff against what the maps hold,
//! apply. The hook is attached after the first apply. Ending, however it happens, takes nothing down. Tested by
//! `tests/lifecycle.rs`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::admin::server::{FlowLog, Published, Server, Vitals};
use crate::agent::Agent;
use crate::cli::{Hooks, RunArgs};
use crate::cluster::{self, Settings};
use crate::coverage::Look;
use crate::cri::Runtimes;
use crate::datapath::events::Events;
use crate::datapath::{Datapath, Loading};
use crate::flow_file::FlowFile;
use crate::http::Http;
use crate::lock::{Busy, Lock};
use crate::metrics::Meters;
use crate::network::Monitor;
use crate::pods::PodRoot;
use crate::preflight;
use crate::sever::Severing;
use crate::source::Objects;
use crate::translations::Translations;
use crate::watch::{Interest, Watcher};
use crate::witnesses::Witnesses;

/// Looking again without a notice, and retrying what failed.
const TICK: Duration = Duration::from_secs(5);
/// How often counters are published.
const PUBLISH: Duration = Duration::from_secs(1);
/// How often a new pod is looked at until it has a process, whose network is the pod's.
const PROCESSES: Duration = Duration::from_millis(10);
/// How long the end waits for the flow log.
const FLOW_LOG_END: Duration = Duration::from_secs(1);
/// Events handled before other work has its turn.
const EVENT_BATCH: usize = 256;

/// Enforces until SIGTERM or SIGINT.
///
/// # Errors
/// [`preflight::Missing`], [`Busy`], or what the kernel refuses at the start; nothing is attached then.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    if args.source.source.is_read_once() {
        bail!(
            "{} is read once, and an agent follows its objects: name a directory, or kube",
            args.source.source
        );
    }
    preflight::kernel()?;
    let root = PodRoot::find(args.pod_root.as_deref())?;
    let (objects, source) = Objects::open(&args.source)?;
    let name = node_name(args.node_name.as_deref())?;
    let settings = Settings::new(name.clone(), args.namespace.clone(), args.lift_taint.clone());
    preflight::bpffs(&args.bpffs.bpffs)?;
    let in_cluster = objects.comes_first();
    let _locks = locks(&root, &args.bpffs.bpffs, in_cluster).await?;
    raise_limits();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let meters = Arc::new(Meters::default());
    let (publish, published) = watch::channel(Arc::new(Published::starting(name.clone())));
    let limit = args.flow_log_limit.saturating_mul(1 << 20);
    let mut flow_file =
        args.flow_log.as_deref().map(|path| FlowFile::open(path, limit, meters.clone())).transpose()?;
    // First of all: kubelet asks here.
    let server = Server::bind(&args.socket.socket)?;
    let flows = FlowLog::default();
    let (ask, mut asked) = mpsc::channel(1);
    let vitals = Vitals { meters: meters.clone(), pod: args.pod_name.clone() };
    tokio::spawn(server.serve(published.clone(), vitals, flows.clone(), ask));
    if let Some(address) = args.listen {
        match Http::bind(address).await {
            Ok(http) => drop(tokio::spawn(http.serve(published.clone(), meters.clone()))),
            // Policies are to be followed also where something else has the port.
            Err(error) if in_cluster => {
                tracing::warn!("{error:#}; trying again");
                tokio::spawn(listen_later(address, published.clone(), meters.clone()));
            }
            Err(error) => return Err(error),
        }
    }
    let mut datapath = open(&args)?;
    let ring = datapath.take_events().context("the ring buffer was taken before")?;
    let mut events = Events::new(ring).context("cannot wait for the ring buffer")?;
    let mut pod_watcher = Watcher::new(Interest::Entries).context("cannot watch the pod cgroups")?;
    let mut devices = Monitor::new().context("cannot watch the node's devices")?;

    let mut agent = Agent::new(name, root, args.unknown_pods.into(), datapath, objects);
    agent.measure_by(meters.clone());
    if args.hooks == Hooks::Socket {
        agent.leave_veths_alone();
    }
    if args.pod_root.is_none() {
        agent.search_for_pods();
    }
    let (mut runtimes, wants) = Runtimes::ask(args.cri_socket.as_deref());
    agent.ask_runtimes(&runtimes.places, wants);
    agent.look_at_addresses();
    agent.look_at_source();
    agent.look_at_pods(&mut pod_watcher);
    agent.let_ourselves_pass();
    agent.enforce();
    agent.name_owners();
    agent.cover(Look::Whole);
    agent.announce();

    let mut severing = Severing::new(crate::sever::INTERVAL);
    let mut translations = Translations::new(crate::translations::INTERVAL);
    let mut witnesses = Witnesses::new(crate::witnesses::INTERVAL);
    if args.sever {
        agent.sever_from_now_on();
    }
    publish.send_replace(Arc::new(agent.published()));
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
            () = pod_watcher.changed() => {
                meters.arrived(Instant::now());
                agent.look_at_pods(&mut pod_watcher);
            }
            turn = translations.turn() => agent.translations(&mut translations, turn),
            () = source.changed() => {
                meters.arrived(Instant::now());
                source.settle().await;
                agent.look_at_source();
            }
            _ = tick.tick() => {
                // What nobody told of, or not yet.
                meters.arrived(Instant::now());
                agent.look_at_pods(&mut pod_watcher);
                agent.look_at_source();
                agent.check();
                witnesses.want();
                look = Look::Whole;
            }
            heard = runtimes.heard() => {
                meters.arrived(Instant::now());
                agent.heard(heard);
            }
            result = devices.changed() => {
                meters.arrived(Instant::now());
                result?;
                look = Look::Devices;
            }
            _ = processes.tick(), if agent.waits_for_processes() => {}
            result = events.read(EVENT_BATCH, |event| {
                let flow = flows.push(agent.flow(&event));
                flow_file.iter_mut().for_each(|file| file.write(Arc::clone(&flow)));
            }) => result?,
            turn = severing.turn() => agent.sever(&mut severing, turn),
            turn = witnesses.turn() => agent.witnesses(&mut witnesses, turn),
            Some(asked) = asked.recv() => agent.answer(asked),
            _ = counters.tick() => {
                publish.send_replace(Arc::new(agent.published()));
            }
        }
        if look != Look::New {
            agent.look_at_addresses();
        }
        let applied = agent.enforce();
        if applied || look != Look::New {
            agent.name_owners();
        }
        let covered = agent.cover(look);
        agent.announce();
        agent.serve(|client| cluster::spawn(client, &settings, published.clone(), flows.live()));
        if agent.has_applied() {
            severing.want();
        }
        if translations.is_idle() && agent.wants_translations() {
            translations.want();
        }
        if applied || covered {
            publish.send_replace(Arc::new(agent.published()));
        }
    }
    if let Some(file) = flow_file {
        file.finish(FLOW_LOG_END);
    }
    agent.end().await;
    tracing::info!("ending; enforcement stays in place (`egress-agent cleanup` removes it)");
    Ok(())
}

/// Takes the node's locks. In a cluster another agent is waited for, which may be ending: a restart would help nobody.
async fn locks(root: &PodRoot, bpffs: &Path, waits: bool) -> anyhow::Result<(Lock, Lock)> {
    let mut told = false;
    loop {
        let locks = Lock::pod_root(root).and_then(|root| Ok((root, Lock::bpffs(bpffs)?)));
        match locks {
            Err(error) if waits && error.is::<Busy>() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{error:#}; waiting for its end");
                }
                tokio::time::sleep(TICK).await;
            }
            locks => return locks,
        }
    }
}

async fn listen_later(address: SocketAddr, published: watch::Receiver<Arc<Published>>, meters: Arc<Meters>) {
    loop {
        tokio::time::sleep(TICK).await;
        if let Ok(http) = Http::bind(address).await {
            tracing::info!(%address, "listening");
            return http.serve(published, meters).await;
        }
    }
}

fn open(args: &RunArgs) -> anyhow::Result<Datapath> {
    // What is ended is told by what its socket keeps.
    let loading = Loading {
        map_entries: &args.map_entries,
        keep_always: args.sever,
        filters: args.tc_filters,
        ..Loading::default()
    };
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

/// Kernels before 5.11 count maps against the limit of locked memory. Where it may not be raised, making the maps says so. Of open files
/// a pod with many network namespaces takes one for each, for as long as it is looked at.
fn raise_limits() {
    let limit = RLIM_INFINITY;
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, limit, limit);
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
