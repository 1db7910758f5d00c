//! `demo`: the mesh's guide on this machine, tried for real, over the life of the enforcer.
//!
//! Invariant: a line is as expected only when the client, the observer outside and the agent's flow log all say so.

pub(crate) mod ground;
mod run;
mod script;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use egress_topology::bookinfo::Bookinfo;
use egress_topology::{Agent, Exec, Process, Topology};

use self::ground::Ground;
use crate::tries::table;

/// The policy of the guide, as in `deploy/examples`.
const POLICY: &str = include_str!("../../../deploy/examples/mesh.yaml");

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave it standing at the end, enforcing, and say what to type; Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
    /// Write the table as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What stands during the demonstration.
pub(crate) struct Stage {
    pub(crate) topology: Topology,
    pub(crate) bookinfo: Bookinfo,
    /// Prints what arrives outside.
    pub(crate) capture: Process,
    pub(crate) objects: PathBuf,
    pub(crate) interrupted: Arc<AtomicBool>,
}

impl Stage {
    pub(crate) fn write_policy(&self, text: &str) -> anyhow::Result<()> {
        let fresh = self.objects.join(".mesh.tmp");
        fs::write(&fresh, text)?;
        Ok(fs::rename(fresh, self.policy())?)
    }

    pub(crate) fn policy(&self) -> PathBuf {
        self.objects.join("mesh.yaml")
    }

    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Plays the guide and prints the table.
pub(crate) fn demo(args: &Args) -> anyhow::Result<()> {
    let ground = Ground::new("the demonstration")?;
    eprintln!(
        "==> set the stage: a node with productpage, reviews, an egress gateway and DNS; a server outside"
    );
    let topology = Topology::new(&ground.probe)?;
    let bookinfo = Bookinfo::new(&topology)?;
    let objects = ground.dir.path().join("objects");
    bookinfo.write_objects(&topology, &objects)?;
    let mut capture = topology.outside_exec(&Exec::probe(["capture"]))?;
    capture.wait_ready(Duration::from_secs(5))?;
    let interrupted = Arc::clone(&ground.interrupted);
    let mut stage = Stage { topology, bookinfo, capture, objects, interrupted };
    stage.write_policy(POLICY)?;

    let mut agent = ground.agent();
    let lines = script::play(&mut stage, &mut agent, POLICY)?;
    println!("\n{}", table::render(&lines));
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&lines)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.keep {
        keep(&stage, &mut agent, ground.dir.path())?;
    }
    stage.bookinfo.check()?;
    let wrong = table::sum(&lines).wrong;
    if wrong > 0 {
        bail!("{wrong} of {} lines are not as expected", lines.len());
    }
    println!("\n{} lines, all as expected", lines.len());
    Ok(())
}

/// Enforces again and waits for Ctrl-C.
fn keep(stage: &Stage, agent: &mut Agent, dir: &Path) -> anyhow::Result<()> {
    stage.write_policy(POLICY)?;
    agent.start(&stage.topology)?;
    let me = std::process::id();
    let socket = agent.socket();
    let (binary, socket) = (agent.binary().display(), socket.display());
    let page = &stage.bookinfo.productpage;
    println!("\nIt stands, and enforces. In another terminal, as root:");
    println!("  {binary} status --socket {socket}");
    println!("  {binary} endpoints --socket {socket}");
    println!("  {binary} flows --follow --socket {socket}");
    println!("  $EDITOR {}/mesh.yaml          # the agent follows", dir.join("objects").display());
    println!("A shell in productpage's application container, past the sidecar:");
    println!(
        "  sh -c 'echo $$ > {}/cgroup.procs; exec nsenter -t {me} -m nsenter --net={} setpriv --reuid 1337 --clear-groups sh'",
        page.app.cgroup().display(),
        page.pod.netns().path().display(),
    );
    println!("  {} get http://{}/", stage.topology.probe().display(), egress_topology::OUTSIDE_V4);
    println!("Ctrl-C takes it down.");
    while stage.check().is_ok() {
        std::thread::sleep(Duration::from_millis(200));
    }
    agent.stop()?;
    agent.cleanup(&stage.topology)
}
