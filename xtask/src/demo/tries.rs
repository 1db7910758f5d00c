//! One try: a real process in a real container, seen from three sides.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use egress_probe::{Attempt, Captured, Outcome};
use egress_topology::{Agent, Container, Exec};
use serde_json::Value;

use super::{Line, Stage};

/// How long a report may take.
const REPORT: Duration = Duration::from_secs(3);

/// What shall come of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// It gets through, and nothing is reported.
    Works,
    /// The sidecar answers that the gateway cannot be reached.
    Refused,
    /// Nothing arrives, and it is reported.
    Denied,
    /// It gets through, and it is reported.
    Audited,
}

/// Where the packets of a direct try go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: IpAddr,
    /// As the probe and the flow log call it.
    pub(crate) protocol: &'static str,
    /// 0 for protocols without ports.
    pub(crate) port: u16,
}

/// A try.
#[derive(Clone, Debug)]
pub(crate) struct Try {
    pub(crate) container: Container,
    /// Another user than root.
    pub(crate) user: Option<u32>,
    pub(crate) how: &'static str,
    pub(crate) words: Vec<String>,
    pub(crate) expect: Expect,
    /// Known where the packets go there themselves, not by the sidecar.
    pub(crate) target: Option<Target>,
}

impl Try {
    fn who(&self) -> String {
        format!("{}/{}", self.container.pod().name(), self.container.name())
    }

    fn attempt(&self) -> anyhow::Result<Attempt> {
        let mut exec = Exec::probe(&self.words);
        if let Some(user) = self.user {
            exec = exec.user(user);
        }
        self.container
            .spawn(&exec)?
            .output_json(Duration::from_secs(10))
            .with_context(|| format!("{} {}", self.who(), self.how))
    }

    /// Whether this packet, seen outside, is this try's.
    fn arrived(&self, packet: &Captured) -> bool {
        let pod = self.container.pod();
        self.target.as_ref().is_some_and(|target| {
            [IpAddr::from(pod.v4()), IpAddr::from(pod.v6())].contains(&packet.src)
                && packet.dst == target.address
                && packet.protocol == target.protocol
                && packet.dport.unwrap_or(0) == target.port
        })
    }

    /// The action and reason of this try's line in the flow log.
    pub(crate) fn reported(&self, flows: &[Value]) -> Option<String> {
        let target = self.target.as_ref()?;
        let pod = format!("{}/{}", self.container.pod().namespace(), self.container.pod().name());
        let address = std::net::SocketAddr::new(target.address, target.port).to_string();
        let action = if self.expect == Expect::Audited { "audit" } else { "deny" };
        let flow = flows.iter().find(|flow| {
            flow["pod"] == pod.as_str()
                && flow["destination"] == address.as_str()
                && flow["protocol"] == target.protocol
                && flow["action"] == action
        })?;
        Some(format!("{} {}", action, flow["reason"].as_str().unwrap_or("?")))
    }
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
        let running: Vec<_> = tries.iter().map(|one| scope.spawn(|| one.attempt())).collect();
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
        .map(|(one, attempt)| Ok(judge(one, &attempt?, &flows, &seen, agent.is_some(), when)))
        .collect()
}

/// Waits until everything that should be in the flow log is there.
fn flows_since(agent: &Agent, before: usize, tries: &[Try]) -> anyhow::Result<Vec<Value>> {
    let start = Instant::now();
    loop {
        let flows: Vec<_> = agent.flows()?.into_iter().skip(before).collect();
        let wanted = |one: &&Try| matches!(one.expect, Expect::Denied | Expect::Audited);
        if tries.iter().filter(wanted).all(|one| one.reported(&flows).is_some()) || start.elapsed() > REPORT {
            return Ok(flows);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn judge(
    one: &Try,
    attempt: &Attempt,
    flows: &[Value],
    seen: &[Captured],
    agent: bool,
    when: &'static str,
) -> Line {
    let arrived = seen.iter().any(|packet| one.arrived(packet));
    let report = one.reported(flows);
    let client = match (attempt.outcome, attempt.status) {
        (Outcome::Ok, Some(status)) => status.to_string(),
        (Outcome::Ok, None) => "answered".to_owned(),
        (Outcome::Denied, _) => "not permitted".to_owned(),
        (Outcome::Refused, _) => "connection refused".to_owned(),
        (Outcome::Timeout, _) => "no answer".to_owned(),
        (Outcome::Error, _) => attempt.detail.clone(),
    };
    let silent = matches!(attempt.outcome, Outcome::Denied | Outcome::Timeout);
    let (expected, as_expected) = match one.expect {
        Expect::Works => ("works", attempt.succeeded() && report.is_none()),
        Expect::Refused => ("refused by the sidecar: 503", attempt.status == Some(503)),
        Expect::Denied if agent => ("denied, reported", silent && !arrived && report.is_some()),
        Expect::Denied => ("denied", silent && !arrived),
        Expect::Audited => ("passes, reported", attempt.succeeded() && report.is_some()),
    };
    let mut got = vec![client];
    if matches!(one.expect, Expect::Denied | Expect::Audited) {
        got.push(if arrived { "seen outside" } else { "nothing outside" }.to_owned());
        got.extend(report.or_else(|| agent.then(|| "not reported".to_owned())));
    }
    let (who, how) = (one.who(), one.how.to_owned());
    Line { when, who, how, expected, got: got.join(", "), as_expected }
}
