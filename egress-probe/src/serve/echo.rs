//! `serve-udp` and `serve-echo`: give back what comes.

use std::io;
use std::thread;
use std::time::Duration;

use crate::cli::Listen;
use crate::net;

/// Echoes datagrams until killed.
pub(crate) fn run_udp(listen: &Listen) -> anyhow::Result<()> {
    let socket = net::listen_udp(listen.bind, listen.port)?;
    net::announce_ready()?;
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

/// Echoes TCP bytes until killed.
pub(crate) fn run_tcp(listen: &Listen) -> anyhow::Result<()> {
    let listener = net::listen_tcp(listen.bind, listen.port)?;
    net::serve_connections(&listener, |stream, peer| {
        let echoed = stream.set_nodelay(true).and_then(|()| io::copy(&mut &stream, &mut &stream));
        if let Err(error) = echoed {
            eprintln!("egress-probe: {peer}: {error}");
        }
    })
}
