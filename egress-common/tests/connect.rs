//! A connection that is asked for is refused exactly where its first packet would be denied, and never where that may change.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use egress_common::connect::{concerns, connect, is_sure, packet_socket};
use egress_common::wire::{
    ABI, Addr, Config, FLAG_AUDIT, IDENTITY_WORLD, PROTOCOL_ANY, Ports, Proxy, STATE_INVALID,
    STATE_UNSELECTED, UNKNOWN_ALLOW, VERDICT_ALLOW, VERDICT_AUDIT,
};
use egress_common::{Action, Decision, Reason};
use support::packets::{OUTSIDE_V4, OUTSIDE_V6};
use support::{Maps, PEER, PEER_V4, PEER_V6, POLICY, Sender, V4, V6, tcp4, tcp6};

const TCP: u8 = 6;

fn ask(maps: &Maps, sender: Sender, to: Addr, port: u16) -> Option<Decision> {
    connect(maps, &sender, &to, TCP, port)
}

/// Every kind of map that gives another verdict.
fn variants() -> Vec<Maps> {
    let mut variants = vec![Maps::new()];
    let mut add = |change: fn(&mut Maps)| {
        let mut maps = Maps::new();
        change(&mut maps);
        variants.push(maps);
    };
    add(|maps| maps.config = None);
    add(|maps| maps.config = Some(Config { abi: 0, ..maps.config.unwrap() }));
    add(|maps| maps.config = Some(Config { unknown: UNKNOWN_ALLOW, ..maps.config.unwrap() }));
    add(|maps| maps.endpoint_mut().state = STATE_UNSELECTED);
    add(|maps| maps.endpoint_mut().state = STATE_INVALID);
    add(|maps| maps.endpoint_mut().state = 99);
    add(|maps| maps.endpoint_mut().flags = FLAG_AUDIT);
    add(|maps| maps.rows.clear());
    let any = |verdict| Ports { protocol: PROTOCOL_ANY, verdict, ..Ports::default() };
    for verdict in [VERDICT_ALLOW, VERDICT_AUDIT, 77] {
        let mut maps = Maps::new();
        maps.set_row(POLICY, IDENTITY_WORLD, &[any(verdict)]);
        variants.push(maps);
    }
    for covered in [true, false] {
        let mut maps = Maps::new();
        maps.endpoint_mut().lock = 700;
        maps.endpoint_mut().proxies[0] = Proxy { cgroup: 2000, policy: 800 };
        maps.set_row(800, IDENTITY_WORLD, &[any(VERDICT_ALLOW)]);
        maps.set_row(700, if covered { PEER } else { IDENTITY_WORLD }, &[any(VERDICT_ALLOW)]);
        variants.push(maps);
    }
    variants
}

