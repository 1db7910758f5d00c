//! `serve-load`: takes what `load` sends. Requests are answered one connection after the other, without a thread for each,
//! so that what is measured is the network's work.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;

use super::{ANSWER, CHUNK, HOW_MANY, PATIENCE, pin};
use crate::cli::ServeLoadOptions;
use crate::net;

/// Serves until killed.
pub(crate) fn run(options: &ServeLoadOptions) -> anyhow::Result<()> {
    pin(options.cpu)?;
    let listen = &options.listen;
    let requests = net::listen_tcp(listen.bind, listen.port)?;
    let streams = net::listen_tcp(listen.bind, listen.port.saturating_add(1))?;
    let packets = net::listen_udp(listen.bind, listen.port)?;
    thread::Builder::new().name("streams".to_owned()).spawn(move || one_by_one(&streams, swallow))?;
    thread::Builder::new().name("packets".to_owned()).spawn(move || count(&packets))?;
    net::announce_ready()?;
    one_by_one(&requests, answer);
    Ok(())
}

fn one_by_one(listener: &TcpListener, serve: impl Fn(TcpStream) -> io::Result<()>) {
    loop {
        let served = listener.accept().and_then(|(stream, _)| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            serve(stream)
        });
        if let Err(error) = served {
            // Concerns one client only.
            eprintln!("egress-probe: {error}");
        }
    }
}

/// Reads to the end, then tells how many bytes it was.
fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&bytes.to_be_bytes()),
            count => bytes += count as u64,
        }
    }
}

/// Answers requests; closes first where asked to, so that the client may use its ports again at once.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        // A request is one segment.
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(ANSWER)?;
        if buffer.get(..count).is_some_and(|request| request.windows(5).any(|window| window == b"close")) {
            return Ok(());
        }
    }
}

/// Counts datagrams until asked how many it were. One client at a time.
fn count(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    let mut packets = 0_u64;
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((count, peer)) if buffer.get(..count) == Some(HOW_MANY) => {
                // What is lost is asked for again.
                let _ = socket.send_to(&packets.to_be_bytes(), peer);
                packets = 0;
            }
            Ok(_) => packets += 1,
            Err(error) => eprintln!("egress-probe: {error}"),
        }
    }
}
