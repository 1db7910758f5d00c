//! `test --vm`: the privileged tests on Debian's kernels in QEMU, and on this one.
//!
//! Invariant: every test of the plan has an outcome on every kernel, or the command fails.

mod cpio;
mod event;
mod features;
mod guest;
mod image;
mod kernel;
mod known;
mod plan;
mod qemu;
mod report;
mod runner;
mod table;

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{anyhow, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::command::{root, target, which};
use crate::{bench, setup};

pub(crate) use features::sctp;
pub(crate) use guest::guest;
use image::Base;
use kernel::Kernel;
use plan::Plan;
use report::Report;
use table::Table;

/// The kernel that runs here.
const HOST: &str = "host";

/// What is asked of the kernels.
#[derive(Clone, Debug)]
pub(crate) struct Options<'a> {
    pub(crate) kernels: &'a [String],
    pub(crate) filter: &'a [String],
    /// Features only.
    pub(crate) probe: bool,
    /// Write what was found into docs/kernels.md, beside what it has of other kernels and tests.
    pub(crate) record: bool,
    pub(crate) limit: Duration,
}

/// Runs the privileged tests on each kernel, and on the host's.
pub(crate) fn test(options: &Options<'_>) -> anyhow::Result<()> {
    let packages =
        [(qemu::PROGRAM, "qemu-system-x86"), ("depmod", "kmod"), ("strip", "binutils"), ("tc", "iproute2")];
    let missing: Vec<_> =
        packages.iter().filter(|(name, _)| which(name).is_none()).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        setup::apt(&missing)?;
    }
    let _alone = alone()?;
    let commit = commit();
    let guests = options.kernels.iter().filter(|kernel| *kernel != HOST);
    let kernels = guests.map(|version| Kernel::get(version)).collect::<anyhow::Result<Vec<_>>>()?;
    let plan = if options.probe { Plan::features() } else { Plan::new(options.filter)? };
    let base = Base::new(&plan)?;
    eprintln!("    {} tests in {} binaries", plan.tests(), plan.binaries.len());

    let mut reports = Vec::new();
    for kernel in &kernels {
        eprintln!("==> {} in QEMU", kernel.version);
        let mut report = Report::new(&kernel.version, &plan);
        let result = boot(kernel, &base, options.limit, &mut report);
        report.end(result, &plan);
        reports.push(report);
    }
    eprintln!("==> this machine's kernel");
    // Here nothing is slow, so that what fails has failed.
    let plan = Plan { again: false, ..plan };
    let mut report = Report::new(HOST, &plan);
    let result = runner::run(&plan, |event| {
        report.hear(event);
        Ok(())
    });
    report.end(result, &plan);
    reports.push(report);

    let found = Table::of(&reports, &commit);
    if options.probe {
        print!("{}", found.markdown()?);
    }
    eprintln!("==> what differs\n{}", found.differences()?.trim_end());
    if options.record {
        let (file, name) = ("docs/kernels.md", "kernels");
        let before = Table::parse(&bench::recorded(file, name)?);
        bench::record(file, name, &before.with(&found).markdown()?)?;
    }
    let bad: Vec<_> = reports.iter().filter(|report| !report.is_good()).map(|r| r.kernel.as_str()).collect();
    if !bad.is_empty() {
        bail!("not everything passed on {}", bad.join(", "));
    }
    Ok(())
}

/// What the tests are of.
fn commit() -> String {
    let mut git = Command::new("git");
    let output = git.current_dir(root()).args(["describe", "--always", "--dirty", "--exclude=*"]).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or_else(|| "no commit".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

/// Two at a time would write the same images. Ends with the process.
fn alone() -> anyhow::Result<Flock<File>> {
    let directory = target().join("vm");
    fs::create_dir_all(&directory)?;
    let file = File::create(directory.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| anyhow!("another `test --vm` is running in this directory ({error})"))
}

fn boot(kernel: &Kernel, base: &Base, limit: Duration, report: &mut Report) -> anyhow::Result<()> {
    let image = kernel.directory.join("initramfs.cpio");
    base.write(kernel, &image)?;
    qemu::boot(kernel, &image, limit, |event| {
        report.hear(event);
        Ok(())
    })
}
