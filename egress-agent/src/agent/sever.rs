//! Which open connections are denied now.
//!
//! Invariant: what is ended is what the kernel would deny: it is judged by what the maps hold, as the flow that the socket hook had
//! let pass. A socket of which nothing was ever let pass, as where the pod's own rules send it to a proxy in the pod, is left alone.
//! Tested by `tests/sever.rs`.

use std::collections::BTreeMap;

use egress_common::Reason;
use egress_policy::standing::Standing;

use super::Agent;
use crate::beside::Turn;
use crate::clock::monotonic;
use crate::coverage::look;
use crate::network::{self, Open, Sockets};
use crate::sever::{Place, Seen, Severed, Severing};

impl Agent {
    /// Ends what policies deny from now on, if the kernel can.
    pub(crate) fn sever_from_now_on(&mut self) {
        self.severed = Some(0);
        if let Err(error) = network::can_end() {
            let lack = format!("the kernel does not end connections: --sever does nothing ({error})");
            tracing::warn!("{lack}");
            self.severs_not = Some(lack);
        }
    }

    /// Whether something was applied since the last call that open connections are to be judged by.
    pub(crate) fn has_applied(&mut self) -> bool {
        std::mem::take(&mut self.applied)
            && self.severed.is_some()
            && self.severs_not.is_none()
            && self.datapath.attached().is_some()
    }

    /// Takes the next turn in looking for connections and ending them.
    pub(crate) fn sever(&mut self, severing: &mut Severing, turn: Turn<Seen>) {
        match turn {
            // What failed in part closes pods that it should not; the next apply that does not fail looks again.
            Turn::Look | Turn::Done(Seen::Found(..)) if self.behind.is_none() => {}
            Turn::Look => self.look_for_connections(severing),
            Turn::Done(Seen::Found(places, containers)) => {
                let doomed: Vec<_> =
                    places.into_iter().map(|place| self.doomed(place, &containers)).collect();
                if doomed.iter().any(|(_, severed)| !severed.is_empty()) {
                    severing.end(doomed);
                }
            }
            Turn::Done(Seen::Ended(ended)) => {
                for (Severed { open, pod, reason }, result) in ended {
                    let destination = open.remote();
                    match result {
                        Ok(true) => {
                            self.severed = self.severed.map(|number| number + 1);
                            tracing::info!(pod, %destination, reason = reason.name(), "severed");
                        }
                        Ok(false) => {}
                        Err(error) => tracing::error!(pod, %destination, %error, "cannot end a connection"),
                    }
                }
            }
            Turn::Failed(error) => tracing::error!("{error}"),
        }
    }

    fn look_for_connections(&self, severing: &mut Severing) {
        let standing = Standing::new(self.datapath.observed());
        let judged: Vec<_> = self.scan.pods.iter().filter(|pod| standing.is_judged(pod.cgroup)).collect();
        let mut node = None;
        let mut within = BTreeMap::new();
        for pod in &judged {
            // The process that it was seen by may have been one of a moment.
            let found = || {
                let node = node.get_or_insert_with(network::on_node).as_ref().ok()?;
                look(pod, node, &self.datapath).ok()?
            };
            let known = self.coverage.network(pod.cgroup).filter(|network| network.stands()).cloned();
            if let Some(network) = known.or_else(found) {
                within.insert(network.namespace, network.pid);
            }
        }
        let locked = judged.iter().filter(|pod| standing.is_locked(pod.cgroup));
        let locked = locked.map(|pod| pod.path.clone()).collect();
        if within.is_empty() {
            return;
        }
        match self.datapath.approvals() {
            Ok(approvals) => severing.look(approvals, within, locked),
            Err(error) => tracing::error!("{error:#}"),
        }
    }

    fn doomed(&self, mut place: Place, containers: &BTreeMap<u64, u64>) -> (Place, Vec<Severed>) {
        let standing = Standing::new(self.datapath.observed());
        let open = std::mem::take(&mut place.sockets.open);
        let doomed = open.into_iter().filter_map(|open| {
            let reason = self.denied(&standing, &open, &place.sockets, containers)?;
            let pod = self.compiler.compiled().endpoints.get(&open.kept?.cgroup);
            let pod = pod.map_or_else(String::new, |pod| format!("{}/{}", pod.namespace, pod.name));
            Some(Severed { open, pod, reason })
        });
        let doomed = doomed.collect();
        (place, doomed)
    }

    /// Why a connection is to be ended, if it is.
    fn denied(
        &self,
        standing: &Standing<'_>,
        open: &Open,
        sockets: &Sockets,
        containers: &BTreeMap<u64, u64>,
    ) -> Option<Reason> {
        let kept = open.kept.as_ref()?;
        let container = if standing.is_locked(kept.cgroup) { *containers.get(&open.cgroup)? } else { 0 };
        // What came in is a reply to `decide`, as far as it was seen; this is for what was not.
        if sockets.listens(open.local()) {
            return None;
        }
        standing.denied(kept, container, self.datapath.counted().of(kept), monotonic())
    }
}
