//! The whole plan, and the way round where policies and identities change together.
//!
//! A plan moves addresses first and pods second. In between, a pod with its old policy meets an address with its new
//! identity. Where the row of that pair is neither stricter than both states nor more generous than both, that is
//! fine. Otherwise a *bridge*: each pod that will change gets a policy of its own for the while, whose rows say what its
//! old policy says about old identities, and what its new policy says about new ones. An identity that would be both
//! gets another number for the while.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::wire::{
    ABI, Config, Endpoint, FLAG_HOST_NETWORK, PROXIES, Proxy, Row, RowKey, STATE_ISOLATED, UNKNOWN_POLICY,
};

use super::judge::{Judgement, containers, everything, harmless, proxies};
use super::keys::{Changes, Move};
use super::order::{moves, of_addresses, of_cidrs};
use super::{State, Step};
use crate::digest::{Encoder, number};

/// The steps from `observed` to `desired`, which differ at these keys only, and in their configuration.
pub(super) fn steps(desired: &State, observed: &State, changed: &Changes) -> Vec<Step> {
    // Without a configuration that is read, nothing passes until there is one.
    let live = observed.config.abi == ABI;
    let unknown = (Judgement::of_unknown(&observed.config), Judgement::of_unknown(&desired.config));
    let judged: BTreeSet<(Judgement, Judgement)> = changed
        .endpoints
        .iter()
        .flat_map(|cgroup| {
            let containers = containers([observed, desired], *cgroup).into_iter();
            containers
                .map(|one| (Judgement::of(observed, *cgroup, one), Judgement::of(desired, *cgroup, one)))
        })
        .chain([unknown])
        .filter(|(old, new)| old != new)
        .collect();
    let of_addresses = of_addresses(observed, desired, &changed.addresses);
    let of_cidrs = of_cidrs(observed, desired, &changed.cidrs);
    let pairs = of_addresses.iter().chain(&of_cidrs);
    let moved: BTreeSet<(u64, u64)> = pairs.filter(|(old, new)| old != new).copied().collect();
    let mut steps = Vec::new();
    let new_rows = changed.rows.iter().filter_map(|key| Some((*key, *desired.rows.get(key)?)));
    steps.extend(new_rows.map(|(key, row)| Step::PutRow(key, Box::new(row))));
    let mut for_the_while = BTreeSet::new();
    if !live
        || judged.iter().all(|change| moved.iter().all(|pair| harmless(desired, observed, *change, *pair)))
    {
        moves(&changed.addresses, &changed.cidrs, &mut steps);
        endpoints(desired, observed, &observed.endpoints, observed.config, changed, &mut steps);
    } else {
        let bridge = Bridge::new(desired, observed, &judged, &moved);
        for_the_while = bridge.rows.keys().copied().collect();
        steps.extend(bridge.rows.iter().map(|(key, row)| Step::PutRow(*key, Box::new(*row))));
        let before = steps.len();
        let endpoints_now: BTreeMap<u64, Endpoint> = changed
            .endpoints
            .iter()
            .filter_map(|cgroup| Some((*cgroup, *observed.endpoints.get(cgroup)?)))
            .collect();
        let mut now = State { config: observed.config, endpoints: endpoints_now, ..State::default() };
        let cgroups = &changed.endpoints;
        bridge_endpoints(&bridge.policies, desired, observed, cgroups, &mut steps);
        steps.iter().skip(before).for_each(|step| now.apply(step));
        let lead = |(old, new): (u64, u64)| {
            if old == new { old } else { bridge.aliases.get(&new).copied().unwrap_or(new) }
        };
        let (addresses_there, addresses_on) = halves(&changed.addresses, &of_addresses, lead);
        let (cidrs_there, cidrs_on) = halves(&changed.cidrs, &of_cidrs, lead);
        moves(&addresses_there, &cidrs_there, &mut steps);
        endpoints(desired, observed, &now.endpoints, now.config, changed, &mut steps);
        moves(&addresses_on, &cidrs_on, &mut steps);
    }
    steps.push(Step::PutConfig(Config {
        revision: observed.config.revision.wrapping_add(1),
        ..desired.config
    }));
    let gone = changed.rows.iter().filter(|key| observed.rows.contains_key(key)).copied();
    let gone: BTreeSet<RowKey> = gone.chain(for_the_while).collect();
    steps.extend(gone.into_iter().filter(|key| !desired.rows.contains_key(key)).map(Step::DeleteRow));
    steps
}

