//! `capture`: a line for each IP packet that an interface receives; `sniff`: the bytes of every frame.
//!
//! Invariant: what is left out is exactly what links do by themselves: ARP, neighbour discovery (ICMPv6 133 to 137)
//! and multicast listener discovery (ICMPv6 130 to 132 and 143). A packet that is too short to be read is reported as
//! far as it can be, never dropped silently, if at least its addresses are there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use egress_probe::packet::to_hex;
use egress_probe::{Captured, Sniffed};
use socket2::{Domain, Protocol, Socket, Type};

use crate::attempt::frame::PacketSocket;
use crate::{net, user};

const ETHERNET_HEADER: usize = 14;

/// Keeps raw sockets, as somebody who listens to what comes in to others.
pub(crate) fn keep_raw() -> anyhow::Result<()> {
    let raw = |domain| Socket::new(domain, Type::RAW, Some(Protocol::UDP)).context("open raw socket");
    let _kept = [raw(Domain::IPV4)?, raw(Domain::IPV6)?];
    user::pause()
}

/// Captures until killed or until the time is over.
pub(crate) fn run(interface: &str, seconds: Option<u64>) -> anyhow::Result<()> {
    let socket =
        PacketSocket::open(interface, libc::ETH_P_ALL).with_context(|| format!("capture on {interface}"))?;
    net::announce_ready()?;
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut buffer = vec![0_u8; 65536];
    loop {
        let wait = match end.map(|end| end.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => return Ok(()),
            Some(left) => left,
            None => Duration::from_secs(3600),
        };
        let Some(count) = socket.receive(&mut buffer, wait)? else {
            continue;
        };
        if let Some(packet) = read_frame(&buffer[..count]) {
            net::print_line(&packet)?;
        }
    }
}

/// Prints every frame until killed.
pub(crate) fn sniff(interface: &str) -> anyhow::Result<()> {
    let socket =
        PacketSocket::open(interface, libc::ETH_P_ALL).with_context(|| format!("sniff on {interface}"))?;
    net::announce_ready()?;
    let mut buffer = vec![0_u8; 65536];
    loop {
        if let Some(count) = socket.receive(&mut buffer, Duration::from_secs(3600))? {
            net::print_line(&Sniffed { frame: to_hex(&buffer[..count]) })?;
        }
    }
}

fn read_frame(frame: &[u8]) -> Option<Captured> {
    let packet = frame.get(ETHERNET_HEADER..)?;
    match i32::from(word(frame, 12)?) {
        libc::ETH_P_IP => read_v4(packet),
        libc::ETH_P_IPV6 => read_v6(packet),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

pub(super) fn read_v4(packet: &[u8]) -> Option<Captured> {
    let src: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let dst: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    let header = usize::from(packet[0] & 0x0f) * 4;
    let first_fragment = word(packet, 6)? & 0x1fff == 0;
    let payload = if first_fragment { packet.get(header..).unwrap_or_default() } else { &[] };
    let addresses = (Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into());
    Some(describe(addresses, i32::from(packet[9]), payload, usize::from(word(packet, 2)?)))
}

fn read_v6(packet: &[u8]) -> Option<Captured> {
    let src: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    let dst: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    let (protocol, payload) = (i32::from(packet[6]), packet.get(40..).unwrap_or_default());
    if is_link_chatter(protocol, payload) {
        return None;
    }
    let addresses = (Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into());
    Some(describe(addresses, protocol, payload, 40 + usize::from(word(packet, 4)?)))
}

/// Neighbour discovery, or multicast listener discovery with its hop-by-hop header.
pub(super) fn is_link_chatter(protocol: i32, payload: &[u8]) -> bool {
    match protocol {
        libc::IPPROTO_ICMPV6 => matches!(payload.first(), Some(130..=137 | 143)),
        libc::IPPROTO_HOPOPTS => {
            let inner = payload.get(1).map_or(0, |length| (usize::from(*length) + 1) * 8);
            payload.first().is_some_and(|next| i32::from(*next) == libc::IPPROTO_ICMPV6)
                && matches!(payload.get(inner), Some(130..=132 | 143))
        }
        _ => false,
    }
}

pub(super) fn describe((src, dst): (IpAddr, IpAddr), protocol: i32, payload: &[u8], len: usize) -> Captured {
    let name = match protocol {
        libc::IPPROTO_TCP => "TCP".to_owned(),
        libc::IPPROTO_UDP => "UDP".to_owned(),
        libc::IPPROTO_SCTP => "SCTP".to_owned(),
        libc::IPPROTO_ICMP => "ICMP".to_owned(),
        libc::IPPROTO_ICMPV6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    };
    let has_ports = matches!(protocol, libc::IPPROTO_TCP | libc::IPPROTO_UDP | libc::IPPROTO_SCTP);
    let port = |at| if has_ports { word(payload, at) } else { None };
    Captured { src, dst, protocol: name, sport: port(0), dport: port(2), len }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::forged::udp_packet;

    fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
        [&[0_u8; 12][..], &ethertype.to_be_bytes(), packet].concat()
    }

    #[test]
    fn udp_is_read_in_both_families() {
        for (from, to, ethertype) in [("10.0.0.1", "10.0.0.2", 0x0800), ("fd00::1", "fd00::2", 0x86dd)] {
            let packet = udp_packet(from.parse().unwrap(), to.parse().unwrap(), 53, b"x").unwrap();
            let read = read_frame(&frame(ethertype, &packet)).unwrap();
            assert_eq!((read.src, read.dst), (from.parse().unwrap(), to.parse().unwrap()));
            assert_eq!((read.protocol.as_str(), read.dport, read.len), ("UDP", Some(53), packet.len()));
        }
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut packet =
            udp_packet("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), 53, b"x").unwrap();
        packet[7] = 5;
        let read = read_frame(&frame(0x0800, &packet)).unwrap();
        assert_eq!((read.sport, read.dport), (None, None));
    }

    #[test]
    fn link_chatter_is_left_out_but_echo_is_not() {
        let v6 = |next: u8, payload: &[u8]| {
            let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
            packet.extend_from_slice(&[0; 32]);
            packet.extend_from_slice(payload);
            frame(0x86dd, &packet)
        };
        assert_eq!(read_frame(&v6(58, &[135, 0, 0, 0])), None);
        assert_eq!(read_frame(&v6(0, &[58, 0, 5, 2, 0, 0, 1, 0, 143, 0])), None);
        assert_eq!(read_frame(&v6(58, &[128, 0, 0, 0])).unwrap().protocol, "ICMPv6");
        assert_eq!(read_frame(&v6(0, &[58, 0, 5, 2, 0, 0, 1, 0, 128, 0])).unwrap().protocol, "0");
        assert_eq!(read_frame(&frame(0x0806, &[0; 28])), None);
    }
}
