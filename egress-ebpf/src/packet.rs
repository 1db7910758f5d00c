//! A packet in the kernel: its bytes, its device, its socket.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_TCP_LISTEN, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_listener_sock, bpf_sk_fullsock, bpf_sk_storage_get, bpf_skb_ancestor_cgroup_id,
};
use aya_ebpf::programs::sk_buff::SkBuff;
use egress_common::neighbour::{claims, is_neighbour};
use egress_common::packet::read;
use egress_common::wire::{Approval, Endpoint};
use egress_common::witness::reply;
use egress_common::{Bytes, Flow, Hook, Meta, Owner, Reason, Socket, View};

use crate::maps::{APPROVALS, Kernel};
use crate::report::{OfSocket, Origin};

/// Length of an Ethernet header, which a tc program finds before the IP header.
const ETHERNET: u32 = 14;

/// Furthest offset at which headers are read where they lie.
const NEAR: u32 = 128;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOCK_STREAM: u32 = 1;
const SOCK_RAW: u32 = 3;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_ICMPV6: u32 = 58;

/// The context of a program, as `decide` reads it.
pub struct Packet {
    skb: SkBuff,
    hook: Hook,
    /// What its socket keeps, null where that is nothing. The memory stays the storage's as long as this program runs, and is
    /// written in place only field by field.
    kept: *mut Approval,
}

impl Packet {
    /// Of its socket nothing is asked for that is kept.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff, hook: Hook) -> Self {
        Self { skb: SkBuff { skb }, hook, kept: ptr::null_mut() }
    }

    /// With what its socket keeps.
    #[inline(always)]
    pub fn of_socket(skb: *mut __sk_buff, hook: Hook) -> Self {
        let mut packet = Self::new(skb, hook);
        let sk = packet.sk();
        if !sk.is_null() {
            let map = ptr::from_ref(&APPROVALS).cast_mut().cast();
            // SAFETY: a map of this kind and a socket that is not null; the helper gives null for one that is not whole.
            packet.kept = unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), 0).cast() };
        }
        packet
    }

    /// What its socket keeps, to be written to; null where that is nothing.
    #[inline(always)]
    pub fn kept(&self) -> *mut Approval {
        self.kept
    }

    /// Where the IP header begins.
    #[inline(always)]
    fn start(&self) -> u32 {
        match self.hook {
            Hook::Socket | Hook::Connect => 0,
            Hook::Veth => ETHERNET,
        }
    }

    /// Words from an offset of at most [`NEAR`] on, where the kernel has them in one piece: with few exceptions it has all headers.
    #[inline(always)]
    fn lying<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let skb = self.skb.skb;
        // SAFETY: fields of the program's own context; the verifier makes pointers of them.
        let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        let start = data + offset as usize;
        if start + 4 * N > end {
            return None;
        }
        // SAFETY: between the packet's first byte and its last one, as the verifier sees. The address may be none that a word
        // should have; the verifier lets programs read packets in words only where the processor can do that.
        Some(unsafe { (start as *const [u32; N]).read() })
    }

    /// What the hook knows of it.
    #[inline(always)]
    pub fn meta(&self) -> Meta {
        let skb = self.skb.skb;
        // SAFETY: the kernel hands a valid context to the program; the verifier checks these reads.
        let (protocol, ifindex, vlan) = unsafe { ((*skb).protocol, (*skb).ifindex, (*skb).vlan_present) };
        Meta {
            hook: self.hook,
            // `__sk_buff::protocol` holds the 16 bits of the header, in network byte order.
            ethertype: u16::from_be(protocol as u16),
            ifindex,
            length: self.length(),
            vlan: vlan != 0,
        }
    }

    /// Bytes from the IP header on.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        self.skb.len().wrapping_sub(self.start())
    }

    /// What a verdict on it is about.
    #[inline(always)]
    pub fn origin(&self, meta: &Meta) -> Origin<OfSocket> {
        Origin {
            who: OfSocket { skb: self.skb.skb, sk: self.sk() },
            hook: self.hook,
            ifindex: meta.ifindex,
            length: meta.length,
        }
    }

    /// Its socket, null where it has none; it need not be a whole one.
    #[inline(always)]
    pub fn sk(&self) -> *mut bpf_sock {
        // SAFETY: as in `meta`.
        unsafe { (*self.skb.skb).__bindgen_anon_2.sk }
    }
}

/// The port of the listening socket that a packet was sent for; 0 where there is none.
#[inline(never)]
pub fn listens_at(packet: &Packet) -> u16 {
    let sk = packet.sk();
    if sk.is_null() {
        return 0;
    }
    // SAFETY: a socket that is not null, as the verifier sees; the helper gives null where none listens.
    let listening = unsafe { bpf_get_listener_sock(sk) };
    if listening.is_null() {
        return 0;
    }
    // SAFETY: a whole socket that is not null, as the verifier sees.
    unsafe { (*listening).src_port as u16 }
}

impl Bytes for Packet {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let offset = self.start() + offset;
        if offset <= NEAR
            && let Some(words) = self.lying(offset)
        {
            return Some(words);
        }
        self.skb.load(offset as usize).ok()
    }

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<[u32; N]> {
        self.lying(self.start())
    }

    #[inline(always)]
    fn read(&self, ethertype: u16, flow: &mut Flow) -> Option<Reason> {
        match egress_read(self.skb.skb, self.hook as u32, u32::from(ethertype), flow) {
            0 => None,
            reason => Some(Reason::from_wire(reason as u8).unwrap_or(Reason::BadEntry)),
        }
    }

    #[inline(always)]
    fn is_neighbour(&self, flow: &Flow, _: u32, endpoint: Option<&Endpoint>) -> bool {
        let endpoint = endpoint.map_or(ptr::null(), ptr::from_ref);
        egress_is_neighbour(self.skb.skb, flow, endpoint) != 0
    }
}

