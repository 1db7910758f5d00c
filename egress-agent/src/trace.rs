//! `run --trace-object`: a BPF object that says of each packet what was decided, and reading what it says. For developers: this is
//! not in a release.
//!
//! Invariant: no more than words for numbers; what the object does not say is not said here. Tested by `tests/trace.rs`.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use egress_common::{Action, Hook, Reason};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::datapath::{Datapath, Loading};

/// Opens the datapath with the object in a file, and has what it says logged from now on.
///
/// # Errors
/// The file is no object that logs, or the kernel refuses it.
pub(crate) fn open(bpffs: &Path, object: &Path, loading: Loading<'_>) -> anyhow::Result<Datapath> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let mut datapath = Datapath::open_with(bpffs, &Loading { object: &bytes, ..loading })?;
    let log = datapath.take_log(Words)?;
    // SAFETY: the logger owns its map's descriptor, which stays open and the same as long as it lives.
    let log = unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) };
    let mut log = log.map_err(|error| error.into_parts().1).context("cannot wait for the programs' log")?;
    tokio::spawn(async move {
        while let Ok(mut guard) = log.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    tracing::warn!(object = %object.display(), "every verdict is logged: not for nodes with work to do");
    Ok(datapath)
}

/// Hands lines of the programs on to our log, with names in the place of numbers.
struct Words;

impl log::Log for Words {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        let words: Vec<_> = line.split(' ').map(word).collect();
        tracing::info!("{}", words.join(" "));
    }

    fn flush(&self) {}
}

fn word(word: &str) -> String {
    let known = word.split_once('=').and_then(|(name, number)| {
        let number = number.parse().ok()?;
        let text = match name {
            "hook" => Hook::from_wire(number)?.name(),
            "action" => Action::from_wire(number)?.name(),
            "reason" => Reason::from_wire(number)?.name(),
            _ => return None,
        };
        Some(format!("{name}={text}"))
    });
    known.unwrap_or_else(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use egress_common::Reason;

    use super::word;

    #[test]
    fn numbers_become_names_where_there_is_one() {
        assert_eq!(word("hook=1"), "hook=socket");
        assert_eq!(word(&format!("reason={}", Reason::NotAllowed as u8)), "reason=NotAllowed");
        for other in ["hook=99", "reason=x", "cgroup=1", "to", ""] {
            assert_eq!(word(other), other);
        }
    }
}
