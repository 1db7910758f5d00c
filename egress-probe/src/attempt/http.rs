//! `get`: one HTTP/1.1 request without TLS.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use super::{Budget, During as _, Failure, Success, dns};
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

/// Resolves, connects, asks, and reads the answer, all within the budget.
pub(crate) fn get(url: &str, dns: Option<SocketAddr>, budget: Budget) -> Result<Success, Failure> {
    let url = parse(url)?;
    let address: IpAddr = match (url.host.parse(), dns) {
        (Ok(address), _) => address,
        (Err(_), Some(server)) => *dns::resolve(url.host, server, budget)?
            .first()
            .ok_or_else(|| Failure::other(format!("{} has no addresses", url.host)))?,
        (Err(_), None) => {
            return Err(Failure::other(format!("{} is a name, and no --dns is given", url.host)));
        }
    };
    let target = SocketAddr::new(address, url.port);
    let stream = TcpStream::connect_timeout(&target, budget.left("connect")?).during("connect")?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: egress-probe\r\nConnection: close\r\n\r\n",
        url.path, url.authority
    );
    stream.set_write_timeout(Some(budget.left("write request")?)).during("set time limit")?;
    (&stream).write_all(request.as_bytes()).during("write request")?;
    let head = net::read_head(&stream, |stream| stream.set_read_timeout(Some(budget.left_io()?)))
        .during("read answer")?;
    let status: u16 = head
        .second_word()
        .parse()
        .map_err(|_| Failure::other(format!("no HTTP answer: {:?}", head.first_line)))?;
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
