//! Kept approvals: a socket's next packet of the same flow passes at once, and anything that differs is judged afresh.

mod support;

use egress_common::wire::{
    ABI, APPROVAL_AUDIT, APPROVAL_CAME_IN, APPROVAL_LOCKED, APPROVAL_LOOPBACK, Addr, Approval, Config,
    DATAGRAM_TTL, FLAG_AUDIT, STATE_UNSELECTED, UNKNOWN_ALLOW, WITNESS_STOOD,
};
use egress_common::{Action, Decision, Hook, Reason, Socket};
use support::packets::{ACK, Ends, SYN, came_in, connection};
use support::{ETH0, LO, Maps, PEER_V4, POD, Sender, V4, VETH, meta, tcp4};

/// An approval of a flow that no row allows, so that it shows whether it was taken or judged afresh.
fn kept(maps: &Maps, ends: Ends) -> Approval {
    Approval { reason: Reason::Allowed as u8, ..ends.kept(maps) }
}

fn judge(maps: &Maps, hook: Hook, kept: Approval, packet: &[u8]) -> Decision {
    let sender = Sender::NESTED.keeping(Some(kept));
    match hook {
        Hook::Socket | Hook::Connect => maps.judge_from(sender, packet, ETH0),
        Hook::Veth => maps.judge_veth(sender, packet),
    }
}

#[track_caller]
fn taken(decision: Decision, reason: Reason) {
    assert_eq!((decision.verdict.action, decision.verdict.reason), (Action::Allow, reason), "{decision:?}");
    assert!(decision.kept, "{decision:?}");
}

#[track_caller]
fn afresh(decision: Decision) {
    assert_eq!(decision.verdict.reason, Reason::NotAllowed, "{decision:?}");
    assert_eq!((decision.verdict.action, decision.kept), (Action::Deny, false), "{decision:?}");
}

#[test]
fn the_same_flow_passes_and_each_field_that_differs_is_judged_afresh() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        let own = kept(&maps, ends);
        let flip = |addr: Addr, at: usize| {
            let mut other = addr;
            other.0[at] ^= 1;
            other
        };
        for hook in Hook::OF_PACKETS {
            let packet = ends.tcp(ACK, 100);
            let passed = judge(&maps, hook, own, &packet);
            taken(passed, Reason::Allowed);
            let mut others = vec![
                Approval { revision: own.revision + 1, ..own },
                Approval { revision: own.revision - 1, ..own },
                Approval { revision: own.revision | 1 << 40, ..own },
                Approval { source_port: own.source_port ^ 1, ..own },
                Approval { destination_port: own.destination_port ^ 0x100, ..own },
                Approval { protocol: 17, ..own },
                Approval { version: 10 - own.version, ..own },
                Approval { version: 0, ..own },
                Approval { flags: APPROVAL_LOOPBACK, ..own },
                Approval::default(),
            ];
            // What version 4 says of the rest of the address need not be said again.
            for at in if ends.from.is_v4() { 12..16 } else { 0..16 } {
                others.push(Approval { source: flip(own.source, at), ..own });
                others.push(Approval { destination: flip(own.destination, at), ..own });
            }
            for other in others {
                afresh(judge(&maps, hook, other, &packet));
            }
        }
    }
}

#[test]
fn each_field_of_the_packet_that_differs_is_judged_afresh() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        let own = kept(&maps, ends);
        let mut elsewhere = ends;
        elsewhere.to.0[15] ^= 1;
        for hook in Hook::OF_PACKETS {
            taken(judge(&maps, hook, own, &ends.tcp(SYN | ACK, 0)), Reason::Allowed);
            // A connection that begins is another one.
            afresh(judge(&maps, hook, own, &ends.tcp(SYN, 0)));
            afresh(judge(&maps, hook, own, &ends.udp()));
            afresh(judge(&maps, hook, own, &ends.sctp()));
            afresh(judge(&maps, hook, own, &elsewhere.tcp(ACK, 0)));
            afresh(judge(&maps, hook, own, &Ends { to_port: 1, ..ends }.tcp(ACK, 0)));
            afresh(judge(&maps, hook, own, &Ends { from_port: 1, ..ends }.tcp(ACK, 0)));
            // A source of another's is found out when it is judged.
            let mut forged = ends;
            forged.from.0[15] ^= 1;
            let forged = judge(&maps, hook, own, &forged.tcp(ACK, 0));
            assert_eq!(forged.verdict.reason, Reason::SpoofedSource, "{forged:?}");
        }
    }
}

