//! Memory that is free goes back to the kernel.
//!
//! Invariant: nothing depends on it. Reading a cluster, and the kernel's types for loading programs, takes several times the memory of
//! keeping what came of it, and the C library keeps freed memory that lies between what is in use. Tested by its unit test; measured by
//! `cargo xtask bench agent`.

use std::thread;
use std::time::Duration;

/// How often it is looked whether there is anything to give back.
const EVERY: Duration = Duration::from_secs(15);
/// Free memory that is kept, besides a fiftieth of what is in use: events need it again at once.
const KEPT: usize = 512 << 10;
/// What is larger is mapped by itself, and gone when it is freed. The C library would raise that to what was freed
/// last: between whole answers of an API server, some megabytes each, lies what came of them, so that their place
/// stays.
const MAPPED: libc::c_int = 256 << 10;

/// Gives memory back from time to time, until the process ends. To be called before there are other threads, each of which would have an
/// arena by then.
pub(crate) fn give_back_from_time_to_time() {
    // Arenas of many threads would each keep memory of their own; nothing here allocates at many processors at once.
    // SAFETY: sets numbers of the allocator, which may be done at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
    let looks = || {
        loop {
            thread::sleep(EVERY);
            give_back();
        }
    };
    if let Err(error) = thread::Builder::new().name("memory".to_owned()).spawn(looks) {
        tracing::warn!(%error, "free memory is not given back");
    }
}

/// Gives free memory back if that is worth it; tells how much was free.
fn give_back() -> usize {
    // SAFETY: reads the allocator's numbers, under its locks.
    let info = unsafe { libc::mallinfo2() };
    if info.fordblks > KEPT + info.uordblks / 50 {
        // SAFETY: the allocator's own business, under its locks.
        unsafe { libc::malloc_trim(0) };
    }
    info.fordblks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    fn what_is_freed_between_what_is_in_use_goes_back() {
        // Too small to be mapped each by itself; every hundredth stays.
        let mut all: Vec<Option<Box<[u8]>>> = (0..80_000).map(|_| Some(vec![1; 1000].into())).collect();
        let full = resident();
        all.iter_mut().enumerate().filter(|(at, _)| at % 100 != 0).for_each(|(_, one)| *one = None);
        assert!(resident() + (20 << 20) > full, "the allocator keeps it");
        assert!(give_back() > 60 << 20);
        assert!(resident() + (50 << 20) < full);
        assert_eq!(all.iter().flatten().count(), 800);
    }
}
