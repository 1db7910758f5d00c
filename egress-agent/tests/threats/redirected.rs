//! Row 8, where a mesh's netfilter in the pod leads what comes in to its sidecar: the socket that answers knows another port than the other
//! end does.

use std::net::SocketAddr;
use std::time::Duration;

use egress_probe::{Attempt, Beat, Outcome};
use egress_topology::{Container, Exec, Process};
use serde_json::json;

use crate::common::{denied, eventually, outside, udp};
use crate::range::Range;
use crate::replies::{SOON, own};

/// Where others send to, and where that is led, as Istio's init container does it with all ports and 15006.
const ECHO: [u16; 2] = [7, 15007];
const HTTP: [u16; 2] = [80, 15080];

/// Leads what comes in to the sidecar's ports, and serves there.
fn mesh(container: &Container) -> [Process; 2] {
    let [echo, http] = [ECHO, HTTP].map(|[from, to]| format!("tcp dport {from} redirect to :{to}"));
    let rules = format!(
        "table inet mesh {{\nchain inbound {{\ntype nat hook prerouting priority -100;\n{echo}\n{http}\n}}\n}}\n"
    );
    container.pod().netns().nft(&rules).unwrap();
    let serve = |words: &[&str]| container.serve(&Exec::probe(words)).unwrap();
    [
        serve(&["serve-echo", "--port", &ECHO[1].to_string()]),
        serve(&["serve-http", "--port", &HTTP[1].to_string(), "--name", "meshed"]),
    ]
}

/// Somebody outside who talks to the pod, over its redirect, until the end.
fn hold(range: &Range, v6: bool) -> Process {
    let target = SocketAddr::new(own(&range.locked, v6), ECHO[0]).to_string();
    let words = ["hold", &target, "--for-ms", "300000", "--interval-ms", "250"];
    range.stand.topology.outside_exec(&Exec::probe(words)).unwrap()
}

#[track_caller]
fn beats(held: &mut [Process], when: &str) {
    for process in held {
        let _before: Vec<Beat> = process.pending_json().unwrap();
        for _ in 0..2 {
            let beat: Beat = process.next_json(SOON).unwrap().unwrap();
            assert_eq!(beat.outcome, Outcome::Ok, "{when}: {beat:?}");
        }
    }
}

/// From far away, from the node as kubelet asks, and from another pod.
#[track_caller]
fn asks(range: &Range, container: &Container, when: &str) {
    for v6 in [false, true] {
        let at = |port: u16| SocketAddr::new(own(container, v6), port).to_string();
        let url = format!("http://{}/", at(HTTP[0]));
        let questions: [&[&str]; 3] = [&["get", &url], &["volume", &at(ECHO[0])], &["volume", &at(ECHO[1])]];
        for question in questions {
            let outside = range.stand.topology.outside_attempt(question).unwrap();
            let node = range.stand.topology.node_exec(&Exec::probe(question)).unwrap();
            let node: Attempt = node.output_json(Duration::from_secs(10)).unwrap();
            for attempt in [outside, node, range.peer.attempt(question).unwrap()] {
                assert!(attempt.succeeded(), "{when}: {question:?}: {attempt:?}");
            }
        }
    }
}

#[test]
fn row_8_what_came_in_by_the_meshs_redirect_is_answered() {
    let mut range = Range::new(json!({}));
    let (free, locked) = (range.free.clone(), range.locked.clone());
    let _servers = [mesh(&free), mesh(&locked)];
    asks(&range, &free, "of a pod that no policy selects");
    asks(&range, &locked, "at first");
    let mut held = [hold(&range, false), hold(&range, true)];
    beats(&mut held, "at first");
    range.stand.lock_down(json!({"allow": {"inCluster": false}}));
    eventually("the policy is changed", || !udp(&locked, &outside()[0]).succeeded());
    beats(&mut held, "after a change of the policy");
    asks(&range, &locked, "after a change of the policy");
    range.stand.agent.kill().unwrap();
    beats(&mut held, "without an agent");
    asks(&range, &locked, "without an agent");
    range.stand.start();
    beats(&mut held, "after a restart");
    asks(&range, &locked, "after a restart");
    // Being asked is no leave to ask.
    outside().iter().for_each(|address| denied(&locked, address));
}

#[test]
fn row_8_what_stood_before_by_the_meshs_redirect_goes_on() {
    let mut range = Range::without_agent(json!({"allow": {"inCluster": false}}));
    let locked = range.locked.clone();
    let _servers = mesh(&locked);
    let mut held = [hold(&range, false), hold(&range, true)];
    beats(&mut held, "before");
    range.stand.start();
    beats(&mut held, "with an agent");
    beats(&mut held, "a moment later");
    denied(&locked, range.peer.pod().v4());
}
