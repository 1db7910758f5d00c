//! Counting every verdict, and an event for each that was not a plain allow.
//!
//! Invariant: reporting never changes a verdict; an event that finds no room is counted in `LOST`.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use egress_common::reason::counter_slot;
use egress_common::{Action, Decision, Hook};

use crate::maps::{COUNTERS, EVENTS, LOST};
use crate::packet::Packet;

/// Counts the verdict and reports it where someone must know.
#[inline(always)]
pub fn report(packet: &Packet<'_>, decision: &Decision, hook: Hook) {
    let verdict = decision.verdict;
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_slot(verdict.action, verdict.reason)) {
        // SAFETY: a per-CPU slot, written by this CPU alone.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(packet.len());
        }
    }
    match verdict.action {
        Action::Allow => {}
        Action::Deny | Action::Audit => event(packet, decision, hook),
    }
}

#[inline(always)]
fn event(packet: &Packet<'_>, decision: &Decision, hook: Hook) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        if let Some(lost) = LOST.get_ptr_mut(0) {
            // SAFETY: a per-CPU slot, written by this CPU alone.
            unsafe { *lost += 1 };
        }
        return;
    };
    let event = entry.as_mut_ptr();
    let Decision { verdict, flow, .. } = decision;
    // SAFETY: the reserved record is ours until it is submitted, and every field of it is written: field by field, because
    // the record is too large to be built on the stack of 512 bytes first.
    unsafe {
        (*event).time = bpf_ktime_get_ns();
        (*event).cgroup = decision.cgroup;
        (*event).container = decision.container;
        (*event).policy = decision.policy;
        (*event).identity = decision.identity;
        (*event).revision = decision.revision;
        (*event).source = flow.source;
        (*event).destination = flow.destination;
        (*event).ifindex = packet.meta().ifindex;
        (*event).length = packet.len();
        (*event).source_port = flow.source_port;
        (*event).destination_port = flow.destination_port;
        (*event).rule = verdict.rule;
        (*event).protocol = flow.protocol;
        (*event).version = flow.version;
        (*event).action = verdict.action as u8;
        (*event).reason = verdict.reason as u8;
        (*event).hook = hook as u8;
        (*event).reserved = [0; 5];
    }
    entry.submit(0);
}
