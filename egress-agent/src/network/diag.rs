//! The TCP sockets of a network namespace, what the programs keep with them, and ending their connections (`sock_diag(7)`).
//!
//! Invariant: a socket is ended by the kernel's own number of it, never by its addresses alone: another one that has come to have
//! the same addresses is not. Tested by `tests/sever.rs`.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use egress_common::wire::Approval;
use netlink_packet_core::{Emitable as _, NLM_F_ACK, NLM_F_DUMP, Nla as _, Parseable as _};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla,
};
use netlink_packet_sock_diag::{SOCK_DESTROY, SOCK_DIAG_BY_FAMILY};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use super::netlink::inside;
use super::request::{NESTED, TYPE, ask, attribute, broken, errno, nested};

/// Attributes of `include/uapi/linux/inet_diag.h`: asks for what maps keep with sockets; tells it; tells the cgroup.
const REQUEST_STORAGES: u16 = 2;
const STORAGES: u16 = 20;
const CGROUP: u16 = 21;
/// Attributes of `include/uapi/linux/sock_diag.h`: the map that is asked for; one map's answer; the value in that.
const STORAGE_MAP: u16 = 1;
const STORAGE: u16 = 1;
const STORAGE_VALUE: u16 = 3;
/// `TCP_LISTEN` (`include/net/tcp_states.h`).
const LISTEN: u8 = 10;

/// A socket with a connection.
#[derive(Clone, Debug)]
pub struct Open {
    /// How the kernel names it.
    request: InetRequest,
    /// The id of the cgroup that it was made in; 0 where the kernel does not tell (before 5.9).
    pub cgroup: u64,
    /// What is kept with it; none where nothing of it was ever approved.
    pub kept: Option<Approval>,
}

impl Open {
    /// Its own end.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        let id = &self.request.socket_id;
        SocketAddr::new(id.source_address.to_canonical(), id.source_port)
    }

    /// The other end, as its process sees it.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        let id = &self.request.socket_id;
        SocketAddr::new(id.destination_address.to_canonical(), id.destination_port)
    }
}

/// The sockets of a network namespace.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// Those with a connection.
    pub open: Vec<Open>,
    /// Where sockets wait for connections.
    listening: Vec<SocketAddr>,
}

impl Sockets {
    /// Whether somebody waits for connections at an address.
    #[must_use]
    pub fn listens(&self, at: SocketAddr) -> bool {
        let takes =
            |to: &SocketAddr| to.port() == at.port() && (to.ip() == at.ip() || to.ip().is_unspecified());
        self.listening.iter().any(takes)
    }
}

/// Looks at the TCP sockets of a network namespace and at what the socket storage `approvals` keeps with them.
///
/// # Errors
/// The kernel does not tell.
pub fn sockets(namespace: &File, approvals: BorrowedFd<'_>) -> io::Result<Sockets> {
    let connected = StateFlags::ESTABLISHED
        | StateFlags::SYN_SENT
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT;
    inside(namespace, || {
        let mut found = Sockets::default();
        for family in [AF_INET, AF_INET6] {
            dump(family, connected.clone() | StateFlags::LISTEN, approvals, &mut found)?;
        }
        Ok(found)
    })
}

/// Ends connections of a network namespace: whoever waits at such a socket gets `ECONNABORTED`. Tells of each whether it still
/// was there.
///
/// # Errors
/// The kernel refuses.
pub fn end(namespace: &File, sockets: &[Open]) -> io::Result<Vec<io::Result<bool>>> {
    inside(namespace, || {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        Ok(sockets.iter().map(|open| destroy(&socket, &open.request)).collect())
    })
}

/// Whether the kernel ends connections (`CONFIG_INET_DIAG_DESTROY`), found out with one that nobody can have.
///
/// # Errors
/// Why it does not.
pub fn can_end() -> io::Result<()> {
    let mut nobody = request(AF_INET, StateFlags::all());
    nobody.socket_id.cookie = [1; 8];
    destroy(&Socket::new(NETLINK_SOCK_DIAG)?, &nobody).map(drop)
}

fn destroy(socket: &Socket, request: &InetRequest) -> io::Result<bool> {
    let mut payload = vec![0; request.buffer_len()];
    request.emit(&mut payload);
    match ask(socket, SOCK_DESTROY, NLM_F_ACK, &payload, |_| Ok(())) {
        Ok(()) => Ok(true),
        // Gone, or its addresses are another one's now.
        Err(error) if matches!(errno(&error), Some(Errno::ENOENT | Errno::ESTALE)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn request(family: u8, states: StateFlags) -> InetRequest {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id }
}

fn dump(family: u8, states: StateFlags, approvals: BorrowedFd<'_>, found: &mut Sockets) -> io::Result<()> {
    let request = request(family, states);
    let mut payload = vec![0; request.buffer_len()];
    request.emit(&mut payload);
    let map = attribute(STORAGE_MAP, &approvals.as_raw_fd().to_ne_bytes());
    payload.extend(attribute(REQUEST_STORAGES | NESTED, &map));
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    ask(&socket, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &payload, |answer| {
        let InetResponse { header, nlas } = InetResponse::parse(answer).map_err(broken)?;
        if header.state == LISTEN {
            let id = &header.socket_id;
            found.listening.push(SocketAddr::new(id.source_address.to_canonical(), id.source_port));
            return Ok(());
        }
        let states = StateFlags::all();
        let request = InetRequest { socket_id: header.socket_id, states, ..request.clone() };
        let mut open = Open { request, cgroup: 0, kept: None };
        for nla in nlas {
            let Nla::Other(nla) = nla else { continue };
            let mut value = vec![0; nla.value_len()];
            nla.emit_value(&mut value);
            match nla.kind() & TYPE {
                CGROUP => open.cgroup = value.try_into().map_or(0, u64::from_ne_bytes),
                STORAGES => open.kept = kept(&value),
                _ => {}
            }
        }
        found.open.push(open);
        Ok(())
    })
}

/// The approval among what maps keep with a socket; one map was asked for.
fn kept(storages: &[u8]) -> Option<Approval> {
    let storage = nested(storages, STORAGE)?;
    let value = nested(&storage, STORAGE_VALUE)?;
    if value.len() != size_of::<Approval>() {
        return None;
    }
    // SAFETY: `Approval` is plain data without padding (`aya::Pod`), and the value has its size; it may be unaligned.
    Some(unsafe { value.as_ptr().cast::<Approval>().read_unaligned() })
}
