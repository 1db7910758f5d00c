//! The parser: every header it refuses, each with its own reason, beside the nearest packet it takes.

mod support;

use egress_common::Reason;
use support::{Maps, PEER_V4, PEER_V6, V4, V6, ipv4, ipv6, tcp4, tcp6};

fn reason(packet: &[u8]) -> Reason {
    Maps::new().judge(packet).verdict.reason
}

/// TCP to port 443 behind extension headers, given as (number, bytes after the next-header field).
fn behind(headers: &[(u8, &[u8])]) -> Vec<u8> {
    let tcp = &tcp6(V6, PEER_V6, 443)[40..];
    let mut payload = Vec::new();
    for (index, (_, body)) in headers.iter().enumerate() {
        payload.push(headers.get(index + 1).map_or(6, |(number, _)| *number));
        payload.extend(*body);
    }
    payload.extend(tcp);
    ipv6(headers.first().map_or(6, |(number, _)| *number), V6, PEER_V6, &payload)
}

const OPTIONS: &[u8] = &[0, 1, 4, 0, 0, 0, 0];

#[test]
fn ipv4_options_are_refused() {
    let mut packet = tcp4(V4, PEER_V4, 443);
    assert_eq!(reason(&packet), Reason::Allowed);
    packet[0] = 0x46;
    packet.splice(20..20, [1, 1, 1, 0]);
    assert_eq!(reason(&packet), Reason::Ipv4Options);
    packet[0] = 0x44;
    assert_eq!(reason(&packet), Reason::Truncated);
}

#[test]
fn later_fragments_are_refused_and_first_ones_judged() {
    let mut packet = tcp4(V4, PEER_V4, 443);
    packet[6] = 0x20;
    assert_eq!(reason(&packet), Reason::Allowed, "first fragment");
    packet[7] = 1;
    assert_eq!(reason(&packet), Reason::Fragment);
    packet[6] = 0;
    assert_eq!(reason(&packet), Reason::Fragment, "last fragment");
    assert_eq!(reason(&behind(&[(44, &[0, 0, 1, 0, 0, 0, 0])])), Reason::Allowed, "first fragment");
    assert_eq!(reason(&behind(&[(44, &[0, 0, 8, 0, 0, 0, 0])])), Reason::Fragment);
}

#[test]
fn a_transport_header_in_pieces_is_refused() {
    let packet = tcp4(V4, PEER_V4, 443);
    assert_eq!(reason(&packet[..39]), Reason::Truncated);
    let packet = tcp6(V6, PEER_V6, 443);
    assert_eq!(reason(&packet[..59]), Reason::Truncated);
    assert_eq!(reason(&[]), Reason::Truncated);
    assert_eq!(reason(&tcp4(V4, PEER_V4, 443)[..19]), Reason::Truncated);
    assert_eq!(reason(&tcp6(V6, PEER_V6, 443)[..39]), Reason::Truncated);
}

/// Who puts fragments together leaves out what is behind the stated end, and may find another header there.
#[test]
fn what_is_behind_the_stated_end_is_no_header() {
    let fragment = (44, &[0, 0, 1, 0, 0, 0, 0][..]);
    let stated = |mut packet: Vec<u8>, length: u16| {
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        reason(&packet)
    };
    for (headers, whole) in [(&[fragment][..], 28), (&[(60, OPTIONS), fragment], 36)] {
        assert_eq!(stated(behind(headers), whole), Reason::Allowed);
        for length in 0..whole {
            assert_eq!(stated(behind(headers), length), Reason::Truncated, "{length}");
        }
    }
    // What is whole is so for everybody, and the kernel's own may be too long for the field.
    assert_eq!(stated(tcp6(V6, PEER_V6, 443), 0), Reason::Allowed);
    // Nor are there options behind a fragment header: their rest may be in another fragment.
    for number in [60, 0, 44] {
        assert_eq!(reason(&behind(&[fragment, (number, OPTIONS)])), Reason::Ipv6Extension, "{number}");
    }
    for number in [43, 51, 135, 253] {
        assert_ne!(reason(&behind(&[fragment, (number, OPTIONS)])), Reason::Allowed, "{number}");
    }
}

#[test]
fn ipv6_options_are_stepped_over_and_the_rest_refused() {
    assert_eq!(reason(&behind(&[(0, OPTIONS)])), Reason::Allowed);
    assert_eq!(reason(&behind(&[(0, OPTIONS), (60, OPTIONS)])), Reason::Allowed);
    assert_eq!(
        reason(&behind(&[(60, OPTIONS), (0, OPTIONS)])),
        Reason::Ipv6Extension,
        "hop-by-hop not first"
    );
    for number in [43, 51, 59, 135, 139, 140, 253, 254] {
        let packet = behind(&[(number, OPTIONS)]);

        assert_eq!(reason(&packet), Reason::Ipv6Extension, "{number}");
    }
    assert_eq!(reason(&behind(&[(60, OPTIONS); 4])), Reason::Allowed);
    assert_eq!(reason(&behind(&[(60, OPTIONS); 5])), Reason::Ipv6Extension, "too many");
}

#[test]
fn tunnels_and_unknown_protocols_have_their_own_reasons() {
    for number in [4, 41, 47, 50, 51, 94, 97, 98, 108, 115, 137] {
        assert_eq!(reason(&ipv4(number, V4, PEER_V4, &[0; 40])), Reason::Tunnel, "{number}");
    }
    for number in [4, 41, 47, 50, 97, 115, 137] {
        assert_eq!(reason(&ipv6(number, V6, PEER_V6, &[0; 40])), Reason::Tunnel, "{number}");
    }
    for number in [2, 33, 46, 103, 112, 136, 255] {
        assert_eq!(reason(&ipv4(number, V4, PEER_V4, &[0; 40])), Reason::UnknownProtocol, "{number}");
    }
    // Each ICMP belongs to its own IP version.
    assert_eq!(reason(&ipv4(58, V4, PEER_V4, &[0; 40])), Reason::UnknownProtocol);
    assert_eq!(reason(&ipv6(1, V6, PEER_V6, &[0; 40])), Reason::UnknownProtocol);
    assert_eq!(reason(&ipv4(1, V4, PEER_V4, &[0; 40])), Reason::NotAllowed);
    assert_eq!(reason(&ipv6(58, V6, PEER_V6, &[0; 40])), Reason::NotAllowed);
}

#[test]
fn ports_of_every_protocol_with_ports_are_read() {
    for number in [6, 17, 132] {
        let mut payload = vec![0; 20];
        payload[..4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
        for packet in [ipv4(number, V4, PEER_V4, &payload), ipv6(number, V6, PEER_V6, &payload)] {
            let flow = Maps::new().judge(&packet).flow;
            assert_eq!((flow.source_port, flow.destination_port, flow.protocol), (0x1234, 0x5678, number));
        }
    }
}

#[test]
fn neither_version_is_refused() {
    for version in [0, 5, 7, 15] {
        let mut packet = tcp4(V4, PEER_V4, 443);
        packet[0] = version << 4 | 5;
        assert_eq!(reason(&packet), Reason::UnknownIpVersion);
    }
}
