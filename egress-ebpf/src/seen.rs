//! What was seen of flows, written where the pods cannot write.
//!
//! Invariant: nothing is judged here. Where the map is full it is not remembered, and will not be answered.

use egress_common::wire::{WITNESS_TTL, Witness, WitnessKey};
use egress_common::{Decision, Flow, Hook, Meta, View as _, witness};

use crate::maps::{Kernel, WITNESSES};

/// How long ago the same may have been written for it not to be written again.
const FRESH: u64 = WITNESS_TTL / 8;

/// Remembers a packet on its way into the pod of `cgroup`.
#[inline(never)]
pub fn arrived(flow: &Flow, cgroup: u64) {
    if let Some((key, value)) = witness::arrived(&Kernel, flow, cgroup) {
        remember(&key, &value, FRESH);
    }
}

/// Remembers a packet that has passed a hook on its way out.
#[inline(always)]
pub fn left(decision: &Decision, meta: Meta) {
    if decision.begins(meta) {
        began(&decision.flow, decision.cgroup);
    }
    if matches!(meta.hook, Hook::Veth) {
        parted(&decision.flow, decision.cgroup);
    }
}

#[inline(never)]
fn began(flow: &Flow, cgroup: u64) {
    if let Some((key, value)) = witness::left(&Kernel, flow, cgroup) {
        remember(&key, &value, FRESH);
    }
}

#[inline(never)]
fn parted(flow: &Flow, cgroup: u64) {
    if let Some((key, value)) = witness::first_fragment(flow, cgroup, Kernel.now()) {
        remember(&key, &value, 0);
    }
}

/// Writes down what was seen, unless the same was written not longer ago than `fresh` nanoseconds.
#[inline(always)]
fn remember(key: &WitnessKey, value: &Witness, fresh: u64) {
    if let Some(old) = Kernel.witness(key)
        && value.seen.saturating_sub(old.seen) < fresh
        && old.cgroup == value.cgroup
        && old.remote.same(&value.remote)
        && old.remote_port == value.remote_port
        && old.local_port == value.local_port
        && old.protocol == value.protocol
        && old.kind == value.kind
    {
        return;
    }
    let _full = WITNESSES.insert(key, value, 0);
}
