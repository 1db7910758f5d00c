//! A packet in the kernel: its bytes, its device, its socket's cgroup.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_skb_ancestor_cgroup_id;
use aya_ebpf::programs::SkBuffContext;
use egress_common::{Bytes, Meta, Owner};

/// The context of a program, as `decide` reads it.
pub struct Packet<'a> {
    ctx: &'a SkBuffContext,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a SkBuffContext) -> Self {
        Self { ctx }
    }

    /// Frame type and device.
    #[inline(always)]
    pub fn meta(&self) -> Meta {
        let skb = self.ctx.skb.skb;
        // SAFETY: the kernel hands a valid context to the program; the verifier checks these two reads.
        let (protocol, ifindex) = unsafe { ((*skb).protocol, (*skb).ifindex) };
        // `__sk_buff::protocol` holds the 16 bits of the header, in network byte order.
        Meta { ethertype: u16::from_be(protocol as u16), ifindex }
    }

    /// Bytes from the IP header on.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.ctx.len()
    }
}

impl Bytes for Packet<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.ctx.load::<[u8; N]>(offset as usize).ok()
    }
}

impl Owner for Packet<'_> {
    #[inline(always)]
    fn cgroup(&self, level: u32) -> u64 {
        // SAFETY: a call of a helper with the program's own context; 0 where there is no such ancestor.
        unsafe { bpf_skb_ancestor_cgroup_id(self.ctx.as_ptr().cast(), level as i32) }
    }
}
