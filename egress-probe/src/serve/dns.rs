//! `serve-dns`: A and AAAA records from the command line.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use crate::cli::Listen;
use crate::net;

const TIME_TO_LIVE: u32 = 5;

/// A name and its addresses, written `NAME=ADDR[,ADDR]...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    name: String,
    addresses: Vec<IpAddr>,
}

impl FromStr for Record {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, addresses) = text.split_once('=').ok_or("must be NAME=ADDR[,ADDR]...")?;
        let addresses: Result<Vec<IpAddr>, _> = addresses.split(',').map(str::parse).collect();
        let addresses = addresses.map_err(|error| format!("{text:?}: {error}"))?;
        Ok(Self { name: normal(name), addresses })
    }
}

/// Names are compared without case and without the dot at the end.
fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Answers until killed.
pub(crate) fn run(listen: &Listen, records: &[Record]) -> anyhow::Result<()> {
    let mut table: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for record in records {
        table.entry(record.name.clone()).or_default().extend(&record.addresses);
    }
    let socket = net::listen_udp(listen.bind, listen.port)?;
    net::announce_ready()?;
    let mut buffer = vec![0_u8; 4096];
    loop {
        let served =
            socket.recv_from(&mut buffer).and_then(|(count, peer)| match reply(&buffer[..count], &table) {
                Ok(Some(bytes)) => socket.send_to(&bytes, peer),
                Ok(None) => Ok(0),
                Err(error) => Err(std::io::Error::other(error.to_string())),
            });
        if let Err(error) = served {
            eprintln!("egress-probe: dns: {error}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The answer to a query; none for what is no query.
fn reply(bytes: &[u8], table: &BTreeMap<String, Vec<IpAddr>>) -> simple_dns::Result<Option<Vec<u8>>> {
    let query = Packet::parse(bytes)?;
    if query.has_flags(PacketFlag::RESPONSE) {
        return Ok(None);
    }
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    for question in &query.questions {
        match table.get(&normal(&question.qname.to_string())) {
            None => *reply.rcode_mut() = RCODE::NameError,
            Some(addresses) => {
                for address in addresses {
                    let data = match (address, question.qtype) {
                        (IpAddr::V4(v4), QTYPE::TYPE(TYPE::A) | QTYPE::ANY) => RData::A((*v4).into()),
                        (IpAddr::V6(v6), QTYPE::TYPE(TYPE::AAAA) | QTYPE::ANY) => RData::AAAA((*v6).into()),
                        _ => continue,
                    };
                    let record = ResourceRecord::new(question.qname.clone(), CLASS::IN, TIME_TO_LIVE, data);
                    reply.answers.push(record);
                }
            }
        }
    }
    reply.questions = query.questions;
    reply.build_bytes_vec_compressed().map(Some)
}

#[cfg(test)]
mod tests {
    use simple_dns::{Name, Question};

    use super::*;

    fn ask(name: &str, kind: TYPE) -> (RCODE, usize) {
        let record: Record = "Shop.Example.=10.0.0.1,10.0.0.2,fd00::1".parse().unwrap();
        let table = BTreeMap::from([(record.name, record.addresses)]);
        let mut query = Packet::new_query(7);
        query.questions.push(Question::new(Name::new(name).unwrap(), kind.into(), CLASS::IN.into(), false));
        let bytes = reply(&query.build_bytes_vec().unwrap(), &table).unwrap().unwrap();
        let reply = Packet::parse(&bytes).unwrap();
        assert_eq!(reply.id(), 7);
        (reply.rcode(), reply.answers.len())
    }

    #[test]
    fn answers_by_family_and_denies_the_rest() {
        assert_eq!(ask("shop.example", TYPE::A), (RCODE::NoError, 2));
        assert_eq!(ask("SHOP.example", TYPE::AAAA), (RCODE::NoError, 1));
        assert_eq!(ask("shop.example", TYPE::MX), (RCODE::NoError, 0));
        assert_eq!(ask("other.example", TYPE::A), (RCODE::NameError, 0));
    }

    #[test]
    fn records_need_addresses() {
        assert!("name".parse::<Record>().is_err());
        assert!("name=".parse::<Record>().is_err());
        assert!("name=1.2.3".parse::<Record>().is_err());
    }
}
