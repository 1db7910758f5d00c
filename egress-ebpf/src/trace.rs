//! A line for every verdict that was not kept with a socket, read by an agent that is built to. Only in objects of
//! `cargo xtask build-ebpf --trace`.
//!
//! Invariant: nothing here changes a verdict; where there is no room for a line, there is no line.

use core::ptr;

use aya_log_ebpf::info;
use egress_common::{Decision, Hook};

/// Says what was decided. The agent makes words of the numbers.
#[inline(always)]
pub fn verdict(decision: &Decision, hook: Hook) {
    egress_trace(ptr::from_ref(decision), hook as u32);
}

/// A function of its own for the verifier, as those in `maps`: with a stack of its own, and followed once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_trace(decision: *const Decision, hook: u32) -> u32 {
    if decision.is_null() {
        return 0;
    }
    // SAFETY: the verifier holds every caller to memory of this size.
    let Decision { verdict, flow, cgroup, .. } = unsafe { &*decision };
    info!(
        (),
        "hook={} action={} reason={} cgroup={} protocol={} {:i} {} to {:i} {}",
        hook as u8,
        verdict.action as u8,
        verdict.reason as u8,
        *cgroup,
        flow.protocol,
        flow.source.0,
        flow.source_port,
        flow.destination.0,
        flow.destination_port
    );
    0
}
