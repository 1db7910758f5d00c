//! `egress-probe`: the servers and the one-shot attempts that run inside pods.
//!
//! Invariant: standard output carries only the JSON lines of the library; everything for people goes to standard
//! error.

mod attempt;
mod cli;
mod load;
mod net;
mod serve;
mod user;

use std::io::{self, BufRead as _};
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{AttemptCommand, Cli, Command, ScriptLine};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match user::become_user(cli.user).and_then(|()| run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("egress-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::ServeHttp { listen, name } => serve::http::run(&listen, &name),
        Command::ServeUdp { listen } => serve::echo::run_udp(&listen),
        Command::ServeEcho { listen, once } => serve::echo::run_tcp(&listen, once),
        Command::ServeSctp { listen, many } => serve::echo::run_sctp(&listen, many),
        Command::ServeDns { listen, record } => serve::dns::run(&listen, &record),
        Command::Proxy(options) => serve::proxy::run(options),
        Command::Gateway(options) => serve::gateway::run(options),
        Command::Capture { interface, seconds } => serve::capture::run(&interface, seconds),
        Command::Sniff { interface } => serve::capture::sniff(&interface),
        Command::KeepRaw => serve::capture::keep_raw(),
        Command::Answer { listen, payload } => serve::answer::run(&listen, &payload),
        Command::Talk(options) => attempt::talk::run(&options),
        Command::Hold(options) => attempt::hold::run(&options),
        Command::ServeLoad(options) => load::serve::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Storm(options) => attempt::storm::run(&options),
        Command::Flood(options) => attempt::storm::flood(&options),
        Command::Script => script(),
        Command::Pause => user::pause(),
        Command::Serve(options) => serve::several(&options),
        Command::Outside(options) => serve::outside::run(&options),
        Command::Arrived { of, since } => serve::outside::arrived(of, since),
        Command::Repeat { every_ms, for_ms, command } => attempt::repeat::run(every_ms, for_ms, &command),
        Command::Attempt(command) => net::print_line(&attempt::run(&command)),
    }
}

/// Runs one attempt for each argv array on standard input. A line that is no attempt ends the script.
fn script() -> anyhow::Result<()> {
    net::announce_ready()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let argv: Vec<String> = serde_json::from_str(&line)?;
        let command: AttemptCommand = ScriptLine::try_parse_from(argv)?.command;
        net::print_line(&attempt::run(&command))?;
    }
    Ok(())
}
