//! The BPF side: the embedded object, its pins, its maps and its hooks.
//!
//! Invariant: what is pinned goes on enforcing without us. Opening adopts pinned maps as they are; the first attach
//! comes after the first plan was applied; a new program is attached beside the old one before that one goes. Tested
//! by `tests/lifecycle.rs`.

mod batch;
mod clsact;
pub mod events;
mod maps;
mod netfilter;
mod owners;
pub mod pins;
mod programs;
mod seen;
mod veth;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::maps::{MapData, RingBuf};
use aya::programs::{CgroupSkb, SchedClassifier};
use aya::{Btf, Ebpf, EbpfLoader};
use egress_common::wire::{ABI, Addr};
use egress_policy::plan::{Plan, State};

pub(crate) use maps::ENDPOINTS;
pub use maps::{Fill, StepError};
pub use programs::SOCKET_PROGRAM;
pub use seen::{CounterTotal, DenialTotal, Denied, Seen};
pub use veth::{Cover, DEVICES, VETH_PROGRAM, WITNESS_PROGRAM, detach_filters};

use crate::pods::PodRoot;
use owners::{OWNERS, Owners};
use pins::Pins;
use veth::Veths;

/// The BPF object, as `cargo xtask build-ebpf` made it.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(env!("EGRESS_EBPF_OBJECT"));

/// The maps whose fill is told.
pub const FILLED: [&str; 5] = {
    let [endpoints, ipcache, cidrs, rows] = maps::FILLED;
    [endpoints, ipcache, cidrs, rows, seen::INBOUND]
};

/// The kernel's description of its own types.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// What is loaded, and how.
#[derive(Clone, Copy, Debug)]
pub struct Loading<'a> {
    /// The BPF object.
    pub object: &'a [u8],
    /// The most entries of maps that are made anew, by name.
    pub map_entries: &'a [(String, u32)],
    /// Every socket keeps its verdict from its first packet on, so that all of them can be told by it.
    pub keep_always: bool,
    /// The veths get filters of tc, as on kernels that have no links for tc.
    pub filters: bool,
}

impl Default for Loading<'_> {
    fn default() -> Self {
        Self { object: OBJECT, map_entries: &[], keep_always: false, filters: false }
    }
}

/// The loaded object.
pub struct Datapath {
    pins: Pins,
    ebpf: Ebpf,
    maps: maps::Maps,
    seen: Seen,
    veths: Veths,
    owners: Owners,
    attached: Option<Attached>,
    /// No other version's pins are left.
    alone: bool,
    /// What the kernel refused, and what is not done without it.
    lacks: Vec<String>,
}

/// Where the hooks of the pod root are attached.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The pod root.
    pub root: PodRoot,
    /// Names of the programs and the kernel's ids of them; the socket hook first.
    pub programs: Vec<(&'static str, u32)>,
}

impl Datapath {
    /// Loads the programs and opens the maps: pinned ones are adopted, others are made and pinned. Attaches nothing.
    ///
    /// # Errors
    /// The kernel refuses the object or the socket hook, or a pinned map is not of the expected shape. What else it refuses is
    /// in [`Self::lacks`].
    pub fn open(bpffs: &Path) -> anyhow::Result<Self> {
        Self::open_with(bpffs, &Loading::default())
    }

    /// As [`Self::open`], with other things than the usual ones.
    ///
    /// # Errors
    /// As [`Self::open`]; or there is no such map.
    pub fn open_with(bpffs: &Path, loading: &Loading<'_>) -> anyhow::Result<Self> {
        let pins = Pins::new(bpffs, ABI);
        pins.make()?;
        let btf = Btf::from_sys_fs().context("cannot read the kernel's type information")?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        for name in maps::NAMES.iter().chain(&seen::NAMES).chain(&veth::NAMES).chain(&[OWNERS]) {
            loader.map_pin_path(name, pins.map(name));
        }
        for (name, entries) in loading.map_entries {
            let names = [maps::NAMES.as_slice(), &seen::NAMES, &veth::NAMES, &[OWNERS]].concat();
            if !names.contains(&name.as_str()) {
                bail!("there is no map {name}");
            }
            loader.map_max_entries(name, *entries);
        }
        if loading.keep_always {
            loader.override_global("KEEP_EVERY", &1_u64, true);
        }
        let hooks = netfilter::offsets(&std::fs::read(KERNEL_TYPES).unwrap_or_default());
        loader.override_global("NETFILTER", &hooks, true);
        let mut ebpf = loader.load(loading.object).context("the kernel refuses the BPF object")?;
        let mut lacks = programs::load(&mut ebpf, &btf)?;
        let veths = Veths::load(&mut ebpf, loading.filters, &mut lacks)?;
        let owners = Owners::take(&mut ebpf)?;
        let maps = maps::Maps::take(&mut ebpf, &pins)?;
        let seen = Seen::take(&mut ebpf)?;
        Ok(Self { pins, ebpf, maps, seen, veths, owners, attached: None, alone: false, lacks })
    }

