//! Replies: each way to answer what came in, and beside it every form of pretending to.

mod support;

use std::collections::BTreeSet;

use egress_common::connection;
use egress_common::wire::{
    Addr, Approval, FLAG_AUDIT, POLICY_SENT_ON, PROTOCOL_ANY, Ports, STATE_INVALID, UNKNOWN_POLICY,
    VERDICT_ALLOW, WITNESS_CAME_IN, WITNESS_CLOSED, WITNESS_FRAGMENT, WITNESS_SLOTS, WITNESS_STOOD,
    WITNESS_TTL, Witness, WitnessKey,
};
use egress_common::witness::{self, FIRST, Half, SECOND, place};
use egress_common::{Action, Flow, Hook, Reason, Socket};
use support::packets::{ACK, Ends, FIN, RST, SYN, SYN_ACK, came_in, connection, flow};
use support::{ETH0, Maps, POD, Sender, VETH};

const SOCKETS: [Socket; 5] = [Socket::None, Socket::Listening, Socket::Inet, Socket::Raw, Socket::Packet];
const ECHO: u16 = 0x1234;

/// A reply: the packet, the hook that lets it pass, the sockets that may send it, and what was seen before.
struct Reply {
    name: &'static str,
    hook: Hook,
    sockets: &'static [Socket],
    packet: Vec<u8>,
    seen: (WitnessKey, Witness),
    /// It has to have come in lately.
    ages: bool,
}

/// Every way to reply from the table.
fn replies() -> Vec<Reply> {
    const WITHOUT: &[Socket] = &[Socket::None, Socket::Listening, Socket::Raw];
    const ANY_BUT_PACKET: &[Socket] = &[Socket::None, Socket::Listening, Socket::Inet, Socket::Raw];
    let maps = Maps::new();
    let mut replies = Vec::new();
    for ends in Ends::answers() {
        let syn = came_in(&maps, &ends.back().tcp(SYN, 0));
        let closed = connection(&maps, ends, WITNESS_CLOSED);
        let stood = connection(&maps, ends, WITNESS_STOOD);
        let mut add = |name, hook, sockets, packet, seen: &(WitnessKey, Witness)| {
            let ages = seen.1.kind != WITNESS_STOOD;
            replies.push(Reply { name, hook, sockets, packet, seen: *seen, ages });
        };
        add("handshake at the socket", Hook::Socket, &[Socket::Listening], ends.tcp(SYN_ACK, 0), &syn);
        add("handshake at the veth", Hook::Veth, WITHOUT, ends.tcp(SYN_ACK, 0), &syn);
        add("refusal by a listening socket", Hook::Socket, &[Socket::Listening], ends.tcp(RST, 0), &syn);
        add("last reset by one", Hook::Socket, &[Socket::Listening], ends.tcp(RST | ACK, 0), &closed);
        add("refusal at the veth", Hook::Veth, WITHOUT, ends.tcp(RST | ACK, 0), &syn);
        add("last words at the veth", Hook::Veth, WITHOUT, ends.tcp(FIN | ACK, 0), &closed);
        add("last reset at the veth", Hook::Veth, WITHOUT, ends.tcp(RST, 0), &closed);
        for hook in Hook::OF_PACKETS {
            add("what stood", hook, &[Socket::Inet], ends.tcp(ACK, 100), &stood);
        }
        for (packet, asked) in [(ends.udp(), ends.back().udp()), (ends.sctp(), ends.back().sctp())] {
            let asked = came_in(&maps, &asked);
            add("datagram at the socket", Hook::Socket, &[Socket::Inet], packet.clone(), &asked);
            add("datagram at the veth", Hook::Veth, ANY_BUT_PACKET, packet, &asked);
        }
        let echo = came_in(&maps, &ends.back().echo(ECHO));
        add("echo at the veth", Hook::Veth, ANY_BUT_PACKET, ends.echo_reply(ECHO), &echo);
    }
    replies
}

impl Reply {
    /// The verdict where this was seen.
    fn after(&self, maps: &mut Maps, key: WitnessKey, seen: Witness) -> Reason {
        maps.witnesses = [(key, seen)].into();
        maps.reason_of(self.hook, self.sockets[0], &self.packet)
    }
}

