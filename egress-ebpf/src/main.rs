//! The BPF programs: each hook asks [`decide`] and does what the verdict says.
//!
//! Invariant: no policy logic lives here, and the action of a verdict is what happens. Each hook has one exhaustive
//! match from [`Action`] to its return code; the privileged tests of `egress-agent` check both codes per reason.
#![no_std]
#![no_main]

mod maps;
mod packet;
mod report;

use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use egress_common::{Action, Hook, decide};

use crate::maps::Kernel;
use crate::packet::Packet;

/// Return codes of `cgroup_skb` programs: the verifier accepts no others.
const DROP: i32 = 0;
const PASS: i32 = 1;

/// Every packet that a socket of a cgroup below the pod root sends, after the pod's own netfilter.
#[cgroup_skb(egress)]
pub fn egress_socket(ctx: SkBuffContext) -> i32 {
    let packet = Packet::new(&ctx);
    let decision = decide(&Kernel, &packet, &packet, packet.meta());
    report::report(&packet, &decision, Hook::Socket);
    match decision.verdict.action {
        Action::Allow | Action::Audit => PASS,
        Action::Deny => DROP,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel reads the licence of the object from this section; helpers marked GPL-only need it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
