//! The states of the enforcer, one after the other, and what is tried in each.
//!
//! Invariant: no state is taken for reached because time has passed: the agent says that it enforces it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::objects::Mode;
use super::scene::Place;
use super::stage::{Stage, last, until, values};
use super::storm::Storms;
use super::tries::{self, Item};
use super::wait::{arrived, endpoints, settled};
use crate::tries::judge::{Evidence, Judgement, client, judge};
use crate::tries::table::Line;
use crate::tries::{Expect, Try};

/// How many programs run in pods at a time: more only wait for the runtime.
const AT_A_TIME: usize = 8;
/// How long a program in a pod may take.
pub(crate) const RUN: Duration = Duration::from_secs(30);
/// How long a report may take.
const REPORT: Duration = Duration::from_secs(5);
/// How long after a state's tries those of the next begin: of one flow the kernel tells once a second, and frames have the same ports
/// in every state.
const AFRESH: Duration = Duration::from_millis(1100);

/// How long the agent may take to find a pod's network.
const COVERAGE: Duration = Duration::from_secs(15);
/// The coverage of a pod that is judged by both hooks.
const BOTH: &str = "socket+veth";

/// Why tries are not made any more: what did not work without a policy, by who and how.
type Missing = BTreeMap<(Place, &'static str), String>;

/// What has been learnt so far.
pub(crate) struct Play<'a, S> {
    stage: &'a S,
    missing: Missing,
    lines: Vec<Line>,
}

impl<'a, S: Stage> Play<'a, S> {
    /// Nothing is known yet.
    pub(crate) fn new(stage: &'a S) -> Self {
        Self { stage, missing: Missing::new(), lines: Vec::new() }
    }

    /// Plays the whole life of the enforcer. Where that ends early, the last line says why.
    pub(crate) async fn play(mut self) -> Vec<Line> {
        if let Err(error) = self.states().await {
            self.lines.push(broken("ended", &error));
        }
        self.lines
    }

    async fn states(&mut self) -> anyhow::Result<()> {
        let (stage, scene) = (self.stage, self.stage.scene());
        self.known().await?;
        self.run("no policy", tries::baseline(scene), true).await?;

        stage.policy(Some(Mode::Audit)).await?;
        settled(stage, "Isolated (audit)", false).await?;
        self.run("policy audits", tries::direct(scene, Expect::Audited), true).await?;

        stage.policy(Some(Mode::Enforce)).await?;
        settled(stage, "Isolated", false).await?;
        self.accepted("enforced").await?;
        self.run("enforced", tries::enforced(scene), true).await?;
        self.probed("enforced").await?;

        self.without_agent().await?;
        self.run("agent back", tries::enforced(scene), true).await?;

        stage.policy(Some(Mode::Locked)).await?;
        settled(stage, "Isolated", true).await?;
        self.run("only by the proxy", tries::locked(scene), true).await?;

        stage.policy(None).await?;
        settled(stage, "Unselected", false).await?;
        self.run("policy removed", tries::direct(scene, Expect::Works), true).await?;
        self.probed("policy removed").await
    }

    /// Waits until the agent knows the pods, and notes by which hooks it judges them.
    async fn known(&mut self) -> anyhow::Result<()> {
        let stage = self.stage;
        let pods = [Place::Productpage, Place::Reviews, Place::Gateway, Place::Free];
        let known = until("the agent knows the pods", stage.patience(), || async {
            let known = endpoints(stage).await?;
            let unknown = |place: &&Place| {
                let found = known.get(&stage.scene().pod(**place));
                found.and_then(|one| one["addresses"].as_array()).is_none_or(Vec::is_empty)
            };
            Ok(match pods.iter().find(unknown) {
                Some(place) => Err(format!("{} is unknown or has no address", place.pod())),
                None => Ok(known),
            })
        })
        .await?;
        // A pod is seen first by a process of the runtime, which is not in the pod's network yet.
        let start = Instant::now();
        let mut known = known;
        let covered = |known: &BTreeMap<String, Value>, place: Place| {
            let coverage = known.get(&stage.scene().pod(place)).map(|one| &one["coverage"]);
            coverage.and_then(Value::as_str).unwrap_or("unknown").to_owned()
        };
        while pods.iter().any(|place| covered(&known, *place) != BOTH) && start.elapsed() < COVERAGE {
            tokio::time::sleep(Duration::from_millis(500)).await;
            known = endpoints(stage).await?;
        }
        for place in pods {
            let got = covered(&known, place);
            let as_expected = got == BOTH;
            let (who, how) = (place.pod().to_owned(), "judged by the hooks".to_owned());
            let expected = BOTH.to_owned();
            self.lines.push(Line { when: "no policy", who, how, expected, got, as_expected, skipped: None });
        }
        Ok(())
    }

