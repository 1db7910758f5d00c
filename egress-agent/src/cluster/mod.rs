//! What the agent writes to the API server: the status of policies, events of pods, the node's taint.
//!
//! Invariants: enforcement waits for nothing here and rests on nothing here. Each service is a task of its own, fed by
//! channels, and outlives every client: what it has to tell, and whether it leads, stays. A right that is missing costs
//! that service alone, is logged once and shown in its [`ServiceStatus`]. Tested by
//! `tests/cluster/main.rs`.

mod events;
mod lease;
mod service;
mod status;
mod taint;
mod tally;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use egress_policy::census::Census;
use kube::{Api, Client};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::admin::server::Published;
use crate::chance::random;
use crate::flow::Flow;
pub use lease::LEASE;
use service::Report;
pub use service::ServiceStatus;

/// The taint that nodes may register with.
pub const TAINT: &str = "egress-enforcer.io/agent-not-ready";
/// How long a clean end may take.
const END: Duration = Duration::from_secs(3);

/// What the services are told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// The agent's own namespace, where the lease is.
    pub namespace: String,
    /// Key of the taint that is lifted once the agent enforces; `None` for none.
    pub lift_taint: Option<String>,
}

impl Settings {
    /// Settings from what was given on the command line; the namespace is `POD_NAMESPACE`, then `egress-enforcer`, where
    /// none was given. For the taint's key a plain yes means [`TAINT`], and a plain no, or nothing, that none is lifted.
    #[must_use]
    pub fn new(node: String, namespace: Option<String>, lift_taint: Option<String>) -> Self {
        let given = |name: &String| !name.is_empty();
        let namespace = namespace.filter(given).or_else(|| std::env::var("POD_NAMESPACE").ok().filter(given));
        Self {
            node,
            namespace: namespace.unwrap_or_else(|| "egress-enforcer".to_owned()),
            lift_taint: lift_taint.and_then(|key| match key.as_str() {
                "" | "0" | "false" => None,
                "1" | "true" => Some(TAINT.to_owned()),
                _ => Some(key),
            }),
        }
    }
}

/// The services, as the owner of the objects sees them. They end when this is dropped, without a clean end.
pub struct Cluster {
    clients: watch::Sender<Client>,
    reports: Vec<Report>,
    census: watch::Sender<Option<Arc<Census>>>,
    wanted: Arc<AtomicBool>,
    leading: watch::Receiver<bool>,
    ending: watch::Sender<bool>,
    election: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
}

/// A client that sends each request by whichever client is the newest.
fn newest(clients: watch::Receiver<Client>) -> Client {
    let namespace = clients.borrow().default_namespace().to_owned();
    let service = tower::service_fn(move |request| {
        let client = clients.borrow().clone();
        async move { client.send(request).await }
    });
    Client::new(service, namespace)
}

/// Starts the services. They go on with another client where [`Cluster::reach_by`] gives them one.
pub fn spawn(
    client: Client,
    settings: &Settings,
    published: watch::Receiver<Arc<Published>>,
    flows: broadcast::Receiver<Arc<Flow>>,
) -> Cluster {
    let (clients, client) = watch::channel(client);
    let client = newest(client);
    let mut reports = Vec::new();
    let mut report = |name| {
        let report = Report::new(name);
        reports.push(report.clone());
        report
    };
    let identity = format!("{}_{:016x}", settings.node, random());
    let leases = Api::namespaced(client.clone(), &settings.namespace);
    let (election, leading) = lease::Election::new(leases, identity, report("leader election"));
    let (census, counted) = watch::channel(None);
    let wanted = Arc::new(AtomicBool::new(false));
    let policies = Api::all_with(client.clone(), &status::resource());
    let writer =
        status::Writer::new(policies, report("policy status"), leading.clone(), counted, Arc::clone(&wanted));
    let (node, events) = (settings.node.clone(), report("pod events"));
    let recorder = events::Recorder::new(client.clone(), node, events, published.clone(), flows);
    let mut others = vec![tokio::spawn(writer.run()), tokio::spawn(recorder.run())];
    if let Some(key) = &settings.lift_taint {
        let lifter = taint::Lifter {
            nodes: Api::all(client),
            node: settings.node.clone(),
            key: key.clone(),
            report: report("taint"),
            published,
        };
        others.push(tokio::spawn(lifter.run()));
    }
    let (ending, ends) = watch::channel(false);
    let election = tokio::spawn(election.run(ends));
    Cluster { clients, reports, census, wanted, leading, ending, election, others }
}

impl Cluster {
    /// Another client is to be used from now on: the one before it was refused, or reached nobody for long.
    pub fn reach_by(&self, client: Client) {
        self.clients.send_replace(client);
    }

    /// Whether [`count`](Self::count) is of use now. Cheap: to be asked at every turn.
    #[must_use]
    pub fn wants_census(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Hands over what the status of policies is counted from, or, where nothing of it has `changed` since the last time, that it stands.
    pub fn count(&self, changed: bool, census: impl FnOnce() -> Census) {
        self.wanted.store(false, Ordering::Relaxed);
        let census = (changed || self.census.borrow().is_none()).then(|| Arc::new(census()));
        self.census.send_modify(|place| *place = census.or(place.take()));
    }

    /// Whether this agent writes the status of policies.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self.leading.borrow()
    }

    /// How the services do, for the agent's own status.
    #[must_use]
    pub fn services(&self) -> Vec<ServiceStatus> {
        self.reports.iter().map(Report::status).collect()
    }

    /// Ends the services, and gives the lease back so that another agent leads soon. Takes a few seconds at most.
    pub async fn end(mut self) {
        for other in &self.others {
            other.abort();
        }
        self.ending.send_replace(true);
        let _ = tokio::time::timeout(END, &mut self.election).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for task in self.others.iter().chain([&self.election]) {
            task.abort();
        }
    }
}
