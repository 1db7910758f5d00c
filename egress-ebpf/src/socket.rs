//! The socket hook, and what it keeps with sockets.

use core::ptr;

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use egress_common::packet::tcp;
use egress_common::wire::{APPROVAL_CAME_IN, APPROVAL_LOCKED};
use egress_common::{Action, Decision, Hook, Verdict, View as _, established};

use crate::judge::afresh;
use crate::maps::{APPROVALS, Kernel};
use crate::packet::Packet;
use crate::{report, seen};

/// Return codes of `cgroup_skb` programs: the verifier accepts no others.
const DROP: i32 = 0;
const PASS: i32 = 1;

/// Every packet that a socket of a cgroup below the pod root sends, after the pod's own netfilter.
#[cgroup_skb(egress)]
pub fn egress_socket(ctx: SkBuffContext) -> i32 {
    let packet = Packet::of_socket(ctx.skb.skb, Hook::Socket);
    let meta = packet.meta();
    if let Some(reason) = established(&Kernel, &packet, &packet, meta) {
        report::count(Hook::Socket, meta.length, Verdict::of(reason));
        return PASS;
    }
    let mut decision = Decision::none();
    afresh(ctx.skb.skb, Hook::Socket, &mut decision);
    let packets = report::report(&packet.origin(&meta), &decision);
    keep(&packet, &decision, packets);
    match decision.verdict.action {
        Action::Allow | Action::Audit => {
            seen::left(&decision, meta);
            PASS
        }
        Action::Deny => DROP,
    }
}

/// A socket's verdict is kept from about one in this many of its packets on: what is spoken once, such as a query for a name, is
/// not worth the memory, and what goes on is soon kept. The agent may set it before it loads the object.
#[unsafe(no_mangle)]
static KEEP_EVERY: u64 = 16;

/// Whether this packet is one of those.
#[inline(always)]
fn is_kept(packets: u64) -> bool {
    // SAFETY: a word that nobody writes once the object is loaded; read as it is then, not as it was compiled.
    let every = unsafe { ptr::read_volatile(&raw const KEEP_EVERY) };
    every <= 1 || packets.is_multiple_of(every)
}

/// Keeps the verdict with the socket. A socket keeps one flow as long as its verdict holds; others that it sends are judged
/// each time. An entry is made whole or not at all: a reader never sees half of one flow and half of another.
#[inline(never)]
fn keep(packet: &Packet, decision: &Decision, packets: u64) {
    let sk = packet.sk();
    if sk.is_null() {
        return;
    }
    let now = Kernel.now();
    let map = ptr::from_ref(&APPROVALS).cast_mut().cast();
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    let Some(mut new) = decision.approval(packet.meta(), now) else {
        return;
    };
    // SAFETY: null or of the storage, see there.
    if let Some(kept) = unsafe { packet.kept().as_mut() } {
        if decision.flow.same(kept) && kept.cgroup == new.cgroup {
            kept.renew(&new);
            return;
        }
        // A connection that begins is the socket's only one from now on, whatever it had before it was disconnected.
        let begins = decision.flow.has(tcp::SYN, tcp::ACK);
        if !begins && (kept.revision == new.revision || kept.flags & APPROVAL_CAME_IN != 0) {
            return;
        }
        // SAFETY: as above.
        unsafe { bpf_sk_storage_delete(map, sk.cast()) };
    } else if new.flags & (APPROVAL_LOCKED | APPROVAL_CAME_IN) == 0 && !is_kept(packets) {
        // Under a lock a connection's end can be told from a bypass by what is kept alone: see `connection`. That a connection
        // came in may be forgotten elsewhere.
        return;
    }
    // A listening socket's answers belong to nobody yet.
    if decision.flow.has(tcp::SYN | tcp::ACK, 0) {
        return;
    }
    // SAFETY: as above; the value is copied before anybody can see the entry.
    unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::from_mut(&mut new).cast(), create) };
}