#[test]
fn what_cannot_be_read_to_its_end_is_never_taken_for_the_same_flow() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        for (protocol, whole) in [(6, ends.tcp(ACK, 0)), (17, ends.udp()), (132, ends.sctp())] {
            let own = Approval { protocol, given: maps.now, ..kept(&maps, ends) };
            // What comes after the header of a datagram is not asked for.
            let header = if protocol == 6 { whole.len() } else { whole.len() - 4 };
            for hook in Hook::OF_PACKETS {
                taken(judge(&maps, hook, own, &whole), Reason::Allowed);
                for len in 0..header {
                    let decision = judge(&maps, hook, own, &whole[..len]);
                    assert_eq!(decision.verdict.action, Action::Deny, "{len} bytes: {decision:?}");
                }
            }
        }
    }
    let maps = Maps::new();
    let [ends, _] = Ends::answers();
    let own = kept(&maps, ends);
    for hook in Hook::OF_PACKETS {
        let mut packet = ends.tcp(ACK, 0);
        packet[7] = 1;
        assert_eq!(judge(&maps, hook, own, &packet).verdict.reason, Reason::Fragment);
        packet = ends.tcp(ACK, 20);
        packet[0] = 0x46;
        assert_eq!(judge(&maps, hook, own, &packet).verdict.reason, Reason::Ipv4Options);
        // The wrong type of frame.
        let packet = ends.tcp(ACK, 0);
        let index = if hook == Hook::Veth { VETH } else { ETH0 };
        let frame = egress_common::Meta { ethertype: 0x86dd, ..meta(&packet, hook, index) };
        let sender = Sender::NESTED.keeping(Some(own));
        let decision = egress_common::decide(&maps, &sender, packet.as_slice(), frame);
        assert_eq!(decision.verdict.reason, Reason::UnknownIpVersion);
    }
}

#[test]
fn an_approval_is_void_without_a_configuration_of_this_version() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let own = kept(&maps, ends);
        for config in [None, Some(Config { abi: ABI + 1, ..maps.config.unwrap() })] {
            maps.config = config;
            for hook in Hook::OF_PACKETS {
                let decision = judge(&maps, hook, own, &ends.tcp(ACK, 0));
                assert_eq!(decision.verdict.reason, Reason::NotReady);
            }
        }
    }
}

#[test]
fn only_what_passed_for_a_reason_that_lasts_is_taken() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        for hook in Hook::OF_PACKETS {
            for number in 0..=255 {
                let own = Approval { reason: number, ..kept(&maps, ends) };
                let decision = judge(&maps, hook, own, &ends.tcp(ACK, 0));
                let socket_only =
                    matches!(Reason::from_wire(number), Some(Reason::Unselected | Reason::UnknownPodAllowed));
                match Reason::from_wire(number) {
                    Some(reason @ (Reason::Allowed | Reason::WitnessedReply | Reason::Loopback)) => {
                        taken(decision, reason);
                    }
                    // Who may send anything may forge its source, too: the veth looks.
                    Some(reason) if socket_only && hook == Hook::Socket => taken(decision, reason),
                    _ => afresh(decision),
                }
            }
        }
    }
}

/// The veth takes the socket's word for its own pod alone.
#[test]
fn the_veth_takes_its_own_pods_approvals_only() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let own = kept(&maps, ends);
        let packet = ends.tcp(ACK, 0);
        for cgroup in [0, POD + 1, POD | 1 << 32, 1000] {
            afresh(judge(&maps, Hook::Veth, Approval { cgroup, ..own }, &packet));
        }
        // Where it is another pod's device.
        maps.devices.insert(VETH, POD + 1);
        let twin = *maps.endpoint_mut();
        maps.endpoints.insert(POD + 1, twin);
        afresh(judge(&maps, Hook::Veth, own, &packet));
        taken(judge(&maps, Hook::Veth, Approval { cgroup: POD + 1, ..own }, &packet), Reason::Allowed);
        // Where it is nobody's.
        for nobody in [None, Some(0)] {
            maps.devices.clear();
            maps.devices.extend(nobody.map(|cgroup| (VETH, cgroup)));
            for cgroup in [0, POD] {
                let decision = judge(&maps, Hook::Veth, Approval { cgroup, ..own }, &packet);
                assert_eq!(decision.verdict.reason, Reason::NotReady);
            }
        }
    }
}

