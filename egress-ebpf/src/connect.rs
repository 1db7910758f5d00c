//! The hooks in the context of a process that connects or sends: who uses a socket is noted for the events, and who asks for a
//! connection that is sure to be denied is told at once.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_probe_read_kernel, bpf_sk_storage_get,
};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use egress_common::connect::{concerns, connect, is_sure};
use egress_common::wire::{Approval, Process};
use egress_common::{Addr, Hook, Owner, Socket};

use crate::maps::{Kernel, PROCESSES};
use crate::report::{self, Origin};

/// Return codes: the call goes on, or fails with `EPERM`.
const PASS: i32 = 1;
const REFUSE: i32 = 0;

/// Where the kernel keeps a namespace's netfilter hooks of locally sent packets, written by the agent before it loads the object:
/// bytes from a socket to its namespace, from that to the hooks of IPv4 and of IPv6, and whether this is known at all.
#[unsafe(no_mangle)]
static NETFILTER: [u32; 4] = [0; 4];

/// `connect` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn egress_connect4(ctx: SockAddrContext) -> i32 {
    let to = v4(&ctx);
    connects(&ctx, to)
}

/// `connect` of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn egress_connect6(ctx: SockAddrContext) -> i32 {
    let to = v6(&ctx);
    connects(&ctx, to)
}

/// `sendmsg` to an address by an IPv4 datagram socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn egress_sendmsg4(ctx: SockAddrContext) -> i32 {
    sends(&ctx);
    PASS
}

/// `sendmsg` to an address by an IPv6 datagram socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn egress_sendmsg6(ctx: SockAddrContext) -> i32 {
    sends(&ctx);
    PASS
}

/// Of pods that nobody cares for, nothing is noted: most sockets send one datagram.
#[inline(always)]
fn sends(ctx: &SockAddrContext) {
    if concerns(&Kernel, &Current) {
        note(ctx);
    }
}

#[inline(always)]
fn connects(ctx: &SockAddrContext, to: Addr) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: fields of the program's own context.
    let (protocol, port) = unsafe { ((*sa).protocol as u8, u16::from_be((*sa).user_port as u16)) };
    let Some(decision) = connect(&Kernel, &Current, &to, protocol, port) else {
        return PASS;
    };
    note(ctx);
    if !is_sure(&decision) || may_be_redirected(ctx, to.is_v4()) {
        return PASS;
    }
    report::report(&Origin { who: report::Current, hook: Hook::Connect, ifindex: 0, length: 0 }, &decision);
    REFUSE
}

/// Whether the socket's namespace has netfilter hooks for what is sent from here, which might send it elsewhere, to the sidecar
/// first of all; also where that cannot be found out.
#[inline(never)]
fn may_be_redirected(ctx: &SockAddrContext, v4: bool) -> bool {
    /// `NF_INET_LOCAL_OUT` (`include/uapi/linux/netfilter.h`), of an array of pointers.
    const LOCAL_OUT: u64 = 3 * 8;
    /// Enough of a socket to have its namespace in it.
    const SOCKET: usize = 64;
    // SAFETY: words that nobody writes once the object is loaded; read as they are then, not as they were compiled.
    let [net, hooks4, hooks6, known] = unsafe { ptr::read_volatile(&raw const NETFILTER) };
    if known == 0 || net as usize > SOCKET - 8 {
        return true;
    }
    let mut socket = [0_u64; SOCKET / 8];
    // SAFETY: the context's own socket; the helper fails where it cannot read.
    let failed = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        bpf_probe_read_kernel(socket.as_mut_ptr().cast(), SOCKET as u32, sk.cast::<c_void>())
    };
    let Some(namespace) = socket.get(net as usize / 8) else {
        return true;
    };
    if failed != 0 || *namespace == 0 {
        return true;
    }
    let at = namespace + u64::from(if v4 { hooks4 } else { hooks6 }) + LOCAL_OUT;
    let mut hooks = 0_u64;
    // SAFETY: a word of the stack; the helper fails where it cannot read.
    let failed = unsafe { bpf_probe_read_kernel(ptr::from_mut(&mut hooks).cast(), 8, at as *const c_void) };
    failed != 0 || hooks != 0
}

/// The process that runs, whose sockets are taken for its own.
pub struct Current;

impl Owner for Current {
    #[inline(always)]
    fn cgroup(&self, level: u32) -> u64 {
        // SAFETY: a call of a helper; 0 where there is no such ancestor.
        unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
    }

    #[inline(always)]
    fn socket(&self) -> Socket {
        Socket::Inet
    }

    #[inline(always)]
    fn approval(&self) -> Option<&Approval> {
        None
    }
}

/// Keeps process, user and command with the socket, once per process.
#[inline(never)]
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

// Functions of their own, so that the compiler does not make one load of two fields, by a pointer that the verifier does not
// follow.

#[inline(never)]
fn v4(ctx: &SockAddrContext) -> Addr {
    // SAFETY: a field of the program's own context.
    Addr::v4(unsafe { (*ctx.sock_addr).user_ip4 }.to_ne_bytes())
}

#[inline(never)]
fn v6(ctx: &SockAddrContext) -> Addr {
    let sa = ctx.sock_addr;
    // SAFETY: fields of the program's own context.
    Addr::of(unsafe { [(*sa).user_ip6[0], (*sa).user_ip6[1], (*sa).user_ip6[2], (*sa).user_ip6[3]] })
}