/// Moves in two: to where each leads for the while, and on from there.
fn halves<K: Copy>(
    moves: &[Move<K>],
    pairs: &[(u64, u64)],
    lead: impl Fn((u64, u64)) -> u64,
) -> (Vec<Move<K>>, Vec<Move<K>>) {
    let both = moves.iter().zip(pairs).map(|(one, pair)| {
        let between = Some(lead(*pair));
        (Move { new: between, ..*one }, Move { old: between, ..*one })
    });
    both.unzip()
}

/// Pods as desired; what is deleted becomes unknown, so the configuration comes before that. Its revision waits.
fn endpoints(
    desired: &State,
    observed: &State,
    now: &BTreeMap<u64, Endpoint>,
    config: Config,
    changed: &Changes,
    steps: &mut Vec<Step>,
) {
    for cgroup in &changed.endpoints {
        match desired.endpoints.get(cgroup) {
            Some(endpoint) if now.get(cgroup) != Some(endpoint) => {
                steps.push(Step::PutEndpoint(*cgroup, *endpoint));
            }
            _ => {}
        }
    }
    let settings = Config { revision: config.revision, ..desired.config };
    if observed.config.abi == ABI && settings != config {
        steps.push(Step::PutConfig(settings));
    }
    let gone = changed.endpoints.iter();
    let gone = gone.filter(|cgroup| now.contains_key(cgroup) && !desired.endpoints.contains_key(cgroup));
    steps.extend(gone.map(|cgroup| Step::DeleteEndpoint(*cgroup)));
}

/// Gives every pod that will be judged by other rows its policy for the while.
fn bridge_endpoints(
    policies: &BTreeMap<(u64, Judgement), u64>,
    desired: &State,
    observed: &State,
    cgroups: &BTreeSet<u64>,
    steps: &mut Vec<Step>,
) {
    let policy_of = |old: Judgement, new: Judgement| match old {
        Judgement::Rows(policy) if old != new => policies.get(&(policy, new)).copied(),
        _ => None,
    };
    for cgroup in cgroups {
        let judgements = |container| {
            (Judgement::of(observed, *cgroup, container), Judgement::of(desired, *cgroup, container))
        };
        let containers = containers([observed, desired], *cgroup);
        let changes = containers.iter().map(|container| judgements(*container));
        if !changes.clone().any(|(old, new)| policy_of(old, new).is_some()) {
            // As an unknown pod it was judged by none of the policies that change.
            if let (None, Some(endpoint), (Judgement::Rows(_), _)) =
                (observed.endpoints.get(cgroup), desired.endpoints.get(cgroup), judgements(0))
            {
                steps.push(Step::PutEndpoint(*cgroup, *endpoint));
            }
            continue;
        }
        // As an unknown pod was: its source address is not judged.
        let unknown = Endpoint { state: STATE_ISOLATED, flags: FLAG_HOST_NETWORK, ..Endpoint::default() };
        let old = observed.endpoints.get(cgroup).copied().unwrap_or(unknown);
        let mut bridged = Endpoint { proxies: [Proxy::default(); PROXIES], ..old };
        let mut places = bridged.proxies.iter_mut();
        for container in &containers {
            let (old, new) = judgements(*container);
            let Judgement::Rows(before) = old else { continue };
            let policy = policy_of(old, new).unwrap_or(before);
            if *container == 0 {
                bridged.policy = policy;
            } else if let Some(place) = places.next() {
                *place = Proxy { cgroup: *container, policy };
            }
        }
        if bridged.lock == 0 {
            bridged.lock = desired.endpoints.get(cgroup).map_or(0, |endpoint| endpoint.lock);
        }
        steps.push(Step::PutEndpoint(*cgroup, bridged));
    }
    let unknown = (Judgement::of_unknown(&observed.config), Judgement::of_unknown(&desired.config));
    if let Some(unknown_policy) = policy_of(unknown.0, unknown.1) {
        steps.push(Step::PutConfig(Config { unknown_policy, ..observed.config }));
    }
}

