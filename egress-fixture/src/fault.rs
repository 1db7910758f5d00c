//! What goes wrong on purpose: at which requests, how often, and in which way.
//!
//! Invariant: a fault strikes exactly the requests it names, and counts them. Held by `tests/faults.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::answer::Failure;

/// What a request does, as RBAC calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// GET of an object.
    Get,
    /// GET of a collection.
    List,
    /// GET of a collection with `watch`.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 7] =
        [Self::Get, Self::List, Self::Watch, Self::Create, Self::Update, Self::Patch, Self::Delete];
    /// What reads collections.
    pub const READ: [Self; 2] = [Self::List, Self::Watch];
    /// What writes.
    pub const WRITE: [Self; 4] = [Self::Create, Self::Update, Self::Patch, Self::Delete];

    /// As in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// 401, as when the token has expired.
    Unauthorized,
    /// 403, with the real message.
    Forbidden,
    /// 404 in the words of a path that nobody serves.
    NothingHere,
    /// 410.
    Expired,
    /// 429 of the rate limits, in plain text, with `Retry-After` in seconds.
    TooManyRequests(u32),
    /// 429 of a watch cache that is not filled yet.
    Initializing,
    /// 500.
    Internal,
    /// 503.
    Unavailable,
    /// Any other failure.
    Failure(Failure),
    /// The connection is closed without an answer.
    Refused,
    /// The request is taken, and never answered.
    Silent,
    /// 200 and bytes that are no JSON.
    Garbage,
    /// The answer's head, then nothing.
    Stalled,
    /// The answer comes so much later. What is asked for is done at once.
    Delay(Duration),
    /// The answer comes in pieces of so many bytes, and so long after one another.
    Dribble(usize, Duration),
    /// A watch breaks off after so many lines, bookmarks among them; of everything else, half comes.
    CutAfter(usize),
    /// A watch breaks off in the middle of the line after so many; of everything else, half comes.
    CutInside(usize),
    /// A watch ends well after so many lines.
    EndAfter(usize),
    /// Every line of a watch comes twice.
    Duplicate,
    /// Collections are as they were at this resource version, as those of a replica that lags behind: lists, and what a
    /// watch begins with where no version is asked for.
    Stale(u64),
    /// What is asked for is done, and then the connection is closed without an answer.
    Lost,
}

/// A fault that is set up; it stands until it is lifted or used up.
#[derive(Clone, Debug)]
pub struct Standing(Arc<Rule>);

#[derive(Debug)]
pub(crate) struct Rule {
    resource: String,
    verbs: Vec<Verb>,
    fault: Fault,
    left: AtomicUsize,
    hits: AtomicUsize,
    lifted: AtomicBool,
}

impl Standing {
    /// A fault at requests of a resource: `pods`, `nodes/status` for the part alone, `*` for all. `times` bounds it.
    pub(crate) fn new(resource: &str, verbs: &[Verb], fault: Fault, times: Option<usize>) -> Self {
        Self(Arc::new(Rule {
            resource: resource.to_owned(),
            verbs: verbs.to_vec(),
            fault,
            left: AtomicUsize::new(times.unwrap_or(usize::MAX)),
            hits: AtomicUsize::new(0),
            lifted: AtomicBool::new(false),
        }))
    }

    /// Requests that it struck.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.0.hits.load(Ordering::SeqCst)
    }

    /// Ends it. What it has begun to strike it strikes.
    pub fn lift(&self) {
        self.0.lifted.store(true, Ordering::SeqCst);
    }

    /// The fault, where it strikes such a request now; that counts.
    pub(crate) fn strike(&self, resource: &str, status: bool, verb: Verb) -> Option<Fault> {
        let rule = &*self.0;
        let named = match rule.resource.strip_suffix("/status") {
            Some(whole) => status && whole == resource,
            None => rule.resource == "*" || rule.resource == resource,
        };
        if !named || !rule.verbs.contains(&verb) || rule.lifted.load(Ordering::SeqCst) {
            return None;
        }
        let less = |left: usize| (left > 0).then(|| if left == usize::MAX { left } else { left - 1 });
        rule.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).ok()?;
        rule.hits.fetch_add(1, Ordering::SeqCst);
        Some(rule.fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Standing, Verb};

    #[test]
    fn a_fault_strikes_what_it_names_as_often_as_it_should() {
        let fault = Standing::new("pods", &Verb::READ, Fault::Internal, Some(2));
        assert_eq!(fault.strike("pods", false, Verb::Get), None);
        assert_eq!(fault.strike("nodes", false, Verb::List), None);
        assert_eq!(fault.strike("pods", false, Verb::List), Some(Fault::Internal));
        assert_eq!(fault.strike("pods", false, Verb::Watch), Some(Fault::Internal));
        assert_eq!(fault.strike("pods", false, Verb::List), None);
        assert_eq!(fault.hits(), 2);
        let parts = Standing::new("nodes/status", &Verb::ALL, Fault::Internal, None);
        assert_eq!(parts.strike("nodes", false, Verb::Patch), None);
        assert!(parts.strike("nodes", true, Verb::Patch).is_some());
        parts.lift();
        assert_eq!(parts.strike("nodes", true, Verb::Patch), None);
    }
}
