//! What finds addresses on a link passes the veth hook, and carries nothing else.

mod support;

use egress_common::packet::ETHERTYPE_ARP;
use egress_common::wire::{Addr, FLAG_AUDIT, OWNER_NODE, STATE_ISOLATED, STATE_UNSELECTED};
use egress_common::{Action, Decision, Hook, Meta, Reason, decide};
use support::packets::{ALL_NODES, ASKED, OUTSIDE_V6, arp_from, neighbour, said};
use support::{Maps, PEER_V4, PEER_V6, POD, Sender, V4, V6, VETH, meta, tcp4, tcp6};

fn frame(maps: &Maps, sender: Sender, packet: &[u8], change: impl Fn(Meta) -> Meta) -> Decision {
    decide(maps, &sender, packet, change(meta(packet, Hook::Veth, VETH)))
}

#[track_caller]
fn expect(decision: Decision, action: Action, reason: Reason) {
    assert_eq!((decision.verdict.action, decision.verdict.reason), (action, reason), "{decision:?}");
}

const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// A group that says anything.
const ANYTHING: [u8; 16] = [0xff, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];

/// Whoever answers for another's address could carry anything to anybody on the link.
#[test]
fn what_finds_addresses_says_nothing_else() {
    let maps = Maps::new();
    let by = |packet: &[u8]| maps.judge_veth(Sender::NOBODY, packet).verdict.reason;
    let mut other = V6;
    other[15] ^= 1;
    for (kind, hops) in [(133, 255), (135, 255), (136, 255), (131, 1), (132, 1), (143, 1)] {
        for own in [V6, LINK_LOCAL, [0; 16]] {
            assert_eq!(by(&said(kind, hops, own, ALL_NODES, &[ASKED])), Reason::Neighbour, "{kind}");
        }
        assert_eq!(by(&said(kind, hops, other, ALL_NODES, &[ASKED])), Reason::SpoofedSource, "{kind}");
        let mut long = neighbour(kind, hops, ALL_NODES);
        long.resize(81, 7);
        assert_eq!(by(&long), Reason::NotAllowed, "{kind}");
    }
    for kind in [133, 135, 136] {
        // With a link address and a nonce.
        let mut long = neighbour(kind, 255, ALL_NODES);
        long.resize(80, 7);
        assert_eq!(by(&long), Reason::Neighbour, "{kind}");
    }
    for kind in [135, 136] {
        let mut short = neighbour(kind, 255, ALL_NODES);
        short.truncate(63);
        assert_eq!(by(&short), Reason::NotAllowed, "{kind} without a target");
    }
    for kind in [131, 132, 143] {
        assert_eq!(by(&said(kind, 1, V6, ALL_NODES, &[ANYTHING])), Reason::NotAllowed, "{kind}");
        let mut bare = neighbour(kind, 1, ALL_NODES);
        (bare[6], bare[40]) = (60, 58);
        assert_eq!(by(&bare), Reason::NotAllowed, "without a router alert");
    }
    assert_eq!(by(&said(143, 1, V6, ALL_NODES, &[ASKED; 4])), Reason::Neighbour);
    assert_eq!(by(&said(143, 1, V6, ALL_NODES, &[ASKED; 5])), Reason::NotAllowed);
    for at in 0..4 {
        let mut groups = [ASKED; 4];
        groups[at] = ANYTHING;
        assert_eq!(by(&said(143, 1, V6, ALL_NODES, &groups)), Reason::NotAllowed, "{at}");
    }
    // Groups of the link with a short number, which a kernel reports in one report with the others.
    let mut group = [0; 16];
    (group[0], group[1], group[15]) = (0xff, 2, 0xfb);
    assert_eq!(by(&said(143, 1, V6, ALL_NODES, &[ASKED, group])), Reason::Neighbour);
    assert_eq!(by(&said(131, 1, V6, ALL_NODES, &[group])), Reason::Neighbour);
    for at in [1, 5, 13] {
        let mut longer = group;
        longer[at] ^= 4;
        assert_eq!(by(&said(143, 1, V6, ALL_NODES, &[ASKED, longer])), Reason::NotAllowed, "{at}");
    }
    let arp = |packet: &[u8]| {
        frame(&maps, Sender::NOBODY, packet, |meta| Meta { ethertype: ETHERTYPE_ARP, ..meta })
    };
    let padded = |len: usize| {
        let mut packet = arp_from(V4);
        packet.resize(len, 0);
        packet
    };
    for lawful in [arp_from(V4), arp_from([0; 4]), padded(46)] {
        expect(arp(&lawful), Action::Allow, Reason::Neighbour);
    }
    let mut others = vec![arp_from([10, 244, 1, 6]), padded(47), padded(1400), arp_from(V4)[..27].to_vec()];
    for at in 0..8 {
        let mut packet = arp_from(V4);
        packet[at] ^= 4;
        others.push(packet);
    }
    for packet in others {
        expect(arp(&packet), Action::Deny, Reason::NotIp);
    }
}