/// What there is for the while only.
struct Bridge {
    /// Per old policy and what follows it.
    policies: BTreeMap<(u64, Judgement), u64>,
    /// Per new identity that is an old one as well.
    aliases: BTreeMap<u64, u64>,
    rows: BTreeMap<RowKey, Row>,
}

impl Bridge {
    fn new(
        desired: &State,
        observed: &State,
        judged: &BTreeSet<(Judgement, Judgement)>,
        moved: &BTreeSet<(u64, u64)>,
    ) -> Self {
        let mut used = used(desired);
        used.extend(self::used(observed));
        let old_identities = observed.identities();
        let mut bridge = Self { policies: BTreeMap::new(), aliases: BTreeMap::new(), rows: BTreeMap::new() };
        for (_, new) in moved {
            if old_identities.contains(new) && !bridge.aliases.contains_key(new) {
                bridge.aliases.insert(*new, fresh(&mut used, "identity", &[*new]));
            }
        }
        for (old, new) in judged {
            let Judgement::Rows(old) = *old else { continue };
            let parts = match *new {
                Judgement::Pass => [old, 0, 0],
                Judgement::Closed => [old, 1, 0],
                Judgement::Rows(policy) => [old, 2, policy],
            };
            let policy = fresh(&mut used, "policy", &parts);
            bridge.policies.insert((old, *new), policy);
            bridge.policy_rows(desired, observed, (old, *new), policy, &old_identities, moved);
        }
        let isolated = desired.endpoints.values().filter(|endpoint| endpoint.state == STATE_ISOLATED);
        let mut kept: BTreeSet<u64> = isolated.flat_map(policies).collect();
        kept.extend((desired.config.unknown == UNKNOWN_POLICY).then_some(desired.config.unknown_policy));
        for (identity, alias) in &bridge.aliases {
            for policy in &kept {
                if let Some(row) = desired.rows.get(&RowKey { policy: *policy, identity: *identity }) {
                    bridge.rows.insert(RowKey { policy: *policy, identity: *alias }, *row);
                }
            }
        }
        bridge
    }

    /// The rows of a policy for the while: what was for where addresses led, what will be for where they will lead.
    fn policy_rows(
        &mut self,
        desired: &State,
        observed: &State,
        (old, new): (u64, Judgement),
        policy: u64,
        old_identities: &BTreeSet<u64>,
        moved: &BTreeSet<(u64, u64)>,
    ) {
        let rows = RowKey { policy: old, identity: 0 }..=RowKey { policy: old, identity: u64::MAX };
        for (key, row) in observed.rows.range(rows) {
            if old_identities.contains(&key.identity) {
                self.rows.insert(RowKey { policy, identity: key.identity }, *row);
            }
        }
        for (_, to) in moved {
            let row = match new {
                Judgement::Pass => Some(everything()),
                Judgement::Closed => None,
                Judgement::Rows(policy) => desired.rows.get(&RowKey { policy, identity: *to }).copied(),
            };
            let identity = self.aliases.get(to).copied().unwrap_or(*to);
            if let Some(row) = row {
                self.rows.insert(RowKey { policy, identity }, row);
            }
        }
    }
}

/// The policies of a pod and its containers.
fn policies(endpoint: &Endpoint) -> impl Iterator<Item = u64> {
    let proxies = proxies(endpoint).map(|proxy| proxy.policy);
    proxies.chain([endpoint.policy, endpoint.lock]).filter(|policy| *policy != 0)
}

/// Every number that a state speaks of.
fn used(state: &State) -> BTreeSet<u64> {
    let rows = state.rows.keys().flat_map(|key| [key.policy, key.identity]);
    let endpoints = state.endpoints.values().flat_map(policies);
    rows.chain(endpoints).chain(state.identities()).chain([0, state.config.unknown_policy]).collect()
}

/// A number that is not used yet.
fn fresh(used: &mut BTreeSet<u64>, what: &str, parts: &[u64]) -> u64 {
    let mut out = Encoder::new("bridge");
    out.text(what);
    parts.iter().for_each(|part| out.number(*part));
    let digest = out.digest();
    let mut salt = 0;
    loop {
        let number = number(&digest, salt);
        if used.insert(number) {
            return number;
        }
        salt += 1;
    }
}
