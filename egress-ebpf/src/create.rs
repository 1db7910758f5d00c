//! The hooks on new sockets: a packet socket is refused where no hook would judge its frames, so that it is no way out of a pod that is
//! new, or has other devices than veths.

use aya_ebpf::macros::{lsm, lsm_cgroup};
use aya_ebpf::programs::LsmContext;
use egress_common::connect::packet_socket;
use egress_common::{Action, Hook};

use crate::connect::Current;
use crate::maps::{ASKED, Kernel};
use crate::report::{self, Origin};

const AF_PACKET: u32 = 17;
const AF_XDP: u32 = 44;

/// Return codes of `lsm_cgroup` programs: the call goes on, or fails with `EPERM`.
const PASS: i32 = 1;
const REFUSE: i32 = 0;

/// `socket` of a process below the pod root: `socket_create(family, type, protocol, kern)`.
#[lsm_cgroup(hook = "socket_create")]
pub fn egress_create(ctx: LsmContext) -> i32 {
    let (family, kernel): (u32, u32) = (ctx.arg(0), ctx.arg(3));
    if (family != AF_PACKET && family != AF_XDP) || kernel != 0 {
        return PASS;
    }
    let Some(decision) = packet_socket(&Kernel, &Current, |cgroup| Kernel.covered(cgroup)) else {
        return PASS;
    };
    report::report(&Origin { who: report::Current, hook: Hook::Connect, ifindex: 0, length: 0 }, &decision);
    match decision.verdict.action {
        Action::Allow | Action::Audit => PASS,
        Action::Deny => REFUSE,
    }
}

/// Tells the agent that this kernel asks BPF about new sockets: it need not, though it has all that it takes to load the above.
#[lsm(hook = "socket_create")]
pub fn egress_lsm(ctx: LsmContext) -> i32 {
    if let Some(asked) = ASKED.get_ptr_mut(0) {
        // SAFETY: a word that only this program writes; that some of it may be lost makes no difference.
        unsafe { *asked += 1 };
    }
    // What another module has said.
    ctx.arg(4)
}
