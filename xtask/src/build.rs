//! `build-ebpf`: the BPF object, and what is in it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

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
    // Cargo does not see who stands in for rustc, but flags: what was built before is built anew.
    let numbered = "--cfg=numbered_by_name";
    let flags = [&linker, "-Clink-arg=--btf", &arch, "-Cdebuginfo=2", numbered, &maps[0], &maps[1]];
    let flags = flags.join("\u{1f}");
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
    // This process's own program, also where its file was built anew meanwhile, as `test` does.
    let program = format!("/proc/{}/exe", std::process::id());
    command.env("RUSTC_WRAPPER", program).env(FOR_CARGO, "1");
    command.args([subcommand, "--locked", "-Zbuild-std=core", "--target", BPF_TARGET, "--target-dir"]);
    command.arg(target().join("bpf"));
    command
}

/// Is set where cargo starts this program in rustc's place.
const FOR_CARGO: &str = "EGRESS_XTASK_RUSTC";

/// Runs rustc, if it is cargo that has started this program, for the BPF object; else nothing.
///
/// Cargo hashes the places of packages outside of the workspace, absolute ones, into the numbers of crates, so into every symbol of
/// the object. `egress-common` is such a package, and the same commit would give an object of its own in each directory.
pub(crate) fn rustc_for_cargo() -> Option<ExitCode> {
    std::env::var_os(FOR_CARGO)?;
    let mut words = std::env::args_os().skip(1);
    let error = Command::new(words.next()?).args(numbered_by_name(words.collect())).exec();
    eprintln!("xtask: rustc does not start: {error}");
    Some(ExitCode::FAILURE)
}

/// Arguments of rustc, where our crates are numbered by their names alone.
fn numbered_by_name(words: Vec<OsString>) -> Vec<OsString> {
    let mut names = words.iter().skip_while(|word| *word != "--crate-name").skip(1);
    let name = names.next().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let ours = name.starts_with("egress_");
    let is_number = |word: &OsString| word.to_str().is_some_and(|word| word.starts_with("metadata="));
    let number = |word| if ours && is_number(&word) { format!("metadata={name}").into() } else { word };
    words.into_iter().map(number).collect()
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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::numbered_by_name;

    #[test]
    fn our_crates_alone_are_numbered_by_name() {
        let of = |name: &str| {
            let words = [
                "clippy-driver",
                "rustc",
                "--crate-name",
                name,
                "-C",
                "metadata=1f",
                "-C",
                "extra-filename=-1f",
            ];
            let words = numbered_by_name(words.map(OsString::from).to_vec());
            words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            of("egress_common"),
            "clippy-driver rustc --crate-name egress_common -C metadata=egress_common -C extra-filename=-1f"
        );
        assert_eq!(of("core"), "clippy-driver rustc --crate-name core -C metadata=1f -C extra-filename=-1f");
        assert_eq!(numbered_by_name(vec!["-vV".into()]), ["-vV"]);
    }
}
