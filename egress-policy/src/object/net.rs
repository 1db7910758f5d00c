//! Addresses, prefixes and ports, in the form the maps hold them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use egress_common::packet::protocol;
use egress_common::wire::{Addr, Cidr, PROTOCOL_ANY};
use ipnet::IpNet;

use super::{ObjectError, Set, join};

/// Every IPv4 address, `::ffff:0:0/96`.
pub const MAPPED_V4: Cidr = Cidr { bits: 96, addr: Addr::v4([0; 4]) };

/// The map form of an address.
#[must_use]
pub fn address(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => Addr::v4(ip.octets()),
        IpAddr::V6(ip) => Addr(ip.octets()),
    }
}

/// The prefix of `bits` bits (at most 128) that holds `addr`.
#[must_use]
pub fn masked(addr: Addr, bits: u32) -> Cidr {
    let bits = bits.min(128);
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    Cidr { bits, addr: Addr((u128::from_be_bytes(addr.0) & mask).to_be_bytes()) }
}

/// The last address of a prefix.
pub(crate) fn last_of(cidr: &Cidr) -> Addr {
    let rest = u128::MAX.checked_shr(cidr.bits).unwrap_or(0);
    Addr((u128::from_be_bytes(cidr.addr.0) | rest).to_be_bytes())
}

/// Whether every address of `inner` is in `outer`.
#[must_use]
pub fn cidr_contains(outer: &Cidr, inner: &Cidr) -> bool {
    outer.bits <= inner.bits && masked(inner.addr, outer.bits).addr == outer.addr
}

/// A prefix without some prefixes inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CidrPeer {
    /// The prefix.
    pub cidr: Cidr,
    /// What is not meant, each strictly inside `cidr`. All of IPv4 is here for an IPv6 prefix whose mapped form would
    /// hold it.
    pub except: Set<Cidr>,
}

/// Length of a prefix that is one address.
pub(crate) const SINGLE: u32 = 128;

/// Whether a prefix is one address.
pub(crate) fn is_single(cidr: &Cidr) -> bool {
    cidr.bits == SINGLE
}

impl CidrPeer {
    /// Reads a prefix and its exceptions. `strict`: without host bits, and no exception within another one. A NetworkPolicy
    /// may have both: the API server takes `192.168.1.1/24` for `192.168.1.0/24` (with a warning since 1.33, KEP-4858), and
    /// what is stored stays valid.
    pub(super) fn read(cidr: &str, except: &[String], path: &str, strict: bool) -> Result<Self, ObjectError> {
        let outer = net(cidr, &join(path, "cidr"), strict)?;
        let mut excepted = Vec::new();
        for (i, text) in except.iter().enumerate() {
            let path = join(path, &format!("except[{i}]"));
            let inner = net(text, &path, strict)?;
            let same_family = cidr_contains(&MAPPED_V4, &inner) == cidr_contains(&MAPPED_V4, &outer);
            if !same_family || inner == outer || !cidr_contains(&outer, &inner) {
                return Err(ObjectError::new(path, format!("{text} is not strictly within {cidr}")));
            }
            let overlaps = |other: &Cidr| cidr_contains(other, &inner) || cidr_contains(&inner, other);
            if strict && excepted.iter().any(overlaps) {
                return Err(ObjectError::new(path, format!("{text} overlaps another exception")));
            }
            excepted.push(inner);
        }
        if outer != MAPPED_V4 && cidr_contains(&outer, &MAPPED_V4) {
            excepted.push(MAPPED_V4);
        }
        Ok(Self { cidr: outer, except: excepted.into_iter().collect() })
    }
}

