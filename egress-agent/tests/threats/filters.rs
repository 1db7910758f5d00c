//! The veth hook as kernels before 6.6 have it: by filters of tc. The other rows are proved with it on such a kernel
//! (docs/kernels.md).

use egress_topology::PodSpec;
use serde_json::{Value, json};

use crate::common::{COVERED, Stand, endpoints, eventually};
use crate::frames::{frames, packet_sockets};
use crate::range::Range;
use crate::replies::what_came_in;

const FILTERS: &[&str] = &["--tc-filters"];

fn range() -> Range {
    Range::with(json!({}), FILTERS)
}

/// The programs in the filters of a device, as `tc` shows them.
fn filters(stand: &Stand, device: &str) -> Vec<String> {
    let of = |list: &str| {
        let output =
            stand.topology.node().command("tc", &["-json", "filter", "show", "dev", device, list], "");
        let filters: Vec<Value> = serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default();
        let names = filters.iter().filter_map(|filter| filter["options"]["bpf_name"].as_str());
        names.map(|name| format!("{name} {list}")).collect::<Vec<_>>()
    };
    [of("ingress"), of("egress")].concat()
}

const BOTH: [&str; 2] = ["egress_veth ingress", "egress_witness egress"];

#[test]
fn row_3_by_filters() {
    packet_sockets(&mut range());
}

#[test]
fn row_8_by_filters() {
    what_came_in(&mut range());
}

/// As plugins make one that limit what a pod may send. What comes in is not seen by it, and nobody is told that it is.
#[test]
fn row_15_a_queue_for_one_direction_is_no_coverage() {
    let mut range = Range::without_agent(json!({}));
    range.stand.agent = range.stand.agent.arguments(FILTERS);
    let device = range.locked.pod().host_interface().unwrap().to_owned();
    let topology = range.stand.topology.clone();
    let tc = |words: &[&str]| topology.node().command("tc", words, "").unwrap();
    tc(&["qdisc", "add", "dev", &device, "ingress"]);
    range.stand.start();
    let coverage = |range: &Range, name: &str| {
        let known = endpoints(&range.stand.agent).into_iter().find(|one| one["name"] == name);
        known.unwrap()["coverage"].clone()
    };
    eventually("the other pod is covered", || coverage(&range, "free") == COVERED[0]);
    assert_eq!(coverage(&range, "locked"), format!("socket, not {device}").as_str());
    let status = range.stand.agent.status().unwrap().to_string();
    assert!(status.contains("`ingress` queue"), "{status}");
    range.prove(&frames(None));
    tc(&["qdisc", "del", "dev", &device, "ingress"]);
    eventually("it is covered", || coverage(&range, "locked") == COVERED[0]);
    range.prove(&frames(Some("PacketSocket")));
}

#[test]
fn row_15_filters_are_there_once_come_back_and_go_with_cleanup() {
    let mut range = range();
    let born = range.stand.pod(PodSpec::new("a", "born-later"));
    let device = born.pod().host_interface().unwrap().to_owned();
    assert_eq!(filters(&range.stand, &device), BOTH);
    // The next agent's programs take the place of the first's.
    range.stand.agent.kill().unwrap();
    assert_eq!(filters(&range.stand, &device), BOTH);
    range.stand.start();
    let covered = || {
        let known = endpoints(&range.stand.agent).into_iter().find(|one| one["name"] == "born-later");
        known.is_some_and(|known| known["coverage"] == COVERED[0])
    };
    eventually("the pod is covered", covered);
    assert_eq!(filters(&range.stand, &device), BOTH);
    // As a network plugin might that starts anew.
    let attacked = range.locked.pod().host_interface().unwrap().to_owned();
    for device in [&device, &attacked] {
        // It takes the filters with it; the agent may have put them back before we can look.
        range.stand.topology.node().command("tc", &["qdisc", "del", "dev", device, "clsact"], "").unwrap();
    }
    eventually("the filters are back", || {
        [&device, &attacked].iter().all(|device| filters(&range.stand, device) == BOTH)
    });
    eventually("the pod is covered", covered);
    range.prove(&frames(Some("PacketSocket")));
    range.stand.agent.stop().unwrap();
    range.stand.agent.cleanup(&range.stand.topology).unwrap();
    assert_eq!(filters(&range.stand, &device).len(), 0);
}
