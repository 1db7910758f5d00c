//! Keys and values of every map, and the event: what kernel and agent tell each other.
//!
//! Integers are in host byte order, addresses in network byte order, ports in host byte order. No type has
//! implicit padding, and none holds a `bool`, an `enum` or an `Option`: a value read from a map is untrusted and is
//! turned into those by a function that can fail. Sizes are asserted below, for both builds.
//!
//! Invariant: the all-zero value of every type denies.

use core::ptr;

mod kernel;

pub use kernel::*;

/// Version of everything in this module. Pins live in a directory named after it; change it with any layout
/// or meaning here.
pub const ABI: u32 = 7;

/// An IPv6 address, or an IPv4 address in IPv4-mapped form (RFC 4291, section 2.5.5.2), in network byte order. Aligned, so that
/// the kernel's programs read it in two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// The mapped form of an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The address in four words as they lie in a packet.
    #[must_use]
    #[inline(always)]
    pub const fn of(words: [u32; 4]) -> Self {
        let [a, b, c, d] =
            [words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes()];
        let mut i = 0;
        let mut bytes = [0; 16];
        while i < 4 {
            (bytes[i], bytes[4 + i], bytes[8 + i], bytes[12 + i]) = (a[i], b[i], c[i], d[i]);
            i += 1;
        }
        Self(bytes)
    }

    /// The word at an index below four, as it lies in a packet.
    #[inline(always)]
    pub(crate) const fn word(&self, index: usize) -> u32 {
        let b = &self.0;
        let at = index * 4;
        u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
    }

    /// The first eight bytes, for comparisons.
    #[inline(always)]
    pub(crate) const fn high(&self) -> u64 {
        let b = &self.0;
        u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
    }

    /// The last eight bytes, for comparisons.
    #[inline(always)]
    pub(crate) const fn low(&self) -> u64 {
        let b = &self.0;
        u64::from_be_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]])
    }

    /// Whether this is the mapped form of an IPv4 address (`::ffff:0:0/96`).
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.high() == 0 && self.low() >> 32 == 0xffff
    }

    /// Whether this is all zero, which no pod has as its address; used for "none" in an [`Endpoint`].
    #[must_use]
    #[inline(always)]
    pub const fn is_zero(&self) -> bool {
        self.high() == 0 && self.low() == 0
    }

    /// 127.0.0.0/8 (RFC 1122, section 3.2.1.3) or `::1` (RFC 4291, section 2.5.3).
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        self.high() == 0 && (self.low() >> 24 == 0xff_ff7f || self.low() == 1)
    }

    /// 0.0.0.0/8 ("this network", RFC 1122, section 3.2.1.3) or `::`.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.high() == 0 && (self.low() >> 24 == 0xff_ff00 || self.low() == 0)
    }

    /// `fe80::/10` or `ff02::/16`, which no router forwards (RFC 4291, sections 2.5.6 and 2.7).
    #[must_use]
    #[inline(always)]
    pub const fn is_link_scope(&self) -> bool {
        self.high() >> 54 == 0x3fa || self.high() >> 48 == 0xff02
    }

    /// `ff02::1:ff00:0/104`, by which neighbours are asked for (RFC 4291, section 2.7.1).
    #[must_use]
    #[inline(always)]
    pub const fn is_solicited_node(&self) -> bool {
        self.high() == 0xff02 << 48 && self.low() >> 24 == 0x1ff
    }

    /// `ff02::/112`: groups of the link of 16 bits, which most that are assigned are (RFC 4291, section 2.7.1).
    #[must_use]
    #[inline(always)]
    pub const fn is_short_link_group(&self) -> bool {
        self.high() == 0xff02 << 48 && self.low() >> 16 == 0
    }

    /// Equality by two words, which the verifier follows more cheaply than a call of `memcmp`.
    #[must_use]
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.high() == other.high() && self.low() == other.low()
    }
}

/// A value of a hash map, with its key once more before it. The kernel gives the memory of an entry that goes to the next one that comes
/// at once, whoever still reads it (`kernel/bpf/memalloc.c`), and writes keys and values from their beginning on: what was read
/// is of this key where the key is read after it, and is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Keyed<K, V> {
    /// The key.
    pub key: K,
    /// What is said of it.
    pub value: V,
}

/// Reads a part of an entry here and now: a compiler keeps the order of such reads, and so do processors of the x86 kind. What becomes
/// of the entry is found out by reading its key last.
#[inline(always)]
#[must_use]
pub fn read<T: Copy>(part: &T) -> T {
    // SAFETY: a reference can be read.
    unsafe { ptr::read_volatile(part) }
}

