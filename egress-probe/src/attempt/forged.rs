//! `raw`: a UDP packet with a header of our own making, by a raw socket.

use std::net::{IpAddr, SocketAddr};

use egress_probe::packet::Packet;

use super::{Failure, Success, inject};

/// The source port of everything that is forged here.
pub(crate) const SOURCE_PORT: u16 = 40_000;

/// A UDP datagram within its IP packet, with right checksums. Both addresses must be of one family.
pub(crate) fn udp_packet(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Result<Vec<u8>, Failure> {
    let (from, to) = (SocketAddr::new(from, SOURCE_PORT), SocketAddr::new(to, port));
    Packet::udp(from, to, payload).bytes().ok_or_else(|| {
        Failure::other(format!("{from} and {to} are of different families, or the payload is too long"))
    })
}

/// Sends one packet that claims to come from `from`.
pub(crate) fn send(to: IpAddr, from: IpAddr, port: u16, payload: &str) -> Result<Success, Failure> {
    let packet = udp_packet(from, to, port, payload.as_bytes())?;
    inject::raw(&packet)?;
    Ok(Success {
        detail: format!("sent {} bytes from {from} to {to}", packet.len()),
        status: None,
        body: None,
    })
}