#[test]
fn replies_pass_where_what_they_answer_was_seen_and_not_without() {
    for reply in replies() {
        let mut maps = Maps::new();
        let (key, seen) = reply.seen;
        assert_eq!(reply.after(&mut maps, key, seen), Reason::WitnessedReply, "{}", reply.name);
        maps.witnesses.clear();
        let without = maps.reason_of(reply.hook, reply.sockets[0], &reply.packet);
        assert_eq!(without, Reason::NotAllowed, "{}", reply.name);
    }
}

#[test]
fn only_the_right_kind_of_socket_replies() {
    for reply in replies() {
        let mut maps = Maps::new();
        maps.witnesses = [reply.seen].into();
        for socket in SOCKETS {
            let expected = match (reply.sockets.contains(&socket), socket, reply.hook) {
                (true, ..) => Reason::WitnessedReply,
                (false, Socket::Packet, Hook::Veth) => Reason::PacketSocket,
                _ => Reason::NotAllowed,
            };
            assert_eq!(
                maps.reason_of(reply.hook, socket, &reply.packet),
                expected,
                "{} {socket:?}",
                reply.name
            );
        }
    }
}

/// Where another flow came in later it has taken the place; what it says is not about this one.
#[test]
fn every_part_of_what_was_seen_counts() {
    for reply in replies() {
        let mut maps = Maps::new();
        let (key, seen) = reply.seen;
        let mut near = seen.remote;
        near.0[15] ^= 1;
        let mut far = seen.remote;
        far.0[6] ^= 1;
        let others = [
            Witness { cgroup: POD + 1, ..seen },
            Witness { cgroup: 0, ..seen },
            Witness { remote: near, ..seen },
            Witness { remote: far, ..seen },
            Witness { remote_port: seen.remote_port ^ 0x100, ..seen },
            Witness { local_port: seen.local_port ^ 1, ..seen },
            Witness { protocol: if seen.protocol == 17 { 132 } else { 17 }, ..seen },
        ];
        for other in others {
            assert_eq!(reply.after(&mut maps, key, other), Reason::NotAllowed, "{} {other:?}", reply.name);
        }
        for kind in [0, WITNESS_CAME_IN, WITNESS_STOOD, WITNESS_CLOSED, WITNESS_FRAGMENT, 5, 255] {
            let same = match seen.kind {
                // What the kernel says at the beginning and at the end of a connection is told apart by none, but for the handshake
                // at the socket.
                WITNESS_CAME_IN | WITNESS_CLOSED
                    if seen.protocol == 6 && reply.name != "handshake at the socket" =>
                {
                    matches!(kind, WITNESS_CAME_IN | WITNESS_CLOSED)
                }
                own => kind == own,
            };
            let expected = if same { Reason::WitnessedReply } else { Reason::NotAllowed };
            let got = reply.after(&mut maps, key, Witness { kind, ..seen });
            assert_eq!(got, expected, "{} {kind}", reply.name);
        }
        // The same at another place of the table.
        for (local, slot) in [(Addr([9; 16]), key.slot), (key.local, key.slot ^ 1)] {
            let got = reply.after(&mut maps, WitnessKey { local, slot, began: 0 }, seen);
            assert_eq!(got, Reason::NotAllowed, "{}", reply.name);
        }
    }
}

#[test]
fn what_came_in_is_forgotten_in_time() {
    for reply in replies() {
        let mut maps = Maps::new();
        let (key, seen) = reply.seen;
        let mut aged = |age| reply.after(&mut maps, key, Witness { seen: 1_000_000_000_000 - age, ..seen });
        assert_eq!(aged(WITNESS_TTL - 1), Reason::WitnessedReply, "{}", reply.name);
        let old = if reply.ages { Reason::NotAllowed } else { Reason::WitnessedReply };
        assert_eq!(aged(WITNESS_TTL), old, "{}", reply.name);
        assert_eq!(aged(1_000_000_000_000), old, "{}", reply.name);
        // Another processor's clock may be ahead of ours.
        let ahead = Witness { seen: maps.now + 5, ..seen };
        assert_eq!(reply.after(&mut maps, key, ahead), Reason::WitnessedReply, "{}", reply.name);
    }
}