/// Reads a prefix; host bits are an error where that is `strict`, and do not count otherwise.
fn net(text: &str, path: &str, strict: bool) -> Result<Cidr, ObjectError> {
    let invalid = |reason: &str| Err(ObjectError::new(path, format!("{text:?} {reason}")));
    let Ok(net) = text.parse::<IpNet>() else {
        return invalid("is not a CIDR");
    };
    // As the API server: `isCIDR()` of a policy's schema takes none, while those of NetworkPolicies are read leniently.
    let zeros = text.split_once('/').is_some_and(|(address, bits)| {
        (bits.len() > 1 && bits.starts_with('0'))
            || (net.addr().is_ipv4()
                && address.split('.').any(|part| part.len() > 1 && part.starts_with('0')))
    });
    if strict && zeros {
        return invalid("has zeros in front of a number");
    }
    if strict && net.trunc() != net {
        return invalid("has host bits set");
    }
    match net {
        IpNet::V4(net) => Ok(masked(Addr::v4(net.network().octets()), u32::from(net.prefix_len()) + 96)),
        IpNet::V6(net) => {
            let cidr = masked(Addr(net.network().octets()), u32::from(net.prefix_len()));
            if cidr_contains(&MAPPED_V4, &cidr) {
                return invalid("is IPv4 in IPv6 form; write it as IPv4");
            }
            Ok(cidr)
        }
    }
}

/// A range of ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// IANA protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// First port.
    pub low: u16,
    /// Last port, not below `low`.
    pub high: u16,
}

impl PortRange {
    /// One port.
    #[must_use]
    pub const fn one(protocol: u8, port: u16) -> Self {
        Self { protocol, low: port, high: port }
    }
}

/// A port as a policy names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// By number.
    Range(PortRange),
    /// By the name it has in the destination pod.
    Named(u8, Arc<str>),
}

/// The ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// Absent: every protocol and port.
    All,
    /// These; an empty list allows none.
    Listed(Set<Port>),
}

impl Ports {
    /// Whether a protocol and port is listed by number.
    #[must_use]
    pub fn holds(&self, protocol: u8, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Listed(ports) => ports.iter().any(|p| match p {
                Port::Range(r) => r.protocol == protocol && r.low <= port && port <= r.high,
                Port::Named(..) => false,
            }),
        }
    }
}

/// Reads a protocol; absent is TCP.
pub(super) fn read_protocol(text: Option<&str>, path: &str) -> Result<u8, ObjectError> {
    match text {
        None | Some("TCP") => Ok(protocol::TCP),
        Some("UDP") => Ok(protocol::UDP),
        Some("SCTP") => Ok(protocol::SCTP),
        Some(other) => Err(ObjectError::new(path, format!("{other:?} is not TCP, UDP or SCTP"))),
    }
}

/// The word for a protocol number of a [`PortRange`], or of a row.
#[must_use]
pub fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        protocol::ICMP => "ICMP",
        protocol::ICMPV6 => "ICMPv6",
        PROTOCOL_ANY => "any protocol",
        _ => "another protocol",
    }
}

/// Reads an address; `None` for an empty text, which is how status fields say "not yet".
pub(super) fn read_address(text: &str, path: &str) -> Result<Option<IpAddr>, ObjectError> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse().or_else(|_| sloppy(text).parse::<IpAddr>()) {
        Ok(ip) => Ok(Some(ip.to_canonical())),
        Err(_) => Err(ObjectError::new(path, format!("{text:?} is not an address"))),
    }
}

/// Zeros in front are decimal to Kubernetes (`ParseIPSloppy`), which takes such addresses of old objects; also at the end of an IPv6
/// address that holds an IPv4 one.
fn sloppy(text: &str) -> String {
    let (before, v4) =
        text.rsplit_once(':').map_or(("", text), |(_, v4)| text.split_at(text.len() - v4.len()));
    let plain = |part: &str| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0".to_owned(),
        digits => digits.to_owned(),
    };
    let v4 = v4.split('.').map(plain).collect::<Vec<_>>().join(".");
    if v4.parse::<Ipv4Addr>().is_ok() { format!("{before}{v4}") } else { text.to_owned() }
}

/// Reads a port number, 1 to 65535.
pub(super) fn read_port(number: i64, path: &str) -> Result<u16, ObjectError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ObjectError::new(path, format!("{number} is not a port (1 to 65535)"))),
    }
}

/// Reads a port and the last port of its range.
pub(super) fn read_range(
    protocol: u8,
    port: i64,
    end: Option<i64>,
    path: &str,
) -> Result<PortRange, ObjectError> {
    let low = read_port(port, &join(path, "port"))?;
    let high = match end {
        None => low,
        Some(end) => read_port(end, &join(path, "endPort"))?,
    };
    if high < low {
        return Err(ObjectError::new(join(path, "endPort"), format!("{high} is below port {low}")));
    }
    Ok(PortRange { protocol, low, high })
}
