//! What the services towards the API server have in common: how a request ends, what is said of it, and when to try again.
//!
//! Invariant: a request ends within [`PATIENCE`]; the same trouble is logged once, until something else happens. Tested below
//! and by the services' tests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::chance::jittered;

/// How long a request may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The first wait after a failure, and the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);
/// The longest wait where a right is missing: the role has to be changed. The first ones are short as well, because a server that starts
/// answers like that until it has read the roles.
pub(super) const WITHOUT_RIGHT: Duration = Duration::from_mins(5);

/// How one of the services does that write to the API server. Enforcement rests on none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What it does: `leader election`, `policy status`, `pod events`, `taint`.
    pub name: String,
    /// How it does: `Leading` or `Following`, `Waiting`, `Working`, `Failing`, `NotAllowed` where a right is missing.
    pub state: String,
    /// What went wrong last, until it goes right again.
    pub error: Option<String>,
    /// What was written since the start.
    pub written: u64,
    /// What was left out: of events, flows that no event tells of.
    pub left_out: u64,
}

/// A service's own line of the status.
#[derive(Clone, Debug)]
pub(super) struct Report(Arc<Mutex<ServiceStatus>>);

impl Report {
    pub(super) fn new(name: &str) -> Self {
        let status =
            ServiceStatus { name: name.to_owned(), state: "Waiting".to_owned(), ..ServiceStatus::default() };
        Self(Arc::new(Mutex::new(status)))
    }

    pub(super) fn status(&self) -> ServiceStatus {
        self.change(|status| status.clone())
    }

    fn change<T>(&self, change: impl FnOnce(&mut ServiceStatus) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All is well, in this state.
    pub(super) fn fine(&self, state: &str) {
        self.change(|status| {
            if status.error.take().is_some() {
                tracing::info!("{}: well again", status.name);
            }
            status.state = state.to_owned();
        });
    }

    pub(super) fn fails(&self) -> bool {
        self.change(|status| status.error.is_some())
    }

    pub(super) fn wrote(&self) {
        self.change(|status| status.written += 1);
    }

    pub(super) fn left_out(&self, number: u64) {
        self.change(|status| status.left_out += number);
    }

    /// Something went wrong; the log says so where it is not what went wrong before.
    pub(super) fn failed(&self, deed: &Deed, refusal: &Refusal) {
        let (state, text) = match refusal {
            Refusal::NotAllowed => ("NotAllowed", deed.not_allowed()),
            other => ("Failing", format!("cannot {} {}: {other}", deed.verb, deed.resource)),
        };
        self.change(|status| {
            if status.error.as_deref() != Some(&text) {
                tracing::warn!("{}: {text}", status.name);
            }
            status.state = state.to_owned();
            status.error = Some(text);
        });
    }
}

/// What a request does, in the words of RBAC, and what is not done where it is not allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deed {
    pub(super) verb: &'static str,
    /// As in `leases.coordination.k8s.io`.
    pub(super) resource: &'static str,
    pub(super) without: &'static str,
}

impl Deed {
    fn not_allowed(&self) -> String {
        format!("the service account may not {} {}: {}", self.verb, self.resource, self.without)
    }
}

/// How a request ended that did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The role lacks a right.
    #[error("not allowed")]
    NotAllowed,
    /// There is no such object, or kind, or namespace: which, the server says.
    #[error("{0}")]
    NotFound(String),
    /// The object is another by now, or there already.
    #[error("it has changed meanwhile")]
    Conflict,
    /// What was asked for can never be done like this: the server's words, and its code.
    #[error("{0}")]
    Never(String, u16),
    /// It may be done another time: the earliest, where the server says so.
    #[error("{0}")]
    Later(String, Option<Duration>),
}

/// Waits for a request, for a while.
pub(super) async fn ask<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Refusal> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(refusal(&error)),
        Err(_) => Err(Refusal::Later(format!("no answer within {} s", PATIENCE.as_secs()), None)),
    }
}

fn refusal(error: &kube::Error) -> Refusal {
    let kube::Error::Api(status) = error else {
        return Refusal::Later(format!("{:#}", anyhow::Error::msg(chain(error))), None);
    };
    match status.code {
        404 => Refusal::NotFound(status.message.clone()),
        409 => Refusal::Conflict,
        // Others are refused by admission, such as what is to be made in a namespace that is going.
        403 if is_right_missing(&status.message) => Refusal::NotAllowed,
        code @ (400 | 403 | 405 | 413 | 415 | 422) => Refusal::Never(status.message.clone(), code),
        code => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            let after = (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)));
            Refusal::Later(format!("{} ({code})", status.message.trim()), after)
        }
    }
}

