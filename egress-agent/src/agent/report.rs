//! What the agent tells about itself and about packets.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::wire::{ABI, FlowEvent};
use egress_policy::compile::{Compiled, EndpointInfo, PodState, Severity};
use egress_policy::object::Kind;
use jiff::Timestamp;

use super::Agent;
use crate::admin::server::Published;
use crate::clock::monotonic;
use crate::datapath::{Attached, DenialTotal, Denied};
use crate::flow::{Flow, Sender};
use crate::metrics::{Coverage, Measured, Tally};
use crate::status::{ContainerStatus, EndpointStatus, HookStatus, SourceStatus, Status, WatchStatus};

/// After how many seconds without news of a kind the agent is not ready: pods that are new since may lack their policies.
const STALE: u64 = 60;

impl Agent {
    pub(crate) fn flow(&self, event: &FlowEvent) -> Flow {
        let pod = self.scan.pods.iter().find(|pod| pod.cgroup == event.cgroup);
        let container = pod.and_then(|pod| {
            let (id, _) = pod.containers.iter().find(|(_, cgroup)| *cgroup == event.container)?;
            self.container_name(&pod.uid, id)
        });
        let sender = Sender { uid: pod.map(|pod| &*pod.uid), container };
        let objects = (self.compiler.compiled(), &self.index);
        let now = (Timestamp::now(), monotonic());
        let flow = crate::flow::enrich(event, objects, sender, &self.node, now);
        tracing::debug!(pod = flow.pod, to = %flow.destination, protocol = flow.protocol, reason = flow.reason, "{}", flow.action);
        flow
    }

    pub(crate) fn published(&mut self) -> Published {
        let denied = self.datapath.counted().denied();
        let compiled = self.compiler.compiled();
        self.tally.take(&denied, |cgroup| {
            let names = compiled.endpoints.get(&cgroup)?.policies.iter().map(ToString::to_string);
            Some(names.collect::<Vec<_>>().join(", "))
        });
        let attached = self.datapath.attached();
        let mut errors = self.errors.clone();
        errors.extend(self.coverage.errors().map(str::to_owned));
        errors.extend(self.own.trouble.clone());
        errors.extend(self.former.stopped());
        let verdicts = self.datapath.counted().counters().unwrap_or_else(|error| {
            errors.push(format!("{error:#}"));
            Vec::new()
        });
        let lost_events = self.datapath.counted().lost().unwrap_or_else(|error| {
            errors.push(format!("{error:#}"));
            0
        });
        errors.extend(self.scan_error.iter().chain(&self.elsewhere).cloned());
        let pending = self.pending();
        let mut measured = measured(compiled, &self.tally);
        measured.nodes = self.index.nodes_with_agent();
        let mut endpoints = Vec::with_capacity(compiled.endpoints.len());
        let mut by_state = BTreeMap::new();
        for (cgroup, info) in &compiled.endpoints {
            let (covered, endpoint) = self.endpoint(*cgroup, info, &denied);
            *measured.coverage.entry(covered).or_default() += 1;
            *by_state.entry(endpoint.state.clone()).or_default() += 1;
            endpoints.push(endpoint);
        }
        let status = Status {
            ready: pending.is_empty(),
            pending,
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: ABI,
            revision: self.datapath.observed().config.revision,
            hooks: attached.map(hooks).unwrap_or_default(),
            lacks: self.datapath.lacks().iter().chain(&self.severs_not).cloned().collect(),
            unknown_pods: self.scan.pods.len().saturating_sub(endpoints.len()),
            endpoints: by_state,
            maps: self.datapath.fill(),
            verdicts,
            lost_events,
            lost_flows: self.meters.flows_lost(),
            severed: self.severed,
            containers: self.names(),
            services: self.services(),
            source: SourceStatus {
                name: self.source.name(),
                objects: self.index.len(),
                errors: self.source_state.errors.clone(),
                ignored: self.source_state.ignored.clone(),
                watches: self.watches(),
            },
            diagnostics: compiled.diagnostics.iter().map(ToString::to_string).collect(),
            errors,
        };
        Published { status, endpoints, measured }
    }

    /// Tells the log what is enforced, once; until then, what is waited for.
    pub(crate) fn announce(&mut self) {
        let enforces = !self.waits_for_source();
        if std::mem::replace(&mut self.announced, enforces) {
            return;
        }
        if !self.announced {
            if !std::mem::replace(&mut self.waiting, true) {
                tracing::info!(
                    "nothing is attached yet: waiting for the first complete lists of the API server"
                );
            }
            return;
        }
        tracing::info!(
            node = self.node,
            pod_root = %self.root.path.display(),
            endpoints = self.compiler.compiled().endpoints.len(),
            revision = self.datapath.observed().config.revision,
            "enforcing"
        );
    }