#[test]
fn what_left_by_loopback_is_no_word_for_a_wire_and_the_other_way_round() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        let packet = ends.tcp(ACK, 0);
        let on_wire = kept(&maps, ends);
        let on_lo = Approval { flags: APPROVAL_LOOPBACK, reason: Reason::Loopback as u8, ..on_wire };
        let at = |kept, index| maps.judge_from(Sender::NESTED.keeping(Some(kept)), &packet, index);
        taken(at(on_wire, ETH0), Reason::Allowed);
        taken(at(on_lo, LO), Reason::Loopback);
        afresh(at(on_wire, LO));
        afresh(at(on_lo, ETH0));
        afresh(judge(&maps, Hook::Veth, on_lo, &packet));
    }
}

#[test]
fn the_socket_hook_reports_each_audited_packet_and_the_veth_does_not_again() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let own = Approval { flags: APPROVAL_AUDIT, ..kept(&maps, ends) };
        let packet = ends.tcp(ACK, 0);
        taken(judge(&maps, Hook::Veth, own, &packet), Reason::Allowed);
        afresh(judge(&maps, Hook::Socket, own, &packet));
        maps.endpoint_mut().flags = FLAG_AUDIT;
        let decision = judge(&maps, Hook::Socket, own, &packet);
        assert_eq!((decision.verdict.action, decision.kept), (Action::Audit, false));
        // Other flags are no obstacle.
        for flags in [APPROVAL_CAME_IN, APPROVAL_LOCKED, APPROVAL_CAME_IN | APPROVAL_LOCKED] {
            taken(judge(&maps, Hook::Socket, Approval { flags, ..own }, &packet), Reason::Allowed);
        }
    }
}

/// What is kept is what passed, and it is taken for exactly that afterwards.
#[test]
fn what_is_kept_is_taken_for_the_same_packet() {
    let mut maps = Maps::new();
    let packet = tcp4(V4, PEER_V4, 443);
    let at = |index| meta(&packet, Hook::Socket, index);
    let first = maps.judge(&packet);
    let own = first.approval(at(ETH0), 7).unwrap();
    assert_eq!((own.flags, own.reason, own.cgroup), (0, Reason::Allowed as u8, POD));
    for hook in Hook::OF_PACKETS {
        taken(judge(&maps, hook, own, &packet), Reason::Allowed);
    }
    // The veth keeps nothing, and what is denied or unreadable is not kept.
    let veth = maps.judge_veth(Sender::NESTED, &packet);
    assert_eq!(veth.verdict.reason, Reason::Allowed);
    assert_eq!(veth.approval(meta(&packet, Hook::Veth, VETH), 7), None);
    let denied = tcp4(V4, PEER_V4, 80);
    assert_eq!(maps.judge(&denied).approval(at(ETH0), 7), None);
    let local = tcp4(V4, V4, 80);
    let own = maps.judge_from(Sender::NESTED, &local, LO).approval(at(LO), 7).unwrap();
    assert_eq!((own.flags, own.reason), (APPROVAL_LOOPBACK, Reason::Loopback as u8));
    // Audited: kept as allowed, with a mark.
    maps.endpoint_mut().flags = FLAG_AUDIT;
    let own = maps.judge(&denied).approval(at(ETH0), 7).unwrap();
    assert_eq!((own.flags, own.reason), (APPROVAL_AUDIT, Reason::Allowed as u8));
    let mut cut = tcp4(V4, PEER_V4, 80);
    cut.truncate(30);
    let decision = maps.judge(&cut);
    assert_eq!((decision.verdict.action, decision.approval(at(ETH0), 7)), (Action::Audit, None));
    // Under a lock it says so.
    maps.endpoint_mut().flags = 0;
    maps.endpoint_mut().lock = 5;
    let own = maps.judge(&packet).approval(at(ETH0), 7).unwrap();
    assert_eq!(own.flags, APPROVAL_LOCKED);
}

