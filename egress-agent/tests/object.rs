//! What is in the object that is released.

use egress_agent::datapath::OBJECT;

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
