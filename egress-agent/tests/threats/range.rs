//! A node with an attacked pod and its twin, and two observers: what arrives outside, and what arrives at the node.

use std::thread;
use std::time::{Duration, Instant};

use egress_probe::Sniffed;
use egress_probe::packet::from_hex;
use egress_topology::{CgroupDriver, Container, Exec, OUTSIDE_V4, OUTSIDE_V6, PodSpec, Process, Topology};
use serde_json::{Value, json};

use crate::attack::{Attack, Fired, attack};
use crate::common::{Stand, UDP, eventually, outside, passes};

/// How long what was sent may take to arrive.
const PATIENCE: Duration = Duration::from_secs(6);

/// Frames that came in on an interface.
pub(crate) struct Observer {
    process: Process,
    pub(crate) seen: Vec<Vec<u8>>,
}

impl Observer {
    fn new(start: impl Fn(&Exec) -> anyhow::Result<Process>, interface: &str) -> Self {
        let mut process = start(&Exec::probe(["sniff", "--interface", interface])).unwrap();
        process.wait_ready(Duration::from_secs(5)).unwrap();
        Self { process, seen: Vec::new() }
    }

    pub(crate) fn outside(topology: &Topology) -> Self {
        Self::new(|exec| topology.outside_exec(exec), "eth0")
    }

    pub(crate) fn bridge(topology: &Topology) -> Self {
        Self::new(|exec| topology.node_exec(exec), "cni0")
    }

    /// How many frames have this text, of those looked at so far.
    pub(crate) fn count(&self, tag: &str) -> usize {
        let has = |frame: &&Vec<u8>| frame.windows(tag.len()).any(|part| part == tag.as_bytes());
        self.seen.iter().filter(has).count()
    }

    pub(crate) fn look(&mut self) {
        let frames: Vec<Sniffed> = self.process.pending_json().unwrap();
        self.seen.extend(frames.iter().map(|frame| from_hex(&frame.frame).unwrap()));
    }
}

/// The attacked pod `a/locked` under the policy, its twin `b/free` under none, and `default/peer`, whom both may talk to.
pub(crate) struct Range {
    pub(crate) outside: Observer,
    pub(crate) bridge: Observer,
    pub(crate) locked: Container,
    pub(crate) free: Container,
    pub(crate) peer: Container,
    pub(crate) stand: Stand,
}

impl Range {
    /// With a policy that allows UDP to one port outside, merged with `more`. The agent runs, and neighbours are known.
    pub(crate) fn new(more: Value) -> Self {
        Self::with(more, &[])
    }

    /// The same with arguments of the agent.
    pub(crate) fn with(more: Value, arguments: &[&str]) -> Self {
        let mut range = Self::without_agent(more);
        range.stand.agent = range.stand.agent.arguments(arguments);
        range.stand.start();
        range.lawful();
        range
    }

