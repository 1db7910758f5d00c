//! `udp`, `tcp`, `sctp` and `volume`: plain sockets.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Budget, During as _, Failure, Success};

/// Every address of the target's family, with this port.
fn any(target: SocketAddr, port: u16) -> SocketAddr {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, port)
}

/// A UDP socket connected to `target`, so that ICMP errors come back as errors of the socket. Port 0 is any.
pub(crate) fn connected_udp(target: SocketAddr, source_port: u16) -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind(any(target, source_port)).during("bind")?;
    socket.connect(target).during("connect")?;
    Ok(socket)
}

/// Sends a datagram and waits for the same bytes. `from` is more than the port alone.
pub(crate) fn udp(
    target: SocketAddr,
    from: Option<SocketAddr>,
    source_port: u16,
    payload: &str,
    budget: Budget,
) -> Result<Success, Failure> {
    let socket = match from {
        Some(from) => {
            let socket = UdpSocket::bind(from).during("bind")?;
            socket.connect(target).during("connect")?;
            socket
        }
        None => connected_udp(target, source_port)?,
    };
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

/// Connects from a local address.
pub(crate) fn connect_from(from: IpAddr, target: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&target.into(), within)?;
    Ok(socket.into())
}

/// Connects from a port, of which 0 is any.
pub(crate) fn connect(
    target: SocketAddr,
    source_port: u16,
    protocol: Protocol,
    within: Duration,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(protocol))?;
    if source_port != 0 {
        socket.set_reuse_address(true)?;
        socket.bind(&any(target, source_port).into())?;
    }
    socket.connect_timeout(&target.into(), within)?;
    Ok(socket.into())
}

/// Connects and closes.
pub(crate) fn tcp(
    target: SocketAddr,
    source_port: u16,
    mptcp: bool,
    budget: Budget,
) -> Result<Success, Failure> {
    let protocol = if mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let stream = connect(target, source_port, protocol, budget.left("connect")?).during("connect")?;
    let local = stream.local_addr().during("local address")?;
    Ok(Success { detail: format!("connected from {local}"), status: None, body: None })
}

/// Makes an association of SCTP and has a server echo each of some messages.
pub(crate) fn sctp(
    target: SocketAddr,
    from: Option<IpAddr>,
    (payload, messages): (&str, u32),
    budget: Budget,
) -> Result<Success, Failure> {
    let socket =
        Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::SCTP)).during("socket")?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into()).during("bind")?;
    }
    socket.connect_timeout(&target.into(), budget.left("connect")?).during("connect")?;
    let mut stream: TcpStream = socket.into();
    let mut buffer = vec![0_u8; payload.len()];
    for _ in 0..messages {
        stream.set_write_timeout(Some(budget.left("send")?)).during("set time limit")?;
        stream.write_all(payload.as_bytes()).during("send")?;
        stream.set_read_timeout(Some(budget.left("receive")?)).during("set time limit")?;
        stream.read_exact(&mut buffer).during("receive")?;
        if buffer != payload.as_bytes() {
            return Err(Failure::other("what came back is not what was sent"));
        }
    }
    Ok(Success { detail: format!("{messages} messages came back from {target}"), status: None, body: None })
}

/// Sends `bytes` bytes to a server that echoes them, and counts what comes back until it closes.
pub(crate) fn volume(target: SocketAddr, bytes: usize, budget: Budget) -> Result<Success, Failure> {
    let stream = TcpStream::connect_timeout(&target, budget.left("connect")?).during("connect")?;
    stream.set_write_timeout(Some(budget.left("write")?)).during("set time limit")?;
    let mut came = 0;
    thread::scope(|scope| {
        // Its failure shows in what comes back.
        scope.spawn(|| {
            let _seen_below = (&stream).write_all(&vec![b'x'; bytes]);
            let _seen_below = stream.shutdown(Shutdown::Write);
        });
        let mut buffer = vec![0_u8; 65536];
        loop {
            stream.set_read_timeout(Some(budget.left("read")?)).during("set time limit")?;
            match (&stream).read(&mut buffer).during("read")? {
                0 => return Ok(()),
                count => came += count,
            }
        }
    })?;
    if came != bytes {
        return Err(Failure::other(format!("{came} of {bytes} bytes came back")));
    }
    Ok(Success { detail: format!("{came} bytes came back from {target}"), status: None, body: None })
}
