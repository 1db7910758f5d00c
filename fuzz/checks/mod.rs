//! What is checked of any input: by the fuzz targets of new ones, by `egress-common/tests/corpus.rs` of those that are kept.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "each fuzz target uses a part, none is seen from outside, and a check fails by panicking"
)]

pub mod decide;
pub mod grounds;
pub mod packet;
pub mod scenario;
