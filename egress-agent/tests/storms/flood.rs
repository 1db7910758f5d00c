//! Floods: one pod's denied packets cost the others nothing, and each is counted.

use std::time::{Duration, Instant};

use egress_probe::{Outcome, Storm};
use egress_topology::{CgroupDriver, Exec, OUTSIDE_V4, PodSpec};
use serde_json::Value;

use crate::common::{Stand, endpoints, eventually};
use crate::field::{FORBIDDEN, Watch, alone, lawful};

/// Packets of the flood, and how long it may take at most.
const PACKETS: u64 = 200_000;
const LIMIT: Duration = Duration::from_secs(3);

/// Time on the processor of the agent that this test started.
fn agent_cpu(stand: &Stand) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", stand.agent.id().unwrap())).unwrap();
    let columns: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime, of which the kernel shows hundredths of a second (USER_HZ).
    let ticks: u64 = [columns[11], columns[12]].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// What a pod was denied: packets, and those that no event told of.
fn denied(stand: &Stand, name: &str) -> (u64, u64) {
    let all = endpoints(&stand.agent);
    let pod = all.iter().find(|pod| pod["name"] == name).unwrap();
    let sum = |field: &str| {
        pod["denials"].as_array().unwrap().iter().map(|denial| denial[field].as_u64().unwrap()).sum()
    };
    (sum("packets"), sum("suppressed"))
}

fn flows(stand: &Stand, pod: &str) -> Vec<Value> {
    stand.agent.flows().unwrap().into_iter().filter(|flow| flow["pod"] == pod).collect()
}

#[test]
fn a_flood_of_denials_is_counted_exactly_and_hides_nobody() {
    let _alone = alone();
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(lawful());
    let [loud, quiet] = ["loud", "quiet"].map(|name| stand.pod(PodSpec::new("a", name)));
    let free = stand.pod(PodSpec::new("b", "free"));
    let mut watch = Watch::new(&stand.topology);
    stand.start();
    watch.sees_all_of(&free);
    let flood = |count: u64| {
        let target = format!("{OUTSIDE_V4}:{FORBIDDEN}");
        let limit = LIMIT.as_millis().to_string();
        Exec::probe(["flood", &target, "--count", &count.to_string(), "--for-ms", &limit])
    };

    let (before, start) = (agent_cpu(&stand), Instant::now());
    let mut sender = loud.spawn(&flood(PACKETS)).unwrap();
    // In the midst of it: another pod is denied something, and allowed something else.
    let attempt = quiet.attempt(&["udp", &format!("{OUTSIDE_V4}:4242"), "--timeout-ms", "500"]).unwrap();
    assert_eq!(attempt.outcome, Outcome::Denied);
    assert!(sender.is_running().unwrap(), "the flood was over too soon to be one");
    let done: Storm = sender.next_json(LIMIT * 3).unwrap().unwrap();
    assert_eq!((done.sent, done.failed), (0, 0), "{done:?}");
    assert!(done.refused > 10_000, "{done:?}");
    eventually("the other pod's event is told", || {
        flows(&stand, "a/quiet").iter().any(|flow| flow["destination"] == format!("{OUTSIDE_V4}:4242"))
    });
    // What the agent does later because of it counts as well.
    std::thread::sleep(LIMIT.saturating_sub(start.elapsed()));
    let (cpu, took) = (agent_cpu(&stand) - before, start.elapsed());

    eventually("every packet is counted", || denied(&stand, "loud").0 == done.refused);
    let (packets, suppressed) = denied(&stand, "loud");
    let told = flows(&stand, "a/loud").len() as u64;
    let lost = stand.agent.status().unwrap()["lost_events"].as_u64().unwrap();
    eprintln!(
        "flood: {packets} packets refused in {} ms; {told} events, {suppressed} suppressed, {lost} lost; the agent used {cpu:?} \
         in {took:.1?} ({:.1} % of a core)",
        done.elapsed_ms,
        100.0 * cpu.as_secs_f64() / took.as_secs_f64()
    );
    assert_eq!(packets, told + suppressed + lost);
    assert!(told > 0 && suppressed > 0);
    assert!(cpu < took / 2, "{cpu:?} in {took:?}");
    let status = stand.agent.status().unwrap();
    let counted: u64 = status["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|verdict| verdict["action"] == "deny")
        .map(|verdict| verdict["packets"].as_u64().unwrap())
        .sum();
    assert_eq!(counted, packets + denied(&stand, "quiet").0, "{status}");
    watch.nothing_from(&free, [loud.pod(), quiet.pod()]);

    // The next events tell how many went untold: each CPU for itself, so it is asked until both were heard.
    eventually("the number suppressed is told", || {
        loud.spawn(&flood(1)).unwrap().next_json::<Storm>(LIMIT).unwrap();
        let told: u64 = flows(&stand, "a/loud").iter().map(|flow| flow["suppressed"].as_u64().unwrap()).sum();
        told == denied(&stand, "loud").1
    });
}
