//! The maps, and the [`View`] of them that `decide` reads.
//!
//! Invariant: only the agent writes configuration, devices and policy maps; programs write what they saw, counted and report.

use core::ptr;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use egress_common::decide::{Said, look_up};
use egress_common::reason::COUNTER_SLOTS;
use egress_common::wire::{
    Addr, Approval, Config, Counter, Denial, DenialKey, Device, Endpoint, FlowEvent, Keyed, Process, Row,
    RowKey, Witness, WitnessKey, read,
};
use egress_common::witness::{Found, Half, find};
use egress_common::{Flow, View};

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

/// One entry: what holds for the whole node.
#[btf_map(name = "egress_config")]
static CONFIG: Array<Config, 1> = Array::new();

/// Local pods by the id of their cgroup.
#[btf_map(name = "egress_endpoint")]
static ENDPOINTS: HashMap<u64, Keyed<u64, Endpoint>, 16_384, SPARSE> = HashMap::new();

/// Identities of single addresses.
#[btf_map(name = "egress_ipcache")]
static IPCACHE: HashMap<Addr, Keyed<Addr, u64>, 524_288, SPARSE> = HashMap::new();

/// Identities of prefixes.
#[btf_map(name = "egress_cidrs")]
static CIDRS: LpmTrie<Addr, u64, 131_072> = LpmTrie::new();

/// What each policy says about each identity.
#[btf_map(name = "egress_rows")]
static ROWS: HashMap<RowKey, Keyed<RowKey, Row>, 262_144, SPARSE> = HashMap::new();

/// Pods by the index of the node's end of their veth.
#[btf_map(name = "egress_devices")]
static DEVICES: HashMap<u32, Device, 16_384, SPARSE> = HashMap::new();

/// Pods all of whose devices have the veth hook, by the id of their cgroup.
#[btf_map(name = "egress_covered")]
static COVERED: HashMap<u64, u32, 16_384, SPARSE> = HashMap::new();

/// Whose an address is, of those on this node.
#[btf_map(name = "egress_owners")]
static OWNERS: HashMap<Addr, Keyed<Addr, u64>, 65_536, SPARSE> = HashMap::new();

/// What was seen coming in, by local address and slot.
#[btf_map(name = "egress_inbound")]
pub static WITNESSES: HashMap<WitnessKey, Witness, 524_288, SPARSE> = HashMap::new();

/// The verdict of the flow that a socket sent last.
#[btf_map(name = "egress_approval")]
pub static APPROVALS: SkStorage<Approval> = SkStorage::new();

/// The process that used a socket last.
#[btf_map(name = "egress_process")]
pub static PROCESSES: SkStorage<Process> = SkStorage::new();

/// What each pod was denied, and how many events told of it.
#[btf_map(name = "egress_denials")]
pub static DENIALS: PerCpuHashMap<DenialKey, Denial, 65_536, SPARSE> = PerCpuHashMap::new();

/// Packets and bytes by hook, action and reason.
#[btf_map(name = "egress_counters")]
pub static COUNTERS: PerCpuArray<Counter, { COUNTER_SLOTS as usize }> = PerCpuArray::new();

/// One entry: events that found no room in `EVENTS`.
#[btf_map(name = "egress_lost")]
pub static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Denied and audited packets.
#[btf_map(name = "egress_events")]
pub static EVENTS: RingBuf<FlowEvent, { 1 << 20 }> = RingBuf::new();

/// One entry: new sockets that the kernel has asked security modules about, while the agent found out whether it does.
#[btf_map(name = "egress_asked")]
pub static ASKED: Array<u64, 1> = Array::new();

/// The maps as `decide` reads them.
pub struct Kernel;

/// Looks once more where nothing is found: an entry that is being replaced can be missed, when its memory is already another one's and
/// still leads on through its own bucket. The new entry is there by then.
#[inline(always)]
fn again<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    match look() {
        None => look(),
        found => found,
    }
}

/// Whether an entry whose value was read is the one of this address.
#[inline(always)]
fn still(held: &Addr, addr: &Addr) -> bool {
    let words = |addr: &Addr| {
        // SAFETY: an address is as large as these, and aligned like them.
        let [high, low] = unsafe { &*ptr::from_ref(addr).cast::<[u64; 2]>() };
        (read(high), read(low))
    };
    words(held) == words(addr)
}

