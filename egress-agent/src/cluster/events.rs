//! Denied egress as Kubernetes events of the pod, where people look first: `kubectl describe pod`.
//!
//! Events of the core group, not of `events.k8s.io`: only those name the node as their source, and only of those both the
//! count and the time of the last flow are fields that every tool reads; the API server keeps both kinds in one place.
//!
//! Invariants: flows are taken in whatever the API server does, and what is kept is bounded; enforcement knows nothing of
//! this. Tested by `tests/cluster/events.rs`; what becomes an event, by [`super::tally`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, Unit};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::service::{Deed, Pace, Refusal, Report, ask};
use super::tally::{Done, PodName, Tally, Write};
use crate::admin::server::Published;
use crate::chance::random;
use crate::flow::Flow;

/// How often events that are over are forgotten.
const SWEEP: Duration = Duration::from_mins(1);
/// The name of the component, as events show it.
const COMPONENT: &str = "egress-agent";

const CREATE: Deed =
    Deed { verb: "create", resource: "events", without: "pods have no events of denied egress" };
const PATCH: Deed = Deed { verb: "patch", without: "events of denied egress are not counted", ..CREATE };

/// Makes events of flows.
pub(super) struct Recorder {
    client: Client,
    node: String,
    report: Report,
    published: watch::Receiver<Arc<Published>>,
    flows: broadcast::Receiver<Arc<Flow>>,
    tally: Tally,
    pace: Pace,
    /// Nothing is written before.
    rests_until: Instant,
}

/// A request that is under way, and how it ended.
type Underway = Pin<Box<dyn Future<Output = (Write, Result<(), Refusal>)> + Send>>;

impl Recorder {
    pub(super) fn new(
        client: Client,
        node: String,
        report: Report,
        published: watch::Receiver<Arc<Published>>,
        flows: broadcast::Receiver<Arc<Flow>>,
    ) -> Self {
        let now = Instant::now();
        let tally = Tally::new(now, random());
        Self { client, node, report, published, flows, tally, pace: Pace::default(), rests_until: now }
    }

    /// Runs until there are no flows any more.
    pub(super) async fn run(mut self) {
        let mut underway: Option<Underway> = None;
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let now = Instant::now();
            if underway.is_none() && now >= self.rests_until {
                underway = self.tally.next(now).map(|write| self.send(write));
            }
            let due = if underway.is_some() { None } else { self.tally.due() };
            let due = due.map(|due| due.max(self.rests_until));
            tokio::select! {
                biased;
                Some((write, result)) = ended(&mut underway) => {
                    underway = None;
                    self.ended(&write, &result);
                }
                flow = self.flows.recv() => match flow {
                    Ok(flow) => self.take(&flow),
                    Err(RecvError::Lagged(missed)) => self.report.left_out(missed),
                    Err(RecvError::Closed) => return,
                },
                _ = sweep.tick() => {
                    self.tally.sweep(Instant::now());
                    self.report.left_out(self.tally.left_out());
                    // What failed is over by now: nothing is waited for that could go right.
                    if underway.is_none() && self.tally.due().is_none() && self.report.fails() {
                        self.pace.fine();
                        self.report.fine("Waiting");
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
        }
    }

    fn take(&mut self, flow: &Flow) {
        let pod = flow.pod.as_ref().and_then(|name| {
            let (namespace, name) = name.split_once('/')?;
            let published = self.published.borrow();
            let endpoint = published.endpoints.iter().find(|endpoint| endpoint.cgroup == flow.cgroup)?;
            // The cgroup's number may be another pod's by now.
            let same = endpoint.namespace == namespace && endpoint.name == name;
            same.then(|| PodName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: endpoint.uid.clone(),
            })
        });
        match pod {
            Some(pod) => self.tally.take(pod, flow, Instant::now()),
            None => self.report.left_out(1),
        }
    }

    /// Begins a write.
    fn send(&self, write: Write) -> Underway {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &write.pod.namespace);
        let node = self.node.clone();
        Box::pin(async move {
            let result = if write.again {
                let patch = json!({ "count": write.count, "lastTimestamp": seconds(write.last) });
                let params = PatchParams::default();
                ask(events.patch(&name(&write), &params, &Patch::Merge(patch))).await
            } else {
                ask(events.create(&PostParams::default(), &event(&write, &node))).await
            };
            let result = result.map(|_| ());
            (write, result)
        })
    }

    fn ended(&mut self, write: &Write, result: &Result<(), Refusal>) {
        let now = Instant::now();
        let done = match result {
            Ok(()) => Done::Written,
            // An answer to the first try was lost.
            Err(Refusal::Conflict) => Done::There,
            Err(Refusal::NotFound(_)) if write.again => Done::Gone,
            // The namespace has gone, or refuses new objects while it goes.
            Err(Refusal::NotFound(_) | Refusal::Never(..)) => Done::Never,
            Err(Refusal::NotAllowed | Refusal::Later(..)) => Done::Later,
        };
        self.tally.done(write, done, now);
        self.report.left_out(self.tally.left_out());
        match (done, result) {
            (Done::Later, Err(refusal)) => {
                self.report.failed(if write.again { &PATCH } else { &CREATE }, refusal);
                self.rests_until = now + self.pace.after(refusal);
            }
            (_, result) => {
                if let Err(Refusal::Never(why, _)) = result {
                    tracing::debug!(pod = write.pod.name, why, "an event was refused");
                }
                self.pace.fine();
                self.report.fine("Working");
                if result.is_ok() {
                    self.report.wrote();
                }
            }
        }
    }
}

/// Waits for a request that is under way; `None` where none is.
async fn ended(underway: &mut Option<Underway>) -> Option<(Write, Result<(), Refusal>)> {
    match underway {
        Some(underway) => Some(underway.await),
        None => None,
    }
}

/// The name of an event, as client-go makes them: the pod's, and a number.
fn name(write: &Write) -> String {
    // Names of pods have up to 253 characters, and so have those of events.
    let pod: String = write.pod.name.chars().take(230).collect();
    format!("{}.{:016x}", pod.trim_end_matches(['.', '-']), write.number)
}

/// `metav1.Time` has no parts of seconds.
fn seconds(time: Timestamp) -> Time {
    Time(time.round(Unit::Second).unwrap_or(time))
}

fn event(write: &Write, node: &str) -> Event {
    let pod = &write.pod;
    let named = |name: &String| format!("spec.containers{{{name}}}");
    Event {
        metadata: ObjectMeta {
            name: Some(name(write)),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            field_path: write.kind.container.as_ref().map(named),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(write.kind.reason.to_owned()),
        message: Some(write.kind.text.clone()),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        first_timestamp: Some(seconds(write.first)),
        last_timestamp: Some(seconds(write.last)),
        count: i32::try_from(write.count).ok(),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}