/// Whether a 403 is the authorizer's, as in `events "x" is forbidden: User "u" cannot create resource "events" in API group "" in the
/// namespace "n"` (`forbiddenMessage` and `NewForbidden` of `apiserver` and `apimachinery`). Admission answers 403 as well, in the words of
/// whoever wrote a webhook, which must not silence the rest: those come after the name of the webhook (`admission webhook "x" denied the
/// request: `) or of the plugin.
fn is_right_missing(message: &str) -> bool {
    let Some((what, why)) = message.split_once(" is forbidden: ") else {
        return false;
    };
    // The resource, and the object's name in quotes where it has one.
    let of_object = match what.split_once(' ') {
        Some((_, name)) => name.starts_with('"') && name.ends_with('"') && !name.contains(' '),
        None => true,
    };
    let user = why.strip_prefix("User \"").and_then(|rest| rest.split_once("\" cannot "));
    let is_verb = |verb: &str| verb.bytes().all(|byte| byte.is_ascii_lowercase());
    let deed = user.and_then(|(_, deed)| deed.split_once(" resource \""));
    of_object && deed.is_some_and(|(verb, _)| is_verb(verb))
}

/// An error with its causes, which kube's own text leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// When to try again.
#[derive(Debug)]
pub(super) struct Pace {
    next: Duration,
    /// The last failure was a missing right.
    not_allowed: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { next: FIRST, not_allowed: false }
    }
}

impl Pace {
    /// It went right.
    pub(super) fn fine(&mut self) {
        *self = Self::default();
    }

    /// How long to wait after a failure.
    pub(super) fn after(&mut self, refusal: &Refusal) -> Duration {
        let not_allowed = *refusal == Refusal::NotAllowed;
        // A server that could not be reached for long, and starts, is not waited for as long as a role that nobody changes.
        if not_allowed && !self.not_allowed {
            self.next = FIRST;
        }
        self.not_allowed = not_allowed;
        let longest = if not_allowed { WITHOUT_RIGHT } else { LONGEST };
        let wait = self.next.min(longest);
        self.next = (self.next * 2).min(longest);
        jittered(match refusal {
            Refusal::Later(_, Some(after)) => wait.max(*after),
            _ => wait,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Deed, Duration, Pace, Refusal, Report, WITHOUT_RIGHT, is_right_missing};

    #[test]
    fn waits_grow_and_the_servers_word_counts() {
        let mut pace = Pace::default();
        let later = Refusal::Later(String::new(), None);
        let waits: Vec<Duration> = (0..9).map(|_| pace.after(&later)).collect();
        assert!(waits[0] >= Duration::from_secs(1) && waits[0] <= Duration::from_millis(1500));
        assert!(waits[8] >= Duration::from_mins(1) && waits[8] <= Duration::from_secs(90));
        pace.fine();
        assert!(pace.after(&later) <= Duration::from_millis(1500));
        let told = Refusal::Later(String::new(), Some(Duration::from_secs(30)));
        assert!(pace.after(&told) >= Duration::from_secs(30));
        let mut pace = Pace::default();
        let waits: Vec<Duration> = (0..12).map(|_| pace.after(&Refusal::NotAllowed)).collect();
        assert!(waits[0] <= Duration::from_millis(1500) && waits[11] >= WITHOUT_RIGHT, "{waits:?}");
        assert!(pace.after(&later) <= Duration::from_secs(90));
        // An outage, and then a server that has not read its roles yet.
        (0..12).for_each(|_| _ = pace.after(&later));
        assert!(pace.after(&Refusal::NotAllowed) <= Duration::from_millis(1500));
        assert!(pace.after(&Refusal::NotAllowed) <= Duration::from_secs(3));
    }

    #[test]
    fn the_authorizers_words_are_told_from_a_webhooks() {
        let user = "User \"system:serviceaccount:egress-enforcer:egress-agent\"";
        let group = "in API group \"coordination.k8s.io\"";
        for message in [
            format!(
                "leases.coordination.k8s.io is forbidden: {user} cannot create resource \"leases\" {group} in the namespace \"n\""
            ),
            format!(
                "nodes \"a\" is forbidden: {user} cannot get resource \"nodes\" in API group \"\" at the cluster scope: denied"
            ),
            format!(
                "x.y \"a\" is forbidden: {user} cannot patch resource \"x/status\" in API group \"y\" at the cluster scope"
            ),
        ] {
            assert!(is_right_missing(&message), "{message}");
        }
        for message in [
            "admission webhook \"a.b\" denied the request: you cannot create events here".to_owned(),
            format!("admission webhook \"a.b\" denied the request: events \"x\" is forbidden: {user} cannot create resource \"events\""),
            format!("admission webhook \"a.b\" denied the request: x is forbidden: {user} cannot create resource \"events\" \"x\""),
            format!("events \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {user} cannot create resource \"e\""),
            "events \"x\" is forbidden: unable to create new content in namespace n because it is being terminated".to_owned(),
            format!("{user} cannot get path \"/\""),
            String::new(),
        ] {
            assert!(!is_right_missing(&message), "{message}");
        }
    }

    #[test]
    fn a_missing_right_names_verb_and_resource() {
        let report = Report::new("policy status");
        let deed = Deed { verb: "patch", resource: "things/status", without: "nothing is said of things" };
        report.failed(&deed, &Refusal::NotAllowed);
        let status = report.status();
        assert_eq!(status.state, "NotAllowed");
        let text = "the service account may not patch things/status: nothing is said of things";
        assert_eq!(status.error.as_deref(), Some(text));
        report.fine("Working");
        assert_eq!(report.status().error, None);
    }
}
