//! Names of containers from the container runtime, before kubelet has written them into the pod's status.
//!
//! The cgroup of a container has the runtime's id of it in its name; which container of the pod that is, the runtime knows from the
//! moment it makes it. It is asked when such a cgroup appears; its event stream (`GetContainerEvents`) would tell later than the cgroup
//! does, and not every runtime has it.
//!
//! Invariant: what a runtime says can only give a name to a container of the pod that the cgroup is in, and whoever does not answer
//! delays nobody: without an answer a container waits for its pod's status, and is no proxy until then. Tested by `tests/cri/`.

pub mod api;
mod client;
mod follow;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use api::Container;

/// Where runtimes listen: containerd, CRI-O, k3s and RKE2, k0s, MicroK8s, cri-dockerd. Each that is there is asked: a node may have a
/// second containerd that is not kubelet's.
const PLACES: [&str; 6] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/cri-dockerd.sock",
];
/// Answers that may wait for the one who reads them.
const WAITING: usize = 16;

/// The containers whose names are wanted: the id in the cgroup's name, and the UID (or hash) in the pod's.
pub(crate) type Wanted = BTreeMap<String, String>;

/// What was heard from the socket of a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The socket.
    pub(crate) socket: PathBuf,
    /// What.
    pub(crate) what: What,
}

/// See [`Heard`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// There is no such socket.
    Absent,
    /// It gives no answer, and why.
    Silent(String),
    /// It answers, and who it is.
    Answers(String),
    /// About the containers that were asked for.
    Told(Told),
}

/// What a runtime told about containers that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Their names, by id.
    pub(crate) names: BTreeMap<String, String>,
    /// Namespaces and names of their pods, by UID or hash.
    pub(crate) pods: BTreeMap<String, (String, String)>,
    /// Those that are the sandbox of a pod.
    pub(crate) sandboxes: BTreeSet<String>,
    /// Those that it says are another pod's, with the UID that it says.
    pub(crate) foreign: BTreeMap<String, String>,
}

impl Told {
    /// What is to be believed of an answer.
    fn by(wanted: &Wanted, containers: &[Container]) -> Self {
        let mut told = Self::default();
        for container in containers {
            let Container { id, pod_sandbox_id, labels } = container;
            if wanted.contains_key(pod_sandbox_id) {
                told.sandboxes.insert(pod_sandbox_id.clone());
            }
            let Some(uid) = wanted.get(id) else { continue };
            match (labels.get(api::NAME), labels.get(api::POD_UID)) {
                (Some(name), Some(said)) if said == uid => {
                    told.names.insert(id.clone(), name.clone());
                    let pod = labels.get(api::POD_NAMESPACE).zip(labels.get(api::POD_NAME));
                    told.pods.extend(pod.map(|(of, name)| (uid.clone(), (of.clone(), name.clone()))));
                }
                (_, said) => {
                    told.foreign.insert(id.clone(), said.cloned().unwrap_or_default());
                }
            }
        }
        told
    }

    /// Whether this is said about a container.
    fn is_about(&self, id: &str) -> bool {
        self.names.contains_key(id) || self.sandboxes.contains(id) || self.foreign.contains_key(id)
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.sandboxes.is_empty() && self.foreign.is_empty()
    }
}

/// The runtimes of the node. Asking ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Runtimes {
    /// Where they may listen.
    pub(crate) places: Vec<PathBuf>,
    heard: mpsc::Receiver<Heard>,
    _asking: JoinSet<()>,
}

impl Runtimes {
    /// Starts to ask for what is wanted: the one at `socket`, or all that listen in the usual places.
    pub(crate) fn ask(socket: Option<&Path>) -> (Self, watch::Sender<Wanted>) {
        let (wants, wanted) = watch::channel(Wanted::new());
        let (tell, heard) = mpsc::channel(WAITING);
        let places = match socket {
            Some(socket) => vec![socket.to_owned()],
            None => PLACES.map(PathBuf::from).to_vec(),
        };
        let mut asking = JoinSet::new();
        for place in &places {
            asking.spawn(follow::follow(place.clone(), wanted.clone(), tell.clone()));
        }
        (Self { places, heard, _asking: asking }, wants)
    }

    /// Waits for the next that one says. May be given up and called again.
    pub(crate) async fn heard(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            // Nobody asks any more.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::api::{Container, NAME, POD_UID};
    use super::{Told, Wanted};

    fn container(id: &str, name: &str, uid: &str) -> Container {
        let labels = [(NAME, name), (POD_UID, uid)].map(|(key, value)| (key.to_owned(), value.to_owned()));
        Container { id: id.to_owned(), pod_sandbox_id: "pause".to_owned(), labels: labels.into() }
    }

    #[test]
    fn only_what_was_asked_for_and_fits_is_believed() {
        let wanted: Wanted =
            ["one", "two", "pause", "none"].map(|id| (id.to_owned(), "uid".to_owned())).into();
        let containers = [
            container("one", "app", "uid"),
            container("two", "istio-proxy", "another"),
            container("three", "istio-proxy", "uid"),
            // As the answer to the beginning of an id.
            container("oneandmore", "istio-proxy", "uid"),
        ];
        let told = Told::by(&wanted, &containers);
        assert_eq!(told.names, [("one".to_owned(), "app".to_owned())].into());
        assert_eq!(told.foreign, [("two".to_owned(), "another".to_owned())].into());
        assert_eq!(told.sandboxes, ["pause".to_owned()].into());
        assert!(!told.is_about("none") && told.is_about("two") && told.is_about("pause"));
    }

    #[test]
    fn labels_that_lack_are_no_name() {
        let wanted: Wanted = [("one".to_owned(), String::new())].into();
        let bare = Container { id: "one".to_owned(), ..Container::default() };
        assert!(Told::by(&wanted, &[bare]).names.is_empty(), "an absent UID is not an empty one");
    }
}
