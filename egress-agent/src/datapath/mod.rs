//! The BPF side: the embedded object, its pins, its maps and its hook.
//!
//! Invariant: what is pinned goes on enforcing without us. Opening adopts pinned maps as they are; the first attach
//! comes after the first plan was applied; a new program is attached beside the old one before that one goes. Tested
//! by `tests/lifecycle.rs`.

pub mod events;
mod maps;
pub mod pins;

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::maps::{MapData, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType};
use aya::{Btf, Ebpf, EbpfLoader};
use egress_common::wire::ABI;
use egress_policy::plan::{Plan, State};

pub use maps::{CounterTotal, Fill, StepError};

use crate::pods::PodRoot;
use pins::Pins;

/// The BPF object, as `cargo xtask build-ebpf` made it.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(env!("EGRESS_EBPF_OBJECT"));

/// Name of the socket hook's program, in the object and in the kernel.
pub const SOCKET_PROGRAM: &str = "egress_socket";

/// The loaded object.
pub struct Datapath {
    pins: Pins,
    ebpf: Ebpf,
    maps: maps::Maps,
    attached: Option<Attached>,
    /// No other version's pins are left.
    alone: bool,
}

/// Where the socket hook is attached.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The pod root.
    pub root: PodRoot,
    /// The kernel's id of the program.
    pub program: u32,
}

impl Datapath {
    /// Loads the programs and opens the maps: pinned ones are adopted, others are made and pinned. Attaches nothing.
    ///
    /// # Errors
    /// The kernel refuses the object, or a pinned map is not of the expected shape.
    pub fn open(bpffs: &Path) -> anyhow::Result<Self> {
        let pins = Pins::new(bpffs, ABI);
        pins.make()?;
        let btf = Btf::from_sys_fs().context("cannot read the kernel's type information")?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        for name in maps::NAMES {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(OBJECT).context("the kernel refuses the BPF object")?;
        program(&mut ebpf)?.load().context("the kernel refuses the BPF program of the socket hook")?;
        let maps = maps::Maps::take(&mut ebpf, &pins)?;
        Ok(Self { pins, ebpf, maps, attached: None, alone: false })
    }

    /// What the maps say now, as of the last read or write.
    #[must_use]
    pub fn observed(&self) -> &State {
        self.maps.observed()
    }

    /// Carries out a plan, step by step. Stops where going on would not be safe; what was done stands.
    ///
    /// # Errors
    /// The steps that failed, in order.
    pub fn apply(&mut self, plan: &Plan) -> Result<(), Vec<StepError>> {
        self.maps.apply(plan)
    }

    /// Attaches the socket hook to a pod root and pins the link, in place of a link that may be pinned already: both run for a
    /// moment, and what either denies is denied.
    ///
    /// # Errors
    /// The kernel refuses, or the pin cannot be made; what was attached before still is.
    pub fn attach(&mut self, root: &PodRoot) -> anyhow::Result<()> {
        let cgroup =
            File::open(&root.path).with_context(|| format!("cannot open {}", root.path.display()))?;
        let program = program(&mut self.ebpf)?;
        let id = program.info().context("cannot ask for the program's id")?.id();
        // Links allow several programs by themselves; the flag for that is refused with them.
        let link = program
            .attach(cgroup, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)
            .with_context(|| format!("cannot attach to {}", root.path.display()))?;
        let link: FdLink = program
            .take_link(link)?
            .try_into()
            .context("the kernel has no BPF links for cgroups (5.7 and later do)")?;
        self.pins.replace_link(SOCKET_PROGRAM, link)?;
        self.attached = Some(Attached { root: root.clone(), program: id });
        Ok(())
    }

    /// Removes what agents of other versions pinned; only the first call looks.
    pub fn retire_other_versions(&mut self) {
        if !std::mem::replace(&mut self.alone, true) {
            self.pins.remove_other_versions();
        }
    }

    /// Looks whether the link that was pinned still is.
    ///
    /// # Errors
    /// It is gone, or another one: the hook counts as not attached from now on.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match &self.attached {
            Some(attached) if !self.pins.holds(SOCKET_PROGRAM, attached.program) => {
                self.attached = None;
                bail!("somebody removed the pinned link {}", self.pins.link(SOCKET_PROGRAM).display());
            }
            _ => Ok(()),
        }
    }

    /// Where the hook is attached, by this process.
    #[must_use]
    pub fn attached(&self) -> Option<&Attached> {
        self.attached.as_ref()
    }

    /// Entries and capacity of each policy map.
    #[must_use]
    pub fn fill(&self) -> Vec<Fill> {
        self.maps.fill()
    }

    /// Packets and bytes by action and reason, where there were any, summed over the CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> anyhow::Result<Vec<CounterTotal>> {
        self.maps.counters()
    }

    /// Events that found no room in the ring buffer.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn lost(&self) -> anyhow::Result<u64> {
        self.maps.lost()
    }

    /// The program of the socket hook, for `BPF_PROG_TEST_RUN` in tests and benchmarks.
    ///
    /// # Errors
    /// The object has no such program.
    pub fn socket_program(&mut self) -> anyhow::Result<&mut CgroupSkb> {
        program(&mut self.ebpf)
    }

    /// The ring buffer of events; only the first call gets it.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.maps.take_events()
    }
}

fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut CgroupSkb> {
    let Some(program) = ebpf.program_mut(SOCKET_PROGRAM) else {
        bail!("the BPF object has no program {SOCKET_PROGRAM}");
    };
    Ok(program.try_into()?)
}
