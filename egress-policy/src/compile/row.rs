//! Rows: what a policy says about an identity, per protocol and port.
//!
//! Invariant: a row is a function of the meanings of its policy and its identity.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egress_common::decide::NO_RULE;
use egress_common::packet::protocol;
use egress_common::wire::{PROTOCOL_ANY, Ports as Entry, ROW_ENTRIES, Row, VERDICT_ALLOW, VERDICT_AUDIT};

use super::grant::{Content, Grant, Peer, Tier};
use super::grants::{GrantId, Grants};
use super::identity::{Composite, Matches};
use super::terms::Terms;
use crate::object::{Port, PortRange, Ports};

/// A verdict and the rule that gave it; `None` for no entry, which denies.
type Cell = Option<(u8, u16)>;

const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

/// The verdict for every protocol and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cells {
    /// Per protocol with ports: the verdict from a port on, up to the next one; begins at 0.
    ports: BTreeMap<u8, BTreeMap<u16, Cell>>,
    /// The verdict for protocols without ports.
    other: Cell,
}

impl Cells {
    /// How many stretches of ports are told apart.
    pub(super) fn len(&self) -> u64 {
        self.ports.values().map(|from| from.len() as u64).sum()
    }

    /// The verdict for a protocol and port, and the number of the rule that gave it; `None` denies.
    pub(super) fn at(&self, protocol: u8, port: u16) -> Cell {
        self.ports.get(&protocol).map_or(self.other, |from| at(from, port))
    }
}

/// A policy, with its grants by their ids.
#[derive(Debug)]
pub(super) struct Prepared {
    tiers: Vec<PreparedTier>,
}

#[derive(Debug)]
struct PreparedTier {
    audit: bool,
    /// The number that stands for its having no rule that allows.
    denies: u16,
    /// What leads somewhere, by the id of its grant: an identity matches few of many.
    by_id: BTreeMap<GrantId, Vec<Lead>>,
    /// What leads anywhere, with the id of a grant that has ports by name.
    anywhere: Vec<(Option<GrantId>, Lead)>,
}

/// A grant of a rule.
#[derive(Debug)]
struct Lead {
    rule: u16,
    grant: Arc<Grant>,
    /// It leads only where this does,
    within: Option<GrantId>,
    /// and not where one of these does.
    except: Vec<GrantId>,
}

impl Lead {
    /// Whether it leads where these do, if what it is listed by does.
    fn leads(&self, matches: &Matches) -> bool {
        let is_there = |id: &GrantId| matches.binary_search_by_key(id, |(id, _)| *id).is_ok();
        self.within.iter().all(is_there) && !self.except.iter().any(is_there)
    }
}

/// Prepares a policy for [`base`], whose grants are held.
pub(super) fn prepare(content: &Content, grants: &Grants) -> Prepared {
    let mut number = 0_usize;
    let mut denies = content.rules().count();
    let mut tier = |tier: &Tier| {
        let mut out = PreparedTier {
            audit: tier.audit,
            denies: u16::try_from(denies).unwrap_or(NO_RULE),
            by_id: BTreeMap::new(),
            anywhere: Vec::new(),
        };
        denies += 1;
        for rule in &tier.rules {
            let rule_number = u16::try_from(number).unwrap_or(NO_RULE);
            number += 1;
            for grant in &rule.grants {
                let terms = Terms::new(grant);
                let id = grants.id(&terms.of);
                let within = terms.within.map(|one| grants.id(&one));
                let except: Option<_> = terms.except.iter().map(|one| grants.id(one)).collect();
                // Of what is not held, nobody knows whether it leads to an address.
                let (false, Some(except)) = (within == Some(None), except) else { continue };
                let lead = Lead { rule: rule_number, grant: grant.clone(), within: within.flatten(), except };
                if grant.peer == Peer::Any {
                    out.anywhere.push((id, lead));
                } else if let Some(id) = id {
                    out.by_id.entry(id).or_default().push(lead);
                }
            }
        }
        out
    };
    Prepared { tiers: content.tiers.iter().map(&mut tier).collect() }
}

/// What a tier allows: everything by a rule, and ranges by rules.
#[derive(Default)]
struct Allowed {
    any: Option<u16>,
    ranges: Vec<(PortRange, u16)>,
}

impl Prepared {
    /// How many grants there are that not every identity has.
    pub(super) fn grants(&self) -> usize {
        self.tiers.iter().map(|tier| tier.by_id.len()).sum()
    }

    /// The grants of which one has to lead to an identity for its row to be anything but empty, as few as `reach` finds;
    /// `None` where that may be any identity.
    pub(super) fn needed(&self, reach: impl Fn(GrantId) -> usize) -> Option<Vec<GrantId>> {
        let enforcing = self.tiers.iter().filter(|tier| !tier.audit && tier.anywhere.is_empty());
        let needed = enforcing.map(|tier| tier.by_id.keys().copied().collect::<Vec<_>>());
        needed.min_by_key(|grants| grants.iter().map(|grant| reach(*grant)).sum::<usize>())
    }

