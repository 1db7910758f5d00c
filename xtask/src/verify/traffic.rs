//! Traffic of a run in a cluster, for the tests that are more than tries.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Context as _;
use egress_probe::{Attempt, Beat, Outcome, Repeated};

use super::api::Lines;
use super::live::Live;
use super::objects::Mode;
use super::play::RUN;
use super::scene::{ECHO, HTTP, Place, Port};
use super::stage::{Stage, last};
use super::wait::settled;

impl Live {
    /// Enforces the policy.
    pub(crate) async fn lock_down(&self) -> anyhow::Result<()> {
        self.policy(Some(Mode::Enforce)).await?;
        settled(self, "Isolated", false).await
    }

    /// Takes the policy away.
    pub(crate) async fn set_free(&self) -> anyhow::Result<()> {
        self.policy(None).await?;
        settled(self, "Unselected", false).await
    }

    async fn as_productpage(&self, words: &[&str]) -> anyhow::Result<Vec<String>> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        self.probe(Place::Productpage, None, &words, RUN).await
    }

    /// One datagram outside.
    pub(crate) async fn try_outside(&self) -> anyhow::Result<Attempt> {
        let at = self.scene().outside.at(Port::Udp).to_string();
        last(&self.as_productpage(&["udp", &at, "--timeout-ms", "1000"]).await?)
    }

    /// Three seconds of requests to reviews, each on a connection of its own.
    pub(crate) async fn ask_reviews(&self) -> anyhow::Result<Repeated> {
        let at = self.scene().reviews_service.first().context("reviews has no service address")?;
        let url = format!("http://{}/", std::net::SocketAddr::new(*at, HTTP));
        last(&self.as_productpage(&["repeat", "--every-ms", "50", "--for-ms", "3000", "get", &url]).await?)
    }

    /// Keeps one connection to reviews as long as it is not over; gives its echoes, and how many did not come.
    pub(crate) async fn hold(&self, over: &Cell<bool>) -> anyhow::Result<(u64, u64)> {
        let reviews = self.scene().addresses(Place::Reviews).first().context("reviews has no address")?;
        let at = std::net::SocketAddr::new(*reviews, ECHO).to_string();
        let words = ["hold", &at, "--for-ms", "3600000", "--interval-ms", "200"];
        let mut lines = self.start(Place::Productpage, &words).await?;
        let (mut made, mut lost) = (0, 0);
        while !over.get() {
            let beat: Beat = serde_json::from_str(&lines.next(Duration::from_secs(10)).await?)?;
            made += 1;
            lost += u64::from(beat.outcome != Outcome::Ok);
        }
        Ok((made, lost))
    }

    /// Asks outside every two milliseconds, for so long; a line for each change.
    pub(crate) async fn ask_outside(&self, time: Duration) -> anyhow::Result<Lines> {
        let at = self.scene().outside.at(Port::Udp).to_string();
        let time = time.as_millis().to_string();
        let words = ["repeat", "--every-ms", "2", "--for-ms", &time, "udp", &at, "--timeout-ms", "500"];
        self.start(Place::Productpage, &words).await
    }
}
