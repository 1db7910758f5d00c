//! What came of a kernel: told while it runs, summed up at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::event::{Event, Outcome, TestResult};
use super::features::Feature;
use super::known;
use super::plan::Plan;

/// Results on one kernel.
pub(crate) struct Report {
    /// As asked for.
    pub(crate) kernel: String,
    pub(crate) release: String,
    pub(crate) features: Vec<Feature>,
    pub(crate) outcomes: Vec<Outcome>,
    /// Why it did not come to its end.
    pub(crate) broken: Option<String>,
    /// From its start to its end, and to its first word.
    pub(crate) seconds: f32,
    pub(crate) booted: f32,
    start: Instant,
    left: BTreeMap<String, usize>,
    /// Binaries of which every test is to be run.
    whole: BTreeSet<String>,
    /// Tests that have begun and not ended.
    running: BTreeSet<(String, String)>,
    /// When a line was last printed.
    spoke: Instant,
}

/// How long nothing may be said of tests that pass.
const SILENCE: Duration = Duration::from_mins(1);

/// Tests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Failed, as is known of this kernel.
    pub(crate) known: usize,
    /// Of those passed: not beside others.
    pub(crate) alone: usize,
}

impl Report {
    pub(crate) fn new(kernel: &str, plan: &Plan) -> Self {
        Self {
            kernel: kernel.to_owned(),
            release: kernel.to_owned(),
            features: Vec::new(),
            outcomes: Vec::new(),
            broken: None,
            seconds: 0.0,
            booted: 0.0,
            start: Instant::now(),
            left: plan.binaries.iter().map(|binary| (binary.name.clone(), binary.tests.len())).collect(),
            whole: plan.binaries.iter().filter(|one| one.whole).map(|one| one.name.clone()).collect(),
            running: BTreeSet::new(),
            spoke: Instant::now(),
        }
    }

    /// Takes an event and prints what a person should know of it.
    pub(crate) fn hear(&mut self, event: Event) {
        match event {
            Event::Kernel { release } => {
                self.booted = self.start.elapsed().as_secs_f32();
                eprintln!("    {}: {release} is up after {:.1} s", self.kernel, self.booted);
                self.release = release;
            }
            Event::Feature(feature) => self.features.push(feature),
            Event::Began { binary, test } => {
                self.running.insert((binary, test));
            }
            Event::Test(outcome) => self.test(outcome),
            Event::Failed(_) | Event::Done => {}
        }
    }

    fn test(&mut self, outcome: Outcome) {
        self.running.remove(&(outcome.binary.clone(), outcome.test.clone()));
        let known = known::reason(&self.kernel, &outcome.binary, &outcome.test);
        let (kernel, binary, test) = (&self.kernel, &outcome.binary, &outcome.test);
        match (outcome.result, known) {
            (TestResult::Passed, None) if outcome.again => {
                eprintln!("    {kernel}: {binary}: {test} failed beside others, and passed alone. At first:");
                outcome.output.lines().for_each(|line| eprintln!("        {line}"));
            }
            (TestResult::Passed, None) => {}
            (TestResult::Passed, Some(reason)) => {
                eprintln!("    {kernel}: {binary}: {test} passed, though it is known not to: {reason}");
            }
            (_, Some(reason)) => eprintln!("    {kernel}: {binary}: {test}: known difference: {reason}"),
            (result, None) => {
                let how = if result == TestResult::TimedOut { "took too long" } else { "FAILED" };
                eprintln!("    {kernel}: {binary}: {test} {how} ({:.1} s)", outcome.seconds);
                outcome.output.lines().for_each(|line| eprintln!("        {line}"));
            }
        }
        let binary = outcome.binary.clone();
        self.outcomes.push(outcome);
        let left = self.left.entry(binary.clone()).or_default();
        *left = left.saturating_sub(1);
        if *left == 0 {
            let of_it = || self.outcomes.iter().filter(|outcome| outcome.binary == binary);
            let seconds: f32 = of_it().map(|outcome| outcome.seconds).sum();
            let count = self.count(of_it());
            eprintln!("    {}: {binary}: {count}, {seconds:.1} s", self.kernel);
            self.spoke = Instant::now();
        } else if self.spoke.elapsed() > SILENCE {
            let left: usize = self.left.values().sum();
            eprintln!("    {}: {} tests done, {left} to go", self.kernel, self.outcomes.len());
            self.spoke = Instant::now();
        }
    }

    /// The binaries of which every test has an outcome.
    pub(crate) fn whole(&self) -> impl Iterator<Item = &str> {
        self.whole.iter().map(String::as_str).filter(|name| self.left.get(*name) == Some(&0))
    }

    /// Counts some of the outcomes.
    fn count<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome>) -> Count {
        let mut count = Count::default();
        for outcome in outcomes {
            let known = known::reason(&self.kernel, &outcome.binary, &outcome.test).is_some();
            count.alone += usize::from(outcome.again && outcome.result == TestResult::Passed);
            match (outcome.result, known) {
                (TestResult::Passed, _) => count.passed += 1,
                (_, true) => count.known += 1,
                (_, false) => count.failed += 1,
            }
        }
        count
    }

    /// All of a binary, or all.
    pub(crate) fn total(&self, binary: Option<&str>) -> Count {
        self.count(self.outcomes.iter().filter(|outcome| binary.is_none_or(|name| outcome.binary == name)))
    }

    /// Notes how it ended.
    pub(crate) fn end(&mut self, result: anyhow::Result<()>, plan: &Plan) {
        self.seconds = self.start.elapsed().as_secs_f32();
        self.broken = result.err().map(|error| format!("{error:#}"));
        let missing = plan.tests().saturating_sub(self.outcomes.len());
        if self.broken.is_none() && missing > 0 {
            self.broken = Some(format!("{missing} tests were not run"));
        }
        match &self.broken {
            Some(broken) => {
                eprintln!("    {}: {broken}", self.kernel);
                for (binary, test) in &self.running {
                    eprintln!("    {}: {binary}: {test} was running", self.kernel);
                }
            }
            None => eprintln!("    {}: {}, {:.0} s", self.kernel, self.total(None), self.seconds),
        }
    }

    /// Whether everything passed that should.
    pub(crate) fn is_good(&self) -> bool {
        self.broken.is_none() && self.total(None).failed == 0
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed", self.passed)?;
        if self.alone > 0 {
            write!(f, " ({} when alone)", self.alone)?;
        }
        if self.failed > 0 {
            write!(f, ", {} failed", self.failed)?;
        }
        if self.known > 0 {
            write!(f, ", {} known differences", self.known)?;
        }
        Ok(())
    }
}