    /// Whether the row for a base identity may be anything but empty: each tier that enforces has a rule that leads there,
    /// or some tier where none does.
    pub(super) fn may_allow(&self, matches: &Matches) -> bool {
        let leads = |tier: &PreparedTier| {
            !tier.anywhere.is_empty() || matches.iter().any(|(id, _)| tier.by_id.contains_key(id))
        };
        self.tiers.iter().filter(|tier| !tier.audit).all(leads) && self.tiers.iter().any(leads)
    }
}

impl PreparedTier {
    fn allowed(&self, matches: &Matches) -> Allowed {
        let mut out = Allowed::default();
        let matched = matches.iter().flat_map(|(id, ranges)| {
            let leads = self.by_id.get(id).into_iter().flatten();
            leads.map(move |lead| (Some(ranges), lead))
        });
        let ranges = |id: &Option<GrantId>| {
            let at = matches.binary_search_by_key(&id.as_ref()?, |(id, _)| id).ok()?;
            matches.get(at).map(|(_, ranges)| ranges)
        };
        let anywhere = self.anywhere.iter().map(|(id, lead)| (ranges(id), lead));
        for (found, lead) in matched.chain(anywhere).filter(|(_, lead)| lead.leads(matches)) {
            let Lead { rule, grant, .. } = lead;
            let rule = *rule;
            out.ranges.extend(found.into_iter().flatten().map(|range| (*range, rule)));
            if grant.resolved_only() {
                continue;
            }
            match &grant.ports {
                Ports::All => out.any = Some(out.any.map_or(rule, |first| first.min(rule))),
                Ports::Listed(ports) => {
                    out.ranges.extend(ports.iter().filter_map(|port| match port {
                        Port::Range(range) => Some((*range, rule)),
                        Port::Named(..) => None,
                    }));
                }
            }
        }
        out
    }
}

impl Allowed {
    /// The first rule that allows each port of a protocol, from a port on.
    fn sweep(&self, protocol: u8) -> BTreeMap<u16, Option<u16>> {
        // A rule that allows everything wins, so that its one entry can stand for all.
        if self.any.is_some() {
            return BTreeMap::from([(0, self.any)]);
        }
        let mut events: BTreeMap<u32, Vec<(bool, u16)>> = BTreeMap::from([(0, Vec::new())]);
        for (range, rule) in self.ranges.iter().filter(|(range, _)| range.protocol == protocol) {
            events.entry(u32::from(range.low)).or_default().push((true, *rule));
            events.entry(u32::from(range.high) + 1).or_default().push((false, *rule));
        }
        let mut active: BTreeMap<u16, usize> = BTreeMap::new();
        let mut out = BTreeMap::new();
        for (port, changes) in events {
            for (begins, rule) in changes {
                let count = active.entry(rule).or_default();
                *count = if begins { *count + 1 } else { count.saturating_sub(1) };
                if *count == 0 {
                    active.remove(&rule);
                }
            }
            if let Ok(port) = u16::try_from(port) {
                out.insert(port, active.keys().next().copied());
            }
        }
        out
    }
}

/// The verdict of tiers, given for each the rule by which it allows. An audit names the tier that would have denied.
fn verdict(tiers: &[(&PreparedTier, Option<u16>)]) -> Cell {
    let rule = tiers.iter().find_map(|(_, rule)| *rule)?;
    let mut denying = tiers.iter().filter(|(_, rule)| rule.is_none()).map(|(tier, _)| tier);
    if denying.clone().any(|tier| !tier.audit) {
        return None;
    }
    Some(denying.next().map_or((VERDICT_ALLOW, rule), |tier| (VERDICT_AUDIT, tier.denies)))
}

/// At a port: what a map from first ports says.
fn at<T: Copy>(from: &BTreeMap<u16, Option<T>>, port: u16) -> Option<T> {
    from.range(..=port).next_back().and_then(|(_, value)| *value)
}

/// The verdicts for a base identity.
pub(super) fn base(policy: &Prepared, matches: &Matches) -> Cells {
    let allowed: Vec<_> = policy.tiers.iter().map(|tier| (tier, tier.allowed(matches))).collect();
    let mut ports = BTreeMap::new();
    for protocol in PROTOCOLS {
        let swept: Vec<_> = allowed.iter().map(|(tier, allowed)| (*tier, allowed.sweep(protocol))).collect();
        let starts: BTreeSet<u16> = swept.iter().flat_map(|(_, from)| from.keys().copied()).collect();
        let cell =
            |port| verdict(&swept.iter().map(|(tier, from)| (*tier, at(from, port))).collect::<Vec<_>>());
        ports.insert(protocol, starts.into_iter().map(|port| (port, cell(port))).collect());
    }
    let other: Vec<_> = allowed.iter().map(|(tier, allowed)| (*tier, allowed.any)).collect();
    // An auditing tier that allows nothing here must not take from the other what it allows on ports: a tier alone
    // decides about protocols without ports as about any port.
    Cells { ports, other: verdict(&other) }
}

