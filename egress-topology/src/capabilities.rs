//! What the root of a container may do.

use std::io;

/// The version of the `capset` interface with 64 bits.
const VERSION_3: u32 = 0x2008_0522;

/// A set of Linux capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Whatever the process that starts the container has.
    pub const ALL: Self = Self(u64::MAX);
    /// `CAP_NET_ADMIN`, which a container has only if its pod asks for it.
    pub const NET_ADMIN: Self = Self(1 << 12);
    /// `CAP_NET_RAW`, which the runtimes give by default.
    pub const NET_RAW: Self = Self(1 << 13);
    /// `CAP_PERFMON`, without which a BPF program may not look into the kernel.
    pub const PERFMON: Self = Self(1 << 38);
    /// `CAP_BPF`.
    pub const BPF: Self = Self(1 << 39);
    /// `CAP_SYS_ADMIN`, which a container has only if its pod asks for it.
    pub const SYS_ADMIN: Self = Self(1 << 21);
    /// `CAP_SYS_PTRACE`, by which processes of other users are looked at.
    pub const SYS_PTRACE: Self = Self(1 << 19);
    /// What containerd and CRI-O (with `NET_RAW`) give by default: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID,
    /// SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
    pub const RUNTIME_DEFAULT: Self = Self(
        1 << 0
            | 1 << 1
            | 1 << 3
            | 1 << 4
            | 1 << 5
            | 1 << 6
            | 1 << 7
            | 1 << 8
            | 1 << 10
            | 1 << 13
            | 1 << 18
            | 1 << 27
            | 1 << 29
            | 1 << 31,
    );

    /// One of those above, by the name that a container's `securityContext` has for it; nothing for any other.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "NET_ADMIN" => Some(Self::NET_ADMIN),
            "NET_RAW" => Some(Self::NET_RAW),
            "SYS_PTRACE" => Some(Self::SYS_PTRACE),
            "SYS_ADMIN" => Some(Self::SYS_ADMIN),
            _ => None,
        }
    }

    /// This set and another.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without another.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Takes everything else from the bounding set. Async-signal-safe.
    pub(crate) fn bound(self) -> io::Result<()> {
        for capability in 0..64 {
            if self.0 & (1 << capability) != 0 {
                continue;
            }
            // SAFETY: plain system call without pointers.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) };
            if result < 0 {
                let error = io::Error::last_os_error();
                // The kernel knows fewer than 64 capabilities.
                return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
            }
        }
        Ok(())
    }

    /// Takes everything else from the permitted and effective sets, and everything from the inheritable set.
    /// Async-signal-safe.
    pub(crate) fn limit(self) -> io::Result<()> {
        if self == Self::ALL {
            return Ok(());
        }
        let mut header = Header { version: VERSION_3, pid: 0 };
        let mut data = [Data::default(); 2];
        // SAFETY: header and data have the layout of version 3 and outlive the call.
        if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        for (half, part) in data.iter_mut().enumerate() {
            let wanted = (self.0 >> (32 * half)) as u32;
            part.permitted &= wanted;
            part.effective = part.permitted;
            part.inheritable = 0;
        }
        // SAFETY: as above.
        if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}
