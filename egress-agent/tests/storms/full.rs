//! Full maps: what does not fit is denied, `status` says so, and there is room again when objects go. Nothing is restarted.

use std::time::Duration;

use egress_common::wire::{
    WITNESS_BEGAN, WITNESS_CAME_IN, WITNESS_CLOSED, WITNESS_FRAGMENT, WITNESS_STOOD, Witness, WitnessKey,
};
use egress_probe::{Attempt, Outcome};
use egress_topology::{CgroupDriver, Container, Exec, OUTSIDE_V4, PodSpec, Process, cgroup_id};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::common::{Stand, UDP, entries, eventually, outside, passes, pinned_hash, pod_object, udp};
use crate::field::{SINK, Watch, alone, fill, lawful, storm};

/// A node with `a/known` under a policy and `b/free` under none, and the observer.
struct Node {
    stand: Stand,
    known: Container,
    free: Container,
    watch: Watch,
}

impl Node {
    fn new() -> Self {
        let mut stand = Stand::new(CgroupDriver::Systemd);
        let sink = Exec::probe(["serve-load", "--port", &SINK.to_string()]);
        stand.servers.push(stand.topology.outside_serve(&sink).unwrap());
        stand.lock_down(lawful());
        let free = stand.pod(PodSpec::new("b", "free"));
        let known = stand.pod(PodSpec::new("a", "known"));
        let watch = Watch::new(&stand.topology);
        Self { stand, known, free, watch }
    }

    /// Starts the agent with a map that has room for so many entries more than are in it at first.
    fn start(&mut self, map: &str, room: u64, more: &[&str]) {
        let stand = &mut self.stand;
        stand.start();
        let entries = entries(&stand.agent, map);
        stand.agent.stop().unwrap();
        stand.agent.cleanup(&stand.topology).unwrap();
        self.start_with(map, entries + room, more);
    }

    fn start_with(&mut self, map: &str, entries: u64, more: &[&str]) {
        self.start_with_map(map, entries, more);
        assert_eq!(fill(&self.stand, map)["capacity"], entries);
    }

    /// As [`Self::start_with`], of a map whose fill is not told.
    fn start_with_map(&mut self, map: &str, entries: u64, more: &[&str]) {
        let size = format!("{map}={entries}");
        let arguments = [&["--map-entries", &size], more].concat();
        let stand = &mut self.stand;
        let agent =
            egress_topology::Agent::new(crate::common::agent_binary(), stand.bpffs.path(), stand.dir.path());
        stand.agent = agent.arguments(&arguments);
        stand.start();
        self.watch.sees_all_of(&self.free);
        passes(&self.known, &outside()[0]);
    }

    /// A pod whose object is written, though there may be no room for it.
    fn pod(&self, spec: PodSpec) -> Container {
        let container = self.stand.topology.add_pod(spec).unwrap().add_container("app").unwrap();
        self.stand.write(pod_object(&self.stand, container.pod()));
        container
    }

    fn remove(&self, container: &Container) {
        let object = pod_object(&self.stand, container.pod());
        container.pod().remove().unwrap();
        self.stand.remove(&object);
    }

