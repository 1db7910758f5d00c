//! Runs a scenario: step by step, every verdict asked of the compiled state and of the reference evaluator.

use std::fmt::Write as _;
use std::net::IpAddr;

use egress_common::packet::protocol;
use egress_common::{Action, Verdict};
use egress_policy::compile::Compiled;
use egress_policy::explain::Target;
use egress_policy::object::Pod;
use egress_policy::plan::{State, diff};
use egress_policy::reference::{Answer, Probe, Protocol, evaluate};

use super::{Destination, Expectation, Scenario, Step, at, named};
use crate::common::{NODE, World, judge_from, world};

/// A verdict that is known to differ from what the scenario says.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub scenario: &'static str,
    /// Counted from 1.
    pub step: usize,
    pub flow: &'static str,
    /// What the enforcer says instead.
    pub says: Action,
    pub why: &'static str,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The detail, as the golden file has it.
    pub golden: String,
    /// What is not as written; each names file and line.
    pub failures: Vec<String>,
    /// Verdicts that were compared.
    pub verdicts: usize,
}

/// Runs a scenario.
pub fn run(scenario: &Scenario, known: &[Known]) -> Outcome {
    let mut run = Run {
        scenario,
        known,
        world: world(scenario.base.iter().cloned()),
        observed: State::default(),
        out: Outcome::default(),
    };
    let compiled = run.world.compile();
    run.bring(1, &compiled);
    for (number, step) in (1..).zip(&scenario.steps) {
        run.step(number, step);
    }
    run.out
}

struct Run<'a> {
    scenario: &'a Scenario,
    known: &'a [Known],
    world: World,
    /// What the maps hold, as far as plans have brought it.
    observed: State,
    out: Outcome,
}