/// Both must let it pass; one that audits makes it its audit.
fn both(a: Cell, b: Cell) -> Cell {
    let (a, b) = (a?, b?);
    Some(if b.0 == VERDICT_AUDIT && a.0 != VERDICT_AUDIT { b } else { a })
}

/// The verdicts for a composite identity, from those of the identities behind it.
pub(super) fn composite<'c>(composite: &Composite, cells: impl Fn(u64) -> Option<&'c Cells>) -> Cells {
    let nothing = Cells { ports: PROTOCOLS.map(|p| (p, BTreeMap::from([(0, None)]))).into(), other: None };
    let mut owners = composite.owners.iter().map(|owner| cells(*owner));
    let mut out = owners.next().flatten().unwrap_or(&nothing).clone();
    for owner in owners {
        let owner = owner.unwrap_or(&nothing);
        out.other = both(out.other, owner.other);
        for (protocol, from) in &mut out.ports {
            let Some(of_owner) = owner.ports.get(protocol) else {
                continue;
            };
            let starts: BTreeSet<u16> = from.keys().chain(of_owner.keys()).copied().collect();
            *from = starts.into_iter().map(|port| (port, both(at(from, port), at(of_owner, port)))).collect();
        }
    }
    for ((protocol, port), backends) in &composite.ports {
        let Some(from) = out.ports.get_mut(protocol) else {
            continue;
        };
        let target = |(identity, target): &(u64, u16)| {
            cells(*identity).and_then(|cells| cells.ports.get(protocol)).and_then(|from| at(from, *target))
        };
        let mut parts: Vec<Cell> = backends.iter().map(target).collect();
        if parts.is_empty() {
            parts.push(None);
        }
        if !composite.owners.is_empty() {
            parts.push(at(from, *port));
        }
        let cell = parts.into_iter().reduce(both).flatten();
        if let Some(next) = port.checked_add(1) {
            let after = at(from, next);
            from.entry(next).or_insert(after);
        }
        from.insert(*port, cell);
    }
    out
}

/// The shortest row with these verdicts, `None` for an empty one; and how many ranges did not fit and are denied.
pub(super) fn row(cells: &Cells) -> (Option<Row>, usize) {
    // An entry for any protocol would also catch what is denied.
    let any = cells.other.filter(|_| cells.ports.values().all(|from| from.values().all(Option::is_some)));
    let mut entries: Vec<Entry> = Vec::new();
    for (protocol, from) in &cells.ports {
        let ends = from.keys().skip(1).map(|next| next - 1).chain([u16::MAX]);
        for ((low, cell), high) in from.iter().zip(ends) {
            let Some((verdict, rule)) = *cell else { continue };
            if any == *cell {
                continue;
            }
            push(&mut entries, Entry { protocol: *protocol, verdict, rule, low: *low, high }, |a, b| {
                a.rule == b.rule
            });
        }
    }
    if entries.len() + usize::from(any.is_some()) > ROW_ENTRIES {
        // Rather a less exact rule number than a port that is denied.
        let exact = std::mem::take(&mut entries);
        for entry in exact.into_iter().filter(|entry| any.is_none_or(|(verdict, _)| verdict != entry.verdict))
        {
            push(&mut entries, entry, |_, _| true);
        }
    }
    if let Some((verdict, rule)) = any {
        entries.push(Entry { protocol: PROTOCOL_ANY, verdict, rule, low: 0, high: u16::MAX });
    }
    // With a port denied, protocols without ports are named one by one.
    if let (None, Some((verdict, rule))) = (any, cells.other) {
        let without_ports = [protocol::ICMP, protocol::ICMPV6];
        entries.extend(without_ports.map(|protocol| Entry {
            protocol,
            verdict,
            rule,
            low: 0,
            high: u16::MAX,
        }));
    }
    let dropped = entries.len().saturating_sub(ROW_ENTRIES);
    if dropped > 0 {
        // The narrowest are the least loss, of equal ones the last.
        let mut kept: Vec<(usize, Entry)> = entries.into_iter().enumerate().collect();
        kept.sort_by_key(|(at, entry)| (Reverse(entry.high - entry.low), *at));
        kept.truncate(ROW_ENTRIES);
        kept.sort_by_key(|(at, _)| *at);
        entries = kept.into_iter().map(|(_, entry)| entry).collect();
    }
    (if entries.is_empty() { None } else { Row::new(&entries) }, dropped)
}

/// Appends an entry, to the last one where they are adjacent and alike.
fn push(entries: &mut Vec<Entry>, entry: Entry, alike: impl Fn(&Entry, &Entry) -> bool) {
    if let Some(last) = entries.last_mut() {
        let adjacent = last.protocol == entry.protocol && last.high.checked_add(1) == Some(entry.low);
        if adjacent && last.verdict == entry.verdict && alike(last, &entry) {
            last.high = entry.high;
            return;
        }
    }
    entries.push(entry);
}