/// What the pod does by its own right begins something; what it does not send, or not in its own name, and an answer do not.
#[test]
fn who_sends_by_its_own_right_begins() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let begins = |maps: &Maps, index, packet: &[u8]| {
            maps.judge_from(Sender::NESTED, packet, index).begins(meta(packet, Hook::Socket, index))
        };
        let packet = ends.udp();
        assert!(!begins(&maps, ETH0, &packet), "denied");
        maps.witnesses.extend([came_in(&maps, &ends.back().udp())]);
        assert_eq!(maps.judge(&packet).verdict.reason, Reason::WitnessedReply);
        assert!(!begins(&maps, ETH0, &packet), "an answer");
        maps.witnesses.clear();
        maps.endpoint_mut().flags = FLAG_AUDIT;
        assert!(begins(&maps, ETH0, &packet) && !begins(&maps, LO, &packet));
        let mut other = ends;
        other.from.0[15] ^= 1;
        assert!(!begins(&maps, ETH0, &other.udp()), "somebody else's");
        maps.endpoint_mut().state = STATE_UNSELECTED;
        assert!(begins(&maps, ETH0, &packet));
    }
}

/// The socket of a connection that came in remembers it; what answers a datagram asks the table each time.
#[test]
fn of_answers_those_on_a_connection_are_kept() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let flags = |maps: &Maps, packet: &[u8], reason| {
            let decision = maps.judge(packet);
            assert_eq!(decision.verdict.reason, reason);
            decision.approval(meta(packet, Hook::Socket, ETH0), maps.now).map(|kept| kept.flags)
        };
        maps.witnesses.extend([ends.back().udp(), ends.back().sctp()].map(|packet| came_in(&maps, &packet)));
        maps.witnesses.extend([connection(&maps, ends, WITNESS_STOOD)]);
        assert_eq!(flags(&maps, &ends.tcp(ACK, 0), Reason::WitnessedReply), Some(APPROVAL_CAME_IN));
        assert_eq!(flags(&maps, &ends.udp(), Reason::WitnessedReply), None);
        assert_eq!(flags(&maps, &ends.sctp(), Reason::WitnessedReply), None);
        // What may be sent anyway is kept, and did not come in.
        maps.endpoint_mut().state = STATE_UNSELECTED;
        for packet in [ends.tcp(ACK, 0), ends.udp(), ends.sctp()] {
            assert_eq!(flags(&maps, &packet, Reason::Unselected), Some(0));
        }
    }
}

#[test]
fn the_veth_looks_itself_at_what_nobody_judged() {
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        let packet = ends.tcp(ACK, 0);
        let own = Approval { reason: Reason::Unselected as u8, ..kept(&maps, ends) };
        maps.endpoint_mut().state = STATE_UNSELECTED;
        taken(judge(&maps, Hook::Socket, own, &packet), Reason::Unselected);
        let decision = judge(&maps, Hook::Veth, own, &packet);
        let (reason, kept, forged) = (decision.verdict.reason, decision.kept, decision.forged);
        assert_eq!((reason, kept, forged), (Reason::Unselected, false, false));
        // A forged source is seen, whatever the socket says.
        let mut other = ends;
        other.from.0[15] ^= 1;
        let own = Approval { source: other.from, ..own };
        assert!(judge(&maps, Hook::Veth, own, &other.tcp(ACK, 0)).forged);
        // As is that of a pod that is not known.
        maps.endpoints.clear();
        maps.config.as_mut().unwrap().unknown = UNKNOWN_ALLOW;
        let own = Approval { reason: Reason::UnknownPodAllowed as u8, ..own };
        let decision = judge(&maps, Hook::Veth, own, &other.tcp(ACK, 0));
        let (reason, kept, forged) = (decision.verdict.reason, decision.kept, decision.forged);
        assert_eq!((reason, kept, forged), (Reason::UnknownPodAllowed, false, true));
    }
}

#[test]
fn a_pod_without_rows_keeps_what_the_proxy_was_allowed() {
    // Under a lock the socket's word counts at the veth, where the container may not be seen any more.
    for ends in Ends::answers() {
        let mut maps = Maps::new();
        maps.endpoint_mut().lock = 5;
        let own = Approval { flags: APPROVAL_LOCKED, ..kept(&maps, ends) };
        let packet = ends.tcp(ACK, 0);
        let forwarded = Sender::NOBODY.socket(Socket::Inet);
        taken(maps.judge_veth(forwarded.keeping(Some(own)), &packet), Reason::Allowed);
        let without = maps.judge_veth(forwarded, &packet);
        assert_eq!(without.verdict.reason, Reason::SidecarBypass);
    }
}

