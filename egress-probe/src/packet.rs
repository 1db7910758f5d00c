//! IP packets made by hand, for those who send what no socket of the kernel would.
//!
//! Invariant: lengths and checksums are right for what the packet says it is, so that no receiver has another reason to
//! drop it than the one a test is about.

use std::net::{IpAddr, SocketAddr};

/// TCP flag: the sender has nothing more to send.
pub const FIN: u8 = 0x01;
/// TCP flag: the first segment of a direction.
pub const SYN: u8 = 0x02;
/// TCP flag: the end of the connection.
pub const RST: u8 = 0x04;
/// TCP flag: hand the bytes on at once.
pub const PSH: u8 = 0x08;
/// TCP flag: the acknowledgement number counts.
pub const ACK: u8 = 0x10;

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
/// Both sequence numbers of every forged segment.
const SEQUENCE: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// The sum of the 16-bit words as IP, ICMP and UDP want it. All parts but the last have an even length.
#[must_use]
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The hexadecimal digits of some bytes.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal digits; nothing for a text that is not such.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect::<Option<_>>()
        .filter(|_| text.len().is_multiple_of(2))
}

/// One IP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    from: IpAddr,
    to: IpAddr,
    /// IPv4 options, padded.
    options: Vec<u8>,
    /// IPv6 extension headers: the number of each, and what follows its first byte.
    extensions: Vec<(u8, Vec<u8>)>,
    /// The flags and the offset of IPv4.
    fragment: u16,
    protocol: u8,
    payload: Vec<u8>,
}

