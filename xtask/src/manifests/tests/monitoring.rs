//! Monitoring: which alerts are of a node and which are the cluster's, and the labels that scraping gives.
//!
//! That metrics and labels are ones that there are is held by `egress-agent/tests/metrics.rs`.

use std::fs;

use serde_json::Value;

use super::{helm, one, texts};
use crate::command::root;

/// What agents see alike, since it is of objects that all of them read, or comes of one of these.
const ALIKE: [&str; 7] = [
    "invalid_policies",
    "diagnostics",
    "source_errors",
    "objects",
    "watch_",
    "endpoints{state=\"Invalid\"",
    "service_state{state",
];
/// What is of no node at all.
const OF_CLUSTER: [&str; 3] =
    ["EgressEnforcerNodesWithoutAgent", "EgressEnforcerDefinitionGone", "EgressEnforcerNobodyLeads"];

#[test]
fn what_all_agents_see_alike_fires_once_and_its_runbook_names_the_nodes() {
    let text = fs::read_to_string(root().join("deploy/alerts/egress-enforcer.yaml")).unwrap();
    let rules: Value = serde_saphyr::from_str(&text).unwrap();
    let (mut once, mut of_cluster) = (0, 0);
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let [name, query] = ["alert", "expr"].map(|field| rule[field].as_str().unwrap());
        let said = ["summary", "description", "runbook"].map(|field| {
            rule["annotations"][field].as_str().unwrap_or_else(|| panic!("{name} has no {field}"))
        });
        if OF_CLUSTER.contains(&name) {
            assert!(query.contains(" by (job)") && !query.contains(" by (instance"), "{name}: {query}");
            assert!(said.iter().all(|text| !text.contains("$labels.instance")), "{name} names a node");
            of_cluster += 1;
            continue;
        }
        if !ALIKE.iter().any(|metric| query.contains(&format!("egress_enforcer_{metric}"))) {
            assert!(said[0].contains("$labels.instance"), "{name} does not name the node");
            assert!(!query.contains(" by (") || query.contains(" by (instance"), "{name}: {query}");
            continue;
        }
        once += 1;
        let (grouped, rest) = query.split_once(") (").unwrap_or_else(|| panic!("{name}: {query}"));
        let by = ["max by (job", "sum by (job"].iter().find_map(|begin| grouped.strip_prefix(begin));
        assert!(matches!(by, Some("" | ", kind" | ", service")), "{name}: {query}");
        assert!(said.iter().all(|text| !text.contains("$labels.instance")), "{name} names a node");
        let of_a_node = format!("`{}`", rest.replacen(')', "", 1));
        assert!(said[2].contains(&of_a_node), "{name}: the runbook has no {of_a_node}");
    }
    assert_eq!((once, of_cluster), (5, OF_CLUSTER.len()));
}

#[test]
fn the_nodes_name_is_a_label_of_what_is_scraped() {
    let objects = helm(&["--set", "podMonitor.enabled=true"]);
    let endpoint = &one(&objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0];
    let [relabeling] = &endpoint["relabelings"].as_array().unwrap()[..] else { panic!("{endpoint}") };
    assert_eq!(texts(&relabeling["sourceLabels"]), ["__meta_kubernetes_pod_node_name"]);
    assert_eq!(relabeling["targetLabel"], "node");

    // The guide's job does the same, and finds the same pods.
    let guide = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let (_, rest) = guide.split_once("and the label:\n\n```yaml\n").unwrap();
    let jobs: Value = serde_saphyr::from_str(rest.split_once("```").unwrap().0).unwrap();
    let [job] = &jobs.as_array().unwrap()[..] else { panic!("{jobs}") };
    assert_eq!(job["job_name"], "egress-enforcer");
    assert_eq!(job["relabel_configs"][1]["source_labels"], relabeling["sourceLabels"]);
    assert_eq!(job["relabel_configs"][1]["target_label"], relabeling["targetLabel"]);
    let template = &one(&objects, "DaemonSet")["spec"]["template"];
    let component = template["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap();
    let port = template["spec"]["containers"][0]["ports"][0]["name"].as_str().unwrap();
    assert_eq!(job["relabel_configs"][0]["regex"], format!("{component};{port}"));
    let from = ["pod_label_app_kubernetes_io_component", "pod_container_port_name"];
    let from = from.map(|label| format!("__meta_kubernetes_{label}"));
    assert_eq!(texts(&job["relabel_configs"][0]["source_labels"]), from);
}
