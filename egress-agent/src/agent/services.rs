//! What is written to the API server, as far as the owner of the objects has a part in it.
//!
//! Invariant: nothing here is waited for but at the end.

use kube::Client;

use super::Agent;
use crate::cluster::{Cluster, ServiceStatus};

impl Agent {
    /// Starts what is written to the API server once that can be reached, tells it of each new client, and hands over
    /// what the status of policies is counted from where that is asked for.
    pub(crate) fn serve(&mut self, start: impl FnOnce(Client) -> Cluster) {
        if let Some((client, number)) = self.source.client() {
            match &mut self.cluster {
                None => self.cluster = Some((start(client), number)),
                Some((_, of)) if *of == number => {}
                // Not started anew: the events that wait to be written are from when nobody could be reached.
                Some((cluster, of)) => {
                    cluster.reach_by(client);
                    *of = number;
                }
            }
        }
        let cluster = self.cluster.as_ref().map(|(cluster, _)| cluster);
        if let Some(cluster) = cluster.filter(|cluster| cluster.wants_census() && !self.held) {
            cluster.count(std::mem::take(&mut self.uncounted), || self.index.census());
        }
    }

    pub(super) fn services(&self) -> Vec<ServiceStatus> {
        self.cluster.as_ref().map(|(cluster, _)| cluster.services()).unwrap_or_default()
    }

    /// Ends what is written to the API server; another agent leads soon.
    pub(crate) async fn end(self) {
        if let Some((cluster, _)) = self.cluster {
            cluster.end().await;
        }
    }
}
