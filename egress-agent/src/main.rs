//! `egress-agent`: see [`egress_agent::cli`].

use std::process::ExitCode;

use clap::Parser as _;
use egress_agent::app;
use egress_agent::cli::Cli;

fn main() -> ExitCode {
    app::main(Cli::parse())
}
