//! What the status of lock-downs is counted from.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod random;

use std::collections::{BTreeMap, BTreeSet};

use common::{World, json, lock, mesh, pod, set, slice};
use egress_policy::census::Counted;
use egress_policy::compile::{UnknownPods, compile_every_pod};
use egress_policy::index::{Event, Index};
use egress_policy::object::{NamespaceLabels, Pod, read};
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use random::strategy::cluster;

fn count(world: &World) -> Counted {
    let mut counted = world.index.census().count();
    assert_eq!(counted.len(), 1);
    counted.pop().unwrap()
}

#[test]
fn a_lock_downs_pods_and_ways_out_are_counted() {
    let mut policy = lock(json!({}));
    policy["metadata"]["generation"] = 7.into();
    policy["metadata"]["uid"] = "u".into();
    let world = mesh().with(policy);
    let expected = Counted {
        name: "mesh".into(),
        uid: "u".into(),
        generation: 7,
        error: None,
        audit: false,
        subjects: 2,
        gateways: 1,
        ready_gateway_endpoints: 1,
    };
    assert_eq!(count(&world), expected);
}

#[test]
fn what_has_finished_and_what_is_a_gateway_is_no_subject() {
    let world = mesh().with(lock(json!({})));
    let finished =
        set(pod("app/job", "10.0.1.9", json!({"app": "job"})), "/status/phase", json!("Succeeded"));
    assert_eq!(count(&world.with(finished)).subjects, 2);
    let gateway = pod("app/way", "10.0.2.9", json!({"istio": "egressgateway"}));
    let everywhere = json!([{"pods": {"matchLabels": {"istio": "egressgateway"}}}]);
    let world = mesh().with(lock(json!({"gateways": everywhere}))).with(gateway);
    assert_eq!((count(&world).subjects, count(&world).ready_gateway_endpoints), (2, 2));
}

#[test]
fn a_gateway_is_ready_as_far_as_slices_say() {
    let world = mesh().with(lock(json!({})));
    let mut unready = slice("gw/gate", &["10.0.2.1"], json!([{"name": "https", "port": 8443}]));
    unready["endpoints"][0]["conditions"] = json!({"ready": false});
    assert_eq!(count(&world.with(unready.clone())).ready_gateway_endpoints, 0);
    // Of two services, one says that it is.
    unready["metadata"]["name"] = "another".into();
    assert_eq!(count(&world.with(unready)).ready_gateway_endpoints, 1);
    // A pod that no service is in front of counts; one without an address does not.
    let quiet = world.without("EndpointSlice gw/gate-4");
    assert_eq!(count(&quiet).ready_gateway_endpoints, 1);
    let homeless = set(pod("gw/gate", "10.0.2.1", json!({"istio": "egressgateway"})), "/status", json!({}));
    assert_eq!(count(&quiet.with(homeless)).ready_gateway_endpoints, 0);
}

#[test]
fn listed_addresses_count_once() {
    let gateways = json!([
        {"addresses": ["198.51.100.7/32", "198.51.100.8/32"]},
        {"addresses": ["198.51.100.7/32", "203.0.113.0/24"]},
    ]);
    let counted = count(&mesh().with(lock(json!({"gateways": gateways}))));
    assert_eq!((counted.gateways, counted.ready_gateway_endpoints), (2, 3));
}

#[test]
fn an_invalid_lock_down_says_why_and_counts_whom_it_closes() {
    let world = mesh().with(lock(json!({"allow": {"dns": "Sometimes"}})));
    let counted = count(&world);
    assert!(counted.error.as_deref().unwrap().starts_with("spec.allow"), "{counted:?}");
    assert_eq!(counted.subjects, 2);
    // Subjects that cannot be read may be anybody outside the lifeline.
    let world = mesh().with(lock(json!({"subjects": "everybody"})));
    assert_eq!(count(&world).subjects, 3);
}

#[test]
fn without_lock_downs_nothing_is_counted() {
    assert_eq!(mesh().index.census().count(), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every node's compiler, asked for every pod, locks down whom the census counts.
    #[test]
    fn subjects_are_whom_the_compilers_lock_down(cluster in cluster(4)) {
        let mut index = Index::default();
        for object in cluster.objects() {
            for event in read(object).unwrap().into_iter().filter_map(egress_policy::object::Read::event) {
                index.apply(event);
            }
        }
        let namespaces: BTreeMap<_, _> = index.namespaces().map(|one| (&*one.name, &one.labels)).collect();
        let is_gateway = |pod: &Pod| {
            let labels = NamespaceLabels { name: &pod.namespace, labels: namespaces.get(&*pod.namespace).copied() };
            let gateways = index.gateway_policies().flat_map(|policy| &policy.gateways);
            gateways.filter_map(|gateway| gateway.pods.as_ref()).any(|peer| peer.matches(pod, labels))
        };
        let nodes: BTreeSet<&str> = index.pods().map(|pod| pod.node().map(|node| &**node).unwrap_or_default()).collect();
        let mut locked: BTreeMap<String, usize> = BTreeMap::new();
        for node in nodes {
            let compiled = compile_every_pod(&index, node, UnknownPods::DenyOutside);
            for endpoint in compiled.endpoints.values() {
                let pod = index.pod(&endpoint.namespace, &endpoint.name).unwrap();
                if pod.finished || is_gateway(pod) {
                    continue;
                }
                for policy in &endpoint.policies {
                    *locked.entry(policy.to_string()).or_default() += 1;
                }
            }
        }
        for counted in index.census().count() {
            let expected = locked.get(&format!("EgressGatewayPolicy {}", counted.name)).copied().unwrap_or(0);
            prop_assert_eq!(counted.subjects, expected, "{}", counted.name);
        }
    }
}

#[test]
fn an_upsert_of_the_same_lock_down_under_another_uid_is_another() {
    let object = |uid: &str| {
        let mut policy = lock(json!({}));
        policy["metadata"]["uid"] = uid.into();
        read(policy).unwrap().pop().unwrap().event().unwrap()
    };
    let mut index = Index::default();
    index.apply(object("a"));
    assert!(matches!(object("b"), Event::Upsert(_)));
    index.apply(object("b"));
    assert_eq!(&*index.census().count()[0].uid, "b");
}
