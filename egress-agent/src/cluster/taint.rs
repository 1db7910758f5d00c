//! `run --lift-taint`: nodes may register with a taint that keeps pods away until the agent enforces.
//!
//! Invariants: the taint goes only while the agent is ready; a patch names the taint that it removes by place and content, so
//! that nothing else goes with it; no taint is ever added. A node that registers again has its taint again, so the node is
//! looked at from time to time. Tested by `tests/cluster/taint.rs`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::service::{Deed, Pace, Refusal, Report, ask};
use crate::admin::server::Published;
use crate::chance::jittered;

/// From one look at the node to the next.
const LOOK: Duration = Duration::from_mins(5);

const WITHOUT: &str = "the node keeps its taint, and no pod starts there";
const GET: Deed = Deed { verb: "get", resource: "nodes", without: WITHOUT };
const PATCH: Deed = Deed { verb: "patch", ..GET };

/// Takes one taint from the own node.
pub(super) struct Lifter {
    pub(super) nodes: Api<Node>,
    pub(super) node: String,
    /// The taint's key.
    pub(super) key: String,
    pub(super) report: Report,
    pub(super) published: watch::Receiver<Arc<Published>>,
}

impl Lifter {
    /// Runs until nothing is published any more.
    pub(super) async fn run(mut self) {
        let mut pace = Pace::default();
        loop {
            if self.published.wait_for(|published| published.status.ready).await.is_err() {
                return;
            }
            let wait = match self.lift().await {
                Ok(()) => {
                    pace.fine();
                    self.report.fine("Working");
                    jittered(LOOK)
                }
                Err((deed, refusal)) => {
                    if !matches!(refusal, Refusal::Conflict) {
                        self.report.failed(&deed, &refusal);
                    }
                    pace.after(&refusal)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn lift(&self) -> Result<(), (Deed, Refusal)> {
        let node = ask(self.nodes.get(&self.node)).await.map_err(|refusal| (GET, refusal))?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        // The last first, so that the places of the others stay as they are.
        let ours = taints.iter().enumerate().rev().filter(|(_, taint)| taint.key == self.key);
        let steps: Vec<Value> = ours
            .flat_map(|(place, taint)| {
                let path = format!("/spec/taints/{place}");
                let key = json!({ "op": "test", "path": format!("{path}/key"), "value": taint.key });
                let effect = json!({ "op": "test", "path": format!("{path}/effect"), "value": taint.effect });
                [key, effect, json!({ "op": "remove", "path": path })]
            })
            .collect();
        if steps.is_empty() {
            return Ok(());
        }
        let lifted = steps.len() / 3;
        let patch = serde_json::from_value(steps.into())
            .map_err(|error| (PATCH, Refusal::Never(format!("the patch cannot be written: {error}"), 400)))?;
        let patch = Patch::<Node>::Json(patch);
        match ask(self.nodes.patch(&self.node, &PatchParams::default(), &patch)).await {
            Ok(_) => {
                self.report.wrote();
                tracing::info!(taint = self.key, lifted, "this node takes pods now");
                Ok(())
            }
            // A test failed (`jsonPatcher` of the API server's `patch.go` says 422): the taints are others by now.
            Err(Refusal::Never(_, 422)) => Err((PATCH, Refusal::Conflict)),
            Err(refusal) => Err((PATCH, refusal)),
        }
    }
}
