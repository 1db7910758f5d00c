//! `manifests`: what is below `deploy/` and made from types, and rendering what is there.
//!
//! Invariant: every flag, port, right and field in a manifest exists in the programs; kustomize and the chart say the same. Tested by
//! `tests/`, which render with the real kubectl and helm.

pub(crate) mod render;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use egress_policy::schema;
use serde_json::Value;

use crate::command::root;

/// What a file that is made begins with.
const MADE: &str = "# Written by `cargo xtask manifests` from the types of egress-policy: change those.\n";
/// Where the custom resource is kept: Helm takes nothing from outside a chart.
const CRD: [&str; 2] = ["deploy/crd", "deploy/helm/egress-enforcer/files"];

/// Arguments of `manifests`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail where a file is not as it would be written.
    #[arg(long, conflicts_with = "render")]
    check: bool,
    /// Also render base, overlays and chart into this directory, one file each, for who has neither kustomize nor Helm.
    #[arg(long, value_name = "DIR")]
    render: Option<PathBuf>,
}

/// Writes, or checks, what is made.
pub(crate) fn manifests(args: &Args) -> anyhow::Result<()> {
    for (path, text) in made()? {
        let file = root().join(&path);
        let same = fs::read_to_string(&file).is_ok_and(|there| there == text);
        match (same, args.check) {
            (true, _) => {}
            (false, true) => bail!("{path} is not what the types say: run `cargo xtask manifests`"),
            (false, false) => {
                fs::write(&file, text).with_context(|| format!("cannot write {path}"))?;
                println!("wrote {path}");
            }
        }
    }
    match &args.render {
        Some(directory) => render_all(directory),
        None => Ok(()),
    }
}

/// Every file that is made: its path from the root of the repository, and its text.
fn made() -> anyhow::Result<Vec<(String, String)>> {
    let definition = yaml(&[schema::definition()])?;
    let strict = yaml(&schema::strict_fields())?;
    let files = CRD.into_iter().flat_map(|directory| {
        [
            (format!("{directory}/egressgatewaypolicies.yaml"), definition.clone()),
            (format!("{directory}/egressgatewaypolicies-strict.yaml"), strict.clone()),
        ]
    });
    Ok(files.collect())
}

fn yaml(objects: &[Value]) -> anyhow::Result<String> {
    let documents: Result<Vec<_>, _> = objects.iter().map(serde_saphyr::to_string).collect();
    Ok(format!("{MADE}{}", documents?.join("---\n")))
}

fn render_all(directory: &Path) -> anyhow::Result<()> {
    let tools = render::tools()?;
    fs::create_dir_all(directory)?;
    for name in render::KUSTOMIZE {
        let file = name.rsplit('/').next().unwrap_or(name);
        fs::write(directory.join(file).with_extension("yaml"), tools.kustomize(name)?)?;
    }
    fs::write(directory.join("helm.yaml"), tools.helm(&["--set", "namespace.create=true"])?)?;
    println!("rendered into {}", directory.display());
    Ok(())
}
