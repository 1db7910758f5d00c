//! Open connections are judged as the kernel would judge their next packet.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use egress_common::Reason;
use egress_common::connection;
use egress_common::packet::protocol;
use egress_common::wire::{
    ABI, APPROVAL_CAME_IN, APPROVAL_LOOPBACK, Addr, Approval, Cidr, Config, Endpoint, FLAG_AUDIT, PROXIES,
    Ports, Proxy, Row, RowKey, STATE_INVALID, STATE_ISOLATED, STATE_UNSELECTED, VERDICT_ALLOW, WITNESS_STOOD,
};
use egress_policy::State;
use egress_policy::standing::Standing;

const POD: u64 = 10;
const PROXY: u64 = 11;
const POLICY: u64 = 100;
const PROXIED: u64 = 101;
const LOCK: u64 = 102;
const SOMEWHERE: u64 = 1000;

fn addr(text: &str) -> Addr {
    Addr::v4(text.parse::<std::net::Ipv4Addr>().unwrap().octets())
}

/// A pod that may reach 198.51.100.0/24 at port 80.
fn state(endpoint: Endpoint) -> State {
    let config = Config { abi: ABI, pod_root_level: 5, revision: 7, ..Config::default() };
    let mut state = State { config, ..State::default() };
    let v4 = addr("10.0.0.1");
    state.endpoints.insert(POD, Endpoint { policy: POLICY, v4, ..endpoint });
    state.cidrs.insert(Cidr { bits: 96 + 24, addr: addr("198.51.100.0") }, SOMEWHERE);
    let port = Ports { protocol: protocol::TCP, verdict: VERDICT_ALLOW, rule: 0, low: 80, high: 80 };
    let row = Row::new(&[port]).unwrap();
    let policy = if endpoint.lock == 0 { POLICY } else { PROXIED };
    state.rows.insert(RowKey { policy, identity: SOMEWHERE }, row);
    state
}

fn isolated() -> Endpoint {
    Endpoint { state: STATE_ISOLATED, ..Endpoint::default() }
}

/// What a socket kept of a connection from the pod, under an earlier revision.
fn kept(to: &str) -> Approval {
    let to: SocketAddr = to.parse().unwrap();
    Approval {
        revision: 6,
        cgroup: POD,
        source: addr("10.0.0.1"),
        destination: addr(&to.ip().to_string()),
        source_port: 40_000,
        destination_port: to.port(),
        protocol: protocol::TCP,
        version: 4,
        reason: Reason::Allowed as u8,
        ..Approval::default()
    }
}

#[test]
fn what_the_rows_deny_is_denied_and_what_they_allow_is_not() {
    let state = state(isolated());
    let standing = Standing::new(&state);
    assert_eq!(standing.denied(&kept("198.51.100.1:80"), 0, None, 0), None);
    for to in ["198.51.100.1:81", "203.0.113.1:80"] {
        assert_eq!(standing.denied(&kept(to), 0, None, 0), Some(Reason::NotAllowed), "{to}");
    }
}

#[test]
fn only_enforced_pods_are_judged() {
    let denied = |endpoint: Endpoint| {
        let state = state(endpoint);
        Standing::new(&state).denied(&kept("203.0.113.1:80"), 0, None, 0)
    };
    assert_eq!(denied(isolated()), Some(Reason::NotAllowed));
    assert_eq!(denied(Endpoint { state: STATE_INVALID, ..isolated() }), Some(Reason::InvalidPolicy));
    assert_eq!(denied(Endpoint { flags: FLAG_AUDIT, ..isolated() }), None);
    assert_eq!(denied(Endpoint { state: STATE_UNSELECTED, ..isolated() }), None);
    let mut other = state(isolated());
    other.config.abi = ABI + 1;
    assert_eq!(Standing::new(&other).denied(&kept("203.0.113.1:80"), 0, None, 0), None);
    let stranger = Approval { cgroup: POD + 1, ..kept("203.0.113.1:80") };
    assert_eq!(Standing::new(&state(isolated())).denied(&stranger, 0, None, 0), None);
}

#[test]
fn what_came_in_or_stays_in_the_pod_is_not_denied() {
    let state = state(isolated());
    let standing = Standing::new(&state);
    let out = kept("203.0.113.1:80");
    assert!(standing.denied(&out, 0, None, 0).is_some());
    for flags in [APPROVAL_CAME_IN, APPROVAL_LOOPBACK] {
        assert_eq!(standing.denied(&Approval { flags, ..out }, 0, None, 0), None);
    }
    let (_, stood) = connection::half(&out, WITNESS_STOOD).entry(out.cgroup, 0);
    assert_eq!(standing.denied(&out, 0, Some(stood), 0), None);
    // Another connection's witness, found in the same place.
    let (_, other) = connection::half(&kept("203.0.113.1:81"), WITNESS_STOOD).entry(out.cgroup, 0);
    assert!(standing.denied(&out, 0, Some(other), 0).is_some());
    assert_eq!(standing.denied(&Approval::default(), 0, None, 0), None, "nothing was kept");
}

#[test]
fn under_a_lock_it_depends_on_the_container() {
    let mut proxies = [Proxy::default(); PROXIES];
    proxies[0] = Proxy { cgroup: PROXY, policy: PROXIED };
    let state = state(Endpoint { lock: LOCK, proxies, ..isolated() });
    let standing = Standing::new(&state);
    assert!(standing.is_locked(POD));
    let out = kept("198.51.100.1:80");
    assert_eq!(standing.denied(&out, PROXY, None, 0), None);
    assert_eq!(standing.denied(&out, PROXY + 1, None, 0), Some(Reason::SidecarBypass));
}
