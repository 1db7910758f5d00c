//! `resolve`: A and AAAA by UDP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, TYPE};

use super::{Budget, During as _, Failure, socket};

/// All addresses of a name, IPv4 first. No addresses and no error means that the name has none.
pub(crate) fn resolve(name: &str, server: SocketAddr, budget: Budget) -> Result<Vec<IpAddr>, Failure> {
    let mut addresses = query(name, TYPE::A, server, budget)?;
    addresses.extend(query(name, TYPE::AAAA, server, budget)?);
    Ok(addresses)
}

fn query(name: &str, kind: TYPE, server: SocketAddr, budget: Budget) -> Result<Vec<IpAddr>, Failure> {
    let dns_error = |error: simple_dns::SimpleDnsError| Failure::other(format!("DNS: {error}"));
    let socket = socket::connected_udp(server, 0)?;
    // The local port is as good an identifier as any: the socket takes nothing from anybody but the server.
    let id = socket.local_addr().during("local address")?.port();
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let question =
        Question::new(Name::new(name).map_err(dns_error)?, QTYPE::TYPE(kind), CLASS::IN.into(), false);
    packet.questions.push(question);
    let bytes = packet.build_bytes_vec().map_err(dns_error)?;
    let mut buffer = [0_u8; 4096];
    loop {
        socket.send(&bytes).during("send query")?;
        // Asked again every second, as resolvers do: a single lost datagram is no verdict.
        let wait = budget.left("wait for the DNS answer")?.min(Duration::from_secs(1));
        socket.set_read_timeout(Some(wait)).during("set time limit")?;
        let count = match socket.recv(&mut buffer) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => continue,
            Err(error) => return Err(error).during("wait for the DNS answer"),
        };
        let reply = Packet::parse(&buffer[..count]).map_err(dns_error)?;
        if reply.id() != id || !reply.has_flags(PacketFlag::RESPONSE) {
            continue;
        }
        if reply.rcode() != RCODE::NoError {
            return Err(Failure::other(format!("DNS: {name}: {:?}", reply.rcode())));
        }
        return Ok(reply
            .answers
            .iter()
            .filter_map(|answer| match &answer.rdata {
                RData::A(record) => Some(IpAddr::V4(record.clone().into())),
                RData::AAAA(record) => Some(IpAddr::V6(record.clone().into())),
                _ => None,
            })
            .collect());
    }
}
