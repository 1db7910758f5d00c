//! Counting every verdict, and an event for each that was not a plain allow, as far as there are not too many of one pod.
//!
//! Invariant: reporting never changes a verdict; an event that is not sent is counted, as suppressed or in `LOST`.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_comm, bpf_sk_storage_get, bpf_skb_ancestor_cgroup_id,
};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_ns};
use egress_common::reason::counter_slot;
use egress_common::wire::{Denial, DenialKey, EVENT_LIMIT, EVENT_WINDOW, Process};
use egress_common::{Action, Decision, Hook, Verdict, View as _};

use crate::maps::{COUNTERS, DENIALS, EVENTS, Kernel, LOST, PROCESSES};

/// What a verdict is about.
pub struct Origin<W> {
    /// The process.
    pub who: W,
    /// Who gave the verdict.
    pub hook: Hook,
    /// See [`FlowEvent::ifindex`](egress_common::wire::FlowEvent::ifindex).
    pub ifindex: u32,
    /// Bytes from the IP header on.
    pub length: u32,
}

/// How the process is found that a verdict is about.
pub trait Who {
    /// Id of the ancestor of its cgroup on this level, 0 where there is none.
    fn ancestor(&self, level: u32) -> u64;

    /// Writes it down, zero where it is not known.
    ///
    /// # Safety
    /// `to` is memory of a record that is being written.
    unsafe fn write(&self, to: *mut Process);
}

/// The one that used a packet's socket last; null where there is none.
pub struct OfSocket {
    pub skb: *mut __sk_buff,
    pub sk: *mut bpf_sock,
}

impl Who for OfSocket {
    #[inline(always)]
    fn ancestor(&self, level: u32) -> u64 {
        // SAFETY: a call of a helper with the program's own context.
        unsafe { bpf_skb_ancestor_cgroup_id(self.skb, level as i32) }
    }

    #[inline(always)]
    unsafe fn write(&self, to: *mut Process) {
        let process = process(self.sk);
        // SAFETY: the caller's; in place, as a copy would be on the stack first.
        unsafe {
            match process {
                Some(process) => *to = *process,
                None => *to = Process::default(),
            }
        }
    }
}

/// The one that runs.
pub struct Current;

impl Who for Current {
    #[inline(always)]
    fn ancestor(&self, level: u32) -> u64 {
        // SAFETY: a call of a helper.
        unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
    }

    #[inline(always)]
    unsafe fn write(&self, to: *mut Process) {
        // SAFETY: the caller's; the helper writes all bytes of the command, whatever becomes of it.
        unsafe {
            (*to).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            (*to).uid = bpf_get_current_uid_gid() as u32;
            let command = &raw mut (*to).command;
            bpf_get_current_comm(command.cast(), size_of::<[u8; 16]>() as u32);
        }
    }
}

/// Counts a verdict; gives the number of packets that this CPU has counted under it.
#[inline(always)]
pub fn count(hook: Hook, length: u32, verdict: Verdict) -> u64 {
    let Some(counter) = COUNTERS.get_ptr_mut(counter_slot(hook, verdict.action, verdict.reason)) else {
        return 0;
    };
    // SAFETY: a per-CPU slot, written by this CPU alone.
    unsafe {
        (*counter).bytes += u64::from(length);
        (*counter).packets += 1;
        (*counter).packets
    }
}

/// Counts the verdict, as [`count`], and reports it where someone must know.
#[inline(always)]
pub fn report<W: Who>(origin: &Origin<W>, decision: &Decision) -> u64 {
    #[cfg(feature = "trace")]
    crate::trace::verdict(decision, origin.hook);
    let verdict = decision.verdict;
    let packets = count(origin.hook, origin.length, verdict);
    match verdict.action {
        Action::Allow => {}
        Action::Deny | Action::Audit => {
            let slot = counter_slot(origin.hook, verdict.action, verdict.reason);
            // SAFETY: a call of a helper without arguments.
            let now = unsafe { bpf_ktime_get_ns() };
            if let Some(suppressed) = admitted(decision, slot, origin.length, now) {
                event(origin, decision, now, suppressed);
            }
        }
    }
    packets
}