impl Run<'_> {
    fn fail(&mut self, line: u64, reason: &str) {
        self.out.failures.push(at(&self.scenario.path, line, reason));
    }

    fn step(&mut self, number: usize, step: &Step) {
        for object in &step.apply {
            self.world.add(object.clone());
        }
        for (line, name) in &step.delete {
            match named(self.world.index.objects(), name) {
                Some(_) => self.world = self.world.without(name),
                None => self.fail(*line, &format!("there is no {name} to delete")),
            }
        }
        let compiled = self.world.compile();
        let steps = self.bring(step.line, &compiled);
        let gap = if number == 1 { "" } else { "\n" };
        writeln!(self.out.golden, "{gap}step {number}: plan of {steps}").unwrap();
        for expectation in &step.expect {
            self.expectation(number, expectation, &compiled);
        }
        for diagnostic in &compiled.diagnostics {
            writeln!(self.out.golden, "{diagnostic}").unwrap();
        }
    }

    /// Takes the steps from what is observed to what is desired; tells how many.
    fn bring(&mut self, line: u64, compiled: &Compiled) -> usize {
        let plan = diff(&compiled.desired, &self.observed);
        for step in &plan.steps {
            self.observed.apply(step);
        }
        let mut desired = compiled.desired.clone();
        desired.config.revision = self.observed.config.revision;
        if desired != self.observed {
            self.fail(line, &format!("the plan does not lead to the desired state:\n{plan}"));
        }
        let second = diff(&compiled.desired, &self.observed);
        if !second.steps.is_empty() {
            self.fail(line, &format!("a second plan is not empty:\n{second}"));
        }
        plan.steps.len()
    }

    fn expectation(&mut self, step: usize, wanted: &Expectation, compiled: &Compiled) {
        let mut parts = wanted.from.splitn(3, '/');
        let (Some(namespace), Some(name), container) = (parts.next(), parts.next(), parts.next()) else {
            return;
        };
        let sender = self.world.sender(&wanted.from);
        let cgroup = sender.0;
        let Some(endpoint) = compiled.endpoints.get(&cgroup) else {
            return self.fail(wanted.line, &format!("{} is no pod that {NODE} knows", wanted.from));
        };
        let own = &endpoint.addresses;
        let reachable = |to: &IpAddr| own.is_empty() || own.iter().any(|ip| ip.is_ipv4() == to.is_ipv4());
        let addresses: Vec<IpAddr> = match &wanted.to {
            Destination::Address(ip) => vec![*ip],
            to => addresses(&self.world, to).into_iter().filter(reachable).collect(),
        };
        if addresses.is_empty() {
            self.fail(wanted.line, &format!("{}: the destination has no address", wanted.flow));
        }
        for address in addresses {
            // What a pod sends to itself goes by its loopback device.
            let device = if address.is_loopback() || own.contains(&address) { 1 } else { 2 };
            let port = match wanted.protocol {
                Protocol::Tcp => format!("tcp/{}", wanted.port),
                Protocol::Udp => format!("udp/{}", wanted.port),
                Protocol::Sctp => format!("sctp/{}", wanted.port),
                Protocol::Icmp => "icmp".to_owned(),
            };
            let verdict = judge_from(device, &self.observed, sender, &address.to_string(), &port);
            let probe = Probe { destination: address, protocol: wanted.protocol, port: wanted.port };
            let reference = evaluate(&self.world.index, NODE, (namespace, name), container, &probe);
            let answer = match reference.answer {
                Answer::Allow => Action::Allow,
                Answer::Deny => Action::Deny,
                Answer::Audit => Action::Audit,
            };
            self.out.verdicts += 1;
            let golden = self.golden(wanted, address, &verdict, compiled, sender);
            self.out.golden.push_str(&golden);
            let here =
                |k: &&Known| (k.scenario, k.step, k.flow) == (&*self.scenario.name, step, &*wanted.flow);
            let known = self.known.iter().find(here);
            let expected = known.map_or(wanted.action, |known| known.says);
            if known.is_some_and(|known| known.says == wanted.action) {
                self.fail(wanted.line, "listed as a known disagreement, but nobody disagrees");
            }
            let said = format!("{} ({address}) is expected to be {}", wanted.flow, expected.name());
            if verdict.action != expected {
                let (is, why) = (verdict.action.name(), verdict.reason.name());
                self.fail(wanted.line, &format!("{said}; decide() says {is} ({why})"));
            }
            if answer != expected {
                self.fail(wanted.line, &format!("{said}; the reference says {reference}"));
            }
            let other = |reason: &str| known.is_none() && reason != verdict.reason.name();
            if wanted.reason.as_deref().is_some_and(other) {
                self.fail(wanted.line, &format!("{}: the reason is {}", wanted.flow, verdict.reason.name()));
            }
        }
    }

    fn golden(
        &self,
        wanted: &Expectation,
        address: IpAddr,
        verdict: &Verdict,
        compiled: &Compiled,
        (cgroup, container): (u64, u64),
    ) -> String {
        let protocol = match wanted.protocol {
            Protocol::Tcp => protocol::TCP,
            Protocol::Udp => protocol::UDP,
            Protocol::Sctp => protocol::SCTP,
            Protocol::Icmp => protocol::ICMP,
        };
        let target = Target { address, protocol, port: wanted.port, behind: false };
        let owner = owner(&self.world, address).map_or(String::new(), |owner| format!(" ({owner})"));
        let policy = self.observed.endpoints.get(&cgroup).map_or(0, |endpoint| {
            let proxy = endpoint.proxies.iter().find(|proxy| container != 0 && proxy.cgroup == container);
            proxy.map_or(endpoint.policy, |proxy| proxy.policy)
        });
        let rule = compiled.provenance.rule(policy, verdict.rule);
        let rule = rule.map_or(String::new(), |rule| format!(" by {} {}", rule.object, rule.path));
        let (action, reason) = (verdict.action.name(), verdict.reason.name());
        format!("{} -> {target}{owner}: {action} {reason}{rule}\n", wanted.from)
    }
}

/// The addresses of a pod or a service.
fn addresses(world: &World, to: &Destination) -> Vec<IpAddr> {
    match to {
        Destination::Address(ip) => vec![*ip],
        Destination::Pod(name) => {
            let pods = world.index.pods().filter(|pod| format!("{}/{}", pod.namespace, pod.name) == *name);
            pods.flat_map(|pod| pod.addresses.to_vec()).collect()
        }
        Destination::Service(name) => {
            let services = world.index.services();
            let named = services.filter(|svc| format!("{}/{}", svc.namespace, svc.name) == *name);
            named.flat_map(|service| service.vips.clone()).collect()
        }
    }
}

/// Whose address it is: a pod's, a node's, or a service's, in this order.
fn owner(world: &World, ip: IpAddr) -> Option<String> {
    let owns = |pod: &&Pod| !pod.host_network && !pod.finished && pod.addresses.contains(&ip);
    let pod = world.index.pods().find(owns);
    let node = world.index.nodes().find(|node| node.addresses.contains(&ip));
    let service = world.index.services().find(|service| service.vips.contains(&ip));
    pod.map(|pod| format!("pod {}/{}", pod.namespace, pod.name))
        .or_else(|| node.map(|node| format!("node {}", node.name)))
        .or_else(|| service.map(|service| format!("service {}/{}", service.namespace, service.name)))
}
