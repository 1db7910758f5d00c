//! The servers. Each runs until it is killed and prints a line once it takes traffic.

mod address;
pub(crate) mod answer;
pub(crate) mod capture;
pub(crate) mod dns;
pub(crate) mod echo;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod outside;
pub(crate) mod proxy;

use std::thread;

use anyhow::bail;

use crate::cli::ServeOptions;
use crate::{net, user};

/// Where servers listen that are for everybody.
const ANY: std::net::IpAddr = std::net::IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

/// Several servers at once, until told to end.
pub(crate) fn several(options: &ServeOptions) -> anyhow::Result<()> {
    let signals = user::hold_signals()?;
    if options.http.is_none() && options.udp.is_none() && options.echo.is_none() {
        bail!("no server is asked for: --http, --udp or --echo");
    }
    if let Some(port) = options.http {
        let listener = net::listen_tcp(ANY, port)?;
        let handler = http::handler(&options.name);
        thread::spawn(move || net::accept(&listener, &handler));
    }
    if let Some(port) = options.udp {
        let socket = net::listen_udp(ANY, port)?;
        thread::spawn(move || echo::datagrams(&socket));
    }
    if let Some(port) = options.echo {
        let listener = net::listen_tcp(ANY, port)?;
        thread::spawn(move || net::accept(&listener, &|stream, peer| echo::connection(&stream, peer)));
    }
    net::announce_ready()?;
    signals.wait()?;
    Ok(())
}
