//! The objects of a run. Pure: names and labels in, Kubernetes JSON out.
//!
//! Invariant: whatever a run makes bears its label, so that it is found and removed by that alone; nothing of it can be
//! taken for somebody else's, and no two runs have a name in common.

use std::collections::BTreeMap;

use anyhow::bail;
use serde_json::{Value, json};

use super::scene::{ECHO, FIRST_PORT, GATEWAY, GATEWAY_SERVICE, HTTP, Outside, Part, Place, Port};
use crate::tries::SIDECAR_USER;

/// The label of everything that a run makes; its value is the run's random suffix.
pub(crate) const LABEL: &str = "egress-enforcer.io/verify";
/// The label that tells the namespaces of a run apart.
const PART: &str = "egress-enforcer.io/verify-part";
/// The label of what `--keep` has left standing.
pub(crate) const KEPT: &str = "egress-enforcer.io/verify-kept";
/// The lease by which others see that a run lives.
pub(crate) const LEASE: &str = "verify";
/// The Secret that images are pulled with.
const PULL: &str = "pull";
/// Where the probe is in its image.
pub(crate) const PROBE: &str = "/usr/bin/egress-probe";
/// The group and version of our policies.
pub(crate) const POLICY_API: &str = "egress-enforcer.io/v1alpha1";

/// What is particular to a run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Its random suffix.
    pub(crate) id: String,
    /// The probe's image.
    pub(crate) image: String,
    /// Another gateway than the probe: an image whose entry point answers CONNECT on [`GATEWAY`].
    pub(crate) gateway_image: Option<String>,
    /// What the images are pulled with.
    pub(crate) pull_secret: Option<PullSecret>,
    /// The node that everything is on.
    pub(crate) node: String,
}

/// What is in a Secret for pulling images.
#[derive(Clone)]
pub(crate) struct PullSecret(Value);

impl std::fmt::Debug for PullSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PullSecret(..)")
    }
}

impl PullSecret {
    /// Of a Secret; the error says which types there are.
    pub(crate) fn of(secret: &Value) -> anyhow::Result<Self> {
        let kind = secret["type"].as_str().unwrap_or("Opaque");
        if !["kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"].contains(&kind) {
            bail!(
                "its type is {kind}, and a Secret for pulling images has kubernetes.io/dockerconfigjson or \
                 kubernetes.io/dockercfg: `kubectl create secret docker-registry` makes one"
            );
        }
        Ok(Self(json!({"type": kind, "data": secret["data"]})))
    }
}

/// How the policy is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Audit,
    Enforce,
    /// Enforced, and only the proxy may use the gateway.
    Locked,
}

impl Run {
    /// The name of a namespace.
    pub(crate) fn namespace(&self, part: Part) -> String {
        format!("egress-verify-{}-{}", self.id, part.name())
    }

    /// All namespaces by part.
    pub(crate) fn namespaces(&self) -> BTreeMap<Part, String> {
        Part::ALL.into_iter().map(|part| (part, self.namespace(part))).collect()
    }

    /// The name of the policy.
    pub(crate) fn policy_name(&self) -> String {
        format!("egress-verify-{}", self.id)
    }

    fn labels(&self, more: &[(&str, &str)]) -> Value {
        let mut labels = BTreeMap::from([(LABEL, self.id.as_str())]);
        labels.extend(more.iter().copied());
        json!(labels)
    }

    fn metadata(&self, name: &str, part: Part, more: &[(&str, &str)]) -> Value {
        json!({"name": name, "namespace": self.namespace(part), "labels": self.labels(more)})
    }

