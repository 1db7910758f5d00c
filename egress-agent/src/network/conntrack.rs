//! Where netfilter sends connections: the node's what pods send to services, a pod's own what comes in to it (`nf_conntrack`, by
//! `ctnetlink`).
//!
//! Invariant: what is forgotten is one connection, by the kernel's own number of it. Tested by `tests/former.rs`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NlasIterator};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::request::{NESTED, TYPE, ask, attribute, errno, nested};

/// Message types of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`: the subsystem in the upper byte.
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
/// Attributes of an entry: the two directions, its number, its zone.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// Of a direction: addresses, and protocol with ports.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
/// Of addresses: source and destination, IPv4 and IPv6.
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];
/// Of the protocol: its number, and the ports.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// A connection that netfilter sends elsewhere than its sender says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Who began it.
    pub from: IpAddr,
    /// From which port.
    pub from_port: u16,
    /// Where that sends it.
    pub to: SocketAddr,
    /// Where it goes.
    pub backend: SocketAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// How the kernel names it: family and attributes.
    entry: (u8, Vec<u8>),
}

/// The connections of these senders, in this process's network namespace, that go elsewhere than they say.
///
/// # Errors
/// The kernel does not tell; it may have no connection tracking.
pub fn translated(senders: &BTreeSet<IpAddr>) -> io::Result<Vec<Translated>> {
    translated_where(|one| senders.contains(&one.from))
}

/// The connections of this thread's network namespace that go elsewhere than they say, of those that are wanted.
///
/// # Errors
/// As [`translated`].
pub(super) fn translated_where(wanted: impl Fn(&Translated) -> bool) -> io::Result<Vec<Translated>> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    let mut found = Vec::new();
    ask(&socket, GET, NLM_F_DUMP, &header(0), |answer| {
        found.extend(read(answer).filter(|one| one.to != one.backend && wanted(one)));
        Ok(())
    })?;
    Ok(found)
}

/// Has netfilter forget connections: their next packets are sent where packets of new ones are. Tells how many were still there.
///
/// # Errors
/// The kernel refuses.
pub fn forget(connections: &[Translated]) -> io::Result<usize> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    let (mut number, mut failed) = (0, None);
    for Translated { entry: (family, attributes), .. } in connections {
        let request = [&header(*family)[..], attributes].concat();
        match ask(&socket, DELETE, NLM_F_ACK, &request, |_| Ok(())) {
            Ok(()) => number += 1,
            Err(error) if errno(&error) == Some(Errno::ENOENT) => {}
            // The others are to go all the same.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(number), Err)
}

/// `struct nfgenmsg`: family, version, resource.
fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// Reads an entry; none where it has no ports, or cannot be read.
fn read(answer: &[u8]) -> Option<Translated> {
    let ([family, ..], attributes) = answer.split_first_chunk::<4>()?;
    let of = |direction| Direction::read(&nested(attributes, direction)?);
    let (original, reply) = (of(ORIGINAL)?, of(REPLY)?);
    let mut entry = Vec::new();
    for nla in NlasIterator::new(attributes).flatten() {
        if [ORIGINAL, ID, ZONE].contains(&(nla.kind() & TYPE)) {
            let flag = if nla.kind() & TYPE == ORIGINAL { NESTED } else { 0 };
            entry.extend(attribute((nla.kind() & TYPE) | flag, nla.value()));
        }
    }
    Some(Translated {
        from: original.source.ip(),
        from_port: original.source.port(),
        to: original.destination,
        backend: reply.source,
        protocol: original.protocol,
        entry: (*family, entry),
    })
}

struct Direction {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
}

impl Direction {
    fn read(tuple: &[u8]) -> Option<Self> {
        let addresses = nested(tuple, ADDRESSES)?;
        let transport = nested(tuple, PROTOCOL)?;
        let address = |kinds: [u16; 2]| -> Option<IpAddr> {
            let [v4, v6] = kinds.map(|kind| nested(&addresses, kind));
            match (v4, v6) {
                (Some(v4), _) => <[u8; 4]>::try_from(v4).ok().map(IpAddr::from),
                (None, Some(v6)) => <[u8; 16]>::try_from(v6).ok().map(IpAddr::from),
                (None, None) => None,
            }
        };
        let port = |kind| nested(&transport, kind)?.try_into().ok().map(u16::from_be_bytes);
        Some(Self {
            source: SocketAddr::new(address(SOURCES)?, port(SOURCE_PORT)?),
            destination: SocketAddr::new(address(DESTINATIONS)?, port(DESTINATION_PORT)?),
            protocol: *nested(&transport, NUMBER)?.first()?,
        })
    }
}
