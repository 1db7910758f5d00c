//! `packet`: a UDP packet as an Ethernet frame, by an `AF_PACKET` socket, past the socket layer of IP.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use super::{During as _, Failure, Success, forged, next_hop};

/// From `linux/if_packet.h`; the `libc` crate does not have it for every C library.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// Likewise.
const PACKET_QDISC_BYPASS: libc::c_int = 20;

/// Bytes of frames that may wait to be read.
const ROOM: usize = 64 << 20;

/// What the frame carries.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    pub(crate) target: IpAddr,
    pub(crate) from: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) payload: &'a str,
}

/// A packet socket bound to one interface.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: OwnedFd,
    index: i32,
}

impl PacketSocket {
    /// Opens a raw packet socket that sees frames of one `ETH_P_*` that come in on one interface.
    pub(crate) fn open(interface: &str, ethertype: i32) -> io::Result<Self> {
        let socket = Self::open_kind(interface, ethertype, libc::SOCK_RAW)?;
        // What finds no room is not seen: an observer that misses something proves nothing.
        let room = nix::sys::socket::setsockopt(&socket.fd, nix::sys::socket::sockopt::RcvBufForce, &ROOM);
        match room {
            // Without CAP_NET_ADMIN, as in pods.
            Ok(()) | Err(nix::errno::Errno::EPERM) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a packet socket that sends frames without their Ethernet header, and receives nothing.
    pub(crate) fn open_cooked(interface: &str) -> io::Result<Self> {
        Self::open_kind(interface, 0, libc::SOCK_DGRAM)
    }

    fn open_kind(interface: &str, ethertype: i32, kind: libc::c_int) -> io::Result<Self> {
        let index = i32::try_from(nix::net::if_::if_nametoindex(interface)?).map_err(io::Error::other)?;
        // Without a protocol it receives nothing until it is bound, so never a frame of another interface.
        // SAFETY: plain system call without pointers.
        let raw = unsafe { libc::socket(libc::AF_PACKET, kind | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let socket = Self { fd, index };
        socket.set(PACKET_IGNORE_OUTGOING, &1)?;
        let address = socket.address(ethertype, [0; 6]);
        // SAFETY: the address is a whole `sockaddr_ll` that outlives the call, and its size is given.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }

    /// Frames of this type to this hardware address.
    fn address(&self, ethertype: i32, hardware: [u8; 6]) -> libc::sockaddr_ll {
        let [a, b, c, d, e, f] = hardware;
        libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (ethertype as u16).to_be(),
            sll_ifindex: self.index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [a, b, c, d, e, f, 0, 0],
        }
    }

    /// Sets an option of packet sockets; the value has the type that the option wants.
    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the value outlives the call, and its size is given.
        let set = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// From now on its frames go to the device without a queueing discipline.
    pub(crate) fn bypass_queues(&self) -> io::Result<()> {
        self.set(PACKET_QDISC_BYPASS, &(1 as libc::c_int))
    }

    /// Sends what follows the Ethernet header, by a socket that was opened for that.
    pub(crate) fn send_to(&self, packet: &[u8], ethertype: i32, hardware: [u8; 6]) -> io::Result<()> {
        let address = self.address(ethertype, hardware);
        // SAFETY: the packet and the address outlive the call, and their sizes are given.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends one frame by a ring that the kernel reads from.
    pub(crate) fn send_by_ring(&self, frame: &[u8]) -> io::Result<()> {
        /// Behind the frame's header in the ring: `TPACKET_HDRLEN` without the address, of the first version.
        const DATA: usize = size_of::<libc::tpacket_hdr>().next_multiple_of(16);
        const RING: usize = 4096;
        if DATA + frame.len() > RING {
            return Err(io::Error::other("the frame is too long for the ring"));
        }
        let request = libc::tpacket_req {
            tp_block_size: RING as u32,
            tp_block_nr: 1,
            tp_frame_size: RING as u32,
            tp_frame_nr: 1,
        };
        self.set(libc::PACKET_TX_RING, &request)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fd = self.fd.as_raw_fd();
        // SAFETY: a new mapping of the ring just made, whose size is one block.
        let ring = unsafe { libc::mmap(std::ptr::null_mut(), RING, access, libc::MAP_SHARED, fd, 0) };
        if ring == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let header = libc::tpacket_hdr {
            tp_status: libc::TP_STATUS_SEND_REQUEST.into(),
            tp_len: frame.len() as u32,
            tp_snaplen: frame.len() as u32,
            tp_mac: 0,
            tp_net: 0,
            tp_sec: 0,
            tp_usec: 0,
        };
        // SAFETY: header and frame fit into the mapping, which is aligned to pages; the kernel reads it only in the call
        // that follows, and nobody touches it after it is unmapped.
        let sent = unsafe {
            std::ptr::copy_nonoverlapping(frame.as_ptr(), ring.cast::<u8>().add(DATA), frame.len());
            ring.cast::<libc::tpacket_hdr>().write(header);
            let sent = libc::send(fd, std::ptr::null(), 0, 0);
            libc::munmap(ring, RING);
            sent
        };
        match sent {
            0 => Err(io::Error::other("the kernel took nothing from the ring")),
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Sends one frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        nix::unistd::write(&self.fd, frame)?;
        Ok(())
    }

    /// Receives one frame, or nothing within the time.
    pub(crate) fn receive(&self, buffer: &mut [u8], wait: Duration) -> io::Result<Option<usize>> {
        let socket = socket2::SockRef::from(&self.fd);
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        match nix::unistd::read(&self.fd, buffer) {
            Ok(count) => Ok(Some(count)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The hardware address and the usable IP addresses of an interface.
pub(crate) fn own_addresses(interface: &str) -> io::Result<([u8; 6], Vec<IpAddr>)> {
    let mut hardware = None;
    let mut addresses = Vec::new();
    for entry in nix::ifaddrs::getifaddrs()?.filter(|entry| entry.interface_name == interface) {
        let Some(address) = entry.address else { continue };
        if let Some(link) = address.as_link_addr() {
            hardware = link.addr();
        } else if let Some(v4) = address.as_sockaddr_in() {
            addresses.push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6()
            && !v6.ip().is_unicast_link_local()
        {
            addresses.push(v6.ip().into());
        }
    }
    let hardware =
        hardware.ok_or_else(|| io::Error::other(format!("{interface} has no hardware address")))?;
    Ok((hardware, addresses))
}

pub(crate) fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: i32) -> Vec<u8> {
    let mut frame = Vec::with_capacity(128);
    frame.extend_from_slice(&destination);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&(ethertype as u16).to_be_bytes());
    frame
}

/// Sends one frame.
pub(crate) fn send(
    interface: &str,
    flow: &Flow<'_>,
    destination: Option<[u8; 6]>,
) -> Result<Success, Failure> {
    let (hardware, addresses) = own_addresses(interface).during("read interface")?;
    let own = |wanted_v4: bool| addresses.iter().copied().find(|address| address.is_ipv4() == wanted_v4);
    let from = flow
        .from
        .or_else(|| own(flow.target.is_ipv4()))
        .ok_or_else(|| Failure::other(format!("{interface} has no address of the target's family")))?;
    let destination = match destination {
        Some(given) => given,
        None => next_hop::find(interface, hardware, own(true))?,
    };
    let ethertype = if flow.target.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
    let mut frame = ethernet(destination, hardware, ethertype);
    frame.extend(forged::udp_packet(from, flow.target, flow.port, flow.payload.as_bytes())?);
    let socket = PacketSocket::open(interface, ethertype).during("open packet socket")?;
    socket.send(&frame).during("send")?;
    Ok(Success {
        detail: format!("sent a frame of {} bytes from {from} to {}", frame.len(), flow.target),
        status: None,
        body: None,
    })
}
