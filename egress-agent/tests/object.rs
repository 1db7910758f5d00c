//! What is in the object that is released, and what it costs the kernel to verify it.

use egress_agent::datapath::{Datapath, OBJECT};
use egress_topology::mount_bpffs;
use tempfile::TempDir;

/// Whether a name is in an object: among its symbols, sections or types.
fn names(object: &[u8], name: &str) -> bool {
    object.windows(name.len()).any(|part| part.eq_ignore_ascii_case(name.as_bytes()))
}

/// Its twin, with the object that logs, is in `trace.rs`.
#[test]
fn the_released_object_logs_nothing() {
    assert!(names(OBJECT, "egress_counters"), "names are found");
    for name in ["aya_log", "egress_trace"] {
        assert!(!names(OBJECT, name), "the released object has {name}");
    }
}

/// Kernels give up after a million instructions that they follow, and those before 6.4 follow up to nine times as many as this one: what
/// is ten times below that here is far from it everywhere (docs/kernels.md has the numbers).
#[test]
fn the_programs_are_simple_enough_for_older_verifiers() {
    const MOST: u32 = 100_000;
    let dir = TempDir::with_prefix("egress-test-").unwrap();
    let bpffs = mount_bpffs(&dir.path().join("bpf")).unwrap();
    let mut datapath = Datapath::open(bpffs.path()).unwrap();
    let socket = datapath.socket_program().unwrap().info().unwrap().verified_instruction_count().unwrap();
    let veth = datapath.veth_program().unwrap().info().unwrap().verified_instruction_count().unwrap();
    assert!((1000..MOST).contains(&socket), "the socket hook: {socket}");
    assert!((1000..MOST).contains(&veth), "the veth hook: {veth}");
}
