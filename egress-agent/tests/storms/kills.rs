//! Kill -9: the agent dies and comes back, in whatever state it is, and nobody notices.

use std::thread;
use std::time::{Duration, Instant};

use egress_probe::{Beat, Outcome};
use egress_topology::{CgroupDriver, Container, Exec, Netns, OUTSIDE_V4, PodSpec, Process};
use serde_json::json;

use crate::common::{Stand, endpoints};
use crate::field::{Watch, alone, number, storm};

/// The longest time between two exchanges. TCP repeats a lost segment after 200 ms (`TCP_RTO_MIN`), then after 400 and 800 more: one
/// second is a segment that was lost three times. What is dropped is counted exactly besides; this is for what is not counted.
const STALL: u64 = 1000;
/// Between two exchanges.
const INTERVAL: &str = "10";
/// The port of TCP echoes.
const ECHO: &str = "7";

/// Three kinds of traffic, and who watches them.
pub(crate) struct Traffic {
    pub(crate) stand: Stand,
    pub(crate) client: Container,
    pub(crate) server: Container,
    bypass: Container,
    pub(crate) free: Container,
    watch: Watch,
    going_out: Process,
    coming_in: Process,
    storm: Process,
}

/// What came of a connection.
#[derive(Debug, Default)]
pub(crate) struct Held {
    exchanges: u64,
    late: u64,
    longest: u64,
}

impl Traffic {
    /// Under a running agent: an allowed connection, one that came in to a locked-down server, and attempts to bypass.
    pub(crate) fn begin() -> Self {
        let mut stand = Stand::new(CgroupDriver::Systemd);
        let ports = json!([{"protocol": "TCP", "port": 7}]);
        stand.lock_down(json!({"allow": {"to": [{"cidr": format!("{OUTSIDE_V4}/32"), "ports": ports}]}}));
        let echo = Exec::probe(["serve-echo", "--port", ECHO]);
        stand.servers.push(stand.topology.outside_serve(&echo).unwrap());
        let pods = ["client", "server", "bypass"].map(|name| stand.pod(PodSpec::new("a", name)));
        let free = stand.pod(PodSpec::new("b", "free"));
        let [client, server, bypass] = pods;
        stand.servers.push(server.serve(&echo).unwrap());
        let mut watch = Watch::new(&stand.topology);
        stand.start();
        watch.sees_all_of(&free);
        let hold = |to: String| Exec::probe(["hold", &to, "--for-ms", "3600000", "--interval-ms", INTERVAL]);
        let going_out = client.spawn(&hold(format!("{OUTSIDE_V4}:{ECHO}"))).unwrap();
        let coming_in = stand.topology.outside_exec(&hold(format!("{}:{ECHO}", server.pod().v4()))).unwrap();
        let storm = bypass.spawn(&storm(3_600_000, &[])).unwrap();
        let mut traffic = Self { stand, client, server, bypass, free, watch, going_out, coming_in, storm };
        for process in [&mut traffic.going_out, &mut traffic.coming_in] {
            let beat: Beat = process.next_json(Duration::from_secs(5)).unwrap().unwrap();
            assert_eq!(beat.outcome, Outcome::Ok, "{beat:?}");
        }
        traffic
    }

    /// Somebody outside connects to the server; it may be asked at any time.
    #[track_caller]
    pub(crate) fn is_answered(&self) {
        let target = format!("{}:{ECHO}", self.server.pod().v4());
        let attempt = self.stand.topology.outside_attempt(&["tcp", &target, "--timeout-ms", "900"]).unwrap();
        assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
    }

    /// Ends it, and proves that nothing was noticed.
    #[track_caller]
    pub(crate) fn end(mut self, what: &str) {
        // Still going on; then a last look.
        thread::sleep(Duration::from_millis(100));
        assert!(self.storm.is_running().unwrap());
        let (out, into) = (held(&mut self.going_out), held(&mut self.coming_in));
        let repeated = [self.client.pod().netns(), self.server.pod().netns()].map(retransmitted);
        eprintln!(
            "{what}: going out {out:?}, coming in {into:?}, segments repeated by client and server {repeated:?}"
        );
        for held in [&out, &into] {
            assert!(held.exchanges > 50, "{held:?}");
            assert!(held.longest < STALL, "{held:?}");
        }
        drop(self.storm);
        self.watch.nothing_from(&self.free, [self.bypass.pod(), self.client.pod(), self.server.pod()]);
        for known in endpoints(&self.stand.agent) {
            let denials = known["denials"].as_array().unwrap();
            let denied: u64 = denials.iter().map(|denial| denial["packets"].as_u64().unwrap()).sum();
            match known["name"].as_str().unwrap() {
                "bypass" => {
                    assert!(denied > 100, "{known}");
                    eprintln!(
                        "{what}: {denied} packets of the bypass denied since the maps were made, none outside"
                    );
                }
                name => assert_eq!(denied, 0, "{name} was denied something: {known}"),
            }
        }
    }
}

/// What came of a connection so far: no error, and how long the longest time between two exchanges was.
#[track_caller]
fn held(process: &mut Process) -> Held {
    assert!(process.is_running().unwrap(), "the connection ended: {:?}", process.pending_json::<Beat>());
    let mut held = Held::default();
    let mut last = None;
    for beat in process.pending_json::<Beat>().unwrap() {
        match beat.outcome {
            Outcome::Ok => {
                if let Some(last) = last {
                    held.longest = held.longest.max(beat.at_ms - last);
                }
                last = Some(beat.at_ms);
                held.exchanges += 1;
            }
            // Not within its interval, but see `longest`.
            Outcome::Timeout => held.late += 1,
            _ => panic!("{beat:?}"),
        }
    }
    held
}

/// TCP segments that a namespace has sent more than once.
fn retransmitted(netns: &Netns) -> u64 {
    let table = netns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?)).unwrap();
    let mut rows = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let of = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RetransSegs");
    of.unwrap().1.parse().unwrap()
}

#[test]
fn nobody_notices_that_the_agent_is_killed_and_comes_back() {
    let _alone = alone();
    let kills = number("EGRESS_STORM_KILLS", 8);
    let mut traffic = Traffic::begin();
    let begin = Instant::now();
    let mut takes = Duration::from_millis(500);
    let mut halfway = 0;
    for cycle in 0..kills {
        let stand = &mut traffic.stand;
        stand.agent.kill().unwrap();
        if cycle % 2 == 0 {
            // Killed again somewhere on the way to being ready: later in each cycle, by steps that do not repeat.
            stand.agent.spawn(&stand.topology).unwrap();
            let part = u32::try_from(cycle * 7 % 20).unwrap();
            thread::sleep(takes * part / 20);
            halfway += 1;
        } else {
            traffic.is_answered();
            let stand = &mut traffic.stand;
            let start = Instant::now();
            stand.start();
            takes = start.elapsed();
        }
        traffic.is_answered();
    }
    if traffic.stand.agent.status().is_none_or(|status| status["ready"] != true) {
        let stand = &mut traffic.stand;
        stand.agent.wait("the agent is ready", |status| status["ready"] == true).unwrap();
    }
    let took = begin.elapsed();
    traffic.end(&format!("{kills} kills ({halfway} of an agent that had just been started) in {took:.0?}"));
}
