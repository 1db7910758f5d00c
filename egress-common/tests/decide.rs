//! The verdict function against hand-made maps: each step of it, and a passing twin for each deny.

mod support;

use egress_common::wire::{
    Addr, Cidr, Config, Endpoint, FLAG_AUDIT, FLAG_HOST_NETWORK, IDENTITY_WORLD, PROTOCOL_ANY, PROXIES,
    Ports, Proxy, ROW_ENTRIES, RowKey, STATE_INVALID, STATE_ISOLATED, STATE_UNSELECTED, UNKNOWN_ALLOW,
    UNKNOWN_POLICY, VERDICT_ALLOW, VERDICT_AUDIT,
};
use egress_common::{Action, Decision, Hook, Meta, Reason, Socket, decide};
use support::{ETH0, LO, Maps, PEER, PEER_V4, PEER_V6, POD, POLICY, Sender, V4, V6, ipv4, tcp4, tcp6};

const OUTSIDE: [u8; 4] = [198, 51, 100, 10];

#[track_caller]
fn expect(decision: Decision, action: Action, reason: Reason) {
    assert_eq!((decision.verdict.action, decision.verdict.reason), (action, reason), "{decision:?}");
}

fn any(verdict: u8) -> Ports {
    Ports { protocol: PROTOCOL_ANY, verdict, rule: 0, low: 0, high: 0 }
}

#[test]
fn a_row_allows_its_port_and_no_other() {
    let maps = Maps::new();
    expect(maps.judge(&tcp4(V4, PEER_V4, 443)), Action::Allow, Reason::Allowed);
    expect(maps.judge(&tcp6(V6, PEER_V6, 443)), Action::Allow, Reason::Allowed);
    for port in [0, 442, 444, 65535] {
        expect(maps.judge(&tcp4(V4, PEER_V4, port)), Action::Deny, Reason::NotAllowed);
    }
    let mut udp = tcp4(V4, PEER_V4, 443);
    udp[9] = 17;
    expect(maps.judge(&udp), Action::Deny, Reason::NotAllowed);
}

#[test]
fn the_verdict_names_rule_policy_identity_and_revision() {
    let decision = Maps::new().judge(&tcp4(V4, PEER_V4, 443));
    assert_eq!((decision.verdict.rule, decision.policy, decision.identity), (3, POLICY, PEER));
    assert_eq!((decision.cgroup, decision.revision), (POD, 9));
}

#[test]
fn pods_are_found_at_both_depths() {
    let maps = Maps::new();
    expect(maps.judge_from(Sender::DIRECT, &tcp4(V4, PEER_V4, 443), ETH0), Action::Allow, Reason::Allowed);
    expect(
        maps.judge_from(Sender::STRANGER, &tcp4(V4, PEER_V4, 443), ETH0),
        Action::Deny,
        Reason::UnknownPod,
    );
    assert_eq!(maps.judge_from(Sender::STRANGER, &tcp4(V4, PEER_V4, 443), ETH0).cgroup, 77);
    // A process in the pod root itself is in no pod.
    expect(
        maps.judge_from(Sender([1, 10, 0, 0, 0, 0], Socket::Inet, None), &tcp4(V4, PEER_V4, 443), ETH0),
        Action::Deny,
        Reason::UnknownPod,
    );
}

#[test]
fn an_address_that_no_map_knows_is_the_world() {
    let mut maps = Maps::new();
    let decision = maps.judge(&tcp4(V4, OUTSIDE, 443));
    expect(decision, Action::Deny, Reason::NotAllowed);
    assert_eq!(decision.identity, IDENTITY_WORLD);
    maps.set_row(POLICY, IDENTITY_WORLD, &[any(VERDICT_ALLOW)]);
    expect(maps.judge(&tcp4(V4, OUTSIDE, 443)), Action::Allow, Reason::Allowed);
}

