//! The first process of a guest: mounts what a node has mounted, runs the plan, switches the machine off.
//!
//! Invariant: it says `done` only after everything was run; a guest that ends without it has failed.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::wait;
use nix::unistd::getpid;

use super::event::Event;
use super::{plan::Plan, runner};

/// Where the plan is in a guest.
pub(crate) const PLAN: &str = "/plan.json";
/// The word that makes the first process a guest's.
pub(crate) const COMMAND: &str = "vm-guest";
/// The line on which it tells; the kernel has the first.
const LINE: &str = "/dev/ttyS1";

/// What a node has mounted, in this order.
const MOUNTS: [(&str, &str); 9] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("securityfs", "/sys/kernel/security"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Runs in a guest only: as its first process, and as the one that the first starts.
pub(crate) fn guest() -> anyhow::Result<()> {
    if getpid().as_raw() != 1 {
        return work();
    }
    let result = first();
    if let Err(error) = &result {
        eprintln!("guest: {error:#}");
    }
    fs::write("/proc/sysrq-trigger", "o").context("cannot switch off")?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Mounts, starts the second process and reaps what nobody else reaps until it ends.
fn first() -> anyhow::Result<()> {
    for (kind, path) in MOUNTS {
        fs::create_dir_all(path)?;
        mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {path}"))?;
    }
    nix::unistd::sethostname("guest")?;
    fs::write("/proc/sys/kernel/panic_on_oops", "1")?;
    // A node has `/dev/net/tun` before anybody opens it, made by udev.
    if !Command::new("/sbin/modprobe").arg("tun").status()?.success() {
        eprintln!("guest: the module tun cannot be loaded");
    }
    let second = Command::new("/proc/self/exe")
        .arg(COMMAND)
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("TMPDIR", "/tmp")])
        // Without hardware virtualisation, verifying the programs takes up to a minute.
        .env("EGRESS_TEST_PATIENCE", "180")
        // Nor can two such processors run sixty senders at once.
        .env("EGRESS_STORM_BIRTHS", "12")
        .spawn()?;
    loop {
        let status = wait()?;
        if status.pid().is_some_and(|pid| pid.as_raw() as u32 == second.id()) {
            return Ok(());
        }
    }
}

fn work() -> anyhow::Result<()> {
    if !Path::new(PLAN).exists() {
        bail!("{COMMAND} is for the guests of `cargo xtask test --vm`");
    }
    if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        eprintln!("guest: the loopback device stays down");
    }
    let mut out = OpenOptions::new().write(true).open(LINE).with_context(|| format!("cannot open {LINE}"))?;
    let result = plan().and_then(|plan| runner::run(&plan, |event| say(&mut out, &event)));
    if let Err(error) = result {
        say(&mut out, &Event::Failed(format!("{error:#}")))?;
    }
    Ok(())
}

fn plan() -> anyhow::Result<Plan> {
    Ok(serde_json::from_slice(&fs::read(PLAN)?)?)
}

fn say(out: &mut File, event: &Event) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(out.write_all(&line)?)
}
