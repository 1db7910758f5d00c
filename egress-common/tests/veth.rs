//! The hook on the node's end of a pod's veth: each frame that it refuses, beside the nearest one that it takes.

mod support;

use egress_common::packet::ETHERTYPE_ARP;
use egress_common::wire::{
    Addr, FLAG_AUDIT, FRAGMENT_TTL, Ports, Proxy, STATE_INVALID, STATE_UNSELECTED, UNKNOWN_ALLOW,
    UNKNOWN_POLICY, VERDICT_ALLOW,
};
use egress_common::{Action, Decision, Hook, Meta, Reason, Socket, decide, witness};
use support::packets::{ACK, ALL_NODES, Ends, OUTSIDE_V4, OUTSIDE_V6, SYN, arp_from, flow, neighbour};
use support::{Maps, PEER, PEER_V4, PEER_V6, POD, POLICY, Sender, V4, V6, VETH, meta, tcp4, tcp6};

fn allowed() -> [Vec<u8>; 2] {
    [tcp4(V4, PEER_V4, 443), tcp6(V6, PEER_V6, 443)]
}

fn frame(maps: &Maps, sender: Sender, packet: &[u8], change: impl Fn(Meta) -> Meta) -> Decision {
    decide(maps, &sender, packet, change(meta(packet, Hook::Veth, VETH)))
}

#[track_caller]
fn expect(decision: Decision, action: Action, reason: Reason) {
    assert_eq!((decision.verdict.action, decision.verdict.reason), (action, reason), "{decision:?}");
}

#[test]
fn frames_of_the_pod_are_judged_by_its_rows_whoever_sends_them() {
    let maps = Maps::new();
    for sender in [Sender::NESTED, Sender::DIRECT, Sender::STRANGER, Sender::NOBODY] {
        for packet in allowed() {
            let decision = maps.judge_veth(sender, &packet);
            expect(decision, Action::Allow, Reason::Allowed);
            assert_eq!((decision.cgroup, decision.policy, decision.identity), (POD, POLICY, PEER));
            assert!(!decision.forged && !decision.kept);
        }
        for ends in Ends::answers() {
            let decision = maps.judge_veth(sender, &ends.tcp(SYN, 0));
            expect(decision, Action::Deny, Reason::NotAllowed);
        }
    }
}

#[test]
fn a_device_that_is_nobodys_lets_nothing_pass() {
    let mut maps = Maps::new();
    maps.endpoints.insert(0, *maps.endpoints.get(&POD).unwrap());
    for packet in allowed() {
        for index in [0, 1, VETH - 1, VETH + 1] {
            let decision = frame(&maps, Sender::NESTED, &packet, |meta| Meta { ifindex: index, ..meta });
            expect(decision, Action::Deny, Reason::NotReady);
        }
        expect(maps.judge_veth(Sender::NESTED, &packet), Action::Allow, Reason::Allowed);
        maps.devices.insert(VETH, 0);
        expect(maps.judge_veth(Sender::NESTED, &packet), Action::Deny, Reason::NotReady);
        maps.devices.insert(VETH, POD);
    }
    // ARP too: nothing is known of the device, and audit is a pod's.
    maps.endpoint_mut().flags = FLAG_AUDIT;
    maps.devices.clear();
    let arp = frame(&maps, Sender::NOBODY, &arp_from(V4), |meta| Meta { ethertype: ETHERTYPE_ARP, ..meta });
    expect(arp, Action::Deny, Reason::NotReady);
}

#[test]
fn an_unknown_pod_behind_the_device_follows_the_setting() {
    for packet in allowed() {
        let mut maps = Maps::new();
        maps.devices.insert(VETH, 77);
        // The sender's own cgroup is a known pod's; the device says otherwise.
        expect(maps.judge_veth(Sender::NESTED, &packet), Action::Deny, Reason::UnknownPod);
        let config = maps.config.as_mut().unwrap();
        (config.unknown, config.unknown_policy) = (UNKNOWN_POLICY, POLICY);
        expect(maps.judge_veth(Sender::NESTED, &packet), Action::Allow, Reason::UnknownPodAllowed);
        maps.config.as_mut().unwrap().unknown = UNKNOWN_ALLOW;
        let decision = maps.judge_veth(Sender::NESTED, &packet);
        expect(decision, Action::Allow, Reason::UnknownPodAllowed);
        assert!(decision.forged, "whose source it is is not known");
    }
}

