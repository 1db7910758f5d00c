//! The verdict of egress-enforcer, in one place.
//!
//! This crate is compiled into the BPF object, into the agent and into the host tests. It holds the [wire]
//! types of every map and event, the [packet] parser, the closed list of [reasons](reason::Reason) and
//! [`decide()`], the one verdict function.
//!
//! Invariant: nothing here allocates, panics on input, or allows what it does not understand. A miss in any map
//! ends in deny; only a pod that no policy selects, loopback traffic and a row that says *allow* let a packet pass.
//!
//! Tested by `tests/` in this crate on the host, and through the running kernel by the privileged tests of
//! `egress-agent`.
#![cfg_attr(not(test), no_std)]

pub mod connect;
pub mod connection;
pub mod decide;
pub mod established;
pub mod neighbour;
pub mod packet;
pub mod reason;
mod subject;
pub mod view;
pub mod wire;
pub mod witness;

pub use decide::{Decision, Verdict, decide, judge};
pub use established::established;
pub use packet::{Bytes, Flow};
pub use reason::{Action, Reason};
pub use view::{Hook, Meta, Owner, Socket, View};
pub use wire::Addr;
