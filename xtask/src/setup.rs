//! `setup`: finding, or installing, what building and running need.
//!
//! A BPF compiler is a rustc that comes with its library's source, because `core` is built for the BPF target:
//! rustup's nightly with `rust-src`, or Debian's `rustc-web` with `rust-web-src`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{cargo, output, run, which};

/// What is going to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Building the BPF object.
    Build,
    /// And running it in network namespaces.
    Run,
    /// And checking it.
    Lint,
}

/// The tools that were found.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) rustc: BpfRustc,
    pub(crate) linker: PathBuf,
}

/// A rustc that can build `core` for BPF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BpfRustc {
    /// A toolchain of rustup, by name.
    Rustup(String),
    /// A rustc of the system, by path.
    System(PathBuf),
}

/// The linker's version: the one whose LLVM matches Debian's.
const LINKER: &str = "0.13";
/// Debian's LLVM that the linker is built against; the same as Debian's rustc has.
const LLVM: &str = "22";
/// Debian's rustc with which BPF is built, and where its clippy is.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
pub(crate) const SYSTEM_CLIPPY: &str = "/usr/bin/clippy-driver";

/// Finds everything `need` asks for and installs what is missing, or says how.
pub(crate) fn setup(need: Need) -> anyhow::Result<Tools> {
    let rustc = match rustc() {
        Some(rustc) => rustc,
        None => install_rustc()?,
    };
    let linker = match which("bpf-linker") {
        Some(linker) => linker,
        None => install_linker()?,
    };
    let mut programs = Vec::new();
    if need >= Need::Run {
        programs.extend([("nft", "nftables"), ("ip", "iproute2")]);
    }
    let missing: Vec<_> =
        programs.into_iter().filter(|(program, _)| which(program).is_none()).map(|p| p.1).collect();
    if !missing.is_empty() {
        apt(&missing)?;
    }
    if need >= Need::Lint && matches!(rustc, BpfRustc::System(_)) && !Path::new(SYSTEM_CLIPPY).exists() {
        apt(&["rust-web-clippy"])?;
    }
    if need == Need::Run {
        eprintln!("    compiler: {rustc:?}, linker: {}", linker.display());
    }
    Ok(Tools { rustc, linker })
}

fn rustc() -> Option<BpfRustc> {
    let has_source = |sysroot: &str| Path::new(sysroot).join("lib/rustlib/src/rust/library/core").exists();
    let toolchains = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let nightly =
        toolchains.lines().filter_map(|line| line.split(' ').next()).find(|name| name.starts_with("nightly"));
    if let Some(name) = nightly {
        let sysroot = output(Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]));
        if sysroot.is_some_and(|sysroot| has_source(&sysroot)) {
            return Some(BpfRustc::Rustup(name.to_owned()));
        }
    }
    // An older Debian's rustc has an LLVM that does not go with the linker's.
    let llvm = output(Command::new(SYSTEM_RUSTC).arg("-vV")).unwrap_or_default();
    let fits = llvm.lines().any(|line| line.starts_with(&format!("LLVM version: {LLVM}.")));
    let sysroot = output(Command::new(SYSTEM_RUSTC).args(["--print", "sysroot"]));
    (fits && sysroot.is_some_and(|sysroot| has_source(&sysroot)))
        .then(|| BpfRustc::System(SYSTEM_RUSTC.into()))
}

fn install_rustc() -> anyhow::Result<BpfRustc> {
    if is_debian() && nix::unistd::geteuid().is_root() {
        apt(&["rustc-web", "rust-web-src"])?;
    } else if which("rustup").is_some() {
        let mut rustup = Command::new("rustup");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        run("install rustup's nightly with its library source", &mut rustup)?;
    }
    rustc().context(
        "no Rust compiler with its library source: run \
         `rustup toolchain install nightly --component rust-src`, or on Debian `apt-get install rustc-web rust-web-src`",
    )
}

fn install_linker() -> anyhow::Result<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    if !prefix.join("lib/libLLVM.so").exists() {
        apt(&[&format!("llvm-{LLVM}-dev"), &format!("libpolly-{LLVM}-dev")])?;
    }
    let mut install = cargo();
    install.env("LLVM_PREFIX", &prefix).args(["install", "bpf-linker", "--locked", "--no-default-features"]);
    install.args(["--version", &format!("^{LINKER}"), "--features", &format!("llvm-{LLVM}")]);
    run("install bpf-linker (about a minute)", &mut install)?;
    which("bpf-linker")
        .context("bpf-linker was installed but is not found: put cargo's bin directory into PATH")
}

/// Installs packages of Debian.
pub(crate) fn apt(packages: &[&str]) -> anyhow::Result<()> {
    let words = packages.join(" ");
    if !is_debian() || !nix::unistd::geteuid().is_root() {
        bail!(
            "missing: {words}. On Debian run as root `apt-get install {words}`; elsewhere install what they provide"
        );
    }
    let mut install = Command::new("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages);
    // A new machine has no package lists or outdated ones, which name versions that do not fit or are gone. Where they
    // cannot be had, what is there may still do.
    let _ = run("update the package lists", Command::new("apt-get").args(["update", "-qq"]));
    run(&format!("install {words}"), &mut install)
}

fn is_debian() -> bool {
    which("apt-get").is_some()
}
