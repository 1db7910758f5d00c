//! `gateway`: an HTTP CONNECT forward proxy.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::attempt::{Budget, dns};
use crate::cli::GatewayOptions;
use crate::net;

/// Serves until killed.
pub(crate) fn run(options: GatewayOptions) -> anyhow::Result<()> {
    let listener = net::listen_tcp(options.bind, options.port)?;
    let options = std::sync::Arc::new(options);
    net::serve_connections(&listener, move |stream, peer| {
        if let Err(error) = forward(&stream, &options) {
            eprintln!("egress-probe: gateway: {peer}: {error}");
        }
    })
}

fn forward(mut client: &TcpStream, options: &GatewayOptions) -> io::Result<()> {
    let limit = Duration::from_secs(5);
    let head = net::read_head(client, |stream| stream.set_read_timeout(Some(limit)))?;
    if !head.first_line.starts_with("CONNECT ") {
        return net::answer(client, "405 Method Not Allowed", "text/plain", "only CONNECT is served here");
    }
    match connect(head.second_word(), options) {
        Ok(upstream) => {
            client.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n")?;
            (&upstream).write_all(&head.rest)?;
            net::tunnel(client, &upstream)
        }
        Err(reason) => net::answer(client, "502 Bad Gateway", "text/plain", &reason),
    }
}

fn connect(target: &str, options: &GatewayOptions) -> Result<TcpStream, String> {
    let limit = Duration::from_millis(options.connect_timeout_ms);
    let addresses = match (target.parse::<SocketAddr>(), target.rsplit_once(':'), options.dns) {
        (Ok(address), _, _) => vec![address],
        (Err(_), Some((name, port)), Some(server)) => {
            let port: u16 = port.parse().map_err(|_| format!("{target}: bad port"))?;
            let found = dns::resolve(name, server, Budget::new(options.connect_timeout_ms));
            found
                .map_err(|failure| failure.detail)?
                .into_iter()
                .map(|address| SocketAddr::new(address, port))
                .collect()
        }
        _ => return Err(format!("{target}: not an address, and no DNS server is set")),
    };
    let mut reason = format!("{target}: no addresses");
    for address in addresses {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => return Ok(stream),
            Err(error) => reason = format!("{address}: {error}"),
        }
    }
    Err(reason)
}
