//! Programs that run, and what they print.
//!
//! Invariant: dropping a [`Process`] kills and reaps it.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use egress_probe::Ready;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

/// How much of standard error is kept.
const STDERR_LIMIT: usize = 256 * 1024;

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    description: String,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
    stderr_reader: Option<JoinHandle<()>>,
    stdin: Option<ChildStdin>,
}

/// What a program that has ended left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output that was not taken before.
    pub stdout: String,
    /// The beginning of its standard error.
    pub stderr: String,
}

impl Process {
    pub(crate) fn new(mut child: Child, description: String) -> Result<Self> {
        let (sender, lines) = channel();
        let stdin = child.stdin.take();
        let (stdout, errors) = (child.stdout.take(), child.stderr.take());
        let stderr = Arc::new(Mutex::new(String::new()));
        // Made first, so that the child is killed if a thread cannot be started.
        let mut process = Self { child, description, lines, stderr, stderr_reader: None, stdin };
        if let Some(stdout) = stdout {
            let read = move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            };
            thread::Builder::new().name("stdout".to_owned()).spawn(read)?;
        }
        if let Some(errors) = errors {
            let text = Arc::clone(&process.stderr);
            let read = move || collect(errors, &text);
            process.stderr_reader = Some(thread::Builder::new().name("stderr".to_owned()).spawn(read)?);
        }
        Ok(process)
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed on standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the `{"ready":true}` of a server.
    pub fn wait_ready(&mut self, within: Duration) -> Result<()> {
        let ready: Option<Ready> = self.next_json(within)?;
        match ready {
            Some(Ready { ready: true }) => Ok(()),
            _ => Err(self.error(&format!("not ready within {within:?}"))),
        }
    }

    /// The next line of standard output, or nothing within the time. An end of the output is an error.
    pub fn next_line(&mut self, within: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(within) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                // The output ends just before the process does.
                let status = self.wait(Duration::from_secs(1)).ok();
                let ended =
                    status.map_or_else(|| "closed its output".to_owned(), |status| status.to_string());
                Err(self.error(&format!("no more output: {ended}")))
            }
        }
    }

    /// The next line of standard output as JSON, or nothing within the time.
    pub fn next_json<T: DeserializeOwned>(&mut self, within: Duration) -> Result<Option<T>> {
        let Some(line) = self.next_line(within)? else {
            return Ok(None);
        };
        let value =
            serde_json::from_str(&line).map_err(|error| self.error(&format!("{error} in {line:?}")))?;
        Ok(Some(value))
    }

    /// All lines that have been printed up to now and were not taken yet, as JSON.
    pub fn pending_json<T: DeserializeOwned>(&mut self) -> Result<Vec<T>> {
        let lines: Vec<String> = self.lines.try_iter().collect();
        let parse =
            |line: &String| serde_json::from_str(line).map_err(|error| anyhow!("{error} in {line:?}"));
        lines.iter().map(parse).collect::<Result<_>>().with_context(|| self.description.clone())
    }

    /// The one JSON line of an attempt; a program that takes longer is killed.
    pub fn output_json<T: DeserializeOwned>(mut self, within: Duration) -> Result<T> {
        let end = Instant::now() + within;
        let value =
            self.next_json(within)?.ok_or_else(|| self.error(&format!("no output within {within:?}")))?;
        self.wait(end.saturating_duration_since(Instant::now()).max(Duration::from_secs(1)))?;
        Ok(value)
    }

    /// Waits for the end and returns everything printed; a program that takes longer is killed.
    pub fn finish(mut self, within: Duration) -> Result<Finished> {
        drop(self.stdin.take());
        let status = self.wait(within)?;
        let mut stdout = String::new();
        // Ends when the last holder of the pipe has ended; a grandchild may hold it longer than we want to wait.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            stdout.push_str(&line);
            stdout.push('\n');
        }
        let end = Instant::now() + Duration::from_secs(1);
        while self.stderr_reader.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < end
        {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(Finished { status, stdout, stderr: self.stderr() })
    }

    /// Waits for the end, at most this long.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                bail!(self.error(&format!("still running after {within:?}")));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Writes a line to its standard input (see [`Exec::with_stdin`](crate::Exec::with_stdin)).
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        let stdin =
            self.stdin.as_mut().ok_or_else(|| anyhow!("{} has no standard input", self.description))?;
        let sent = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        sent.map_err(|error| self.error(&format!("write to standard input: {error}")))
    }

    /// Runs one attempt by a process that runs `egress-probe script`.
    pub fn attempt(&mut self, words: &[&str], within: Duration) -> Result<egress_probe::Attempt> {
        self.send_line(&serde_json::to_string(words)?)?;
        self.next_json(within)?.ok_or_else(|| self.error(&format!("{words:?}: no output within {within:?}")))
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Not reaped yet means that the number is still this process and no other.
        if self.is_running()? {
            kill(Pid::from_raw(i32::try_from(self.id())?), signal)
                .with_context(|| format!("{signal} to {}", self.description))?;
        }
        Ok(())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.description))?;
        self.child.wait().with_context(|| format!("wait for {}", self.description))?;
        Ok(())
    }

    /// An error that names the program and quotes its standard error.
    fn error(&self, what: &str) -> anyhow::Error {
        let said = self.stderr();
        anyhow!("{}: {what}; standard error: {:?}", self.description, said.trim())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("egress-topology: {error:#}");
        }
    }
}

/// Reads to the end, keeping the beginning.
fn collect(mut from: impl Read, text: &Mutex<String>) {
    let mut buffer = [0_u8; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
        if text.len() < STDERR_LIMIT {
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}
