//! `image`: images of the agent and of the probe, from scratch, as OCI archives.
//!
//! Invariant: the same commit gives the same digest, wherever it is built: paths are mapped away, times are the commit's, and
//! [`oci`] writes nothing of its own. `cargo xtask image --twice` builds from a second directory and compares.

mod elf;
mod oci;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};

use self::oci::{Image, Written};
use crate::build;
use crate::command::{cargo, output, root, run, target};

/// Where images are that nobody pulls: a node that was not given ours must not run somebody else's of that name.
const REGISTRY: &str = "localhost";
/// The directory of names of our images.
const OWNER: &str = "egress-enforcer";

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Takes: ctr -n k8s.io images import FILE; podman load -i FILE; docker load -i FILE; \
    kind load image-archive FILE; k3s ctr images import FILE. \
    The programs lie beside the archives, for deploy/Dockerfile.")]
pub(crate) struct Args {
    /// Where egress-agent.tar and egress-probe.tar are put; target/image when absent.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Build one of them alone.
    #[arg(long, value_name = "IMAGE")]
    only: Option<Which>,
    /// Build a second time, from a clone of the commit in another directory, and compare the digests. Takes as long again, and longer.
    #[arg(long)]
    twice: bool,
}

/// The images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// The agent, with the BPF object in it.
    Agent,
    /// What `cargo xtask verify` starts in pods.
    Probe,
}

impl Which {
    const ALL: [Self; 2] = [Self::Agent, Self::Probe];

    /// The name of the crate, of its program, and of the image.
    fn program(self) -> &'static str {
        match self {
            Self::Agent => "egress-agent",
            Self::Probe => "egress-probe",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Agent => "Denies pod egress except where policy allows it, on the node",
            Self::Probe => "Servers and clients that try what leaves a pod",
        }
    }
}

/// Builds the images and prints what they are.
pub(crate) fn image(args: &Args) -> anyhow::Result<()> {
    let directory = args.output.clone().unwrap_or_else(|| target().join("image"));
    let images: Vec<_> =
        Which::ALL.into_iter().filter(|which| args.only.is_none_or(|only| only == *which)).collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["IMAGE", "DIGEST", "BYTES", "FILE"]);
    let mut digests = Vec::new();
    build::build_ebpf()?;
    for (which, program) in build_static(&images)? {
        let (image, written, file) = write(which, &program, &directory)?;
        table.add_row([
            image.reference(),
            written.digest.clone(),
            written.size.to_string(),
            file.display().to_string(),
        ]);
        digests.push(written.digest);
    }
    println!("{}", table.trim_fmt());
    if args.twice {
        build_again(args, &digests)?;
    }
    Ok(())
}

/// Builds the programs, and checks that they need nothing.
fn build_static(images: &[Which]) -> anyhow::Result<Vec<(Which, PathBuf)>> {
    let host = output(Command::new("rustc").arg("-vV")).context("rustc does not run")?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let directory = target().join("image/build");
    let maps = build::remapped();
    let fixed = ["-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-Clink-arg=-Wl,--build-id=none"];
    let flags: Vec<_> = fixed.into_iter().chain(maps.iter().map(String::as_str)).collect();
    for which in images {
        let mut build = cargo();
        // Flags of a target do not reach what runs while building, which cannot all be static. One by one, because crates that are built
        // together share the features that either wants, so that the result would hang on what else was asked for.
        build.args([
            "build",
            "--locked",
            "--release",
            "--target",
            host,
            "-p",
            which.program(),
            "--target-dir",
        ]);
        build.arg(&directory).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        build.env("CARGO_PROFILE_RELEASE_DEBUG", "false").env_remove("EGRESS_EBPF_OBJECT");
        // The same for what is written in C.
        let maps = maps.each_ref().map(|map| map.replace("--remap-path-prefix", "-ffile-prefix-map"));
        build.env("CFLAGS", maps.join(" "));
        run(&format!("build {}, static (some minutes, once)", which.program()), &mut build)?;
    }
    let release = directory.join(host).join("release");
    let programs: Vec<_> = images.iter().map(|which| (*which, release.join(which.program()))).collect();
    for (which, program) in &programs {
        elf::check_static(&fs::read(program)?).with_context(|| program.display().to_string())?;
        runs_alone(*which, program)?;
    }
    Ok(programs)
}

