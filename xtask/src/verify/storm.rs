//! Trying to get out without a pause, while something else goes on.
//!
//! Invariant: what is tried is counted by the pod, what gets out by the observer outside; neither is taken for the other.

use std::cell::Cell;
use std::time::{Duration, Instant};

use egress_probe::Storm;

use super::play::RUN;
use super::scene::{Place, Port};
use super::stage::{Stage, last};
use super::wait::arrived;
use crate::tries::table::Line;

/// What goes on.
pub(crate) struct Storms<'a, S> {
    stage: &'a S,
    seen: usize,
    start: Instant,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Bypass {
    storm: Storm,
    out: usize,
    took: Duration,
}

impl<'a, S: Stage> Storms<'a, S> {
    /// Notes what has arrived outside before.
    pub(crate) async fn begin(stage: &'a S) -> anyhow::Result<Self> {
        let (_, seen) = arrived(stage, usize::MAX).await?;
        Ok(Self { stage, seen, start: Instant::now() })
    }

    /// Tries until it is over: datagrams and connections, few enough for the flow log to have all of them.
    pub(crate) async fn until(self, over: &Cell<bool>) -> anyhow::Result<Bypass> {
        let target = self.stage.scene().outside.at(Port::Storm);
        let words =
            ["storm", &target.to_string(), "--for-ms", "3000", "--interval-ms", "50"].map(str::to_owned);
        let mut sum = Storm::default();
        while !over.get() {
            let storm: Storm = last(&self.stage.probe(Place::Productpage, None, &words, RUN).await?)?;
            sum.refused += storm.refused;
            sum.sent += storm.sent;
            sum.connects += storm.connects;
        }
        let (packets, _) = arrived(self.stage, self.seen).await?;
        let out = packets.iter().filter(|packet| packet.dport == Some(target.port())).count();
        Ok(Bypass { storm: sum, out, took: self.start.elapsed() })
    }
}

impl Bypass {
    /// The line of the table.
    pub(crate) fn line(&self, when: &'static str) -> Line {
        let tried = self.storm.refused + self.storm.sent + self.storm.connects;
        let got = format!(
            "{tried} tries in {:.1} s, {} datagrams taken by the kernel, {} packets seen outside",
            self.took.as_secs_f32(),
            self.storm.sent,
            self.out
        );
        Line {
            when,
            who: Place::Productpage.who(),
            how: "direct, without a pause".to_owned(),
            expected: "nothing gets out".to_owned(),
            got,
            as_expected: self.out == 0 && self.storm.sent == 0 && self.storm.refused > 0,
            skipped: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_get_out_and_something_must_have_been_tried() {
        let ok = |refused, sent, out| {
            let storm = Storm { refused, sent, ..Storm::default() };
            Bypass { storm, out, took: Duration::from_secs(1) }.line("x").as_expected
        };
        assert!(ok(10, 0, 0));
        assert!(!ok(10, 1, 0) && !ok(10, 0, 1) && !ok(0, 0, 0));
    }
}
