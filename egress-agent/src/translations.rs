//! Looking where the node's netfilter sends what pods send to services, beside the one task. Tested by `tests/former.rs`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::beside::Beside;
use crate::network::{self, Translated};

/// What is under way.
pub(crate) type Translations = Beside<Seen>;

/// The least time from one look to the next.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Debug)]
pub(crate) enum Seen {
    /// What was found.
    Found(Vec<Translated>),
    /// As many as this were forgotten.
    Forgot(usize),
}

impl Translations {
    /// Looks for connections of these senders.
    pub(crate) fn look(&mut self, senders: BTreeSet<IpAddr>) {
        self.begin(move || {
            let found = network::translated(&senders).map(Seen::Found);
            found.map_err(|error| format!("cannot see where connections to services go: {error}"))
        });
    }

    /// Has connections forgotten.
    pub(crate) fn forget(&mut self, doomed: Vec<Translated>) {
        self.begin(move || {
            let forgot = network::forget(&doomed).map(Seen::Forgot);
            forgot.map_err(|error| format!("cannot end connections to what services led to: {error}"))
        });
    }
}
