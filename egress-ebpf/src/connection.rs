//! TCP connections that come in: the socket is told so when the handshake is complete, and keeps it in mind.

use core::ptr;

use aya_ebpf::bindings::{
    BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use egress_common::connection;
use egress_common::packet::protocol;
use egress_common::wire::{APPROVAL_CAME_IN, APPROVAL_LOCKED, Addr, Approval, WITNESS_CLOSED};

use crate::maps::{APPROVALS, Kernel};
use crate::seen::remember;

const AF_INET: u32 = 2;

/// Turns in the life of a TCP socket of a cgroup below the pod root.
#[sock_ops]
pub fn egress_connection(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        // The kernel keeps this flag with the socket, and a listening socket hands its own on to those that it accepts.
        BPF_SOCK_OPS_TCP_CONNECT_CB => set_flags(&ctx, ctx.cb_flags() | BEGAN),
        BPF_SOCK_OPS_TCP_LISTEN_CB => set_flags(&ctx, ctx.cb_flags() & !BEGAN),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => {
            if kept(&ctx).is_some_and(|kept| kept.flags & APPROVAL_LOCKED != 0) {
                tell_of_its_end(&ctx);
            }
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => closed(&ctx),
        _ => {}
    }
    1
}

/// Marks a socket that has asked for a connection: a callback that seldom comes, and is not listened to.
const BEGAN: u32 = BPF_SOCK_OPS_RTO_CB_FLAG;

/// A connection that somebody else began is complete. It came in if its SYN was seen on the node's side of the veth, unless this
/// end began it as well (both at once, RFC 9293, section 3.5).
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let sk = sk(ctx);
    if sk.is_null() || ctx.cb_flags() & BEGAN != 0 || kept(ctx).is_some() {
        return;
    }
    let mut flow = flow(ctx.ops);
    let Some((cgroup, port)) = connection::came_in_to(&Kernel, &flow) else {
        return;
    };
    // As its packets have it: netfilter in the pod may have led it to the socket from another port.
    (flow.cgroup, flow.source_port) = (cgroup, port);
    flow.flags = APPROVAL_CAME_IN;
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: a map of this kind, a socket that is not null, a value of the map's type.
    unsafe { bpf_sk_storage_get(map(), sk.cast(), ptr::from_mut(&mut flow).cast(), create) };
    tell_of_its_end(ctx);
}

/// A connection that was lawful is over; what the kernel still has to say about it (the last acknowledgement, a reset) it says
/// without its socket.
#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    if let Some(kept) = kept(ctx)
        && kept.cgroup != 0
        && kept.protocol == protocol::TCP
    {
        remember(&connection::half(kept, WITNESS_CLOSED), kept.cgroup);
    }
}

/// Has us called when the socket's state changes.
#[inline(always)]
fn tell_of_its_end(ctx: &SockOpsContext) {
    set_flags(ctx, ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG);
}

#[inline(always)]
fn set_flags(ctx: &SockOpsContext, flags: u32) {
    let _unknown_flag = ctx.set_cb_flags(flags as i32);
}

#[inline(always)]
fn sk(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: a field of the program's own context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

#[inline(always)]
fn map() -> *mut core::ffi::c_void {
    ptr::from_ref(&APPROVALS).cast_mut().cast()
}

#[inline(always)]
fn kept(ctx: &SockOpsContext) -> Option<&Approval> {
    let sk = sk(ctx);
    if sk.is_null() {
        return None;
    }
    // SAFETY: a map of this kind and a socket that is not null.
    unsafe { bpf_sk_storage_get(map(), sk.cast(), ptr::null_mut(), 0).cast::<Approval>().as_ref() }
}

/// Addresses and ports of the connection.
#[inline(always)]
fn flow(ops: *mut bpf_sock_ops) -> Approval {
    let mut flow = Approval { protocol: protocol::TCP, ..Approval::default() };
    // SAFETY: fields of the program's own context.
    unsafe {
        flow.source_port = (*ops).local_port as u16;
        // In network byte order, in a word of 32 bits.
        flow.destination_port = u32::from_be((*ops).remote_port) as u16;
        if (*ops).family == AF_INET {
            flow.source = v4_local(ops);
            flow.destination = v4_remote(ops);
        } else {
            v6_ends(ops, &mut flow);
        }
    }
    flow.version = if flow.source.is_v4() { 4 } else { 6 };
    flow
}

// Functions of their own, so that the compiler does not make one load of two fields, by a pointer that the verifier does not
// follow.

/// # Safety
/// `ops` is the program's own context.
#[inline(never)]
unsafe fn v4_local(ops: *mut bpf_sock_ops) -> Addr {
    // SAFETY: by the caller.
    Addr::v4(unsafe { (*ops).local_ip4 }.to_ne_bytes())
}

/// # Safety
/// As for [`v4_local`].
#[inline(never)]
unsafe fn v4_remote(ops: *mut bpf_sock_ops) -> Addr {
    // SAFETY: by the caller.
    Addr::v4(unsafe { (*ops).remote_ip4 }.to_ne_bytes())
}

/// # Safety
/// As for [`v4_local`].
#[inline(never)]
unsafe fn v6_ends(ops: *mut bpf_sock_ops, flow: &mut Approval) {
    // SAFETY: by the caller.
    let (local, remote) = unsafe {
        (
            [(*ops).local_ip6[0], (*ops).local_ip6[1], (*ops).local_ip6[2], (*ops).local_ip6[3]],
            [(*ops).remote_ip6[0], (*ops).remote_ip6[1], (*ops).remote_ip6[2], (*ops).remote_ip6[3]],
        )
    };
    flow.source = v6(local);
    flow.destination = v6(remote);
}

/// An IPv6 address from the words of the context.
#[inline(always)]
fn v6(words: [u32; 4]) -> Addr {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    Addr([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]])
}
