//! From a parsed command line to what is done, and from how it ended to an exit code.
//!
//! Invariant: an error keeps its type up to here, so that [`EXIT_CODES`](crate::cli::EXIT_CODES) are true. Tested by
//! `tests/cli.rs`, which provokes each.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::admin::Question;
use crate::cli::{Cli, Command, LogFormat, SocketArgs};
use crate::{admin, cleanup, lock, offline, preflight, run};

/// Runs a parsed command line and maps its end to an exit code.
#[must_use]
pub fn main(cli: Cli) -> ExitCode {
    // The client's own words do not tell which request failed, and come with each try; what asks says it. `--log` may ask for them.
    let filter = tracing_subscriber::EnvFilter::try_new(format!("kube_client=off,{}", cli.log));
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("egress-agent: --log {}: {error}", cli.log);
            return ExitCode::from(2);
        }
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for people.
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match cli.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => {
            log.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
    }
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

/// Prints what a command says that judges by objects: those of a source, or those of the running agent.
fn say(told: anyhow::Result<offline::Told>) -> anyhow::Result<ExitCode> {
    match told {
        Ok(told) => Ok(if told.print()? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        // A failure is no answer: 1 is one, that a flow is denied.
        Err(error) if exit_code(&error) == ExitCode::FAILURE && !is_broken_pipe(&error) => {
            eprintln!("egress-agent: {error:#}");
            Ok(ExitCode::from(2))
        }
        Err(error) => Err(error),
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
    let ask = |socket: &SocketArgs, question| runtime()?.block_on(admin::client::told(socket, question));
    match command {
        Command::Run(args) => {
            #[cfg(target_env = "gnu")]
            crate::memory::give_back_from_time_to_time();
            runtime()?.block_on(run::run(args))?;
        }
        Command::Probe(args) => {
            let fine = runtime()?.block_on(admin::client::probe(&args))?;
            return Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Status(args) => runtime()?.block_on(admin::client::status(&args))?,
        Command::Endpoints(args) => runtime()?.block_on(admin::client::endpoints(&args))?,
        Command::Flows(args) => runtime()?.block_on(admin::client::flows(&args))?,
        Command::Explain(args) => {
            return say(match &args.source.named() {
                Some(source) => offline::explain(&args, source),
                None => ask(&args.read.socket, Question::explain(&args)),
            });
        }
        Command::Simulate(args) => {
            return say(match &args.source.named() {
                Some(source) => offline::simulate(&args, source),
                None => Question::simulate(&args).and_then(|question| ask(&args.read.socket, question)),
            });
        }
        Command::Plan(args) => {
            return say(match &args.source.named() {
                Some(source) => offline::plan(&args, source),
                None => ask(&args.read.socket, Question::Plan { output: args.read.output }),
            });
        }
        Command::Lint(args) => {
            return say(match &args.source.named() {
                Some(source) => offline::lint(&args, source),
                None => {
                    let question = Question::Lint { asked: args.asked.clone(), output: args.read.output };
                    ask(&args.read.socket, question)
                }
            });
        }
        Command::Cleanup(args) => {
            let lock = lock::Lock::bpffs(&args.bpffs.bpffs)?;
            cleanup::cleanup(&args.bpffs.bpffs, &args.socket.socket, lock)?;
        }
        Command::MountBpffs(args) => preflight::mount_bpffs(&args.bpffs)?,
    }
    Ok(ExitCode::SUCCESS)
}