/// A connection that came in is known by its socket, whatever the revision and the table say.
#[test]
fn a_socket_that_was_called_may_answer() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        let own = Approval { revision: 0, flags: APPROVAL_CAME_IN, ..ends.kept(&maps) };
        let says = |kept, packet: &[u8], hook| {
            let sender = Sender::NESTED.keeping(Some(kept));
            let decision = if hook == Hook::Veth {
                maps.judge_veth(sender, packet)
            } else {
                maps.judge_from(sender, packet, ETH0)
            };
            decision.verdict.reason
        };
        let mut elsewhere = ends.to;
        elsewhere.0[15] ^= 1;
        for hook in Hook::OF_PACKETS {
            assert_eq!(says(own, &ends.tcp(ACK, 500), hook), Reason::WitnessedReply);
            assert_eq!(says(own, &ends.tcp(SYN, 0), hook), Reason::NotAllowed);
            assert_eq!(says(own, &ends.udp(), hook), Reason::NotAllowed);
            let others = [
                Approval { flags: !APPROVAL_CAME_IN, ..own },
                Approval { cgroup: POD + 1, ..own },
                Approval { cgroup: 0, ..own },
                Approval { destination: elsewhere, ..own },
                Approval { source: elsewhere, ..own },
                Approval { source_port: 1, ..own },
                Approval { destination_port: 1, ..own },
                Approval { protocol: 17, ..own },
                Approval { version: 10 - own.version, ..own },
            ];
            for other in others {
                assert_eq!(says(other, &ends.tcp(ACK, 500), hook), Reason::NotAllowed, "{other:?}");
            }
        }
    }
}

/// A socket that was called can be disconnected (`connect` to `AF_UNSPEC`), and then call back itself.
#[test]
fn a_kept_reply_does_not_begin_a_connection() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        let own =
            Approval { reason: Reason::WitnessedReply as u8, flags: APPROVAL_CAME_IN, ..kept(&maps, ends) };
        for hook in Hook::OF_PACKETS {
            for flags in [ACK, SYN | ACK, 0] {
                taken(judge(&maps, hook, own, &ends.tcp(flags, 0)), Reason::WitnessedReply);
            }
            for more in [0, 0xc0, 8] {
                afresh(judge(&maps, hook, own, &ends.tcp(SYN | more, 0)));
            }
        }
    }
}

#[test]
fn a_kept_approval_is_no_word_for_a_tagged_frame() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        let own = kept(&maps, ends);
        let packet = ends.tcp(ACK, 0);
        let sender = Sender::NESTED.keeping(Some(own));
        let frame = |vlan| egress_common::Meta { vlan, ..meta(&packet, Hook::Veth, VETH) };
        let judge = |vlan| egress_common::decide(&maps, &sender, packet.as_slice(), frame(vlan));
        taken(judge(false), Reason::Allowed);
        assert_eq!(judge(true).verdict.reason, Reason::NotIp, "{:?}", judge(true));
    }
}

/// Who began a flow of datagrams is to stay known, which takes a fresh look now and then.
#[test]
fn datagrams_are_judged_afresh_after_some_time() {
    for ends in Ends::answers() {
        let maps = Maps::new();
        for (protocol, packet) in [(17, ends.udp()), (132, ends.sctp()), (6, ends.tcp(ACK, 1))] {
            for hook in Hook::OF_PACKETS {
                let own = Approval { protocol, ..kept(&maps, ends) };
                let given = |age| Approval { given: maps.now - age, ..own };
                taken(judge(&maps, hook, given(DATAGRAM_TTL - 1), &packet), Reason::Allowed);
                // Another processor's clock may be ahead of ours.
                taken(judge(&maps, hook, Approval { given: maps.now + 5, ..own }, &packet), Reason::Allowed);
                match protocol {
                    6 => taken(judge(&maps, hook, given(DATAGRAM_TTL), &packet), Reason::Allowed),
                    _ => afresh(judge(&maps, hook, given(DATAGRAM_TTL), &packet)),
                }
            }
        }
    }
}