impl Packet {
    /// A packet of any protocol. Both addresses are of one family.
    #[must_use]
    pub fn new(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Self {
        Self {
            from,
            to,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0,
            protocol,
            payload: payload.to_vec(),
        }
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Self {
        let mut datagram = ports(from, to);
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let sum = match transport_checksum(from.ip(), to.ip(), UDP, &datagram) {
            0 => 0xffff,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        Self::new(from.ip(), to.ip(), UDP, &datagram)
    }

    /// A TCP segment with these flags.
    #[must_use]
    pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Self {
        let mut segment = ports(from, to);
        segment.extend(SEQUENCE);
        segment.extend(if flags & ACK == 0 { [0; 4] } else { SEQUENCE });
        segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(payload);
        let sum = transport_checksum(from.ip(), to.ip(), TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        Self::new(from.ip(), to.ip(), TCP, &segment)
    }

    /// An echo request of ICMP or ICMPv6.
    #[must_use]
    pub fn echo(from: IpAddr, to: IpAddr, payload: &[u8]) -> Self {
        Self::icmp(from, to, if to.is_ipv4() { 8 } else { 128 }, payload)
    }

    /// A message of ICMP or ICMPv6 of any type.
    #[must_use]
    pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, payload: &[u8]) -> Self {
        let protocol = if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 } as u8;
        let mut message = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
        message.extend(payload);
        let sum = if to.is_ipv4() {
            internet_checksum(&[&message])
        } else {
            transport_checksum(from, to, protocol, &message)
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Self::new(from, to, protocol, &message)
    }

    /// With IPv4 options; a packet of IPv6 has none.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// With one IPv6 extension header more: its number, and what follows its first byte, which names the next header.
    /// Padded to a multiple of eight bytes; the length in it is up to the caller.
    #[must_use]
    pub fn extension(mut self, number: u8, rest: &[u8]) -> Self {
        let mut rest = rest.to_vec();
        rest.resize((rest.len() + 1).next_multiple_of(8) - 1, 0);
        self.extensions.push((number, rest));
        self
    }

    /// As a fragment: the flags and the offset as IPv4 has them (`0x2000` is "more follow"). For IPv6 it is a header of
    /// its own.
    #[must_use]
    pub fn fragment(mut self, field: u16) -> Self {
        if self.to.is_ipv4() {
            self.fragment = field;
            return self;
        }
        let more = u16::from(field & 0x2000 != 0);
        let [high, low] = ((field & 0x1fff) << 3 | more).to_be_bytes();
        self.extension(libc::IPPROTO_FRAGMENT as u8, &[0, high, low, 0, 0, 0x12, 0x34])
    }

    /// With only the first bytes of its payload.
    #[must_use]
    pub fn cut(mut self, length: usize) -> Self {
        self.payload.truncate(length);
        self
    }

    /// What is sent; nothing if the addresses are of different families or the packet is too long.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = 20 + self.options.len();
                let total = u16::try_from(header + self.payload.len()).ok()?;
                let mut bytes = vec![0x40 | u8::try_from(header / 4).ok().filter(|words| *words < 16)?, 0];
                bytes.extend(total.to_be_bytes());
                bytes.extend([0x12, 0x34]);
                bytes.extend(self.fragment.to_be_bytes());
                bytes.extend([64, self.protocol, 0, 0]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes.extend(&self.options);
                let sum = internet_checksum(&[&bytes]);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes.extend(&self.payload);
                Some(bytes)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut behind = Vec::new();
                for (at, (_, rest)) in self.extensions.iter().enumerate() {
                    behind.push(self.extensions.get(at + 1).map_or(self.protocol, |(number, _)| *number));
                    behind.extend(rest);
                }
                behind.extend(&self.payload);
                let first = self.extensions.first().map_or(self.protocol, |(number, _)| *number);
                let mut bytes = vec![0x60, 0, 0, 0];
                bytes.extend(u16::try_from(behind.len()).ok()?.to_be_bytes());
                bytes.extend([first, 64]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes.extend(behind);
                Some(bytes)
            }
            _ => None,
        }
    }
}

fn ports(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    [from.port().to_be_bytes(), to.port().to_be_bytes()].concat()
}

/// The checksum over the pseudo header and what follows the IP header.
fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(v4) => pseudo.extend(v4.octets()),
            IpAddr::V6(v6) => pseudo.extend(v6.octets()),
        }
    }
    pseudo.extend([0, protocol]);
    pseudo.extend((bytes.len() as u16).to_be_bytes());
    internet_checksum(&[&pseudo, bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_known_header() {
        // The example of RFC 1071 discussions: a header whose checksum is 0xb861.
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(internet_checksum(&[&header]), 0xb861);
        assert_eq!(internet_checksum(&[&header[..8], &header[8..]]), 0xb861);
    }

    #[test]
    fn checksums_of_packets_come_out_right() {
        let udp = |from: &str, to: &str, payload| {
            Packet::udp(from.parse().unwrap(), to.parse().unwrap(), payload).bytes()
        };
        let packet = udp("10.0.0.1:1", "10.0.0.2:53", b"odd").unwrap();
        assert_eq!(packet.len(), 31);
        assert_eq!(internet_checksum(&[&packet[..20]]), 0);
        assert_eq!(internet_checksum(&[&packet[12..20], &[0, 17, 0, 11], &packet[20..]]), 0);
        let packet = udp("[fd00::1]:1", "[fd00::2]:53", b"even").unwrap();
        assert_eq!(internet_checksum(&[&packet[8..40], &[0, 17, 0, 12], &packet[40..]]), 0);
        assert_eq!(udp("10.0.0.1:1", "[fd00::2]:53", b""), None);
    }

    #[test]
    fn headers_are_chained_and_counted() {
        let (from, to) = ("[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap());
        let bytes = Packet::udp(from, to, b"").extension(0, &[0, 1, 4]).fragment(0x2001).bytes().unwrap();
        assert_eq!((bytes[6], &bytes[40..43]), (0, &[44, 0, 1][..]));
        assert_eq!(&bytes[48..52], &[17, 0, 0, 9]);
        assert_eq!(bytes.len(), 40 + 8 + 8 + 8);
        let (from, to) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let bytes = Packet::tcp(from, to, SYN, b"").options(&[7, 3, 4]).fragment(5).bytes().unwrap();
        assert_eq!((bytes[0], bytes[7], bytes.len()), (0x46, 5, 20 + 4 + 20));
        assert_eq!(internet_checksum(&[&bytes[..24]]), 0);
    }

    #[test]
    fn hexadecimal_digits_go_both_ways() {
        assert_eq!(from_hex(&to_hex(&[0, 0xab, 9])), Some(vec![0, 0xab, 9]));
        assert_eq!((from_hex("abc"), from_hex("zz"), from_hex("é")), (None, None, None));
    }
}