    /// `status` says which map is full and what that means, as JSON and in the table.
    #[track_caller]
    fn says_full(&self, map: &str, means: &str) {
        // As the table has it, which a person reads; the JSON has the same.
        let words = [map.to_owned(), "full: ".to_owned(), means.to_owned()];
        eventually("status says that the map is full", || {
            let table = String::from_utf8(self.stand.agent.ask(&["status"]).unwrap().stdout).unwrap();
            table.lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
    }

    /// There is room again, and nothing is left undone.
    #[track_caller]
    fn recovers(&self, map: &str) {
        eventually("the agent is ready again", || {
            let status = self.stand.agent.status().unwrap();
            status["ready"] == true && fill(&self.stand, map)["full"].is_null()
        });
    }

    /// What a pod may not send, it does not get out; nor does what it may, if there was no room to say so.
    #[track_caller]
    fn nothing_from(&mut self, container: &Container) {
        let done: egress_probe::Storm =
            container.spawn(&storm(100, &[])).unwrap().output_json(Duration::from_secs(5)).unwrap();
        assert_eq!(done.sent, 0, "{done:?}");
        self.watch.nothing_from(&self.free, [container.pod()]);
    }
}

/// How often the agent tries again.
const TICK: Duration = Duration::from_secs(5);

/// A socket of a pod that stays open.
fn talk(container: &Container) -> Process {
    let target = format!("{OUTSIDE_V4}:{SINK}");
    let mut talk = container.spawn(&Exec::probe(["talk", &target]).with_stdin()).unwrap();
    talk.wait_ready(Duration::from_secs(5)).unwrap();
    talk
}

fn says(talk: &mut Process) -> Outcome {
    talk.send_line("word").unwrap();
    talk.next_json::<Attempt>(Duration::from_secs(5)).unwrap().unwrap().outcome
}

#[test]
fn endpoints() {
    const MAP: &str = "egress_endpoint";
    let _alone = alone();
    let mut node = Node::new();
    node.start(MAP, 0, &[]);
    let mut open = talk(&node.known);
    assert_eq!(says(&mut open), Outcome::Ok);

    let late = node.pod(PodSpec::new("a", "late"));
    eventually("it is said that the pod does not fit", || {
        let status = node.stand.agent.status().unwrap();
        status["ready"] == false && status["errors"].to_string().contains(MAP)
    });
    node.says_full(MAP, "stay unknown");
    node.nothing_from(&late);
    assert_eq!(udp(&late, &outside()[0]).outcome, Outcome::Denied, "what it may is not known");
    passes(&node.known, &outside()[0]);
    passes(&node.free, &outside()[0]);

    // A policy goes on changing for the others, also for what they have open.
    node.stand.lock_down(json!({}));
    eventually("the change is in force", || says(&mut open) == Outcome::Denied);
    node.nothing_from(&node.known.clone());
    node.stand.lock_down(lawful());
    eventually("and back", || says(&mut open) == Outcome::Ok);

    let other = node.pod(PodSpec::new("b", "other"));
    node.nothing_from(&other);
    // One goes that fitted, and one that did not.
    let free = node.free.clone();
    node.remove(&other);
    passes(&free, &outside()[0]);
    node.remove(&node.known);
    eventually("the pod has its place", || udp(&late, &outside()[0]).outcome == Outcome::Ok);
    eventually("the agent is ready again", || node.stand.agent.status().unwrap()["ready"] == true);
    node.nothing_from(&late);
}

/// The map of addresses, with these hooks.
fn addresses(hooks: &str) {
    const MAP: &str = "egress_ipcache";
    let _alone = alone();
    let mut node = Node::new();
    // The pod has two addresses, of which one fits.
    node.start(MAP, 1, &["--hooks", hooks]);
    let freed = node.pod(PodSpec::new("c", "freed"));
    eventually("it is said that an address does not fit", || {
        let status = node.stand.agent.status().unwrap();
        status["ready"] == false && status["errors"].to_string().contains(MAP)
    });
    node.says_full(MAP, "closed altogether");
    passes(&node.known, &outside()[0]);
    node.nothing_from(&node.known.clone());
    // What is taken from a pod that is locked down already cannot be said either; it may do nothing rather than too much.
    let mut kept = talk(&node.known);
    assert_eq!(says(&mut kept), Outcome::Ok);
    let fewer = json!([{"cidr": format!("{OUTSIDE_V4}/32"), "ports": [{"protocol": "UDP", "port": UDP}]}]);
    node.stand.lock_down(json!({"allow": {"to": fewer}}));
    eventually("the pod is closed, also what it has open", || says(&mut kept) == Outcome::Denied);
    node.stand.lock_down(lawful());
    // Which was free is to be locked down, and has something open.
    let mut open = talk(&node.free);
    assert_eq!(says(&mut open), Outcome::Ok);
    let mut policy = crate::common::policy(json!({}));
    policy["metadata"]["name"] = json!("more");
    policy["spec"]["subjects"][0]["namespaces"]["matchLabels"]["kubernetes.io/metadata.name"] = json!("b");
    node.stand.write(policy.clone());
    eventually("the pod is closed, also what it has open", || says(&mut open) == Outcome::Denied);
    // A new pod that is to be locked down is, though not all is known.
    let late = node.pod(PodSpec::new("a", "late"));
    eventually("the new pod is closed", || {
        let known = crate::common::endpoints(&node.stand.agent);
        known.iter().any(|known| known["name"] == "late")
    });
    let done: egress_probe::Storm =
        late.spawn(&storm(100, &[])).unwrap().output_json(Duration::from_secs(5)).unwrap();
    assert_eq!(done.sent, 0, "{done:?}");
    node.stand.remove(&policy);

    // What waits needs the place of what goes, and comes before it in the plan.
    node.remove(&late);
    let rows = || crate::common::entries(&node.stand.agent, "egress_rows");
    let before = rows();
    std::thread::sleep(TICK + Duration::from_secs(2));
    assert!(rows() <= before, "a plan that is tried again leaves rows behind");
    node.remove(&node.known);
    node.recovers(MAP);
    eventually("what was open goes on", || says(&mut open) == Outcome::Ok);
    passes(&freed, &outside()[0]);
    node.watch.nothing_from(&node.free, [late.pod(), node.known.pod()]);
}

#[test]
fn addresses_under_both_hooks() {
    addresses("both");
}

#[test]
fn addresses_under_the_socket_hook() {
    addresses("socket");
}

#[test]
fn prefixes() {
    const MAP: &str = "egress_cidrs";
    let _alone = alone();
    let mut node = Node::new();
    let stand = &node.stand;
    let within = |except: Value| json!({"allow": {"to": [{"cidr": "198.51.100.0/24", "except": except}]}});
    stand.lock_down(within(json!([])));
    node.start(MAP, 0, &[]);
    let mut open = talk(&node.known);
    assert_eq!(says(&mut open), Outcome::Ok);
    // Without the place for what is taken out, that would be of the block that is allowed.
    node.stand.lock_down(within(json!(["198.51.100.8/30"])));
    node.says_full(MAP, "closed altogether");
    eventually("the pod is closed, also what it has open", || says(&mut open) == Outcome::Denied);
    node.nothing_from(&node.known.clone());
    passes(&node.free, &outside()[0]);
    // Who would be audited only is not closed.
    let mut audit = crate::common::policy(within(json!(["198.51.100.16/30"])));
    audit["metadata"]["name"] = json!("audit");
    audit["spec"]["enforcement"] = json!("Audit");
    audit["spec"]["subjects"][0]["namespaces"]["matchLabels"]["kubernetes.io/metadata.name"] = json!("b");
    node.stand.write(audit.clone());
    std::thread::sleep(TICK);
    passes(&node.free, &outside()[0]);
    node.stand.remove(&audit);
    // As it was, there is room.
    node.stand.lock_down(within(json!([])));
    eventually("what was open goes on", || says(&mut open) == Outcome::Ok);
    eventually("the agent is ready again", || node.stand.agent.status().unwrap()["ready"] == true);
}

#[test]
fn devices() {
    const MAP: &str = "egress_devices";
    let _alone = alone();
    let mut node = Node::new();
    // The two pods that there are.
    node.start_with_map(MAP, 2, &[]);
    let coverage = |node: &Node, name: &str| {
        let known = crate::common::endpoints(&node.stand.agent);
        known.iter().find(|one| one["name"] == name).map(|one| one["coverage"].as_str().unwrap().to_owned())
    };
    let late = node.pod(PodSpec::new("a", "late"));
    eventually("it is said that its device is not covered", || {
        let status = node.stand.agent.status().unwrap();
        status["errors"].to_string().contains("cannot cover")
            && coverage(&node, "late").is_some_and(|told| told.starts_with("socket, not "))
    });
    // Its sockets are judged all the same.
    let done: egress_probe::Storm =
        late.spawn(&storm(100, &[])).unwrap().output_json(Duration::from_secs(5)).unwrap();
    assert_eq!(done.sent, 0, "{done:?}");
    node.watch.nothing_from(&node.free, [late.pod()]);
    node.remove(&node.known);
    eventually("its device has its place", || {
        coverage(&node, "late").as_deref() == Some(crate::common::COVERED[0])
    });
    eventually("nothing is wrong", || node.stand.agent.status().unwrap()["errors"] == json!([]));
    node.nothing_from(&late);
}

/// Who speaks for whom is not known then, and that is said; all else is judged.
#[test]
fn owners() {
    let _alone = alone();
    let mut node = Node::new();
    // The node's own addresses, those of two pods, and some more.
    node.start_with_map("egress_owners", 32, &[]);
    let told = |node: &Node| {
        let errors = node.stand.agent.status().unwrap()["errors"].to_string();
        errors.contains("cannot write whose an address is")
    };
    let mut late = Vec::new();
    while !told(&node) {
        late.push(node.pod(PodSpec::new("a", &format!("late-{}", late.len()))));
        assert!(late.len() < 20, "there is room for all");
        let known =
            |one: &Value| one["name"] == late.last().unwrap().pod().name() && one["addresses"] != json!([]);
        eventually("it is known", || crate::common::endpoints(&node.stand.agent).iter().any(known));
    }
    assert_eq!(node.stand.agent.status().unwrap()["ready"], false);
    node.nothing_from(late.last().unwrap());
    // What goes makes room.
    for pod in late.iter().take(2) {
        node.remove(pod);
    }
    eventually("nothing is wrong", || node.stand.agent.status().unwrap()["errors"] == json!([]));
}

#[test]
fn denials() {
    const MAP: &str = "egress_denials";
    let _alone = alone();
    let mut node = Node::new();
    node.start_with_map(MAP, 1, &[]);
    let lost = |node: &Node| node.stand.agent.status().unwrap()["lost_events"].as_u64().unwrap();
    node.nothing_from(&node.known.clone());
    let second = node.stand.pod(PodSpec::new("a", "second"));
    node.nothing_from(&second);
    passes(&second, &outside()[0]);
    // What there is no place for is counted as lost, and by the verdict.
    eventually("it is counted as lost", || lost(&node) > 0);
    node.remove(&node.known);
    let reasons = |node: &Node| {
        let known = crate::common::endpoints(&node.stand.agent);
        let second = known.into_iter().find(|one| one["name"] == "second").unwrap();
        second["denials"].as_array().unwrap().len()
    };
    eventually("there is room for what the other is denied", || {
        let _denied = udp(&second, "198.51.100.11");
        reasons(&node) > 0
    });
}

#[test]
fn rows() {
    const MAP: &str = "egress_rows";
    let _alone = alone();
    let mut node = Node::new();
    node.start(MAP, 1, &[]);
    // Each of these needs rows of its own.
    let policies: Vec<Value> = (0..4)
        .map(|number| {
            let ports = json!([{"protocol": "UDP", "port": UDP}, {"protocol": "TCP", "port": 1000 + number}]);
            let mut policy = crate::common::policy(
                json!({"allow": {"to": [{"cidr": format!("{OUTSIDE_V4}/32"), "ports": ports}]}}),
            );
            policy["metadata"]["name"] = json!(format!("more-{number}"));
            policy["spec"]["subjects"][0]["namespaces"]["matchLabels"]["kubernetes.io/metadata.name"] =
                json!(format!("n{number}"));
            node.stand.write(policy.clone());
            policy
        })
        .collect();
    let pods: Vec<Container> =
        (0..policies.len()).map(|number| node.pod(PodSpec::new(&format!("n{number}"), "pod"))).collect();
    eventually("it is said that rows do not fit", || {
        let status = node.stand.agent.status().unwrap();
        status["ready"] == false && status["errors"].to_string().contains(MAP)
    });
    node.says_full(MAP, "denied");
    eventually("every pod is known", || node.stand.agent.status().unwrap()["endpoints"]["Isolated"] == 5);
    let works = |pod: &&Container| udp(pod, &outside()[0]).outcome == Outcome::Ok;
    let denied: Vec<&Container> = pods.iter().filter(|pod| !works(pod)).collect();
    assert!(!denied.is_empty(), "rows are missing, so somebody is denied what it may send");
    pods.iter().for_each(|pod| node.nothing_from(pod));
    passes(&node.free, &outside()[0]);

    // The others go; who was denied is left with room for its rows.
    let last = denied[denied.len() - 1];
    for (pod, policy) in pods.iter().zip(&policies) {
        if pod.id() != last.id() {
            node.remove(pod);
            node.stand.remove(policy);
        }
    }
    node.remove(&node.known);
    eventually("the rows have their place", || works(&last));
    eventually("the agent is ready again", || node.stand.agent.status().unwrap()["ready"] == true);
    node.nothing_from(last);
}

/// What a living pod was asked long ago takes no place.
#[test]
fn what_is_too_long_ago_goes() {
    const KINDS: [(u8, u64, bool); 7] = [
        (WITNESS_CAME_IN, 60, true),
        (WITNESS_CAME_IN, 121, false),
        (WITNESS_CLOSED, 121, false),
        (WITNESS_BEGAN, 121, true),
        (WITNESS_BEGAN, 181, false),
        (WITNESS_FRAGMENT, 3, false),
        (WITNESS_STOOD, 1000, true),
    ];
    let mut node = Node::new();
    node.stand.start();
    let cgroup = cgroup_id(node.known.pod().cgroup()).unwrap();
    let clock = || Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
    while clock().as_secs() < 200 {
        std::thread::sleep(Duration::from_secs(1));
    }
    let now = u64::try_from(clock().as_nanos()).unwrap();
    let mut map = pinned_hash::<WitnessKey, Witness>(&node.stand, "egress_inbound");
    let key = |slot: usize| WitnessKey { slot: u32::try_from(slot).unwrap(), ..WitnessKey::default() };
    for (slot, (kind, age, _)) in KINDS.into_iter().enumerate() {
        let seen = now.saturating_sub(age * 1_000_000_000);
        map.insert(key(slot), Witness { cgroup, seen, kind, ..Witness::default() }, 0).unwrap();
    }
    let stays = |slot: usize| map.get(&key(slot), 0).is_ok();
    let gone = |(slot, (.., stay)): (usize, &(u8, u64, bool))| *stay || !stays(slot);
    eventually("what is over is gone", || KINDS.iter().enumerate().all(gone));
    for (slot, (kind, age, stay)) in KINDS.into_iter().enumerate() {
        assert_eq!(stays(slot), stay, "kind {kind} after {age} s");
    }
}

#[test]
fn witnesses() {
    const MAP: &str = "egress_inbound";
    const PLACES: u64 = 8;
    let _alone = alone();
    let mut node = Node::new();
    node.start_with(MAP, PLACES, &[]);
    let serve = Exec::probe(["serve-udp", "--port", &UDP.to_string()]);
    // Nothing is allowed to go to the ports of these clients.
    let ask = |pod: &Container, port: u64| {
        let target = format!("{}:{UDP}", pod.pod().v4());
        let words = ["udp", &target, "--source-port", &port.to_string(), "--timeout-ms", "150"];
        node.stand.topology.outside_attempt(&words).unwrap().outcome
    };
    let server = node.stand.pod(PodSpec::new("a", "server"));
    let _serving = server.serve(&serve).unwrap();
    let answered =
        (0..3 * PLACES).filter(|number| ask(&server, 40_000 + number) == Outcome::Ok).count() as u64;
    assert!((1..=PLACES).contains(&answered), "{answered} of {} places", PLACES);
    node.says_full(MAP, "cannot be answered");
    let second = node.stand.pod(PodSpec::new("a", "second"));
    let _serving = second.serve(&serve).unwrap();
    assert_eq!(ask(&second, 41_000), Outcome::Timeout, "not witnessed, so not answered");
    passes(&second, &outside()[0]);
    node.remove(&server);
    node.recovers(MAP);
    assert_eq!(ask(&second, 41_001), Outcome::Ok);
    node.nothing_from(&second);
}
