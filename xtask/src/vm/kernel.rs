//! Debian's kernels: found in its package lists, unpacked below `target/vm`, installed nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::image::depmod;
use crate::command::{output, run, target};

/// Where modules are that tests may ask for; what these need comes along.
const MODULES: [&str; 5] =
    ["kernel/net/", "kernel/drivers/net/", "kernel/crypto/", "kernel/lib/", "kernel/arch/x86/crypto/"];

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As asked for: `6.1`.
    pub(crate) version: String,
    /// Its own directory, for the image and the log.
    pub(crate) directory: PathBuf,
    pub(crate) image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The kernel that was unpacked before, or the newest of Debian's of this version.
    pub(crate) fn get(version: &str) -> anyhow::Result<Self> {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        ensure!(
            version.split('.').count() == 2 && version.split('.').all(is_number),
            "{version:?} is no kernel version such as 6.1"
        );
        let directory = target().join("vm").join(version);
        let unpacked = directory.join("unpacked");
        if !directory.join("complete").exists() {
            if directory.exists() {
                fs::remove_dir_all(&directory)?;
            }
            fs::create_dir_all(&unpacked)?;
            let package = download(version, &directory)?;
            run("unpack it", Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
            let release = only(&unpacked.join("lib/modules"))?;
            let name = release.file_name().unwrap_or_default().to_string_lossy().into_owned();
            depmod(&unpacked, &name)?;
            fs::remove_file(package)?;
            fs::write(directory.join("complete"), "")?;
        }
        let modules = only(&unpacked.join("lib/modules"))?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let image = unpacked.join("boot").join(format!("vmlinuz-{release}"));
        ensure!(image.exists(), "{} is not there: remove {}", image.display(), directory.display());
        Ok(Self { version: version.to_owned(), directory, image, modules })
    }

    /// Modules with what they need, and their index: file and path in the guest.
    pub(crate) fn module_files(&self) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
        let release = self.modules.file_name().unwrap_or_default();
        let inside = Path::new("/lib/modules").join(release);
        let index = fs::read_to_string(self.modules.join("modules.dep")).context("no modules.dep")?;
        let needs: BTreeMap<&str, Vec<&str>> = index
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(module, needs)| (module, needs.split_whitespace().collect()))
            .collect();
        let mut wanted = BTreeSet::new();
        for (module, needs) in &needs {
            if MODULES.iter().any(|place| module.starts_with(place)) {
                // The line has what these need in turn, too.
                wanted.insert(*module);
                wanted.extend(needs);
            }
        }
        let mut files: Vec<_> =
            wanted.iter().map(|module| (self.modules.join(module), inside.join(module))).collect();
        for entry in fs::read_dir(&self.modules)? {
            let path = entry?.path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                files.push((path.clone(), inside.join(name)));
            }
        }
        Ok(files)
    }
}

/// The only entry of a directory.
fn only(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let (Some(entry), None) = (entries.next(), entries.next()) else {
        bail!("{} should have one entry", directory.display());
    };
    Ok(entry?.path())
}

/// Downloads the newest package of a version that can be had.
fn download(version: &str, directory: &Path) -> anyhow::Result<PathBuf> {
    for attempt in 0..2 {
        for name in packages(version) {
            let mut download = Command::new("apt-get");
            // As root: the user that apt would use cannot write there.
            download.current_dir(directory).args(["-o", "APT::Sandbox::User=root", "-qq", "download", &name]);
            if run(&format!("download {name}"), &mut download).is_err() {
                continue;
            }
            let package = fs::read_dir(directory)?
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.extension().is_some_and(|ending| ending == "deb"));
            return package.with_context(|| format!("apt-get left no package of {name}"));
        }
        if attempt == 0 {
            let _ = run("update the package lists", Command::new("apt-get").args(["update", "-qq"]));
        }
    }
    bail!(
        "no package linux-image-{version}.*-cloud-amd64 is to be had: Debian 12 has 6.1, and 6.12 in its security suite"
    )
}

/// The names of a version's packages, newest first.
fn packages(version: &str) -> Vec<String> {
    let prefix = format!("linux-image-{version}.");
    let names = output(Command::new("apt-cache").args(["pkgnames", &prefix])).unwrap_or_default();
    let mut names: Vec<_> =
        names.lines().filter(|name| name.ends_with("-cloud-amd64")).map(str::to_owned).collect();
    names.sort_by_key(|name| std::cmp::Reverse(numbers(name)));
    names
}

/// The numbers in a name, in order: a package's age.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn packages_are_ordered_by_number() {
        assert!(
            numbers("linux-image-6.12.117+deb12-cloud-amd64")
                > numbers("linux-image-6.12.96+deb12-cloud-amd64")
        );
        assert!(numbers("linux-image-6.1.0-50-cloud-amd64") > numbers("linux-image-6.1.0-9-cloud-amd64"));
    }
}
