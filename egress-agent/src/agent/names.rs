//! Which container of its pod a cgroup is.
//!
//! Invariant: the pod's status says it, and where it does not yet, the runtime may; a name from the runtime makes nobody a proxy that the
//! pod's spec does not have as a container from the start. Tested by `tests/cri/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use egress_policy::compile::{LocalContainer, LocalPod};
use egress_policy::object::{ObjectRef, Pod};
use tokio::sync::watch;

use super::Agent;
use crate::cri::{Heard, Told, Wanted, What};
use crate::network;
use crate::pods::PodCgroup;
use crate::status::{NamesStatus, RuntimeStatus};

/// What runtimes have said.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Where what is wanted is told; none where nobody is asked.
    wants: Option<watch::Sender<Wanted>>,
    /// Names of containers of this node, by their ids.
    names: BTreeMap<String, String>,
    /// Namespaces and names of their pods, by UID or hash.
    pods: BTreeMap<String, (String, String)>,
    /// Containers that are their pod's sandbox, which has no name.
    sandboxes: BTreeSet<String>,
    /// The sockets that are there.
    sockets: BTreeMap<PathBuf, RuntimeStatus>,
    /// Where runtimes may listen, and whether it was seen that none does.
    missing: BTreeMap<PathBuf, bool>,
}

impl Agent {
    /// Has the runtimes asked that listen at these places.
    pub(crate) fn ask_runtimes(&mut self, places: &[PathBuf], wants: watch::Sender<Wanted>) {
        self.names.wants = Some(wants);
        self.names.missing = places.iter().cloned().map(|place| (place, false)).collect();
    }

    /// Takes in what a runtime has said.
    pub(crate) fn heard(&mut self, Heard { socket, what }: Heard) {
        match what {
            What::Told(told) => {
                self.dirty |= !told.names.is_empty();
                self.names.told(&socket, told);
            }
            What::Absent => self.names.absent(&socket),
            What::Answers(runtime) => self.names.answers(socket, Some(runtime), None),
            What::Silent(error) => self.names.answers(socket, None, Some(error)),
        }
    }

    /// The pods found on this node, with the names of their containers as far as these are known. Asks for the others.
    pub(super) fn local_pods(&mut self) -> Vec<LocalPod> {
        let mut wanted = Wanted::new();
        let mut pods = Vec::new();
        for pod in &self.scan.pods {
            // Nobody is known to be gone before everything was listed.
            let left = self.left.get(&pod.cgroup).copied().filter(|_| !self.held);
            // One that takes another one's place is judged as that.
            let uid = self.predecessor(pod).and_then(|before| before.static_hash().map(ToString::to_string));
            let uid = uid.unwrap_or_else(|| pod.uid.clone());
            let mut local = LocalPod { uid, cgroup: pod.cgroup, containers: Vec::new(), left };
            for (id, cgroup) in &pod.containers {
                let told = self.index.container_name(&pod.uid, id);
                if told.is_none() {
                    wanted.insert(id.clone(), pod.uid.clone());
                }
                // The object that the status is part of may be older than the container.
                let heard = || {
                    let name = self.names.names.get(id)?;
                    self.index.is_lasting(&pod.uid, name).then_some(name.as_str())
                };
                if let Some(name) = told.or_else(heard) {
                    local.containers.push(LocalContainer { name: name.to_owned(), cgroup: *cgroup });
                }
            }
            pods.push(local);
        }
        self.names.want(wanted);
        pods
    }

    /// The static pod whose place the next one of its name has taken: under another hash, of which the API server does not know yet. To
    /// replace its mirror, kubelet has to reach the API server, which may be this very pod. Only of the node's own network, and where no
    /// policy locks such pods down whatever their labels are: these may have changed as well.
    pub(super) fn predecessor(&self, pod: &PodCgroup) -> Option<&Pod> {
        let (namespace, name) = self.names.pods.get(&pod.uid)?;
        let before = self.index.pod(namespace, name).filter(|_| self.is_new_static(&pod.uid))?;
        let is_here = before.node().map(|node| &**node) == Some(&self.node);
        let is_static = before.host_network && before.static_hash().is_some();
        let stays = is_here && is_static && !self.index.may_lock_down(namespace);
        (stays && network::is_nodes_own(&pod.path)).then_some(before)
    }

