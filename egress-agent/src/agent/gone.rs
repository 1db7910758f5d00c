//! Addresses that were pods' and are nobody's any more. What answers a pod that has gone would leave by the node's route for the
//! cluster, and whoever gets packets there has them.
//!
//! Invariant: only what came in before the address was left is let go of, and only while nobody else has it. Tested by
//! `row_8_a_pod_that_has_gone_is_not_answered` in `tests/threats`.

use std::collections::{BTreeMap, VecDeque};

use egress_common::wire::{Addr, WITNESS_TTL};

/// How long the next pod of an address may take until its object says so: it is to be answered from the first. Nanoseconds.
const AGAIN: u64 = 5_000_000_000;

/// How many are kept; of more, the oldest go.
const MOST: usize = 65_536;

/// Since when addresses have no pod, on the kernel's monotonic clock in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Gone {
    since: BTreeMap<Addr, u64>,
    /// In the order of time, with some that were left again later.
    order: VecDeque<(u64, Addr)>,
}

impl Gone {
    /// Takes in that a pod has left an address.
    pub(super) fn leave(&mut self, addr: Addr, now: u64) {
        self.since.insert(addr, now);
        self.order.push_back((now, addr));
        self.forget(now);
    }

    /// Those that nobody has, long enough for the next pod to be known, and not so long that nothing from before counts any more.
    pub(super) fn since(&mut self, now: u64, is_owned: impl Fn(&Addr) -> bool) -> BTreeMap<Addr, u64> {
        self.forget(now);
        let counts = |(addr, since): &(&Addr, &u64)| **since + AGAIN <= now && !is_owned(addr);
        self.since.iter().filter(counts).map(|(addr, since)| (*addr, *since)).collect()
    }

    fn forget(&mut self, now: u64) {
        while let Some((since, addr)) = self.order.front().copied() {
            // What came in is let go of within some seconds after it is over.
            if now.saturating_sub(since) < 2 * WITNESS_TTL && self.order.len() <= MOST {
                return;
            }
            self.order.pop_front();
            if self.since.get(&addr) == Some(&since) {
                self.since.remove(&addr);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use egress_common::wire::{Addr, WITNESS_TTL};

    use super::{AGAIN, Gone, MOST};

    fn addr(number: usize) -> Addr {
        Addr::v4([10, (number >> 16) as u8, (number >> 8) as u8, number as u8])
    }

    #[test]
    fn an_address_counts_from_the_time_it_was_left_last_while_nobody_has_it() {
        let mut gone = Gone::default();
        gone.leave(addr(1), 10);
        gone.leave(addr(2), 20);
        gone.leave(addr(1), 30);
        let counting = |gone: &mut Gone, now| gone.since(now, |_| false).into_iter().collect::<Vec<_>>();
        assert_eq!(counting(&mut gone, 19 + AGAIN), []);
        assert_eq!(counting(&mut gone, 20 + AGAIN), [(addr(2), 20)]);
        assert_eq!(counting(&mut gone, 30 + AGAIN), [(addr(1), 30), (addr(2), 20)]);
        assert_eq!(gone.since(30 + AGAIN, |one| *one == addr(2)).into_keys().collect::<Vec<_>>(), [addr(1)]);
        assert_eq!(counting(&mut gone, 20 + 2 * WITNESS_TTL), [(addr(1), 30)]);
        assert_eq!(counting(&mut gone, 30 + 2 * WITNESS_TTL), []);
        assert!(gone.since.is_empty() && gone.order.is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_goes() {
        let mut gone = Gone::default();
        (0..=MOST).for_each(|number| gone.leave(addr(number), 1));
        let counting = gone.since(1 + AGAIN, |_| false);
        assert_eq!((counting.len(), counting.contains_key(&addr(0))), (MOST, false));
    }
}
