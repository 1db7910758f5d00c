//! Whether the agent lives and is ready: what `/healthz`, `/readyz` and `probe` say alike.
//!
//! Invariants: what a restart does not mend is no reason for one, so that only the loop decides whether the agent lives; the answer of one
//! pod's agent makes no other pod ready. Tested below, by `tests/operate.rs` and, with the manifests' probes, by `tests/kube.rs`.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admin::server::Published;
use crate::metrics::Meters;

/// How long the loop may take for a turn; it has one at least each second, unless the kernel or a large change keeps it.
pub(crate) const TURN: Duration = Duration::from_secs(60);

/// How the agent does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Why its loop counts as stuck.
    stuck: Option<String>,
    /// Whether everything desired is enforced.
    ready: bool,
    /// What keeps it from that.
    pending: Vec<String>,
    /// The pod that it runs in.
    pod: Option<String>,
}

impl Health {
    /// As it is now.
    pub(crate) fn of(published: &Published, meters: &Meters, pod: Option<String>) -> Self {
        let age = meters.turn_age();
        let stuck = (age > TURN).then(|| format!("the agent's loop has not turned for {} s", age.as_secs()));
        Self { stuck, ready: published.status.ready, pending: published.status.pending.clone(), pod }
    }

    /// Whether the owner task is alive, and nothing else: what it could not do is no reason to start it anew.
    pub(crate) fn alive(&self) -> Result<&'static str, String> {
        self.stuck.as_ref().map_or(Ok("ok\n"), |stuck| Err(format!("{stuck}\n")))
    }

    /// Whether everything desired is enforced; what is not has a line each.
    pub(crate) fn ready(&self) -> Result<&'static str, String> {
        // What is published would be as old as the last turn.
        let pending: Vec<&String> = self.pending.iter().chain(&self.stuck).collect();
        if self.ready && pending.is_empty() {
            return Ok("ready\n");
        }
        let mut text = "not ready\n".to_owned();
        for pending in pending {
            // Writing to a string does not fail.
            let _ = writeln!(text, "- {pending}");
        }
        Err(text)
    }

    /// The same, of the agent in this pod: another one may have the node, and this one waits for its end.
    pub(crate) fn ready_in(&self, pod: Option<&str>) -> Result<&'static str, String> {
        match (pod, self.pod.as_deref()) {
            (Some(pod), other) if other != Some(pod) => {
                let other =
                    other.map_or_else(|| "outside of pods".to_owned(), |other| format!("in pod {other}"));
                Err(format!("not ready\n- the agent {other} has this node; this one waits for its end\n"))
            }
            _ => self.ready(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Health, TURN};
    use crate::admin::server::Published;
    use crate::metrics::Meters;
    use crate::status::Status;
    use std::time::Duration;

    fn published(pending: &[&str]) -> Published {
        let pending: Vec<_> = pending.iter().map(|&text| text.to_owned()).collect();
        let status = Status { ready: pending.is_empty(), pending, ..Status::default() };
        Published { status, ..Published::default() }
    }

    #[test]
    fn a_stuck_loop_is_neither_alive_nor_ready() {
        let (published, meters) = (published(&[]), Meters::default());
        let health = || Health::of(&published, &meters, None);
        assert_eq!((health().alive(), health().ready()), (Ok("ok\n"), Ok("ready\n")));
        meters.turned_ago(TURN + Duration::from_secs(2));
        let said = health().alive().unwrap_err();
        assert!(
            said.contains("has not turned for 6") && health().ready().unwrap_err().contains(&said),
            "{said}"
        );
        meters.turned();
        assert_eq!((health().alive(), health().ready()), (Ok("ok\n"), Ok("ready\n")));
    }

    #[test]
    fn who_is_not_ready_names_each_thing_and_is_alive() {
        let health = Health::of(&published(&["the source", "the hook"]), &Meters::default(), None);
        assert_eq!(health.ready(), Err("not ready\n- the source\n- the hook\n".to_owned()));
        assert_eq!(health.alive(), Ok("ok\n"));
    }

    #[test]
    fn the_answer_of_one_pods_agent_makes_no_other_ready() {
        let of = |pod: Option<&str>| Health::of(&published(&[]), &Meters::default(), pod.map(str::to_owned));
        assert_eq!(of(Some("a")).ready_in(Some("a")), Ok("ready\n"));
        assert!(of(Some("b")).ready_in(Some("a")).unwrap_err().contains("in pod b has this node"));
        assert!(of(None).ready_in(Some("a")).unwrap_err().contains("outside of pods"));
        // On the node itself any agent's word is asked for.
        assert_eq!(of(Some("a")).ready_in(None), Ok("ready\n"));
    }
}
