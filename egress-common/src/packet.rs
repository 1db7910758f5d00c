//! From bytes to a [`Flow`]: the IP header, and the transport header as far as its ports.
//!
//! Invariant: what is not understood completely is an error with a reason of its own; there is no "other".
//! Header layouts: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260.

use network_types::eth::EtherType;
use network_types::ip::IpProto;

use crate::neighbour::is_neighbour;
use crate::reason::Reason;
use crate::wire::{Addr, Approval, Endpoint};

/// A packet, starting at its IP header. Words are of 32 bits and as they lie, which is to say in network byte order.
pub trait Bytes {
    /// `N` words at `offset` bytes; `None` where the packet is shorter.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// The first `N` words where the kernel has them at hand; `None` also where it has not. Only for what can do without.
    fn head<const N: usize>(&self) -> Option<[u32; N]>;

    /// [`read`] of this packet. The kernel has a function of its own for it, so that its verifier follows it once only.
    #[inline(always)]
    fn read(&self, ethertype: u16, flow: &mut Flow) -> Option<Reason> {
        read(self, ethertype, flow)
    }

    /// [`is_neighbour`] of this packet, as [`Self::read`].
    #[inline(always)]
    fn is_neighbour(&self, flow: &Flow, length: u32, endpoint: Option<&Endpoint>) -> bool {
        is_neighbour(self, flow, length, endpoint)
    }
}

/// Reads a packet into `flow`, as far as it can be understood; gives the reason where that is not to the ports.
///
/// `ethertype` is what the frame will be sent as, host byte order. `flow.version` is set where the fixed IP header was read.
#[inline(always)]
pub fn read<B: Bytes + ?Sized>(packet: &B, ethertype: u16, flow: &mut Flow) -> Option<Reason> {
    match network(packet, ethertype, flow) {
        Ok(network) => transport(packet, network, flow).err(),
        Err(reason) => Some(reason),
    }
}

impl Bytes for [u8] {
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = offset as usize;
        let bytes = self.get(start..start.checked_add(4 * N)?)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }

    fn head<const N: usize>(&self) -> Option<[u32; N]> {
        self.words(0)
    }
}

/// The high half of a word, in host byte order.
#[inline(always)]
const fn high(word: u32) -> u16 {
    (u32::from_be(word) >> 16) as u16
}

/// The low half of a word, in host byte order.
#[inline(always)]
const fn low(word: u32) -> u16 {
    u32::from_be(word) as u16
}

/// A byte of a word, 0 being the first one on the wire.
#[inline(always)]
pub(crate) const fn byte(word: u32, index: usize) -> u8 {
    word.to_ne_bytes()[index]
}

/// `ETH_P_IP` in host byte order.
pub const ETHERTYPE_IPV4: u16 = u16::from_be(EtherType::Ipv4 as u16);
/// `ETH_P_IPV6` in host byte order.
pub const ETHERTYPE_IPV6: u16 = u16::from_be(EtherType::Ipv6 as u16);

/// `ETH_P_ARP` in host byte order.
pub const ETHERTYPE_ARP: u16 = u16::from_be(EtherType::Arp as u16);
/// Ethertype of a VLAN tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Ethertype of a service VLAN tag (IEEE 802.1ad).
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

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
    /// Identification of a fragment's datagram.
    pub fragment: u32,
    /// Where the payload begins, from the IP header on; of TCP only.
    pub payload: u16,
    /// Source port, host byte order, 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port, host byte order, 0 where the protocol has none.
    pub destination_port: u16,
    /// Identifier of an ICMP echo request or reply, host byte order.
    pub echo: u16,
    /// IANA protocol number of the transport header.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
    /// The flags of TCP, or the type of ICMP and ICMPv6.
    pub kind: u8,
    /// Whether it is a datagram's first fragment: more are to follow.
    pub parted: bool,
}

/// Bits of [`Flow::kind`] for TCP (RFC 9293, section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Begins a connection.
    pub const SYN: u8 = 2;
    /// Ends a connection at once.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// Values of [`Flow::kind`] for ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861, RFC 2710, RFC 3810).
