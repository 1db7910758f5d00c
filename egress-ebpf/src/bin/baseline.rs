//! What the benchmarks compare with: programs that do nothing, and a plain filter by prefix. Never part of a release.
//!
//! `plain_lpm` is what systemd's `IPAddressAllow=` with `IPAddressDeny=any` comes to, without its counters: one lookup of the
//! destination in a trie for each family.
#![no_std]
#![no_main]

use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::{btf_map, cgroup_skb, classifier};
use aya_ebpf::programs::{SkBuffContext, TcContext};

/// Return codes of `cgroup_skb` programs.
const DROP: i32 = 0;
const PASS: i32 = 1;
/// `TC_ACT_UNSPEC`, which is also `TCX_NEXT`.
const NEXT: i32 = -1;

/// Frame types, as the context has them: network byte order.
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();

/// Destinations that may be reached.
#[btf_map(name = "allowed_v4")]
static ALLOWED_V4: LpmTrie<[u8; 4], u32, 131_072> = LpmTrie::new();

/// Destinations that may be reached.
#[btf_map(name = "allowed_v6")]
static ALLOWED_V6: LpmTrie<[u8; 16], u32, 131_072> = LpmTrie::new();

/// The least that a socket hook costs.
#[cgroup_skb(egress)]
pub fn empty_socket(_: SkBuffContext) -> i32 {
    PASS
}

/// The least that a device hook costs.
#[classifier]
pub fn empty_device(_: TcContext) -> i32 {
    NEXT
}

/// Lets pass what leads to an allowed prefix.
#[cgroup_skb(egress)]
pub fn plain_lpm(ctx: SkBuffContext) -> i32 {
    // SAFETY: the kernel hands a valid context to the program; the verifier checks the read.
    let protocol = unsafe { (*ctx.skb.skb).protocol } as u16;
    let allowed = if protocol == IPV4 {
        ctx.load::<[u8; 4]>(16).is_ok_and(|to| ALLOWED_V4.get(&Key::new(32, to)).is_some())
    } else if protocol == IPV6 {
        ctx.load::<[u8; 16]>(24).is_ok_and(|to| ALLOWED_V6.get(&Key::new(128, to)).is_some())
    } else {
        false
    };
    if allowed { PASS } else { DROP }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel reads the licence of the object from this section.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
