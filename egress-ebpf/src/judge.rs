//! Judging a packet, as a function of its own for the kernel's verifier: see `maps`. What comes after it, in both hooks, is verified
//! once, and not once per way through the judgement: kernels before 6.4 would take a program of all of it for too complex soon.

use aya_ebpf::bindings::__sk_buff;
use egress_common::{Decision, Hook, judge};

use crate::maps::Kernel;
use crate::packet::{Packet, of_packets};

/// Judges the packet of a program's context afresh; see [`egress_common::judge`].
#[inline(always)]
pub fn afresh(skb: *mut __sk_buff, hook: Hook, decision: &mut Decision) {
    egress_judge(skb, hook as u32, decision);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_judge(skb: *mut __sk_buff, hook: u32, decision: *mut Decision) -> u32 {
    if decision.is_null() {
        return 0;
    }
    let packet = Packet::new(skb, of_packets(hook));
    // SAFETY: the verifier holds every caller to memory of this size.
    judge(&Kernel, &packet, &packet, packet.meta(), unsafe { &mut *decision });
    0
}
