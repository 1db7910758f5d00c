//! Births: no packet of a locked-down pod leaves before its policy is in place, however early it is sent.

use std::time::{Duration, Instant};

use egress_probe::Storm;
use egress_topology::{CgroupDriver, OUTSIDE_V4, PodSpec, Process, kubernetes, pod_v4, pod_v6};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::{Stand, UDP, pod_object};
use crate::field::{FRAMES, Watch, alone, lawful, number, storm};

/// Pods that stand at the same time.
const WAVE: usize = 60;
/// How long a pod may have to wait for what it may do, from its first instruction on: a wave's objects are read within two ticks of
/// the agent, also when two CPUs have a wave of senders to run.
const SOON: u64 = 10_000;

/// When the Pod object comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Birth {
    /// Before the cgroup.
    Announced,
    /// While the pod is sending already.
    Late,
    /// The agent is stopped (SIGSTOP) until the whole wave sends, so that it cannot have known of the cgroup.
    Unseen,
}

#[test]
fn no_packet_of_a_pod_leaves_before_its_policy_is_in_place() {
    let _alone = alone();
    let pods = number("EGRESS_STORM_BIRTHS", WAVE);
    let start = Instant::now();
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(lawful());
    let free = stand.pod(PodSpec::new("b", "free"));
    let mut watch = Watch::new(&stand.topology);
    stand.start();
    watch.sees_all_of(&free);

    let (mut waits, mut total) = (Vec::new(), Storm::default());
    let mut first = 0;
    while first < pods {
        let numbers: Vec<usize> = (first..pods.min(first + WAVE)).collect();
        for (wait, storm) in wave(&stand, &numbers, &mut watch, &free) {
            waits.push(wait);
            total.refused += storm.refused;
            total.connects += storm.connects;
            total.frames += storm.frames;
            total.failed += storm.failed;
            assert_eq!(storm.sent, 0, "the kernel took a datagram: {storm:?}");
            assert!(storm.refused > 0 && storm.connects > 0, "{storm:?}");
        }
        first += WAVE;
    }
    waits.sort_unstable();
    let seen = watch.settled(&free);
    let leaked: u64 = seen.frames.values().sum();
    eprintln!(
        "births: {pods} pods in {:.0?}; {} datagrams refused, {} connections begun, 0 packets outside; lawful traffic after \
         {} ms (median), {} ms (longest); packet sockets: {leaked} of {} frames got out",
        start.elapsed(),
        total.refused,
        total.connects,
        waits[waits.len() / 2],
        waits[waits.len() - 1],
        total.frames,
    );
    let hooks = stand.agent.status().unwrap()["hooks"].clone();
    if hooks.as_array().unwrap().iter().any(|hook| hook["program"] == "egress_create") {
        assert_eq!(leaked, 0, "{:?}", seen.frames);
    }
    assert!(waits[waits.len() - 1] < SOON, "{waits:?}");
}

/// Bears the pods of these numbers; gives when their lawful traffic passed, and what they sent in all.
fn wave(
    stand: &Stand,
    numbers: &[usize],
    watch: &mut Watch,
    free: &egress_topology::Container,
) -> Vec<(u64, Storm)> {
    let kind = |number: usize| [Birth::Announced, Birth::Late, Birth::Unseen][number % 3];
    let mut pods = Vec::new();
    let mut senders: Vec<Process> = Vec::new();
    let mut objects: Vec<Value> = Vec::new();
    let mut bear = |number: usize| {
        let index = u16::try_from(100 + number).unwrap();
        let uid = format!("5702a700-0000-4000-8000-{number:012}");
        let spec = PodSpec::new("a", &format!("born-{number}")).index(index).uid(&uid).network_first();
        if kind(number) == Birth::Announced {
            let object = announced(stand, number, index, &uid);
            stand.write(object.clone());
            objects.push(object);
        }
        let container = stand.topology.add_pod(spec).unwrap().add_container("app").unwrap();
        let lawful = format!("{OUTSIDE_V4}:{UDP}");
        let sender = storm(300, &["--lawful", &lawful, "--frames", &FRAMES.to_string()]);
        senders.push(container.spawn(&sender).unwrap());
        pods.push(container.pod().clone());
        if kind(number) != Birth::Announced {
            objects.push(pod_object(stand, container.pod()));
        }
    };
    let of = |wanted: &'static [Birth]| {
        numbers.iter().copied().filter(move |number| wanted.contains(&kind(*number)))
    };
    of(&[Birth::Announced, Birth::Late]).for_each(&mut bear);
    // The agent that this test started: not reaped, so the number is its.
    let agent = Pid::from_raw(i32::try_from(stand.agent.id().unwrap()).unwrap());
    kill(agent, Signal::SIGSTOP).unwrap();
    of(&[Birth::Unseen]).for_each(&mut bear);
    std::thread::sleep(Duration::from_millis(100));
    kill(agent, Signal::SIGCONT).unwrap();
    // Those announced are written a second time, which changes nothing.
    objects.iter().for_each(|object| stand.write(object.clone()));

    let results = senders.into_iter().map(|mut sender| {
        let patience = Duration::from_secs(25);
        let first: Storm = sender.next_json(patience).unwrap().unwrap();
        // Without it the first line is the last.
        let wait = first.lawful_after_ms.unwrap_or_else(|| panic!("lawful traffic never passed: {first:?}"));
        (wait, sender.output_json(patience).unwrap())
    });
    let results = results.collect();
    watch.nothing_from(free, &pods);
    for pod in &pods {
        pod.remove().unwrap();
    }
    objects.iter().for_each(|object| stand.remove(object));
    results
}

/// The object of a pod that is not there yet.
fn announced(stand: &Stand, number: usize, index: u16, uid: &str) -> Value {
    let ips = json!([{"ip": pod_v4(index)}, {"ip": pod_v6(index)}]);
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("born-{number}"), "namespace": "a", "uid": uid},
        "spec": {"nodeName": stand.topology.node_name(), "containers": [{"name": "app", "image": "egress-probe:test"}]},
        "status": {"phase": "Running", "qosClass": "BestEffort", "podIP": pod_v4(index), "podIPs": ips},
    });
    assert!(kubernetes::file_name(&object).contains("born"));
    object
}
