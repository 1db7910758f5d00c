//! From two states to the steps between them.
//!
//! Invariant: after every prefix of a plan, a packet passes only if it passes in the old or in the new state, and it
//! does pass if it passes in both. It rests on two things: a row is a function of its key, as [`compile`](mod@crate::compile)
//! makes it, and both states hold the rows of every policy with every identity that are in use.
//!
//! One exception closes rather than opens: of more proxies of one pod than an endpoint has places for, old and new ones
//! together, some count as none while a bridge stands.
//!
//! The order that gives it: rows, then where addresses lead, then endpoints, then the configuration with its new
//! revision (so that no verdict of the old state is taken for one of the new revision), then the rows that nothing
//! leads to any more. Where a pod's policy and an address's identity change together there would be a moment with the
//! one old and the other new, a pair that belongs to neither state: `bridge` finds out and goes round it.
//!
//! Tested by `tests/plan.rs`, with every prefix of random plans.

mod bridge;
mod judge;
mod keys;
mod narrow;
mod order;
mod prefix;
mod view;

pub use keys::Keys;
pub use narrow::Difference;
pub(crate) use prefix::Prefixes;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use egress_common::wire::{
    Addr, Cidr, Config, Endpoint, FLAG_AUDIT, FLAG_HOST_NETWORK, PROTOCOL_ANY, Row, RowKey, STATE_INVALID,
    STATE_ISOLATED, STATE_UNSELECTED, UNKNOWN_ALLOW, UNKNOWN_POLICY, VERDICT_ALLOW,
};
use serde::{Serialize, Serializer};

use crate::by_addr::ByAddr;
use crate::object::protocol_name;
use crate::pack::pack;

/// What the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The configuration. Its revision is 0 in a desired state.
    pub config: Config,
    /// Pods, by cgroup id.
    pub endpoints: BTreeMap<u64, Endpoint>,
    /// Identities of single addresses.
    pub addresses: ByAddr<u64>,
    /// Identities of prefixes.
    pub cidrs: BTreeMap<Cidr, u64>,
    /// What policies say about identities.
    pub rows: BTreeMap<RowKey, Row>,
}

impl State {
    /// Takes less memory for the same, after many steps. Looks at everything.
    pub fn pack(&mut self) {
        pack(&mut self.endpoints);
        self.addresses.pack();
        pack(&mut self.cidrs);
        pack(&mut self.rows);
    }

    /// Takes one step, as the maps would.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::PutRow(key, row) => drop(self.rows.insert(*key, **row)),
            Step::PutAddress(addr, identity) => drop(self.addresses.insert(*addr, *identity)),
            Step::PutCidr(cidr, identity) => drop(self.cidrs.insert(*cidr, *identity)),
            Step::PutEndpoint(cgroup, endpoint) => drop(self.endpoints.insert(*cgroup, *endpoint)),
            Step::PutConfig(config) => self.config = *config,
            Step::DeleteEndpoint(cgroup) => drop(self.endpoints.remove(cgroup)),
            Step::DeleteAddress(addr) => drop(self.addresses.remove(addr)),
            Step::DeleteCidr(cidr) => drop(self.cidrs.remove(cidr)),
            Step::DeleteRow(key) => drop(self.rows.remove(key)),
        }
    }
}

/// One write to a map. Displayed as one line, serialised as that line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes a row.
    PutRow(RowKey, Box<Row>),
    /// Writes where an address leads.
    PutAddress(Addr, u64),
    /// Writes where a prefix leads.
    PutCidr(Cidr, u64),
    /// Writes a pod.
    PutEndpoint(u64, Endpoint),
    /// Writes the configuration.
    PutConfig(Config),
    /// Removes a pod.
    DeleteEndpoint(u64),
    /// Removes an address.
    DeleteAddress(Addr),
    /// Removes a prefix.
    DeleteCidr(Cidr),
    /// Removes a row.
    DeleteRow(RowKey),
}

/// Steps to be taken in this order. Displayed one line a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

