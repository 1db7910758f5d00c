//! What the datapath costs, beside doing nothing and beside other filters; run by `cargo xtask bench datapath`.
//!
//! Prints JSON lines (`record.rs`); progress is on standard error. Every way of filtering has a node, a pod and a server
//! outside of its own, all alike and all standing at the same time, so that they take turns within every round.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "a program of its own, which nothing imports"
)]

mod destinations;
mod loads;
mod lpm;
mod objects;
mod packet;
mod programs;
mod record;
mod rules;
mod runs;
mod stand;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, ValueEnum};
use egress_topology::{MountPoint, mount_bpffs, private_mount_namespace};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// How our directory begins, before the process id of its owner.
const DIRECTORY: &str = "egress-bench-";
/// How many destinations are allowed.
const SIZES: [usize; 4] = [10, 1_000, 10_000, 100_000];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Programs by themselves.
    Programs,
    /// Traffic.
    Loads,
}

#[derive(Debug, Parser)]
struct Cli {
    /// The object of the programs to compare with.
    #[arg(long)]
    baseline: PathBuf,
    /// The probe that makes the traffic.
    #[arg(long)]
    probe: PathBuf,
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Only this part.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// How many destinations are allowed.
    #[arg(long, value_delimiter = ',', default_values_t = SIZES)]
    sizes: Vec<usize>,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Rounds of traffic.
    rounds: usize,
    /// How long a load lasts.
    load: Duration,
    /// Samples of a program.
    samples: usize,
    /// Runs of a program in one sample.
    repeat: u32,
    /// Runs, each on a new socket, in one sample.
    first: u32,
}

impl Effort {
    /// Many short rounds: noise comes and goes within seconds.
    const FULL: Self =
        Self { rounds: 25, load: Duration::from_millis(300), samples: 11, repeat: 1_000_000, first: 10_000 };
    const QUICK: Self =
        Self { rounds: 5, load: Duration::from_millis(150), samples: 7, repeat: 100_000, first: 2_000 };
}

/// What everything needs.
#[derive(Debug)]
struct Setting {
    baseline: PathBuf,
    probe: PathBuf,
    effort: Effort,
    interrupted: Arc<AtomicBool>,
    dir: TempDir,
}

impl Setting {
    /// A new directory with a bpffs in it.
    fn bpffs(&self, name: &str) -> anyhow::Result<(PathBuf, MountPoint)> {
        let dir = self.dir.path().join(name);
        let bpffs = mount_bpffs(&dir.join("bpf"))?;
        Ok((dir, bpffs))
    }

    /// Fails once somebody wants us to end.
    fn check(&self) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let interrupted = Arc::new(AtomicBool::new(false));
    match run(Cli::parse(), &interrupted) {
        Ok(()) => ExitCode::SUCCESS,
        // What somebody ended takes what it had started along, which then fails in its own words.
        Err(_) if interrupted.load(Ordering::Relaxed) => {
            eprintln!("bench: interrupted");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, interrupted: &Arc<AtomicBool>) -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this loads BPF and makes network namespaces: run it as root");
    // Before the first thread: what is mounted from here on vanishes with us, however we end.
    private_mount_namespace()?;
    set_pdeathsig(Signal::SIGTERM).context("cannot ask to end with the parent")?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal_hook::flag::register(signal as i32, Arc::clone(interrupted))?;
    }
    let effort = if cli.quick { Effort::QUICK } else { Effort::FULL };
    let Cli { baseline, probe, .. } = cli;
    sweep_directories();
    let dir = tempfile::Builder::new().prefix(&format!("{DIRECTORY}{}-", std::process::id())).tempdir()?;
    let setting = Setting { baseline, probe, effort, interrupted: Arc::clone(interrupted), dir };
    let wanted = |part| cli.part.is_none_or(|only| only == part);
    if wanted(Part::Programs) {
        programs::measure(&setting, &cli.sizes)?;
    }
    if wanted(Part::Loads) {
        loads::measure(&setting, &cli.sizes)?;
    }
    Ok(())
}

/// Removes the directories of benchmarks that were killed; nothing is mounted there any more.
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
