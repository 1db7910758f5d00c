//! Asking the kernel about the devices of a network namespace.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, setns};

/// `linux/rtnetlink.h`.
const RTM_NEWLINK: u16 = 16;

/// A device, as far as it says where packets can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its index in its namespace.
    pub(super) index: u32,
    /// Its name.
    pub(super) name: String,
    /// `veth`, `macvlan` and so on; none for hardware.
    pub(super) kind: Option<InfoKind>,
    /// It leads back into its namespace.
    pub(super) loopback: bool,
    /// The id, in its namespace, of the namespace that its other end or its lower device is in, if that is another one.
    pub(super) elsewhere: Option<i32>,
    /// The index of the bridge that it is a port of, or of what else has it.
    pub(super) controller: Option<u32>,
}

/// The devices of the namespace that this thread is in.
pub(super) fn links() -> io::Result<Vec<Link>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut links = Vec::new();
    for answer in ask_all(request, NLM_F_DUMP)? {
        match answer {
            Answer::Read(RouteNetlinkMessage::NewLink(message)) => links.push(link(&message)),
            Answer::Read(_) => {}
            Answer::UnreadLink(index) => links.push(Link {
                index,
                name: format!("device {index}, which cannot be read"),
                kind: None,
                loopback: false,
                elsewhere: None,
                controller: None,
            }),
        }
    }
    Ok(links)
}

/// The addresses of the namespace that this thread is in, each with the index of its device; those that count on a link or
/// within the machine alone are left out.
pub(super) fn addresses() -> io::Result<Vec<(u32, IpAddr)>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut addresses = Vec::new();
    for answer in ask(request, NLM_F_DUMP)? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if message.header.scope != AddressScope::Universe {
            continue;
        }
        // Where there are two, `Address` is the other end's.
        let of = |local: bool| {
            message.attributes.iter().find_map(|one| match one {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
        };
        addresses.extend(of(true).or_else(|| of(false)).map(|address| (message.header.index, address)));
    }
    Ok(addresses)
}

/// The filters of tc in one list of a device, by priority and handle.
pub(super) fn filters(index: u32, list: u32) -> io::Result<Vec<(u16, u32)>> {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = list.into();
    let answers = ask(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            // The upper half is the priority, the lower the protocol.
            RouteNetlinkMessage::NewTrafficFilter(filter) => {
                Some(((filter.header.info >> 16) as u16, filter.header.handle.into()))
            }
            _ => None,
        })
        .collect())
}

/// Whether a device has a queue of kind `ingress`, whose filters see one direction only, whatever list they are put into.
pub(super) fn has_ingress_queue(index: u32) -> io::Result<bool> {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    let answers = ask(RouteNetlinkMessage::GetQueueDiscipline(message), NLM_F_DUMP)?;
    let is_ingress = |one: &TcAttribute| matches!(one, TcAttribute::Kind(kind) if kind == "ingress");
    Ok(answers.iter().any(|answer| match answer {
        // The kernel tells of all devices.
        RouteNetlinkMessage::NewQueueDiscipline(one) => {
            one.header.index == index.cast_signed() && one.attributes.iter().any(is_ingress)
        }
        _ => false,
    }))
}

/// The devices of another namespace.
pub(super) fn links_in(namespace: &File) -> io::Result<Vec<Link>> {
    inside(namespace, links)
}

/// Does something in another network namespace, on a thread that goes there and ends.
pub(super) fn inside<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let there = || -> io::Result<T> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(there).join())
        .unwrap_or_else(|_| Err(io::Error::other("a thread in a network namespace has panicked")))
}

/// The id by which the devices of this thread's namespace name another one; none where no device leads there.
pub(super) fn id_of(namespace: &File) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    let fd: RawFd = namespace.as_raw_fd();
    message.attributes.push(NsidAttribute::Fd(fd.unsigned_abs()));
    let answers = ask(RouteNetlinkMessage::GetNsId(message), NLM_F_ACK)?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => message.attributes.into_iter().find_map(|one| match one {
            NsidAttribute::Id(id) if id >= 0 => Some(id),
            _ => None,
        }),
        _ => None,
    }))
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        loopback: message.header.link_layer_type == LinkLayerType::Loopback,
        elsewhere: None,
        controller: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::LinkNetNsId(id) => link.elsewhere = Some(*id),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// What the kernel answers.
enum Answer {
    Read(RouteNetlinkMessage),
    /// A device, by its index, that is told of by what is no text: who may name devices must not hide the others.
    UnreadLink(u32),
}

/// Sends a request and reads all answers to it.
fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let answers = ask_all(request, flags)?.into_iter().map(|answer| match answer {
        Answer::Read(answer) => Ok(answer),
        Answer::UnreadLink(index) => Err(io::Error::other(format!("netlink: device {index} cannot be read"))),
    });
    answers.collect()
}

/// The index of the device that a message is about (`linux/rtnetlink.h`: `nlmsghdr` of 16 bytes, then `ifinfomsg`).
fn index_of_link(message: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let index = u32::from_ne_bytes(message.get(20..24)?.try_into().ok()?);
    (kind == RTM_NEWLINK).then_some(index)
}

/// As [`ask`], with devices that cannot be read.
fn ask_all(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<Answer>> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(request));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let broken = |error| io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {error}"));
            let length = NetlinkBuffer::new_checked(rest).map_err(broken)?.length() as usize;
            let next = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
                Ok(message) => message,
                Err(error) => {
                    answers.push(Answer::UnreadLink(index_of_link(rest).ok_or_else(|| broken(error))?));
                    rest = next;
                    continue;
                }
            };
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(Answer::Read(answer)),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
            // Messages begin at multiples of four bytes.
            rest = next;
        }
    }
}