impl Owner for Packet {
    #[inline(always)]
    fn cgroup(&self, level: u32) -> u64 {
        // SAFETY: a call of a helper with the program's own context; 0 where there is no such ancestor.
        unsafe { bpf_skb_ancestor_cgroup_id(self.skb.skb, level as i32) }
    }

    #[inline(always)]
    fn socket(&self) -> Socket {
        let sk = self.sk();
        if sk.is_null() {
            return Socket::None;
        }
        // SAFETY: a socket that is not null, as the verifier sees.
        let sk = unsafe { bpf_sk_fullsock(sk) };
        if sk.is_null() {
            return Socket::None;
        }
        // SAFETY: a whole socket that is not null, as the verifier sees.
        let (family, kind, protocol, state) =
            unsafe { ((*sk).family, (*sk).type_, (*sk).protocol, (*sk).state) };
        match (family, kind) {
            (AF_INET | AF_INET6, SOCK_RAW) => Socket::Raw,
            // Ping sockets, which send echo requests with an identifier of the pod's choice.
            (AF_INET | AF_INET6, _) if protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6 => Socket::Raw,
            // Those of SCTP have the same state, and send for the associations that nobody has accepted yet (`sctp_accept`).
            (AF_INET | AF_INET6, SOCK_STREAM) if protocol == IPPROTO_TCP && state == BPF_TCP_LISTEN => {
                Socket::Listening
            }
            (AF_INET | AF_INET6, _) => Socket::Inet,
            // AF_PACKET, AF_XDP, and whatever else makes frames.
            _ => Socket::Packet,
        }
    }

    #[inline(always)]
    fn approval(&self) -> Option<&Approval> {
        // SAFETY: null or of the storage, see there.
        unsafe { self.kept.as_ref() }
    }

    #[inline(always)]
    fn claims<V: View, B: Bytes + ?Sized>(
        &self,
        _: &V,
        _: &B,
        flow: &Flow,
        _: &Meta,
        endpoint: Option<&Endpoint>,
        cgroup: u64,
    ) -> bool {
        let endpoint = endpoint.map_or(ptr::null(), ptr::from_ref);
        egress_claims(self.skb.skb, flow, endpoint, cgroup) != 0
    }

    #[inline(always)]
    fn replies<V: View>(&self, _: &V, flow: &Flow, _: &Meta, cgroup: u64) -> bool {
        egress_replies(self.skb.skb, self.hook as u32, flow, cgroup) != 0
    }
}

/// [`read`]: the number of the reason, 0 for none. A function of its own for the verifier, as those in `maps`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_read(skb: *mut __sk_buff, hook: u32, ethertype: u32, flow: *mut Flow) -> u32 {
    if flow.is_null() {
        return Reason::BadEntry as u32;
    }
    // SAFETY: the verifier holds every caller to memory of this size.
    match read(&Unread(Packet::new(skb, of_packets(hook))), ethertype as u16, unsafe { &mut *flow }) {
        None => 0,
        Some(reason) => reason as u32,
    }
}

/// [`is_neighbour`] of a frame: whether it is. As [`egress_read`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_is_neighbour(skb: *mut __sk_buff, flow: *const Flow, endpoint: *const Endpoint) -> u32 {
    if flow.is_null() {
        return 0;
    }
    let packet = Packet::new(skb, Hook::Veth);
    // SAFETY: the verifier holds every caller to memory of these sizes.
    let (flow, endpoint) = unsafe { (&*flow, endpoint.as_ref()) };
    u32::from(is_neighbour(&Unread(Packet::new(skb, Hook::Veth)), flow, packet.length(), endpoint))
}

/// [`claims`] of a frame: whether it does. As [`egress_read`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_claims(
    skb: *mut __sk_buff,
    flow: *const Flow,
    endpoint: *const Endpoint,
    cgroup: u64,
) -> u32 {
    if flow.is_null() {
        return 1;
    }
    let packet = Unread(Packet::new(skb, Hook::Veth));
    // SAFETY: the verifier holds every caller to memory of these sizes.
    let (flow, endpoint) = unsafe { (&*flow, endpoint.as_ref()) };
    u32::from(claims(&Kernel, &packet, flow, &packet.0.meta(), endpoint, cgroup))
}

/// [`reply`]: whether it is one. As [`egress_read`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_replies(skb: *mut __sk_buff, hook: u32, flow: *const Flow, cgroup: u64) -> u32 {
    if flow.is_null() {
        return 0;
    }
    let packet = Packet::of_socket(skb, of_packets(hook));
    // SAFETY: the verifier holds every caller to memory of this size.
    u32::from(reply(&Kernel, &packet, unsafe { &*flow }, &packet.meta(), cgroup))
}

/// The hook of a number; the verifier knows nothing of what a global function is given.
#[inline(always)]
pub fn of_packets(hook: u32) -> Hook {
    if hook == Hook::Veth as u32 { Hook::Veth } else { Hook::Socket }
}

/// The bytes of a packet, to be read here.
struct Unread(Packet);

impl Bytes for Unread {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.0.words(offset)
    }

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<[u32; N]> {
        self.0.head()
    }
}