#[test]
fn a_packet_sockets_frames_are_denied() {
    let mut maps = Maps::new();
    for packet in allowed() {
        for sender in [Sender::NESTED, Sender::STRANGER] {
            let decision = maps.judge_veth(sender.socket(Socket::Packet), &packet);
            expect(decision, Action::Deny, Reason::PacketSocket);
            for socket in [Socket::Raw, Socket::Inet, Socket::None, Socket::Listening] {
                expect(maps.judge_veth(sender.socket(socket), &packet), Action::Allow, Reason::Allowed);
            }
        }
    }
    // Also what may pass otherwise: ARP and neighbour discovery.
    let arp = |maps: &Maps, socket| {
        let arp = |meta| Meta { ethertype: ETHERTYPE_ARP, ..meta };
        frame(maps, Sender::NOBODY.socket(socket), &arp_from(V4), arp)
    };
    expect(arp(&maps, Socket::Packet), Action::Deny, Reason::PacketSocket);
    expect(arp(&maps, Socket::None), Action::Allow, Reason::Neighbour);
    let solicit = neighbour(135, 255, ALL_NODES);
    let by = |maps: &Maps, socket| maps.judge_veth(Sender::NOBODY.socket(socket), &solicit);
    expect(by(&maps, Socket::Packet), Action::Deny, Reason::PacketSocket);
    expect(by(&maps, Socket::Raw), Action::Allow, Reason::Neighbour);
    maps.endpoint_mut().flags = FLAG_AUDIT;
    expect(arp(&maps, Socket::Packet), Action::Audit, Reason::PacketSocket);
    maps.endpoint_mut().state = STATE_INVALID;
    expect(arp(&maps, Socket::Packet), Action::Deny, Reason::PacketSocket);
    maps.endpoint_mut().state = STATE_UNSELECTED;
    expect(arp(&maps, Socket::Packet), Action::Allow, Reason::Unselected);
}

#[test]
fn tagged_frames_are_denied_whatever_is_in_them() {
    let mut maps = Maps::new();
    let tagged = |meta| Meta { vlan: true, ..meta };
    for packet in allowed() {
        for sender in [Sender::NESTED, Sender::NOBODY] {
            expect(frame(&maps, sender, &packet, tagged), Action::Deny, Reason::NotIp);
            expect(frame(&maps, sender, &packet, |meta| meta), Action::Allow, Reason::Allowed);
        }
    }
    for ethertype in [ETHERTYPE_ARP, 0x8100, 0x88a8] {
        let arp = |meta| Meta { vlan: true, ethertype, ..meta };
        expect(frame(&maps, Sender::NOBODY, &arp_from(V4), arp), Action::Deny, Reason::NotIp);
    }
    maps.endpoint_mut().flags = FLAG_AUDIT;
    expect(frame(&maps, Sender::NOBODY, &allowed()[0], tagged), Action::Audit, Reason::NotIp);
}

/// It is put together on its way to a pod of the node, where it would be taken for what somebody outside asks.
#[test]
fn what_passes_only_because_it_is_audited_is_marked_where_its_source_is_not_the_pods() {
    let mut maps = Maps::new();
    maps.endpoint_mut().flags = FLAG_AUDIT;
    let mut other = V6;
    other[15] ^= 1;
    for (from, forged) in [(V6, false), (other, true)] {
        // The first fragment of a datagram with options for its destination before it.
        let mut first = tcp6(from, PEER_V6, 443);
        first[6] = 44;
        first.truncate(40);
        first.extend([60, 0, 0, 1, 0, 0, 0, 7, 17, 0, 1, 4, 0, 0, 0, 0, 0, 9, 0, 9, 0, 40, 0, 0]);
        let length = u8::try_from(first.len() - 40).unwrap();
        first[4..6].copy_from_slice(&[0, length]);
        let decision = maps.judge_veth(Sender::NESTED, &first);
        expect(decision, Action::Audit, Reason::Ipv6Extension);
        assert_eq!(decision.forged, forged);
    }
}