#[test]
fn the_exact_address_comes_before_the_longest_prefix() {
    let mut maps = Maps::new();
    let cidr = |bits, addr| Cidr { bits, addr: Addr::v4(addr) };
    maps.cidrs.insert(cidr(96 + 8, [198, 0, 0, 0]), 1001);
    maps.cidrs.insert(cidr(96 + 24, [198, 51, 100, 0]), 1002);
    maps.set_row(POLICY, 1002, &[any(VERDICT_ALLOW)]);
    expect(maps.judge(&tcp4(V4, OUTSIDE, 1)), Action::Allow, Reason::Allowed);
    expect(maps.judge(&tcp4(V4, [198, 51, 101, 1], 1)), Action::Deny, Reason::NotAllowed);
    maps.addresses.insert(Addr::v4(OUTSIDE), 1003);
    expect(maps.judge(&tcp4(V4, OUTSIDE, 1)), Action::Deny, Reason::NotAllowed);
}

#[test]
fn loopback_passes_on_lo_only() {
    let maps = Maps::new();
    let local = tcp4(V4, [127, 0, 0, 1], 15001);
    expect(maps.judge_from(Sender::NESTED, &local, LO), Action::Allow, Reason::Loopback);
    expect(maps.judge(&local), Action::Deny, Reason::MartianAddress);
    let mut six = [0; 16];
    six[15] = 1;
    expect(maps.judge_from(Sender::NESTED, &tcp6(V6, six, 1), LO), Action::Allow, Reason::Loopback);
    expect(maps.judge(&tcp6(V6, six, 1)), Action::Deny, Reason::MartianAddress);
    // The pod itself, also as the answer of a redirect whose source is the outside host.
    expect(maps.judge_from(Sender::NESTED, &tcp4(OUTSIDE, V4, 1), LO), Action::Allow, Reason::Loopback);
    // Another destination forced out of lo can be forwarded by the pod: judged like any other.
    expect(maps.judge_from(Sender::NESTED, &tcp4(V4, OUTSIDE, 1), LO), Action::Deny, Reason::NotAllowed);
    expect(maps.judge_from(Sender::STRANGER, &local, LO), Action::Allow, Reason::Loopback);
}

#[test]
fn forged_sources_are_denied_but_for_host_network() {
    let mut maps = Maps::new();
    expect(maps.judge(&tcp4([10, 244, 1, 6], PEER_V4, 443)), Action::Deny, Reason::SpoofedSource);
    expect(maps.judge(&tcp6([7; 16], PEER_V6, 443)), Action::Deny, Reason::SpoofedSource);
    maps.endpoint_mut().flags = FLAG_HOST_NETWORK;
    expect(maps.judge(&tcp4([10, 244, 1, 6], PEER_V4, 443)), Action::Allow, Reason::Allowed);
}

#[test]
fn a_pod_without_an_address_of_a_family_sends_nothing_in_it() {
    let mut maps = Maps::new();
    maps.endpoint_mut().v4 = Addr::default();
    expect(maps.judge(&tcp4(V4, PEER_V4, 443)), Action::Deny, Reason::SpoofedSource);
    expect(maps.judge(&tcp4([0; 4], PEER_V4, 443)), Action::Deny, Reason::SpoofedSource);
    expect(maps.judge(&tcp6(V6, PEER_V6, 443)), Action::Allow, Reason::Allowed);
}

#[test]
fn a_pod_whose_addresses_are_not_known_yet_is_judged_by_its_rows_alone() {
    let mut maps = Maps::new();
    maps.endpoint_mut().v4 = Addr::default();
    maps.endpoint_mut().v6 = Addr::default();
    expect(maps.judge(&tcp4(V4, PEER_V4, 443)), Action::Allow, Reason::Allowed);
    expect(maps.judge(&tcp4(V4, OUTSIDE, 443)), Action::Deny, Reason::NotAllowed);
}

