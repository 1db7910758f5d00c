//! Invariants of the tree.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of code a reader takes in at once; tests in the file do not count.
const LINES: usize = 420;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let skip = ["target", ".git"].iter().any(|name| path.ends_with(name));
        if path.is_dir() && !skip {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    assert!(found.len() > 50, "{}", found.len());
    found
}

/// Names of the packages that a package needs, itself included.
fn dependencies(package: &str) -> BTreeSet<String> {
    let words = [
        "tree",
        "--locked",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--package",
        package,
    ];
    let output = Command::new(env!("CARGO")).current_dir(root()).args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_pure_crates_have_no_runtime() {
    let policy = dependencies("egress-policy");
    assert!(policy.contains("egress-common"));
    for forbidden in ["tokio", "aya", "kube", "nix", "libc", "notify", "jiff"] {
        assert!(!policy.contains(forbidden), "egress-policy must not depend on {forbidden}");
    }
    let common = dependencies("egress-common");
    let allowed = BTreeSet::from([
        "egress-common",
        "network-types",
        "num-derive",
        "num-traits",
        "proc-macro2",
        "quote",
        "syn",
        "unicode-ident",
    ]);
    let more: Vec<_> = common.iter().filter(|name| !allowed.contains(name.as_str())).collect();
    assert!(more.is_empty(), "egress-common depends on {more:?}");
}

#[test]
fn the_agent_has_nothing_of_the_tests() {
    let agent = dependencies("egress-agent");
    assert!(agent.contains("egress-policy"));
    for forbidden in ["egress-fixture", "egress-topology", "egress-probe"] {
        assert!(!agent.contains(forbidden), "egress-agent must not depend on {forbidden}");
    }
}

#[test]
fn files_are_short() {
    for path in all_sources() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        let tests =
            path.components().any(|part| ["tests", "tests.rs"].iter().any(|name| part.as_os_str() == *name));
        assert!(tests || lines <= LINES, "{} has {lines} lines", path.display());
    }
}

#[test]
fn the_architecture_names_files_and_tests_that_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let sources: String = all_sources().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut checked = 0;
    for word in text.split('`').skip(1).step_by(2) {
        let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if word.contains('/') && word.ends_with(".rs") {
            assert!(root().join(word).exists(), "ARCHITECTURE.md names {word}");
            checked += 1;
        } else if word.chars().all(name) && word.matches('_').count() > 2 {
            assert!(sources.contains(&format!("fn {word}(")), "ARCHITECTURE.md names the test {word}");
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}

#[test]
fn the_readme_shows_the_commands_that_ci_runs() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let command = "cargo xtask test";
    assert!(readme.contains(command) && ci.lines().any(|line| line == command));
}
