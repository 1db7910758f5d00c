//! `demo`: the mesh's guide on this machine, tried for real, over the life of the enforcer.
//!
//! Invariant: a line is as expected only when the client, the observer outside and the agent's flow log all say so.

mod script;
mod tries;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use egress_topology::bookinfo::Bookinfo;
use egress_topology::{Agent, Exec, Process, Topology, mount_bpffs, private_mount_namespace};
use serde::Serialize;

use crate::build;

use crate::setup::{self, Need};

/// The policy of the guide, as in `deploy/examples`.
const POLICY: &str = include_str!("../../../deploy/examples/mesh.yaml");

/// How the directory of a demonstration begins, before the process id of its owner.
const DIRECTORY: &str = "egress-demo-";

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

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// The state of the enforcer.
    when: &'static str,
    /// The container that tried.
    who: String,
    /// What it tried.
    how: String,
    expected: &'static str,
    got: String,
    as_expected: bool,
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
    if !nix::unistd::geteuid().is_root() {
        bail!("the demonstration loads BPF and makes network namespaces: run `sudo -E cargo xtask demo`");
    }
    // Before the first thread: what is mounted from here on vanishes with us, however we end.
    private_mount_namespace()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [nix::libc::SIGINT, nix::libc::SIGTERM, nix::libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    setup::setup(Need::Run)?;
    build::build_ebpf()?;
    let binaries = build::build_binaries()?;

    eprintln!(
        "==> set the stage: a node with productpage, reviews, an egress gateway and DNS; a server outside"
    );
    sweep_directories();
    let dir = tempfile::Builder::new().prefix(&format!("{DIRECTORY}{}-", std::process::id())).tempdir()?;
    let bpffs = mount_bpffs(&dir.path().join("bpf"))?;
    // Where the sidecar's user can start it, wherever this checkout is.
    let probe = dir.path().join("egress-probe");
    fs::copy(binaries.join("egress-probe"), &probe).context("cannot copy the probe")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let topology = Topology::new(probe)?;
    let bookinfo = Bookinfo::new(&topology)?;
    let objects = dir.path().join("objects");
    bookinfo.write_objects(&topology, &objects)?;
    let mut capture = topology.outside_exec(&Exec::probe(["capture"]))?;
    capture.wait_ready(Duration::from_secs(5))?;
    let mut stage = Stage { topology, bookinfo, capture, objects, interrupted };
    stage.write_policy(POLICY)?;

    let mut agent = Agent::new(binaries.join("egress-agent"), bpffs.path(), dir.path());
    let lines = script::play(&mut stage, &mut agent, POLICY)?;
    print(&lines);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&lines)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.keep {
        keep(&stage, &mut agent, dir.path())?;
    }
    stage.bookinfo.check()?;
    let wrong = lines.iter().filter(|line| !line.as_expected).count();
    if wrong > 0 {
        bail!("{wrong} of {} lines are not as expected", lines.len());
    }
    println!("\n{} lines, all as expected", lines.len());
    Ok(())
}

/// Removes the directories of demonstrations that were killed; nothing is mounted there any more.
fn sweep_directories() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(DIRECTORY).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn print(lines: &[Line]) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["WHEN", "WHO", "HOW", "EXPECTED", "GOT", ""]);
    let mut last = "";
    for line in lines {
        let when = if line.when == last { "" } else { line.when };
        let mark = if line.as_expected { "ok" } else { "WRONG" };
        table.add_row([when, &line.who, &line.how, line.expected, &line.got, mark]);
        last = line.when;
    }
    println!("\n{}", table.trim_fmt());
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