#[test]
fn of_what_is_not_ip_only_arp_passes() {
    let mut maps = Maps::new();
    let with = |maps: &Maps, bytes: &[u8], ethertype| {
        frame(maps, Sender::NOBODY, bytes, |meta| Meta { ethertype, ..meta })
    };
    let of = |maps: &Maps, ethertype| {
        let bytes = if ethertype == ETHERTYPE_ARP { arp_from(V4) } else { allowed()[0].clone() };
        with(maps, &bytes, ethertype)
    };
    for ethertype in (0..=0xffff).filter(|one| ![0x0800, 0x86dd, ETHERTYPE_ARP].contains(one)) {
        expect(of(&maps, ethertype), Action::Deny, Reason::NotIp);
        expect(with(&maps, &arp_from(V4), ethertype), Action::Deny, Reason::NotIp);
    }
    expect(of(&maps, ETHERTYPE_ARP), Action::Allow, Reason::Neighbour);
    expect(of(&maps, 0x0800), Action::Allow, Reason::Allowed);
    // A header that contradicts the type of its frame.
    expect(of(&maps, 0x86dd), Action::Deny, Reason::UnknownIpVersion);
    expect(maps.judge_veth(Sender::NOBODY, &[]), Action::Deny, Reason::Truncated);
    // At the socket there is no ARP.
    let socket = Meta { ethertype: ETHERTYPE_ARP, ifindex: support::ETH0, ..Meta::default() };
    let decision = decide(&maps, &Sender::NESTED, allowed()[0].as_slice(), socket);
    expect(decision, Action::Deny, Reason::UnknownIpVersion);
    maps.endpoint_mut().flags = FLAG_AUDIT;
    expect(of(&maps, 0x88cc), Action::Audit, Reason::NotIp);
    expect(of(&maps, ETHERTYPE_ARP), Action::Allow, Reason::Neighbour);
    // Of a pod that may do nothing it passes too: it goes no further than its link.
    maps.endpoint_mut().state = STATE_INVALID;
    expect(of(&maps, ETHERTYPE_ARP), Action::Allow, Reason::Neighbour);
}

/// UDP of the pod to a port of the peer that is allowed, as the first and the second fragment of a datagram.
fn fragments(ends: Ends, identification: u16) -> [Vec<u8>; 2] {
    let (mut first, mut second);
    if ends.from.is_v4() {
        first = ends.udp();
        first[4..6].copy_from_slice(&identification.to_be_bytes());
        second = first.clone();
        first[6] = 0x20;
        second[7] = 3;
    } else {
        let inner = |place: u8| {
            let [high, low] = identification.to_be_bytes();
            let header = [17, 0, 0, place, high, low, high, low];
            ends.packet(44, &[&header[..], &ends.udp()[40..]].concat())
        };
        (first, second) = (inner(1), inner(8));
    }
    [first, second]
}

fn datagrams() -> [Ends; 2] {
    let [four, six] = Ends::answers();
    [Ends { to: Addr::v4(PEER_V4), ..four }, Ends { to: Addr(PEER_V6), ..six }]
}

#[test]
fn later_fragments_follow_a_first_one_that_has_passed() {
    for ends in datagrams() {
        let mut maps = Maps::new();
        let udp = Ports { protocol: 17, verdict: VERDICT_ALLOW, rule: 0, low: 50_000, high: 50_000 };
        maps.set_row(POLICY, PEER, &[udp]);
        let [first, second] = fragments(ends, 0x4321);
        let by = |maps: &Maps, packet: &[u8]| maps.judge_veth(Sender::NESTED, packet).verdict.reason;
        assert_eq!(by(&maps, &second), Reason::Fragment);
        assert_eq!(by(&maps, &first), Reason::Allowed);
        let (key, seen) = witness::datagram(&flow(&first)).entry(POD, maps.now);
        maps.witnesses.insert(key, seen);
        assert_eq!(by(&maps, &second), Reason::FollowsFragment);
        assert_eq!(maps.judge(&second).verdict.reason, Reason::Fragment, "not at the socket");
        // A pod that is closed answers in fragments, too.
        let state = std::mem::replace(&mut maps.endpoint_mut().state, STATE_INVALID);
        assert_eq!(by(&maps, &second), Reason::FollowsFragment);
        let closed = maps.judge(&second).verdict.reason;
        assert!(closed != Reason::Fragment && closed != Reason::FollowsFragment, "{closed:?}");
        assert_eq!(by(&maps, &fragments(ends, 0x4322)[1]), closed);
        maps.endpoint_mut().state = state;
        // Another datagram, another protocol, other ends.
        assert_eq!(by(&maps, &fragments(ends, 0x4322)[1]), Reason::Fragment);
        let other =
            Ends { to: if ends.to.is_v4() { Addr::v4(OUTSIDE_V4) } else { Addr(OUTSIDE_V6) }, ..ends };
        assert_eq!(by(&maps, &fragments(other, 0x4321)[1]), Reason::Fragment);
        let mut tcp = second.clone();
        tcp[if ends.from.is_v4() { 9 } else { 40 }] = 6;
        assert_eq!(by(&maps, &tcp), Reason::Fragment);
        // What was seen of another pod, too long ago, or as something else.
        let mut after = |change: fn(&mut egress_common::wire::Witness)| {
            let mut seen = seen;
            change(&mut seen);
            maps.witnesses.insert(key, seen);
            by(&maps, &second)
        };
        assert_eq!(after(|seen| seen.seen -= FRAGMENT_TTL - 1), Reason::FollowsFragment);
        assert_eq!(after(|seen| seen.seen -= FRAGMENT_TTL), Reason::Fragment);
        assert_eq!(after(|seen| seen.cgroup = POD + 1), Reason::Fragment);
        for kind in [0, 1, 2, 3, 5] {
            let mut other = seen;
            other.kind = kind;
            maps.witnesses.insert(key, other);
            assert_eq!(by(&maps, &second), Reason::Fragment, "{kind}");
        }
    }
}