    async fn flows(&self) -> anyhow::Result<Vec<Value>> {
        let text = self.stage.agent(&["flows", "--output", "json"]).await?;
        values(&text.unwrap_or_default())
    }

    /// Makes all tries of a state and judges each. Without an agent nobody can report.
    async fn run(&mut self, when: &'static str, items: Vec<Item>, agent: bool) -> anyhow::Result<()> {
        let (stage, scene) = (self.stage, self.stage.scene());
        eprintln!("    {when}: {} tries", items.len());
        tokio::time::sleep(AFRESH).await;
        let (_, seen) = arrived(stage, usize::MAX).await?;
        let newest = if agent { self.flows().await?.iter().filter_map(time).max() } else { None };
        let (made, skipped): (Vec<Item>, Vec<Item>) =
            items.into_iter().map(|item| self.skip(item)).partition(|item| item.skip.is_none());
        let attempts: Vec<anyhow::Result<Vec<String>>> = futures::stream::iter(&made)
            .map(|item| stage.probe(item.one.who, item.one.user, &item.one.words, RUN))
            .buffered(AT_A_TIME)
            .collect()
            .await;
        let flows = if agent { self.reports(&made, newest).await? } else { Vec::new() };
        let (packets, _) = arrived(stage, seen).await?;
        for (item, lines) in made.iter().zip(attempts) {
            let one = &item.one;
            let attempt = last(&lines.with_context(|| format!("{} {}", one.who.who(), one.how))?)?;
            // Ping has no port of its own.
            let sources =
                one.target.as_ref().filter(|target| target.port == 0).map(|_| scene.addresses(one.who));
            let watched = scene.outside.is_watched();
            let arrived = watched.then(|| packets.iter().any(|packet| one.is(packet, sources)));
            let report = one.reported(&scene.pod(one.who), &flows);
            let evidence = Evidence { attempt, arrived, report, reporter: agent };
            let judgement = judge(one, &evidence);
            let line = self.line(when, item, &evidence, judgement);
            self.lines.push(line);
        }
        self.lines.extend(skipped.into_iter().map(|item| not_made(when, item)));
        Ok(())
    }

    /// An item that need not be tried, because what it needs did not work without a policy either.
    fn skip(&self, mut item: Item) -> Item {
        if item.skip.is_none() {
            item.skip = self.missing.get(&(item.one.who, item.one.how)).cloned();
        }
        item
    }

    /// The line of a try. What is not core and does not work without a policy is missing from then on.
    fn line(&mut self, when: &'static str, item: &Item, evidence: &Evidence, is: Judgement) -> Line {
        let one = &item.one;
        let mut skipped = None;
        if when == "no policy" && !is.as_expected && !item.core && evidence.report.is_none() {
            let why = format!("not without a policy either: {}", client(&evidence.attempt));
            self.missing.insert((one.who, one.how), why.clone());
            skipped = Some(why);
        }
        let Judgement { expected, got, as_expected } = is;
        let as_expected = as_expected && skipped.is_none();
        Line { when, who: one.who.who(), how: one.how.to_owned(), expected, got, as_expected, skipped }
    }

