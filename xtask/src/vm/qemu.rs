//! A guest in QEMU: with hardware virtualisation where that works, which not every machine that has `/dev/kvm` can say, else without.
//!
//! Invariant: the QEMU that we started ends with us, however we end, and no other is touched.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::event::Event;
use super::guest;
use super::kernel::Kernel;

/// How long a guest with hardware virtualisation may take until its first word; one that is emulated takes some five seconds.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// The emulator.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// Killed when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Boots a kernel and hands on what the guest says, until it says that it is done.
pub(crate) fn boot(
    kernel: &Kernel,
    image: &Path,
    limit: Duration,
    mut hear: impl FnMut(Event) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let end = Instant::now() + limit;
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() {
        let guest = Guest::start(kernel, image, "kvm")?;
        match guest.lines.recv_timeout(FIRST_WORD) {
            Ok(first) => return guest.hear(Some(first), end, &mut hear),
            Err(_) => eprintln!(
                "    hardware virtualisation does not work here; without it, all takes some ten times as long"
            ),
        }
    }
    Guest::start(kernel, image, "tcg")?.hear(None, end, &mut hear)
}

/// A machine that runs, and the lines that it says.
struct Guest {
    machine: Machine,
    lines: Receiver<String>,
    console: PathBuf,
}

impl Guest {
    fn start(kernel: &Kernel, image: &Path, accelerator: &str) -> anyhow::Result<Self> {
        let console = kernel.directory.join("console.log");
        let mut command = Command::new(PROGRAM);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", &format!("pc,accel={accelerator}"), "-cpu", "max", "-smp", "2", "-m", "3072"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(image)
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 rdinit=/init -- {}", guest::COMMAND)])
            .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if accelerator == "kvm" {
            // What it says about a machine that has none is told in our words.
            command.stderr(Stdio::null());
        }
        // SAFETY: one system call between fork and exec. It asks for a signal when the thread that forks ends: ours, which
        // stays here until the machine is gone.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let mut machine = Machine(command.spawn().with_context(|| format!("cannot run {PROGRAM}"))?);
        let stdout = machine.0.stdout.take().context("the machine has no output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { machine, lines, console })
    }

    /// Hands on what it says after a first line that was heard already.
    fn hear(
        mut self,
        first: Option<String>,
        end: Instant,
        hear: &mut impl FnMut(Event) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut first = first;
        loop {
            let next = || self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            match first.take().map_or_else(next, Ok) {
                Ok(line) => match serde_json::from_str(line.trim()) {
                    Ok(Event::Done) => return Ok(()),
                    Ok(Event::Failed(error)) => bail!("the guest failed: {error}"),
                    Ok(event) => hear(event)?,
                    Err(_) => eprintln!("    not understood: {line}"),
                },
                Err(RecvTimeoutError::Timeout) => {
                    bail!("it was not done in time (`--minutes`){}", said(&self.console));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.machine.0.wait()?;
                    bail!("the machine ended before it was done ({status}){}", said(&self.console));
                }
            }
        }
    }
}

/// The end of what the kernel printed.
fn said(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<_> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
    if last.is_empty() { String::new() } else { format!("; its console ends with\n{last}") }
}