#[test]
fn addresses_that_may_not_be_on_a_wire_are_denied() {
    let mut maps = Maps::new();
    maps.set_row(POLICY, IDENTITY_WORLD, &[any(VERDICT_ALLOW)]);
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 198, 51, 100, 10]);
    expect(maps.judge(&tcp6(V6, mapped, 443)), Action::Deny, Reason::MartianAddress);
    expect(maps.judge(&tcp6(V6, [0; 16], 443)), Action::Deny, Reason::MartianAddress);
    expect(maps.judge(&tcp4(V4, [0, 0, 0, 0], 443)), Action::Deny, Reason::MartianAddress);
    expect(maps.judge(&tcp4(V4, OUTSIDE, 443)), Action::Allow, Reason::Allowed);
}

#[test]
fn unselected_pods_are_not_touched_whatever_they_send() {
    let mut maps = Maps::new();
    maps.endpoint_mut().state = STATE_UNSELECTED;
    expect(maps.judge(&[0xff]), Action::Allow, Reason::Unselected);
    expect(maps.judge(&tcp4([1, 2, 3, 4], OUTSIDE, 443)), Action::Allow, Reason::Unselected);
}

#[test]
fn invalid_and_unreadable_states_deny_all_but_loopback() {
    for (state, reason) in
        [(STATE_INVALID, Reason::InvalidPolicy), (0, Reason::BadEntry), (99, Reason::BadEntry)]
    {
        let mut maps = Maps::new();
        maps.endpoint_mut().state = state;
        maps.endpoint_mut().flags = FLAG_AUDIT;
        expect(maps.judge(&tcp4(V4, PEER_V4, 443)), Action::Deny, reason);
        expect(
            maps.judge_from(Sender::NESTED, &tcp4(V4, [127, 0, 0, 1], 1), LO),
            Action::Allow,
            Reason::Loopback,
        );
    }
}

#[test]
fn without_a_configuration_of_this_version_all_is_denied() {
    let mut maps = Maps::new();
    let packet = tcp4(V4, PEER_V4, 443);
    maps.config = Some(Config { abi: egress_common::wire::ABI + 1, ..maps.config.unwrap() });
    expect(maps.judge(&packet), Action::Deny, Reason::NotReady);
    maps.config = Some(Config::default());
    expect(maps.judge(&packet), Action::Deny, Reason::NotReady);
    maps.config = None;
    expect(maps.judge(&packet), Action::Deny, Reason::NotReady);
}

#[test]
fn unknown_pods_follow_the_setting() {
    let mut maps = Maps::new();
    let judge = |maps: &Maps, to| maps.judge_from(Sender::STRANGER, &tcp4([9, 9, 9, 9], to, 80), ETH0);
    maps.set_row(500, PEER, &[any(VERDICT_ALLOW)]);
    let config = maps.config.unwrap();
    maps.config = Some(Config { unknown: UNKNOWN_POLICY, unknown_policy: 500, ..config });
    expect(judge(&maps, PEER_V4), Action::Allow, Reason::UnknownPodAllowed);
    expect(judge(&maps, OUTSIDE), Action::Deny, Reason::UnknownPod);
    maps.config = Some(Config { unknown: UNKNOWN_ALLOW, ..config });
    expect(judge(&maps, OUTSIDE), Action::Allow, Reason::UnknownPodAllowed);
    maps.config = Some(Config { unknown: 77, ..config });
    expect(judge(&maps, PEER_V4), Action::Deny, Reason::UnknownPod);
}

#[test]
fn audit_passes_what_would_be_denied_and_says_why() {
    let mut maps = Maps::new();
    maps.endpoint_mut().flags = FLAG_AUDIT;
    expect(maps.judge(&tcp4(V4, OUTSIDE, 443)), Action::Audit, Reason::NotAllowed);
    expect(maps.judge(&tcp4([1, 1, 1, 1], PEER_V4, 443)), Action::Audit, Reason::SpoofedSource);
    expect(maps.judge(&ipv4(47, V4, PEER_V4, &[0; 8])), Action::Audit, Reason::Tunnel);
    expect(maps.judge(&tcp4(V4, PEER_V4, 443)), Action::Allow, Reason::Allowed);
}

