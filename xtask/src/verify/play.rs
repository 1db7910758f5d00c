//! The states of the enforcer, one after the other, and what is tried in each.
//!
//! Invariant: no state is taken for reached because time has passed: the agent says that it enforces it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use egress_probe::{Arrivals, Captured, Storm};
use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::objects::Mode;
use super::scene::{Outside, Place, Port};
use super::stage::{Stage, last, until, values};
use super::tries::{self, Item};
use crate::tries::judge::{Evidence, Judgement, client, judge};
use crate::tries::table::Line;
use crate::tries::{Expect, Try};

/// How many programs run in pods at a time: more only wait for the runtime.
const AT_A_TIME: usize = 8;
/// How long a program may take beside what it waits for itself.
const RUN: Duration = Duration::from_secs(30);
/// How long a report may take.
const REPORT: Duration = Duration::from_secs(5);

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

    /// Plays the whole life of the enforcer.
    pub(crate) async fn play(mut self) -> anyhow::Result<Vec<Line>> {
        let (stage, scene) = (self.stage, self.stage.scene());
        self.known().await?;
        self.run("no policy", tries::baseline(scene), true).await?;

        stage.policy(Some(Mode::Audit)).await?;
        self.settled("Isolated (audit)", false).await?;
        self.run("policy audits", tries::direct(scene, Expect::Audited), true).await?;

        stage.policy(Some(Mode::Enforce)).await?;
        self.settled("Isolated", false).await?;
        self.accepted("enforced").await?;
        self.run("enforced", tries::enforced(scene), true).await?;
        self.probed("enforced").await?;

        self.without_agent().await?;
        self.run("agent back", tries::enforced(scene), true).await?;

        stage.policy(Some(Mode::Locked)).await?;
        self.settled("Isolated", true).await?;
        self.run("only by the proxy", tries::locked(scene), true).await?;

        stage.policy(None).await?;
        self.settled("Unselected", false).await?;
        self.run("policy removed", tries::direct(scene, Expect::Works), true).await?;
        self.probed("policy removed").await?;
        Ok(self.lines)
    }

    /// Waits until the agent knows the pods, and notes by which hooks it judges them.
    async fn known(&mut self) -> anyhow::Result<()> {
        let pods = [Place::Productpage, Place::Reviews, Place::Gateway, Place::Free];
        let endpoints = until("the agent knows the pods", self.stage.patience(), || async {
            let endpoints = self.endpoints().await?;
            let unknown = |place: &&Place| {
                let found = endpoints.get(&self.stage.scene().pod(**place));
                !found.is_some_and(|one| one["addresses"].as_array().is_some_and(|all| !all.is_empty()))
            };
            Ok(match pods.iter().find(unknown) {
                Some(place) => Err(format!("{} is unknown or has no address", place.pod())),
                None => Ok(endpoints),
            })
        })
        .await?;
        for place in pods {
            let coverage = endpoints.get(&self.stage.scene().pod(place)).map(|one| &one["coverage"]);
            let got = coverage.and_then(Value::as_str).unwrap_or("unknown").to_owned();
            let as_expected = got == "socket+veth";
            let (who, how) = (place.pod().to_owned(), "judged by the hooks".to_owned());
            let expected = "socket+veth".to_owned();
            self.lines.push(Line { when: "no policy", who, how, expected, got, as_expected, skipped: None });
        }
        Ok(())
    }

    /// Waits until the agent enforces the policy as it is now.
    async fn settled(&self, state: &str, lock: bool) -> anyhow::Result<()> {
        let wanted = [Place::Productpage, Place::Reviews];
        let what = format!("the agent has the pods {state}{}", if lock { ", under a lock" } else { "" });
        until(&what, self.stage.patience(), || async {
            let endpoints = self.endpoints().await?;
            let mut missing = Vec::new();
            for place in wanted {
                let one = endpoints.get(&self.stage.scene().pod(place));
                let is = one.and_then(|one| one["state"].as_str()).unwrap_or("unknown");
                let locked = one.is_some_and(|one| one["lock"] == true);
                let proxied =
                    one.is_some_and(|one| one["proxies"].as_array().is_some_and(|all| !all.is_empty()));
                if is != state || locked != lock || lock && !proxied {
                    missing.push(format!("{} is {is}", place.pod()));
                }
            }
            if missing.is_empty() {
                return Ok(Ok(()));
            }
            missing.extend(self.complaints().await?);
            Ok(Err(missing.join("; ")))
        })
        .await
    }

    /// What keeps the agent from being ready.
    async fn complaints(&self) -> anyhow::Result<Vec<String>> {
        let Some(text) = self.stage.agent(&["status", "--output", "json"]).await? else {
            return Ok(vec!["no agent is ready on the node".to_owned()]);
        };
        let status = values(&text)?.into_iter().next().unwrap_or_default();
        let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
        Ok(list("pending").into_iter().chain(list("errors")).map(|one| one.to_string()).collect())
    }

    /// The local pods by NS/POD.
    async fn endpoints(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let text = self.stage.agent(&["endpoints", "--output", "json"]).await?;
        let name = |one: &Value| {
            format!("{}/{}", one["namespace"].as_str().unwrap_or("?"), one["name"].as_str().unwrap_or("?"))
        };
        Ok(values(&text.unwrap_or_default())?.into_iter().map(|one| (name(&one), one)).collect())
    }

    async fn flows(&self) -> anyhow::Result<Vec<Value>> {
        let text = self.stage.agent(&["flows", "--output", "json"]).await?;
        values(&text.unwrap_or_default())
    }

    /// What has arrived outside since that many packets.
    async fn arrived(&self, since: usize) -> anyhow::Result<(Vec<Captured>, usize)> {
        let Outside::StandIn { v4, .. } = self.stage.scene().outside else {
            return Ok((Vec::new(), 0));
        };
        let words = ["arrived", "--of", &v4.to_string(), "--since", &since.to_string()].map(str::to_owned);
        let mut lines = self.stage.probe(Place::Outside, None, &words, RUN).await?;
        let arrivals: Arrivals = last(&lines).context("cannot ask what arrived outside")?;
        anyhow::ensure!(arrivals.forgotten == 0, "too much arrived outside to be remembered: {arrivals:?}");
        lines.pop();
        let packets: Result<_, _> = lines.iter().map(|line| serde_json::from_str(line)).collect();
        Ok((packets?, arrivals.total))
    }

    /// Makes all tries of a state and judges each. Without an agent nobody can report.
    async fn run(&mut self, when: &'static str, items: Vec<Item>, agent: bool) -> anyhow::Result<()> {
        let scene = self.stage.scene();
        eprintln!("    {when}: {} tries", items.len());
        let (_, seen) = self.arrived(usize::MAX).await?;
        let newest = if agent { self.flows().await?.iter().filter_map(time).max() } else { None };
        let (made, skipped): (Vec<Item>, Vec<Item>) =
            items.into_iter().map(|item| self.skip(item)).partition(|item| item.skip.is_none());
        let stage = self.stage;
        let attempts: Vec<anyhow::Result<Vec<String>>> = futures::stream::iter(&made)
            .map(|item| stage.probe(item.one.who, item.one.user, &item.one.words, RUN))
            .buffered(AT_A_TIME)
            .collect()
            .await;
        let flows = if agent { self.reports(&made, newest).await? } else { Vec::new() };
        let (packets, _) = self.arrived(seen).await?;
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
        self.lines.extend(skipped.into_iter().map(|Item { one, skip, .. }| not_made(when, &one, skip)));
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
            if self.unreported(items, &flows) == 0 || start.elapsed() > REPORT {
                return Ok(flows);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// How many tries that should be in the flow log are not.
    fn unreported(&self, items: &[Item], flows: &[Value]) -> usize {
        let wanted = items.iter().map(|item| &item.one).filter(|one| is_reported(one));
        wanted.filter(|one| one.reported(&self.stage.scene().pod(one.who), flows).is_none()).count()
    }

    /// The agent goes, without a chance to do anything, and comes back; all the time somebody tries to get out.
    async fn without_agent(&mut self) -> anyhow::Result<()> {
        let (stage, scene) = (self.stage, self.stage.scene());
        let when = "agent gone";
        let (_, seen) = self.arrived(usize::MAX).await?;
        let over = std::cell::Cell::new(false);
        let storms = async {
            let mut sum = Storm::default();
            while !over.get() {
                let storm = storm(stage).await?;
                sum.refused += storm.refused;
                sum.sent += storm.sent;
                sum.connects += storm.connects;
            }
            anyhow::Ok(sum)
        };
        let items = tries::direct(scene, Expect::Denied);
        let away = async {
            // Some of it is under way before the agent goes.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let start = Instant::now();
            let gone = async {
                stage.kill_agent().await?;
                self.run(when, items.clone(), false).await?;
                stage.revive_agent().await
            };
            let result = gone.await;
            over.set(true);
            result.map(|()| start.elapsed())
        };
        let (sum, away) = tokio::join!(storms, away);
        let (sum, away) = (sum?, away?);
        let (packets, _) = self.arrived(seen).await?;
        let port = scene.outside.at(Port::Storm).port();
        let out = packets.iter().filter(|packet| packet.dport == Some(port)).count();
        let tried = sum.refused + sum.sent + sum.connects;
        self.lines.push(Line {
            when,
            who: Place::Productpage.who(),
            how: "direct, without a pause".to_owned(),
            expected: "nothing gets out".to_owned(),
            got: format!(
                "{tried} tries in the {:.1} s until another agent was ready, {} got out",
                away.as_secs_f32(),
                out.max(usize::try_from(sum.sent).unwrap_or(usize::MAX))
            ),
            as_expected: out == 0 && sum.sent == 0 && sum.refused > 0,
            skipped: None,
        });
        self.told_later(&items).await
    }

    /// What was denied while no agent ran waits in the kernel for the next one.
    async fn told_later(&mut self, items: &[Item]) -> anyhow::Result<()> {
        let made: Vec<Item> =
            items.iter().cloned().map(|item| self.skip(item)).filter(|item| item.skip.is_none()).collect();
        let flows = self.reports(&made, None).await?;
        let all = made.iter().filter(|item| is_reported(&item.one)).count();
        let reported = all - self.unreported(&made, &flows);
        self.lines.push(Line {
            when: "agent back",
            who: "egress-agent".to_owned(),
            how: "flows of the time without it".to_owned(),
            expected: "all reported".to_owned(),
            got: format!("{reported} of {all}"),
            as_expected: reported == all,
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

/// Three seconds of tries to get out, few enough for the flow log.
async fn storm(stage: &impl Stage) -> anyhow::Result<Storm> {
    let target = stage.scene().outside.at(Port::Storm).to_string();
    let words = ["storm", &target, "--for-ms", "3000", "--interval-ms", "50"].map(str::to_owned);
    last(&stage.probe(Place::Productpage, None, &words, RUN).await?)
}

fn is_reported(one: &Try<Place>) -> bool {
    matches!(one.expect, Expect::Denied | Expect::Audited)
}

fn not_made(when: &'static str, one: &Try<Place>, skip: Option<String>) -> Line {
    let (who, how) = (one.who.who(), one.how.to_owned());
    let (expected, got) = (String::new(), String::new());
    Line { when, who, how, expected, got, as_expected: false, skipped: skip }
}

fn time(flow: &Value) -> Option<Timestamp> {
    flow["time"].as_str()?.parse().ok()
}
