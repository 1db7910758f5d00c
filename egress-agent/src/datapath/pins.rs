//! Where maps and links are pinned: `<bpffs>/egress-enforcer/v<ABI>/`, one file per map and link.
//!
//! Invariant: a link's pin is only ever replaced by `rename`, which the kernel does at once. Tested by
//! `tests/lifecycle.rs`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya::programs::links::{FdLink, PinnedLink};

use crate::preflight;

/// The directory of all versions below a bpffs.
#[must_use]
pub fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join("egress-enforcer")
}

/// The pins of one ABI version.
#[derive(Clone, Debug)]
pub struct Pins {
    all: PathBuf,
    dir: PathBuf,
}

impl Pins {
    /// The pins of version `abi` below a bpffs.
    #[must_use]
    pub fn new(bpffs: &Path, abi: u32) -> Self {
        let all = directory(bpffs);
        let dir = all.join(format!("v{abi}"));
        Self { all, dir }
    }

    /// Makes the directory, or checks that it is root's alone.
    ///
    /// # Errors
    /// It cannot be made, or somebody else could write there.
    pub fn make(&self) -> anyhow::Result<()> {
        preflight::private_directory(&self.all)?;
        preflight::private_directory(&self.dir)
    }

    /// Whether the pinned link of a program is the one that belongs to the program of this id.
    #[must_use]
    pub fn holds(&self, program: &str, id: u32) -> bool {
        let link: Result<FdLink, _> = PinnedLink::from_pin(self.link(program)).map(Into::into);
        link.is_ok_and(|link| link.info().is_ok_and(|info| info.program_id() == id))
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the link of a program is pinned.
    #[must_use]
    pub fn link(&self, program: &str) -> PathBuf {
        self.dir.join(format!("link_{program}"))
    }

    /// The name of one of several links of a program.
    #[must_use]
    pub fn numbered(program: &str, number: u64) -> String {
        format!("{program}_{number}")
    }

    /// Whether a program has the link of this number.
    #[must_use]
    pub fn has_numbered(&self, program: &str, number: u64) -> bool {
        self.link(&Self::numbered(program, number)).exists()
    }

    /// Removes the numbered links of a program that are not to be kept. One that cannot be removed is told to the log.
    pub fn keep_numbered(&self, program: &str, keep: impl Fn(u64) -> bool) {
        let prefix = format!("link_{program}_");
        for path in fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix(&prefix).and_then(|number| number.parse().ok());
            if number.is_some_and(|number| !keep(number))
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(pin = %path.display(), %error, "cannot remove a link");
            }
        }
    }

    /// Pins a link, and lets go of the one that was pinned there before.
    ///
    /// # Errors
    /// The pin cannot be made; the old one stands.
    pub fn replace_link(&self, program: &str, link: FdLink) -> anyhow::Result<()> {
        let (fresh, pin) = (self.dir.join(format!("link_{program}_next")), self.link(program));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", fresh.display()));
            }
            _ => {}
        }
        link.pin(&fresh).with_context(|| format!("cannot pin {}", fresh.display()))?;
        fs::rename(&fresh, &pin)
            .with_context(|| format!("cannot move {} to {}", fresh.display(), pin.display()))
    }

    /// Removes the pins of every other version, once this one enforces.
    pub fn remove_other_versions(&self) {
        for dir in versions(&self.all).into_iter().filter(|dir| *dir != self.dir) {
            match remove(&dir) {
                Ok(()) => tracing::info!(dir = %dir.display(), "removed the pins of another version"),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "cannot remove the pins of another version");
                }
            }
        }
    }
}

/// The directories of all versions, ordered by name.
#[must_use]
pub fn versions(all: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(all) else {
        return Vec::new();
    };
    let mut dirs: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs
}

/// Removes a directory of pins: links first, so that no program outlives its maps' names.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove(dir: &Path) -> io::Result<()> {
    let mut files: Vec<_> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    files.sort_by_key(|path| !is_link(path));
    for file in files {
        fs::remove_file(file)?;
    }
    fs::remove_dir(dir)
}

/// Whether a pin is a link's.
#[must_use]
pub fn is_link(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("link_"))
}
