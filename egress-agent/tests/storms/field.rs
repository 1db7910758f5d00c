//! What the storms share: the observer outside, the senders, and the maps as the kernel holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aya::maps::{Map, PerCpuHashMap};
use egress_common::wire::{Denial, DenialKey, Device, Endpoint, Keyed, Witness, WitnessKey};
use egress_probe::{Captured, Outcome, Storm};
use egress_topology::{Container, Exec, OUTSIDE_V4, OUTSIDE_V6, Pod, Process, Topology};
use serde_json::{Value, json};

use crate::common::{Stand, UDP, outside, pinned, pinned_hash, udp};

/// Nobody may send there.
pub(crate) const FORBIDDEN: u16 = 7777;
/// What comes there is not answered: an answered datagram may be answered again, whatever a policy says meanwhile.
pub(crate) const SINK: u16 = 9000;
/// Where frames of packet sockets go.
pub(crate) const FRAMES: u16 = 7778;

/// One storm at a time: they measure.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number from the environment.
pub(crate) fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What a policy allows: UDP to two ports outside.
pub(crate) fn lawful() -> Value {
    let ports = json!([{"protocol": "UDP", "port": UDP}, {"protocol": "UDP", "port": SINK}]);
    json!({"allow": {"to": [
        {"cidr": format!("{OUTSIDE_V4}/32"), "ports": ports},
        {"cidr": format!("{OUTSIDE_V6}/128"), "ports": ports},
    ]}})
}

/// Where storms go, of both families.
pub(crate) fn targets() -> [String; 2] {
    outside().map(|address| format!("{address}:{FORBIDDEN}"))
}

/// A sender that goes on for this long, with more words.
pub(crate) fn storm(for_ms: u64, more: &[&str]) -> Exec {
    let exec = targets().iter().fold(Exec::probe(["storm", "--for-ms", &for_ms.to_string()]), Exec::argument);
    more.iter().fold(exec, Exec::argument)
}

/// Packets that came in outside, by sender.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) lawful: BTreeMap<IpAddr, u64>,
    pub(crate) frames: BTreeMap<IpAddr, u64>,
    /// Everything else; an example of each.
    pub(crate) forbidden: BTreeMap<IpAddr, (u64, Captured)>,
}

/// The observer outside.
pub(crate) struct Watch {
    process: Process,
    seen: Seen,
}

impl Watch {
    pub(crate) fn new(topology: &Topology) -> Self {
        let mut process = topology.outside_exec(&Exec::probe(["capture"])).unwrap();
        process.wait_ready(Duration::from_secs(5)).unwrap();
        Self { process, seen: Seen::default() }
    }

    fn look(&mut self) {
        let seen = &mut self.seen;
        for packet in self.process.pending_json::<Captured>().unwrap() {
            // What goes to or comes from the server's own ports: echoes of UDP, and of the TCP that `kills` allows.
            let port = |port: u16| [packet.sport, packet.dport].contains(&Some(port));
            if port(FRAMES) {
                *seen.frames.entry(packet.src).or_default() += 1;
            } else if port(FORBIDDEN) || !(port(UDP) || port(SINK) || port(7)) {
                seen.forbidden.entry(packet.src).or_insert_with(|| (0, packet.clone())).0 += 1;
            } else {
                *seen.lawful.entry(packet.src).or_default() += 1;
            }
        }
    }

    /// What has come, once everything that was sent before has: a datagram of `free`, sent last of all, is waited for.
    #[track_caller]
    pub(crate) fn settled(&mut self, free: &Container) -> &Seen {
        let from: IpAddr = free.pod().v4().into();
        self.look();
        let before = self.seen.lawful.get(&from).copied();
        assert_eq!(udp(free, OUTSIDE_V4).outcome, Outcome::Ok);
        let start = Instant::now();
        while self.seen.lawful.get(&from).copied() == before {
            assert!(start.elapsed() < Duration::from_secs(10), "the observer does not see what is allowed");
            std::thread::sleep(Duration::from_millis(20));
            self.look();
        }
        &self.seen
    }

    /// Nothing forbidden has come from these pods.
    #[track_caller]
    pub(crate) fn nothing_from<'a>(&mut self, free: &Container, pods: impl IntoIterator<Item = &'a Pod>) {
        let seen = self.settled(free);
        for pod in pods {
            for address in [IpAddr::from(pod.v4()), pod.v6().into()] {
                assert!(!seen.forbidden.contains_key(&address), "{:?}", seen.forbidden[&address]);
            }
        }
    }

    /// What the same sender does where nobody keeps it from it: all four kinds arrive. Shows that the observer would see them.
    #[track_caller]
    pub(crate) fn sees_all_of(&mut self, free: &Container) {
        let done: Storm = free.spawn(&storm(200, &[])).unwrap().output_json(Duration::from_secs(10)).unwrap();
        assert!(done.sent > 0 && done.refused == 0, "{done:?}");
        let seen = self.settled(free);
        for address in [IpAddr::from(free.pod().v4()), free.pod().v6().into()] {
            let count = seen.forbidden.get(&address).map_or(0, |(count, _)| *count);
            // Datagrams of this family, and some SYNs.
            assert!(count > done.sent / 2, "{count} of {done:?}");
        }
    }
}

/// Cgroups that the kernel's maps speak of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cgroups {
    pub(crate) endpoints: BTreeSet<u64>,
    pub(crate) devices: BTreeSet<u64>,
    pub(crate) denials: BTreeSet<u64>,
    pub(crate) witnesses: BTreeSet<u64>,
}

impl Cgroups {
    /// Reads the pinned maps.
    pub(crate) fn read(stand: &Stand) -> Self {
        let endpoints = pinned_hash::<u64, Keyed<u64, Endpoint>>(stand, "egress_endpoint");
        let devices = pinned_hash::<u32, Device>(stand, "egress_devices");
        let denials = Map::PerCpuHashMap(pinned(stand, "egress_denials"));
        let denials = PerCpuHashMap::<_, DenialKey, Denial>::try_from(denials).unwrap();
        let inbound = pinned_hash::<WitnessKey, Witness>(stand, "egress_inbound");
        Self {
            endpoints: endpoints.keys().map(Result::unwrap).collect(),
            devices: devices.iter().flatten().map(|(_, device)| device.cgroup).collect(),
            denials: denials.keys().flatten().map(|key| key.cgroup).collect(),
            witnesses: inbound.iter().flatten().map(|(_, seen)| seen.cgroup).collect(),
        }
    }

    pub(crate) fn all(&self) -> BTreeSet<u64> {
        [&self.endpoints, &self.devices, &self.denials, &self.witnesses]
            .into_iter()
            .flatten()
            .copied()
            .collect()
    }
}

/// What `status` says about a map.
pub(crate) fn fill(stand: &Stand, map: &str) -> Value {
    let status = stand.agent.status().unwrap();
    status["maps"].as_array().unwrap().iter().find(|fill| fill["map"] == map).unwrap().clone()
}
