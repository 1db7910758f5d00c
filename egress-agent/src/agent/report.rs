//! What the agent tells about itself and about packets.

use std::collections::BTreeMap;

use egress_common::wire::{ABI, FlowEvent};
use egress_policy::compile::{EndpointInfo, PodState};
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

use super::Agent;
use crate::admin::server::Published;
use crate::datapath::Attached;
use crate::flow::Flow;
use crate::pods::PodCgroup;
use crate::status::{EndpointStatus, HookStatus, SourceStatus, Status};

impl Agent {
    pub(crate) fn flow(&self, event: &FlowEvent) -> Flow {
        let pod = self.scan.pods.iter().find(|pod| event.container != 0 && pod.cgroup == event.cgroup);
        let id =
            |pod: &PodCgroup| Some(pod.containers.iter().find(|(_, id)| *id == event.container)?.0.clone());
        let container = pod.and_then(|pod| self.container_name(&pod.uid, &id(pod)?));
        let objects = (self.compiler.compiled(), &self.index);
        let now = (Timestamp::now(), monotonic());
        let flow = crate::flow::enrich(event, objects, container, &self.node, now);
        tracing::debug!(pod = flow.pod, to = %flow.destination, protocol = flow.protocol, reason = flow.reason, "{}", flow.action);
        flow
    }

    pub(crate) fn published(&self) -> Published {
        let attached = self.datapath.attached();
        let mut errors = self.errors.clone();
        errors.extend(self.coverage.errors().map(str::to_owned));
        let verdicts = self.datapath.counted().counters().unwrap_or_else(|error| {
            errors.push(format!("{error:#}"));
            Vec::new()
        });
        let lost_events = self.datapath.counted().lost().unwrap_or_else(|error| {
            errors.push(format!("{error:#}"));
            0
        });
        errors.extend(self.scan_error.iter().chain(&self.elsewhere).cloned());
        let mut pending = Vec::new();
        if self.held {
            pending.push(
                "the source could not be read whole yet, and what is missing may be a policy".to_owned(),
            );
        }
        pending.extend(self.scan_error.iter().chain(&self.elsewhere).cloned());
        if attached.is_none() {
            pending.push("the socket hook is not attached".to_owned());
        }
        if !self.errors.is_empty() {
            pending.push(format!("{} errors", self.errors.len()));
        }
        let compiled = self.compiler.compiled();
        let endpoints: Vec<_> =
            compiled.endpoints.iter().map(|(cgroup, info)| self.endpoint(*cgroup, info)).collect();
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
            hooks: attached.map(hooks).unwrap_or_default(),
            lacks: self.datapath.lacks().iter().chain(&self.severs_not).cloned().collect(),
            unknown_pods: self.scan.pods.len().saturating_sub(endpoints.len()),
            endpoints: by_state,
            maps: self.datapath.fill(),
            verdicts,
            lost_events,
            severed: self.severed,
            containers: self.names(),
            source: SourceStatus {
                name: format!("file:{}", self.source.dir().display()),
                objects: self.index.len(),
                errors: self.source_state.errors.clone(),
                ignored: self.source_state.ignored.clone(),
                watches: Vec::new(),
            },
            diagnostics: compiled.diagnostics.iter().map(ToString::to_string).collect(),
            errors,
        };
        Published { status, endpoints }
    }

    fn endpoint(&self, cgroup: u64, info: &EndpointInfo) -> EndpointStatus {
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
            coverage: self.coverage.of(cgroup, &self.datapath),
            veths: self.coverage.veths(cgroup),
            denials: self.datapath.counted().denials(cgroup),
            policies: info.policies.iter().map(ToString::to_string).collect(),
            policy: format!("{:016x}", info.policy),
            proxies: info.proxies.iter().map(|proxy| proxy.name.clone()).collect(),
            lock: info.lock != 0,
        }
    }
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

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub(super) fn monotonic() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    let nanoseconds = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    u64::try_from(nanoseconds).unwrap_or(0)
}
