//! Probes at the edges of everything that objects say, and the comparison.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use egress_common::{Action, Verdict};
use egress_policy::compile::{Compiled, PodState};
use egress_policy::object::{Kind, ObjectRef};
use egress_policy::reference::{Answer, Probe, Protocol, evaluate};
use ipnet::IpNet;
use serde_json::Value;

use crate::common::{NODE, World, judge_from};

/// Addresses and ports that something changes at.
#[derive(Clone, Debug, Default)]
pub struct Edges {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
}

impl Edges {
    /// The edges of what these objects say.
    pub fn of(objects: &[Value]) -> Self {
        let mut edges = Self::default();
        edges.addresses.extend(["203.0.113.77", "fd03::77"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        edges.ports.extend([0, 53, 65535]);
        objects.iter().for_each(|object| edges.collect(object));
        edges.addresses.retain(|ip| can_be_on_a_wire(*ip));
        edges
    }

    fn collect(&mut self, value: &Value) {
        match value {
            Value::String(text) => {
                if let Ok(ip) = text.parse::<IpAddr>() {
                    self.addresses.insert(ip);
                } else if let Ok(net) = text.parse::<IpNet>() {
                    let (first, last) = (net.network(), net.broadcast());
                    self.addresses.extend([first, last, step(first, false), step(last, true)]);
                }
            }
            Value::Number(number) => {
                if let Some(port) = number.as_u64().and_then(|n| u16::try_from(n).ok()) {
                    self.ports.extend([port.saturating_sub(1), port, port.saturating_add(1)]);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(item)),
            Value::Object(fields) => fields.values().for_each(|field| self.collect(field)),
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// Every combination, ICMP without ports.
    pub fn probes(&self) -> Vec<Probe> {
        let mut out = Vec::new();
        for destination in self.addresses.iter().copied() {
            out.push(Probe { destination, protocol: Protocol::Icmp, port: 0 });
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                out.extend(self.ports.iter().map(|port| Probe { destination, protocol, port: *port }));
            }
        }
        out
    }
}

/// The address before or after; itself at the end of all.
fn step(ip: IpAddr, up: bool) -> IpAddr {
    let by = |n: u128| if up { n.saturating_add(1) } else { n.saturating_sub(1) };
    match ip {
        IpAddr::V4(v4) => {
            let next = by(u128::from(v4.to_bits())).min(u128::from(u32::MAX));
            IpAddr::from(u32::try_from(next).unwrap().to_be_bytes())
        }
        IpAddr::V6(v6) => IpAddr::from(by(v6.to_bits()).to_be_bytes()),
    }
}

/// What the reference is about: see there.
fn can_be_on_a_wire(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[0] != 0 && !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && v6.to_ipv4_mapped().is_none(),
    }
}

fn hash(seed: u64, probe: &Probe) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, format!("{probe:?}")).hash(&mut hasher);
    hasher.finish()
}

/// What a comparison went through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub allowed: u64,
    pub denied: u64,
    pub audited: u64,
    pub skipped: u64,
}

/// Compares compiler and reference for every pod of the node, by some `budget` probes each: all there are, or
/// those that `seed` chooses. What rows have no room for may be denied.
pub fn compare(world: &World, probes: &[Probe], budget: usize, seed: u64) -> Result<Tally, String> {
    let compiled = world.compile();
    compare_by(world, &compiled, (probes, budget, seed), |device, sender, to, protocol| {
        judge_from(device, &compiled.desired, sender, to, protocol)
    })
}

/// As [`compare`], with what somebody makes of the compiled state: of the device, the cgroup ids of the pod and the
/// container, the destination, the protocol and port.
pub fn compare_by(
    world: &World,
    compiled: &Compiled,
    (probes, budget, seed): (&[Probe], usize, u64),
    mut judge: impl FnMut(u32, (u64, u64), &str, &str) -> Verdict,
) -> Result<Tally, String> {
    let cut = compiled.diagnostics.iter().any(|d| d.reason.contains("port ranges to one destination"));
    let mut tally = Tally::default();
    // Chosen by their own value, so that a probe stays chosen while a failing case is made smaller.
    let share = (probes.len() / budget.max(1)).next_power_of_two() as u64;
    let chosen: Vec<&Probe> = probes.iter().filter(|probe| hash(seed, probe).is_multiple_of(share)).collect();
    let senders = world.local.iter().zip(&world.names).flat_map(|sender| {
        let containers = sender.0.containers.iter().map(|one| (Some(&*one.name), one.cgroup));
        containers
            .filter(|(name, _)| *name != Some("other"))
            .chain([(None, 0)])
            .map(move |container| (sender, container))
    });
    for ((local, name), (container, container_cgroup)) in senders {
        let pod = name.split_once('/').unwrap();
        let Some(endpoint) = compiled.endpoints.get(&local.cgroup) else {
            let known = |o: ObjectRef| o.kind == Kind::Namespace && *o.name == *pod.0;
            assert!(!world.index.objects().any(known), "{name} is unknown");
            continue;
        };
        // Closed for the labels of its namespace, of which the reference reads no more than is certain.
        if matches!(&endpoint.state, PodState::Invalid { reasons } if reasons.iter().any(|one| one.contains("Namespace is not known")))
        {
            continue;
        }
        let own = &endpoint.addresses;
        for probe in chosen.iter().copied() {
            let expected = evaluate(&world.index, NODE, pod, container, probe);
            let device = if own.contains(&probe.destination) { 1 } else { 2 };
            let protocol = format!("{:?}/{}", probe.protocol, probe.port).to_lowercase();
            let sender = (local.cgroup, container_cgroup);
            let got = judge(device, sender, &probe.destination.to_string(), &protocol);
            let same = matches!(
                (got.action, expected.answer),
                (Action::Allow, Answer::Allow)
                    | (Action::Deny, Answer::Deny)
                    | (Action::Audit, Answer::Audit)
            );
            match expected.answer {
                _ if !same && cut && got.action != Action::Allow => tally.skipped += 1,
                _ if !same => {
                    let objects: String = compiled.diagnostics.iter().map(|d| format!("  {d}\n")).collect();
                    return Err(format!(
                        "{name} ({container:?}) to {} {protocol}: decide() says {:?} ({:?}), the reference {expected}\n{objects}",
                        probe.destination, got.action, got.reason
                    ));
                }
                Answer::Allow => tally.allowed += 1,
                Answer::Deny => tally.denied += 1,
                Answer::Audit => tally.audited += 1,
            }
        }
    }
    Ok(tally)
}
