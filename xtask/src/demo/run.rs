//! The tries of one state: real processes in real containers, seen from three sides.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use egress_probe::{Attempt, Captured};
use egress_topology::{Agent, Container, Exec};
use serde_json::Value;

use super::Stage;
use crate::tries::judge::{Evidence, Judgement, judge};
use crate::tries::table::Line;
use crate::tries::{self, Expect};

/// How long a report may take.
const REPORT: Duration = Duration::from_secs(3);

/// A try in a container of the demonstration.
pub(crate) type Try = tries::Try<Container>;

fn who(one: &Try) -> String {
    format!("{}/{}", one.who.pod().name(), one.who.name())
}

fn attempt(one: &Try) -> anyhow::Result<Attempt> {
    let mut exec = Exec::probe(&one.words);
    if let Some(user) = one.user {
        exec = exec.user(user);
    }
    one.who
        .spawn(&exec)?
        .output_json(Duration::from_secs(10))
        .with_context(|| format!("{} {}", who(one), one.how))
}

/// The line of the flow log that is this try's.
pub(crate) fn reported(one: &Try, flows: &[Value]) -> Option<String> {
    let pod = one.who.pod();
    one.reported(&format!("{}/{}", pod.namespace(), pod.name()), flows)
}

/// Makes all tries at once and judges each. Without an agent nobody can report.
pub(crate) fn run(
    stage: &mut Stage,
    agent: Option<&Agent>,
    when: &'static str,
    tries: &[Try],
) -> anyhow::Result<Vec<Line>> {
    stage.check()?;
    eprintln!("    {when}: {} tries", tries.len());
    let before = agent.map_or(Ok(0), |agent| agent.flows().map(|flows| flows.len()))?;
    stage.capture.pending_json::<Captured>()?;
    let attempts: Vec<anyhow::Result<Attempt>> = thread::scope(|scope| {
        let running: Vec<_> = tries.iter().map(|one| scope.spawn(|| attempt(one))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a try panicked"))))
            .collect()
    });
    stage.check()?;
    let flows = match agent {
        Some(agent) => flows_since(agent, before, tries)?,
        None => Vec::new(),
    };
    let seen = stage.capture.pending_json::<Captured>()?;
    tries
        .iter()
        .zip(attempts)
        .map(|(one, attempt)| Ok(line(one, attempt?, &flows, &seen, agent.is_some(), when)))
        .collect()
}

/// Waits until everything that should be in the flow log is there.
fn flows_since(agent: &Agent, before: usize, tries: &[Try]) -> anyhow::Result<Vec<Value>> {
    let start = Instant::now();
    loop {
        let flows: Vec<_> = agent.flows()?.into_iter().skip(before).collect();
        let wanted = |one: &&Try| matches!(one.expect, Expect::Denied | Expect::Audited);
        if tries.iter().filter(wanted).all(|one| reported(one, &flows).is_some()) || start.elapsed() > REPORT
        {
            return Ok(flows);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn line(
    one: &Try,
    attempt: Attempt,
    flows: &[Value],
    seen: &[Captured],
    reporter: bool,
    when: &'static str,
) -> Line {
    let pod = one.who.pod();
    let sources = [IpAddr::from(pod.v4()), IpAddr::from(pod.v6())];
    let arrived = Some(seen.iter().any(|packet| one.is(packet, Some(&sources))));
    let evidence = Evidence { attempt, arrived, report: reported(one, flows), reporter };
    let Judgement { expected, got, as_expected } = judge(one, &evidence);
    Line { when, who: who(one), how: one.how.to_owned(), expected, got, as_expected, skipped: None }
}
