//! What makes pods, as a Deployment or a CronJob: nothing that a cluster is judged by, but what repositories hold.
//!
//! Invariant: what has a template of pods is a workload, whatever its kind. Tested by `tests/lint.rs`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::cluster_read;
use super::{Kind, Metadata, Object, ObjectError, Pod, parse};

/// Where kinds have their template: Deployments, Jobs and most others; CronJobs; PodTemplates.
const TEMPLATES: [&str; 3] = ["/spec/template", "/spec/jobTemplate/spec/template", "/template"];

/// Those that are not controlled by another one of them: a Deployment's ReplicaSet has the same template.
#[must_use]
pub fn by_themselves(mut workloads: Vec<Workload>) -> Vec<Workload> {
    type Name = (Arc<str>, Arc<str>, Arc<str>);
    let name =
        |one: &Workload| -> Name { (one.pod.namespace.clone(), one.kind.clone(), Arc::from(&*one.pod.name)) };
    let names: BTreeSet<Name> = workloads.iter().map(name).collect();
    workloads.retain(|one| {
        let controller = one.controller.as_ref();
        controller.is_none_or(|(kind, name)| {
            !names.contains(&(one.pod.namespace.clone(), kind.clone(), name.clone()))
        })
    });
    workloads
}

/// What makes pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its kind, as in `Deployment`.
    pub kind: Arc<str>,
    /// It is told to make none (`spec.replicas: 0`).
    pub none: bool,
    /// What controls it, as kind and name.
    pub controller: Option<(Arc<str>, Arc<str>)>,
    /// A pod that it makes, before anything is injected into it. It has the workload's name, and neither node nor address.
    pub pod: Pod,
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
    let none = value.pointer("/spec/replicas").and_then(Value::as_i64) == Some(0);
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
        Ok(Object::Pod(pod)) => Some(Ok(Workload { kind: kind.into(), none, controller, pod })),
        Ok(_) => None,
        Err(ObjectError { path: within, reason }) => {
            let path = format!("{}.{within}", path.trim_start_matches('/').replace('/', "."));
            Some(Err(ObjectError { path, reason }))
        }
    }
}
