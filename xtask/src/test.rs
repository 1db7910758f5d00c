//! `test`: everything, in the order in which failures are cheapest.

use std::process::Command;
use std::time::Duration;

use anyhow::bail;
use egress_topology::private_mount_namespace;

use crate::command::{cargo, run};
use crate::setup::{self, Need};
use crate::{build, cluster, command, vm};

/// How the names of the tests begin that need SCTP.
const SCTP: &str = "sctp_";

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains one of these; with `--vm` also all tests of a binary of such a name.
    filter: Vec<String>,
    /// Run the privileged tests in QEMU on Debian's kernels of these versions, and on this one: `--vm 6.1,6.12`.
    #[arg(long, value_name = "VERSIONS", value_delimiter = ',')]
    vm: Vec<String>,
    /// With `--vm`: find out what the kernels can do, and run no tests.
    #[arg(long, requires = "vm", conflicts_with = "filter")]
    probe: bool,
    /// With `--vm`: write what was found into docs/kernels.md, beside what it has of other kernels and tests.
    #[arg(long, requires = "vm", conflicts_with = "probe")]
    record: bool,
    /// With `--vm`: minutes that a kernel may take. All tests take some two hours where the machine is emulated.
    #[arg(long, default_value_t = 240, requires = "vm")]
    minutes: u64,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
}

/// Runs every test, and the demonstration. No test skips itself: without root it fails before anything runs, and tests of what this
/// kernel lacks are left out here, and told.
pub(crate) fn test(args: &Args) -> anyhow::Result<()> {
    if args.cluster.is_asked() {
        return cluster::test(&args.cluster);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the privileged tests load BPF and make network namespaces: run `sudo -E cargo xtask test`");
    }
    // Before the first thread: what tests mount vanishes with us, however they end.
    private_mount_namespace()?;
    setup::setup(Need::Run)?;
    build::build_ebpf()?;
    build::build_binaries()?;
    if !args.vm.is_empty() {
        return vm::test(&vm::Options {
            kernels: &args.vm,
            filter: &args.filter,
            probe: args.probe,
            record: args.record,
            limit: Duration::from_secs(args.minutes * 60),
        });
    }
    let filtered = |mut command: Command| {
        command.arg("--").args(&args.filter);
        command
    };
    let mut host = cargo();
    host.args([
        "test",
        "--locked",
        "-p",
        "egress-common",
        "-p",
        "egress-policy",
        "-p",
        "xtask",
        "-p",
        "egress-probe",
    ]);
    run("host tests", &mut filtered(host))?;
    let mut privileged = cargo();
    privileged.args(["test", "--locked", "-p", "egress-topology", "-p", "egress-agent"]);
    let mut privileged = filtered(privileged);
    let lacks = vm::sctp().err();
    if lacks.is_some() {
        privileged.args(["--skip", SCTP]);
    }
    run("privileged tests against the running kernel", &mut privileged)?;
    build::build_traced()?;
    let mut traced = cargo();
    traced.args(["test", "--locked", "-p", "egress-agent", "--features", "trace", "--test", "trace"]);
    run("privileged tests of the object that logs", &mut filtered(traced))?;
    if args.filter.is_empty() {
        run("the demonstration", cargo().args(["xtask", "demo"]))?;
        run("verify, on this machine", cargo().args(["xtask", "verify", "--here"]))?;
    }
    if let Some(why) = lacks {
        eprintln!(
            "    NOT RUN: the tests {SCTP}*, as this kernel has no SCTP ({why}); `cargo xtask test --vm 6.12 sctp` runs them"
        );
    }
    eprintln!("    kernel: {}", command::output(Command::new("uname").arg("-r")).unwrap_or_default());
    Ok(())
}
