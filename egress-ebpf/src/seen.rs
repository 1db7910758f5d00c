//! What was seen of flows, written where the pods cannot write.
//!
//! Invariant: nothing is judged here. Where the map is full it is not remembered, and will not be answered.

use core::ptr;

use egress_common::connection;
use egress_common::wire::Witness;
use egress_common::witness::{self, FIRST, Half, SECOND};
use egress_common::{Decision, Flow, Hook, Meta, Reason, View as _};

use crate::maps::{Kernel, WITNESSES};

/// Remembers a packet on its way into the pod of `cgroup`.
#[inline(never)]
pub fn arrived(flow: &Flow, cgroup: u64) {
    if let Some(seen) = witness::arrived(&Kernel, flow, cgroup) {
        remember(&seen, cgroup);
    }
}

/// Remembers a packet that has passed a hook on its way out.
#[inline(always)]
pub fn left(decision: &Decision, meta: Meta) {
    let (flow, cgroup) = (&decision.flow, decision.cgroup);
    if decision.begins(meta) && begins(flow, cgroup) {
        begun(flow, cgroup);
    }
    // Whom no policy selects needs no word for the rest of a datagram, and would have its own or another's place in the map.
    // What a closed pod answers passes without one.
    let judged = (decision.policy != 0 || matches!(decision.verdict.reason, Reason::WitnessedReply))
        && !decision.forged;
    if judged && matches!(meta.hook, Hook::Veth) && witness::is_first_fragment(flow) {
        parted(flow, cgroup);
    }
}

// Functions of their own, one beside the other: a stack has 512 bytes, callers and callees together.

#[inline(never)]
fn begins(flow: &Flow, cgroup: u64) -> bool {
    witness::begins(&Kernel, flow, cgroup)
}

#[inline(never)]
fn begun(flow: &Flow, cgroup: u64) {
    remember(&witness::begun(flow), cgroup);
}

#[inline(never)]
fn parted(flow: &Flow, cgroup: u64) {
    remember(&witness::datagram(flow), cgroup);
}

/// Remembers that a connection which came in is led to another port within the pod, as the SYN-ACK of the socket tells that listens there.
#[inline(never)]
pub fn led(flow: &Flow, cgroup: u64, listens: u16) {
    if let Some(seen) = connection::leads_to(&Kernel, flow, cgroup, listens) {
        write_down(&seen, cgroup, flow.source_port);
    }
}

/// Writes down what was seen, unless the same was written a short time ago.
#[inline(always)]
pub fn remember(seen: &Half, cgroup: u64) {
    write_down(seen, cgroup, 0);
}

/// The same, with [`Witness::wire_port`].
#[inline(never)]
#[expect(clippy::needless_borrows_for_generic_args, reason = "there is no room for copies on the stack")]
fn write_down(seen: &Half, cgroup: u64, wire_port: u16) {
    let mut value = Witness::default();
    seen.write(&mut value, cgroup, Kernel.now());
    value.wire_port = wire_port;
    // One key for all, and by reference: there is no room for more on the stack.
    let mut key = seen.key(FIRST);
    let first = WITNESSES.get_ptr_mut(&key);
    key.slot = seen.slot(SECOND);
    let second = WITNESSES.get_ptr_mut(&key);
    // SAFETY: of the map, as in `Kernel::witness`.
    let Some(choice) = witness::place(&value, unsafe { of(first) }, unsafe { of(second) }) else {
        return;
    };
    if choice == FIRST {
        key.slot = seen.slot(FIRST);
    }
    // The same again is renewed where it is: an entry that is replaced can be missed by others at that moment.
    let old = if choice == FIRST { first } else { second };
    if let Some(old) = old
        && renewed(old, &value)
    {
        return;
    }
    let (key, value) = (&key, &value);
    let _full = WITNESSES.insert(key, value, 0);
}

/// Renews an entry of the same, if it is one. By itself, for the stacks.
#[inline(never)]
fn renewed(old: *mut Witness, new: &Witness) -> bool {
    // SAFETY: of a map, as in `Kernel::witness`; eight bytes are written at once.
    unsafe {
        let same = (*old).kind == new.kind && (*old).wire_port == new.wire_port && (*old).is_of_flow(new);
        if same {
            ptr::write_volatile(&raw mut (*old).seen, new.seen);
        }
        same
    }
}

/// What a map has there.
///
/// # Safety
/// It is of a map, and of this run of the program.
#[inline(always)]
unsafe fn of<'a>(found: Option<*mut Witness>) -> Option<&'a Witness> {
    // SAFETY: as above.
    found.map(|found| unsafe { &*found })
}
