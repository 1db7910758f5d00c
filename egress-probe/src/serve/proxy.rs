//! `proxy`: the stand-in for the sidecar. It takes the TCP that nftables redirected to it.
//!
//! Invariant: it never connects to itself, so a connection made straight to its port is closed.

use std::io::{self, Write as _};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use crate::cli::ProxyOptions;
use crate::net;

/// How much longer than its own connection attempt the gateway may take to say that it failed.
const GATEWAY_GRACE: Duration = Duration::from_secs(3);

/// Serves until killed.
pub(crate) fn run(options: ProxyOptions) -> anyhow::Result<()> {
    let listener = net::listen_tcp(std::net::Ipv6Addr::UNSPECIFIED.into(), options.listen)?;
    let options = Arc::new(options);
    net::serve_connections(&listener, move |stream, peer| {
        if let Err(error) = forward(&stream, &options) {
            eprintln!("egress-probe: proxy: {peer}: {error}");
        }
    })
}

/// Where the client wanted to go before nftables redirected it.
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = net::canonical(stream.local_addr()?);
    if local.is_ipv4() {
        let raw = getsockopt(stream, sockopt::OriginalDst)?;
        let address = u32::from_be(raw.sin_addr.s_addr).into();
        Ok(SocketAddrV4::new(address, u16::from_be(raw.sin_port)).into())
    } else {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst)?;
        let address = raw.sin6_addr.s6_addr.into();
        Ok(SocketAddrV6::new(address, u16::from_be(raw.sin6_port), 0, 0).into())
    }
}

fn forward(client: &TcpStream, options: &ProxyOptions) -> io::Result<()> {
    let destination = original_destination(client)?;
    if destination == net::canonical(client.local_addr()?) {
        return Err(io::Error::other("not redirected: this would proxy to itself"));
    }
    let in_mesh = options.mesh.iter().any(|network| network.contains(&destination.ip()));
    let limit = Duration::from_millis(options.connect_timeout_ms);
    let upstream = if in_mesh {
        TcpStream::connect_timeout(&destination, limit).map(|stream| (stream, Vec::new()))
    } else {
        by_gateway(options.gateway, destination, limit)
    };
    match upstream {
        Ok((upstream, first_bytes)) => {
            (&mut &*client).write_all(&first_bytes)?;
            net::tunnel(client, &upstream)
        }
        Err(error) => {
            // Envoy answers once the request is there; a client that says nothing gets the answer all the same.
            let wait = Duration::from_secs(1);
            let _request_or_nothing = net::read_head(client, |stream| stream.set_read_timeout(Some(wait)));
            let body = format!(
                "upstream connect error or disconnect/reset before headers. reset reason: connection failure, \
                 {destination}: {error}"
            );
            net::answer(client, "503 Service Unavailable", "text/plain", &body)
        }
    }
}

/// Opens a tunnel through the gateway; the bytes are those that came right behind its answer.
fn by_gateway(
    gateway: SocketAddr,
    destination: SocketAddr,
    limit: Duration,
) -> io::Result<(TcpStream, Vec<u8>)> {
    let stream = TcpStream::connect_timeout(&gateway, limit)?;
    write!(&stream, "CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\n\r\n")?;
    let head = net::read_head(&stream, |stream| stream.set_read_timeout(Some(limit + GATEWAY_GRACE)))?;
    if head.second_word() == "200" {
        Ok((stream, head.rest))
    } else {
        Err(io::Error::other(format!("gateway {gateway}: {}", head.first_line)))
    }
}
