//! From a parsed command line to what is done, and from how it ended to an exit code.
//!
//! Invariant: an error keeps its type up to here, so that [`EXIT_CODES`](crate::cli::EXIT_CODES) are true. Tested by
//! `tests/cli.rs`, which provokes each.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::{Cli, Command};
use crate::{admin, cleanup, lock, offline, preflight, run};

/// Runs a parsed command line and maps its end to an exit code.
#[must_use]
pub fn main(cli: Cli) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log);
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("egress-agent: --log {}: {error}", cli.log);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    match dispatch(cli.command) {
        Ok(code) => code,
        // Such as `egress-agent flows | head`: the reader has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("egress-agent: {error:#}");
            exit_code(&error)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let json = error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
    [io, json].contains(&Some(std::io::ErrorKind::BrokenPipe))
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<preflight::Missing>() {
        ExitCode::from(77)
    } else if error.is::<admin::Unreachable>() {
        ExitCode::from(3)
    } else {
        ExitCode::FAILURE
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the async runtime")
    };
    match command {
        Command::Run(args) => runtime()?.block_on(run::run(args))?,
        Command::Status(args) => runtime()?.block_on(admin::client::status(&args))?,
        Command::Endpoints(args) => runtime()?.block_on(admin::client::endpoints(&args))?,
        Command::Flows(args) => runtime()?.block_on(admin::client::flows(&args))?,
        Command::Explain(args) => {
            let passes = offline::explain(&args)?;
            return Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Simulate(args) => offline::simulate(&args)?,
        Command::Plan(args) => offline::plan(&args)?,
        Command::Lint(args) => {
            let clean = offline::lint(&args)?;
            return Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Cleanup(args) => {
            let lock = lock::Lock::bpffs(&args.bpffs.bpffs)?;
            cleanup::cleanup(&args.bpffs.bpffs, &args.socket.socket, lock)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
