//! The edge of egress-enforcer: command line, sources, pod discovery, the BPF datapath and what it reports.
//!
//! Invariant: no policy decision is made here. Objects go into `egress-policy`, a plan comes out, and
//! [`datapath`] carries it out step by step; verdicts are the kernel's.
//!
//! Tested by `tests/` with the real kernel: real cgroups, real network namespaces, real packets.

pub mod admin;
mod agent;
pub mod app;
mod beside;
mod bpf;
mod chance;
pub mod cleanup;
pub mod cli;
mod clock;
pub mod cluster;
mod coverage;
pub mod cri;
pub mod datapath;
pub mod flow;
mod flow_file;
pub mod health;
pub mod http;
pub mod lock;
#[cfg(target_env = "gnu")]
mod memory;
pub mod metrics;
pub mod network;
pub mod offline;
pub mod pods;
pub mod preflight;
pub mod run;
mod sever;
pub mod source;
pub mod status;
mod table;
#[cfg(feature = "trace")]
mod trace;
mod translations;
pub mod watch;
mod witnesses;
