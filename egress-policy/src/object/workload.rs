//! What makes pods, as a Deployment or a CronJob: nothing that a cluster is judged by, but what repositories hold.
//!
//! Invariant: what has a template of pods is a workload, whatever its kind. Tested by `tests/lint.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::cluster_read;
use super::{Kind, Metadata, Object, ObjectError, Pod, parse};

/// Where kinds have their template: Deployments, Jobs and most others; CronJobs; PodTemplates.
const TEMPLATES: [&str; 3] = ["/spec/template", "/spec/jobTemplate/spec/template", "/template"];

/// How many controllers one above the other are looked at: a Deployment's ReplicaSet has one, and an operator's Deployment another.
const CONTROLLERS: usize = 8;
/// Labels that controllers of Kubernetes add to a template (`pkg/apis/apps` and `pkg/apis/batch`).
const ADDED: [&str; 5] = [
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
    "pod-template-hash",
];

/// Those that are not controlled by another one of them with the same template, as a Deployment's ReplicaSet is. One that has another, as
/// that of a rollout that is not over, makes pods which nothing else tells of.
#[must_use]
pub fn by_themselves(workloads: Vec<Workload>) -> Vec<Workload> {
    let mut named: BTreeMap<[Arc<str>; 3], &Workload> = BTreeMap::new();
    for one in &workloads {
        named.insert([one.pod.namespace.clone(), one.kind.clone(), Arc::from(&*one.pod.name)], one);
    }
    let any = |one: &Workload| {
        let (kind, name) = one.controller.as_ref()?;
        named.get(&[one.pod.namespace.clone(), kind.clone(), name.clone()]).copied()
    };
    let controllers: BTreeSet<*const Workload> =
        workloads.iter().filter_map(any).map(std::ptr::from_ref).collect();
    let controller = |one: &Workload| {
        // What makes no pods itself may still be what tells of others.
        let none = one.no_replicas && !controllers.contains(&std::ptr::from_ref(one));
        any(one).filter(|by| none || one.has_template_of(by))
    };
    // Who controls itself, if only by others, is told by nobody.
    let told = |one: &Workload| {
        let controllers = std::iter::successors(controller(one), |by| controller(by));
        (1..=CONTROLLERS).contains(&controllers.take(CONTROLLERS + 1).count())
    };
    let told: Vec<bool> = workloads.iter().map(told).collect();
    workloads.into_iter().zip(told).filter(|(_, told)| !told).map(|(one, _)| one).collect()
}

/// What makes pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its kind, as in `Deployment`.
    pub kind: Arc<str>,
    /// It is told to make none (`spec.replicas: 0`).
    pub no_replicas: bool,
    /// What controls it, as kind and name.
    pub controller: Option<(Arc<str>, Arc<str>)>,
    /// A pod that it makes, before anything is injected into it. It has the workload's name, and neither node nor address.
    pub pod: Pod,
}

impl Workload {
    /// Whether pods of both are alike, but for labels that controllers add.
    fn has_template_of(&self, other: &Self) -> bool {
        let [own, others] =
            [self, other].map(|one| one.pod.labels.iter().filter(|(key, _)| !ADDED.contains(key)));
        own.eq(others) && self.pod.spec == other.pod.spec && self.pod.host_network == other.pod.host_network
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.pod.namespace, self.pod.name)
    }
}

/// Reads an object with a template of pods. `None` if it has none.
pub(super) fn read(kind: &str, name: &str, value: &Value) -> Option<Result<Workload, ObjectError>> {
    let of_pods = |path: &&str| {
        let containers = value.pointer(path).and_then(|template| template.pointer("/spec/containers"));
        containers.is_some_and(Value::is_array)
    };
    let path = TEMPLATES.into_iter().find(of_pods)?;
    let owners = value.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
    let controller = owners.into_iter().find(|owner| owner.get("controller") == Some(&Value::Bool(true)));
    let controller = controller.and_then(|owner| {
        let text = |field: &str| Some(Arc::from(owner.get(field)?.as_str()?));
        Some((text("kind")?, text("name")?))
    });
    let no_replicas = value.pointer("/spec/replicas").and_then(Value::as_i64) == Some(0);
    let namespace = Kind::Pod.object(name, value).namespace.unwrap_or_default();
    let template = value.pointer(path)?;
    let read = || {
        let metadata = template.get("metadata").filter(|metadata| !metadata.is_null());
        let mut metadata =
            metadata.map_or_else(|| Ok(Metadata::default()), |metadata| parse(metadata, "metadata"))?;
        name.clone_into(&mut metadata.name);
        cluster_read::read(Kind::Pod, namespace, metadata, template)
    };
    match read() {
        Ok(Object::Pod(pod)) => Some(Ok(Workload { kind: kind.into(), no_replicas, controller, pod })),
        Ok(_) => None,
        Err(ObjectError { path: within, reason }) => {
            let path = format!("{}.{within}", path.trim_start_matches('/').replace('/', "."));
            Some(Err(ObjectError { path, reason }))
        }
    }
}
