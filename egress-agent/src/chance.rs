//! Chance, so that the nodes of a cluster do not ask at once.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// Up to half as long again.
pub(crate) fn jittered(wait: Duration) -> Duration {
    let share = u32::try_from(random() % 1000).unwrap_or(0);
    wait + wait / 2 * share / 1000
}

/// A number that nobody guesses twice.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::{Duration, jittered};
    use std::collections::BTreeSet;

    #[test]
    fn waits_differ_by_half_at_most() {
        let hour = Duration::from_hours(1);
        let waits: BTreeSet<Duration> = (0..10).map(|_| jittered(hour)).collect();
        assert!(waits.len() > 1 && waits.iter().all(|wait| *wait >= hour && *wait <= hour * 3 / 2));
    }
}