/// [`Config::unknown`]: unknown pods reach nothing but loopback.
pub const UNKNOWN_DENY: u32 = 0;
/// [`Config::unknown`]: unknown pods are judged by the rows of [`Config::unknown_policy`].
pub const UNKNOWN_POLICY: u32 = 1;
/// [`Config::unknown`]: unknown pods pass.
pub const UNKNOWN_ALLOW: u32 = 2;

/// The one entry of map `CONFIG`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`ABI`]; any other value, zero above all, denies everything.
    pub abi: u32,
    /// Level of the pod root in the cgroup v2 tree (the hierarchy's root is 0). Pods sit one level (Guaranteed) or two
    /// levels (Burstable, BestEffort) below.
    pub pod_root_level: u32,
    /// Counts completed applies; copied into events.
    pub revision: u64,
    /// The policy of pods that are not known, where `unknown` says so.
    pub unknown_policy: u64,
    /// One of the `UNKNOWN_` constants; any other value denies.
    pub unknown: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`Endpoint::state`]: no policy selects the pod; it is not touched.
pub const STATE_UNSELECTED: u32 = 1;
/// [`Endpoint::state`]: the pod may do what the rows of its policy allow.
pub const STATE_ISOLATED: u32 = 2;
/// [`Endpoint::state`]: a policy that selects the pod is invalid; everything but loopback is denied.
pub const STATE_INVALID: u32 = 3;

/// [`Endpoint::flags`]: what the policy denies passes with an event.
pub const FLAG_AUDIT: u32 = 1;
/// [`Endpoint::flags`]: the pod shares the node's network namespace, so its source address is not judged.
pub const FLAG_HOST_NETWORK: u32 = 2;

/// Most containers of a pod that are proxies of a lock at the same time. What does not fit counts as no proxy.
pub const PROXIES: usize = 4;

/// A container that may send more than the others of its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Proxy {
    /// Id of its cgroup; 0 for none.
    pub cgroup: u64,
    /// First half of the keys of the rows that apply to it.
    pub policy: u64,
}

/// A value of map `ENDPOINTS`, [`Keyed`] by the id of the pod's cgroup (`u64`). One entry holds all that is said about a pod
/// and its containers, so that it changes in one write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// First half of the keys of the rows that apply; under a lock, to every container that is none of `proxies`.
    pub policy: u64,
    /// First half of the keys of the rows that say what the lock does not cover; 0 where there is no lock.
    pub lock: u64,
    /// The proxies of the lock; the others are zero.
    pub proxies: [Proxy; PROXIES],
    /// One of the `STATE_` constants; any other value denies.
    pub state: u32,
    /// Union of the `FLAG_` constants.
    pub flags: u32,
    /// The pod's IPv4 address in mapped form, zero for none.
    pub v4: Addr,
    /// The pod's IPv6 address, zero for none.
    pub v6: Addr,
}

impl Endpoint {
    /// The pod's address of an IP version, zero for none.
    #[must_use]
    #[inline(always)]
    pub const fn own(&self, version: u8) -> &Addr {
        if version == 4 { &self.v4 } else { &self.v6 }
    }
}

/// Key of map `CIDRS`: the data of `struct bpf_lpm_trie_key`, addresses in mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// Leading bits that count, 0 to 128; an IPv4 prefix length plus 96.
    pub bits: u32,
    /// The address; bits after `bits` are zero.
    pub addr: Addr,
}

/// The identity of an address that neither `IPCACHE` nor `CIDRS` knows.
pub const IDENTITY_WORLD: u64 = 1;

/// The policy of rows that allow nobody anything: their ports are those at which packets to an address of a pod or node do not end, as
/// services, or ports of nodes, lead on from there ([`witness::arrived`](crate::witness::arrived)).
pub const POLICY_SENT_ON: u64 = 1;

/// Key of map `ROWS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct RowKey {
    /// The policy of the sending pod.
    pub policy: u64,
    /// The identity of the destination.
    pub identity: u64,
}

/// Most entries of one row. What does not fit is left out by the compiler, with a diagnostic, and thereby denied.
pub const ROW_ENTRIES: usize = 64;

/// [`Ports::verdict`]: let it pass.
pub const VERDICT_ALLOW: u8 = 1;
/// [`Ports::verdict`]: let it pass with an audit event: every policy that denies it only audits.
pub const VERDICT_AUDIT: u8 = 2;

/// [`Ports::protocol`]: every protocol that the parser accepts, with or without ports.
pub const PROTOCOL_ANY: u8 = 0;

