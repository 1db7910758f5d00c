//! `run`: the one task that owns the index and the datapath.
//!
//! Invariant: everything that happens ends in the same path: look again, compile, diff against what the maps hold,
//! apply. The hook is attached after the first apply. Ending, however it happens, takes nothing down. Tested by
//! `tests/lifecycle.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use egress_common::wire::{ABI, FlowEvent};
use egress_policy::compile::{Compiled, Node, PodState, UnknownPods, compile};
use egress_policy::index::Index;
use egress_policy::plan::{self, Plan};
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::admin::server::{FlowLog, Published, Server};
use crate::cli::{RunArgs, Source};
use crate::datapath::events::Events;
use crate::datapath::{Datapath, SOCKET_PROGRAM};
use crate::lock::Lock;
use crate::pods::{PodRoot, Scan};
use crate::preflight;
use crate::source::{Changes, FileSource};
use crate::status::{EndpointStatus, HookStatus, SourceStatus, Status};
use crate::watch::{Interest, Watcher};

/// Looking again without a notice, and retrying what failed.
const TICK: Duration = Duration::from_secs(5);
/// How often counters are published.
const PUBLISH: Duration = Duration::from_secs(1);
/// Changes of a directory come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
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
    let _node_lock = Lock::directory(&root.path)?;
    let _pins_lock = Lock::bpffs(&args.bpffs.bpffs)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let server = Server::bind(&args.socket.socket)?;
    let mut datapath = Datapath::open(&args.bpffs.bpffs)?;
    let ring = datapath.take_events().context("the ring buffer was taken before")?;
    let mut events = Events::new(ring).context("cannot wait for the ring buffer")?;
    let mut pod_watcher = Watcher::new(Interest::Entries).context("cannot watch the pod cgroups")?;
    let mut file_watcher = Watcher::new(Interest::Contents).context("cannot watch the source")?;
    file_watcher.watch(std::slice::from_ref(dir));

    let mut agent = Agent::new(name, root, args.unknown_pods.into(), datapath, FileSource::new(dir.clone()));
    agent.look_at_source();
    agent.look_at_pods(&mut pod_watcher);
    agent.enforce();
    tracing::info!(
        node = agent.node,
        pod_root = %agent.root.path.display(),
        endpoints = agent.compiled.endpoints.len(),
        revision = agent.datapath.observed().config.revision,
        "enforcing"
    );

    let flows = FlowLog::default();
    let (publish, published) = watch::channel(Arc::new(agent.published()));
    tokio::spawn(server.serve(published, flows.clone()));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counters = tokio::time::interval(PUBLISH);
    counters.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = pod_watcher.changed() => agent.look_at_pods(&mut pod_watcher),
            () = file_watcher.changed() => {
                tokio::time::sleep(SETTLE).await;
                agent.look_at_source();
            }
            _ = tick.tick() => {
                agent.look_at_pods(&mut pod_watcher);
                agent.look_at_source();
                agent.dirty |= agent.retry;
            }
            result = events.read(EVENT_BATCH, |event| flows.push(agent.flow(&event))) => result?,
            _ = counters.tick() => {
                publish.send_replace(Arc::new(agent.published()));
            }
        }
        if agent.enforce() {
            publish.send_replace(Arc::new(agent.published()));
        }
    }
    tracing::info!("ending; enforcement stays in place (`egress-agent cleanup` removes it)");
    Ok(())
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

/// Everything the agent knows.
struct Agent {
    node: String,
    root: PodRoot,
    unknown_pods: UnknownPods,
    datapath: Datapath,
    source: FileSource,
    source_state: Changes,
    index: Index,
    scan: Scan,
    compiled: Compiled,
    /// Something changed since the last compile.
    dirty: bool,
    /// Something failed in the last apply; tried again at the next tick.
    retry: bool,
    /// The last apply's failures, and what else stands in the way.
    errors: Vec<String>,
}

impl Agent {
    fn new(
        node: String,
        root: PodRoot,
        unknown_pods: UnknownPods,
        datapath: Datapath,
        source: FileSource,
    ) -> Self {
        let index = Index::default();
        let compiled =
            compile(&index, &Node { name: &node, pod_root_level: root.level, unknown_pods, pods: &[] });
        Self {
            node,
            root,
            unknown_pods,
            datapath,
            source,
            source_state: Changes::default(),
            index,
            scan: Scan::default(),
            compiled,
            dirty: true,
            retry: false,
            errors: Vec::new(),
        }
    }

    fn look_at_source(&mut self) {
        let mut changes = self.source.look();
        for event in std::mem::take(&mut changes.events) {
            self.dirty |= self.index.apply(event);
        }
        for error in changes.errors.iter().filter(|error| !self.source_state.errors.contains(error)) {
            tracing::error!("{error}");
        }
        self.dirty |=
            changes.errors != self.source_state.errors || changes.ignored != self.source_state.ignored;
        self.source_state = changes;
    }

