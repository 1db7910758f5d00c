//! `raw`: an IPv4 UDP packet with a header of our own making, by a raw socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::ping::internet_checksum;
use super::{During as _, Failure, Success};

/// The source port of everything that is forged here.
pub(crate) const SOURCE_PORT: u16 = 40_000;

/// A UDP datagram within its IP packet, with right checksums. Both addresses must be of one family.
pub(crate) fn udp_packet(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Result<Vec<u8>, Failure> {
    let too_long = |_| Failure::other("the payload is too long");
    let length = u16::try_from(8 + payload.len()).map_err(too_long)?;
    let mut udp = Vec::with_capacity(usize::from(length));
    udp.extend_from_slice(&SOURCE_PORT.to_be_bytes());
    udp.extend_from_slice(&port.to_be_bytes());
    udp.extend_from_slice(&length.to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(payload);
    let pseudo = |source: &[u8], destination: &[u8]| {
        let tail = [0, libc::IPPROTO_UDP as u8];
        match internet_checksum(&[source, destination, &tail, &length.to_be_bytes(), &udp]) {
            0 => 0xffff,
            sum => sum,
        }
    };
    let (header, checksum) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = length.checked_add(20).ok_or_else(|| Failure::other("the payload is too long"))?;
            let mut header = vec![0x45, 0];
            header.extend_from_slice(&total.to_be_bytes());
            header.extend_from_slice(&[0, 1, 0x40, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            let sum = internet_checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (header, pseudo(&from.octets(), &to.octets()))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&length.to_be_bytes());
            header.extend_from_slice(&[libc::IPPROTO_UDP as u8, 64]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            (header, pseudo(&from.octets(), &to.octets()))
        }
        _ => {
            return Err(Failure::other(format!("{from} and {to} are of different families")));
        }
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    Ok([header, udp].concat())
}

/// Sends one packet that claims to come from `from`.
pub(crate) fn send(to: Ipv4Addr, from: Ipv4Addr, port: u16, payload: &str) -> Result<Success, Failure> {
    let packet = udp_packet(from.into(), to.into(), port, payload.as_bytes())?;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
        .during("open raw socket")?;
    socket.set_header_included_v4(true).during("IP_HDRINCL")?;
    socket.send_to(&packet, &SocketAddr::new(to.into(), 0).into()).during("send")?;
    Ok(Success {
        detail: format!("sent {} bytes from {from} to {to}", packet.len()),
        status: None,
        body: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_packets_come_out_right() {
        let packet =
            udp_packet("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), 53, b"odd").unwrap();
        assert_eq!(packet.len(), 31);
        assert_eq!(internet_checksum(&[&packet[..20]]), 0);
        let pseudo = [0, 17, 0, 11];
        assert_eq!(internet_checksum(&[&packet[12..20], &pseudo, &packet[20..]]), 0);
        let packet = udp_packet("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap(), 53, b"even").unwrap();
        assert_eq!(internet_checksum(&[&packet[8..40], &[0, 17, 0, 12], &packet[40..]]), 0);
        assert!(udp_packet("10.0.0.1".parse().unwrap(), "fd00::2".parse().unwrap(), 53, b"").is_err());
    }
}
