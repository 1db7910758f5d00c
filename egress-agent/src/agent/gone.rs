//! Addresses that were pods' and are nobody's any more. What answers a pod that has gone would leave by the node's route for the
//! cluster, and whoever gets packets there has them.
//!
//! Invariant: each is held for [`HOLD`] after its last pod, but for the oldest of more than [`MOST`]; one that somebody has again stands for
//! that owner alone. Tested by `row_8_a_pod_that_has_gone_is_not_answered` in `tests/threats`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use egress_common::wire::Addr;

/// How long nobody is answered there: the kernel sends what a connection has not acknowledged for 924.6 seconds (`tcp_retries2`,
/// Documentation/networking/ip-sysctl.rst), and what was seen of a datagram counts for two minutes.
const HOLD: Duration = Duration::from_secs(930);

/// How many are held: an eighth of the map of addresses.
const MOST: usize = 65_536;

/// The addresses that are held.
#[derive(Debug, Default)]
pub(super) struct Gone {
    since: BTreeMap<Addr, Instant>,
    /// In the order of time, with some that have gone again since.
    order: VecDeque<(Instant, Addr)>,
}

impl Gone {
    /// Holds one from now on.
    pub(super) fn hold(&mut self, addr: Addr, now: Instant) {
        self.since.insert(addr, now);
        self.order.push_back((now, addr));
    }

    /// Takes the next one whose time is over.
    pub(super) fn next_over(&mut self, now: Instant) -> Option<Addr> {
        loop {
            let (since, addr) = *self.order.front()?;
            let stands = self.since.get(&addr) == Some(&since);
            if stands && now.duration_since(since) < HOLD && self.since.len() <= MOST {
                return None;
            }
            self.order.pop_front();
            if stands {
                self.since.remove(&addr);
                return Some(addr);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use egress_common::wire::Addr;

    use super::{Gone, HOLD, MOST};

    fn addr(number: usize) -> Addr {
        Addr::v4([10, (number >> 16) as u8, (number >> 8) as u8, number as u8])
    }

    #[test]
    fn time_counts_from_the_last_owner() {
        let mut gone = Gone::default();
        let begin = Instant::now();
        gone.hold(addr(1), begin);
        gone.hold(addr(2), begin + Duration::from_secs(1));
        gone.hold(addr(1), begin + Duration::from_secs(2));
        assert_eq!(gone.next_over(begin + HOLD), None);
        assert_eq!(gone.next_over(begin + HOLD + Duration::from_secs(1)), Some(addr(2)));
        assert_eq!(gone.next_over(begin + HOLD + Duration::from_secs(1)), None);
        assert_eq!(gone.next_over(begin + HOLD + Duration::from_secs(2)), Some(addr(1)));
        assert_eq!(gone.next_over(begin + HOLD * 2), None);
        assert!(gone.since.is_empty() && gone.order.is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_goes() {
        let mut gone = Gone::default();
        let now = Instant::now();
        (0..=MOST).for_each(|number| gone.hold(addr(number), now));
        assert_eq!(gone.next_over(now), Some(addr(0)));
        assert_eq!(gone.next_over(now), None);
    }
}