#[test]
fn what_begins_a_connection_is_never_a_reply() {
    for ends in Ends::answers() {
        for kind in [WITNESS_CAME_IN, WITNESS_STOOD, WITNESS_CLOSED] {
            let mut maps = Maps::new();
            maps.witnesses = [connection(&maps, ends, kind)].into();
            maps.witnesses.values_mut().for_each(|seen| seen.seen = maps.now);
            for hook in Hook::OF_PACKETS {
                for socket in SOCKETS.into_iter().filter(|socket| *socket != Socket::Packet) {
                    for more in [0, FIN, RST, 8, 0x20, 0xc0] {
                        let got = maps.reason_of(hook, socket, &ends.tcp(SYN | more, 0));
                        assert_eq!(got, Reason::NotAllowed, "{kind} {hook:?} {socket:?} {more}");
                    }
                }
                // What stood has its handshake behind it.
                let late = maps.reason_of(hook, Socket::Inet, &ends.tcp(SYN_ACK, 0));
                assert_eq!(late, Reason::NotAllowed, "{kind} {hook:?}");
            }
        }
    }
}

#[test]
fn a_listening_socket_says_nothing_but_that_it_listens() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        maps.witnesses = [came_in(&maps, &ends.back().tcp(SYN, 0))].into();
        let says =
            |flags, payload| maps.reason_of(Hook::Socket, Socket::Listening, &ends.tcp(flags, payload));
        assert_eq!(says(SYN_ACK, 0), Reason::WitnessedReply);
        // That it knows of no such connection, as kernels say in its name since 6.13.
        for flags in [RST, RST | ACK] {
            assert_eq!(says(flags, 0), Reason::WitnessedReply);
            assert_eq!(says(flags, 1), Reason::NotAllowed, "with payload");
            assert_eq!(
                says(flags | SYN, 0),
                if flags == RST { Reason::NotAllowed } else { Reason::WitnessedReply }
            );
        }
        for flags in [0, ACK, FIN | ACK] {
            assert_eq!(says(flags, 0), Reason::NotAllowed, "{flags}");
        }
    }
}

#[test]
fn what_has_no_socket_has_no_payload() {
    for ends in Ends::answers() {
        for kind in [WITNESS_CAME_IN, WITNESS_CLOSED] {
            let mut maps = Maps::new();
            maps.witnesses = [connection(&maps, ends, kind)].into();
            for socket in [Socket::None, Socket::Listening, Socket::Raw] {
                let says = |packet: &[u8]| maps.reason_of(Hook::Veth, socket, packet);
                for flags in [ACK, SYN_ACK, RST, FIN | ACK] {
                    assert_eq!(says(&ends.tcp(flags, 0)), Reason::WitnessedReply);
                    for payload in [1, 4, 1000] {
                        assert_eq!(says(&ends.tcp(flags, payload)), Reason::NotAllowed, "{flags} {payload}");
                    }
                    // A header that says it is longer, or shorter, than the packet that holds it.
                    let start = if ends.from.is_v4() { 20 } else { 40 };
                    for words in [0, 4, 6, 15] {
                        let mut packet = ends.tcp(flags, 0);
                        packet[start + 12] = words << 4;
                        assert_eq!(says(&packet), Reason::NotAllowed, "{flags} {words} words");
                    }
                    let mut options = ends.tcp(flags, 4);
                    options[start + 12] = 6 << 4;
                    assert_eq!(says(&options), Reason::WitnessedReply, "options are no payload");
                }
            }
        }
    }
}

#[test]
fn an_echo_is_answered_by_its_reply_alone() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        maps.witnesses = [came_in(&maps, &ends.back().echo(ECHO))].into();
        let says = |packet: &[u8]| maps.reason_of(Hook::Veth, Socket::None, packet);
        assert_eq!(says(&ends.echo_reply(ECHO)), Reason::WitnessedReply);
        for identifier in [0, ECHO + 1, ECHO ^ 0x8000] {
            assert_eq!(says(&ends.echo_reply(identifier)), Reason::NotAllowed, "{identifier}");
        }
        let reply = if ends.from.is_v4() { 0 } else { 129 };
        // Neighbour discovery to another link is denied as well.
        for kind in (0..=255).filter(|kind| *kind != reply) {
            assert_eq!(says(&ends.icmp(kind, ECHO)), Reason::NotAllowed, "type {kind}");
        }
        for socket in SOCKETS {
            let at_the_socket = maps.reason_of(Hook::Socket, socket, &ends.echo_reply(ECHO));
            assert_eq!(at_the_socket, Reason::NotAllowed, "{socket:?}");
        }
    }
}

