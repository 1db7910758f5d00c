//! Datagrams: who began is remembered, so that answers to the pod ask it for nothing.

mod support;

use egress_common::wire::{BEGAN_TTL, WITNESS_BEGAN, WITNESS_CAME_IN, WITNESS_TTL};
use egress_common::{Hook, Reason, Socket, witness};
use support::packets::{ACK, Ends, flow};
use support::{Maps, POD};

/// What an answer of the other end to datagrams of the pod is remembered as: no question.
#[test]
fn an_answer_to_what_the_pod_began_asks_for_nothing() {
    for ends in Ends::answers() {
        for (out, back) in [(ends.udp(), ends.back().udp()), (ends.sctp(), ends.back().sctp())] {
            let mut maps = Maps::new();
            assert!(witness::begins(&maps, &flow(&out), POD));
            maps.witnesses.extend([witness::begun(&flow(&out)).entry(POD, maps.now)]);
            assert_eq!(maps.reason_of(Hook::Veth, Socket::Inet, &out), Reason::NotAllowed);
            // Answers go on for longer than anything is remembered without.
            for _ in 0..10 {
                maps.now += BEGAN_TTL - 1;
                let (key, seen) = witness::arrived(&maps, &flow(&back), POD).unwrap().entry(POD, maps.now);
                assert_eq!((seen.kind, key.began), (WITNESS_BEGAN, 1));
                maps.witnesses.insert(key, seen);
                for hook in Hook::OF_PACKETS {
                    assert_eq!(maps.reason_of(hook, Socket::Inet, &out), Reason::NotAllowed);
                }
            }
            // After a silence nobody knows who began before.
            maps.now += BEGAN_TTL;
            maps.witnesses
                .extend(witness::arrived(&maps, &flow(&back), POD).map(|seen| seen.entry(POD, maps.now)));
            for hook in Hook::OF_PACKETS {
                assert_eq!(maps.reason_of(hook, Socket::Inet, &out), Reason::WitnessedReply);
            }
        }
    }
}

/// A server that may send to its client anyway has not begun.
#[test]
fn who_is_asked_first_does_not_begin_by_answering() {
    for ends in Ends::answers() {
        let (out, back) = (ends.udp(), ends.back().udp());
        let mut maps = Maps::new();
        for _ in 0..10 {
            maps.now += WITNESS_TTL - 1;
            let (key, seen) = witness::arrived(&maps, &flow(&back), POD).unwrap().entry(POD, maps.now);
            assert_eq!((seen.kind, key.began), (WITNESS_CAME_IN, 0));
            maps.witnesses.insert(key, seen);
            assert!(!witness::begins(&maps, &flow(&out), POD));
            assert_eq!(maps.reason_of(Hook::Veth, Socket::Inet, &out), Reason::WitnessedReply);
        }
        // It is another pod's flow that came in, or another one of this pod.
        assert!(witness::begins(&maps, &flow(&out), POD + 1));
        let other = Ends { from_port: 9, ..ends };
        assert!(witness::begins(&maps, &flow(&other.udp()), POD));
        // Who began a connection is seen in its packets.
        assert!(!witness::begins(&maps, &flow(&ends.tcp(ACK, 0)), POD));
    }
}
