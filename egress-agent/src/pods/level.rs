//! The level of a cgroup in the kernel's hierarchy, where the root of that cannot be seen.
//!
//! In a cgroup namespace (a DaemonSet's pod, a node that is a container) every path is relative to the namespace's root, and its level
//! cannot be read anywhere. The kernel tells a BPF program the ids of all ancestors of our own cgroup, of which there are as many as
//! its level says; how far a mount's root is from our own cgroup is in the paths that it shows to us.
//!
//! Invariant: a level comes from the kernel or not at all; where it can be told in two ways, both agree. Tested by `tests/nested.rs`.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;

use super::mounts::depth;
use crate::bpf::bpf;

/// No hierarchy is that deep.
const DEEPEST: u64 = 4096;

/// Our own place in the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// The ids of the ancestors of our own cgroup from the root on, and its own.
    ancestors: Vec<u64>,
    /// How many levels it is below the root of our cgroup namespace; above it where negative.
    depth: i64,
}

impl Own {
    /// Asks the kernel.
    ///
    /// # Errors
    /// It refuses the program, or we are being moved to another cgroup.
    pub(super) fn ask() -> io::Result<Self> {
        let before = path()?;
        let ancestors = Ancestors::load()?.all()?;
        // Moved between the two questions, we would count from another place.
        if path()? != before {
            return Err(io::Error::other("this process was moved to another cgroup just now"));
        }
        Ok(Self { ancestors, depth: depth(&before) })
    }

    /// The level of a cgroup of this id that is `depth` levels below the root of our cgroup namespace.
    ///
    /// # Errors
    /// What the kernel says does not fit together.
    pub(super) fn level(&self, depth: i64, id: u64) -> io::Result<u32> {
        let own = i64::try_from(self.ancestors.len()).unwrap_or(0) - 1;
        let counted = u32::try_from(own - self.depth + depth).ok();
        let seen = self.ancestors.iter().position(|ancestor| *ancestor == id);
        let agrees = seen.is_none_or(|seen| u32::try_from(seen).ok() == counted);
        // Only the real root has level 0, and the inode 1.
        counted.filter(|level| agrees && (*level == 0) == (id == 1)).ok_or_else(|| {
            io::Error::other(format!("the kernel puts it at level {seen:?}, and its path at {counted:?}"))
        })
    }
}

/// The path of our own cgroup, from the root of our cgroup namespace.
fn path() -> io::Result<String> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    own.map(str::to_owned).ok_or_else(|| io::Error::other("/proc/self/cgroup has no line for cgroup v2"))
}

/// A BPF program that gives half of the id of an ancestor of the calling task's cgroup. It is attached to nothing.
struct Ancestors {
    program: OwnedFd,
}

/// `BPF_PROG_LOAD`, `BPF_PROG_TEST_RUN`, `BPF_PROG_TYPE_RAW_TRACEPOINT`: `include/uapi/linux/bpf.h`, as all of these.
const LOAD: libc::c_long = 5;
const TEST_RUN: libc::c_long = 10;
const RAW_TRACEPOINT: u32 = 17;
/// `bpf_get_current_ancestor_cgroup_id` (since 5.6).
const ANCESTOR: u32 = 123;

/// One instruction: what it does, its registers (destination in the low half), offset and number.
const fn instruction(code: u8, registers: u8, offset: u16, number: u32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u64) << 16 | (number as u64) << 32
}

/// `context[0]` is the level, `context[1]` how far to shift the id to the right.
const PROGRAM: [u64; 6] = [
    // r6 = r1, the context, which the call leaves alone there.
    instruction(0xbf, 0x16, 0, 0),
    // r1 = context[0]
    instruction(0x79, 0x61, 0, 0),
    // r0 = bpf_get_current_ancestor_cgroup_id(r1): 0 where we are not that deep.
    instruction(0x85, 0, 0, ANCESTOR),
    // r1 = context[1]
    instruction(0x79, 0x61, 8, 0),
    // r0 >>= r1; what is given back has 32 bits.
    instruction(0x7f, 0x10, 0, 0),
    instruction(0x95, 0, 0, 0),
];

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
    kernel: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    result: u32,
    data_sizes: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    context_size: u32,
    context_size_out: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
}

impl Ancestors {
    fn load() -> io::Result<Self> {
        let license = c"Dual MIT/GPL";
        let mut load = Load {
            kind: RAW_TRACEPOINT,
            instructions: u32::try_from(PROGRAM.len()).unwrap_or(0),
            program: PROGRAM.as_ptr().expose_provenance() as u64,
            license: license.as_ptr().expose_provenance() as u64,
            ..Load::default()
        };
        // SAFETY: the structure is as the kernel's; program and license are constants.
        let number = unsafe { bpf(LOAD, &mut load) }?;
        let number = i32::try_from(number).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self { program: unsafe { OwnedFd::from_raw_fd(number) } })
    }

    /// The ids of all of them, from the root on.
    fn all(&self) -> io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        for level in 0..DEEPEST {
            match self.at(level)? {
                0 => break,
                id => ids.push(id),
            }
        }
        if ids.first() == Some(&1) { Ok(ids) } else { Err(io::Error::other(format!("ancestors {ids:?}"))) }
    }

    /// The id of the one at this level; 0 where there is none.
    fn at(&self, level: u64) -> io::Result<u64> {
        let half = |shift: u64| -> io::Result<u64> {
            let context = [level, shift];
            let mut run = Run {
                program: u32::try_from(self.program.as_raw_fd()).map_err(io::Error::other)?,
                context_size: 16,
                context: context.as_ptr().expose_provenance() as u64,
                ..Run::default()
            };
            // SAFETY: the structure is as the kernel's; the context has the size that it says, and is read alone.
            unsafe { bpf(TEST_RUN, &mut run) }?;
            Ok(u64::from(run.result))
        };
        Ok(half(0)? | half(32)? << 32)
    }
}

#[cfg(test)]
mod tests {
    use super::Own;

    #[test]
    fn levels_are_counted_from_our_own_place() {
        // A pod of a node that is a container: /docker/ID/kubelet/kubepods/pod/container, with a namespace of its own.
        let own = Own { ancestors: vec![1, 20, 30, 40, 50, 60, 70], depth: 0 };
        assert_eq!(own.level(-4, 30).unwrap(), 2, "what the node sees as its root");
        assert_eq!(own.level(0, 70).unwrap(), 6);
        assert_eq!(own.level(-1, 999).unwrap(), 5, "a cgroup beside our own");
        assert_eq!(own.level(-6, 1).unwrap(), 0);
        // In the namespace of the node, but not in its root.
        let own = Own { ancestors: vec![1, 20, 30, 40], depth: 1 };
        assert_eq!(own.level(0, 30).unwrap(), 2);
    }

    #[test]
    fn what_does_not_fit_together_is_no_level() {
        let own = Own { ancestors: vec![1, 20, 30], depth: 0 };
        for (depth, id) in [(-1, 30), (-3, 999), (-2, 20), (0, 1), (-2, 999)] {
            assert!(own.level(depth, id).is_err(), "{depth} {id}");
        }
    }

    #[test]
    fn the_kernel_tells_our_own_place() {
        // In the namespace that shows everything, as many levels as the path says.
        let own = Own::ask().unwrap();
        let visible = super::super::mounts::visible();
        if visible.iter().any(|mount| mount.root_id().is_ok_and(|id| id == 1) && mount.depth == 0) {
            assert_eq!(own.level(0, 1).unwrap(), 0);
            assert_eq!(own.ancestors.len(), usize::try_from(own.depth).unwrap() + 1);
        }
    }
}
