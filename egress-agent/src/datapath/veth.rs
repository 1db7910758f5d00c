//! The hooks on the node's ends of pods' veths.
//!
//! Invariant: a device that has the hooks has an entry that says whose it is, written first and removed last; without it
//! every frame is denied. Tested by `tests/threats/`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::{HashMap as BpfHash, MapData, MapError};
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use egress_common::wire::Device;

use super::clsact;
use super::pins::Pins;
use super::programs::{first_line, program};

/// What judges the frames that leave a pod.
pub const VETH_PROGRAM: &str = "egress_veth";
/// What witnesses the packets that come in.
pub const WITNESS_PROGRAM: &str = "egress_witness";
/// The map of devices.
pub const DEVICES: &str = "egress_devices";
/// The map of pods all of whose devices are covered.
const COVERED: &str = "egress_covered";
/// Both; each is pinned under its name.
pub(super) const NAMES: [&str; 2] = [DEVICES, COVERED];

/// Where each of the two is attached. tc's ingress is what comes to the node from the pod.
const HOOKS: [(&str, TcAttachType); 2] =
    [(WITNESS_PROGRAM, TcAttachType::Egress), (VETH_PROGRAM, TcAttachType::Ingress)];

/// What came of covering a device for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// No agent had covered it for this pod before.
    Fresh,
    /// This agent has already.
    Stands,
    /// An earlier agent had.
    Again,
    /// It is that of another pod, which stands: a process of this one is a guest in the other's network.
    Anothers,
}

/// The devices that are covered.
pub(super) struct Veths {
    devices: BpfHash<MapData, u32, Device>,
    /// Pods that may have packet sockets, by their cgroups, as in the kernel.
    pods: BpfHash<MapData, u64, u32>,
    trusted: BTreeSet<u64>,
    /// By this process: the pod's cgroup, and the ids of the programs where links hold them.
    covered: BTreeMap<u32, (u64, Vec<(String, u32)>)>,
    /// The programs are loaded.
    loaded: bool,
    /// The kernel has links for tc (6.6 and later), and they are wanted; known after the first device.
    tcx: Option<bool>,
}

impl Veths {
    /// Loads the programs and opens the map; adds what the kernel lacks. `filters`: does without links for tc, as on kernels that
    /// have none.
    pub(super) fn load(ebpf: &mut Ebpf, filters: bool, lacks: &mut Vec<String>) -> anyhow::Result<Self> {
        let mut loaded = true;
        for (name, _) in HOOKS {
            if let Err(error) = program::<SchedClassifier>(ebpf, name)?.load() {
                loaded = false;
                lacks.push(format!(
                    "the kernel refuses {name}: pods are judged by the socket hook alone ({})",
                    first_line(&error)
                ));
            }
        }
        let devices =
            ebpf.take_map(DEVICES).with_context(|| format!("the BPF object has no map {DEVICES}"))?;
        let pods = ebpf.take_map(COVERED).with_context(|| format!("the BPF object has no map {COVERED}"))?;
        let pods: BpfHash<_, u64, u32> = pods.try_into()?;
        Ok(Self {
            devices: devices.try_into()?,
            trusted: pods.keys().flatten().collect(),
            pods,
            covered: BTreeMap::new(),
            loaded,
            tcx: filters.then_some(false),
        })
    }

    pub(super) fn covers(&self, index: u32, cgroup: u64) -> bool {
        self.covered.get(&index).is_some_and(|(of, _)| *of == cgroup)
    }

    /// Whether an agent, be it an earlier one, has said of a pod that all of its frames are judged.
    pub(super) fn trusts(&self, cgroup: u64) -> bool {
        self.trusted.contains(&cgroup)
    }

    /// Whether an agent has covered a device for this pod.
    pub(super) fn knows(&self, index: u32, cgroup: u64) -> bool {
        self.devices.get(&index, 0).ok() == Some(Device { index, reserved: 0, cgroup })
    }

    /// Writes whose device it is.
    pub(super) fn claim(&mut self, index: u32, cgroup: u64) -> anyhow::Result<()> {
        self.devices
            .insert(index, Device { index, reserved: 0, cgroup }, 0)
            .context("cannot write whose device it is")
    }

