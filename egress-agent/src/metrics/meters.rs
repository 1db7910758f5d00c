//! What the owner task measures as it goes.
//!
//! Invariant: recording never waits for a reader; a duration is measured by a clock that only goes on. Tested below.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;

/// Upper bounds of the histograms' buckets, in seconds: from a single write to what somebody would wait for.
const BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Shared by the owner task, which records, and by whoever reads.
#[derive(Debug)]
pub struct Meters {
    pub(super) apply: Histogram,
    pub(super) enforced: Histogram,
    times: Mutex<Times>,
    flows_lost: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Times {
    turned: Instant,
    applied: Instant,
    /// When the first event arrived that is not enforced yet.
    behind: Option<Instant>,
}

impl Default for Meters {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            apply: Histogram::new(BUCKETS),
            enforced: Histogram::new(BUCKETS),
            times: Mutex::new(Times { turned: now, applied: now, behind: None }),
            flows_lost: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }
}

impl Meters {
    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner task's loop has turned.
    pub fn turned(&self) {
        self.times().turned = Instant::now();
    }

    /// Time since it did.
    #[must_use]
    pub fn turn_age(&self) -> Duration {
        self.times().turned.elapsed()
    }

    /// Something arrived at `at` that may have to be enforced.
    pub fn arrived(&self, at: Instant) {
        let mut times = self.times();
        times.behind = Some(times.behind.map_or(at, |before| before.min(at)));
    }

    /// A plan that was begun at `begun` has been written as a whole.
    pub fn applied(&self, begun: Instant) {
        let now = Instant::now();
        self.apply.observe((now - begun).as_secs_f64());
        let mut times = self.times();
        times.applied = now;
        if let Some(arrived) = times.behind.take() {
            self.enforced.observe((now - arrived).as_secs_f64());
        }
    }

    /// Whether everything that has arrived is enforced, after a turn.
    pub fn in_step(&self, in_step: bool) {
        let mut times = self.times();
        match in_step {
            true => times.behind = None,
            false => times.behind = times.behind.or_else(|| Some(Instant::now())),
        }
    }

    /// Time since the last apply; without one, since the start.
    pub(super) fn revision_age(&self) -> Duration {
        self.times().applied.elapsed()
    }

    /// Time since when something is not enforced that should be.
    pub(super) fn behind(&self) -> Duration {
        self.times().behind.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Lines of the flow log were lost.
    pub fn lost_flows(&self, lines: u64) {
        self.flows_lost.fetch_add(lines, Ordering::Relaxed);
    }

    pub(crate) fn flows_lost(&self) -> u64 {
        self.flows_lost.load(Ordering::Relaxed)
    }

    /// A connection was closed unanswered.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The loop turned last `ago`, for tests of what a stuck one looks like.
    #[cfg(test)]
    pub(crate) fn turned_ago(&self, ago: Duration) {
        self.times().turned = Instant::now().checked_sub(ago).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::Meters;
    use std::time::{Duration, Instant};

    #[test]
    fn an_apply_enforces_the_first_event_that_waited() {
        let meters = Meters::default();
        let first = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
        meters.arrived(first);
        meters.arrived(Instant::now());
        assert!(meters.behind() >= Duration::from_secs(3));
        meters.applied(Instant::now());
        assert_eq!((meters.apply.count(), meters.enforced.count()), (1, 1));
        assert!(meters.enforced.sum() >= 3.0 && meters.apply.sum() < 1.0);
        assert_eq!(meters.behind(), Duration::ZERO);
    }

    #[test]
    fn an_event_that_changes_nothing_is_not_measured_and_a_failure_stays_behind() {
        let meters = Meters::default();
        meters.arrived(Instant::now());
        meters.in_step(true);
        assert_eq!((meters.enforced.count(), meters.behind()), (0, Duration::ZERO));
        meters.in_step(false);
        std::thread::sleep(Duration::from_millis(2));
        meters.in_step(false);
        assert!(meters.behind() >= Duration::from_millis(2), "since the first failure");
        meters.applied(Instant::now());
        assert_eq!((meters.enforced.count(), meters.behind()), (1, Duration::ZERO));
    }
}
