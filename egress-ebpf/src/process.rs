//! Who uses a socket: noted when a process connects it or sends by it, for the events.

use core::ptr;

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use egress_common::wire::Process;

use crate::maps::PROCESSES;

/// Return code that lets the call go on.
const PASS: i32 = 1;

/// `connect` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn egress_connect4(ctx: SockAddrContext) -> i32 {
    note(&ctx);
    PASS
}

/// `connect` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn egress_connect6(ctx: SockAddrContext) -> i32 {
    note(&ctx);
    PASS
}

/// `sendmsg` to an address by an IPv4 datagram socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn egress_sendmsg4(ctx: SockAddrContext) -> i32 {
    note(&ctx);
    PASS
}

/// `sendmsg` to an address by an IPv6 datagram socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn egress_sendmsg6(ctx: SockAddrContext) -> i32 {
    note(&ctx);
    PASS
}

/// Keeps process, user and command with the socket, once per process.
#[inline(always)]
fn note(ctx: &SockAddrContext) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the context's own socket, which is never null here.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return;
    }
    let map = ptr::from_ref(&PROCESSES).cast_mut().cast();
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: a map of this kind and a socket that is not null; a new entry is all zero.
    let kept =
        unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), create).cast::<Process>().as_mut() };
    if let Some(kept) = kept
        && kept.pid != pid
    {
        kept.uid = bpf_get_current_uid_gid() as u32;
        kept.command = bpf_get_current_comm().unwrap_or_default();
        kept.pid = pid;
    }
}