    /// Whether a runtime has told that a cgroup is that of a pod of an object's name.
    pub(super) fn is_told(&self, pod: &PodCgroup, object: &ObjectRef) -> bool {
        let told = self.names.pods.get(&pod.uid);
        told.is_some_and(|(namespace, name)| {
            (object.namespace.as_deref(), &*object.name) == (Some(namespace), name)
        })
    }

    /// Whether a cgroup's name is the hash of a static pod that no object says it is.
    fn is_new_static(&self, uid: &str) -> bool {
        let is_hash = uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash && !self.index.is_claimed(uid)
    }

    /// Whether there are such pods, as far as a runtime has told: their processes come one by one.
    pub(super) fn has_new_static(&self) -> bool {
        self.names.pods.keys().any(|uid| self.is_new_static(uid))
    }

    /// What a container is called, be it a proxy or not.
    pub(super) fn container_name(&self, uid: &str, id: &str) -> Option<&str> {
        let heard = || self.names.names.get(id).map(String::as_str);
        self.index.container_name(uid, id).or_else(heard)
    }

    /// Who names containers.
    pub(super) fn names(&self) -> NamesStatus {
        let mut status = NamesStatus {
            runtimes: self.names.sockets.values().cloned().collect(),
            no_runtime: self.names.nobody(),
            ..NamesStatus::default()
        };
        for pod in &self.scan.pods {
            for (id, _) in pod.containers.iter().filter(|(id, _)| !self.names.sandboxes.contains(id)) {
                if self.index.container_name(&pod.uid, id).is_some() {
                    status.by_status += 1;
                } else if self.names.names.contains_key(id) {
                    status.by_runtime += 1;
                } else {
                    status.unnamed += 1;
                }
            }
        }
        status
    }
}

impl Names {
    fn told(&mut self, socket: &Path, told: Told) {
        for (id, uid) in told.foreign {
            let socket = socket.display();
            tracing::warn!(%socket, id, uid, "not believed: the runtime says that a container is another pod's than its cgroup");
        }
        self.sandboxes.extend(told.sandboxes);
        self.pods.extend(told.pods);
        self.names.extend(told.names);
    }

    fn absent(&mut self, socket: &Path) {
        let gone = self.sockets.remove(socket).is_some();
        let new = self.missing.insert(socket.to_owned(), true) == Some(false);
        if new || gone {
            self.nobody().iter().for_each(|none| tracing::warn!("{none}"));
        }
    }

    fn answers(&mut self, socket: PathBuf, runtime: Option<String>, error: Option<String>) {
        let now = RuntimeStatus { socket: socket.display().to_string(), runtime, error };
        self.missing.insert(socket.clone(), false);
        let before = self.sockets.insert(socket, now.clone());
        // Who gives no answer may do so in many words.
        let alike = |old: RuntimeStatus| {
            (old.runtime, old.error.is_some()) == (now.runtime.clone(), now.error.is_some())
        };
        if before.is_some_and(alike) {
            return;
        }
        let RuntimeStatus { socket, runtime, error } = now;
        match (runtime, error) {
            (Some(runtime), _) => tracing::info!(socket, runtime, "the runtime names containers"),
            (None, error) => {
                let error = error.unwrap_or_default();
                tracing::warn!(
                    socket,
                    error,
                    "the runtime does not name containers; their pods' status does"
                );
            }
        }
    }

    /// Where no runtime is, once that is known.
    fn nobody(&self) -> Option<String> {
        let missing = self.wants.is_some() && self.missing.values().all(|missing| *missing);
        let places: Vec<_> = self.missing.keys().map(|place| place.display().to_string()).collect();
        let places = places.join(", ");
        missing.then(|| {
            format!("no CRI socket is at {places}: containers are named by their pods' status alone")
        })
    }

    /// Asks for these containers, and forgets what was said about others.
    fn want(&mut self, mut wanted: Wanted) {
        self.names.retain(|id, _| wanted.contains_key(id));
        let uids: BTreeSet<&String> = wanted.values().collect();
        self.pods.retain(|uid, _| uids.contains(uid));
        self.sandboxes.retain(|id| wanted.contains_key(id));
        wanted.retain(|id, _| !self.names.contains_key(id) && !self.sandboxes.contains(id));
        if let Some(wants) = &self.wants {
            wants.send_if_modified(|old| {
                let changed = *old != wanted;
                if changed {
                    *old = wanted;
                }
                changed
            });
        }
    }
}
