//! Who the probe is, and what it does when it is told to end.

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::net;

/// Becomes this user and group for good. What is not root has no capabilities.
pub(crate) fn become_user(user: Option<u32>) -> anyhow::Result<()> {
    let Some(id) = user else { return Ok(()) };
    if Uid::effective() == Uid::from_raw(id) {
        return Ok(());
    }
    setgroups(&[])
        .and_then(|()| setgid(Gid::from_raw(id)))
        .and_then(|()| setuid(Uid::from_raw(id)))
        .with_context(|| format!("cannot become user {id}"))
}

/// The signals that ask a program to end; from here on they wait for [`SigSet::wait`], in this thread and its children.
/// The first process of a container would not get them otherwise.
pub(crate) fn hold_signals() -> anyhow::Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(signals)
}

/// Waits to be told to end.
pub(crate) fn pause() -> anyhow::Result<()> {
    let signals = hold_signals()?;
    net::announce_ready()?;
    signals.wait()?;
    Ok(())
}
