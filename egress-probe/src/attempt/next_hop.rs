//! The hardware address of the next hop, which takes frames to everywhere.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::frame::{PacketSocket, ethernet};
use super::{During as _, Failure};

const BROADCAST: [u8; 6] = [0xff; 6];
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Finds it by IPv4, or by IPv6 where the interface has no IPv4 address of its own.
pub(super) fn find(interface: &str, hardware: [u8; 6], own: Option<IpAddr>) -> Result<[u8; 6], Failure> {
    let none = |family| Failure::other(format!("no {family} gateway on {interface}; give --destination-mac"));
    if let Some(IpAddr::V4(own)) = own {
        let gateway = gateway_v4(interface).during("read routes")?.ok_or_else(|| none("IPv4"))?;
        // Asking is a frame itself, which may be denied.
        return match known_v4(interface, gateway).during("read neighbours")? {
            Some(known) => Ok(known),
            None => ask(interface, hardware, own, gateway).during("ask by ARP"),
        };
    }
    let gateway = gateway_v6(interface).during("read routes")?.ok_or_else(|| none("IPv6"))?;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(known) = known_v6(interface, gateway).during("ask for the neighbour")? {
            return Ok(known);
        }
        if Instant::now() > end {
            return Err(Failure::other(format!(
                "{gateway} on {interface} has no hardware address that is known"
            )));
        }
        // The kernel asks for who is sent something.
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).during("open socket")?;
        drop(socket.send_to(&[0], (gateway, 9)));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The IPv4 default gateway on an interface.
fn gateway_v4(interface: &str) -> io::Result<Option<Ipv4Addr>> {
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

/// What the kernel knows of the hardware address of `wanted`, from packets that it has sent there itself.
fn known_v4(interface: &str, wanted: Ipv4Addr) -> io::Result<Option<[u8; 6]>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/arp")?;
    Ok(table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [address, _, _, hardware, .., device] = columns.as_slice() else { return None };
        if *device != interface || address.parse() != Ok(wanted) {
            return None;
        }
        let bytes: Option<Vec<u8>> =
            hardware.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
        // An address that was asked for, without an answer yet, is all zeros.
        bytes?.try_into().ok().filter(|bytes| *bytes != [0; 6])
    }))
}

/// Asks by ARP who has `wanted`.
fn ask(interface: &str, hardware: [u8; 6], own: Ipv4Addr, wanted: Ipv4Addr) -> io::Result<[u8; 6]> {
    let socket = PacketSocket::open(interface, libc::ETH_P_ARP)?;
    let mut request = ethernet(BROADCAST, hardware, libc::ETH_P_ARP);
    request.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend_from_slice(&hardware);
    request.extend_from_slice(&own.octets());
    request.extend_from_slice(&[0; 6]);
    request.extend_from_slice(&wanted.octets());
    socket.send(&request)?;
    let end = Instant::now() + PATIENCE;
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

/// The IPv6 default gateway on an interface.
fn gateway_v6(interface: &str) -> io::Result<Option<Ipv6Addr>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
    Ok(table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, "00", _, _, gateway, .., name] = columns.as_slice() else { return None };
        let gateway = u128::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        (*name == interface).then(|| gateway.into())
    }))
}

/// What the kernel knows of the hardware address of an IPv6 neighbour (`RTM_GETNEIGH` for one, Linux 5.0).
fn known_v6(interface: &str, wanted: Ipv6Addr) -> io::Result<Option<[u8; 6]>> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Inet6;
    request.header.ifindex = nix::net::if_::if_nametoindex(interface)?;
    request.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet6(wanted))];
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let request = RouteNetlinkMessage::GetNeighbour(request);
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(request));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let broken = |error| io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {error}"));
    let found = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(broken)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(found)) => found,
        NetlinkPayload::Error(error) if error.to_io().raw_os_error() == Some(libc::ENOENT) => {
            return Ok(None);
        }
        NetlinkPayload::Error(error) => return Err(error.to_io()),
        _ => return Ok(None),
    };
    Ok(found.attributes.into_iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.try_into().ok(),
        _ => None,
    }))
}
