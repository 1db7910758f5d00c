//! What the kernel says of this process.
//!
//! Invariant: what cannot be read is left out, not told as zero. Tested below.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Resident memory in bytes (`proc(5)`, `statm`).
pub(super) fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?)
}

/// Processor time used so far, in seconds (`proc(5)`, `stat`, fields 14 and 15).
pub(super) fn cpu() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name may hold blanks and parentheses.
    let (_, rest) = text.rsplit_once(')')?;
    let ticks = rest.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u32>);
    let ticks = ticks.sum::<Result<u32, _>>().ok()?;
    let second = u32::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(f64::from(ticks) / f64::from(second))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_memory_and_has_used_a_processor() {
        assert!((1 << 20..1 << 34).contains(&super::memory().unwrap()));
        let before = super::cpu().unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed().as_millis() < 100 {}
        assert!(super::cpu().unwrap() > before);
    }
}