    /// The same before the agent was started.
    pub(crate) fn without_agent(more: Value) -> Self {
        let mut stand = Stand::new(CgroupDriver::Systemd);
        let ports = json!([{"protocol": "UDP", "port": UDP}]);
        let mut spec = json!({"allow": {"to": [
            {"cidr": format!("{OUTSIDE_V4}/32"), "ports": ports},
            {"cidr": format!("{OUTSIDE_V6}/128"), "ports": ports},
        ]}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        stand.lock_down(spec);
        let peer = stand.peer();
        let locked = stand.pod(PodSpec::new("a", "locked"));
        let free = stand.pod(PodSpec::new("b", "free"));
        let topology = &stand.topology;
        let (outside, bridge) = (Observer::outside(topology), Observer::bridge(topology));
        Self { outside, bridge, locked, free, peer, stand }
    }

    /// Under a lock, and a policy that allows the proxy everything outside. The agent does not run yet.
    pub(crate) fn locked_to_proxy() -> Self {
        let everything = json!([{"cidr": "198.51.100.0/24"}, {"cidr": "2001:db8:51::/64"}]);
        Self::without_agent(json!({"proxy": {"containers": ["istio-proxy"]}, "allow": {"to": everything}}))
    }

    /// The nearest lawful traffic of the attacked pod, and of its twin, passes.
    #[track_caller]
    pub(crate) fn lawful(&self) {
        for container in [&self.locked, &self.free] {
            self.lawful_of(container);
        }
    }

    #[track_caller]
    pub(crate) fn lawful_of(&self, container: &Container) {
        let pod = self.peer.pod();
        let inside = [pod.v4().to_string(), format!("[{}]", pod.v6())];
        for address in inside.into_iter().chain(outside()) {
            passes(container, address);
        }
    }

    /// Fires every attack from a container.
    pub(crate) fn fire(&self, container: &Container, attacks: &[Attack]) -> Vec<Fired> {
        let (peer, probe) = (self.peer.pod(), self.stand.topology.probe());
        attacks.iter().flat_map(|attack| attack.fire(container, peer, probe)).collect()
    }

    /// What of it arrived outside. Looks until everything has, or until what was sent last of all has.
    fn arrived<'a>(&mut self, observer: At, fired: &'a [Fired], all: bool) -> Vec<&'a Fired> {
        let start = Instant::now();
        // Neighbour resolution and the like may hold a packet for a moment.
        thread::sleep(Duration::from_millis(200));
        let last = self.fire(
            &self.free,
            &[attack("last", |shot| {
                shot.probe(&["udp", &shot.to().to_string(), "--payload", &shot.tag, "--timeout-ms", "1"])
            })],
        );
        loop {
            let observer = match observer {
                At::Outside => &mut self.outside,
                At::Bridge => &mut self.bridge,
            };
            observer.look();
            let is_there = |shot: &Fired| observer.seen.iter().any(|frame| shot.is_in(frame));
            let found: Vec<_> = fired.iter().filter(|shot| is_there(shot)).collect();
            let settled = last.iter().all(is_there);
            if settled && (!all || found.len() == fired.len()) || start.elapsed() > PATIENCE {
                assert!(settled, "the observer does not see what is allowed");
                return found;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Each attack gets through from the pod that no policy selects, and none from the locked-down one, whose lawful
    /// traffic passes before and after.
    #[track_caller]
    pub(crate) fn prove(&mut self, attacks: &[Attack]) {
        self.prove_at(At::Outside, attacks);
    }

    #[track_caller]
    pub(crate) fn prove_at(&mut self, at: At, attacks: &[Attack]) {
        let (free, locked) = (self.free.clone(), self.locked.clone());
        self.prove_arrives(at, &free, attacks);
        self.prove_stopped(at, &locked, attacks);
        self.lawful();
    }

    /// The attacks work at all.
    #[track_caller]
    pub(crate) fn prove_arrives(&mut self, at: At, from: &Container, attacks: &[Attack]) {
        let fired = self.fire(from, attacks);
        let arrived: Vec<_> = self.arrived(at, &fired, true).iter().map(|shot| shot.port).collect();
        let lost: Vec<_> =
            fired.iter().filter(|shot| !arrived.contains(&shot.port)).map(Fired::explain).collect();
        assert!(lost.is_empty(), "{} of {} never arrived:\n{}", lost.len(), fired.len(), lost.join("\n"));
    }

    /// None of the attacks gets a byte out, and the flow log has their reasons.
    #[track_caller]
    pub(crate) fn prove_stopped(&mut self, at: At, from: &Container, attacks: &[Attack]) {
        let fired = self.fire(from, attacks);
        let leaked: Vec<_> = self.arrived(at, &fired, false).into_iter().map(Fired::explain).collect();
        assert!(leaked.is_empty(), "{} of {} got out:\n{}", leaked.len(), fired.len(), leaked.join("\n"));
        let pod = format!("{}/{}", from.pod().namespace(), from.pod().name());
        for shot in fired.iter().filter(|shot| shot.reason.is_some()) {
            eventually(&format!("the flow log has {:?} for {}", shot.reason, shot.explain()), || {
                self.stand.agent.flows().unwrap().iter().any(|flow| shot.is_told_by(flow, &pod))
            });
        }
    }
}

/// Where one looks.
#[derive(Clone, Copy)]
pub(crate) enum At {
    /// At the server outside.
    Outside,
    /// At the bridge that the node's end of the pod's veth belongs to.
    Bridge,
}
