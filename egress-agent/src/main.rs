//! `egress-agent`: see [`egress_agent::cli`].

use std::process::ExitCode;

use clap::Parser as _;
use egress_agent::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
