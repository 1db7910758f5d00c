//! What the running kernel can do, found by trying.
//!
//! Invariant: a "no" says what the kernel answered. Nothing that was tried is left behind.

mod bpf;
mod code;
mod devices;
mod hooks;
mod object;
mod traffic;

pub(crate) use devices::sctp;

use serde::{Deserialize, Serialize};

use super::plan::Plan;

/// Something that a kernel has or lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Feature {
    pub(crate) group: String,
    pub(crate) name: String,
    /// `yes`, `no: why`, or what was found.
    pub(crate) found: String,
}

/// Where findings go.
pub(crate) struct Table<'a> {
    tell: &'a mut dyn FnMut(Feature) -> anyhow::Result<()>,
}

impl Table<'_> {
    fn tell(&mut self, group: &str, name: &str, tried: bpf::Try) -> anyhow::Result<()> {
        self.found(group, name, tried.map_or_else(|why| format!("no: {why}"), |()| "yes".to_owned()))
    }

    fn found(&mut self, group: &str, name: &str, found: String) -> anyhow::Result<()> {
        (self.tell)(Feature { group: group.to_owned(), name: name.to_owned(), found })
    }
}

/// Tries everything, telling of each.
pub(crate) fn probe(plan: &Plan, mut tell: impl FnMut(Feature) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut table = Table { tell: &mut tell };
    devices::settings(&mut table)?;
    object::programs(&plan.object, &mut table)?;
    hooks::links(&mut table)?;
    hooks::maps(&mut table)?;
    hooks::helpers(&mut table)?;
    traffic::traffic(&plan.probe, &mut table)?;
    devices::devices(&mut table)
}
