//! `build-ebpf`: the BPF object, and what is in it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use comfy_table::{Table, presets};

use crate::command::{cargo, root, run, target};
use crate::setup::{self, BpfRustc, Need, Tools};
use crate::stack;

/// The target of BPF programs on little-endian machines.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// Arguments of `build-ebpf`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Build the object whose programs log every verdict, for an agent with the feature `trace`: `target/bpf/egress-ebpf-trace.o`.
    #[arg(long)]
    pub(crate) trace: bool,
}

/// Builds the object; gives its path.
pub(crate) fn build_ebpf() -> anyhow::Result<PathBuf> {
    build_and_describe(Args { trace: false })
}

/// Builds the object, traced or not, and prints what is in it; gives its path.
pub(crate) fn build_and_describe(args: Args) -> anyhow::Result<PathBuf> {
    let object = if args.trace { build_traced()? } else { build_object("egress-ebpf")? };
    describe(&fs::read(&object)?)?;
    Ok(object)
}

/// Builds the object that logs every verdict; gives its path.
pub(crate) fn build_traced() -> anyhow::Result<PathBuf> {
    build_as("egress-ebpf", &["--features", "trace"], "egress-ebpf-trace")
}

/// Builds one of the objects; gives its path.
pub(crate) fn build_object(name: &str) -> anyhow::Result<PathBuf> {
    build_as(name, &[], name)
}

/// Builds a binary of `egress-ebpf` and copies it to where objects are kept, under a name that tells how it was built: cargo's own
/// file is that of the last build, whatever it was.
fn build_as(binary: &str, options: &[&str], name: &str) -> anyhow::Result<PathBuf> {
    let tools = setup::setup(Need::Build)?;
    let mut build = bpf_cargo(&tools, "build");
    build.args(["--release", "--bin", binary]).args(options);
    run(&format!("build the BPF object {name}"), &mut build)?;

    let built = target().join("bpf").join(BPF_TARGET).join("release").join(binary);
    let object = root().join("target/bpf").join(name).with_extension("o");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // What this kernel takes may be too much for an older one. The traced object is for development.
    if name == binary {
        stack::depths(&bytes)?;
    }
    // An object that did not change keeps its time, so that the agent is not built again.
    if fs::read(&object).ok().as_deref() != Some(&bytes) {
        fs::create_dir_all(object.parent().unwrap_or(&object))?;
        fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(object)
}

/// Builds the binaries that demonstration and tests start as processes; gives their directory.
pub(crate) fn build_binaries() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--locked", "-p", "egress-agent", "-p", "egress-probe"]);
    run("build the agent and the probe", &mut build)?;
    Ok(target().join("debug"))
}

/// A cargo command for `egress-ebpf` and the BPF target, with the one target directory for BPF.
pub(crate) fn bpf_cargo(tools: &Tools, subcommand: &str) -> Command {
    let linker = format!("-Clinker={}", tools.linker.display());
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    // The object's line information names files: the same ones wherever it is built.
    let maps = remapped();
    let flags = [&linker, "-Clink-arg=--btf", &arch, "-Cdebuginfo=2", &maps[0], &maps[1]].join("\u{1f}");
    let mut command = match &tools.rustc {
        BpfRustc::Rustup(name) => {
            let mut command = Command::new("rustup");
            command.args(["run", name, "cargo"]);
            command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
            command
        }
        BpfRustc::System(rustc) => {
            let mut command = cargo();
            command.env("RUSTC", rustc);
            command
        }
    };
    command.current_dir(root().join("egress-ebpf"));
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags);
    command.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
    command.args([subcommand, "--locked", "-Zbuild-std=core", "--target", BPF_TARGET, "--target-dir"]);
    command.arg(target().join("bpf"));
    command
}

/// Flags for rustc that take the places of sources and registry on this machine from what is built.
pub(crate) fn remapped() -> [String; 2] {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from);
    [(root(), "/src/egress-enforcer"), (cargo, "/cargo")]
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
}

/// Prints programs with their instructions, and maps with their shapes.
fn describe(bytes: &[u8]) -> anyhow::Result<()> {
    let object = aya_obj::Object::parse(bytes).context("the built object cannot be read")?;
    let mut programs = Table::new();
    programs.load_preset(presets::NOTHING).set_header(["PROGRAM", "SECTION", "INSTRUCTIONS", "STACK"]);
    let depths = stack::depths(bytes).unwrap_or_default();
    for (name, program) in &object.programs {
        let instructions = object.functions.get(&program.function_key()).map_or(0, |f| f.instructions.len());
        let stack = depths.get(name).map_or_else(|| "too much".to_owned(), u32::to_string);
        programs.add_row([name.clone(), format!("{:?}", program.section), instructions.to_string(), stack]);
    }
    let mut maps = Table::new();
    maps.load_preset(presets::NOTHING).set_header(["MAP", "KEY", "VALUE", "ENTRIES"]);
    let mut sorted: Vec<_> = object.maps.iter().collect();
    sorted.sort_by_key(|(name, _)| name.as_str());
    for (name, map) in sorted {
        let sizes = [map.key_size(), map.value_size(), map.max_entries()].map(|n| n.to_string());
        let [key, value, entries] = sizes;
        maps.add_row([name.clone(), key, value, entries]);
    }
    println!("{}\n\n{}", programs.trim_fmt(), maps.trim_fmt());
    Ok(())
}
