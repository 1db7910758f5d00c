//! Filters of tc on the node's ends of pods' veths, for kernels without links for tc (before 6.6).
//!
//! Invariant: a filter stays when the agent ends, and a newer program takes its place at once. Tested by
//! `tests/threats/filters.rs`, and by every test of a pod on such a kernel (docs/kernels.md).

use std::mem::ManuallyDrop;

use anyhow::{Context as _, bail};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcError, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{ProgramError, SchedClassifier};
use nix::libc::EEXIST;
use nix::net::if_::if_nametoindex;

use crate::network;

/// Before what others usually add. Among filters of one priority the kernel asks the newest first.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0xe6e5);
/// The two lists of filters of a clsact queue (`linux/pkt_sched.h`: `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`).
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Attaches a program to a device, in place of the one that an earlier agent left.
pub(super) fn attach(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
) -> anyhow::Result<()> {
    match qdisc_add_clsact(device) {
        Ok(()) | Err(TcError::AlreadyAttached) => {}
        Err(error) if errno(&error) == Some(EEXIST) => {
            // What leaves the pod it sees, and nothing of what comes in.
            let index = if_nametoindex(device)?;
            if direction == TcAttachType::Egress && network::has_ingress_queue(index)? {
                bail!(
                    "it has an `ingress` queue, by which nothing is seen of what comes in (kernels before 6.6); who made it can make `clsact` instead"
                );
            }
        }
        Err(error) => return Err(error).context("cannot make the clsact queue"),
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let id = match program.attach_with_options(device, direction, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        Err(ProgramError::TcError(error)) if errno(&error) == Some(EEXIST) => {
            let there = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None)?;
            program.attach_to_link(there).context("cannot take the place of the filter that is there")?
        }
        Err(error) => return Err(error).context("cannot attach by tc"),
    };
    // Dropping it would detach it.
    let _attached = ManuallyDrop::new(program.take_link(id)?);
    Ok(())
}

/// Whether the filter is on a device; not, if the kernel does not tell.
pub(super) fn holds(index: u32, direction: TcAttachType) -> bool {
    let block = match direction {
        TcAttachType::Ingress => INGRESS,
        _ => EGRESS,
    };
    network::filters(index, block).is_ok_and(|filters| filters.contains(&(PRIORITY, HANDLE.into())))
}

/// Removes the filter of a program from a device.
///
/// # Errors
/// There is none, or the kernel refuses.
pub(super) fn detach(device: &str, direction: TcAttachType, program: &str) -> Result<(), TcError> {
    qdisc_detach_program(device, direction, program)
}

fn errno(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}
