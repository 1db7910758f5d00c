//! Frames by an `AF_XDP` socket, which needs no more than `CAP_NET_RAW` to send.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{During as _, Failure};

/// The size of the one frame in the shared memory, and of the memory.
const FRAME: usize = 4096;
/// How long a queue may be somebody else's.
const BUSY: Duration = Duration::from_secs(2);
/// Entries of each ring.
const ENTRIES: u32 = 2;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set<T>(fd: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value outlives the call, and its size is given.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, std::ptr::from_ref(value).cast(), size)
    })
}

/// Shared memory of some size: of the file at an offset, or nobody's.
fn map(size: usize, file: Option<(&OwnedFd, libc::off_t)>) -> io::Result<*mut u8> {
    let (flags, fd, offset) = match file {
        Some((fd, offset)) => (libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
    };
    // SAFETY: a new mapping, which overlaps nothing. It lasts as long as the process, which ends with the attempt.
    let memory =
        unsafe { libc::mmap(null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory.cast()) }
}

/// Sends one frame by the first queue of the interface.
pub(crate) fn send(interface: &str, frame: &[u8]) -> Result<(), Failure> {
    if frame.len() > FRAME {
        return Err(Failure::other("the frame is too long"));
    }
    let index = nix::net::if_::if_nametoindex(interface).map_err(io::Error::from).during("interface")?;
    // SAFETY: plain system call without pointers.
    let raw = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    check(raw).during("open AF_XDP socket")?;
    // SAFETY: `raw` was just opened and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let memory = map(FRAME, None).during("map memory")?;
    // SAFETY: the memory is `FRAME` bytes long, which the frame fits into, and nobody else uses it yet.
    unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), memory, frame.len()) };
    // SAFETY: all zero bytes are a valid registration.
    let mut region: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
    region.addr = memory as u64;
    region.len = FRAME as u64;
    region.chunk_size = FRAME as u32;
    set(&fd, libc::XDP_UMEM_REG, &region).during("XDP_UMEM_REG")?;
    set(&fd, libc::XDP_UMEM_FILL_RING, &ENTRIES).during("XDP_UMEM_FILL_RING")?;
    set(&fd, libc::XDP_UMEM_COMPLETION_RING, &ENTRIES).during("XDP_UMEM_COMPLETION_RING")?;
    set(&fd, libc::XDP_TX_RING, &ENTRIES).during("XDP_TX_RING")?;

    // SAFETY: all zero bytes are valid offsets.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::xdp_mmap_offsets>() as libc::socklen_t;
    // SAFETY: the offsets and their size outlive the call.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            (&raw mut offsets).cast(),
            &raw mut size,
        )
    })
    .during("XDP_MMAP_OFFSETS")?;
    let length = offsets.tx.desc as usize + ENTRIES as usize * size_of::<libc::xdp_desc>();
    let ring = map(length, Some((&fd, libc::XDP_PGOFF_TX_RING))).during("map ring")?;
    let descriptor = libc::xdp_desc { addr: 0, len: frame.len() as u32, options: 0 };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: index,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let end = Instant::now() + BUSY;
    loop {
        // SAFETY: the address is whole and outlives the call, and its size is given.
        let bound = check(unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        });
        match bound {
            // The kernel lets go of a queue some time after the process that had it has ended.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                thread::sleep(Duration::from_millis(5));
            }
            other => break other.during("bind")?,
        }
    }
    // SAFETY: both places are within the ring and aligned, as the kernel gave them; it reads them only in the call after.
    unsafe {
        ring.add(offsets.tx.desc as usize).cast::<libc::xdp_desc>().write(descriptor);
        let producer = ring.add(offsets.tx.producer as usize).cast::<u32>();
        AtomicU32::from_ptr(producer).store(1, Ordering::Release);
    }
    // SAFETY: no bytes and no address are given, so no pointer is read.
    let sent = unsafe { libc::sendto(fd.as_raw_fd(), null_mut(), 0, libc::MSG_DONTWAIT, null_mut(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }.during("send")
}
