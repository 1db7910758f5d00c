//! `bench agent`: how soon the agent acts on what is written to an API server, and what it costs meanwhile. The measuring is a
//! benchmark of `egress-agent`; here it is built, run, and what it says is read.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::{Args, Rows, benchmark, record, table};
use crate::build::build_object;
use crate::command::{cargo, line, run, target};
use crate::setup::{self, Need};

pub(super) fn agent(args: &Args) -> anyhow::Result<()> {
    if args.part.is_some() || args.json.is_some() {
        bail!("--part and --json are for `bench datapath`");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("this loads BPF and makes network namespaces: run `sudo -E cargo xtask bench agent`");
    }
    setup::setup(Need::Run)?;
    build_object("egress-ebpf")?;
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "-p", "egress-agent", "-p", "egress-probe"]);
    run("build agent and probe", &mut build)?;
    let mut command = Command::new(benchmark("agent")?);
    command.arg("--agent").arg(target().join("release/egress-agent"));
    command.arg("--probe").arg(target().join("release/egress-probe"));
    command.args(args.quick.then_some("--quick"));
    eprintln!("==> measure (some 5 minutes)");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line(&command)))?;
    let stdout = child.stdout.take().context("the benchmark has no output")?;
    let mut rows = Rows::new();
    for text in BufReader::new(stdout).lines() {
        let text = text?;
        eprintln!("    {text}");
        // measured PODS WHAT: VALUE
        let measured = text.strip_prefix("measured ").and_then(|rest| rest.split_once(' '));
        let (size, rest) = measured.with_context(|| format!("{text:?} is no result"))?;
        let (what, value) = rest.rsplit_once(": ").with_context(|| format!("{text:?} is no result"))?;
        rows.entry(what.to_owned()).or_default().insert(size.parse()?, value.to_owned());
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} failed ({status})", line(&command));
    }
    let table = table(&rows)?;
    print!("{table}");
    if args.record { record("docs/performance.md", "agent", &table) } else { Ok(()) }
}
