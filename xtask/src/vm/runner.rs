//! Running a plan: each test is a process of its own, so that one that hangs or crashes is one that failed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::event::{Event, Outcome, TestResult};
use super::features;
use super::plan::{Binary, Plan, WHOLE};

/// How much of a test's output is told.
const OUTPUT: u64 = 24 * 1024;

/// Probes the kernel's features and runs every test, telling of each as it ends.
pub(crate) fn run(plan: &Plan, mut tell: impl FnMut(Event) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("no release")?;
    tell(Event::Kernel { release: release.trim().to_owned() })?;
    features::probe(plan, |feature| tell(Event::Feature(feature)))?;
    let all = plan.binaries.iter().flat_map(|binary| binary.tests.iter().map(move |test| (binary, test)));
    let queue: Mutex<VecDeque<_>> = Mutex::new(all.collect());
    let limit = Duration::from_secs(plan.limit);
    let mut failed = Vec::new();
    thread::scope(|scope| {
        let (sender, events) = channel();
        for _ in 0..plan.jobs.max(1) {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((binary, test)) = next else { return };
                    let began = Event::Began { binary: binary.name.clone(), test: test.clone() };
                    let ended = || Event::Test(one(binary, test, limit));
                    if sender.send(began).and_then(|()| sender.send(ended())).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        events.iter().try_for_each(|event| match event {
            Event::Test(outcome) if plan.again && outcome.result == TestResult::Failed => {
                failed.push(outcome);
                Ok(())
            }
            event => tell(event),
        })
    })?;
    for first in failed {
        tell(Event::Began { binary: first.binary.clone(), test: first.test.clone() })?;
        let binary = plan.binaries.iter().find(|binary| binary.name == first.binary);
        let second = binary.map(|binary| one(binary, &first.test, limit));
        let result = second.map_or(first.result, |second| second.result);
        tell(Event::Test(Outcome { result, again: true, ..first }))?;
    }
    tell(Event::Done)
}

/// Runs one test.
fn one(binary: &Binary, test: &str, limit: Duration) -> Outcome {
    let start = Instant::now();
    let (result, output) = attempt(binary, test, limit)
        .unwrap_or_else(|error| (TestResult::Failed, format!("it could not be run: {error:#}")));
    Outcome {
        binary: binary.name.clone(),
        test: test.to_owned(),
        result,
        seconds: start.elapsed().as_secs_f32(),
        again: false,
        output: if result == TestResult::Passed { String::new() } else { output },
    }
}

fn attempt(binary: &Binary, test: &str, limit: Duration) -> anyhow::Result<(TestResult, String)> {
    let mut output = tempfile::tempfile()?;
    let whole = test == WHOLE;
    let mut command = Command::new(&binary.path);
    if !whole {
        command.args(["--exact", test]);
    }
    let mut child = command
        .current_dir(&binary.directory)
        .env("CARGO_MANIFEST_DIR", &binary.directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > end {
            // What it started is killed with it.
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let text = tail(&mut output)?;
    // A binary that does not have the test is content with none.
    let ran = whole || text.contains("test result: ok. 1 passed");
    let result = match status {
        None => TestResult::TimedOut,
        Some(status) if ran && ExitStatus::success(&status) => TestResult::Passed,
        Some(_) => TestResult::Failed,
    };
    Ok((result, text))
}

/// The end of a file.
fn tail(file: &mut File) -> anyhow::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