#[test]
fn a_rule_can_audit_where_the_pod_enforces() {
    let mut maps = Maps::new();
    maps.set_row(POLICY, PEER, &[Ports { protocol: 6, verdict: VERDICT_AUDIT, rule: 7, low: 80, high: 90 }]);
    let decision = maps.judge(&tcp4(V4, PEER_V4, 85));
    expect(decision, Action::Audit, Reason::NotAllowed);
    assert_eq!(decision.verdict.rule, 7);
    expect(maps.judge(&tcp4(V4, PEER_V4, 91)), Action::Deny, Reason::NotAllowed);
}

#[test]
fn entries_that_cannot_be_read_deny() {
    let mut maps = Maps::new();
    for verdict in (0..=0xff).filter(|one| ![VERDICT_ALLOW, VERDICT_AUDIT].contains(one)) {
        maps.set_row(POLICY, PEER, &[any(verdict)]);
        expect(maps.judge(&tcp4(V4, PEER_V4, 443)), Action::Deny, Reason::BadEntry);
    }
    maps.set_row(POLICY, PEER, &[any(VERDICT_ALLOW)]);
    maps.rows.values_mut().for_each(|row| row.len = ROW_ENTRIES as u32 + 1);
    expect(maps.judge(&tcp4(V4, PEER_V4, 443)), Action::Deny, Reason::BadEntry);
    maps.rows.values_mut().for_each(|row| row.len = 0);
    expect(maps.judge(&tcp4(V4, PEER_V4, 443)), Action::Deny, Reason::NotAllowed);
}

#[test]
fn the_last_entry_of_a_full_row_counts() {
    let mut maps = Maps::new();
    let ports: Vec<_> = (0..ROW_ENTRIES as u16)
        .map(|i| Ports {
            protocol: 6,
            verdict: VERDICT_ALLOW,
            rule: i,
            low: 1000 + 2 * i,
            high: 1000 + 2 * i,
        })
        .collect();
    maps.set_row(POLICY, PEER, &ports);
    let last = 1000 + 2 * (ROW_ENTRIES as u16 - 1);
    expect(maps.judge(&tcp4(V4, PEER_V4, last)), Action::Allow, Reason::Allowed);
    expect(maps.judge(&tcp4(V4, PEER_V4, last - 1)), Action::Deny, Reason::NotAllowed);
}

#[test]
fn port_rules_do_not_let_portless_protocols_pass() {
    let mut maps = Maps::new();
    let ping = ipv4(1, V4, PEER_V4, &[8, 0, 0, 0, 0, 0, 0, 0]);
    maps.set_row(
        POLICY,
        PEER,
        &[Ports { protocol: 6, verdict: VERDICT_ALLOW, rule: 0, low: 0, high: 65535 }],
    );
    expect(maps.judge(&ping), Action::Deny, Reason::NotAllowed);
    maps.set_row(POLICY, PEER, &[any(VERDICT_ALLOW)]);
    expect(maps.judge(&ping), Action::Allow, Reason::Allowed);
}

#[test]
fn the_frame_type_and_the_header_must_agree() {
    let maps = Maps::new();
    let packet = tcp4(V4, PEER_V4, 443);
    for ethertype in [0x86dd, 0x0806, 0] {
        let decision = decide(
            &maps,
            &Sender::NESTED,
            packet.as_slice(),
            Meta { ethertype, ifindex: ETH0, ..Meta::default() },
        );
        expect(decision, Action::Deny, Reason::UnknownIpVersion);
    }
}

mod property {
    use super::support::{Maps, Sender};
    use egress_common::{Action, Reason};
    use proptest::prelude::*;

