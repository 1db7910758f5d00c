//! From bytes to a [`Flow`]: the IP header, and the transport header as far as its ports.
//!
//! Invariant: what is not understood completely is an error with a reason of its own; there is no "other".
//! Header layouts: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260.

use network_types::eth::EtherType;
use network_types::ip::IpProto;

use crate::reason::Reason;
use crate::wire::Addr;

/// A packet, starting at its IP header.
pub trait Bytes {
    /// `N` bytes at `offset`; `None` where the packet is shorter.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// `ETH_P_IP` in host byte order.
pub const ETHERTYPE_IPV4: u16 = u16::from_be(EtherType::Ipv4 as u16);
/// `ETH_P_IPV6` in host byte order.
pub const ETHERTYPE_IPV6: u16 = u16::from_be(EtherType::Ipv6 as u16);

/// IANA protocol numbers that are judged by policy.
pub mod protocol {
    use network_types::ip::IpProto;

    /// ICMP, of IPv4 only.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// TCP.
    pub const TCP: u8 = IpProto::Tcp as u8;
    /// UDP.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// ICMPv6, of IPv6 only.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    /// SCTP.
    pub const SCTP: u8 = IpProto::Sctp as u8;
}

/// IPv6 extension headers (RFC 8200, section 4.1) that can be stepped over.
const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const DESTINATION_OPTIONS: u8 = IpProto::Ipv6Opts as u8;
/// Extension headers that can not: routing, authentication, mobility, HIP, shim6, "no next header", and the two for
/// experiments.
const REFUSED_EXTENSIONS: [u8; 8] = [43, 51, 59, 135, 139, 140, 253, 254];
/// Most extension headers in one packet.
const MAX_EXTENSIONS: u32 = 4;

/// What a packet is, as far as a verdict depends on it. Fields that the parser did not reach are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port, host byte order, 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port, host byte order, 0 where the protocol has none.
    pub destination_port: u16,
    /// IANA protocol number of the transport header.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
}

/// Where the transport header is to be looked for: the second half of parsing, [`transport`], goes on from here.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Offset of the header after the fixed IP header.
    offset: u32,
    /// The fixed header has options, or the packet is a later fragment: not to be parsed any further.
    refused: Option<Reason>,
}

/// Reads the fixed IP header into `flow`: version, addresses, next protocol.
///
/// `ethertype` is what the frame will be sent as, host byte order. Options and fragments are reported by
/// [`transport`], so that a caller can look at the addresses first.
#[inline(always)]
pub fn network<B: Bytes + ?Sized>(packet: &B, ethertype: u16, flow: &mut Flow) -> Result<Network, Reason> {
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(packet, flow),
        ETHERTYPE_IPV6 => ipv6(packet, flow),
        _ => Err(Reason::UnknownIpVersion),
    }
}

#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(packet: &B, flow: &mut Flow) -> Result<Network, Reason> {
    let Some(header) = packet.load::<20>(0) else {
        return Err(Reason::Truncated);
    };
    if header[0] >> 4 != 4 {
        return Err(Reason::UnknownIpVersion);
    }
    flow.version = 4;
    flow.source = Addr::v4([header[12], header[13], header[14], header[15]]);
    flow.destination = Addr::v4([header[16], header[17], header[18], header[19]]);
    flow.protocol = header[9];
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let refused = match header[0] & 0x0f {
        0..5 => Some(Reason::Truncated),
        5 if fragment_offset != 0 => Some(Reason::Fragment),
        5 => None,
        _ => Some(Reason::Ipv4Options),
    };
    Ok(Network { offset: 20, refused })
}

#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(packet: &B, flow: &mut Flow) -> Result<Network, Reason> {
    let Some(header) = packet.load::<8>(0) else {
        return Err(Reason::Truncated);
    };
    if header[0] >> 4 != 6 {
        return Err(Reason::UnknownIpVersion);
    }
    let (Some(source), Some(destination)) = (packet.load::<16>(8), packet.load::<16>(24)) else {
        return Err(Reason::Truncated);
    };
    flow.version = 6;
    flow.source = Addr(source);
    flow.destination = Addr(destination);
    flow.protocol = header[6];
    Ok(Network { offset: 40, refused: None })
}

/// Reads on from [`network`] to the ports.
#[inline(always)]
pub fn transport<B: Bytes + ?Sized>(packet: &B, network: Network, flow: &mut Flow) -> Result<(), Reason> {
    if let Some(reason) = network.refused {
        return Err(reason);
    }
    let mut offset = network.offset;
    if flow.version == 6 {
        offset = extensions(packet, offset, flow)?;
    }
    match (flow.protocol, flow.version) {
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => {
            let Some(ports) = packet.load::<4>(offset) else {
                return Err(Reason::Truncated);
            };
            // The header must be whole, or the rest of it could be sent as a fragment of its own (RFC 1858).
            let rest = match flow.protocol {
                protocol::TCP => packet.load::<1>(offset + 19),
                protocol::SCTP => packet.load::<1>(offset + 11),
                _ => packet.load::<1>(offset + 7),
            };
            if rest.is_none() {
                return Err(Reason::Truncated);
            }
            flow.source_port = u16::from_be_bytes([ports[0], ports[1]]);
            flow.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
            Ok(())
        }
        (protocol::ICMP, 4) | (protocol::ICMPV6, 6) => match packet.load::<4>(offset) {
            Some(_) => Ok(()),
            None => Err(Reason::Truncated),
        },
        // IPv4 and IPv6 in IP, GRE, ESP, AH, EtherIP, IP in IP with minimal header, IPComp, L2TP, MPLS in IP, AGGFRAG.
        (4 | 41 | 47 | 50 | 51 | 55 | 94 | 97 | 98 | 108 | 115 | 137 | 143 | 144, _) => Err(Reason::Tunnel),
        _ => Err(Reason::UnknownProtocol),
    }
}

/// Steps over IPv6 extension headers; gives the offset of the transport header and leaves its number in `flow`.
#[inline(always)]
fn extensions<B: Bytes + ?Sized>(packet: &B, start: u32, flow: &mut Flow) -> Result<u32, Reason> {
    let mut offset = start;
    let mut count = 0;
    while count <= MAX_EXTENSIONS {
        let next = flow.protocol;
        if next != HOP_BY_HOP && next != FRAGMENT && next != DESTINATION_OPTIONS {
            let mut i = 0;
            while i < REFUSED_EXTENSIONS.len() {
                if next == REFUSED_EXTENSIONS[i] {
                    return Err(Reason::Ipv6Extension);
                }
                i += 1;
            }
            return Ok(offset);
        }
        // Hop-by-hop options come first or not at all (RFC 8200, section 4.3).
        if next == HOP_BY_HOP && count > 0 {
            return Err(Reason::Ipv6Extension);
        }
        let Some(header) = packet.load::<4>(offset) else {
            return Err(Reason::Truncated);
        };
        if next == FRAGMENT {
            if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                return Err(Reason::Fragment);
            }
            offset += 8;
        } else {
            offset += (u32::from(header[1]) + 1) * 8;
        }
        flow.protocol = header[0];
        count += 1;
    }
    Err(Reason::Ipv6Extension)
}