/// Runs the program where there is nothing else; needs root, and the check above has said the same.
fn runs_alone(which: Which, program: &Path) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let empty = tempfile::tempdir()?;
    fs::copy(program, empty.path().join("program"))?;
    let help = output(Command::new("chroot").arg(empty.path()).args(["/program", "--help"]));
    if help.is_none_or(|help| help.is_empty()) {
        bail!("{} does not run in an empty directory", which.program());
    }
    Ok(())
}

/// Writes the archive, and the program beside it.
fn write(which: Which, program: &Path, directory: &Path) -> anyhow::Result<(Image, Written, PathBuf)> {
    let bytes = fs::read(program)?;
    let revision = revision();
    let mut labels = vec![
        ("title", which.program().to_owned()),
        ("description", which.description().to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
    ];
    labels.extend(revision.map(|revision| ("revision", revision)));
    let name = which.program();
    let mut files = vec![(format!("usr/bin/{name}"), 0o755, bytes.clone())];
    for license in ["LICENSE-APACHE", "LICENSE-MIT"] {
        files.push((format!("usr/share/doc/{OWNER}/{license}"), 0o644, fs::read(root().join(license))?));
    }
    let image = Image {
        name: format!("{REGISTRY}/{OWNER}/{name}"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: architecture()?.to_owned(),
        time: time()?,
        program: format!("/usr/bin/{name}"),
        files,
        labels,
    };
    fs::create_dir_all(directory)?;
    // Beside the one that somebody may be running, and then in its place.
    let (own, new) = (directory.join(name), directory.join(name).with_extension("new"));
    fs::copy(program, &new).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, &own).with_context(|| format!("cannot write {}", own.display()))?;
    let file = directory.join(name).with_extension("tar");
    let written = image
        .write(fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?)
        .with_context(|| file.display().to_string())?;
    Ok((image, written, file))
}

/// The machine's name in Go's words, which images have.
fn architecture() -> anyhow::Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is built for {other}"),
    }
}

/// `SOURCE_DATE_EPOCH`, or the commit's time, or 1970.
fn time() -> anyhow::Result<u64> {
    let said = std::env::var("SOURCE_DATE_EPOCH").ok();
    let text = said.or_else(|| output(git().args(["log", "-1", "--format=%ct"])));
    text.map_or(Ok(0), |text| text.parse().with_context(|| format!("{text:?} is not a time in seconds")))
}

/// The commit, and whether files differ from it.
fn revision() -> Option<String> {
    let commit = output(git().args(["rev-parse", "HEAD"]))?;
    let changed = output(git().args(["status", "--porcelain"]))?;
    Some(if changed.is_empty() { commit } else { format!("{commit}-changed") })
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(root());
    git
}

/// Builds the commit from a directory of another name, with nothing that was built before.
fn build_again(args: &Args, digests: &[String]) -> anyhow::Result<()> {
    if revision().is_none_or(|revision| revision.ends_with("-changed")) {
        bail!("a second build is of the commit: commit your changes first");
    }
    let elsewhere = tempfile::tempdir()?;
    let clone = elsewhere.path().join("another-name");
    run("clone the commit", Command::new("git").args(["clone", "--quiet"]).arg(root()).arg(&clone))?;
    let mut again = Command::new("cargo");
    again.current_dir(&clone).args(["xtask", "image"]).env_remove("CARGO_TARGET_DIR").env_remove("CARGO");
    if let Some(only) = args.only {
        again.args(["--only", &only.program()["egress-".len()..]]);
    }
    eprintln!("==> build again, from {}", clone.display());
    let printed = output(&mut again).context("the second build failed: run it there to see why")?;
    for digest in digests {
        if !printed.contains(digest.as_str()) {
            bail!("the second build differs: {digest} is not among\n{printed}");
        }
    }
    println!("The same digests from {}.", clone.display());
    Ok(())
}