/// A port range of one protocol in a [`Row`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Ports {
    /// IANA protocol number, or [`PROTOCOL_ANY`], where the ports do not count.
    pub protocol: u8,
    /// One of the `VERDICT_` constants; any other value denies.
    pub verdict: u8,
    /// Index of the rule within the policy, for provenance; `u16::MAX` where there are more.
    pub rule: u16,
    /// First destination port, host byte order.
    pub low: u16,
    /// Last destination port, host byte order.
    pub high: u16,
}

/// A value of map `ROWS`, [`Keyed`]: what a policy says about an identity. Everything not listed is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Row {
    /// Number of entries that count; more than [`ROW_ENTRIES`] denies.
    pub len: u32,
    /// Zero.
    pub reserved: u32,
    /// The entries; at most one of them matches a protocol and port, [`PROTOCOL_ANY`] counting last.
    pub entries: [Ports; ROW_ENTRIES],
}

impl Default for Row {
    fn default() -> Self {
        Self { len: 0, reserved: 0, entries: [Ports::default(); ROW_ENTRIES] }
    }
}

impl Row {
    /// A row of these entries; `None` when they are more than [`ROW_ENTRIES`].
    #[must_use]
    pub fn new(entries: &[Ports]) -> Option<Self> {
        let mut row = Self { len: u32::try_from(entries.len()).ok()?, ..Self::default() };
        row.entries.get_mut(..entries.len())?.copy_from_slice(entries);
        Some(row)
    }

    /// The entries that count.
    #[must_use]
    pub fn ports(&self) -> &[Ports] {
        self.entries.get(..self.len as usize).unwrap_or(&[])
    }
}

/// A value of map `DEVICES`, keyed by the index of the node's end of a pod's veth (`u32`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Device {
    /// The index once more, as in [`Keyed`].
    pub index: u32,
    /// Zero.
    pub reserved: u32,
    /// Id of the pod's cgroup, the key of its [`Endpoint`].
    pub cgroup: u64,
}

/// A value of map `OWNERS`, [`Keyed`] by an [`Addr`], where that is one of the node itself: the id of the cgroup of all, which no pod has.
/// Of a pod on the node it is the id of the pod's cgroup.
pub const OWNER_NODE: u64 = 1;

const _: () = {
    assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 8);
    assert!(size_of::<Config>() == 4 + 4 + 8 + 8 + 4 + 4);
    assert!(size_of::<Proxy>() == 8 + 8);
    assert!(size_of::<Endpoint>() == 8 + 8 + 16 * PROXIES + 4 + 4 + 16 + 16);
    assert!(size_of::<RowKey>() == 8 + 8);
    assert!(size_of::<Ports>() == 1 + 1 + 2 + 2 + 2);
    assert!(size_of::<Row>() == 4 + 4 + 8 * ROW_ENTRIES);
    assert!(size_of::<Counter>() == 8 + 8);
    assert!(size_of::<Device>() == 4 + 4 + 8);
    assert!(size_of::<Keyed<u64, Endpoint>>() == 8 + size_of::<Endpoint>());
    assert!(size_of::<Keyed<RowKey, Row>>() == size_of::<RowKey>() + size_of::<Row>());
    assert!(size_of::<Keyed<Addr, u64>>() == 16 + 8);
    assert!(size_of::<WitnessKey>() == 16 + 4 + 4);
    assert!(size_of::<Witness>() == 8 + 8 + 16 + 2 + 2 + 1 + 1 + 2);
    assert!(size_of::<Approval>() == 8 + 8 + 2 * 16 + 2 + 2 + 4 + 8);
    assert!(size_of::<Process>() == 4 + 4 + 16);
    assert!(size_of::<DenialKey>() == 8 + 4 + 4);
    assert!(size_of::<Denial>() == 6 * 8 + size_of::<Addr>() + 8);
    assert!(size_of::<FlowEvent>() == 7 * 8 + 2 * 16 + 2 * 4 + 24 + 3 * 2 + 5 + 5);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Addr, Approval, Config, Counter, Denial, DenialKey, Device, Endpoint, FlowEvent, Keyed, Process, Row,
        RowKey, Witness, WitnessKey,
    };

    macro_rules! pod {
        ($($name:ty),+) => {
            // SAFETY: `repr(C)` or `repr(transparent)` of integers and byte arrays, every bit pattern is valid, and the
            // size asserts above leave no room for padding.
            $(unsafe impl aya::Pod for $name {})+
        };
    }
    pod!(
        Addr,
        Approval,
        Config,
        Counter,
        Denial,
        DenialKey,
        Device,
        FlowEvent,
        Process,
        RowKey,
        Witness,
        WitnessKey,
        Keyed<u64, Endpoint>,
        Keyed<Addr, u64>,
        Keyed<RowKey, Row>
    );
}
