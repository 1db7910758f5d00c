//! The object that logs every verdict. Real agent, real kernel.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{Stand, denied, eventually, outside, passes};
use egress_topology::{CgroupDriver, PodSpec};
use serde_json::json;

/// As `cargo xtask build-ebpf --trace` makes it.
fn object() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/egress-ebpf-trace.o");
    assert!(path.exists(), "{} is missing: cargo xtask build-ebpf --trace", path.display());
    path.to_str().unwrap().to_owned()
}

/// Its twin, with the released object, is in `object.rs`.
#[test]
fn the_traced_object_logs() {
    let object = std::fs::read(object()).unwrap();
    for name in ["AYA_LOGS", "AYA_LOG_LEVEL", "egress_trace"] {
        assert!(object.windows(name.len()).any(|part| part == name.as_bytes()), "{name}");
    }
}

#[test]
fn every_verdict_is_in_the_log() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.agent = stand.agent.arguments(&["--trace-object", &object()]);
    let peer = stand.peer();
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    assert_eq!(stand.agent.status().unwrap()["lacks"], common::lacks());
    let says = |stand: &Stand, words: [String; 2]| {
        let what = words.join(", ");
        eventually(&what, || {
            stand.agent.log().lines().any(|line| words.iter().all(|word| line.contains(word.as_str())))
        });
    };
    let line = |what: &str, to: &str| [what.to_owned(), format!(" to {to} 9999")];
    outside().iter().for_each(|address| denied(&pod, address));
    says(&stand, line("hook=socket action=deny reason=NotAllowed", "::ffff:198.51.100.10"));
    says(&stand, line("hook=socket action=deny reason=NotAllowed", outside()[1].trim_matches(['[', ']'])));
    passes(&pod, peer.pod().v4());
    let peer = format!("::ffff:{}", peer.pod().v4());
    says(&stand, line("hook=socket action=allow reason=Allowed", &peer));
    says(&stand, line("hook=veth action=allow reason=Allowed", &peer));
}
