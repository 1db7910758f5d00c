//! `udp` and `tcp`: plain sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use super::{Budget, During as _, Failure, Success};

/// A UDP socket connected to `target`, so that ICMP errors come back as errors of the socket.
pub(crate) fn connected_udp(target: SocketAddr) -> Result<UdpSocket, Failure> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).during("bind")?;
    socket.connect(target).during("connect")?;
    Ok(socket)
}

/// Sends a datagram and waits for the same bytes.
pub(crate) fn udp(target: SocketAddr, payload: &str, budget: Budget) -> Result<Success, Failure> {
    let socket = connected_udp(target)?;
    socket.send(payload.as_bytes()).during("send")?;
    let mut buffer = [0_u8; 65536 / 8];
    loop {
        socket.set_read_timeout(Some(budget.left("receive")?)).during("set time limit")?;
        let count = socket.recv(&mut buffer).during("receive")?;
        let answer = String::from_utf8_lossy(&buffer[..count]);
        if answer == payload {
            return Ok(Success {
                detail: format!("echo of {target}"),
                status: None,
                body: Some(answer.into_owned()),
            });
        }
    }
}

/// Connects and closes.
pub(crate) fn tcp(target: SocketAddr, budget: Budget) -> Result<Success, Failure> {
    let stream = TcpStream::connect_timeout(&target, budget.left("connect")?).during("connect")?;
    let local = stream.local_addr().during("local address")?;
    Ok(Success { detail: format!("connected from {local}"), status: None, body: None })
}