#[test]
fn of_tcp_and_of_what_is_whole_no_fragment_is_remembered() {
    for ends in datagrams() {
        let [first, _] = fragments(ends, 7);
        let remembered = |flow| witness::is_first_fragment(&flow);
        assert!(remembered(flow(&first)));
        assert!(!remembered(flow(&ends.udp())));
        let tcp = egress_common::Flow { protocol: 6, ..flow(&first) };
        assert!(!remembered(tcp));
    }
}

/// A fragment that a pod sends to itself by way of the node counts for no one else's.
#[test]
fn a_tcp_fragment_does_not_follow_what_was_remembered_of_another_protocol() {
    for ends in datagrams() {
        let mut maps = Maps::new();
        let [first, second] = fragments(ends, 9);
        let (key, mut seen) = witness::datagram(&flow(&first)).entry(POD, maps.now);
        let mut tcp = second;
        tcp[if ends.from.is_v4() { 9 } else { 40 }] = 6;
        seen.protocol = 6;
        // In every slot there is.
        for slot in 0..egress_common::wire::WITNESS_SLOTS {
            maps.witnesses.insert(egress_common::wire::WitnessKey { slot, ..key }, seen);
        }
        assert_eq!(maps.judge_veth(Sender::NESTED, &tcp).verdict.reason, Reason::Fragment);
    }
}

#[test]
fn a_forged_source_of_a_pod_that_is_not_touched_is_marked() {
    let mut maps = Maps::new();
    maps.endpoint_mut().state = STATE_UNSELECTED;
    for ends in Ends::answers() {
        let own = maps.judge_veth(Sender::NESTED, &ends.tcp(SYN, 0));
        expect(own, Action::Allow, Reason::Unselected);
        assert!(!own.forged);
        let mut other = ends;
        other.from.0[15] ^= 1;
        let forged = maps.judge_veth(Sender::NESTED, &other.tcp(SYN, 0));
        expect(forged, Action::Allow, Reason::Unselected);
        assert!(forged.forged);
        assert!(maps.judge_veth(Sender::NESTED, &[0x45]).forged, "of which no source is known");
        let mut none = maps.clone();
        (none.endpoint_mut().v4, none.endpoint_mut().v6) = (Addr::default(), Addr::default());
        assert!(none.judge_veth(Sender::NESTED, &ends.tcp(SYN, 0)).forged);
        // It has not begun what it sends in another's name.
        assert!(maps.judge(&other.udp()).forged);
    }
    // Where it is only audited, it is marked as well, and begins nothing.
    let mut maps = Maps::new();
    maps.endpoint_mut().flags = FLAG_AUDIT;
    for ends in Ends::answers() {
        assert!(!maps.judge_veth(Sender::NESTED, &ends.udp()).forged);
        let mut other = ends;
        other.from.0[15] ^= 1;
        for socket in [Socket::Inet, Socket::Packet] {
            let forged = maps.judge_veth(Sender::NESTED.socket(socket), &other.udp());
            assert!(forged.verdict.action == Action::Audit && forged.forged, "{forged:?}");
            assert!(!forged.begins(meta(&other.udp(), Hook::Veth, VETH)));
        }
        assert!(maps.judge(&other.udp()).forged);
    }
    // Where it is judged it is denied.
    let maps = Maps::new();
    for ends in Ends::answers() {
        let mut other = ends;
        other.from.0[15] ^= 1;
        let denied = maps.judge_veth(Sender::NESTED, &other.tcp(ACK, 0));
        expect(denied, Action::Deny, Reason::SpoofedSource);
    }
}