pub mod icmp {
    /// ICMP echo request.
    pub const ECHO_V4: u8 = 8;
    /// ICMP echo reply.
    pub const ECHO_REPLY_V4: u8 = 0;
    /// ICMPv6 echo request.
    pub const ECHO_V6: u8 = 128;
    /// ICMPv6 echo reply.
    pub const ECHO_REPLY_V6: u8 = 129;
    /// Multicast listener report and done, of version 1.
    pub const LISTENER_V1: [u8; 2] = [131, 132];
    /// Multicast listener report of version 2.
    pub const LISTENER_V2: u8 = 143;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
}

impl Flow {
    /// Whether it carries these flags of TCP and not those.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, flags: u8, without: u8) -> bool {
        self.protocol == protocol::TCP && self.kind & (flags | without) == flags
    }

    /// Whether addresses, ports and protocol are the same.
    #[must_use]
    #[inline(always)]
    pub const fn same(&self, kept: &Approval) -> bool {
        self.destination.same(&kept.destination)
            && self.source.same(&kept.source)
            && self.source_port == kept.source_port
            && self.destination_port == kept.destination_port
            && self.protocol == kept.protocol
            && self.version == kept.version
    }
}

/// Where the transport header is to be looked for: the second half of parsing, [`transport`], goes on from here.
#[derive(Clone, Copy, Debug)]
struct Network {
    /// Offset of the header after the fixed IP header.
    offset: u32,
    /// Where a packet of IPv6 ends by its own words; that says nothing where the kernel has more of it than the field can say.
    end: u32,
    /// The fixed header has options, or the packet is a later fragment: not to be parsed any further.
    refused: Option<Reason>,
}

/// Reads the fixed IP header into `flow`: version, addresses, next protocol.
///
/// Options and fragments are reported by [`transport`], so that the addresses are known of them as well.
#[inline(always)]
fn network<B: Bytes + ?Sized>(packet: &B, ethertype: u16, flow: &mut Flow) -> Result<Network, Reason> {
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(packet, flow),
        ETHERTYPE_IPV6 => ipv6(packet, flow),
        _ => Err(Reason::UnknownIpVersion),
    }
}

#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(packet: &B, flow: &mut Flow) -> Result<Network, Reason> {
    let Some([first, second, third, source, destination]) = packet.words::<5>(0) else {
        return Err(Reason::Truncated);
    };
    if byte(first, 0) >> 4 != 4 {
        return Err(Reason::UnknownIpVersion);
    }
    flow.version = 4;
    flow.source = Addr::v4(source.to_ne_bytes());
    flow.destination = Addr::v4(destination.to_ne_bytes());
    flow.protocol = byte(third, 1);
    flow.fragment = u32::from(high(second));
    let fragment = low(second);
    let fragment_offset = fragment & 0x1fff;
    flow.parted = fragment & 0x2000 != 0 && fragment_offset == 0;
    let refused = match byte(first, 0) & 0x0f {
        0..5 => Some(Reason::Truncated),
        5 if fragment_offset != 0 => Some(Reason::Fragment),
        5 => None,
        _ => Some(Reason::Ipv4Options),
    };
    Ok(Network { offset: 20, end: 0, refused })
}

#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(packet: &B, flow: &mut Flow) -> Result<Network, Reason> {
    let Some([first, second]) = packet.words::<2>(0) else {
        return Err(Reason::Truncated);
    };
    if byte(first, 0) >> 4 != 6 {
        return Err(Reason::UnknownIpVersion);
    }
    let Some([a, b, c, d, e, f, g, h]) = packet.words::<8>(8) else {
        return Err(Reason::Truncated);
    };
    flow.version = 6;
    flow.source = Addr::of([a, b, c, d]);
    flow.destination = Addr::of([e, f, g, h]);
    flow.protocol = byte(second, 2);
    Ok(Network { offset: 40, end: 40 + u32::from(high(second)), refused: None })
}

