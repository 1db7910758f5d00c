//! Many entries of a map in one system call.
//!
//! Invariant: what counts as written has been, in order and each by itself; that not all was is no error here. Tested by
//! `tests/verdicts.rs`, and where the map is full by `tests/storms`.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Pod;
use aya::maps::{HashMap, IterableMap as _, MapData};
use nix::libc;

use crate::bpf::bpf;

/// `BPF_MAP_UPDATE_BATCH`, since 5.6 for hash maps.
const UPDATE_BATCH: libc::c_long = 26;

/// The beginning of `union bpf_attr` for it.
#[repr(C)]
#[derive(Default)]
struct Batch {
    batches: [u64; 2],
    keys: u64,
    values: u64,
    /// How many there are, and then how many were written.
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

/// Writes entries in order until one cannot be, and tells how many were written. Why not more, only writing the next one by itself tells.
pub(super) fn update<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, keys: &[K], values: &[V]) -> usize {
    let of_map = u32::try_from(map.map().fd().as_fd().as_raw_fd());
    let (Ok(map), Ok(count)) = (of_map, u32::try_from(keys.len().min(values.len()))) else { return 0 };
    let (keys, values) =
        (keys.as_ptr().expose_provenance() as u64, values.as_ptr().expose_provenance() as u64);
    let mut batch = Batch { keys, values, count, map, ..Batch::default() };
    // SAFETY: the structure is as the kernel's, and the slices, which it reads, hold so many keys and values of the sizes that the map
    // has, as aya looked at when it made the map's type.
    match unsafe { bpf(UPDATE_BATCH, &mut batch) } {
        Ok(_) => batch.count.min(count) as usize,
        // What the kernel refused as a whole it did not count. (That it wrote them and cannot tell us would take a stack that is gone.)
        Err(_) if batch.count >= count => 0,
        Err(_) => batch.count as usize,
    }
}