    /// Whether all frames of the pod of `cgroup` are judged, so that it may make packet sockets.
    pub(super) fn trust(&mut self, cgroup: u64, judged: bool) -> anyhow::Result<()> {
        if self.trusted.contains(&cgroup) == judged {
            return Ok(());
        }
        if judged {
            self.pods.insert(cgroup, 1, 0).context("cannot write that the pod is covered")?;
            self.trusted.insert(cgroup);
        } else {
            match self.pods.remove(&cgroup) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error).context("cannot write that the pod is not covered"),
            }
            self.trusted.remove(&cgroup);
        }
        Ok(())
    }

    /// Covers a device for a pod. It stays that of the first one, for as long as that is one of the pods that `stand`: a process of
    /// another one may enter its network, and it may leave that itself.
    pub(super) fn cover(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        (index, name): (u32, &str),
        cgroup: u64,
        stand: &BTreeSet<u64>,
    ) -> anyhow::Result<Cover> {
        if !self.loaded {
            bail!("the kernel refuses the programs for it");
        }
        let known = match self.devices.get(&index, 0) {
            Ok(device) => Some(device).filter(|device| device.index == index),
            Err(MapError::KeyNotFound) => None,
            Err(error) => return Err(error).context("cannot read whose device it is"),
        };
        let again = match known.map(|device| device.cgroup) {
            Some(owner) if owner == cgroup => true,
            Some(owner) if stand.contains(&owner) => return Ok(Cover::Anothers),
            _ => false,
        };
        if !again {
            self.claim(index, cgroup)?;
        }
        let come_of = if again { Cover::Again } else { Cover::Fresh };
        // The hooks stay where they are when a pod that is gone leaves its device to another one.
        if let Some((of, _)) = self.covered.get_mut(&index) {
            let stands = *of == cgroup && again;
            *of = cgroup;
            return Ok(if stands { Cover::Stands } else { come_of });
        }
        let (mut programs, mut failed) = (Vec::new(), None);
        for (hook, direction) in HOOKS {
            let program: &mut SchedClassifier = program(ebpf, hook)?;
            let pin = Pins::numbered(hook, u64::from(index));
            // It has stayed where only the other one went; the kernel takes no program twice.
            let id = program.info()?.id();
            if pins.holds(&pin, id) {
                programs.push((pin, id));
                continue;
            }
            match attach(program, &mut self.tcx, name, direction) {
                Ok(Some(link)) => {
                    pins.replace_link(&pin, link)?;
                    programs.push((pin, id));
                }
                Ok(None) => {}
                // The other one is better than none.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.covered.insert(index, (cgroup, programs));
        Ok(come_of)
    }

    /// Forgets the devices that the node has no longer. The kernel has taken the hooks of a device that is gone along with it;
    /// numbers of devices are not given again before they run out.
    /// Of pods, those other than `cgroups` are gone.
    pub(super) fn forget_gone(&mut self, pins: &Pins, cgroups: &BTreeSet<u64>) {
        let gone: Vec<u64> = self.trusted.difference(cgroups).copied().collect();
        for cgroup in gone {
            if let Err(error) = self.trust(cgroup, false) {
                tracing::warn!("{error:#}");
            }
        }
        let stands = |index: u32| device_name(index).is_some();
        self.covered.retain(|index, _| stands(*index));
        for (hook, _) in HOOKS {
            pins.keep_numbered(hook, |index| u32::try_from(index).is_ok_and(stands));
        }
        let gone: Vec<u32> = self.devices.keys().flatten().filter(|index| !stands(*index)).collect();
        for index in gone {
            let _gone_already = self.devices.remove(&index);
        }
    }

    /// Looks whether what covers the devices still does: pinned links, or filters.
    pub(super) fn check(&mut self, pins: &Pins) -> anyhow::Result<()> {
        let lost: BTreeMap<u32, String> = self
            .covered
            .iter()
            .filter_map(|(index, (_, programs))| {
                if self.tcx == Some(false) {
                    return Some((*index, filters_missing(*index)?));
                }
                let gone = programs.iter().find(|(pin, id)| !pins.holds(pin, *id))?;
                Some((*index, format!("the pinned link {}", pins.link(&gone.0).display())))
            })
            .collect();
        self.covered.retain(|index, _| !lost.contains_key(index));
        if !lost.is_empty() {
            bail!("somebody removed {}", lost.into_values().collect::<Vec<_>>().join(", "));
        }
        Ok(())
    }
}

/// Which filters of a device are not there; none if the device is gone.
fn filters_missing(index: u32) -> Option<String> {
    let name = device_name(index)?;
    let missing = HOOKS.iter().find(|(_, direction)| !clsact::holds(index, *direction));
    missing.map(|(hook, _)| format!("the filter of {hook} from {name}"))
}

/// Attaches a program to a device, before all others. Gives the link where the kernel has links for tc.
fn attach(
    program: &mut SchedClassifier,
    tcx: &mut Option<bool>,
    device: &str,
    direction: TcAttachType,
) -> anyhow::Result<Option<FdLink>> {
    if *tcx != Some(false) {
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(device, direction, order) {
            Ok(id) => {
                *tcx = Some(true);
                return Ok(Some(program.take_link(id)?.try_into()?));
            }
            Err(error) if *tcx == Some(true) => return Err(error).context("cannot attach"),
            // EINVAL from kernels that do not know the attach type; what else there may be wrong, the older way says as well.
            Err(_) => {}
        }
    }
    clsact::attach(program, device, direction)?;
    *tcx = Some(false);
    Ok(None)
}

/// The name of a device of the node, if it stands.
fn device_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?.to_string_lossy().into_owned();
    // What nix gives where there is no such device: it takes a null pointer for a success.
    (!name.is_empty()).then_some(name)
}

/// Removes the hooks from the devices that a pinned map names, where the kernel has no links for them.
///
/// # Errors
/// A hook cannot be removed.
pub fn detach_filters(devices: MapData) -> anyhow::Result<()> {
    let map = aya::maps::Map::HashMap(devices);
    let devices: BpfHash<MapData, u32, Device> = map.try_into()?;
    for index in devices.keys().flatten() {
        let Some(name) = device_name(index) else { continue };
        for (hook, direction) in HOOKS {
            // Not found where links hold them.
            let _not_there = clsact::detach(&name, direction, hook);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::device_name;

    #[test]
    fn a_device_that_is_not_there_has_no_name() {
        assert_eq!(device_name(1).as_deref(), Some("lo"));
        assert_eq!(device_name(u32::MAX >> 1), None);
    }
}
