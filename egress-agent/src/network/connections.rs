//! The TCP connections that a pod has when it is enforced for the first time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egress_common::packet::protocol;

use super::conntrack::{Translated, translated_where};
use super::netlink::inside;

/// State of a listening socket in `/proc/net/tcp` (`include/net/tcp_states.h`).
const LISTEN: &str = "0A";
/// States of connections that have something to say: established, the four of closing before the last acknowledgement.
const OPEN: [&str; 6] = ["01", "04", "05", "08", "09", "0B"];

/// A TCP connection, seen from the pod. Its own end is as packets have it: a mesh's netfilter in the pod leads connections from the ports
/// that others know to the one at which the sidecar listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// The connections that came in to the network namespace of process `pid`: those to a port at which a socket listens.
///
/// # Errors
/// The process is gone.
pub fn inbound(pid: u32) -> io::Result<Vec<Connection>> {
    let mut tables = fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    // Missing where the kernel has no IPv6.
    tables.push_str(&fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap_or_default());
    let mut found = classify(&tables);
    if found.is_empty() {
        return Ok(found);
    }
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    // Without connection tracking nothing is led anywhere.
    let tcp = |one: &Translated| one.protocol == protocol::TCP;
    let led = inside(&namespace, || translated_where(tcp)).unwrap_or_default();
    let known = |one: &Translated| ((SocketAddr::new(one.from, one.from_port), one.backend), one.to);
    let led: BTreeMap<_, _> = led.iter().map(known).collect();
    for one in &mut found {
        if let Some(to) = led.get(&(one.remote, one.local)) {
            one.local = *to;
        }
    }
    Ok(found)
}

/// Source of the format: `Documentation/networking/proc_net_tcp.rst`.
fn classify(tables: &str) -> Vec<Connection> {
    let rows: Vec<_> = tables.lines().filter_map(row).collect();
    let listens = |at: &SocketAddr| {
        rows.iter().any(|(state, local, _)| {
            *state == LISTEN
                && local.port() == at.port()
                && (local.ip() == at.ip() || local.ip().is_unspecified())
        })
    };
    let open = rows.iter().filter(|(state, local, _)| OPEN.contains(state) && listens(local));
    open.map(|(_, local, remote)| Connection { local: *local, remote: *remote }).collect()
}

/// State, local and remote address of a line.
fn row(line: &str) -> Option<(&str, SocketAddr, SocketAddr)> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    Some((state, address(local)?, address(remote)?))
}

/// `0100007F:1F90`: words of 32 bits in host byte order, the port in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(Ipv4Addr::from(v4)),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::{Connection, classify};

    #[test]
    #[cfg(target_endian = "little")]
    fn a_connection_came_in_where_somebody_listens() {
        let tables = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0501F40A:1F90 0A6433C6:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0501F40A:D432 0A6433C6:01BB 01 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0501F40A:1F90 0A6433C6:D433 06 00000000:00000000 00:00000000 00000000     0        0 0 1
   4: 0000000000000000FFFF00000501F40A:1F90 0000000000000000FFFF00000A6433C6:D434 08 0:0 0:0 0 0 0 4 1
";
        let to = |port: u16| Connection {
            local: "10.244.1.5:8080".parse().unwrap(),
            remote: format!("198.51.100.10:{port}").parse().unwrap(),
        };
        assert_eq!(
            classify(tables),
            [to(0xd431), to(0xd434)],
            "not the one that went out, nor the one in TIME_WAIT"
        );
    }
}
