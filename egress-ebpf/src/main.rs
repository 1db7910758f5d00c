//! The BPF programs: each hook asks [`decide`](egress_common::decide()) and does what the verdict says.
//!
//! Invariant: no policy logic lives here, and the action of a verdict is what happens. Each hook has one exhaustive
//! match from `Action` to its return code; the privileged tests of `egress-agent` check both codes per reason.
#![no_std]
#![no_main]

mod connect;
mod connection;
mod create;
mod judge;
mod maps;
mod packet;
mod report;
mod seen;
mod socket;
#[cfg(feature = "trace")]
mod trace;
mod veth;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel reads the licence of the object from this section; helpers marked GPL-only need it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