#[test]
fn a_packet_that_answers_another_flow_is_denied() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let asked = ends.back();
        maps.witnesses = [came_in(&maps, &asked.udp()), came_in(&maps, &asked.tcp(SYN, 0))].into();
        let mut elsewhere = ends.to;
        elsewhere.0[15] ^= 1;
        let others = [
            Ends { to: elsewhere, ..ends },
            Ends { to_port: ends.to_port ^ 1, ..ends },
            Ends { from_port: ends.from_port ^ 1, ..ends },
            Ends { from_port: ends.to_port, to_port: ends.from_port, ..ends },
        ];
        let says = |packet: &[u8], hook, socket| maps.reason_of(hook, socket, packet);
        assert_eq!(says(&ends.udp(), Hook::Veth, Socket::Inet), Reason::WitnessedReply);
        assert_eq!(says(&ends.tcp(SYN_ACK, 0), Hook::Veth, Socket::None), Reason::WitnessedReply);
        for other in others {
            for hook in Hook::OF_PACKETS {
                assert_eq!(says(&other.udp(), hook, Socket::Inet), Reason::NotAllowed, "{other:?}");
            }
            assert_eq!(says(&other.tcp(SYN_ACK, 0), Hook::Veth, Socket::None), Reason::NotAllowed);
            assert_eq!(says(&other.tcp(SYN_ACK, 0), Hook::Socket, Socket::Listening), Reason::NotAllowed);
        }
        // SCTP where UDP came in, and a source that is not the pod's.
        assert_eq!(says(&ends.sctp(), Hook::Veth, Socket::Inet), Reason::NotAllowed);
        let mut forged = ends;
        forged.from.0[15] ^= 1;
        assert_eq!(says(&forged.udp(), Hook::Veth, Socket::Inet), Reason::SpoofedSource);
    }
}

/// At the socket the pod is the one whose cgroup sends, at the veth the one behind the device.
#[test]
fn what_came_in_to_one_pod_is_not_another_ones_to_answer() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        maps.witnesses = [came_in(&maps, &ends.back().udp())].into();
        let twin = *maps.endpoint_mut();
        maps.endpoints.insert(POD + 1, twin);
        let other = Sender([1, 10, 20, POD + 1, 1000, 0], Socket::Inet, None);
        assert_eq!(maps.judge(&ends.udp()).verdict.reason, Reason::WitnessedReply);
        assert_eq!(maps.judge_from(other, &ends.udp(), ETH0).verdict.reason, Reason::NotAllowed);
        assert_eq!(maps.judge_veth(other, &ends.udp()).verdict.reason, Reason::WitnessedReply);
        maps.devices.insert(VETH, POD + 1);
        assert_eq!(maps.judge_veth(Sender::NESTED, &ends.udp()).verdict.reason, Reason::NotAllowed);
    }
}

#[test]
fn a_pod_that_is_closed_still_answers_but_not_one_that_cannot_be_read() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        maps.witnesses = [came_in(&maps, &ends.back().udp())].into();
        for flags in [0, FLAG_AUDIT] {
            for (state, reason) in [(STATE_INVALID, Reason::WitnessedReply), (9, Reason::BadEntry)] {
                (maps.endpoint_mut().state, maps.endpoint_mut().flags) = (state, flags);
                for hook in Hook::OF_PACKETS {
                    assert_eq!(maps.reason_of(hook, Socket::Inet, &ends.udp()), reason, "{state} {hook:?}");
                }
            }
        }
    }
}

#[test]
fn a_pod_that_is_not_known_yet_answers() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        maps.witnesses = [came_in(&maps, &ends.back().udp())].into();
        maps.endpoints.clear();
        for unknown in [0, UNKNOWN_POLICY] {
            maps.config.as_mut().unwrap().unknown = unknown;
            for hook in Hook::OF_PACKETS {
                assert_eq!(maps.reason_of(hook, Socket::Inet, &ends.udp()), Reason::WitnessedReply);
                assert_eq!(maps.reason_of(hook, Socket::Inet, &ends.sctp()), Reason::UnknownPod);
            }
        }
    }
}

