//! The archive that a kernel unpacks into its first file system: cpio in its "new" ASCII format.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Kinds of files, as in `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTERS: u32 = 0o020_000;

/// An archive that is being written.
pub(crate) struct Archive<W> {
    out: W,
    number: u32,
    directories: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, number: 0, directories: BTreeSet::new() }
    }

    /// A file at an absolute path, with the directories above it.
    pub(crate) fn file(&mut self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        self.above(path)?;
        self.entry(path, FILE | mode, (0, 0), bytes)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &Path, to: &Path) -> io::Result<()> {
        self.above(path)?;
        self.entry(path, LINK | 0o777, (0, 0), to.as_os_str().as_bytes())
    }

    /// `/dev/console`, which the first process has open from its beginning.
    pub(crate) fn console(&mut self) -> io::Result<()> {
        let path = Path::new("/dev/console");
        self.above(path)?;
        self.entry(path, CHARACTERS | 0o600, (5, 1), b"")
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), b"")?;
        Ok(self.out)
    }

    fn above(&mut self, path: &Path) -> io::Result<()> {
        let mut missing: Vec<_> =
            path.ancestors().skip(1).filter(|above| above.parent().is_some()).map(Path::to_owned).collect();
        missing.reverse();
        for directory in missing {
            if self.directories.insert(directory.clone()) {
                self.entry(&directory, DIRECTORY | 0o755, (0, 0), b"")?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        self.number += 1;
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
        let length = |bytes: usize| u32::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge);
        // inode, mode, uid, gid, links, time, size, device, device of the node, length of the name, checksum
        let fields = [
            self.number,
            mode,
            0,
            0,
            1,
            0,
            length(bytes.len())?,
            0,
            0,
            device.0,
            device.1,
            length(name.len() + 1)?,
            0,
        ];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.padded(&[name, b"\0"].concat(), 110)?;
        self.padded(bytes, 0)
    }

    /// Writes bytes and fills up to a multiple of four; `before` bytes came before.
    fn padded(&mut self, bytes: &[u8], before: usize) -> io::Result<()> {
        self.out.write_all(bytes)?;
        let odd = (before + bytes.len()) % 4;
        let fill = if odd == 0 { 0 } else { 4 - odd };
        self.out.write_all(&[0; 3][..fill])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_directories_come_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b"), b"12345", 0o644).unwrap();
        archive.file(Path::new("/a/c"), b"", 0o755).unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.len() % 4, 0);
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        // a, a/b, a/c and the end
        assert_eq!(starts.len(), 4);
        assert!(text.contains("12345\0\0\0"));
    }
}