    proptest! {
        /// No packet makes it panic, and what passes passes for one of the reasons that say so.
        #[test]
        fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..120), ifindex in 0u32..3, first in prop::sample::select(vec![0x45u8, 0x46, 0x4f, 0x60, 0x00])) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let decision = Maps::new().judge_from(Sender::NESTED, &bytes, ifindex);
            let passes = matches!(decision.verdict.reason, Reason::Allowed | Reason::Loopback);
            prop_assert_eq!(decision.verdict.action == Action::Allow, passes);
            prop_assert_ne!(decision.verdict.action, Action::Audit);
        }

        /// A packet that passes does not pass when its end is cut off inside the headers.
        #[test]
        fn truncation_never_allows(len in 0usize..40) {
            let packet = super::tcp4(super::V4, super::PEER_V4, 443);
            let decision = Maps::new().judge(&packet[..len]);
            prop_assert_eq!(decision.verdict.action, Action::Deny);
        }
    }
}

const LOCK: u64 = 0xcccc;
const PROXY_POLICY: u64 = 0xdddd;
/// The container of [`Sender::NESTED`] and [`Sender::DIRECT`].
const CONTAINER: u64 = 1000;

/// The pod of [`Maps::new`] under a lock whose proxy may send to port 443 of the peer, and others to port 80.
fn locked(proxies: &[u64]) -> Maps {
    let mut maps = Maps::new();
    let endpoint = maps.endpoint_mut();
    endpoint.lock = LOCK;
    for (place, cgroup) in endpoint.proxies.iter_mut().zip(proxies) {
        *place = Proxy { cgroup: *cgroup, policy: PROXY_POLICY };
    }
    let port = |low| Ports { protocol: 6, verdict: VERDICT_ALLOW, rule: 1, low, high: low };
    maps.set_row(POLICY, PEER, &[port(80)]);
    maps.set_row(PROXY_POLICY, PEER, &[port(443)]);
    maps
}

#[test]
fn a_lock_tells_the_proxy_from_other_containers() {
    for sender in [Sender::NESTED, Sender::DIRECT] {
        let judge = |maps: &Maps, port| maps.judge_from(sender, &tcp4(V4, PEER_V4, port), ETH0);
        for at in 0..PROXIES {
            let mut proxies = [7; PROXIES];
            proxies[at] = CONTAINER;
            let maps = locked(&proxies);
            assert_eq!(judge(&maps, 443).verdict.reason, Reason::Allowed);
            assert_eq!(judge(&maps, 80).verdict.reason, Reason::NotAllowed, "no bypass: it is the proxy");
            assert_eq!((judge(&maps, 443).container, judge(&maps, 443).policy), (CONTAINER, PROXY_POLICY));
        }
        let maps = locked(&[7, 0]);
        assert_eq!(judge(&maps, 80).verdict.reason, Reason::Allowed);
        assert_eq!(judge(&maps, 443).verdict.reason, Reason::SidecarBypass);
        // Without a lock nobody asks for the container.
        let mut free = locked(&[CONTAINER]);
        free.endpoint_mut().lock = 0;
        assert_eq!(judge(&free, 80).verdict.reason, Reason::Allowed);
        assert_eq!((judge(&free, 443).verdict.reason, judge(&free, 443).container), (Reason::NotAllowed, 0));
    }
}

#[test]
fn what_the_lock_does_not_cover_is_no_bypass() {
    let mut maps = locked(&[]);
    maps.set_row(LOCK, PEER, &[Ports { protocol: 6, verdict: VERDICT_ALLOW, rule: 0, low: 443, high: 443 }]);
    let judge = |maps: &Maps, port| maps.judge(&tcp4(V4, PEER_V4, port)).verdict.reason;
    assert_eq!((judge(&maps, 443), judge(&maps, 8443)), (Reason::NotAllowed, Reason::SidecarBypass));
    maps.endpoint_mut().flags = FLAG_AUDIT;
    let audited = maps.judge(&tcp4(V4, PEER_V4, 8443)).verdict;
    assert_eq!((audited.action, audited.reason), (Action::Audit, Reason::SidecarBypass));
}

#[test]
fn a_sender_without_a_container_is_no_proxy() {
    let maps = locked(&[0, 0]);
    let in_the_pods_own_cgroup = Sender([1, 10, 20, POD, 0, 0], Socket::Inet, None);
    let verdict = maps.judge_from(in_the_pods_own_cgroup, &tcp4(V4, PEER_V4, 443), ETH0).verdict;
    assert_eq!(verdict.reason, Reason::SidecarBypass);
}

