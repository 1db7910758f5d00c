//! The threat model, row by row: each attack is tried for real, from a pod that no policy selects, where it must get through,
//! and from a locked-down pod, of which no byte may arrive. Real agent, real kernel, real namespaces.
#![expect(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "a test fails by panicking")]

mod attack;
#[path = "../common/mod.rs"]
mod common;
mod filters;
mod frames;
mod guests;
mod inside;
mod neighbours;
mod plain;
mod range;
mod redirected;
mod replies;
mod sockets;
