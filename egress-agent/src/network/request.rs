//! Asking the kernel by netlink, where no library has the words.

use std::io;

use netlink_packet_core::{Emitable as _, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NlasIterator};
use netlink_sys::Socket;
use nix::errno::Errno;

/// `NLA_F_NESTED` (`include/uapi/linux/netlink.h`).
pub(super) const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: without that flag and the one for the byte order.
pub(super) const TYPE: u16 = 0x3fff;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

pub(super) fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// The value of the attribute of a kind.
pub(super) fn nested(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut all = NlasIterator::new(attributes).flatten();
    all.find(|nla| nla.kind() & TYPE == kind).map(|nla| nla.value().to_vec())
}

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::from(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub(super) fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {error}"))
}

/// Sends a request and hands on the payload of each answer to it.
pub(super) fn ask(
    socket: &Socket,
    kind: u16,
    flags: u16,
    payload: &[u8],
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    header.flags = NLM_F_REQUEST | flags;
    let length = header.buffer_len() + payload.len();
    header.length = u32::try_from(length).map_err(broken)?;
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut bytes);
    bytes.extend(payload);
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(broken)?;
            match message.message_type() {
                // Both begin with an error number, zero for none.
                ERROR | DONE => {
                    let code = message.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(()) };
                }
                _ => each(message.payload())?,
            }
            // Messages begin at multiples of four bytes.
            rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
