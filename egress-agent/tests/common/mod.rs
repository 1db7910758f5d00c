//! A node with pods and the real agent, for the privileged tests.
#![allow(
    clippy::allow_attributes,
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part, and none is seen from outside"
)]
#![expect(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfHash, Map, MapData};
use egress_agent::datapath::Datapath;
use egress_common::wire::ABI;
use egress_probe::{Attempt, Outcome};
use egress_topology::{
    Agent, CgroupDriver, Container, Exec, MountPoint, OUTSIDE_V4, OUTSIDE_V6, Options, Pod, PodSpec, Process,
    Topology, kubernetes, mount_bpffs,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How the coverage of a pod begins that has a network.
pub const COVERED: [&str; 2] = ["socket+veth", "socket (the node"];

/// What the agent says of the pods it knows.
pub fn endpoints(agent: &Agent) -> Vec<Value> {
    let answer = agent.ask(&["endpoints", "-o", "json"]).unwrap();
    let text = String::from_utf8(answer.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The port outside, and in `peer`, that echoes UDP.
pub const UDP: u16 = 9999;

/// Dropped in this order: the agent, the servers, then what they stand on.
pub struct Stand {
    pub agent: Agent,
    pub servers: Vec<Process>,
    pub topology: Topology,
    pub bpffs: MountPoint,
    pub dir: TempDir,
}

pub fn agent_binary() -> PathBuf {
    env!("CARGO_BIN_EXE_egress-agent").into()
}

pub fn probe_binary() -> PathBuf {
    let probe = agent_binary().with_file_name("egress-probe");
    assert!(
        probe.exists(),
        "{} is missing: cargo build -p egress-probe, or run cargo xtask test",
        probe.display()
    );
    probe
}

impl Stand {
    /// A node without pods, with an echo of UDP outside.
    pub fn new(driver: CgroupDriver) -> Self {
        Self::with(Options { prefix: "egress-test".to_owned(), driver, ..Options::default() })
    }

    /// As [`Self::new`], of another kind.
    pub fn with(options: Options) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test loads BPF and makes network namespaces: run it as root"
        );
        let dir = TempDir::with_prefix("egress-test-").unwrap();
        let bpffs = mount_bpffs(&dir.path().join("bpf")).unwrap();
        let topology = Topology::with_options(probe_binary(), options).unwrap();
        let agent = Agent::new(agent_binary(), bpffs.path(), dir.path());
        fs::create_dir_all(agent.objects()).unwrap();
        let echo = topology.outside_serve(&Exec::probe(["serve-udp", "--port", &UDP.to_string()])).unwrap();
        Self { agent, servers: vec![echo], topology, bpffs, dir }
    }

    /// A pod with one container, whose object is written. Under a running agent it is waited for, as a container would be
    /// whose image has to be found first.
    pub fn pod(&self, spec: PodSpec) -> Container {
        let container = self.topology.add_pod(spec).unwrap().add_container("app").unwrap();
        self.write(kubernetes::pod(container.pod(), self.topology.node_name()));
        if self.agent.id().is_some() {
            let uid = container.pod().uid().to_owned();
            eventually("the pod is covered", || {
                let known = endpoints(&self.agent).into_iter().find(|endpoint| endpoint["uid"] == *uid);
                known.is_some_and(|known| {
                    COVERED.iter().any(|begin| known["coverage"].as_str().unwrap().starts_with(begin))
                })
            });
        }
        container
    }

    /// A pod with an echo of UDP.
    pub fn peer(&mut self) -> Container {
        let peer = self.pod(PodSpec::new("default", "peer").label("app", "peer"));
        self.servers.push(peer.serve(&Exec::probe(["serve-udp", "--port", &UDP.to_string()])).unwrap());
        peer
    }

    pub fn write(&self, object: Value) {
        kubernetes::write(&self.agent.objects(), &[object]).unwrap();
    }

    pub fn remove(&self, object: &Value) {
        kubernetes::remove(&self.agent.objects(), object).unwrap();
    }

    pub fn start(&mut self) {
        self.agent.start(&self.topology).unwrap();
    }

    /// Locks down namespace `a` by the policy `lock`, merged with `more`.
    pub fn lock_down(&self, more: Value) {
        self.write(policy(more));
    }
}

/// Policy `lock` for the pods of namespace `a`, with more in its spec.
pub fn policy(more: Value) -> Value {
    let mut spec = json!({
        "subjects": [{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "a"}}}],
        "gateways": [],
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy",
        "metadata": {"name": "lock"}, "spec": spec,
    })
}

/// Sends a datagram and waits for its echo.
pub fn udp(container: &Container, address: impl ToString) -> Attempt {
    let target = format!("{}:{UDP}", address.to_string());
    container.attempt(&["udp", &target, "--timeout-ms", "1500"]).unwrap()
}

#[track_caller]
pub fn passes(container: &Container, address: impl ToString) {
    let attempt = udp(container, address);
    assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
}

#[track_caller]
pub fn denied(container: &Container, address: impl ToString) {
    let attempt = udp(container, address);
    assert_eq!(attempt.outcome, Outcome::Denied, "{attempt:?}");
}

/// The address outside, of both families.
pub fn outside() -> [String; 2] {
    [OUTSIDE_V4.to_string(), format!("[{OUTSIDE_V6}]")]
}

/// Waits until something holds, for at most ten seconds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    // As long as the agent may take to begin, on machines where everything is slow.
    let seconds = std::env::var("EGRESS_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
    let patience = Duration::from_secs(seconds.unwrap_or(10));
    while !holds() {
        assert!(start.elapsed() < patience, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// What this kernel lacks, whoever asks: nothing but the hook on new sockets, which some have without using it for BPF.
pub fn lacks() -> Value {
    let dir = TempDir::with_prefix("egress-test-").unwrap();
    let bpffs = mount_bpffs(&dir.path().join("bpf")).unwrap();
    let datapath = Datapath::open(bpffs.path()).unwrap();
    for lack in datapath.lacks() {
        assert!(lack.contains("packet sockets of pods"), "{lack}");
    }
    json!(datapath.lacks())
}

/// Entries of a map, as the agent's status tells.
pub fn entries(agent: &Agent, map: &str) -> u64 {
    let status = agent.status().unwrap();
    let fill = status["maps"].as_array().unwrap().iter().find(|fill| fill["map"] == map).unwrap().clone();
    fill["entries"].as_u64().unwrap()
}

/// A map as it is pinned.
pub fn pinned(stand: &Stand, name: &str) -> MapData {
    let pin = stand.bpffs.path().join(format!("egress-enforcer/v{ABI}/{name}"));
    MapData::from_pin(&pin).unwrap_or_else(|error| panic!("{}: {error}", pin.display()))
}

/// A hash as it is pinned.
pub fn pinned_hash<K: aya::Pod, V: aya::Pod>(stand: &Stand, name: &str) -> BpfHash<MapData, K, V> {
    Map::HashMap(pinned(stand, name)).try_into().unwrap()
}

/// The object of a pod.
pub fn pod_object(stand: &Stand, pod: &Pod) -> Value {
    kubernetes::pod(pod, stand.topology.node_name())
}

pub fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}
