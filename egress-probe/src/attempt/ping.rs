//! `ping`: an echo request and its reply.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use egress_probe::packet::internet_checksum;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Budget, During as _, Failure, Success};

/// A raw socket, or a ping socket where raw ones are not allowed.
fn open(target: IpAddr) -> io::Result<(Socket, Type)> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    match Socket::new(domain, Type::RAW, Some(protocol)) {
        Ok(socket) => Ok((socket, Type::RAW)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            Ok((Socket::new(domain, Type::DGRAM, Some(protocol))?, Type::DGRAM))
        }
        Err(error) => Err(error),
    }
}

/// Sends one echo request and waits for its reply.
pub(crate) fn ping(target: IpAddr, payload: &str, budget: Budget) -> Result<Success, Failure> {
    let (mut socket, kind) = open(target).during("open socket")?;
    socket.connect(&SocketAddr::new(target, 0).into()).during("connect")?;
    let (request, reply) = if target.is_ipv4() { (8_u8, 0_u8) } else { (128, 129) };
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let mut message = vec![request, 0, 0, 0, high, low, 0, 1];
    message.extend_from_slice(payload.as_bytes());
    if target.is_ipv4() {
        let checksum = internet_checksum(&[&message]);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    socket.write_all(&message).during("send")?;
    let mut buffer = [0_u8; 2048];
    loop {
        socket.set_read_timeout(Some(budget.left("receive")?)).during("set time limit")?;
        let count = socket.read(&mut buffer).during("receive")?;
        let mut answer = &buffer[..count];
        if target.is_ipv4() && kind == Type::RAW {
            // A raw IPv4 socket delivers the IP header as well.
            let header = answer.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
            answer = answer.get(header..).unwrap_or_default();
        }
        // A ping socket has put an identifier of its own; the kernel has already matched it.
        let ours = kind == Type::DGRAM || answer.get(4..6) == Some(&[high, low]);
        if answer.first() == Some(&reply) && ours && answer.get(8..) == Some(payload.as_bytes()) {
            let by = if kind == Type::RAW { "raw" } else { "ping" };
            return Ok(Success {
                detail: format!("reply from {target} to a {by} socket"),
                status: None,
                body: None,
            });
        }
    }
}