    fn look_at_pods(&mut self, watcher: &mut Watcher) {
        if !self.root.stands()
            && let Ok(root) = PodRoot::find(Some(&self.root.path))
        {
            tracing::warn!(pod_root = %root.path.display(), "the pod root was made anew; attaching to it");
            self.root = root;
            self.dirty = true;
        }
        match self.root.scan() {
            Ok(scan) => {
                watcher.watch(&scan.directories);
                self.dirty |= scan != self.scan;
                self.scan = scan;
            }
            Err(error) => {
                tracing::error!(pod_root = %self.root.path.display(), %error, "cannot read the pod root");
            }
        }
    }

    /// Brings the kernel to the desired state; tells whether there was anything to do.
    fn enforce(&mut self) -> bool {
        if !std::mem::take(&mut self.dirty) {
            return false;
        }
        let node = Node {
            name: &self.node,
            pod_root_level: self.root.level,
            unknown_pods: self.unknown_pods,
            pods: &self.scan.pods,
        };
        let compiled = compile(&self.index, &node);
        for diagnostic in compiled.diagnostics.iter().filter(|d| !self.compiled.diagnostics.contains(d)) {
            tracing::warn!("{diagnostic}");
        }
        self.compiled = compiled;
        self.errors.clear();
        let plan = plan::diff(&self.compiled.desired, self.datapath.observed());
        self.apply(&plan);
        self.attach();
        self.retry = !self.errors.is_empty();
        true
    }

    fn apply(&mut self, plan: &Plan) {
        let result = self.datapath.apply(plan);
        if !plan.steps.is_empty() {
            let revision = self.datapath.observed().config.revision;
            tracing::info!(steps = plan.steps.len(), revision, "applied");
        }
        for error in result.err().unwrap_or_default() {
            tracing::error!("{error}");
            self.errors.push(error.to_string());
        }
    }

    /// Attaches where the hook is not attached yet. A first plan that failed half-way does not keep it from being attached:
    /// what the maps lack is denied.
    fn attach(&mut self) {
        if self.datapath.attached().is_some_and(|attached| attached.root == self.root) {
            return;
        }
        if let Err(error) = self.datapath.attach(&self.root) {
            tracing::error!("{error:#}");
            self.errors.push(format!("{error:#}"));
        }
    }

    fn flow(&self, event: &FlowEvent) -> crate::flow::Flow {
        let flow = crate::flow::enrich(event, &self.compiled, &self.node, (Timestamp::now(), monotonic()));
        tracing::debug!(pod = flow.pod, to = %flow.destination, protocol = flow.protocol, reason = flow.reason, "{}", flow.action);
        flow
    }

    fn published(&self) -> Published {
        let attached = self.datapath.attached();
        let mut errors = self.errors.clone();
        let verdicts = self.datapath.counters().unwrap_or_else(|error| {
            errors.push(format!("{error:#}"));
            Vec::new()
        });
        let lost_events = self.datapath.lost().unwrap_or_else(|error| {
            errors.push(format!("{error:#}"));
            0
        });
        let mut pending = Vec::new();
        if attached.is_none() {
            pending.push("the socket hook is not attached".to_owned());
        }
        if !self.errors.is_empty() {
            pending.push(format!("{} errors", self.errors.len()));
        }
        let endpoints: Vec<_> =
            self.compiled.endpoints.iter().map(|(cgroup, info)| endpoint(*cgroup, info)).collect();
        let mut by_state = BTreeMap::new();
        for endpoint in &endpoints {
            *by_state.entry(endpoint.state.clone()).or_default() += 1;
        }
        let status = Status {
            ready: pending.is_empty(),
            pending,
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: ABI,
            revision: self.datapath.observed().config.revision,
            hooks: attached
                .map(|attached| HookStatus {
                    program: SOCKET_PROGRAM.to_owned(),
                    id: attached.program,
                    target: attached.root.path.display().to_string(),
                })
                .into_iter()
                .collect(),
            unknown_pods: self.scan.pods.len().saturating_sub(endpoints.len()),
            endpoints: by_state,
            maps: self.datapath.fill(),
            verdicts,
            lost_events,
            source: SourceStatus {
                name: format!("file:{}", self.source.dir().display()),
                objects: self.index.objects().count(),
                errors: self.source_state.errors.clone(),
                ignored: self.source_state.ignored.clone(),
            },
            diagnostics: self.compiled.diagnostics.iter().map(ToString::to_string).collect(),
            errors,
        };
        Published { status, endpoints }
    }
}

fn endpoint(cgroup: u64, info: &egress_policy::compile::EndpointInfo) -> EndpointStatus {
    EndpointStatus {
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        uid: info.uid.clone(),
        cgroup,
        state: match &info.state {
            PodState::Unselected => "Unselected".to_owned(),
            PodState::Isolated { audit: false } => "Isolated".to_owned(),
            PodState::Isolated { audit: true } => "Isolated (audit)".to_owned(),
            PodState::Invalid { .. } => "Invalid".to_owned(),
        },
        addresses: info.addresses.iter().map(ToString::to_string).collect(),
        coverage: "socket hook".to_owned(),
        policies: info.policies.iter().map(ToString::to_string).collect(),
        policy: format!("{:016x}", info.policy),
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
fn monotonic() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    let nanoseconds = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    u64::try_from(nanoseconds).unwrap_or(0)
}
