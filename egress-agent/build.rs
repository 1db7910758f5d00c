//! Hands the BPF object to the crate, which embeds it: built by `cargo xtask build-ebpf`, or named by
//! `EGRESS_EBPF_OBJECT`.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=EGRESS_EBPF_OBJECT");
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = std::env::var_os("EGRESS_EBPF_OBJECT")
        .map_or_else(|| manifest.join("../target/bpf/egress-ebpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=EGRESS_EBPF_OBJECT={}", object.display()),
        Err(error) => println!(
            "cargo::error=the BPF object {} is missing ({error}): run `cargo xtask build-ebpf` first",
            object.display()
        ),
    }
}
