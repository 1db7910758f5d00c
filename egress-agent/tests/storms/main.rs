//! Storms: many births, kill -9 under traffic, addresses and cgroups that are used again, full maps, floods, and two versions side
//! by side. In each, an observer outside proves that nothing arrives, and the nearest lawful traffic passes.
//!
//! `cargo test` uses small numbers. The long run:
//! `EGRESS_STORM_BIRTHS=1000 EGRESS_STORM_KILLS=100 cargo test -p egress-agent --test storms -- --test-threads=1 --nocapture`.
//! `EGRESS_STORM_BIRTHS` is the number of pods born, `EGRESS_STORM_KILLS` that of kills, `EGRESS_STORM_CHURN` that of quick pods.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and prints what it measured"
)]

mod births;
#[path = "../common/mod.rs"]
mod common;
mod field;
mod flood;
mod full;
mod kills;
mod reuse;
mod versions;
