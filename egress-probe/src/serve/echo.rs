//! `serve-udp`, `serve-echo` and `serve-sctp`: give back what comes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::cli::Listen;
use crate::net;

/// Echoes datagrams until killed.
pub(crate) fn run_udp(listen: &Listen) -> anyhow::Result<()> {
    let socket = net::listen_udp(listen.bind, listen.port)?;
    net::announce_ready()?;
    datagrams(&socket)
}

/// Sends every datagram back, for ever.
pub(crate) fn datagrams(socket: &UdpSocket) -> ! {
    let mut buffer = vec![0_u8; 65536];
    loop {
        let echoed =
            socket.recv_from(&mut buffer).and_then(|(count, peer)| socket.send_to(&buffer[..count], peer));
        if let Err(error) = echoed {
            // An answer that is denied or refused concerns one peer only.
            eprintln!("egress-probe: echo: {error}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Echoes TCP bytes until killed, or those of one connection.
pub(crate) fn run_tcp(listen: &Listen, once: bool) -> anyhow::Result<()> {
    let listener = net::listen_tcp(listen.bind, listen.port)?;
    if once {
        net::announce_ready()?;
        let (stream, _) = listener.accept()?;
        drop(listener);
        echo(&stream)?;
        return Ok(());
    }
    net::serve_connections(&listener, |stream, peer| connection(&stream, peer))
}

/// Echoes SCTP messages until killed.
pub(crate) fn run_sctp(listen: &Listen, many: bool) -> anyhow::Result<()> {
    if many {
        let socket = net::listen_sctp_many(listen.bind, listen.port)?;
        net::announce_ready()?;
        datagrams(&socket)
    }
    let listener = net::listen_sctp(listen.bind, listen.port)?;
    net::serve_connections(&listener, |mut stream, peer| {
        let mut buffer = vec![0_u8; 65536];
        loop {
            let echoed = stream.read(&mut buffer).and_then(|count| {
                stream.write_all(&buffer[..count])?;
                Ok(count)
            });
            match echoed {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => return eprintln!("egress-probe: {peer}: {error}"),
            }
        }
    })
}

/// Echoes one connection.
pub(crate) fn connection(stream: &TcpStream, peer: SocketAddr) {
    if let Err(error) = echo(stream) {
        eprintln!("egress-probe: {peer}: {error}");
    }
}

fn echo(stream: &TcpStream) -> io::Result<u64> {
    stream.set_nodelay(true)?;
    let (mut from, mut to) = (stream, stream);
    io::copy(&mut from, &mut to)
}
