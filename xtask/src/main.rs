//! Everything one does with this repository. `cargo xtask --help` lists it.
//!
//! Invariant: each command provides what it needs by itself, or stops with the exact command to run.

mod bench;
mod build;
mod cluster;
mod command;
mod demo;
mod image;
mod lint;
mod manifests;
mod setup;
mod stack;
mod test;
mod tries;
mod verify;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, demonstrates and tests egress-enforcer.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find or install what building and running need: a BPF compiler and linker, nftables, iproute2.
    Setup,
    /// Build the BPF object and print its programs, maps and instruction counts.
    BuildEbpf(build::Args),
    /// Play "block egress traffic with an egress gateway" on this machine and print who got where. Needs root.
    Demo(demo::Args),
    /// Run every test: host tests, then the privileged ones against the running kernel. Needs root.
    Test(test::Args),
    /// Play the same on a cluster with the agent installed, from inside pods, and print who got where.
    Verify(verify::Args),
    /// Measure, print a table, and with `--record` write it into docs/performance.md.
    Bench(bench::Args),
    /// Build the images of agent and probe as OCI archives, from scratch and reproducible, without a daemon.
    Image(image::Args),
    /// Write the files below deploy/ that are made from types: the custom resource, in both places where it is kept.
    Manifests(manifests::Args),
    /// Check formatting, clippy on host and BPF targets, docs, and dependencies.
    Lint,
    /// The first process of a guest of `test --vm`.
    #[command(hide = true)]
    VmGuest,
}

fn main() -> ExitCode {
    if let Some(code) = build::rustc_for_cargo() {
        return code;
    }
    let result = match Cli::parse().command {
        Command::Setup => setup::setup(setup::Need::Run).map(|_| ()),
        Command::BuildEbpf(args) => build::build_and_describe(args).map(|_| ()),
        Command::Demo(args) => demo::demo(&args),
        Command::Test(args) => test::test(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Image(args) => image::image(&args),
        Command::Manifests(args) => manifests::manifests(&args),
        Command::Lint => lint::lint(),
        Command::VmGuest => vm::guest(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::Cli;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let ok = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        assert!(ok("xtask test") && ok("xtask test life") && ok("xtask test --vm 6.1,6.12 life"));
        assert!(ok("xtask test --vm 6.1 --record") && !ok("xtask test --record"));
        assert!(ok("xtask test --cluster --kubeconfig f") && !ok("xtask test --cluster life"));
        assert!(ok("xtask verify --here") && !ok("xtask verify --here --node n"));
        assert!(!ok("xtask test --vm 6.1 --probe --record") && ok("xtask test --vm 6.1 --record life"));
    }
}