/// Reads on from [`network`] to the ports.
#[inline(always)]
fn transport<B: Bytes + ?Sized>(packet: &B, network: Network, flow: &mut Flow) -> Result<(), Reason> {
    if let Some(reason) = network.refused {
        return Err(reason);
    }
    let mut offset = network.offset;
    if flow.version == 6 {
        offset = extensions(packet, network, flow)?;
    }
    match (flow.protocol, flow.version) {
        // The header must be whole, or the rest of it could be sent as a fragment of its own (RFC 1858).
        (protocol::TCP, _) => {
            let Some([first, _, _, fourth, _]) = packet.words::<5>(offset) else {
                return Err(Reason::Truncated);
            };
            ports(flow, first);
            flow.kind = byte(fourth, 1);
            // Four bits of 32-bit words.
            flow.payload = (offset + u32::from(byte(fourth, 0) >> 4) * 4) as u16;
            Ok(())
        }
        (protocol::UDP, _) => {
            let Some([first, _]) = packet.words::<2>(offset) else {
                return Err(Reason::Truncated);
            };
            ports(flow, first);
            Ok(())
        }
        (protocol::SCTP, _) => {
            let Some([first, _, _]) = packet.words::<3>(offset) else {
                return Err(Reason::Truncated);
            };
            ports(flow, first);
            Ok(())
        }
        (protocol::ICMP, 4) | (protocol::ICMPV6, 6) => {
            let Some([first, second]) = packet.words::<2>(offset) else {
                return Err(Reason::Truncated);
            };
            flow.kind = byte(first, 0);
            flow.echo = high(second);
            Ok(())
        }
        // IPv4 and IPv6 in IP, GRE, ESP, AH, EtherIP, IP in IP with minimal header, IPComp, L2TP, MPLS in IP, AGGFRAG.
        (4 | 41 | 47 | 50 | 51 | 55 | 94 | 97 | 98 | 108 | 115 | 137 | 143 | 144, _) => Err(Reason::Tunnel),
        _ => Err(Reason::UnknownProtocol),
    }
}

#[inline(always)]
fn ports(flow: &mut Flow, word: u32) {
    flow.source_port = high(word);
    flow.destination_port = low(word);
}

/// Steps over IPv6 extension headers; gives the offset of the transport header, and leaves its number in `flow`.
///
/// Whoever puts fragments together leaves out what is behind the stated end, and may find another header there: the one that is read here
/// has to be within. Nor are there others behind a fragment header: the rest of them could be another fragment's. Of IPv4 the ports are in
/// the first eight bytes, which no other fragment can have.
#[inline(always)]
fn extensions<B: Bytes + ?Sized>(packet: &B, network: Network, flow: &mut Flow) -> Result<u32, Reason> {
    let mut offset = network.offset;
    let mut count = 0;
    // Bounded for the verifier.
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
        if count == MAX_EXTENSIONS || (next == HOP_BY_HOP && count > 0) {
            return Err(Reason::Ipv6Extension);
        }
        let Some([first, second]) = packet.words::<2>(offset) else {
            return Err(Reason::Truncated);
        };
        flow.protocol = byte(first, 0);
        if next == FRAGMENT {
            flow.fragment = u32::from_be(second);
            let place = low(first);
            if place & 0xfff8 != 0 {
                return Err(Reason::Fragment);
            }
            flow.parted = place & 1 != 0;
            offset += 8;
            return match flow.protocol {
                HOP_BY_HOP | FRAGMENT | DESTINATION_OPTIONS => Err(Reason::Ipv6Extension),
                protocol::TCP if offset + 20 > network.end => Err(Reason::Truncated),
                _ if offset + 8 > network.end => Err(Reason::Truncated),
                _ => Ok(offset),
            };
        } else {
            offset += (u32::from(byte(first, 1)) + 1) * 8;
        }
        count += 1;
    }
    Err(Reason::Ipv6Extension)
}
