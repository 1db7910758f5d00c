//! The maps, and the [`View`] of them that `decide` reads.
//!
//! Invariant: only the agent writes configuration and policy maps; programs write `COUNTERS`, `LOST` and `EVENTS` alone.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use egress_common::View;
use egress_common::reason::COUNTER_SLOTS;
use egress_common::wire::{Addr, Config, Counter, Endpoint, FlowEvent, Row, RowKey};

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

/// One entry: what holds for the whole node.
#[btf_map(name = "egress_config")]
static CONFIG: Array<Config, 1> = Array::new();

/// Local pods by the id of their cgroup.
#[btf_map(name = "egress_endpoint")]
static ENDPOINTS: HashMap<u64, Endpoint, 16_384, SPARSE> = HashMap::new();

/// Identities of single addresses.
#[btf_map(name = "egress_ipcache")]
static IPCACHE: HashMap<Addr, u64, 524_288, SPARSE> = HashMap::new();

/// Identities of prefixes.
#[btf_map(name = "egress_cidrs")]
static CIDRS: LpmTrie<Addr, u64, 131_072> = LpmTrie::new();

/// What each policy says about each identity.
#[btf_map(name = "egress_rows")]
static ROWS: HashMap<RowKey, Row, 262_144, SPARSE> = HashMap::new();

/// Packets and bytes by action and reason.
#[btf_map(name = "egress_counters")]
pub static COUNTERS: PerCpuArray<Counter, { COUNTER_SLOTS as usize }> = PerCpuArray::new();

/// One entry: events that found no room in `EVENTS`.
#[btf_map(name = "egress_lost")]
pub static LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Denied and audited packets.
#[btf_map(name = "egress_events")]
pub static EVENTS: RingBuf<FlowEvent, { 1 << 20 }> = RingBuf::new();

/// The maps as `decide` reads them.
pub struct Kernel;

impl View for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn endpoint(&self, cgroup: u64) -> Option<&Endpoint> {
        // SAFETY: the reference lives no longer than this program run, and the memory stays the map's. An entry that the
        // agent deletes meanwhile may get another entry's bytes before we are done with it (since 6.1); every bit
        // pattern is a value, and plans delete last, when nothing leads to the entry any more.
        unsafe { ENDPOINTS.get(cgroup) }
    }

    #[inline(always)]
    fn address(&self, addr: &Addr) -> Option<u64> {
        // SAFETY: as above; the value is copied at once.
        unsafe { IPCACHE.get(addr) }.copied()
    }

    #[inline(always)]
    fn prefix(&self, addr: &Addr) -> Option<u64> {
        CIDRS.get(&Key::new(128, *addr)).copied()
    }

    #[inline(always)]
    fn row(&self, key: &RowKey) -> Option<&Row> {
        // SAFETY: as for endpoints.
        unsafe { ROWS.get(key) }
    }
}