/// What belongs to no pod answers nothing, not even what was written down for none.
#[test]
fn a_sender_that_is_in_no_cgroup_answers_nothing() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let (key, seen) = came_in(&maps, &ends.back().udp());
        maps.witnesses = [(key, Witness { cgroup: 0, ..seen })].into();
        let nobody = Sender::NOBODY.socket(Socket::Inet);
        assert_eq!(maps.judge_from(nobody, &ends.udp(), ETH0).verdict.reason, Reason::UnknownPod);
    }
}

#[test]
fn a_reply_is_allowed_not_audited() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        maps.endpoint_mut().flags = FLAG_AUDIT;
        assert_eq!(maps.judge(&ends.udp()).verdict.action, Action::Audit);
        maps.witnesses = [came_in(&maps, &ends.back().udp())].into();
        assert_eq!(maps.judge(&ends.udp()).verdict.action, Action::Allow);
    }
}

#[test]
fn what_begins_nothing_is_not_remembered() {
    for ends in Ends::answers() {
        let seen = |packet: &[u8]| witness::came_in(&flow(packet)).map(|half| half.entry(POD, 7));
        for flags in [SYN, SYN | 0xc0] {
            assert!(seen(&ends.tcp(flags, 0)).is_some(), "{flags}");
        }
        for flags in [0, ACK, SYN_ACK, RST, FIN, FIN | ACK] {
            assert_eq!(seen(&ends.tcp(flags, 0)), None, "{flags}");
        }
        let ask = if ends.from.is_v4() { 8 } else { 128 };
        for kind in 0..=255 {
            assert_eq!(seen(&ends.icmp(kind, ECHO)).is_some(), kind == ask, "type {kind}");
        }
        let (key, value) = seen(&ends.udp()).unwrap();
        assert_eq!((key.local, value.remote), (ends.to, ends.from));
        assert_eq!((value.local_port, value.remote_port), (ends.to_port, ends.from_port));
        assert_eq!((value.cgroup, value.seen, value.kind, value.protocol), (POD, 7, WITNESS_CAME_IN, 17));
    }
}

#[test]
fn slots_spread_and_depend_on_every_part() {
    let [ends, six] = Ends::answers();
    let slots = |ends: Ends, protocol| witness::slots(&ends.to, ends.to_port, ends.from_port, protocol);
    for choice in [witness::FIRST, witness::SECOND] {
        let mut seen = BTreeSet::new();
        for ends in [ends, six] {
            for port in 0..4096 {
                seen.insert(slots(Ends { to_port: 30_000 + port, ..ends }, 6)[choice]);
            }
        }
        // Drawn at random, 8192 flows would hit some 6450 of the 16384.
        assert!(seen.len() > 6200, "{}", seen.len());
        assert!(seen.iter().all(|slot| *slot < WITNESS_SLOTS));
        assert_ne!(slots(ends, 6)[choice], slots(ends, 17)[choice]);
        assert_ne!(slots(ends, 6)[choice], slots(Ends { from_port: 1, ..ends }, 6)[choice]);
        assert_ne!(slots(ends, 6)[choice], slots(six, 6)[choice]);
    }
}

/// What the programs do with a packet that comes in.
fn remember(maps: &mut Maps, half: &Half) -> Option<usize> {
    let [first, second] = [FIRST, SECOND].map(|choice| maps.witnesses.get(&half.key(choice)));
    let (_, new) = half.entry(POD, maps.now);
    let choice = place(&new, first, second)?;
    maps.witnesses.insert(half.key(choice), new);
    Some(choice)
}

/// Flows to one server by clients of its own.
fn clients(number: u16) -> impl Iterator<Item = Ends> {
    let [ends, _] = Ends::answers();
    (0..number).map(move |client| {
        let mut to = ends.to;
        to.0[14] = (client >> 4) as u8;
        Ends { to, to_port: 20_000 + client * 7, ..ends }
    })
}

