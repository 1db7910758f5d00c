//! Addresses and cgroups that are used again: what was a dead pod's is nobody's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use egress_probe::{Outcome, Storm};
use egress_topology::{CgroupDriver, Container, Exec, OUTSIDE_V4, PodSpec, cgroup_id};

use crate::common::{Stand, UDP, eventually, outside, passes, pod_object};
use crate::field::{Cgroups, Watch, alone, lawful, number, storm};

/// The index of the pods that follow each other.
const INDEX: u16 = 77;
/// The port from which somebody outside asks, and which nobody may send to by themselves.
const CLIENT: u16 = 45_000;

fn sends(container: &Container) -> Storm {
    container.spawn(&storm(150, &[])).unwrap().output_json(Duration::from_secs(10)).unwrap()
}

/// Somebody outside asks the pod's server and gets an answer.
fn is_asked(stand: &Stand, container: &Container) {
    let target = format!("{}:{UDP}", container.pod().v4());
    let words = ["udp", &target, "--source-port", &CLIENT.to_string(), "--timeout-ms", "1500"];
    let attempt = stand.topology.outside_attempt(&words).unwrap();
    assert_eq!(attempt.outcome, Outcome::Ok, "{attempt:?}");
}

/// The pod sends to the client outside what looks like an answer to a question of its.
fn answers_unasked(container: &Container) -> Outcome {
    let target = format!("{OUTSIDE_V4}:{CLIENT}");
    let words = ["udp", &target, "--source-port", &UDP.to_string(), "--timeout-ms", "200"];
    container.attempt(&words).unwrap().outcome
}

fn remove(stand: &Stand, container: &Container) {
    let object = pod_object(stand, container.pod());
    container.pod().remove().unwrap();
    stand.remove(&object);
}

#[test]
fn who_gets_the_address_of_a_dead_pod_gets_nothing_else_of_it() {
    let _alone = alone();
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(lawful());
    let free = stand.pod(PodSpec::new("b", "free"));
    let mut watch = Watch::new(&stand.topology);
    stand.start();
    watch.sees_all_of(&free);
    let serve = Exec::probe(["serve-udp", "--port", &UDP.to_string()]);

    for agent_runs in [true, false] {
        // One that may send anything, and was asked by somebody outside.
        let first = stand.pod(PodSpec::new("b", &format!("first-{agent_runs}")).index(INDEX));
        let server = first.serve(&serve).unwrap();
        assert!(sends(&first).sent > 0);
        is_asked(&stand, &first);
        drop(server);
        assert_ne!(answers_unasked(&first), Outcome::Denied, "it may send anything");
        let address = IpAddr::from(first.pod().v4());
        let gone = cgroup_id(first.pod().cgroup()).unwrap();
        let seen = watch.settled(&free).forbidden[&address].0;
        assert!(seen > 0);
        let read = Cgroups::read(&stand);
        assert!(read.endpoints.contains(&gone) && read.witnesses.contains(&gone), "{read:?}");

        // One that may not, with its address, at once.
        if !agent_runs {
            stand.agent.kill().unwrap();
        }
        remove(&stand, &first);
        let spec = PodSpec::new("a", &format!("second-{agent_runs}")).index(INDEX).network_first();
        let second = stand.topology.add_pod(spec).unwrap().add_container("app").unwrap();
        assert_ne!(cgroup_id(second.pod().cgroup()).unwrap(), gone);
        assert_eq!(answers_unasked(&second), Outcome::Denied);
        assert_eq!(sends(&second).sent, 0);
        stand.write(pod_object(&stand, second.pod()));
        if !agent_runs {
            stand.start();
        }
        eventually("the second pod may send what is lawful", || {
            crate::common::udp(&second, &outside()[0]).outcome == Outcome::Ok
        });
        assert_eq!(answers_unasked(&second), Outcome::Denied);
        assert_eq!(sends(&second).sent, 0);
        assert_eq!(watch.settled(&free).forbidden[&address].0, seen, "no more than the first one sent");
        eventually("nothing speaks of the first pod", || !Cgroups::read(&stand).all().contains(&gone));
        // What it is asked it may answer.
        let _server = second.serve(&serve).unwrap();
        eventually("what comes in is witnessed", || Cgroups::read(&stand).devices.len() == 2);
        is_asked(&stand, &second);

        // And back: a pod with the address of one that is locked down is not.
        remove(&stand, &second);
        let third = stand.pod(PodSpec::new("b", &format!("third-{agent_runs}")).index(INDEX));
        let done = sends(&third);
        assert!(done.sent > 0 && done.refused == 0, "{done:?}");
        remove(&stand, &third);
    }
}

#[test]
fn quick_pods_leave_nothing() {
    let _alone = alone();
    let pods = number("EGRESS_STORM_CHURN", 50);
    let mut stand = Stand::new(CgroupDriver::Cgroupfs);
    stand.lock_down(lawful());
    let free = stand.pod(PodSpec::new("b", "free"));
    let stays = stand.pod(PodSpec::new("a", "stays"));
    let mut watch = Watch::new(&stand.topology);
    stand.start();
    watch.sees_all_of(&free);
    let (mut ids, mut quick, mut known) = (BTreeSet::new(), Vec::new(), 0);
    for number in 0..pods {
        // The same few addresses and the same name again and again; every fifth one is looked at before it goes.
        let spec = PodSpec::new("a", "quick").index(INDEX + u16::try_from(number % 3).unwrap());
        let waits = number % 5 == 4;
        let container = if waits {
            stand.pod(spec)
        } else {
            let container = stand.topology.add_pod(spec).unwrap().add_container("app").unwrap();
            stand.write(pod_object(&stand, container.pod()));
            container
        };
        let id = cgroup_id(container.pod().cgroup()).unwrap();
        assert!(ids.insert(id), "cgroup {id} was another pod's");
        let done: Storm =
            container.spawn(&storm(20, &[])).unwrap().output_json(Duration::from_secs(5)).unwrap();
        assert_eq!(done.sent, 0, "{done:?}");
        if waits {
            // Before it was covered the kernel would tell the sender that nobody listens, past any socket.
            let target = format!("{}:{UDP}", container.pod().v4());
            stand.topology.outside_attempt(&["udp", &target, "--timeout-ms", "1"]).unwrap();
            let read = Cgroups::read(&stand);
            let all = [&read.endpoints, &read.devices, &read.denials, &read.witnesses];
            assert!(all.iter().all(|map| map.contains(&id)), "{read:?}");
            known += 1;
        }
        remove(&stand, &container);
        quick.push(container.pod().clone());
    }
    assert!(known > 0);
    watch.nothing_from(&free, &quick);
    let stay: BTreeSet<u64> =
        [&free, &stays].map(|container| cgroup_id(container.pod().cgroup()).unwrap()).into();
    eventually("no map speaks of a dead pod", || Cgroups::read(&stand).all() == stay);
    let pins = stand.agent.pins().unwrap();
    let links = pins.iter().filter(|pin| pin.to_str().unwrap().contains("link_egress_veth_")).count();
    // Without links for tc the kernel itself takes the hooks along with the device.
    assert!(links == 2 || links == 0, "{pins:?}");
    assert_eq!(stand.agent.status().unwrap()["unknown_pods"], 0);
    assert_eq!(sends(&stays).sent, 0);
    passes(&stays, &outside()[0]);
    eprintln!(
        "reuse: {pods} quick pods, {known} of them known before they went; {} entries left",
        stay.len()
    );
}
