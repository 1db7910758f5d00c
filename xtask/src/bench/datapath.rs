//! `bench datapath`: what the hooks cost, beside nothing and beside other filters. The measuring is a benchmark of
//! `egress-agent`; here it is built, run, and what it says is read.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use super::{Args, benchmark, machine, record, report};
use crate::build::build_object;
use crate::command::{cargo, line, run, target, which};
use crate::setup::{self, Need};

/// A way of filtering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Variant {
    Nothing,
    NothingAgain,
    Enforcer,
    SocketHook,
    Nftables,
    Iptables,
    PlainLpm,
}

/// What a load is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    Stream,
    StreamCpu,
    Packets,
    PacketsCpu,
    Connections,
    ConnectionsCpu,
    RequestP50,
    RequestP99,
}

/// A line that the benchmark prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "measured", rename_all = "snake_case")]
enum Record {
    Traffic { size: u64, metric: Metric, variant: Variant, rounds: Vec<f64> },
    Program { size: u64, case: String, passed: bool, nanoseconds: Vec<f64>, above_empty: Vec<f64> },
    LeftOut { size: u64, variant: Variant, reason: String },
}

/// Samples of a program.
#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    pub(super) passed: bool,
    pub(super) nanoseconds: Vec<f64>,
    pub(super) above_empty: Vec<f64>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Results {
    /// The values of the rounds.
    pub(super) traffic: BTreeMap<(Metric, Variant, u64), Vec<f64>>,
    /// By size; the names in the order in which they came.
    pub(super) programs: BTreeMap<(String, u64), Program>,
    pub(super) cases: Vec<String>,
    /// What was left out, and why.
    pub(super) left_out: BTreeMap<(Variant, u64), String>,
}

impl Results {
    fn add(&mut self, record: Record) {
        match record {
            Record::Traffic { size, metric, variant, rounds } => {
                self.traffic.insert((metric, variant, size), rounds);
            }
            Record::Program { size, case, passed, nanoseconds, above_empty } => {
                if !self.cases.contains(&case) {
                    self.cases.push(case.clone());
                }
                self.programs.insert((case, size), Program { passed, nanoseconds, above_empty });
            }
            Record::LeftOut { size, variant, reason } => {
                self.left_out.insert((variant, size), reason);
            }
        }
    }
}

/// Which half is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Programs by themselves, in nanoseconds a packet.
    Programs,
    /// Traffic of a pod.
    Loads,
}

pub(super) fn datapath(args: &Args) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this loads BPF and makes network namespaces: run `sudo -E cargo xtask bench datapath`");
    }
    if args.record && args.part.is_some() {
        bail!("--record takes both parts: leave out --part");
    }
    setup::setup(Need::Run)?;
    if which("iptables-restore").is_none() {
        setup::apt(&["iptables"])?;
    }
    build_object("egress-ebpf")?;
    let baseline = build_object("baseline")?;
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "-p", "egress-probe"]);
    run("build the probe", &mut build)?;
    let mut command = Command::new(benchmark("datapath")?);
    command.arg("--baseline").arg(baseline);
    command.arg("--probe").arg(target().join("release/egress-probe"));
    command.args(args.quick.then_some("--quick"));
    if let Some(part) = args.part.and_then(|part| part.to_possible_value()) {
        command.args(["--part", part.get_name()]);
    }
    eprintln!("==> measure ({})", if args.quick { "some 3 minutes" } else { "some 18 minutes" });
    // It ends by itself when we do, and removes what it made.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line(&command)))?;
    let stdout = child.stdout.take().context("the benchmark has no output")?;
    let mut results = Results::default();
    for text in BufReader::new(stdout).lines() {
        let text = text?;
        results.add(serde_json::from_str(&text).with_context(|| format!("{text:?} is no result"))?);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} failed ({status})", line(&command));
    }
    let table = format!("{}\n\n{}", machine(), report::tables(&results)?);
    print!("{table}");
    if let Some(path) = &args.json {
        std::fs::write(path, report::json_lines(&results)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.record { record("docs/performance.md", "datapath", &table) } else { Ok(()) }
}
