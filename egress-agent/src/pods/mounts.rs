//! Where parts of the cgroup v2 hierarchy are mounted.
//!
//! Invariant: a path belongs to the mount that the kernel says it is on, whatever its text looks like, and a mount that another one
//! hides does not count. Tested below and by `tests/nested.rs`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A mount of the hierarchy or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The kernel's number of it.
    number: u64,
    /// Where it is.
    pub(super) point: PathBuf,
    /// How many levels the cgroup that is shown there is below the root of our own cgroup namespace; above it where negative.
    pub(super) depth: i64,
}

impl Mount {
    /// The id of the cgroup that is shown there.
    pub(super) fn root_id(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.point)?.ino())
    }
}

/// The cgroup v2 mounts that can be seen, in the kernel's order.
pub(super) fn visible() -> Vec<Mount> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts = parse(&table);
    mounts.retain(|mount| number_at(&mount.point).is_ok_and(|number| number == mount.number));
    mounts
}

/// The mount that a directory is on.
pub(super) fn of<'m>(mounts: &'m [Mount], directory: &Path) -> Option<&'m Mount> {
    let number = number_at(directory).ok()?;
    mounts.iter().find(|mount| mount.number == number)
}

/// The number of the mount that a directory is on.
fn number_at(directory: &Path) -> io::Result<u64> {
    let file = File::open(directory)?;
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let number = about.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.ok_or_else(|| io::Error::other("the kernel does not tell which mount a file is on"))
}

/// The cgroup v2 mounts of a table of mounts (`Documentation/filesystems/proc.rst`, 3.5).
fn parse(table: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ');
        let number = fields.next()?.parse().ok()?;
        let (root, point) = (fields.nth(2)?, fields.next()?);
        right.starts_with("cgroup2 ").then(|| Mount { number, point: unescape(point), depth: depth(root) })
    };
    table.lines().filter_map(mount).collect()
}

/// How far a path in the words of a cgroup namespace leads down from its root: `/a/b` is 2, `/../..` is -2.
pub(super) fn depth(path: &str) -> i64 {
    let step = |part: &str| if part == ".." { -1 } else { 1 };
    path.split('/').filter(|part| !part.is_empty()).map(step).sum()
}

/// Blanks and the like are written as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::{Mount, depth, parse, unescape};
    use std::path::PathBuf;

    #[test]
    fn only_cgroup2_mounts_count() {
        let text = "30 23 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
                    31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                    32 23 0:26 /../../.. /host/sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
                    33 23 0:26 /a/b /mnt/a\\040b rw - cgroup2 cgroup2 rw\n";
        let mount = |number, point: &str, depth| Mount { number, point: point.into(), depth };
        let wanted = [
            mount(30, "/sys/fs/cgroup/unified", 0),
            mount(32, "/host/sys/fs/cgroup", -3),
            mount(33, "/mnt/a b", 2),
        ];
        assert_eq!(parse(text), wanted);
    }

    #[test]
    fn levels_are_counted_both_ways() {
        for (path, levels) in
            [("/", 0), ("/a", 1), ("/../..", -2), ("/../../kubelet.slice/x", 0), ("/..a/b", 2)]
        {
            assert_eq!(depth(path), levels, "{path}");
        }
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
    }
}