/// A server whose clients are far away has many handshakes that are not complete; its table is full of older ones.
#[test]
fn handshakes_at_once_do_not_push_one_another_out() {
    let mut maps = Maps::new();
    let syn = |ends: Ends| witness::came_in(&flow(&ends.back().tcp(SYN, 0))).unwrap();
    for port in 1..=60_000 {
        let [ends, _] = Ends::answers();
        remember(&mut maps, &syn(Ends { to_port: port, ..ends }));
    }
    maps.now += 1_000_000_000;
    for ends in clients(1000) {
        remember(&mut maps, &syn(ends));
    }
    let lost = clients(1000)
        .filter(|ends| {
            let says = maps.reason_of(Hook::Socket, Socket::Listening, &ends.tcp(SYN_ACK, 0));
            says != Reason::WitnessedReply
        })
        .count();
    // By chance 1.2 of them; by one slot each some 30.
    assert!(lost <= 6, "{lost}");
}

/// Whoever asks from an address and port of a service that leads elsewhere has the answers go there, once netfilter has
/// forgotten the question.
#[test]
fn a_question_whose_answer_would_be_sent_on_is_not_remembered() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        maps.addresses.insert(ends.to, 7);
        let remembered = |maps: &Maps, packet: &[u8]| witness::arrived(maps, &flow(packet), POD).is_some();
        let asks = |ends: Ends| [ends.back().udp(), ends.back().sctp(), ends.back().tcp(SYN, 0)];
        let other = Ends { to_port: ends.to_port + 1, ..ends };
        for packet in asks(ends) {
            assert!(remembered(&maps, &packet), "it is an address like others");
        }
        for protocol in [17, 132, 6] {
            let at =
                Ports { protocol, verdict: VERDICT_ALLOW, rule: 0, low: ends.to_port, high: ends.to_port };
            maps.set_row(POLICY_SENT_ON, 7, &[at]);
            for (kind, packet) in [17, 132, 6].into_iter().zip(asks(ends)) {
                assert_eq!(remembered(&maps, &packet), kind != protocol, "{protocol} {kind}");
            }
            assert!(asks(other).iter().all(|packet| remembered(&maps, packet)));
        }
        // Who asks for an echo has no port; and what cannot be read counts.
        let all = Ports { protocol: PROTOCOL_ANY, verdict: VERDICT_ALLOW, rule: 0, low: 0, high: u16::MAX };
        for row in [all, Ports { verdict: 0, ..all }] {
            maps.set_row(POLICY_SENT_ON, 7, &[row]);
            assert!(!asks(ends).iter().any(|packet| remembered(&maps, packet)));
            assert!(remembered(&maps, &ends.back().echo(3)));
        }
    }
}

#[test]
fn a_flow_is_in_one_of_its_places_and_stays_there() {
    for ends in Ends::answers() {
        let half = witness::came_in(&flow(&ends.back().udp())).unwrap();
        let [first, second] = [FIRST, SECOND].map(|choice| half.key(choice));
        assert_ne!(first, second);
        let other =
            |age: u64, maps: &Maps| Witness { remote_port: 1, seen: maps.now - age, ..half.entry(POD, 0).1 };
        let mut maps = Maps::new();
        assert_eq!(remember(&mut maps, &half), Some(FIRST));
        assert_eq!(remember(&mut maps, &half), None, "it is known");
        maps.now += WITNESS_TTL / 8;
        assert_eq!(remember(&mut maps, &half), Some(FIRST), "it is known no more from long ago");
        // Others are in the first place: the second is free, then it is its own, then the older one goes.
        maps.witnesses = [(first, other(5, &maps))].into();
        assert_eq!(remember(&mut maps, &half), Some(SECOND));
        maps.witnesses.remove(&first);
        maps.now += WITNESS_TTL / 8;
        assert_eq!(remember(&mut maps, &half), Some(SECOND));
        assert_eq!(maps.witnesses.len(), 1);
        for (ages, expected) in [([5, 9], SECOND), ([9, 5], FIRST)] {
            let [one, two] = ages.map(|age| other(age, &maps));
            maps.witnesses = [(first, one), (second, two)].into();
            assert_eq!(remember(&mut maps, &half), Some(expected));
            assert_eq!(maps.reason_of(Hook::Veth, Socket::Inet, &ends.udp()), Reason::WitnessedReply);
        }
        // What stood before us will not be seen coming in again.
        let stood = Witness { kind: WITNESS_STOOD, seen: 0, ..other(0, &maps) };
        maps.witnesses = [(first, stood), (second, other(1, &maps))].into();
        assert_eq!(remember(&mut maps, &half), Some(SECOND));
        assert_eq!(maps.witnesses[&first], stood);
        // Another pod's, though it be the same flow, is another.
        maps.witnesses = [(first, Witness { cgroup: POD + 1, ..half.entry(POD, maps.now).1 })].into();
        assert_eq!(remember(&mut maps, &half), Some(SECOND));
    }
}