    /// Waits until everything that should be in the flow log is there; gives what is newer than the state.
    async fn reports(&self, items: &[Item], newest: Option<Timestamp>) -> anyhow::Result<Vec<Value>> {
        let start = Instant::now();
        loop {
            let flows: Vec<Value> =
                self.flows().await?.into_iter().filter(|flow| time(flow) > newest).collect();
            if self.unreported(items, &flows).is_empty() || start.elapsed() > REPORT {
                return Ok(flows);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The tries that should be in the flow log and are not.
    fn unreported(&self, items: &[Item], flows: &[Value]) -> Vec<String> {
        let wanted = items.iter().map(|item| &item.one).filter(|one| is_reported(one));
        let missing = wanted.filter(|one| one.reported(&self.stage.scene().pod(one.who), flows).is_none());
        missing.map(|one| format!("{} {}", one.who.who(), one.how)).collect()
    }

    /// The agent goes, without a chance to do anything, and comes back; all the time somebody tries to get out.
    async fn without_agent(&mut self) -> anyhow::Result<()> {
        let stage = self.stage;
        let when = "agent gone";
        let storms = Storms::begin(stage).await?;
        let over = Cell::new(false);
        let items = tries::direct(stage.scene(), Expect::Denied);
        let away = async {
            // Some of it is under way before the agent goes.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let gone = async {
                stage.kill_agent().await?;
                self.run(when, items.clone(), false).await?;
                stage.revive_agent().await
            };
            let result = gone.await;
            over.set(true);
            result
        };
        let (bypass, away) = tokio::join!(storms.until(&over), away);
        away?;
        self.lines.push(bypass?.line(when));
        self.told_later(&items).await
    }

    /// What was denied while no agent ran waits in the kernel for the next one.
    async fn told_later(&mut self, items: &[Item]) -> anyhow::Result<()> {
        let made: Vec<Item> =
            items.iter().cloned().map(|item| self.skip(item)).filter(|item| item.skip.is_none()).collect();
        let flows = self.reports(&made, None).await?;
        let all = made.iter().filter(|item| is_reported(&item.one)).count();
        let missing = self.unreported(&made, &flows);
        let mut got = format!("{} of {all}", all - missing.len());
        if !missing.is_empty() {
            got = format!("{got}, but not: {}", missing.join("; "));
        }
        self.lines.push(Line {
            when: "agent back",
            who: "egress-agent".to_owned(),
            how: "flows of the time without it".to_owned(),
            expected: "all reported".to_owned(),
            got,
            as_expected: missing.is_empty(),
            skipped: None,
        });
        Ok(())
    }

    /// What the policy's status says.
    async fn accepted(&mut self, when: &'static str) -> anyhow::Result<()> {
        let Some(is) = self.stage.accepted().await? else { return Ok(()) };
        let (who, how) = ("the policy".to_owned(), "condition Accepted in its status".to_owned());
        let as_expected = is.is_ok();
        let got = is.unwrap_or_else(|why| why);
        let expected = "True".to_owned();
        self.lines.push(Line { when, who, how, expected, got, as_expected, skipped: None });
        Ok(())
    }

    /// Whether kubelet's probes were answered.
    async fn probed(&mut self, when: &'static str) -> anyhow::Result<()> {
        let Some(is) = self.stage.probes().await? else { return Ok(()) };
        let (who, how) = ("kubelet".to_owned(), "probes of the locked-down pods".to_owned());
        let as_expected = is.is_ok();
        let got = is.map_or_else(|why| why, |()| "answered all the time".to_owned());
        let expected = "answered all the time".to_owned();
        self.lines.push(Line { when, who, how, expected, got, as_expected, skipped: None });
        Ok(())
    }
}

/// The line of something that broke.
pub(crate) fn broken(when: &'static str, error: &anyhow::Error) -> Line {
    let (who, how) = ("verify".to_owned(), "to the end".to_owned());
    let (expected, got) = ("nothing breaks".to_owned(), format!("{error:#}"));
    Line { when, who, how, expected, got, as_expected: false, skipped: None }
}

fn is_reported(one: &Try<Place>) -> bool {
    matches!(one.expect, Expect::Denied | Expect::Audited)
}

/// The line of what was not tried. What is core is not skipped: without it nothing was verified.
fn not_made(when: &'static str, Item { one, core, skip }: Item) -> Line {
    let (who, how) = (one.who.who(), one.how.to_owned());
    let why = skip.unwrap_or_default();
    let (expected, got, skipped) = if core {
        ("tried".to_owned(), format!("not tried: {why}"), None)
    } else {
        (String::new(), String::new(), Some(why))
    };
    Line { when, who, how, expected, got, as_expected: false, skipped }
}

fn time(flow: &Value) -> Option<Timestamp> {
    flow["time"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tries::table::{Sum, sum};

    #[test]
    fn what_is_core_is_not_skipped() {
        let item = |core| {
            let one = Try::new(Place::Free, "how", &[], Expect::Works);
            not_made("x", Item { one, core, skip: Some("no IPv4".to_owned()) })
        };
        assert_eq!(sum(&[item(true), item(false)]), Sum { as_expected: 0, skipped: 1, wrong: 1 });
        assert!(item(true).got.contains("no IPv4"));
    }
}
