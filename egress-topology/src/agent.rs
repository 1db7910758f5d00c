//! The enforcer's agent as a process of the node: the real binary, started, asked, killed and cleaned up after.
//!
//! Invariant: everything is said to it and learnt from it the way a person would, by its command line.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Capabilities, Container, Exec, Finished, Process, Topology};

/// How long the agent may take to enforce, and to end, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(20);
/// The seconds of it, for machines where the kernel's verifier takes longer: emulated ones.
const PATIENCE_OF_MACHINE: &str = "EGRESS_TEST_PATIENCE";

/// An agent that is to run, runs, or ran.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    bpffs: PathBuf,
    dir: PathBuf,
    /// How the API server is reached, where objects come from one.
    kubeconfig: Option<PathBuf>,
    arguments: Vec<String>,
    launcher: Vec<OsString>,
    finds_pod_root: bool,
    patience: Duration,
    capabilities: Option<Capabilities>,
    process: Option<Process>,
}

impl Agent {
    /// The agent of `binary`, with its pins below `bpffs`. Objects are in `dir/objects`, its socket will be in `dir`.
    #[must_use]
    pub fn new(binary: PathBuf, bpffs: &Path, dir: &Path) -> Self {
        let (bpffs, dir) = (bpffs.to_owned(), dir.to_owned());
        let (arguments, launcher) = (Vec::new(), Vec::new());
        let seconds = std::env::var(PATIENCE_OF_MACHINE).ok().and_then(|text| text.parse().ok());
        Self {
            binary,
            bpffs,
            dir,
            kubeconfig: None,
            arguments,
            launcher,
            finds_pod_root: false,
            patience: seconds.map_or(PATIENCE, Duration::from_secs),
            capabilities: None,
            process: None,
        }
    }

    /// Has `run` started by a program that ends in becoming what it is given as its last words.
    #[must_use]
    pub fn launched_by<W: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.launcher = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Leaves it to the agent to find the pod root.
    #[must_use]
    pub fn finds_pod_root(mut self) -> Self {
        self.finds_pod_root = true;
        self
    }

    /// Gives it at least this time to be ready, and to end: it may have much to read, or be expected to get nowhere. On a slow machine
    /// it has more.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = if self.patience > PATIENCE { self.patience.max(patience) } else { patience };
        self
    }

    /// Has its objects come from an API server, from the next start on.
    #[must_use]
    pub fn kubeconfig(mut self, path: &Path) -> Self {
        self.kubeconfig = Some(path.to_owned());
        self
    }

    /// Gives `run` further arguments from the next start on.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        self
    }

    /// Starts it, and its `cleanup`, with these capabilities alone, and unable to gain others.
    #[must_use]
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Some(capabilities);
        self
    }

    fn limited(&self, exec: Exec) -> Exec {
        match self.capabilities {
            Some(capabilities) => exec.capabilities(capabilities).no_new_privileges(),
            None => exec,
        }
    }

    /// The binary.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where it answers.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// Where its objects are.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.dir.join("objects")
    }

    /// The command line of `run`.
    #[must_use]
    pub fn run(&self, topology: &Topology) -> Exec {
        let exec = match self.launcher.split_first() {
            Some((program, words)) => Exec::new(program, words).argument(&self.binary),
            None => Exec::new::<&str>(&self.binary, []),
        };
        let exec = exec.argument("run").argument("--source");
        let exec = match &self.kubeconfig {
            Some(path) => exec.argument("kube").argument("--kubeconfig").argument(path),
            None => exec.argument(format!("file:{}", self.objects().display())),
        };
        let exec = if self.finds_pod_root {
            exec
        } else {
            exec.argument("--pod-root").argument(topology.pod_root().path())
        };
        let exec = exec
            .argument("--bpffs")
            .argument(&self.bpffs)
            .argument("--socket")
            .argument(self.socket())
            .argument("--node-name")
            .argument(topology.node_name());
        self.limited(self.arguments.iter().fold(exec, Exec::argument))
    }

    /// Starts it.
    pub fn spawn(&mut self, topology: &Topology) -> Result<()> {
        self.process = Some(topology.node_exec(&self.run(topology))?);
        Ok(())
    }

    /// Starts it in a container of a pod, with all capabilities.
    pub fn spawn_in(&mut self, topology: &Topology, container: &Container) -> Result<()> {
        self.process = Some(container.spawn(&self.run(topology).capabilities(Capabilities::ALL))?);
        Ok(())
    }

    /// The same, and waits until it says that it is ready.
    pub fn start_in(&mut self, topology: &Topology, container: &Container) -> Result<()> {
        self.spawn_in(topology, container)?;
        self.wait("the agent is ready", |status| status["ready"] == true)
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// What it has said on standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(&mut self, topology: &Topology) -> Result<()> {
        self.spawn(topology)?;
        self.wait("the agent is ready", |status| status["ready"] == true)
    }

    /// Waits until its status is as wanted.
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let process = self.process.as_mut().context("the agent does not run")?;
            if !process.is_running()? {
                bail!("the agent ended: {}", process.stderr());
            }
            let status = self.status();
            if status.as_ref().is_some_and(&wanted) {
                return Ok(());
            }
            if start.elapsed() > self.patience {
                bail!("waited in vain: {what}; status {status:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `status` says; nothing where it cannot be reached.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let output = self.ask(&["status", "--output", "json"]).ok()?;
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
    }

    /// Denied and audited packets that it remembers.
    pub fn flows(&self) -> Result<Vec<Value>> {
        let output = self.ask(&["flows", "--output", "json"])?;
        if !output.status.success() {
            bail!("flows ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        output
            .stdout
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| Ok(serde_json::from_slice(line)?))
            .collect()
    }

    /// Runs a command that asks the running agent.
    pub fn ask(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(words).arg("--socket").arg(self.socket());
        command.output().with_context(|| format!("run {}", self.binary.display()))
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill(),
            None => bail!("the agent does not run"),
        }
    }

    /// Ends it as Kubernetes would.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent does not run")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(self.patience)?;
        if !status.success() {
            bail!("the agent ended with {status}: {}", process.stderr());
        }
        Ok(())
    }

    /// `egress-agent cleanup`, whatever comes of it.
    pub fn try_cleanup(&self, topology: &Topology) -> Result<Finished> {
        let exec = Exec::new(&self.binary, ["cleanup", "--bpffs"])
            .argument(&self.bpffs)
            .argument("--socket")
            .argument(self.socket());
        topology.node_exec(&self.limited(exec))?.finish(self.patience)
    }

    /// `egress-agent cleanup`.
    pub fn cleanup(&self, topology: &Topology) -> Result<()> {
        let finished = self.try_cleanup(topology)?;
        if !finished.status.success() {
            bail!("cleanup ended with {}: {}", finished.status, finished.stderr);
        }
        Ok(())
    }

    /// Everything that the enforcer has below its bpffs; files and directories.
    pub fn pins(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut next = vec![self.bpffs.join("egress-enforcer")];
        while let Some(path) = next.pop() {
            if !path.exists() {
                continue;
            }
            if path.is_dir() {
                next.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
            }
            found.push(path);
        }
        Ok(found)
    }
}
