//! The hook on the node's end of a pod's veth: what leaves the pod is judged once more, as it is on the wire, and what
//! comes in is witnessed.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_skb, classifier};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use egress_common::packet::tcp;
use egress_common::view::LOOPBACK_IFINDEX;
use egress_common::{
    Action, Bytes as _, Decision, Flow, Hook, Owner as _, Socket, Verdict, View as _, established,
};

use crate::judge::afresh;
use crate::maps::Kernel;
use crate::packet::{Packet, listens_at};
use crate::{report, seen};

/// Hands the packet to the programs after us, which may be the network plugin's.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// Marks, in `skb->tc_index`, a packet of a pod that is not touched whose source is not known to be its own. It goes its way,
/// but where it comes in at another pod of the node it witnesses nothing. The field is the packet's own as long as it stays on
/// the node, and nobody but queueing disciplines of `dsmark` (gone since 6.3) reads it.
const FORGED: u32 = 0xe6e5;

/// `skb->pkt_type` of what is sent to this host alone (`include/uapi/linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// Frames that leave the pod: tc ingress of the node's end.
#[classifier]
pub fn egress_veth(ctx: TcContext) -> i32 {
    let packet = Packet::of_socket(ctx.skb.skb, Hook::Veth);
    let meta = packet.meta();
    if let Some(reason) = established(&Kernel, &packet, &packet, meta) {
        report::count(Hook::Veth, meta.length, Verdict::of(reason));
        return PASS;
    }
    let mut decision = Decision::none();
    afresh(ctx.skb.skb, Hook::Veth, &mut decision);
    report::report(&packet.origin(&meta), &decision);
    match decision.verdict.action {
        Action::Allow | Action::Audit => {
            if decision.forged {
                set_tc_index(ctx.skb.skb, FORGED);
            }
            seen::left(&decision, meta);
            // Of an IPv6 SYN-ACK the socket hook is not asked everywhere (6.1).
            if decision.flow.has(tcp::SYN | tcp::ACK, 0) {
                let listens = listens_at(&packet);
                if listens != 0 {
                    seen::led(&decision.flow, decision.cgroup, listens);
                }
            }
            PASS
        }
        Action::Deny => DROP,
    }
}

/// Packets that come in: tc egress of the node's end. Nothing is judged.
#[classifier]
pub fn egress_witness(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx.skb.skb, Hook::Veth);
    let meta = packet.meta();
    // SAFETY: a field of the program's own context.
    if unsafe { (*ctx.skb.skb).tc_index } == FORGED || meta.vlan {
        return PASS;
    }
    let Some(cgroup) = Kernel.device(meta.ifindex) else {
        return PASS;
    };
    let mut flow = Flow::default();
    if packet.read(meta.ethertype, &mut flow).is_none() && Kernel.receives(cgroup, &flow) {
        seen::arrived(&flow, cgroup);
    }
    PASS
}

/// Packets that come in to a pod of the node's network, at its sockets: such a pod has no veth of its own, and what comes by a
/// device of the node it cannot forge without owning the node's network. Nothing is judged.
#[cgroup_skb(ingress)]
pub fn egress_arrival(ctx: SkBuffContext) -> i32 {
    const KEEP: i32 = 1;
    let packet = Packet::new(ctx.skb.skb, Hook::Socket);
    let meta = packet.meta();
    // SAFETY: a field of the program's own context.
    let (forged, kind) = unsafe { ((*ctx.skb.skb).tc_index == FORGED, (*ctx.skb.skb).pkt_type) };
    // What the node sends to all on a link comes back to it as if from there.
    let own = meta.ifindex == LOOPBACK_IFINDEX || kind != PACKET_HOST;
    let (Some(config), false) = (Kernel.config(), forged || own) else {
        return KEEP;
    };
    // A raw socket is shown what comes in to others of the node, too.
    if matches!(packet.socket(), Socket::Raw | Socket::Packet) {
        return KEEP;
    }
    let mut cgroup = packet.cgroup(config.pod_root_level.wrapping_add(2));
    if Kernel.endpoint(cgroup).is_none() {
        cgroup = packet.cgroup(config.pod_root_level.wrapping_add(1));
    }
    let mut flow = Flow::default();
    if packet.read(meta.ethertype, &mut flow).is_none() {
        seen::arrived(&flow, cgroup);
    }
    KEEP
}

#[inline(always)]
fn set_tc_index(skb: *mut __sk_buff, value: u32) {
    // SAFETY: a field that tc programs may write.
    unsafe { (*skb).tc_index = value };
}
