//! `run --sever`: looking for open connections that are denied now, and ending them, beside the one task. Tested by `tests/sever.rs`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::MapData;
use egress_common::Reason;

use crate::beside::Beside;
use crate::network::{self, Open, Sockets};

/// The least time from one look to the next.
pub(crate) const INTERVAL: Duration = Duration::from_millis(500);
/// How deep below a pod's cgroup those of its containers, and what they make in there, are looked for.
const DEPTH: usize = 6;

/// What is under way.
pub(crate) type Severing = Beside<Seen>;

/// What came of it.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The sockets were looked at, and the cgroups: which belong to which container's.
    Found(Vec<Place>, BTreeMap<u64, u64>),
    /// Connections were ended.
    Ended(Vec<(Severed, io::Result<bool>)>),
}

/// A network namespace with its sockets.
#[derive(Debug)]
pub(crate) struct Place {
    namespace: File,
    pub(crate) sockets: Sockets,
}

/// A connection that is to be ended, and why.
#[derive(Debug)]
pub(crate) struct Severed {
    pub(crate) open: Open,
    pub(crate) pod: String,
    pub(crate) reason: Reason,
}

impl Severing {
    /// Looks at the sockets in these network namespaces, by number with a process in each, and at the cgroups below those of
    /// these pods.
    pub(crate) fn look(&mut self, approvals: MapData, within: BTreeMap<u64, u32>, pods: Vec<PathBuf>) {
        self.begin(move || {
            let mut containers = BTreeMap::new();
            for pod in &pods {
                for container in directories(pod) {
                    let Ok(id) = fs::metadata(&container).map(|about| about.ino()) else { continue };
                    number(&container, id, DEPTH, &mut containers);
                }
            }
            let mut places = Vec::new();
            for (number, pid) in within {
                // A process that has gone, or gone elsewhere, is found anew by whoever looks at pods.
                let Some(namespace) = namespace(pid, number) else { continue };
                match network::sockets(&namespace, approvals.fd().as_fd()) {
                    Ok(sockets) => places.push(Place { namespace, sockets }),
                    Err(error) => return Err(format!("cannot see the sockets of a pod: {error}")),
                }
            }
            Ok(Seen::Found(places, containers))
        });
    }

    /// Ends connections.
    pub(crate) fn end(&mut self, doomed: Vec<(Place, Vec<Severed>)>) {
        self.begin(move || {
            let mut ended = Vec::new();
            for (place, severed) in doomed {
                let open: Vec<_> = severed.iter().map(|one| one.open.clone()).collect();
                match network::end(&place.namespace, &open) {
                    Ok(results) => ended.extend(severed.into_iter().zip(results)),
                    Err(error) => return Err(format!("cannot end connections of a pod: {error}")),
                }
            }
            Ok(Seen::Ended(ended))
        });
    }
}

fn namespace(pid: u32, number: u64) -> Option<File> {
    let file = File::open(format!("/proc/{pid}/ns/net")).ok()?;
    (file.metadata().ok()?.ino() == number).then_some(file)
}

/// Writes down to which container's cgroup each cgroup below it belongs.
fn number(directory: &Path, container: u64, depth: usize, found: &mut BTreeMap<u64, u64>) {
    if let Ok(about) = fs::metadata(directory) {
        found.insert(about.ino(), container);
    }
    if depth > 0 {
        directories(directory).iter().for_each(|below| number(below, container, depth - 1, found));
    }
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries.filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir())).map(|one| one.path()).collect()
}