#[test]
fn an_invalid_or_unreadable_endpoint_that_audits_denies_all_the_same() {
    for state in [STATE_INVALID, 9] {
        let mut maps = Maps::new();
        *maps.endpoint_mut() = Endpoint { state, flags: FLAG_AUDIT, ..*maps.endpoint_mut() };
        let short = &tcp4(V4, PEER_V4, 443)[..8];
        for packet in [&tcp4(V4, PEER_V4, 443)[..], short] {
            assert_eq!(maps.judge(packet).verdict.action, Action::Deny, "{state}");
        }
    }
}

#[test]
fn what_became_anothers_while_it_was_read_denies() {
    let packet = tcp4(V4, PEER_V4, 443);
    let taken = |pod, row| Maps { taken: (pod, row), ..Maps::new() }.judge(&packet).verdict;
    let own = RowKey { policy: POLICY, identity: PEER };
    assert_eq!(taken(Some(POD), Some(own)).action, Action::Allow);
    let others = [
        (Some(POD + 1), None),
        (None, Some(RowKey { policy: POLICY + 1, ..own })),
        (None, Some(RowKey { identity: PEER + 1, ..own })),
    ];
    for (pod, row) in others {
        let verdict = taken(pod, row);
        assert_eq!((verdict.action, verdict.reason), (Action::Deny, Reason::BadEntry), "{pod:?} {row:?}");
    }
    // Also of a pod that nothing selects, or that is only audited, by what is read.
    for (state, flags) in [(STATE_UNSELECTED, 0), (STATE_ISOLATED, FLAG_AUDIT)] {
        let mut maps = Maps { taken: (Some(POD + 1), None), ..Maps::new() };
        *maps.endpoint_mut() = Endpoint { state, flags, ..*maps.endpoint_mut() };
        assert_eq!(maps.judge(&packet).verdict.action, Action::Deny);
    }
}

#[test]
fn unknown_pods_that_are_denied_are_denied_before_their_packets_are_looked_at() {
    let maps = Maps { endpoints: Default::default(), ..Maps::new() };
    let verdict = maps.judge(&ipv4(47, V4, PEER_V4, &[])).verdict;
    assert_eq!(verdict.reason, Reason::UnknownPod, "not Tunnel");
}

#[test]
fn hooks_have_numbers_and_names() {
    assert_eq!(Hook::from_wire(Hook::Socket as u8), Some(Hook::Socket));
    assert_eq!((Hook::from_wire(0), Hook::from_wire(4)), (None, None));
    assert_eq!(Hook::from_wire(Hook::Veth as u8), Some(Hook::Veth));
    assert_eq!((Hook::Socket.name(), Hook::Veth.name()), ("socket", "veth"));
}

#[test]
fn the_pods_cgroup_is_told_at_either_level() {
    let maps = Maps::new();
    let packet = &tcp4(V4, PEER_V4, 80);
    for sender in [Sender::NESTED, Sender::DIRECT] {
        assert_eq!(maps.judge_from(sender, packet, ETH0).cgroup, POD);
    }
    // Of pods that are not known, the deepest cgroup at pod level.
    assert_eq!(maps.judge_from(Sender::STRANGER, packet, ETH0).cgroup, 77);
    assert_eq!(maps.judge_from(Sender([1, 10, 78, 0, 0, 0], Socket::Inet, None), packet, ETH0).cgroup, 78);
}

#[test]
fn a_row_of_the_lock_that_cannot_be_read_is_no_excuse() {
    let mut maps = locked(&[]);
    maps.set_row(LOCK, PEER, &[]);
    for len in [0, 33, u32::MAX] {
        maps.rows.get_mut(&RowKey { policy: LOCK, identity: PEER }).unwrap().len = len;
        assert_eq!(maps.judge(&tcp4(V4, PEER_V4, 443)).verdict.reason, Reason::SidecarBypass);
    }
}
