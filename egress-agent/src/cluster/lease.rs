//! Which of the agents leads: a Lease in the agent's own namespace.
//!
//! Invariants: nobody's clock is compared with anybody else's. A candidate takes the lease only after it has seen it stay
//! the same for the whole time that its holder asked for; a leader stops leading well before that time has passed since it
//! began its last renewal that went well, whether or not it can reach the API server. Every write names the version
//! that it replaces. Tested by `tests/cluster/lease.rs`.
//!
//! The times are longer than those of controllers with a few replicas: every node of a cluster is a candidate, and reads
//! the lease from the API server's cache once a turn.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, GetParams, PostParams};
use tokio::sync::watch;
use tokio::time::Instant;

use super::service::{Deed, Refusal, Report, ask};
use crate::chance::jittered;

/// The name of the lease.
pub const LEASE: &str = "egress-agent-leader";
/// How long a lease is good after its last renewal.
const GOOD_FOR: Duration = Duration::from_mins(1);
/// How long a leader goes on leading without a renewal.
const LEADS_FOR: Duration = Duration::from_secs(40);
/// From one renewal to the next.
const RENEWAL: Duration = Duration::from_secs(15);
/// From one try to the next, where a renewal failed.
const RETRY: Duration = Duration::from_secs(2);
/// From one look to the next of those who follow; up to half of it more.
const LOOK: Duration = Duration::from_secs(30);
/// How long a clean end waits for the lease to be given back.
const FAREWELL: Duration = Duration::from_secs(2);

const WITHOUT: &str = "no agent can be elected to write the status of policies";
const GET: Deed = Deed { verb: "get", resource: "leases.coordination.k8s.io", without: WITHOUT };
const CREATE: Deed = Deed { verb: "create", ..GET };
const UPDATE: Deed = Deed { verb: "update", ..GET };

/// A candidate.
pub(super) struct Election {
    leases: Api<Lease>,
    identity: String,
    report: Report,
    leading: watch::Sender<bool>,
    /// The lease as it was last seen, and since when it is so.
    seen: Option<(Lease, Instant)>,
    /// When the last renewal began that went well, while leading.
    renewed: Option<Instant>,
}

impl Election {
    /// A candidate, and whether it leads. The identity is this process' alone.
    pub(super) fn new(leases: Api<Lease>, identity: String, report: Report) -> (Self, watch::Receiver<bool>) {
        let (leading, leads) = watch::channel(false);
        (Self { leases, identity, report, leading, seen: None, renewed: None }, leads)
    }

    /// Stands for election until told to end, and gives the lease back then. Where the sender of `ending` is gone nobody
    /// asks for a clean end any more.
    pub(super) async fn run(mut self, mut ending: watch::Receiver<bool>) {
        loop {
            let wait = tokio::select! {
                biased;
                _ = ending.wait_for(|ending| *ending) => break,
                wait = self.turn() => wait,
            };
            let until = self.until();
            tokio::select! {
                biased;
                _ = ending.wait_for(|ending| *ending) => break,
                () = sleep_until(until) => self.stop("its time is over"),
                () = tokio::time::sleep(wait) => {}
            }
        }
        let led = self.renewed.is_some();
        self.stop("ending");
        if led {
            let _ = tokio::time::timeout(FAREWELL, self.give_back()).await;
        }
    }

