//! The parser: never panics, reads what a plainer parser reads, and takes no packet because of what it lacks.

use egress_common::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, read};
use egress_common::{Action, Addr, Flow, Hook, Reason};

use crate::support::{ETH0, Maps, Sender, VETH, meta};

/// Longer inputs show nothing new: no header is longer.
const LONGEST: usize = 400;

/// Checks one packet, taken as each of the frame types.
pub fn check(data: &[u8]) {
    let bytes = &data[..data.len().min(LONGEST)];
    for ethertype in [ETHERTYPE_IPV4, ETHERTYPE_IPV6, 0x0806, 0] {
        let (flow, refused) = parse(bytes, ethertype);
        let plain = plainly(bytes, ethertype);
        assert_eq!(refused.is_none(), plain.is_some(), "{refused:?} {plain:?}");
        if let Some(plain) = plain {
            assert_eq!(flow, plain);
        }
        assert!(refused.is_none_or(|reason| reason.action() == Action::Deny));
        assert!(matches!(flow.version, 0 | 4 | 6));
        assert!(
            refused == Some(Reason::Truncated)
                || flow.version != 0
                || refused == Some(Reason::UnknownIpVersion)
        );
        for len in 0..bytes.len() {
            let (short, why) = parse(&bytes[..len], ethertype);
            match why {
                None => assert_eq!((short, refused), (flow, None), "{len} bytes are enough"),
                Some(Reason::Truncated) => {}
                other => assert_eq!(other, refused, "{len} bytes say something else"),
            }
        }
    }
    truncated(bytes);
}

fn parse(bytes: &[u8], ethertype: u16) -> (Flow, Option<Reason>) {
    let mut flow = Flow::default();
    let refused = read(bytes, ethertype, &mut flow);
    (flow, refused)
}

/// A packet that is denied is denied when its end is missing, but for what was too long to find a neighbour.
fn truncated(bytes: &[u8]) {
    let maps = Maps::new();
    let judge = |bytes: &[u8], hook, ifindex| {
        let mut meta = meta(bytes, hook, ifindex);
        meta.ethertype = if meta.ethertype == ETHERTYPE_IPV6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        egress_common::decide(&maps, &Sender::NESTED, bytes, meta).verdict
    };
    for (hook, ifindex) in [(Hook::Socket, ETH0), (Hook::Veth, VETH)] {
        let whole = judge(bytes, hook, ifindex);
        let passes = matches!(whole.reason, Reason::Allowed | Reason::Neighbour);
        assert_eq!(whole.action == Action::Allow, passes, "{whole:?}");
        if whole.action == Action::Deny {
            for len in 0..bytes.len() {
                let short = judge(&bytes[..len], hook, ifindex);
                assert!(
                    short.action == Action::Deny || short.reason == Reason::Neighbour,
                    "{len} bytes of it"
                );
            }
        }
    }
}

/// The flow of a packet that can be read to its end, read without regard for what the kernel's verifier wants.
pub fn plainly(bytes: &[u8], ethertype: u16) -> Option<Flow> {
    let at = |index: usize| bytes.get(index).copied();
    let word = |index: usize| Some(u16::from_be_bytes(bytes.get(index..index + 2)?.try_into().ok()?));
    let mut flow = Flow { version: at(0)? >> 4, ..Flow::default() };
    let start = match (ethertype, flow.version) {
        (0x0800, 4) => {
            let place = word(6)?;
            if at(0)? != 0x45 || place & 0x1fff != 0 {
                return None;
            }
            flow.protocol = at(9)?;
            flow.fragment = word(4)?.into();
            flow.parted = place & 0x2000 != 0;
            flow.source = Addr::v4(bytes.get(12..16)?.try_into().ok()?);
            flow.destination = Addr::v4(bytes.get(16..20)?.try_into().ok()?);
            20
        }
        (0x86dd, 6) => {
            flow.source = Addr(bytes.get(8..24)?.try_into().ok()?);
            flow.destination = Addr(bytes.get(24..40)?.try_into().ok()?);
            let mut headers = vec![];
            let mut next = at(6)?;
            let mut place = 40;
            while [0, 44, 60].contains(&next) {
                if headers.len() == 4 || (next == 0 && !headers.is_empty()) {
                    return None;
                }
                headers.push(next);
                let header: [u8; 8] = bytes.get(place..place + 8)?.try_into().ok()?;
                if next == 44 {
                    if u16::from_be_bytes([header[2], header[3]]) >= 8 {
                        return None;
                    }
                    flow.fragment = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    flow.parted = header[3] & 1 == 1;
                    place += 8;
                    // Behind it the transport's header alone, as far as ports and flags are, within what the packet says is its end.
                    let end = 40 + usize::from(word(4)?);
                    let least = if header[0] == 6 { 20 } else { 8 };
                    if [0, 44, 60].contains(&header[0]) || place + least > end {
                        return None;
                    }
                } else {
                    place += 8 + 8 * usize::from(header[1]);
                }
                next = header[0];
            }
            flow.protocol = next;
            place
        }
        _ => return None,
    };
    let least = match (flow.protocol, flow.version) {
        (6, _) => 20,
        (132, _) => 12,
        (17, _) | (1, 4) | (58, 6) => 8,
        _ => return None,
    };
    bytes.get(start..start + least)?;
    if matches!(flow.protocol, 1 | 58) {
        (flow.kind, flow.echo) = (at(start)?, word(start + 4)?);
    } else {
        (flow.source_port, flow.destination_port) = (word(start)?, word(start + 2)?);
    }
    if flow.protocol == 6 {
        flow.kind = at(start + 13)?;
        flow.payload = u16::try_from(start + 4 * usize::from(at(start + 12)? >> 4)).ok()?;
    }
    Some(flow)
}
