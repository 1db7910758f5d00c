//! `serve-http`: says who answers, and whom.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use egress_probe::HttpReply;

use crate::cli::Listen;
use crate::net;

/// Serves until killed.
pub(crate) fn run(listen: &Listen, name: &str) -> anyhow::Result<()> {
    let listener = net::listen_tcp(listen.bind, listen.port)?;
    net::serve_connections(&listener, handler(name))
}

/// What answers one connection.
pub(crate) fn handler(name: &str) -> impl Fn(TcpStream, SocketAddr) + Clone + Send + 'static {
    let name = name.to_owned();
    move |stream, peer| {
        if let Err(error) = answer(&stream, peer, &name) {
            eprintln!("egress-probe: {peer}: {error}");
        }
    }
}

fn answer(stream: &TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    let limit = Duration::from_secs(5);
    let head = net::read_head(stream, |stream| stream.set_read_timeout(Some(limit)))?;
    let reply =
        HttpReply { server: name.to_owned(), peer: peer.to_string(), path: head.second_word().to_owned() };
    net::answer(stream, "200 OK", "application/json", &serde_json::to_string(&reply)?)
}