    /// What the kernel refused, one sentence each.
    #[must_use]
    pub fn lacks(&self) -> &[String] {
        &self.lacks
    }

    /// The map of what is kept with sockets, which only the kernel can look into.
    ///
    /// # Errors
    /// It is not pinned any more.
    pub fn approvals(&self) -> anyhow::Result<MapData> {
        MapData::from_pin(self.pins.map(seen::APPROVALS)).context("cannot open the map of approvals")
    }

    /// What was seen of flows, for use beside this one.
    ///
    /// # Errors
    /// The pinned map cannot be opened.
    pub fn witnesses(&self) -> anyhow::Result<MapData> {
        MapData::from_pin(self.pins.map(seen::INBOUND)).context("cannot open the map of what was seen")
    }

    /// Takes note of how many entries that map has.
    pub fn count_witnesses(&mut self, number: usize) {
        self.seen.count_witnesses(number);
    }

    /// The reading end of what the programs of a traced object log.
    ///
    /// # Errors
    /// The object does not log.
    #[cfg(feature = "trace")]
    pub fn take_log<L: log::Log>(&mut self, logger: L) -> anyhow::Result<aya_log::EbpfLogger<L>> {
        aya_log::EbpfLogger::init_with_logger(&mut self.ebpf, logger).context("this BPF object logs nothing")
    }

    /// What the programs saw and counted.
    pub fn seen(&mut self) -> &mut Seen {
        &mut self.seen
    }

    /// What the programs counted.
    #[must_use]
    pub fn counted(&self) -> &Seen {
        &self.seen
    }

    /// Takes less memory for what is known of the maps, after many writes.
    pub fn pack(&mut self) {
        self.maps.pack();
    }

    /// What the maps say now, as of the last read or write.
    #[must_use]
    pub fn observed(&self) -> &State {
        self.maps.observed()
    }

