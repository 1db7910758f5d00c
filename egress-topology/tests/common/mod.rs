//! What the privileged tests share.

use std::path::{Path, PathBuf};
use std::process::Command;

use egress_topology::{CgroupDriver, Options, Topology};

/// The probe binary beside the test, built if it is not there.
pub(crate) fn probe() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/PROFILE/deps/TEST
    let profile = test.parent().and_then(Path::parent).unwrap();
    let probe = profile.join("egress-probe");
    if !probe.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "egress-probe", "--target-dir"]).arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the probe does not build");
    }
    probe
}

/// A topology whose cgroup tree has this prefix.
pub(crate) fn topology(prefix: &str, driver: CgroupDriver) -> Topology {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root: network namespaces, veths, cgroups");
    let options = Options { prefix: prefix.to_owned(), driver, ..Options::default() };
    Topology::with_options(probe(), options).unwrap()
}