#[test]
fn neighbour_discovery_goes_no_further_than_the_link() {
    let maps = Maps::new();
    let by = |packet: &[u8]| maps.judge_veth(Sender::NOBODY, packet).verdict.reason;
    let mut beside = V6;
    beside[15] = 0x77;
    // A link-local address of the second half of fe80::/10, and one that is not in it.
    let mut last = LINK_LOCAL;
    last[1] = 0xbf;
    let mut site = LINK_LOCAL;
    site[1] = 0xc0;
    let mut wider = ALL_NODES;
    wider[1] = 5;
    let (on_link, off_link) = ([ALL_NODES, LINK_LOCAL, last], [site, wider, OUTSIDE_V6]);
    // Type, hop limit, and whether an address of the pod's own prefix will do.
    let kinds = [
        (133, 255, false),
        (135, 255, true),
        (136, 255, true),
        (131, 1, false),
        (132, 1, false),
        (143, 1, false),
    ];
    for (kind, hops, shared) in kinds {
        for to in on_link {
            assert_eq!(by(&neighbour(kind, hops, to)), Reason::Neighbour, "{kind}");
            for wrong in (0..=255).filter(|wrong| *wrong != hops) {
                assert_eq!(by(&neighbour(kind, wrong, to)), Reason::NotAllowed, "{kind} {wrong}");
            }
        }
        for to in off_link {
            assert_eq!(by(&neighbour(kind, hops, to)), Reason::NotAllowed, "{kind} {to:02x?}");
        }
        let expected = if shared { Reason::Neighbour } else { Reason::NotAllowed };
        assert_eq!(by(&neighbour(kind, hops, beside)), expected, "{kind}");
    }
    // Advertisements of routers, redirects and everything else.
    for kind in (0..=255).filter(|kind| !kinds.iter().any(|(one, ..)| one == kind)) {
        for hops in [1, 255] {
            assert_eq!(by(&neighbour(kind, hops, ALL_NODES)), Reason::NotAllowed, "{kind}");
        }
        // What looks like a report but for its type.
        let mut report = neighbour(131, 1, ALL_NODES);
        report[48] = kind;
        assert_eq!(by(&report), Reason::NotAllowed, "{kind}");
    }
    // Other protocols on the link, and the same at the socket.
    assert_eq!(by(&tcp6(V6, LINK_LOCAL, 443)), Reason::NotAllowed);
    assert_eq!(maps.judge(&neighbour(135, 255, ALL_NODES)).verdict.reason, Reason::NotAllowed);
}

#[test]
fn an_advertisement_is_of_an_address_of_the_pods_own() {
    let maps = Maps::new();
    let by = |kind: u8, target: [u8; 16]| {
        let mut packet = neighbour(kind, 255, ALL_NODES);
        packet[48..64].copy_from_slice(&target);
        maps.judge_veth(Sender::NOBODY, &packet).verdict.reason
    };
    let mut beside = V6;
    beside[15] = 0x77;
    for (kind, target, reason) in [
        (136, V6, Reason::Neighbour),
        (136, LINK_LOCAL, Reason::Neighbour),
        (136, beside, Reason::NotAllowed),
        (136, OUTSIDE_V6, Reason::NotAllowed),
        // Asked for may be any.
        (135, beside, Reason::Neighbour),
    ] {
        assert_eq!(by(kind, target), reason, "{kind} {target:02x?}");
    }
    let mut cut = neighbour(136, 255, ALL_NODES);
    cut.truncate(63);
    assert_ne!(maps.judge_veth(Sender::NOBODY, &cut).verdict.reason, Reason::Neighbour);
    // Behind a header of options, with room for eight bytes.
    for kind in [133, 135, 136] {
        let plain = neighbour(kind, 255, ALL_NODES);
        let mut wrapped = plain[..40].to_vec();
        wrapped[5] += 8;
        wrapped[6] = 0;
        wrapped.extend([58, 0, 1, 4, 1, 2, 3, 4]);
        wrapped.extend(&plain[40..]);
        assert_ne!(maps.judge_veth(Sender::NOBODY, &wrapped).verdict.reason, Reason::Neighbour, "{kind}");
    }
}

