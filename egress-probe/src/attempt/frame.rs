//! `packet`: a UDP packet as an Ethernet frame, by an `AF_PACKET` socket, past the socket layer of IP.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::{During as _, Failure, Success, forged};

const BROADCAST: [u8; 6] = [0xff; 6];
/// From `linux/if_packet.h`; the `libc` crate does not have it for every C library.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

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
}

impl PacketSocket {
    /// Opens a raw packet socket that sees frames of one `ETH_P_*` that come in on one interface.
    pub(crate) fn open(interface: &str, ethertype: i32) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        // Without a protocol it receives nothing until it is bound, so never a frame of another interface.
        // SAFETY: plain system call without pointers.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let one: libc::c_int = 1;
        // SAFETY: the option's value is a `c_int` that outlives the call, and its size is given.
        let set = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_IGNORE_OUTGOING,
                (&raw const one).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (ethertype as u16).to_be(),
            sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is a whole `sockaddr_ll` that outlives the call, and its size is given.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { fd }) }
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
fn own_addresses(interface: &str) -> io::Result<([u8; 6], Vec<IpAddr>)> {
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

/// The IPv4 default gateway on an interface.
fn gateway(interface: &str) -> io::Result<Option<Ipv4Addr>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/route")?;
    Ok(table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        match columns.as_slice() {
            // The kernel prints the address as a number of the machine's byte order.
            [name, "00000000", gateway, ..] if *name == interface && *gateway != "00000000" => {
                u32::from_str_radix(gateway, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()))
            }
            _ => None,
        }
    }))
}

/// Asks by ARP who has `wanted`.
fn ask_hardware_address(
    interface: &str,
    hardware: [u8; 6],
    own: Ipv4Addr,
    wanted: Ipv4Addr,
) -> io::Result<[u8; 6]> {
    let socket = PacketSocket::open(interface, libc::ETH_P_ARP)?;
    let mut request = ethernet(BROADCAST, hardware, libc::ETH_P_ARP);
    request.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend_from_slice(&hardware);
    request.extend_from_slice(&own.octets());
    request.extend_from_slice(&[0; 6]);
    request.extend_from_slice(&wanted.octets());
    socket.send(&request)?;
    let end = Instant::now() + Duration::from_secs(1);
    let mut buffer = [0_u8; 256];
    while Instant::now() < end {
        let Some(count) = socket.receive(&mut buffer, end.saturating_duration_since(Instant::now()))? else {
            continue;
        };
        // Operation 2 (reply) by the wanted address: its hardware address stands before it.
        if let Some([0, 2, a, b, c, d, e, f, rest @ ..]) = buffer[..count].get(20..)
            && rest.get(..4) == Some(&wanted.octets()[..])
        {
            return Ok([*a, *b, *c, *d, *e, *f]);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("no ARP answer by {wanted}")))
}

fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: i32) -> Vec<u8> {
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
    let destination = match (destination, own(true)) {
        (Some(given), _) => given,
        (None, Some(IpAddr::V4(own))) => {
            let gateway = gateway(interface).during("read routes")?.ok_or_else(|| {
                Failure::other(format!("no IPv4 gateway on {interface}; give --destination-mac"))
            })?;
            ask_hardware_address(interface, hardware, own, gateway).during("ask by ARP")?
        }
        (None, _) => {
            return Err(Failure::other(format!("no IPv4 address on {interface}; give --destination-mac")));
        }
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
