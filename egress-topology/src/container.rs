//! Containers: cgroups in which programs are started.
//!
//! Invariant: what a container starts is in its cgroup and in its pod's network from the first instruction on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use egress_probe::Attempt;

use crate::capabilities::Capabilities;
use crate::cgroup;
use crate::exec::Exec;
use crate::pod::Pod;
use crate::process::Process;
use crate::random;

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContainerKind {
    /// One of `spec.containers`.
    #[default]
    Regular,
    /// One of `spec.initContainers`.
    Init,
    /// One of `spec.initContainers` with `restartPolicy: Always`.
    Sidecar,
    /// One of `spec.ephemeralContainers`.
    Ephemeral,
}

/// What is known of a container.
#[derive(Debug, Clone)]
pub(crate) struct ContainerRecord {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) kind: ContainerKind,
}

/// A container of a pod: a cgroup in which programs are started. Clones are the same container.
#[derive(Debug, Clone)]
pub struct Container {
    pod: Pod,
    name: String,
    id: String,
    cgroup: PathBuf,
}

impl Container {
    pub(crate) fn create(pod: &Pod, name: &str, kind: ContainerKind) -> Result<Self> {
        Self::create_known(pod, name, kind, |_| ())
    }

    /// Tells the container's id before its cgroup is made.
    pub(crate) fn create_known(
        pod: &Pod,
        name: &str,
        kind: ContainerKind,
        before: impl FnOnce(&str),
    ) -> Result<Self> {
        let id = random::container_id()?;
        before(&id);
        let cgroup = pod.shared().tree.container_directory(pod.cgroup(), &id);
        cgroup::make(&cgroup)?;
        pod.containers().push(ContainerRecord { name: name.to_owned(), id: id.clone(), kind });
        Ok(Self { pod: pod.clone(), name: name.to_owned(), id, cgroup })
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Identifier: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its pod.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The container's cgroup directory.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Starts a program in the container's cgroup and the pod's network, with the runtime's default capabilities
    /// unless it asks for others. It sees the machine's file system and processes.
    pub fn spawn(&self, exec: &Exec) -> Result<Process> {
        let probe = &self.pod.shared().probe;
        exec.spawn(probe, self.pod.netns(), &self.cgroup, Capabilities::RUNTIME_DEFAULT)
    }

    /// Starts a program in the container's cgroup, but in the network of another pod.
    pub fn spawn_in(&self, exec: &Exec, pod: &Pod) -> Result<Process> {
        exec.spawn(&self.pod.shared().probe, pod.netns(), &self.cgroup, Capabilities::RUNTIME_DEFAULT)
    }

    /// Moves a process into the container's cgroup; what it has open comes along.
    pub fn adopt(&self, process: &Process) -> Result<()> {
        let procs = self.cgroup.join("cgroup.procs");
        std::fs::write(&procs, process.id().to_string()).with_context(|| procs.display().to_string())
    }

    /// Starts a server of the probe and waits until it takes traffic.
    pub fn serve(&self, exec: &Exec) -> Result<Process> {
        let mut process = self.spawn(exec)?;
        process.wait_ready(Duration::from_secs(5))?;
        Ok(process)
    }

    /// Runs one attempt of the probe, for at most ten seconds.
    pub fn attempt(&self, words: &[&str]) -> Result<Attempt> {
        self.spawn(&Exec::probe(words))?.output_json(Duration::from_secs(10))
    }

    /// Kills what runs in it and removes its cgroup and its status.
    pub fn remove(&self) -> Result<()> {
        self.pod.containers().retain(|container| container.id != self.id);
        cgroup::remove_tree(&self.cgroup)
    }
}
