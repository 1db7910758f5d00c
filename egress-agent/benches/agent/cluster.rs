//! The cluster that the API server has: `n` pods in `n / 100` namespaces, `n / 10` services of 20 backends each, `n / 50` network policies
//! and a lock-down of every other namespace with its gateway, as large as real objects are.

use egress_fixture::Fixture;
use serde_json::{Value, json};

const PER_NAMESPACE: usize = 100;
const REPLICAS: usize = 20;

/// In no order of names, as a network plugin gives addresses out. An odd factor makes a permutation of 17 bits.
fn address(pod: usize) -> String {
    let at = pod * 61_681 % 131_072;
    format!("10.{}.{}.{}", 64 + at / 62_500, at / 250 % 250, at % 250 + 1)
}

/// A pod as a deployment makes it, with what the API server keeps of it besides.
fn pod(pod: usize, extra: &str) -> Value {
    let (namespace, app) = (pod / PER_NAMESPACE, pod % PER_NAMESPACE / REPLICAS);
    let fields: Value = (0..30).map(|i| (format!("f:field-{i}"), json!({"f:value": {}}))).collect();
    let variables: Vec<Value> =
        (0..12).map(|i| json!({"name": format!("VARIABLE_{i}"), "value": "some value of it"})).collect();
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example/{name}:v1.2.3"), "env": variables,
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent",
        })
    };
    let status = |name: &str| {
        json!({
            "name": name, "ready": true, "restartCount": 0, "started": true,
            "containerID": format!("containerd://{:064x}", pod * 2 + usize::from(name == "app")),
            "imageID": format!("registry.example/{name}@sha256:{:064x}", 7),
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "lastState": {},
        })
    };
    let random = (pod as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    json!({
        "metadata": {
            "namespace": format!("team-{namespace}"), "name": format!("app-{app}-6d4cf56db6-{pod:06}"),
            "uid": format!("{:08x}-0000-4000-8000-{pod:012}", random >> 32),
            "labels": {
                "app": format!("app-{app}"), "pod-template-hash": format!("6d4cf5{namespace}{app}"), "extra": extra,
                "app.kubernetes.io/part-of": format!("team-{namespace}"), "version": "v1",
            },
            "annotations": {"prometheus.io/scrape": "true", "sidecar.istio.io/status": "{\"containers\":[\"istio-proxy\"]}"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{app}-6d4cf56db6"),
                "uid": "0", "controller": true}],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": fields}],
        },
        "spec": {
            "nodeName": format!("node-{}", pod * 400 / 100_000), "serviceAccountName": format!("app-{app}"),
            "containers": [container("app"), container("istio-proxy")],
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        },
        "status": {
            "phase": "Running", "podIP": address(pod), "podIPs": [{"ip": address(pod)}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [status("app"), status("istio-proxy")],
        },
    })
}

/// Changes a pod in a way that no policy asks for, as most changes are.
pub fn change(fixture: &Fixture, number: usize) {
    fixture.apply_manifest("pods", &pod(number % 500, &format!("x{number}")));
}

/// Makes the cluster.
pub fn fill(fixture: &Fixture, pods: usize) {
    for namespace in 0..pods.div_ceil(PER_NAMESPACE) {
        let name = format!("team-{namespace}");
        let mesh = if namespace % 2 == 0 { "enabled" } else { "disabled" };
        let labels = json!({
            "kubernetes.io/metadata.name": name, "group": format!("g{}", namespace % 50), "istio-injection": mesh,
        });
        fixture.apply("namespaces", "", &name, &json!({"metadata": {"name": name, "labels": labels}}));
    }
    for number in 0..pods {
        fixture.apply_manifest("pods", &pod(number, "0"));
    }
    for service in 0..pods / 10 {
        let (namespace, app) = (service / 10, service % 10 / 2);
        let (name, of) = (format!("app-{}", service % 10), format!("team-{namespace}"));
        let vip = format!("10.96.{}.{}", service / 250, service % 250 + 1);
        let object = json!({
            "metadata": {"namespace": of, "name": name},
            "spec": {"clusterIP": vip, "clusterIPs": [vip], "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]},
        });
        fixture.apply_manifest("services", &object);
        let first = namespace * PER_NAMESPACE + app * REPLICAS;
        let endpoints: Vec<Value> = (first..first + REPLICAS)
            .map(|pod| json!({"addresses": [address(pod)], "conditions": {"ready": true, "serving": true}}))
            .collect();
        let slice = json!({
            "addressType": "IPv4",
            "metadata": {"namespace": of, "name": format!("{name}-abcde"), "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
        });
        fixture.apply_manifest("endpointslices", &slice);
    }
    for policy in 0..pods / 50 {
        let (namespace, number) = (policy / 2, policy % 2);
        let object = json!({
            "metadata": {"namespace": format!("team-{namespace}"), "name": format!("policy-{number}")},
            "spec": {
                "podSelector": {"matchLabels": {"app": format!("app-{number}")}}, "policyTypes": ["Egress"],
                "egress": [
                    {"to": [{"podSelector": {"matchLabels": {"app": format!("app-{}", number + 1)}}}], "ports": [{"port": 8080}]},
                    {"to": [{"ipBlock": {"cidr": format!("198.51.{}.0/24", namespace % 250)}}], "ports": [{"port": 443}]},
                ],
            },
        });
        fixture.apply_manifest("networkpolicies", &object);
    }
    fixture.install_definition();
    fixture.apply_manifest("egressgatewaypolicies", &lock_down("mesh", "istio-injection", "enabled"));
}

/// Locks down the namespaces with a label; their way out are pods of one application.
pub fn lock_down(name: &str, label: &str, value: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "subjects": [{"namespaces": {"matchLabels": {label: value}}}],
            "proxy": {"containers": ["istio-proxy"]},
            "gateways": [{
                "name": "out", "namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "team-1"}},
                "pods": {"matchLabels": {"app": "app-0"}}, "ports": [{"protocol": "TCP", "port": 8080}],
            }],
        },
    })
}
