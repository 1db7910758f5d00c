//! `lint`: what must hold before anything is tested.

use std::process::Command;

use crate::build::{self, bpf_cargo};
use crate::command::{cargo, root, run, which};
use crate::setup::{self, BpfRustc, Need, SYSTEM_CLIPPY};

/// The version of cargo-deny whose configuration `deny.toml` is.
const CARGO_DENY: &str = "^0.20";

/// Runs every check; the first that fails ends it.
pub(crate) fn lint() -> anyhow::Result<()> {
    let tools = setup::setup(Need::Lint)?;
    run("rustfmt", cargo().args(["fmt", "--all", "--check"]))?;
    for outside in ["egress-ebpf", "fuzz"] {
        let mut fmt = cargo();
        fmt.current_dir(root().join(outside)).args([
            "fmt",
            "--check",
            "--",
            "--config-path",
            "../rustfmt.toml",
        ]);
        run(&format!("rustfmt of {outside}"), &mut fmt)?;
    }

    // The agent embeds the object, so even checking it needs one.
    build::build_ebpf()?;
    let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--all-features", "--", "-Dwarnings"];
    run("clippy", cargo().args(clippy))?;
    let mut bpf =
        bpf_cargo(&tools, if matches!(tools.rustc, BpfRustc::System(_)) { "check" } else { "clippy" });
    if let BpfRustc::System(_) = tools.rustc {
        bpf.env("RUSTC_WORKSPACE_WRAPPER", SYSTEM_CLIPPY).env("CLIPPY_CONF_DIR", root());
    }
    let flags = bpf_flags_with_denied_warnings(&bpf);
    bpf.env("CARGO_ENCODED_RUSTFLAGS", flags).arg("--release");
    run("clippy of egress-ebpf for the BPF target", &mut bpf)?;

    bpf.args(["--features", "trace"]);
    run("clippy of egress-ebpf that logs", &mut bpf)?;

    let mut doc = cargo();
    doc.env("RUSTDOCFLAGS", "-Dwarnings").args(["doc", "--locked", "--workspace", "--no-deps", "--quiet"]);
    run("docs", &mut doc)?;
    deny()
}

/// Warnings are denied by a flag that cargo hands to the workspace's crates alone: dependencies have their lints capped.
fn bpf_flags_with_denied_warnings(command: &Command) -> std::ffi::OsString {
    let flags =
        command.get_envs().find(|(name, _)| *name == "CARGO_ENCODED_RUSTFLAGS").and_then(|(_, value)| value);
    let mut flags = flags.unwrap_or_default().to_owned();
    flags.push("\u{1f}-Dwarnings");
    flags
}

/// Licences, sources and bans. The advisory database is a git repository of its own, and left to those who can fetch it.
fn deny() -> anyhow::Result<()> {
    if which("cargo-deny").is_none() {
        let install = ["install", "cargo-deny", "--locked", "--version", CARGO_DENY];
        run("install cargo-deny (some minutes, once)", cargo().args(install))?;
    }
    // It looks at dependencies for every platform, of which a new machine has built its own alone.
    run("fetch dependencies", cargo().args(["fetch", "--locked", "--quiet"]))?;
    let checks = ["deny", "--offline", "--all-features", "check", "bans", "licenses", "sources"];
    run("cargo-deny", cargo().args(checks))
}