impl Kernel {
    /// Whether the veth hook judges the frames of all the pod's devices.
    #[inline(always)]
    pub fn covered(&self, cgroup: u64) -> bool {
        // SAFETY: as for endpoints; the value is not read.
        unsafe { COVERED.get(cgroup) }.is_some()
    }

    /// Whether what goes to this address is the pod's to receive: a neighbour on the link can send it anything. While no address
    /// of the pod is known, everything is.
    #[inline(always)]
    pub fn receives(&self, cgroup: u64, flow: &Flow) -> bool {
        match self.endpoint(cgroup) {
            Some((held, endpoint)) => {
                let own = endpoint.own(flow.version);
                let receives = own.is_zero() || own.same(&flow.destination);
                receives && read(held) == cgroup
            }
            None => true,
        }
    }
}

impl View for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn endpoint(&self, cgroup: u64) -> Option<(&u64, &Endpoint)> {
        // SAFETY: the reference lives no longer than this program run, and the memory stays the map's. What the agent replaces or deletes
        // meanwhile may get another entry's bytes before we are done with it: every bit pattern is a value, and the key tells.
        let found = unsafe { ENDPOINTS.get(cgroup) }?;
        // Volatile, or the compiler would count on from what may be null, which verifiers do not allow.
        // SAFETY: as above.
        let found = unsafe { ptr::read_volatile(&raw const found) };
        Some((&found.key, &found.value))
    }

    #[inline(always)]
    fn address(&self, addr: &Addr) -> Option<u64> {
        // Kernels before 6.3 or so take keys from the stack, but not from memory that a global function was given. Volatile, as the
        // compiler would do without the copy.
        // SAFETY: a reference, read; and as above.
        let found = unsafe {
            let key = &ptr::read_volatile(addr);
            again(|| IPCACHE.get(key))
        }?;
        let identity = read(&found.value);
        // No identity is 0, and no row is about it.
        Some(if still(&found.key, addr) { identity } else { 0 })
    }

    #[inline(always)]
    fn prefix(&self, addr: &Addr) -> Option<u64> {
        CIDRS.get(&Key::new(128, *addr)).copied()
    }

    #[inline(always)]
    fn row(&self, key: &RowKey) -> Option<(&RowKey, &Row)> {
        // SAFETY: as for endpoints.
        unsafe { ROWS.get(key) }.map(|found| (&found.key, &found.value))
    }

    #[inline(always)]
    fn said(&self, key: &RowKey, protocol: u8, port: u16) -> Said {
        let said = egress_said(key.policy, key.identity, u32::from(protocol), u32::from(port));
        Said { verdict: said as u8, rule: (said >> 16) as u16 }
    }

    #[inline(always)]
    fn found(&self, half: &Half, cgroup: u64) -> Found {
        let found = egress_found(half, cgroup);
        Found { kind: found as u8, recent: found >> 8 != 0 }
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<u64> {
        // SAFETY: as for endpoints.
        let found = unsafe { DEVICES.get(ifindex) }?;
        let cgroup = read(&found.cgroup);
        if read(&found.index) == ifindex { Some(cgroup) } else { None }
    }

    #[inline(always)]
    fn owner(&self, addr: &Addr) -> u64 {
        // SAFETY: as for `address`.
        let found = unsafe {
            let key = &ptr::read_volatile(addr);
            again(|| OWNERS.get(key))
        };
        match found {
            Some(found) => {
                let owner = read(&found.value);
                if still(&found.key, addr) { owner } else { u64::MAX }
            }
            None => 0,
        }
    }

    #[inline(always)]
    fn witness(&self, key: &WitnessKey) -> Option<&Witness> {
        // SAFETY: as for endpoints.
        unsafe { WITNESSES.get(key) }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a call of a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}

// Functions of their own for the kernel's verifier, which follows a global function once and not once per way to it. They
// take and give plain numbers and pointers, as it wants.

/// [`look_up`]: the verdict in the low byte, the rule in the high half.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_said(policy: u64, identity: u64, protocol: u32, port: u32) -> u32 {
    let said = look_up(&Kernel, &RowKey { policy, identity }, protocol as u8, port as u16);
    u32::from(said.verdict) | u32::from(said.rule) << 16
}

/// [`find`]: the kind in the low byte, above it whether it is recent.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_found(half: *const Half, cgroup: u64) -> u32 {
    if half.is_null() {
        return 0;
    }
    // SAFETY: the verifier holds every caller to memory of this size.
    let found = find(&Kernel, unsafe { &*half }, cgroup);
    u32::from(found.kind) | u32::from(found.recent) << 8
}