/// Netfilter in the pod leads it to the port of a sidecar, which is all that the accepted socket knows.
#[test]
fn a_connection_that_is_led_to_another_port_came_in_by_the_one_that_its_packets_have() {
    const SIDECAR: u16 = 15006;
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let accepted = Approval { source_port: SIDECAR, ..ends.kept(&maps) };
        let answer = flow(&ends.tcp(SYN_ACK, 0));
        let leads = |maps: &Maps, flow: &Flow, port| connection::leads_to(maps, flow, POD, port);
        assert_eq!(leads(&maps, &answer, SIDECAR), None, "nobody asked");
        let asked = connection::half(&ends.kept(&maps), WITNESS_CAME_IN);
        maps.witnesses = [asked.entry(POD, maps.now)].into();
        assert_eq!(connection::leads_to(&maps, &answer, POD + 1, SIDECAR), None, "another pod");
        assert_eq!(leads(&maps, &answer, ends.from_port), None, "it is the same port");
        for other in [ends.tcp(SYN, 0), ends.tcp(ACK, 0), ends.udp()] {
            assert_eq!(leads(&maps, &flow(&other), SIDECAR), None, "{other:02x?}");
        }
        let led = leads(&maps, &answer, SIDECAR).unwrap();
        let (key, seen) = led.entry(POD, maps.now);
        let seen = Witness { wire_port: ends.from_port, ..seen };
        assert_eq!(connection::came_in_to(&maps, &accepted), None);
        maps.witnesses.insert(key, seen);
        assert_eq!(connection::came_in_to(&maps, &accepted), Some((POD, ends.from_port)));
        assert_eq!(connection::came_in_to(&maps, &Approval { source_port: 1, ..accepted }), None);
        // It makes no reply of what the sidecar's port itself sends.
        let own = Ends { from_port: SIDECAR, ..ends };
        let reason = maps.reason_of(Hook::Socket, Socket::Listening, &own.tcp(SYN_ACK, 0));
        assert_eq!(reason, Reason::NotAllowed);
        // By another port a moment later it is written again; by the same it is not.
        let again = |wire_port| place(&Witness { wire_port, seen: seen.seen + 1, ..seen }, Some(&seen), None);
        assert_eq!((again(ends.from_port), again(1)), (None, Some(FIRST)));
        maps.now += WITNESS_TTL + 1;
        assert_eq!(connection::came_in_to(&maps, &accepted), None);
        assert_eq!(leads(&maps, &answer, SIDECAR), None);
    }
}

#[test]
fn a_connection_came_in_to_the_pod_where_its_syn_was_seen_in_either_place() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let kept = ends.kept(&maps);
        assert_eq!(connection::came_in_to(&maps, &kept), None);
        let half = witness::came_in(&flow(&ends.back().tcp(SYN, 0))).unwrap();
        for choice in [FIRST, SECOND] {
            let seen = half.entry(POD, maps.now).1;
            let mut says = |seen| {
                maps.witnesses = [(half.key(choice), seen)].into();
                connection::came_in_to(&maps, &kept)
            };
            assert_eq!(says(seen), Some((POD, kept.source_port)));
            assert_eq!(says(Witness { kind: WITNESS_CLOSED, ..seen }), None);
            assert_eq!(says(Witness { remote_port: 1, ..seen }), None);
            assert_eq!(says(Witness { protocol: 17, ..seen }), None);
            assert_eq!(says(Witness { seen: seen.seen - WITNESS_TTL - 1, ..seen }), None);
            // The pod that had the address before.
            let other = Witness { cgroup: POD + 1, seen: seen.seen - 1, ..seen };
            maps.witnesses = [(half.key(choice), seen), (half.key(SECOND - choice), other)].into();
            assert_eq!(connection::came_in_to(&maps, &kept), Some((POD, kept.source_port)));
        }
    }
}
