//! What servers and attempts share: printing lines, listening sockets, reading HTTP heads, moving bytes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::Context as _;
use egress_probe::Ready;
use socket2::{Domain, Protocol, Socket, Type};

/// The longest HTTP head anybody here accepts.
const HEAD_LIMIT: usize = 16 * 1024;

/// Writes one JSON line to standard output and flushes it.
pub(crate) fn print_line<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()?;
    Ok(())
}

/// Tells the one who started us that traffic is taken from now on.
pub(crate) fn announce_ready() -> anyhow::Result<()> {
    print_line(&Ready { ready: true })
}

/// A bound socket; on the unspecified IPv6 address it takes IPv4 too, and falls back to IPv4 on a kernel without IPv6.
fn bound(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let open = |address: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match open(address) {
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        other => other,
    }
}

/// Listens for TCP connections.
pub(crate) fn listen_tcp(bind: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(bind, port);
    let socket =
        bound(address, Type::STREAM, Protocol::TCP).with_context(|| format!("listen on TCP {address}"))?;
    socket.listen(1024).with_context(|| format!("listen on TCP {address}"))?;
    Ok(socket.into())
}

/// Listens for SCTP associations, each of which gets a socket of its own.
pub(crate) fn listen_sctp(bind: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    Ok(sctp(Type::STREAM, SocketAddr::new(bind, port))?.into())
}

/// A socket of SCTP by which all associations go (RFC 6458, section 3); messages are taken and sent as datagrams are.
pub(crate) fn listen_sctp_many(bind: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
    Ok(sctp(Type::SEQPACKET, SocketAddr::new(bind, port))?.into())
}

fn sctp(kind: Type, address: SocketAddr) -> anyhow::Result<Socket> {
    let listen = || {
        let socket = bound(address, kind, Protocol::SCTP)?;
        socket.listen(64)?;
        Ok::<_, io::Error>(socket)
    };
    listen().with_context(|| format!("listen on SCTP {address}"))
}

/// Binds a UDP socket.
pub(crate) fn listen_udp(bind: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
    let address = SocketAddr::new(bind, port);
    let socket = bound(address, Type::DGRAM, Protocol::UDP).with_context(|| format!("bind UDP {address}"))?;
    Ok(socket.into())
}

/// Announces readiness and gives every connection a thread of its own, for ever.
pub(crate) fn serve_connections<F>(listener: &TcpListener, handle: F) -> anyhow::Result<()>
where
    F: Fn(TcpStream, SocketAddr) + Clone + Send + 'static,
{
    announce_ready()?;
    accept(listener, &handle)
}

/// Gives every connection a thread of its own, for ever.
pub(crate) fn accept<F>(listener: &TcpListener, handle: &F) -> !
where
    F: Fn(TcpStream, SocketAddr) + Clone + Send + 'static,
{
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                let handle = handle.clone();
                if let Err(error) = thread::Builder::new().spawn(move || handle(stream, canonical(peer))) {
                    eprintln!("egress-probe: no thread for {peer}: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                eprintln!("egress-probe: accept: {error}");
                thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
}

/// The address as its own family writes it, also when a dual-stack socket saw it as `::ffff:a.b.c.d`.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An HTTP head as far as anybody here looks at it.
#[derive(Debug)]
pub(crate) struct Head {
    /// The first line.
    pub(crate) first_line: String,
    /// Header names in lower case, with their values.
    pub(crate) fields: Vec<(String, String)>,
    /// Bytes of the body that came along.
    pub(crate) rest: Vec<u8>,
}

impl Head {
    /// The second word of the first line: a request's target or an answer's status.
    pub(crate) fn second_word(&self) -> &str {
        self.first_line.split_whitespace().nth(1).unwrap_or_default()
    }

    /// The value of a field, by its lower-case name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads an HTTP head. `before_read` runs before every read, to set what is left of a time limit.
pub(crate) fn read_head(
    mut stream: &TcpStream,
    mut before_read: impl FnMut(&TcpStream) -> io::Result<()>,
) -> io::Result<Head> {
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 2048];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            let text = String::from_utf8_lossy(&bytes);
            let mut lines = text.lines();
            let first_line = lines.next().unwrap_or_default().to_owned();
            let fields = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            return Ok(Head { first_line, fields, rest });
        }
        if bytes.len() > HEAD_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the HTTP head is too long"));
        }
        before_read(stream)?;
        match stream.read(&mut buffer)? {
            0 => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "closed before the end of the HTTP head",
                ));
            }
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Writes an HTTP answer that ends the connection, and waits until the other side has closed too, so that no reset
/// overtakes the answer.
pub(crate) fn answer(mut stream: &TcpStream, status: &str, content_type: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(std::time::Duration::from_millis(500)))?;
    let mut buffer = [0_u8; 2048];
    while matches!(stream.read(&mut buffer), Ok(count) if count > 0) {}
    Ok(())
}

/// Moves bytes both ways until both sides have closed.
pub(crate) fn tunnel(left: &TcpStream, right: &TcpStream) -> io::Result<()> {
    left.set_read_timeout(None)?;
    right.set_read_timeout(None)?;
    thread::scope(|scope| {
        scope.spawn(|| move_bytes(left, right));
        move_bytes(right, left);
    });
    Ok(())
}

/// Copies one direction; the end of the stream is handed on, an error ends both directions.
fn move_bytes(mut from: &TcpStream, mut to: &TcpStream) {
    let copied = io::copy(&mut from, &mut to).and_then(|_| to.shutdown(Shutdown::Write));
    if copied.is_err() {
        // Either may be closed already; then there is nothing left to end.
        let _closed_already = from.shutdown(Shutdown::Both);
        let _closed_already = to.shutdown(Shutdown::Both);
    }
}
