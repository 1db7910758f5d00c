//! `bpf(2)` itself, for what aya has no call for.

use std::io;

use nix::libc;

/// Gives the kernel a command with its part of `union bpf_attr` (`include/uapi/linux/bpf.h`); it may write there.
///
/// # Safety
/// `T` is `repr(C)`, without padding, and the beginning of what the kernel reads for the command: what follows counts as zero. Addresses in
/// it are of memory that outlives the call, and that may be read or written as the command says.
pub(crate) unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: by our own contract.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
