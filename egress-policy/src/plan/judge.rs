//! What a pod may send where, as far as plans depend on it.

use std::collections::BTreeSet;

use egress_common::decide::NO_RULE;
use egress_common::packet::protocol;
use egress_common::wire::{
    Config, Endpoint, FLAG_AUDIT, PROTOCOL_ANY, Ports, Proxy, ROW_ENTRIES, Row, RowKey, STATE_ISOLATED,
    STATE_UNSELECTED, UNKNOWN_ALLOW, UNKNOWN_POLICY, VERDICT_ALLOW, VERDICT_AUDIT,
};

use super::State;

/// How a pod's packets are judged by where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Judgement {
    /// All pass.
    Pass,
    /// None passes.
    Closed,
    /// By the rows of a policy.
    Rows(u64),
}

impl Judgement {
    fn of_endpoint(endpoint: &Endpoint, container: u64) -> Self {
        match endpoint.state {
            STATE_UNSELECTED => Self::Pass,
            STATE_ISOLATED if endpoint.flags & FLAG_AUDIT != 0 => Self::Pass,
            STATE_ISOLATED => {
                let mut proxies = proxies(endpoint);
                let proxy = proxies.find(|proxy| proxy.cgroup == container);
                Self::Rows(proxy.map_or(endpoint.policy, |proxy| proxy.policy))
            }
            _ => Self::Closed,
        }
    }

    pub(super) fn of_unknown(config: &Config) -> Self {
        match config.unknown {
            UNKNOWN_ALLOW => Self::Pass,
            UNKNOWN_POLICY => Self::Rows(config.unknown_policy),
            _ => Self::Closed,
        }
    }

    /// Of a container of a pod; 0 stands for one that is no proxy.
    pub(super) fn of(state: &State, cgroup: u64, container: u64) -> Self {
        let known = state.endpoints.get(&cgroup).map(|endpoint| Self::of_endpoint(endpoint, container));
        known.unwrap_or_else(|| Self::of_unknown(&state.config))
    }
}

/// The proxies of a pod that count.
pub(super) fn proxies(endpoint: &Endpoint) -> impl Iterator<Item = &Proxy> {
    endpoint.proxies.iter().filter(|proxy| endpoint.lock != 0 && proxy.cgroup != 0)
}

/// The containers that are told apart in a pod in either of two states, those of the first one first; 0 stands for all
/// others.
pub(super) fn containers(states: [&State; 2], cgroup: u64) -> Vec<u64> {
    let mut found = vec![0];
    for endpoint in states.into_iter().filter_map(|state| state.endpoints.get(&cgroup)) {
        for proxy in proxies(endpoint) {
            if !found.contains(&proxy.cgroup) {
                found.push(proxy.cgroup);
            }
        }
    }
    found
}

/// A row that lets everything pass.
pub(super) fn everything() -> Row {
    let any = Ports { protocol: PROTOCOL_ANY, verdict: VERDICT_ALLOW, rule: NO_RULE, low: 0, high: u16::MAX };
    Row::new(&[any]).unwrap_or_default()
}

/// Whether a pod may meet an address with its judgement still old and the identity already new.
pub(super) fn harmless(
    desired: &State,
    observed: &State,
    (old, new): (Judgement, Judgement),
    (from, to): (u64, u64),
) -> bool {
    let Judgement::Rows(policy) = old else { return true };
    let key = |policy, identity| RowKey { policy, identity };
    let before = observed.rows.get(&key(policy, from));
    let between = desired.rows.get(&key(policy, to)).or_else(|| observed.rows.get(&key(policy, to)));
    let everything = everything();
    let after = match new {
        Judgement::Pass => Some(&everything),
        Judgement::Closed => None,
        Judgement::Rows(policy) => desired.rows.get(&key(policy, to)),
    };
    if between == before || between == after {
        return true;
    }
    let mut points = BTreeSet::from([(protocol::ICMP, 0)]);
    for entry in [before, between, after].into_iter().flatten().flat_map(Row::ports) {
        for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
            points.extend([(protocol, 0), (protocol, entry.low), (protocol, entry.high.saturating_add(1))]);
        }
    }
    points.into_iter().all(|point| {
        let (before, between, after) = (passes(before, point), passes(between, point), passes(after, point));
        if between { before || after } else { !(before && after) }
    })
}

/// Whether a row lets a protocol and port pass, as [`decide`](egress_common::decide()) reads it.
fn passes(row: Option<&Row>, (protocol, port): (u8, u16)) -> bool {
    let Some(row) = row.filter(|row| row.len as usize <= ROW_ENTRIES) else {
        return false;
    };
    let entry = row.ports().iter().find(|entry| {
        entry.protocol == PROTOCOL_ANY
            || (entry.protocol == protocol && entry.low <= port && port <= entry.high)
    });
    entry.is_some_and(|entry| matches!(entry.verdict, VERDICT_ALLOW | VERDICT_AUDIT))
}
