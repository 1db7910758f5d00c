//! `bench`: measures, prints a table, and with `--record` writes it into docs/performance.md.
//!
//! Invariant: a number in docs/performance.md comes from a run that names its machine.

mod agent;
mod aims;
mod datapath;
mod estimate;
mod report;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Deserialize;

use crate::command::{cargo, line, output, root, target};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Compiling and following events, for clusters of 1,000 to 100,000 pods.
    Policy,
    /// Packets and traffic under the hooks, under other filters and under none, for 10 to 100,000 allowed destinations. Needs
    /// root.
    Datapath,
    /// How soon what is written to an API server is felt by packets, and what the agent costs, in clusters of 1,000 to 100,000 pods.
    /// Needs root.
    Agent,
}

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure.
    what: What,
    /// Write the table into docs/performance.md.
    #[arg(long)]
    record: bool,
    /// Fewer samples.
    #[arg(long)]
    quick: bool,
    /// Only this part of `datapath`.
    #[arg(long, value_enum)]
    part: Option<datapath::Part>,
    /// Write the results of `datapath` as JSON lines, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A row of the table: what was measured, per size.
type Rows = BTreeMap<String, BTreeMap<u64, String>>;

pub(crate) fn bench(args: &Args) -> anyhow::Result<()> {
    match args.what {
        What::Policy => policy(args),
        What::Datapath => datapath::datapath(args),
        What::Agent => agent::agent(args),
    }
}

#[derive(Deserialize)]
struct Benchmark {
    function_id: String,
    value_str: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

fn policy(args: &Args) -> anyhow::Result<()> {
    if args.part.is_some() || args.json.is_some() {
        bail!("--part and --json are for `bench datapath`");
    }
    let results = target().join("criterion/policy");
    // Results of a benchmark that has another name by now are no results.
    if results.exists() {
        std::fs::remove_dir_all(&results)?;
    }
    let mut command = cargo();
    command.args(["bench", "--locked", "-p", "egress-policy", "--bench", "policy", "--"]);
    command.args(args.quick.then_some("--quick"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line(&command)))?;
    let mut rows = Rows::new();
    let stdout = child.stdout.take().context("the benchmark has no output")?;
    for text in BufReader::new(stdout).lines() {
        let text = text?;
        eprintln!("{text}");
        // memory PODS of WHAT BYTES
        if let Some((size, rest)) = text.strip_prefix("memory ").and_then(|rest| rest.split_once(' '))
            && let Some((what, bytes)) = rest.rsplit_once(' ')
        {
            let cell = format!("{bytes} B");
            rows.entry(format!("memory per pod, {what}")).or_default().insert(size.parse()?, cell);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} failed ({status})", line(&command));
    }
    for name in std::fs::read_dir(&results).context("the benchmark left no results")? {
        for size in std::fs::read_dir(name?.path())? {
            let new = size?.path().join("new");
            if let Ok(benchmark) = read::<Benchmark>(&new.join("benchmark.json")) {
                let median = read::<Estimates>(&new.join("estimates.json"))?.median.point_estimate;
                let size = benchmark.value_str.parse()?;
                rows.entry(benchmark.function_id).or_default().insert(size, time(median));
            }
        }
    }
    let table = table(&rows)?;
    print!("{table}");
    if args.record { record("docs/performance.md", "policy", &table) } else { Ok(()) }
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        ns if ns < 1e9 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

fn table(rows: &Rows) -> anyhow::Result<String> {
    let mut out = String::new();
    let sizes: std::collections::BTreeSet<u64> = rows.values().flat_map(BTreeMap::keys).copied().collect();
    writeln!(out, "{}\n", machine())?;
    write!(out, "| pods |")?;
    sizes.iter().try_for_each(|size| write!(out, " {size} |"))?;
    write!(out, "\n|---|")?;
    sizes.iter().try_for_each(|_| write!(out, "---:|"))?;
    writeln!(out)?;
    for (what, cells) in rows {
        write!(out, "| {what} |")?;
        sizes.iter().try_for_each(|size| write!(out, " {} |", cells.get(size).map_or("", String::as_str)))?;
        writeln!(out)?;
    }
    Ok(out)
}

/// Builds a benchmark of the agent; gives where it is.
fn benchmark(name: &str) -> anyhow::Result<PathBuf> {
    /// What cargo says of an artifact.
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "-p", "egress-agent", "--bench", name]);
    build.args(["--message-format", "json-render-diagnostics"]);
    eprintln!("==> build the benchmark");
    let output =
        build.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {}", line(&build)))?;
    if !output.status.success() {
        bail!("{} failed ({})", line(&build), output.status);
    }
    let messages = output.stdout.split(|&byte| byte == b'\n');
    let made =
        messages.filter_map(|message| serde_json::from_slice::<Message>(message).ok()).find_map(|message| {
            let target = message.target?;
            (target.name == name && target.kind == ["bench"]).then_some(message.executable)?
        });
    made.context("cargo does not say where the benchmark is")
}

/// The machine, in one line.
fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = output(Command::new("uname").arg("-r")).unwrap_or_default();
    let rustc = output(Command::new("rustc").arg("--version")).unwrap_or_default();
    format!("Medians on {processors} processors of an {model}, Linux {kernel}, {rustc}.")
}

/// A file's path, what it has before the marks of a name, between, and after.
fn marked(file: &str, name: &str) -> anyhow::Result<(PathBuf, [String; 3])> {
    let path = root().join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (begin, end) = marks(name);
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (between, after) = rest.split_once(&end)?;
        Some([before, between, after].map(str::to_owned))
    });
    let parts = parts.with_context(|| format!("{} has no marks for {name}", path.display()))?;
    Ok((path, parts))
}

fn marks(name: &str) -> (String, String) {
    (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"))
}

/// What a file has between the marks of a name.
pub(crate) fn recorded(file: &str, name: &str) -> anyhow::Result<String> {
    let (_, [_, between, _]) = marked(file, name)?;
    Ok(between)
}

/// Puts a table between its marks in a file.
pub(crate) fn record(file: &str, name: &str, table: &str) -> anyhow::Result<()> {
    let (path, [before, _, after]) = marked(file, name)?;
    let (begin, end) = marks(name);
    std::fs::write(&path, format!("{before}{begin}{table}{end}{after}"))?;
    eprintln!("written: {}", path.display());
    Ok(())
}