    fn watches(&self) -> Vec<WatchStatus> {
        let mut watches = self.source_state.watches.clone();
        for watch in &mut watches {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == watch.kind);
            watch.objects = kind.map_or(0, |kind| self.index.count(kind));
        }
        watches
    }

    /// What keeps the agent from being ready.
    pub(super) fn pending(&self) -> Vec<String> {
        let mut pending = Vec::new();
        if self.held {
            let watches = &self.source_state.watches;
            if watches.is_empty() {
                pending.push(
                    "the source could not be read whole yet, and what is missing may be a policy".to_owned(),
                );
            }
            // Why is told of the watches: this is told at an open port as well.
            let missing = watches.iter().filter(|watch| !watch.synced);
            pending.extend(missing.map(|watch| format!("the first complete list of {}", watch.kind)));
        }
        let stale =
            self.source_state.watches.iter().filter(|watch| watch.synced && watch.failing_seconds >= STALE);
        pending
            .extend(stale.map(|watch| format!("no news of {} for {} s", watch.kind, watch.failing_seconds)));
        pending.extend(self.scan_error.iter().chain(&self.elsewhere).cloned());
        if self.datapath.attached().is_none() {
            pending.push("the socket hook is not attached".to_owned());
        }
        if self.own.trouble.is_some() {
            pending.push("whose some addresses are cannot be told to the kernel".to_owned());
        }
        if !self.errors.is_empty() {
            pending.push(format!("{} errors", self.errors.len()));
        }
        pending
    }

    fn endpoint(&self, cgroup: u64, info: &EndpointInfo, denied: &[Denied]) -> (Coverage, EndpointStatus) {
        let (covered, coverage) = self.coverage.of(cgroup, &self.datapath);
        let own = denied.partition_point(|one| one.cgroup < cgroup);
        let own = denied[own..].iter().take_while(|one| one.cgroup == cgroup);
        let status = EndpointStatus {
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
            coverage,
            veths: self.coverage.veths(cgroup),
            denials: own.map(DenialTotal::from).collect(),
            policies: info.policies.iter().map(ToString::to_string).collect(),
            policy: format!("{:016x}", info.policy),
            proxies: info.proxies.iter().map(|proxy| proxy.name.clone()).collect(),
            lock: info.lock != 0,
            containers: self.containers(cgroup, info),
            revision: self.datapath.observed().config.revision,
        };
        (covered, status)
    }

    fn containers(&self, cgroup: u64, info: &EndpointInfo) -> Vec<ContainerStatus> {
        // Asked for each pod at every publication; a scan is in the order of cgroups.
        let pod = self.scan.pods.binary_search_by_key(&cgroup, |pod| pod.cgroup);
        let pod = pod.ok().and_then(|at| self.scan.pods.get(at));
        let status = |(id, cgroup): &(String, u64)| ContainerStatus {
            name: self.container_name(&info.uid, id).map(str::to_owned),
            cgroup: *cgroup,
            role: match info.proxies.iter().any(|proxy| proxy.cgroup == *cgroup) {
                true => "proxy".to_owned(),
                false => "other".to_owned(),
            },
        };
        let mut containers: Vec<_> =
            pod.map(|pod| pod.containers.iter().map(status).collect()).unwrap_or_default();
        // Those without a name last: a pod's sandbox, and what nobody has named yet.
        containers.sort_by_key(|one: &ContainerStatus| (one.name.is_none(), one.name.clone(), one.cgroup));
        containers
    }
}

/// What only metrics tell, but for the coverage.
fn measured(compiled: &Compiled, tally: &Tally) -> Measured {
    let mut measured = Measured { by_policy: tally.totals(), ..Measured::default() };
    let mut invalid = BTreeSet::new();
    for diagnostic in &compiled.diagnostics {
        *measured.diagnostics.entry(diagnostic.severity).or_default() += 1;
        let policy = diagnostic
            .object
            .as_ref()
            .filter(|object| matches!(object.kind, Kind::NetworkPolicy | Kind::EgressGatewayPolicy));
        invalid.extend(policy.filter(|_| diagnostic.severity == Severity::Error));
    }
    measured.invalid_policies = invalid.len();
    measured
}

fn hooks(attached: &Attached) -> Vec<HookStatus> {
    let target = attached.root.path.display().to_string();
    let hook = |(program, id): &(&str, u32)| HookStatus {
        program: (*program).to_owned(),
        id: *id,
        target: target.clone(),
    };
    attached.programs.iter().map(hook).collect()
}