#[test]
fn it_is_the_verdict_of_the_first_packet() {
    let proxy = Sender([1, 10, 20, support::POD, 2000, 0], egress_common::Socket::Inet, None);
    let (mut refused, mut passed) = (0, 0);
    for maps in variants() {
        for sender in [Sender::NESTED, Sender::DIRECT, Sender::STRANGER, proxy] {
            for port in [443, 444] {
                let v4 = [PEER_V4, OUTSIDE_V4].map(|to| (Addr::v4(to), tcp4(V4, to, port)));
                let v6 = [PEER_V6, OUTSIDE_V6].map(|to| (Addr(to), tcp6(V6, to, port)));
                for (to, mut packet) in v4.into_iter().chain(v6) {
                    let transport = packet.len() - 20;
                    packet[transport + 13] = 2;
                    let verdict = maps.judge_from(sender, &packet, support::ETH0).verdict;
                    match ask(&maps, sender, to, port) {
                        None => {
                            assert_eq!(verdict.action, Action::Allow, "{maps:?}");
                            let settled = [Reason::Unselected, Reason::UnknownPodAllowed];
                            assert_eq!(concerns(&maps, &sender), !settled.contains(&verdict.reason));
                            passed += 1;
                        }
                        Some(decision) => {
                            assert_eq!(decision.verdict, verdict, "{maps:?}");
                            assert!(concerns(&maps, &sender));
                            assert_eq!(
                                (decision.flow.destination, decision.flow.destination_port),
                                (to, port)
                            );
                            refused += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(refused > 100 && passed > 50, "{refused} {passed}");
}

#[test]
fn only_what_will_not_change_is_sure() {
    let maps = Maps::new();
    let denied = ask(&maps, Sender::NESTED, Addr::v4(OUTSIDE_V4), 443).unwrap();
    assert!(is_sure(&denied));
    // A datagram may be an answer.
    let udp = connect(&maps, &Sender::NESTED, &Addr::v4(OUTSIDE_V4), 17, 443).unwrap();
    assert!(udp.verdict.action == Action::Deny && !is_sure(&udp));
    let stranger = ask(&maps, Sender::STRANGER, Addr::v4(OUTSIDE_V4), 443).unwrap();
    assert!(stranger.verdict.reason == Reason::UnknownPod && !is_sure(&stranger));
    let mut maps = maps;
    maps.endpoint_mut().flags = FLAG_AUDIT;
    let audited = ask(&maps, Sender::NESTED, Addr::v4(OUTSIDE_V4), 443).unwrap();
    assert!(audited.verdict.action == Action::Audit && !is_sure(&audited));
    maps.config = None;
    assert!(!is_sure(&ask(&maps, Sender::NESTED, Addr::v4(OUTSIDE_V4), 443).unwrap()));
}

#[test]
fn what_stays_in_the_pod_is_let_go_on() {
    let mut maps = Maps::new();
    maps.endpoint_mut().state = STATE_INVALID;
    let own = [Addr::v4(V4), Addr(V6), Addr::v4([127, 0, 0, 1]), Addr::v4([127, 9, 9, 9]), Addr::v4([0; 4])];
    let mut v6 = [0; 16];
    let unspecified = Addr(v6);
    v6[15] = 1;
    for to in own.into_iter().chain([unspecified, Addr(v6)]) {
        assert_eq!(ask(&maps, Sender::NESTED, to, 80), None, "{to:?}");
    }
    assert!(is_sure(&ask(&maps, Sender::NESTED, Addr::v4(PEER_V4), 443).unwrap()));
}

#[test]
fn a_packet_socket_is_for_pods_that_no_policy_selects_and_those_whose_frames_are_judged() {
    let (mut refused, mut audited, mut passed) = (0, 0, 0);
    for maps in variants() {
        for sender in [Sender::NESTED, Sender::DIRECT, Sender::STRANGER] {
            // What a policy of this pod's would deny is denied.
            let free = maps.config.is_some_and(|config| config.abi == ABI) && !concerns(&maps, &sender);
            let told = packet_socket(&maps, &sender, |_| false);
            match told {
                None => assert!(free, "{maps:?}"),
                Some(decision) => {
                    assert!(!free, "{maps:?}");
                    let ready = !matches!(decision.verdict.reason, Reason::NotReady);
                    assert!(!ready || decision.verdict.reason == Reason::PacketSocket, "{maps:?}");
                    match decision.verdict.action {
                        Action::Deny => refused += 1,
                        Action::Audit => audited += 1,
                        Action::Allow => panic!("{decision:?}"),
                    }
                }
            }
            passed += usize::from(told.is_none());
            // Covered, that is another matter, but not before the maps are written.
            let covered =
                packet_socket(&maps, &sender, |cgroup| told.is_some_and(|told| told.cgroup == cgroup));
            let ready = maps.config.is_some_and(|config| config.abi == ABI);
            assert_eq!(covered.is_none(), ready, "{maps:?}");
        }
    }
    assert!(refused > 15 && audited > 1 && passed > 2, "{refused} {audited} {passed}");
}
