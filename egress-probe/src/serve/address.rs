//! Taking addresses on a device of this network namespace, for a limited time, and giving them back.
//!
//! Invariant: an address that is taken here is nobody's source address unless somebody binds to it: it is deprecated from
//! the beginning, and IPv4 ones have the scope of the host.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

/// Takes an address for so many seconds, or keeps it for so many more.
pub(super) fn take(address: IpAddr, device: &str, seconds: u32) -> io::Result<()> {
    let mut message = message(address, device)?;
    let mut life = CacheInfo::default();
    (life.ifa_preferred, life.ifa_valid) = (0, seconds);
    message.attributes.push(AddressAttribute::CacheInfo(life));
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    ask(RouteNetlinkMessage::NewAddress(message), flags)
}

/// Gives an address back; one that is not there is no error.
pub(super) fn give_back(address: IpAddr, device: &str) -> io::Result<()> {
    let message = message(address, device)?;
    match ask(RouteNetlinkMessage::DelAddress(message), NLM_F_REQUEST | NLM_F_ACK) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

fn message(address: IpAddr, device: &str) -> io::Result<AddressMessage> {
    let mut message = AddressMessage::default();
    message.header.index = nix::net::if_::if_nametoindex(device)?;
    (message.header.family, message.header.prefix_len) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.scope = if address.is_ipv4() { AddressScope::Host } else { AddressScope::Universe };
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    Ok(message)
}

fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(request));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let broken = |error| io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {error}"));
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(broken)?.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}
