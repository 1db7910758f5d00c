//! `get`: one HTTP/1.1 request without TLS.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use super::{Budget, During as _, Failure, Success, dns, socket};
use crate::net;

/// The longest body that is kept.
const BODY_LIMIT: usize = 64 * 1024;

/// The parts of a URL.
#[derive(Debug, PartialEq, Eq)]
struct Url<'a> {
    /// What goes into the `Host` field.
    authority: &'a str,
    /// A name or an address without brackets.
    host: &'a str,
    port: u16,
    path: &'a str,
}

fn parse(url: &str) -> Result<Url<'_>, Failure> {
    let bad = |why: &str| Failure::other(format!("{url:?}: {why}"));
    let rest = url.strip_prefix("http://").ok_or_else(|| bad("must begin with http://"))?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']').ok_or_else(|| bad("no closing bracket"))?;
        (host, after.strip_prefix(':'))
    } else {
        authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)))
    };
    let port = port.map_or(Ok(80), |port| port.parse().map_err(|_| bad("bad port")))?;
    if host.is_empty() {
        return Err(bad("no host"));
    }
    Ok(Url { authority, host, port, path })
}

/// How to get there.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// Resolves names.
    pub(crate) dns: Option<SocketAddr>,
    /// A forward proxy.
    pub(crate) via: Option<SocketAddr>,
    /// The local address.
    pub(crate) from: Option<IpAddr>,
}

/// Connects to the target, or to the proxy, which is asked for a tunnel then. The status is that of a proxy that refused.
fn connect(target: SocketAddr, way: &Way, budget: Budget) -> Result<Result<TcpStream, Success>, Failure> {
    let first = way.via.unwrap_or(target);
    let stream = match way.from {
        Some(from) => socket::connect_from(from, first, budget.left("connect")?),
        None => TcpStream::connect_timeout(&first, budget.left("connect")?),
    };
    let mut stream = stream.during("connect")?;
    stream.set_write_timeout(Some(budget.left("write request")?)).during("set time limit")?;
    if way.via.is_some() {
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(request.as_bytes()).during("ask the proxy")?;
        let head = net::read_head(&stream, |stream| stream.set_read_timeout(Some(budget.left_io()?)))
            .during("read the proxy's answer")?;
        let status = status(&head)?;
        if status != 200 {
            let detail = format!("{} from the proxy {first}", head.first_line);
            return Ok(Err(Success { detail, status: Some(status), body: None }));
        }
    }
    Ok(Ok(stream))
}

fn status(head: &net::Head) -> Result<u16, Failure> {
    let bad = |_| Failure::other(format!("no HTTP answer: {:?}", head.first_line));
    head.second_word().parse().map_err(bad)
}

/// Resolves, connects, asks, and reads the answer, all within the budget.
pub(crate) fn get(url: &str, way: &Way, budget: Budget) -> Result<Success, Failure> {
    let url = parse(url)?;
    let address: IpAddr = match (url.host.parse(), way.dns) {
        (Ok(address), _) => address,
        (Err(_), Some(server)) => *dns::resolve(url.host, server, budget)?
            .first()
            .ok_or_else(|| Failure::other(format!("{} has no addresses", url.host)))?,
        (Err(_), None) => {
            return Err(Failure::other(format!("{} is a name, and no --dns is given", url.host)));
        }
    };
    let target = SocketAddr::new(address, url.port);
    let stream = match connect(target, way, budget)? {
        Ok(stream) => stream,
        Err(refused) => return Ok(refused),
    };
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: egress-probe\r\nConnection: close\r\n\r\n",
        url.path, url.authority
    );
    (&stream).write_all(request.as_bytes()).during("write request")?;
    let head = net::read_head(&stream, |stream| stream.set_read_timeout(Some(budget.left_io()?)))
        .during("read answer")?;
    let status = status(&head)?;
    let length: Option<usize> = head.field("content-length").and_then(|value| value.parse().ok());
    let mut body = head.rest;
    let mut buffer = [0_u8; 4096];
    while body.len() < length.unwrap_or(BODY_LIMIT).min(BODY_LIMIT) {
        stream.set_read_timeout(Some(budget.left("read body")?)).during("set time limit")?;
        match (&stream).read(&mut buffer).during("read body")? {
            0 => break,
            count => body.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(Success {
        detail: format!("{} from {target}", head.first_line),
        status: Some(status),
        body: Some(String::from_utf8_lossy(&body).into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = parse("http://shop.example:8080/a/b?c").unwrap();
        assert_eq!((url.host, url.port, url.path), ("shop.example", 8080, "/a/b?c"));
        let url = parse("http://[fd00::1]:81").unwrap();
        assert_eq!((url.authority, url.host, url.port, url.path), ("[fd00::1]:81", "fd00::1", 81, "/"));
        assert_eq!(parse("http://10.0.0.1/").unwrap().port, 80);
        for bad in ["https://a/", "http://", "http://[::1", "http://a:b/", "http:///x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