#[test]
fn loopback_is_nothing_that_comes_out_of_a_veth() {
    let maps = Maps::new();
    let mut one = [0; 16];
    one[15] = 1;
    for packet in [tcp4(V4, [127, 0, 0, 1], 443), tcp6(V6, one, 443)] {
        let decision = maps.judge_veth(Sender::NESTED, &packet);
        expect(decision, Action::Deny, Reason::MartianAddress);
    }
    // Nor is the pod itself, or the device of that number.
    expect(maps.judge_veth(Sender::NESTED, &tcp4(V4, V4, 443)), Action::Deny, Reason::NotAllowed);
    let mut first = maps;
    first.devices.insert(1, POD);
    let packet = tcp4(V4, [127, 0, 0, 1], 443);
    let at = |packet: &[u8]| frame(&first, Sender::NESTED, packet, |meta| Meta { ifindex: 1, ..meta });
    expect(at(&packet), Action::Deny, Reason::MartianAddress);
    expect(at(&tcp4(V4, V4, 443)), Action::Deny, Reason::NotAllowed);
}

const LOCK: u64 = 0xcccc;
const PROXY_POLICY: u64 = 0xdddd;

/// A lock whose proxy may send to port 443 of the peer, others to port 80, and that does not cover port 8080.
fn locked() -> Maps {
    let mut maps = Maps::new();
    maps.endpoint_mut().lock = LOCK;
    maps.endpoint_mut().proxies[2] = Proxy { cgroup: 1000, policy: PROXY_POLICY };
    let port = |low| Ports { protocol: 6, verdict: VERDICT_ALLOW, rule: 1, low, high: low };
    maps.set_row(POLICY, PEER, &[port(80)]);
    maps.set_row(PROXY_POLICY, PEER, &[port(443)]);
    maps.set_row(LOCK, PEER, &[port(8080)]);
    maps
}

#[test]
fn under_a_lock_the_proxy_is_known_by_its_socket() {
    let maps = locked();
    let by = |sender, port| maps.judge_veth(sender, &tcp4(V4, PEER_V4, port));
    for proxy in [Sender::NESTED, Sender::DIRECT] {
        let decision = by(proxy, 443);
        expect(decision, Action::Allow, Reason::Allowed);
        assert_eq!((decision.container, decision.policy), (1000, PROXY_POLICY));
        assert_eq!(by(proxy, 80).verdict.reason, Reason::NotAllowed, "no bypass: it is the proxy");
    }
    let other_container = Sender([1, 10, 20, POD, 1001, 0], Socket::Inet, None);
    // A container of that number in another pod, and a pod's own cgroup at the wrong level.
    let other_pod = Sender([1, 10, 20, POD + 1, 1000, 0], Socket::Inet, None);
    let deeper = Sender([1, 10, 20, 30, POD, 1000], Socket::Inet, None);
    let higher = Sender([1, POD, 1000, 1000, 1000, 1000], Socket::Inet, None);
    let beside = Sender([1, 10, 20, POD, 0, 0], Socket::Inet, None);
    for other in [other_container, other_pod, deeper, higher, beside, Sender::NOBODY] {
        expect(by(other, 443), Action::Deny, Reason::SidecarBypass);
        expect(by(other, 80), Action::Allow, Reason::Allowed);
        expect(by(other, 8080), Action::Deny, Reason::NotAllowed);
    }
    assert_eq!(by(other_container, 443).container, 1001);
    assert_eq!(by(other_pod, 443).container, 0, "not one of this pod's");
}

#[test]
fn at_the_veth_a_container_without_a_number_is_no_proxy() {
    let mut maps = locked();
    maps.endpoint_mut().proxies[0] = Proxy { cgroup: 0, policy: PROXY_POLICY };
    for sender in [Sender::NOBODY, Sender([1, 10, 20, POD, 0, 0], Socket::Inet, None)] {
        let decision = maps.judge_veth(sender, &tcp4(V4, PEER_V4, 443));
        expect(decision, Action::Deny, Reason::SidecarBypass);
    }
}
