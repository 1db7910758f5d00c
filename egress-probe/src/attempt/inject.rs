//! `inject`: an IP packet, byte by byte as it was given, by one of the ways that a container has.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use socket2::{Domain, Protocol, Socket, Type};

use super::frame::{PacketSocket, ethernet, own_addresses};
use super::{During as _, Failure, Success, xdp};
use crate::cli::{InjectOptions, Via};

/// Sends the packet once.
pub(crate) fn send(options: &InjectOptions) -> Result<Success, Failure> {
    let (packet, interface) = (options.packet.0.as_slice(), options.interface.as_str());
    match options.via {
        Via::Raw => raw(packet)?,
        Via::Protocol => protocol(packet)?,
        Via::Tun => tun(interface, packet).during("tun")?,
        Via::Xdp => {
            let frame = frame(options).during("read interface")?;
            xdp::send(interface, &frame)?;
        }
        Via::Cooked => {
            let socket = PacketSocket::open_cooked(interface).during("open packet socket")?;
            socket.send_to(packet, ethertype(options), options.destination_mac).during("send")?;
        }
        Via::Frame | Via::Bypass | Via::Ring => {
            let socket = PacketSocket::open(interface, ethertype(options)).during("open packet socket")?;
            let frame = frame(options).during("read interface")?;
            match options.via {
                Via::Ring => socket.send_by_ring(&frame).during("send by ring")?,
                Via::Bypass => {
                    socket.bypass_queues().during("PACKET_QDISC_BYPASS")?;
                    socket.send(&frame).during("send")?;
                }
                _ => socket.send(&frame).during("send")?,
            }
        }
    }
    Ok(Success { detail: format!("sent {} bytes", packet.len()), ..Success::default() })
}

fn ethertype(options: &InjectOptions) -> i32 {
    let of_version = match options.packet.0.first().map(|first| first >> 4) {
        Some(6) => libc::ETH_P_IPV6,
        _ => libc::ETH_P_IP,
    };
    options.ethertype.map_or(of_version, i32::from)
}

fn frame(options: &InjectOptions) -> io::Result<Vec<u8>> {
    let (source, _) = own_addresses(&options.interface)?;
    let outer = if options.vlan.is_some() { libc::ETH_P_8021Q } else { ethertype(options) };
    let mut frame = ethernet(options.destination_mac, source, outer);
    if let Some(tag) = options.vlan {
        frame.extend(tag.to_be_bytes());
        frame.extend((ethertype(options) as u16).to_be_bytes());
    }
    frame.extend(&options.packet.0);
    Ok(frame)
}

/// The destination, the protocol and the length of the header.
fn read(packet: &[u8]) -> Option<(IpAddr, u8, usize)> {
    if packet.first()? >> 4 == 6 {
        let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
        return Some((Ipv6Addr::from(octets).into(), packet[6], 40));
    }
    let octets: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    Some((Ipv4Addr::from(octets).into(), packet[9], usize::from(packet[0] & 0x0f) * 4))
}

fn raw_socket(to: IpAddr, protocol: libc::c_int) -> Result<Socket, Failure> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).during("open raw socket")
}

/// Sends a packet, its header with it, by a raw socket of its family.
pub(super) fn raw(packet: &[u8]) -> Result<(), Failure> {
    let (to, ..) = read(packet).ok_or_else(|| Failure::other("no IP header"))?;
    // The header is included with this protocol, for both families.
    let socket = raw_socket(to, libc::IPPROTO_RAW)?;
    socket.send_to(packet, &SocketAddr::new(to, 0).into()).during("send")?;
    Ok(())
}

fn protocol(packet: &[u8]) -> Result<(), Failure> {
    let (to, protocol, header) = read(packet).ok_or_else(|| Failure::other("no IP header"))?;
    let socket = raw_socket(to, protocol.into())?;
    let payload = packet.get(header..).unwrap_or_default();
    socket.send_to(payload, &SocketAddr::new(to, 0).into()).during("send")?;
    Ok(())
}

/// Writes the packet to a tun device that is there already.
fn tun(interface: &str, packet: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::other("the interface's name is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is a whole `ifreq` that outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    file.write_all(packet)
}