    /// The namespaces. Attackers have more than the restricted profile, and one pod is on the node's network: whether that
    /// may be is asked by these labels, in namespaces that last as long as the run.
    pub(crate) fn namespace_objects(&self) -> Vec<Value> {
        let object = |part: Part| {
            let labels = [
                (PART, part.name()),
                ("pod-security.kubernetes.io/enforce", "privileged"),
                ("pod-security.kubernetes.io/warn", "privileged"),
                ("pod-security.kubernetes.io/audit", "privileged"),
            ];
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": self.namespace(part), "labels": self.labels(&labels)},
            })
        };
        Part::ALL.into_iter().map(object).collect()
    }

    /// The lease that is renewed as long as the run lives.
    pub(crate) fn lease(&self) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": self.metadata(LEASE, Part::Mesh, &[]),
            "spec": {"holderIdentity": self.id, "leaseTransitions": 0},
        })
    }

    /// Service accounts and services, and what images are pulled with.
    pub(crate) fn before_pods(&self) -> Vec<Value> {
        // Every pod has one of ours: the namespace's own comes a moment after the namespace.
        let account = |place: Place| {
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": self.metadata(place.pod(), place.part(), &[]),
                "automountServiceAccountToken": false,
                "imagePullSecrets": self.pull_secret.iter().map(|_| json!({"name": PULL})).collect::<Vec<_>>(),
            })
        };
        let secrets = self.pull_secret.iter().flat_map(|PullSecret(content)| {
            Part::ALL.map(|part| {
                let mut secret = content.clone();
                secret["apiVersion"] = json!("v1");
                secret["kind"] = json!("Secret");
                secret["metadata"] = self.metadata(PULL, part, &[]);
                secret
            })
        });
        let service = |part, name: &str, key: &str, value: &str, port: u16, target: u16| {
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": self.metadata(name, part, &[]),
                "spec": {
                    "ipFamilyPolicy": "PreferDualStack",
                    "selector": {key: value},
                    "ports": [{"name": "tcp", "protocol": "TCP", "port": port, "targetPort": target}],
                },
            })
        };
        let others = [
            account(Place::Productpage),
            account(Place::Reviews),
            account(Place::Gateway),
            account(Place::Free),
            account(Place::Outside),
            service(Part::Mesh, "reviews", "app", "reviews", HTTP, HTTP),
            service(Part::Exit, "istio-egressgateway", "istio", "egressgateway", GATEWAY_SERVICE, GATEWAY),
        ];
        secrets.chain(others).collect()
    }

    /// The pods; that which stands in for the outside only if it is needed.
    pub(crate) fn pods(&self, outside: &Outside) -> Vec<Value> {
        let (http, echo) = (HTTP.to_string(), ECHO.to_string());
        let serve = |name: &str| {
            vec![
                "serve".to_owned(),
                format!("--name={name}"),
                format!("--http={http}"),
                format!("--udp={echo}"),
                format!("--echo={echo}"),
            ]
        };
        let answers =
            json!({"httpGet": {"port": HTTP, "path": "/ready"}, "periodSeconds": 1, "timeoutSeconds": 5});
        let app = |place: Place| {
            let mut container = self.container(place, &serve(place.container()), 0);
            container["readinessProbe"] = answers.clone();
            container
        };
        let proxy = self.container(Place::ProductpageProxy, &["pause".to_owned()], SIDECAR_USER);
        let labelled =
            |place: Place, containers: &[Value]| self.pod(place, &[("app", place.pod())], containers);
        let some = json!({"requests": {"cpu": "10m", "memory": "16Mi"}});
        let all = json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}});
        let with = |mut container: Value, resources: &Value| {
            container["resources"] = resources.clone();
            container
        };
        // One pod of each class of service: their cgroups are at different places.
        let mut pods = vec![
            labelled(Place::Productpage, &[with(app(Place::Productpage), &some), with(proxy.clone(), &some)]),
            labelled(Place::Reviews, &[with(app(Place::Reviews), &all), with(proxy, &all)]),
            self.pod(
                Place::Gateway,
                &[("istio", "egressgateway")],
                &[self.gateway(), self.container(Place::Gateway, &["pause".to_owned()], SIDECAR_USER)],
            ),
            labelled(Place::Free, &[app(Place::Free)]),
        ];
        if let Outside::StandIn { v4, v6, .. } = outside {
            let mut words = vec![
                "outside".to_owned(),
                format!("--address={v4}"),
                format!("--first-port={FIRST_PORT}"),
                format!("--ports={}", Port::Number as u16),
            ];
            words.extend(v6.iter().map(|v6| format!("--address={v6}")));
            let mut container = self.container(Place::Outside, &words, 0);
            container["securityContext"]["capabilities"] =
                json!({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]});
            let mut pod = labelled(Place::Outside, &[container]);
            pod["spec"]["hostNetwork"] = json!(true);
            // It gives its addresses back before it ends.
            pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
            pods.push(pod);
        }
        pods
    }

    fn gateway(&self) -> Value {
        if let Some(image) = &self.gateway_image {
            return json!({"name": "istio-proxy", "image": image, "imagePullPolicy": "IfNotPresent"});
        }
        let words = ["gateway".to_owned(), format!("--port={GATEWAY}")];
        let mut container = self.container(Place::Gateway, &words, SIDECAR_USER);
        container["name"] = json!("istio-proxy");
        container
    }

    fn container(&self, place: Place, words: &[String], user: u32) -> Value {
        let mut security =
            json!({"runAsUser": user, "runAsGroup": user, "allowPrivilegeEscalation": user == 0});
        if user == 0 {
            // What an application has with the defaults of most runtimes, also where they give less.
            security["capabilities"] = json!({"add": ["NET_RAW", "SETUID", "SETGID"]});
        }
        json!({
            "name": place.container(), "image": self.image, "imagePullPolicy": "IfNotPresent",
            "command": [PROBE], "args": words, "securityContext": security,
        })
    }

    fn pod(&self, place: Place, labels: &[(&str, &str)], containers: &[Value]) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": self.metadata(place.pod(), place.part(), labels),
            "spec": {
                "nodeName": self.node,
                "automountServiceAccountToken": false,
                "serviceAccountName": place.pod(),
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{"operator": "Exists"}],
                "containers": containers,
            },
        })
    }

    /// The change that adds the debugger to a running pod.
    pub(crate) fn debugger(&self) -> Value {
        json!({"spec": {"ephemeralContainers": [self.container(Place::Debugger, &["pause".to_owned()], 0)]}})
    }

    /// The policy of the guide, for this run's namespaces alone.
    pub(crate) fn policy(&self, mode: Mode, outside: &Outside) -> Value {
        let of = |part: Part| json!({"matchLabels": {LABEL: self.id, PART: part.name()}});
        let mut destinations = Vec::new();
        for at in [Ok(outside.at(Port::Declared)), outside.at_v6(Port::Declared)].into_iter().flatten() {
            let length = if at.is_ipv4() { 32 } else { 128 };
            destinations.push(json!({
                "cidr": format!("{}/{length}", at.ip()),
                "ports": [{"protocol": "TCP", "port": at.port()}],
            }));
        }
        let mut policy = json!({
            "apiVersion": POLICY_API, "kind": "EgressGatewayPolicy",
            "metadata": {"name": self.policy_name(), "labels": self.labels(&[])},
            "spec": {
                "enforcement": if mode == Mode::Audit { "Audit" } else { "Enforce" },
                "subjects": [{"namespaces": of(Part::Mesh)}],
                "gateways": [{
                    "name": "istio-egress",
                    "namespaces": of(Part::Exit),
                    "pods": {"matchLabels": {"istio": "egressgateway"}},
                    "ports": [{"protocol": "TCP", "port": GATEWAY}],
                    "clients": [{"namespaces": of(Part::Mesh), "serviceAccounts": ["productpage"]}],
                    "destinations": destinations,
                }],
                "allow": {"dns": "Cluster"},
            },
        });
        if mode == Mode::Locked {
            policy["spec"]["proxy"] = json!({"containers": ["istio-proxy"], "scope": "Egress"});
        }
        policy
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service, ServiceAccount};
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;

    fn run() -> Run {
        let image = "localhost/egress-enforcer/egress-probe:0.1.0".to_owned();
        let secret = json!({"kind": "Secret", "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}});
        let pull_secret = Some(PullSecret::of(&secret).unwrap());
        Run { id: "abc123".to_owned(), gateway_image: None, image, pull_secret, node: "n1".to_owned() }
    }

    fn outside() -> Outside {
        Outside::StandIn {
            v4: Ipv4Addr::new(198, 51, 100, 200),
            v6: Ok(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            only_v6: false,
        }
    }

    fn everything() -> Vec<Value> {
        let run = run();
        let mut all = run.namespace_objects();
        all.push(run.lease());
        all.extend(run.before_pods());
        all.extend(run.pods(&outside()));
        all.push(run.policy(Mode::Locked, &outside()));
        all
    }

    /// Whether the API's own type has every field that was written, and writes it the same way.
    fn typed<T: DeserializeOwned + Serialize>(object: &Value) {
        let read: T = serde_json::from_value(object.clone()).unwrap();
        let mut written = serde_json::to_value(read).unwrap();
        written["apiVersion"] = object["apiVersion"].clone();
        written["kind"] = object["kind"].clone();
        assert_eq!(&written, object);
    }

    #[test]
    fn every_field_is_one_that_the_api_knows() {
        for object in everything() {
            match object["kind"].as_str().unwrap() {
                "Namespace" => typed::<Namespace>(&object),
                "Pod" => typed::<Pod>(&object),
                "Service" => typed::<Service>(&object),
                "ServiceAccount" => typed::<ServiceAccount>(&object),
                "Lease" => typed::<Lease>(&object),
                "Secret" => typed::<Secret>(&object),
                kind => assert_eq!(kind, "EgressGatewayPolicy"),
            }
        }
        let debugger = run().debugger();
        typed_spec(&debugger);
    }

    fn typed_spec(change: &Value) {
        let container = &change["spec"]["ephemeralContainers"][0];
        let read: k8s_openapi::api::core::v1::EphemeralContainer =
            serde_json::from_value(container.clone()).unwrap();
        assert_eq!(&serde_json::to_value(read).unwrap(), container);
    }

    #[test]
    fn everything_bears_the_label_of_its_run_and_a_name_of_its_own() {
        let mut names = BTreeSet::new();
        for object in everything() {
            assert_eq!(object["metadata"]["labels"][LABEL], "abc123", "{object}");
            let name = (
                object["kind"].to_string(),
                object["metadata"]["namespace"].to_string(),
                object["metadata"]["name"].to_string(),
            );
            assert!(names.insert(name), "{object}");
        }
    }

    #[test]
    fn images_are_pulled_with_a_secret_of_the_namespace() {
        let objects = run().before_pods();
        let of = |kind: &'static str| objects.iter().filter(move |one| one["kind"] == kind);
        for account in of("ServiceAccount") {
            assert_eq!(account["imagePullSecrets"], json!([{"name": PULL}]));
            let beside = |secret: &&Value| {
                secret["metadata"]["namespace"] == account["metadata"]["namespace"]
                    && secret["metadata"]["name"] == PULL
            };
            assert_eq!(of("Secret").find(beside).unwrap()["data"], json!({".dockerconfigjson": "e30="}));
        }
        assert_eq!(of("Secret").count(), Part::ALL.len());
        let none = Run { pull_secret: None, ..run() };
        assert!(none.before_pods().iter().all(|one| one["kind"] != "Secret"));
        let error =
            PullSecret::of(&json!({"type": "Opaque", "data": {"a": "Yg=="}})).unwrap_err().to_string();
        assert!(error.contains("its type is Opaque") && !error.contains("Yg"), "{error}");
        assert!(!format!("{:?}", run()).contains("e30"), "{:?}", run());
    }

    #[test]
    fn the_policy_is_one_that_the_agent_takes() {
        for mode in [Mode::Audit, Mode::Enforce, Mode::Locked] {
            let policy = run().policy(mode, &outside());
            let read = egress_policy::object::read(policy).unwrap();
            assert!(matches!(&read[..], [egress_policy::object::Read::Object(_)]), "{read:?}");
        }
    }

    #[test]
    fn only_pods_of_the_mesh_are_locked_down() {
        let policy = run().policy(Mode::Enforce, &outside());
        let wanted = &policy["spec"]["subjects"][0]["namespaces"]["matchLabels"];
        let matches = |namespace: &Value| {
            wanted
                .as_object()
                .unwrap()
                .iter()
                .all(|(key, value)| &namespace["metadata"]["labels"][key] == value)
        };
        let matched: Vec<String> = run()
            .namespace_objects()
            .iter()
            .filter(|one| matches(one))
            .map(|one| one["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(matched, ["egress-verify-abc123-mesh"]);
        assert_eq!(policy["spec"]["proxy"], Value::Null);
        assert_eq!(run().policy(Mode::Audit, &outside())["spec"]["enforcement"], "Audit");
    }

    #[test]
    fn named_servers_need_no_stand_in() {
        let named = Outside::Named { first: "192.0.2.1:80".parse().unwrap(), v6: None };
        let names = |outside: &Outside| -> Vec<String> {
            run()
                .pods(outside)
                .iter()
                .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert!(names(&outside()).contains(&"outside".to_owned()));
        assert!(!names(&named).contains(&"outside".to_owned()));
        let destinations = &run().policy(Mode::Enforce, &named)["spec"]["gateways"][0]["destinations"];
        assert_eq!(destinations[0]["cidr"], "192.0.2.1/32");
        assert_eq!(destinations.as_array().unwrap().len(), 1);
    }
}
