//! The programs that are compared with: empty ones, and a plain filter by prefix on a pod's cgroup.

use std::fs::{self, File};
use std::path::Path;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::LpmTrie;
use aya::maps::lpm_trie::Key;
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, SchedClassifier};

use crate::destinations::Destinations;

/// The loaded object; what it has attached goes with it.
#[derive(Debug)]
pub struct Baseline {
    ebpf: Ebpf,
}

impl Baseline {
    /// Loads its programs, and fills the tries.
    pub fn load(object: &Path, destinations: &Destinations) -> anyhow::Result<Self> {
        let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
        let ebpf = Ebpf::load(&bytes).context("the kernel refuses the object of the baseline")?;
        let mut baseline = Self { ebpf };
        for name in ["empty_socket", "plain_lpm"] {
            baseline.socket_program(name)?.load()?;
        }
        baseline.device_program()?.load()?;
        let map = baseline.ebpf.map_mut("allowed_v4").context("no map of allowed destinations")?;
        let mut allowed: LpmTrie<_, [u8; 4], u32> = map.try_into()?;
        for (prefix, bits) in destinations.prefixes() {
            allowed.insert(&Key::new(u32::from(bits), prefix.octets()), 1, 0)?;
        }
        Ok(baseline)
    }

    /// A program of a socket hook.
    pub fn socket_program(&mut self, name: &str) -> anyhow::Result<&mut CgroupSkb> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// The empty program of a device hook.
    pub fn device_program(&mut self) -> anyhow::Result<&mut SchedClassifier> {
        Ok(self.ebpf.program_mut("empty_device").context("no program empty_device")?.try_into()?)
    }

    /// Attaches the filter to a cgroup.
    pub fn filter(&mut self, cgroup: &Path) -> anyhow::Result<()> {
        let cgroup = File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
        let program = self.socket_program("plain_lpm")?;
        program.attach(cgroup, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)?;
        Ok(())
    }
}