/// Of an address that is another's on this node nobody says that it is his, selected or not.
#[test]
fn what_belongs_to_another_is_claimed_by_nobody() {
    let mut maps = Maps::new();
    let (mut other, mut gateway) = (V6, LINK_LOCAL);
    (other[15], gateway[15]) = (0x66, 1);
    let other4 = [10, 244, 1, 6];
    maps.owners.extend([(Addr::v4(other4), 99), (Addr(other), 99), (Addr(gateway), OWNER_NODE)]);
    maps.owners.extend([(Addr::v4(V4), POD), (Addr(V6), 99)]);
    let advertised = |from: [u8; 16], target: [u8; 16]| {
        let mut packet = said(136, 255, from, ALL_NODES, &[ASKED]);
        packet[48..64].copy_from_slice(&target);
        packet
    };
    let arp = |maps: &Maps, from: [u8; 4]| {
        let of = |meta| Meta { ethertype: ETHERTYPE_ARP, ..meta };
        frame(maps, Sender::NOBODY, &arp_from(from), of).verdict.reason
    };
    for (state, flags) in [(STATE_ISOLATED, 0), (STATE_ISOLATED, FLAG_AUDIT), (STATE_UNSELECTED, 0)] {
        (maps.endpoint_mut().state, maps.endpoint_mut().flags) = (state, flags);
        let by = |packet: &[u8]| {
            let verdict = maps.judge_veth(Sender::NOBODY, packet).verdict;
            (verdict.action == Action::Deny && verdict.reason == Reason::SpoofedSource, verdict)
        };
        for taken in [
            tcp4(other4, PEER_V4, 443),
            tcp6(other, PEER_V6, 443),
            said(135, 255, other, ALL_NODES, &[ASKED]),
            advertised(LINK_LOCAL, other),
            advertised(LINK_LOCAL, gateway),
            advertised(V6, gateway),
        ] {
            assert!(by(&taken).0, "{state} {flags}: {:?} {taken:02x?}", by(&taken).1);
        }
        for lawful in [
            tcp4(V4, PEER_V4, 443),
            tcp6(V6, PEER_V6, 443),
            said(135, 255, V6, ALL_NODES, &[ASKED]),
            advertised(LINK_LOCAL, V6),
            advertised(V6, LINK_LOCAL),
        ] {
            assert_eq!(by(&lawful).1.action, Action::Allow, "{state} {flags}: {lawful:02x?}");
        }
        assert_eq!(arp(&maps, other4), Reason::SpoofedSource);
        assert_ne!(arp(&maps, V4), Reason::SpoofedSource);
        // Under a tag that a kernel takes off, and under two, whatever is in them.
        let tagged = |ethertype, packet: &[u8]| {
            let of = |meta| Meta { ethertype, vlan: true, ..meta };
            frame(&maps, Sender::NOBODY, packet, of).verdict
        };
        assert_eq!(tagged(ETHERTYPE_ARP, &arp_from(other4)).reason, Reason::SpoofedSource);
        assert_ne!(tagged(ETHERTYPE_ARP, &arp_from(V4)).reason, Reason::SpoofedSource);
        assert_ne!(tagged(0x0800, &tcp4(V4, PEER_V4, 443)).reason, Reason::SpoofedSource);
        for ethertype in [0x8100, 0x88a8] {
            let twice = [&[0, 0, 8, 0], &tcp4(V4, PEER_V4, 443)[..]].concat();
            let verdict = tagged(ethertype, &twice);
            assert_eq!((verdict.action, verdict.reason), (Action::Deny, Reason::NotIp));
            // Also while only one of its addresses is known.
            let mut one = maps.clone();
            one.endpoint_mut().v6 = Addr::default();
            let of = |meta| Meta { ethertype, vlan: true, ..meta };
            let verdict = frame(&one, Sender::NOBODY, &twice, of).verdict;
            assert_eq!((verdict.action, verdict.reason), (Action::Deny, Reason::NotIp));
        }
        // Behind other headers.
        let plain = advertised(V6, V6);
        let mut wrapped = plain[..40].to_vec();
        wrapped[5] += 8;
        wrapped[6] = 60;
        wrapped.extend([58, 0, 1, 4, 1, 2, 3, 4]);
        wrapped.extend(&plain[40..]);
        assert_eq!(maps.judge_veth(Sender::NOBODY, &wrapped).verdict.reason, Reason::SpoofedSource);
        // While nobody knows its address, it may be any.
        let mut new = maps.clone();
        (new.endpoint_mut().v4, new.endpoint_mut().v6) = (Addr::default(), Addr::default());
        assert_ne!(
            new.judge_veth(Sender::NOBODY, &tcp4(other4, PEER_V4, 443)).verdict.reason,
            Reason::SpoofedSource
        );
        assert_ne!(arp(&new, other4), Reason::SpoofedSource);
    }
}

#[test]
fn a_pod_without_an_ipv6_address_shares_no_link_by_prefix() {
    let mut maps = Maps::new();
    maps.endpoint_mut().v6 = Addr::default();
    let by = |to| maps.judge_veth(Sender::NOBODY, &neighbour(135, 255, to)).verdict.reason;
    // The zero prefix is nobody's.
    let mut zero = [0; 16];
    zero[15] = 9;
    assert_ne!(by(zero), Reason::Neighbour);
    assert_eq!(by(LINK_LOCAL), Reason::Neighbour);
}
