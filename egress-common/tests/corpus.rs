//! The inputs that fuzzing found worth keeping, checked again by what the fuzz targets check.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "../../fuzz/checks/mod.rs"]
mod checks;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use egress_common::{Reason, decide};

/// Checks every kept input of a target; gives how many there are.
fn replay(target: &str, check: fn(&[u8])) -> usize {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in &paths {
        println!("{}", path.display());
        check(&fs::read(path).unwrap());
    }
    paths.len()
}

#[test]
fn the_corpus_of_the_parser_passes() {
    assert!(replay("packet", checks::packet::check) >= 20);
}

#[test]
fn the_corpus_of_the_verdict_passes() {
    assert!(replay("decide", checks::decide::check) >= 20);
}

/// A corpus that leads to a few verdicts only would show nothing.
#[test]
fn the_corpus_of_the_verdict_comes_to_every_reason() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/decide");
    let mut reasons = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let of = checks::scenario::Scenario::of(&fs::read(entry.unwrap().path()).unwrap());
        reasons.insert(decide(&of.maps, &of.sender, of.packet.as_slice(), of.meta).verdict.reason);
    }
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !reasons.contains(reason)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