    /// What the kernel's maps say now, all of it.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn read(&self) -> anyhow::Result<State> {
        self.maps.read().context("cannot read the maps")
    }

    /// What the kernel's maps say now of a pod and of addresses, with the rows that these lead to.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn read_of(&self, cgroup: Option<u64>, addresses: &[Addr]) -> anyhow::Result<State> {
        self.maps.read_of(cgroup, addresses).context("cannot read the maps")
    }

    /// Carries out a plan, step by step. Stops where going on would not be safe; what was done stands.
    ///
    /// # Errors
    /// The steps that failed, in order.
    pub fn apply(&mut self, plan: &Plan) -> Result<(), Vec<StepError>> {
        self.maps.apply(plan)
    }

    /// Attaches the hooks of the pod root and pins their links, each in place of a link that may be pinned already: both run for a
    /// moment, and what either denies is denied.
    ///
    /// # Errors
    /// The kernel refuses, or a pin cannot be made; what was attached before still is.
    pub fn attach(&mut self, root: &PodRoot) -> anyhow::Result<()> {
        let cgroup =
            File::open(&root.path).with_context(|| format!("cannot open {}", root.path.display()))?;
        let programs = programs::attach(&mut self.ebpf, &self.pins, &cgroup)
            .with_context(|| format!("cannot attach to {}", root.path.display()))?;
        self.attached = Some(Attached { root: root.clone(), programs });
        Ok(())
    }

    /// Has packets that come in to a pod of the node's network witnessed at its sockets, as no veth of its own is there.
    ///
    /// # Errors
    /// The kernel refuses, or the pin cannot be made.
    pub fn watch_arrivals(&mut self, cgroup: u64, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        programs::attach_arrival(&mut self.ebpf, &self.pins, &file, cgroup)
    }

    /// Attaches both veth hooks to a device of the node, by its index and name, as that of the pod of `cgroup`; of pods, those `stand`.
    ///
    /// # Errors
    /// The kernel refuses, or a pin cannot be made; the device may be half covered then, which shows as not covered.
    pub fn cover(
        &mut self,
        device: (u32, &str),
        cgroup: u64,
        stand: &BTreeSet<u64>,
    ) -> anyhow::Result<Cover> {
        self.veths.cover(&mut self.ebpf, &self.pins, device, cgroup, stand)
    }

    /// Whether an agent, be it an earlier one, has said that the veth hook judges all frames of the pod of `cgroup`.
    #[must_use]
    pub fn trusts(&self, cgroup: u64) -> bool {
        self.veths.trusts(cgroup)
    }

    /// Says whether the veth hook judges all frames of the pod of `cgroup`: only then may it make packet sockets, if a policy selects it.
    ///
    /// # Errors
    /// The map refuses it.
    pub fn trust_frames(&mut self, cgroup: u64, judged: bool) -> anyhow::Result<()> {
        self.veths.trust(cgroup, judged)
    }

    /// Says whose the addresses on this node are: the cgroup ids of pods, or `OWNER_NODE`. Of others nothing is known.
    ///
    /// # Errors
    /// The map refuses it.
    pub fn own(&mut self, addresses: &BTreeMap<Addr, u64>) -> anyhow::Result<()> {
        self.owners.set(addresses)
    }

    /// Whether an agent, be it an earlier one, has watched what comes in to the sockets of a pod of the node's network.
    #[must_use]
    pub fn watches(&self, cgroup: u64) -> bool {
        self.pins.has_numbered(programs::ARRIVAL_PROGRAM, cgroup)
    }

    /// Whether a device is covered for a pod, by this process.
    #[must_use]
    pub fn covers(&self, index: u32, cgroup: u64) -> bool {
        self.veths.covers(index, cgroup)
    }

    /// Whether an agent has covered a device for this pod, be it an earlier one.
    #[must_use]
    pub fn knows(&self, index: u32, cgroup: u64) -> bool {
        self.veths.knows(index, cgroup)
    }

    /// Lets go of devices that are gone, and of what was denied of pods other than these.
    pub fn forget_gone(&mut self, cgroups: &BTreeSet<u64>) {
        self.veths.forget_gone(&self.pins, cgroups);
        self.pins.keep_numbered(programs::ARRIVAL_PROGRAM, |cgroup| cgroups.contains(&cgroup));
        self.seen.forget_all_but(cgroups);
    }

    /// Removes what agents of other versions pinned; only the first call looks.
    pub fn retire_other_versions(&mut self) {
        if !std::mem::replace(&mut self.alone, true) {
            self.pins.remove_other_versions();
        }
    }

    /// Looks whether the links that were pinned still are.
    ///
    /// # Errors
    /// One is gone, or another one: the hooks count as not attached from now on.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let gone = self.attached.iter().flat_map(|attached| &attached.programs);
        let gone = gone.copied().find(|(name, id)| !self.pins.holds(name, *id));
        if let Some((name, _)) = gone {
            self.attached = None;
            bail!("somebody removed the pinned link {}", self.pins.link(name).display());
        }
        self.veths.check(&self.pins)
    }

    /// Where the hook is attached, by this process.
    #[must_use]
    pub fn attached(&self) -> Option<&Attached> {
        self.attached.as_ref()
    }

    /// Entries and capacity of each map that can be full.
    #[must_use]
    pub fn fill(&self) -> Vec<Fill> {
        let mut fill = self.maps.fill();
        fill.push(self.seen.fill());
        fill
    }

    /// The program of the socket hook, for `BPF_PROG_TEST_RUN` in tests and benchmarks.
    ///
    /// # Errors
    /// The object has no such program.
    pub fn socket_program(&mut self) -> anyhow::Result<&mut CgroupSkb> {
        programs::program(&mut self.ebpf, SOCKET_PROGRAM)
    }

    /// The program that judges what leaves a pod by its veth, as [`Self::socket_program`].
    ///
    /// # Errors
    /// The object has no such program.
    pub fn veth_program(&mut self) -> anyhow::Result<&mut SchedClassifier> {
        programs::program(&mut self.ebpf, VETH_PROGRAM)
    }

    /// Says whose device this is, without attaching anything, for tests and benchmarks.
    ///
    /// # Errors
    /// The map refuses it.
    pub fn claim(&mut self, index: u32, cgroup: u64) -> anyhow::Result<()> {
        self.veths.claim(index, cgroup)
    }

    /// The ring buffer of events; only the first call gets it.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.seen.take_events()
    }
}
