//! The initial file system of a guest: what the plan names at the very paths it has here, the programs that tests
//! start, their libraries, the kernel's modules, and ourselves as the first process.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::cpio::Archive;
use super::guest::PLAN;
use super::kernel::Kernel;
use super::plan::Plan;
use crate::command::{output, root, run, target, which};

/// Programs that tests start by name, and what the kernel starts to load a module.
const PROGRAMS: [&str; 7] = ["ip", "nft", "tc", "cat", "sh", "sleep", "modprobe"];
/// Programs that tests may start where they are.
const MORE_PROGRAMS: [&str; 16] = [
    "bridge", "grep", "ls", "mkdir", "mount", "nsenter", "ping", "readlink", "rm", "seq", "setpriv", "stat",
    "sysctl", "true", "umount", "unshare",
];
/// Files that these read, where they are.
const FILES: [&str; 7] = [
    "/etc/protocols",
    // Clients of an API server look for the roots of trust, also where they talk without TLS.
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/services",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/iproute2/rt_protos",
];

/// Everything but the kernel's modules: file and path in the guest.
pub(crate) struct Base {
    files: Vec<(PathBuf, PathBuf)>,
    plan: Vec<u8>,
}

impl Base {
    /// Looks for everything, and strips debugging information from what was built here.
    pub(crate) fn new(plan: &Plan) -> anyhow::Result<Self> {
        let stripped = target().join("vm/stripped");
        if stripped.exists() {
            fs::remove_dir_all(&stripped)?;
        }
        fs::create_dir_all(&stripped)?;
        let ourselves = std::env::current_exe()?;
        let mut files = Vec::new();
        let mut built: Vec<_> = plan.programs().into_iter().map(|path| (path.clone(), path)).collect();
        built.push((ourselves, "/init".into()));
        for (number, (path, inside)) in built.into_iter().enumerate() {
            let small = stripped.join(number.to_string());
            let mut strip = Command::new("strip");
            strip.args(["--strip-debug", "-o"]).arg(&small).arg(&path);
            let status = strip.status().context("cannot run strip")?;
            anyhow::ensure!(status.success(), "strip of {} failed", path.display());
            files.push((small, inside));
        }
        for program in PROGRAMS {
            let path = which(program).with_context(|| format!("{program} is not there"))?;
            files.push((path.clone(), path));
        }
        let more = MORE_PROGRAMS.iter().filter_map(|program| which(program));
        files.extend(more.map(|path| (path.clone(), path)));
        let programs: Vec<_> = files.iter().map(|(path, _)| path.clone()).collect();
        let libraries = libraries(&programs);
        files.extend(libraries.into_iter().map(|path| (path.clone(), path)));
        let present = FILES.iter().map(PathBuf::from).filter(|path| path.exists());
        files.extend(present.map(|path| (path.clone(), path)));
        files.push((plan.object.clone(), plan.object.clone()));
        sources(&root(), &mut files)?;
        Ok(Self { files, plan: serde_json::to_vec(plan)? })
    }

    /// Writes the image for one kernel.
    pub(crate) fn write(&self, kernel: &Kernel, path: &Path) -> anyhow::Result<()> {
        let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Archive::new(BufWriter::new(file));
        // Debian's root has links where programs and libraries once were.
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            if let Ok(to) = fs::read_link(Path::new("/").join(name)) {
                archive.link(Path::new("/").join(name).as_path(), &to)?;
            }
        }
        archive.console()?;
        archive.file(Path::new(PLAN), &self.plan, 0o644)?;
        for (from, inside) in self.files.iter().chain(&kernel.module_files()?) {
            let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            let mode = fs::metadata(from)?.permissions().mode() & 0o111 | 0o644;
            archive.file(&canonical(inside), &bytes, mode)?;
        }
        Ok(archive.finish()?.flush()?)
    }
}

/// The path without links in its directories.
fn canonical(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
    match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

/// The libraries that programs need to start.
fn libraries(programs: &[PathBuf]) -> BTreeSet<PathBuf> {
    let text = output(Command::new("ldd").args(programs)).unwrap_or_default();
    // NAME => PATH (ADDRESS), or PATH (ADDRESS) for the loader.
    text.lines()
        .filter(|line| line.starts_with(char::is_whitespace))
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// The files of the repository, which tests may read.
fn sources(directory: &Path, files: &mut Vec<(PathBuf, PathBuf)>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type()))?;
        let kind = kind?;
        let skip = ["target", ".git"].iter().any(|name| path.ends_with(name)) || path == target();
        if kind.is_dir() && !skip {
            sources(&path, files)?;
        } else if kind.is_file() && !skip {
            files.push((path.clone(), path));
        }
    }
    Ok(())
}

/// Runs `depmod` for an unpacked kernel.
pub(crate) fn depmod(unpacked: &Path, release: &str) -> anyhow::Result<()> {
    let program = which("depmod").context("depmod is not there")?;
    run("list the modules", Command::new(program).arg("-b").arg(unpacked).arg(release))
}