/// The steps from what is observed to what is desired; none where they are equal but for the revision.
///
/// The plan's last configuration has the observed revision plus one.
#[must_use]
pub fn diff(desired: &State, observed: &State) -> Plan {
    diff_at(desired, observed, Keys::between(desired, observed))
}

/// As [`diff`], for states that are known to be equal but for these keys and the configuration.
#[must_use]
pub fn diff_at(desired: &State, observed: &State, keys: Keys) -> Plan {
    let changes = keys.changes(desired, observed);
    let settings = Config { revision: observed.config.revision, ..desired.config };
    if settings == observed.config && changes.is_empty() {
        return Plan::default();
    }
    Plan { steps: bridge::steps(desired, observed, &changes) }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutRow(key, row) => {
                write!(f, "put row {:016x}/{:016x}:", key.policy, key.identity)?;
                row.ports().iter().try_for_each(|entry| {
                    let word = if entry.verdict == VERDICT_ALLOW { "allow" } else { "audit" };
                    write!(f, " {word} {}", protocol_name(entry.protocol))?;
                    match (entry.protocol, entry.low, entry.high) {
                        (PROTOCOL_ANY, _, _) => {}
                        (_, low, high) if low == high => write!(f, "/{low}")?,
                        (_, low, high) => write!(f, "/{low}-{high}")?,
                    }
                    if entry.rule == u16::MAX { Ok(()) } else { write!(f, " (rule {})", entry.rule) }
                })
            }
            Self::PutAddress(addr, identity) => write!(f, "put address {} -> {identity:016x}", ip(addr)),
            Self::PutCidr(cidr, identity) => write!(f, "put cidr {} -> {identity:016x}", Prefix(cidr)),
            Self::PutEndpoint(cgroup, endpoint) => {
                write!(f, "put endpoint {cgroup}: {}", state_name(endpoint.state))?;
                if endpoint.state == STATE_ISOLATED {
                    write!(f, " by {:016x}", endpoint.policy)?;
                    judge::proxies(endpoint).try_for_each(|proxy| {
                        write!(f, ", container {} by {:016x}", proxy.cgroup, proxy.policy)
                    })?;
                }
                if endpoint.flags & FLAG_AUDIT != 0 {
                    f.write_str(", audit")?;
                }
                if endpoint.flags & FLAG_HOST_NETWORK != 0 {
                    f.write_str(", host network")?;
                }
                let own = [endpoint.v4, endpoint.v6];
                own.iter().filter(|addr| !addr.is_zero()).try_for_each(|addr| write!(f, ", {}", ip(addr)))
            }
            Self::PutConfig(config) => {
                write!(f, "put config: revision {}, abi {}, ", config.revision, config.abi)?;
                write!(f, "pod root at level {}, unknown pods ", config.pod_root_level)?;
                match config.unknown {
                    UNKNOWN_ALLOW => f.write_str("pass"),
                    UNKNOWN_POLICY => write!(f, "by {:016x}", config.unknown_policy),
                    _ => f.write_str("denied"),
                }
            }
            Self::DeleteEndpoint(cgroup) => write!(f, "delete endpoint {cgroup}"),
            Self::DeleteAddress(addr) => write!(f, "delete address {}", ip(addr)),
            Self::DeleteCidr(cidr) => write!(f, "delete cidr {}", Prefix(cidr)),
            Self::DeleteRow(key) => write!(f, "delete row {:016x}/{:016x}", key.policy, key.identity),
        }
    }
}

fn state_name(state: u32) -> &'static str {
    match state {
        STATE_UNSELECTED => "unselected",
        STATE_ISOLATED => "isolated",
        STATE_INVALID => "invalid",
        _ => "unreadable",
    }
}

fn ip(addr: &Addr) -> IpAddr {
    IpAddr::from(addr.0).to_canonical()
}

struct Prefix<'a>(&'a Cidr);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cidr { bits, addr } = self.0;
        match bits.checked_sub(96) {
            Some(bits) if addr.is_v4() => write!(f, "{}/{bits}", ip(addr)),
            _ => write!(f, "{}/{bits}", std::net::Ipv6Addr::from(addr.0)),
        }
    }
}
