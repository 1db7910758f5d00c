//! `cleanup`: taking everything off the node again, and seeing that it has gone.
//!
//! Invariant: only what is pinned below our directory goes. Tested by `tests/lifecycle.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aya::maps::{MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};

use crate::datapath::{DEVICES, detach_filters, pins};
use crate::lock::Lock;

/// The kernel lets go of programs and maps some milliseconds after their last name has gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Removes every pin below `bpffs`, waits until the kernel has let go of what was pinned, and removes the agent's socket.
///
/// `lock` is the lock of the pin directory: no agent may run.
///
/// # Errors
/// Something could not be removed, or something is still held by another process.
pub fn cleanup(bpffs: &Path, socket: &Path, lock: Lock) -> anyhow::Result<()> {
    let all = pins::directory(bpffs);
    let mut programs = BTreeSet::new();
    let mut maps = BTreeSet::new();
    for dir in pins::versions(&all) {
        for entry in fs::read_dir(&dir)?.flatten() {
            let path = entry.path();
            // Where the kernel has no links for tc, the hooks of devices do not go with a pin.
            if path.ends_with(DEVICES)
                && let Ok(map) = MapData::from_pin(&path)
            {
                detach_filters(map)?;
            }
            if pins::is_link(&path) {
                let link: FdLink = PinnedLink::from_pin(&path)
                    .with_context(|| format!("cannot open {}", path.display()))?
                    .into();
                programs.insert(link.info().context("cannot ask the kernel about a link")?.program_id());
            } else if let Ok(info) = MapInfo::from_pin(&path) {
                maps.insert(info.id());
            }
        }
        pins::remove(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let path = lock.path().to_owned();
    fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    lock.release();
    Lock::sweep();
    // An agent with its pins elsewhere may answer there.
    let left = if UnixStream::connect(socket).is_ok() { Ok(()) } else { fs::remove_file(socket) };
    match left {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", socket.display()));
        }
        _ => {}
    }
    wait(&programs, &maps)?;
    println!("removed {} programs and {} maps; nothing is enforced on this node", programs.len(), maps.len());
    Ok(())
}

fn wait(programs: &BTreeSet<u32>, maps: &BTreeSet<u32>) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let programs: Vec<_> = aya::programs::loaded_programs()
            .flatten()
            .map(|p| p.id())
            .filter(|id| programs.contains(id))
            .collect();
        let maps: Vec<_> =
            aya::maps::loaded_maps().flatten().map(|m| m.id()).filter(|id| maps.contains(id)).collect();
        if programs.is_empty() && maps.is_empty() {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!(
                "the pins are removed, but another process still holds programs {programs:?} and maps {maps:?}"
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
