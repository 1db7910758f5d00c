//! `answer`: one answer by UDP to whoever asked, or seems to have.

use std::time::Instant;

use crate::attempt::{During as _, Success, finish};
use crate::cli::Listen;
use crate::net;

/// Waits for one datagram, sends `payload` to where it says it is from, and prints how that went.
pub(crate) fn run(listen: &Listen, payload: &str) -> anyhow::Result<()> {
    let socket = net::listen_udp(listen.bind, listen.port)?;
    net::announce_ready()?;
    let mut buffer = [0_u8; 2048];
    let (_, peer) = socket.recv_from(&mut buffer)?;
    let start = Instant::now();
    let sent = socket.send_to(payload.as_bytes(), peer).during("send");
    let answered =
        sent.map(|_| Success { detail: format!("answered {}", net::canonical(peer)), ..Success::default() });
    net::print_line(&finish(start, answered))
}
