//! What is to be run: the tests of the privileged crates, by name.
//!
//! Invariant: a test is in the plan, or it is marked as ignored in its source and counted as such.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::{cargo, line, root, target};

/// The crates whose tests depend on the kernel.
const PACKAGES: [&str; 2] = ["egress-topology", "egress-agent"];

/// Stands for all of a binary that has no tests by name.
pub(crate) const WHOLE: &str = "(all of it)";

/// What a kernel is to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) binaries: Vec<Binary>,
    /// The probe, for the topology in which features are tried.
    pub(crate) probe: PathBuf,
    /// The BPF object.
    pub(crate) object: PathBuf,
    /// Tests that run at a time.
    pub(crate) jobs: usize,
    /// Seconds that a test may take.
    pub(crate) limit: u64,
    /// What fails is run once more, alone: emulation is slow, and tests wait for no more than seconds.
    pub(crate) again: bool,
}

/// A test binary.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The package's directory, where cargo runs it.
    pub(crate) directory: PathBuf,
    pub(crate) tests: Vec<String>,
    /// Whether these are all of them.
    pub(crate) whole: bool,
    pub(crate) ignored: usize,
}

impl Plan {
    /// Features only, without tests.
    pub(crate) fn features() -> Self {
        let probe = target().join("debug/egress-probe");
        let object = root().join("target/bpf/egress-ebpf.o");
        Self { binaries: Vec::new(), probe, object, jobs: 2, limit: 600, again: true }
    }

    /// Builds the tests and lists those whose name contains one of the filters, or whose binary has such a name; all without any.
    pub(crate) fn new(filters: &[String]) -> anyhow::Result<Self> {
        let mut binaries = Vec::new();
        for artifact in build()? {
            binaries.extend(Binary::new(&artifact, filters)?);
        }
        let ignored: usize = binaries.iter().map(|binary: &Binary| binary.ignored).sum();
        if ignored > 0 {
            eprintln!("    {ignored} tests are marked as ignored in their source, and not run");
        }
        binaries.retain(|binary| !binary.tests.is_empty());
        // A long test in a binary of its own comes early, and the others go on beside it.
        binaries.sort_by(|a, b| (a.tests.len(), &a.name).cmp(&(b.tests.len(), &b.name)));
        if binaries.is_empty() {
            bail!("no test of {} has that in its name", PACKAGES.join(" and "));
        }
        Ok(Self { binaries, ..Self::features() })
    }

    /// How many tests it has.
    pub(crate) fn tests(&self) -> usize {
        self.binaries.iter().map(|binary| binary.tests.len()).sum()
    }

    /// Everything that is run by its path.
    pub(crate) fn programs(&self) -> Vec<PathBuf> {
        let agent = self.probe.with_file_name("egress-agent");
        let tests = self.binaries.iter().map(|binary| binary.path.clone());
        [agent, self.probe.clone()].into_iter().chain(tests).collect()
    }
}

/// What cargo says about each test binary.
fn build() -> anyhow::Result<Vec<Value>> {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    command.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    eprintln!("==> build the privileged tests");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", line(&command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", line(&command), output.status);
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages are not text")?;
    let messages: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok(messages.into_iter().filter(|message| message["profile"]["test"] == true).collect())
}

impl Binary {
    fn new(artifact: &Value, filters: &[String]) -> anyhow::Result<Option<Self>> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (Some(path), Some(manifest), Some(target), Some(kind)) = (
            text(&artifact["executable"]),
            text(&artifact["manifest_path"]),
            text(&artifact["target"]["name"]),
            text(&artifact["target"]["kind"][0]),
        ) else {
            return Ok(None);
        };
        let directory = Path::new(&manifest).parent().context("a manifest without a directory")?.to_owned();
        let name = if kind == "test" {
            target
        } else {
            let package = directory.file_name().unwrap_or_default().to_string_lossy();
            format!("{package} {kind}")
        };
        let (tests, ignored) = match list(&path, &directory, &[])? {
            Some(tests) => (tests, list(&path, &directory, &["--ignored"])?.unwrap_or_default()),
            // A program without Rust's test harness is one test.
            None => (vec![WHOLE.to_owned()], Vec::new()),
        };
        let wanted = |test: &String| {
            let called = if test == WHOLE { &name } else { test };
            let meant = |filter: &String| *filter == name || called.contains(filter);
            !ignored.contains(test) && (filters.is_empty() || filters.iter().any(meant))
        };
        let all = tests.len() - ignored.len();
        let tests: Vec<_> = tests.into_iter().filter(wanted).collect();
        let whole = tests.len() == all;
        Ok(Some(Self { name, path: path.into(), directory, tests, whole, ignored: ignored.len() }))
    }
}

/// The names of the tests in a binary; nothing where it does not know what listing is.
fn list(binary: &str, directory: &Path, more: &[&str]) -> anyhow::Result<Option<Vec<String>>> {
    let mut command = Command::new(binary);
    command.current_dir(directory).arg("--list").args(more);
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", line(&command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", line(&command), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let knows = text.lines().any(|line| line.ends_with(" benchmarks"));
    let tests = text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned);
    Ok(knows.then(|| tests.collect()))
}