    /// Until when it leads without another renewal.
    fn until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + LEADS_FOR)
    }

    /// One look or renewal; tells how long to wait for the next.
    async fn turn(&mut self) -> Duration {
        let until = self.until();
        let done = tokio::select! {
            biased;
            () = sleep_until(until) => {
                self.stop("it could not be renewed in time");
                return RETRY;
            }
            done = self.look_or_renew() => done,
        };
        match done {
            Ok(()) if self.renewed.is_some() => {
                self.report.fine("Leading");
                RENEWAL
            }
            Ok(()) => {
                self.report.fine("Following");
                jittered(LOOK)
            }
            Err((deed, refusal)) => {
                if refusal != Refusal::Conflict {
                    self.report.failed(&deed, &refusal);
                }
                if self.renewed.is_some() { RETRY } else { jittered(LOOK) }
            }
        }
    }

    async fn look_or_renew(&mut self) -> Result<(), (Deed, Refusal)> {
        if self.renewed.is_some()
            && let Some((lease, _)) = self.seen.clone()
        {
            match self.write(lease).await {
                // Somebody else has written: that is looked at below.
                Err((_, Refusal::Conflict)) => {}
                done => return done,
            }
        }
        // Who leads must know; who follows may be told something old, and is refused if it acts on it.
        let lease = if self.renewed.is_some() {
            ask(self.leases.get(LEASE)).await
        } else {
            ask(self.leases.get_with(LEASE, &GetParams::any())).await
        };
        let lease = match lease {
            Ok(lease) => lease,
            Err(Refusal::NotFound(_)) => return self.create().await,
            Err(refusal) => return Err((GET, refusal)),
        };
        self.see(lease.clone());
        if self.held_by_another() {
            self.stop("another agent holds it");
            return Ok(());
        }
        self.write(lease).await
    }

    /// Takes note of the lease, and of when it was seen to change.
    fn see(&mut self, lease: Lease) {
        let same = self
            .seen
            .as_ref()
            .is_some_and(|(seen, _)| (&seen.spec, &seen.metadata.uid) == (&lease.spec, &lease.metadata.uid));
        match &mut self.seen {
            Some((seen, _)) if same => *seen = lease,
            _ => self.seen = Some((lease, Instant::now())),
        }
    }

    fn held_by_another(&self) -> bool {
        let Some((lease, since)) = &self.seen else {
            return true;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let asked = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        !holder.is_empty() && holder != self.identity && since.elapsed() < Duration::from_secs(asked)
    }

    /// Makes the lease ours from now on.
    fn claim(&self, mut lease: Lease) -> Lease {
        let now = MicroTime(Timestamp::now());
        let old = lease.spec.take().unwrap_or_default();
        let ours = old.holder_identity.as_deref() == Some(&self.identity);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(GOOD_FOR.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0).saturating_add(i32::from(!ours))),
            ..LeaseSpec::default()
        });
        lease
    }

    async fn create(&mut self) -> Result<(), (Deed, Refusal)> {
        let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
        let lease = self.claim(Lease { metadata, spec: None });
        let begun = Instant::now();
        let made = ask(self.leases.create(&PostParams::default(), &lease)).await;
        self.lead(begun, made.map_err(|refusal| (CREATE, refusal))?);
        Ok(())
    }

    async fn write(&mut self, lease: Lease) -> Result<(), (Deed, Refusal)> {
        let lease = self.claim(lease);
        let begun = Instant::now();
        // The version that it replaces is in its metadata.
        let written = ask(self.leases.replace(LEASE, &PostParams::default(), &lease)).await;
        self.lead(begun, written.map_err(|refusal| (UPDATE, refusal))?);
        Ok(())
    }

    fn lead(&mut self, begun: Instant, lease: Lease) {
        self.see(lease);
        self.renewed = Some(begun);
        self.report.wrote();
        if !self.leading.send_replace(true) {
            tracing::info!(identity = self.identity, "this agent leads: it writes the status of policies");
        }
    }

    fn stop(&mut self, why: &str) {
        self.renewed = None;
        if self.leading.send_replace(false) {
            tracing::info!("this agent does not lead any more: {why}");
        }
    }

    /// Leaves the lease to whoever comes next.
    async fn give_back(&mut self) {
        let Some((mut lease, _)) = self.seen.take() else {
            return;
        };
        let transitions = lease.spec.take().unwrap_or_default().lease_transitions;
        let now = MicroTime(Timestamp::now());
        lease.spec = Some(LeaseSpec {
            lease_duration_seconds: Some(1),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: transitions,
            ..LeaseSpec::default()
        });
        if let Err(refusal) = ask(self.leases.replace(LEASE, &PostParams::default(), &lease)).await {
            tracing::debug!(%refusal, "the lease was not given back");
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