/// Counts what one pod was denied; gives the number of packets that no event told of so far, or nothing where this one is to
/// be among them: there are too many, or it is one more of the flow that was told of last. Each CPU counts for itself.
#[inline(never)]
fn admitted(decision: &Decision, slot: u32, length: u32, now: u64) -> Option<u64> {
    let key = DenialKey { cgroup: decision.cgroup, slot, reserved: 0 };
    let flow = &decision.flow;
    let denial = match DENIALS.get_ptr_mut(key) {
        Some(denial) => denial,
        None => {
            let _there_or_full = DENIALS.insert(key, Denial::default(), u64::from(BPF_NOEXIST));
            match DENIALS.get_ptr_mut(key) {
                Some(denial) => denial,
                None => {
                    lost();
                    return None;
                }
            }
        }
    };
    // SAFETY: a per-CPU value, written by this CPU alone, which stays memory of the map while this program runs.
    unsafe {
        (*denial).packets += 1;
        (*denial).bytes += u64::from(length);
        if now.wrapping_sub((*denial).window) >= EVENT_WINDOW {
            (*denial).window = now;
            (*denial).events = 0;
        }
        // Who asks for a connection has no port yet, and is another one each time.
        let again = (*denial).events > 0
            && flow.source_port != 0
            && (*denial).destination == flow.destination
            && (*denial).source_port == flow.source_port
            && (*denial).destination_port == flow.destination_port
            && (*denial).protocol == flow.protocol;
        if again || (*denial).events >= EVENT_LIMIT {
            (*denial).suppressed += 1;
            return None;
        }
        (*denial).events += 1;
        (*denial).destination = flow.destination;
        (*denial).source_port = flow.source_port;
        (*denial).destination_port = flow.destination_port;
        (*denial).protocol = flow.protocol;
        let untold = (*denial).suppressed.wrapping_sub((*denial).told);
        (*denial).told = (*denial).suppressed;
        Some(untold)
    }
}

#[inline(always)]
fn lost() {
    if let Some(lost) = LOST.get_ptr_mut(0) {
        // SAFETY: a per-CPU slot, written by this CPU alone.
        unsafe { *lost += 1 };
    }
}

#[inline(never)]
fn event<W: Who>(origin: &Origin<W>, decision: &Decision, now: u64, suppressed: u64) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        lost();
        return;
    };
    let event = entry.as_mut_ptr();
    let Decision { verdict, flow, .. } = decision;
    // SAFETY: the reserved record is ours until it is submitted, and every field of it is written: field by field, because
    // the record is too large to be built on the stack of 512 bytes first.
    unsafe {
        (*event).time = now;
        (*event).cgroup = decision.cgroup;
        (*event).container = container(&origin.who, decision);
        (*event).policy = decision.policy;
        (*event).identity = decision.identity;
        (*event).revision = decision.revision;
        (*event).suppressed = suppressed;
        (*event).source = flow.source;
        (*event).destination = flow.destination;
        (*event).ifindex = origin.ifindex;
        (*event).length = origin.length;
        origin.who.write(&raw mut (*event).process);
        (*event).source_port = flow.source_port;
        (*event).destination_port = flow.destination_port;
        (*event).rule = verdict.rule;
        (*event).protocol = flow.protocol;
        (*event).version = flow.version;
        (*event).action = verdict.action as u8;
        (*event).reason = verdict.reason as u8;
        (*event).hook = origin.hook as u8;
        (*event).reserved = [0; 5];
    }
    entry.submit(0);
}

/// The container of a pod that is known: without a lock it was of no account so far.
#[inline(always)]
fn container<W: Who>(who: &W, decision: &Decision) -> u64 {
    if decision.container != 0 || decision.cgroup == 0 {
        return decision.container;
    }
    let Some(config) = Kernel.config() else {
        return 0;
    };
    // Where pods are, see `Config::pod_root_level`.
    let [direct, nested, deepest] =
        [1, 2, 3].map(|below| who.ancestor(config.pod_root_level.wrapping_add(below)));
    if nested == decision.cgroup {
        deepest
    } else if direct == decision.cgroup {
        nested
    } else {
        0
    }
}

/// The process that used the socket last.
#[inline(always)]
fn process<'s>(sk: *mut bpf_sock) -> Option<&'s Process> {
    if sk.is_null() {
        return None;
    }
    let map = ptr::from_ref(&PROCESSES).cast_mut().cast();
    // SAFETY: a map of this kind and a socket that is not null; the helper gives null for one that is not whole, and what it gives is
    // there as long as this program runs.
    unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), 0).cast::<Process>().as_ref() }
}
