//! The clock by which the programs write down when.

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`, in nanoseconds; 0 where it cannot be read.
pub(crate) fn monotonic() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    let nanoseconds = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    u64::try_from(nanoseconds).unwrap_or(0)
}
