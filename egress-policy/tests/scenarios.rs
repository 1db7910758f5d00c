//! What the documentation promises, sentence by sentence, as files; see `tests/scenarios/README.md`.
//!
//! `UPDATE_GOLDEN=1` writes the golden files anew.

mod common;
mod script;

use std::collections::BTreeSet;
use std::{env, fs};

use egress_common::Action;
use script::run::{Known, run};
use script::{Expectation, Scenario, at, expectation, files, list, root};
use serde_json::Value;

/// Where documentation and enforcer are known to disagree. The scenario says what is documented.
const KNOWN: &[Known] = &[];

/// Scenarios that cannot show both sides, and why.
const ONE_SIDED: &[(&str, &str)] = &[];

fn scenarios() -> Vec<Scenario> {
    let (scenarios, errors) = script::scenarios();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    scenarios
}

/// Fails with every message, one a line.
fn none(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_scenario_comes_out_as_written() {
    let update = env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
    let (mut failures, mut verdicts) = (Vec::new(), 0);
    for scenario in scenarios() {
        let outcome = run(&scenario, KNOWN);
        verdicts += outcome.verdicts;
        let path = scenario.path.with_extension("golden");
        if !outcome.failures.is_empty() {
            failures.extend(outcome.failures);
        } else if update {
            fs::write(&path, &outcome.golden).unwrap();
        } else {
            let held = fs::read_to_string(&path).unwrap_or_default();
            let mut lines = (1..).zip(outcome.golden.lines().map(Some).chain([None]));
            let mut expected = held.lines();
            let differs = lines.find(|(_, line)| *line != expected.next());
            if let Some((number, line)) = differs.filter(|_| held != outcome.golden) {
                failures.push(at(&path, number, &format!("differs; now: {}", line.unwrap_or("the end"))));
            }
        }
    }
    none(&failures);
    println!("{verdicts} verdicts");
}

#[test]
fn every_scenario_shows_both_sides() {
    let mut failures = Vec::new();
    for scenario in scenarios() {
        let all: Vec<&Expectation> = scenario.steps.iter().flat_map(|step| &step.expect).collect();
        let (allowed, stopped): (Vec<_>, Vec<_>) = all.into_iter().partition(|e| e.action == Action::Allow);
        let mut fail = |line, reason: &str| failures.push(at(&scenario.path, line, reason));
        if scenario.steps.iter().all(|step| step.expect.is_empty()) {
            fail(1, "nothing is expected");
        }
        for step in scenario.steps.iter().filter(|step| step.expect.is_empty()) {
            fail(step.line, "nothing is expected of this step");
        }
        if ONE_SIDED.iter().any(|(name, _)| *name == scenario.name) {
            continue;
        }
        if allowed.is_empty() || stopped.is_empty() {
            fail(1, "not both of allow and deny (or audit) are expected");
        }
        for denied in stopped {
            // The same flow but for one thing: the step, who sends, where to, or on which port.
            if !allowed.iter().any(|twin| same_parts(twin, denied) >= 2) {
                fail(denied.line, &format!("{}: nothing like it is allowed in this file", denied.flow));
            }
        }
    }
    none(&failures);
}

/// In how many of sender, destination and port two expectations are the same.
fn same_parts(one: &Expectation, other: &Expectation) -> usize {
    let port = (one.protocol, one.port) == (other.protocol, other.port);
    [one.from == other.from, one.to == other.to, port].into_iter().filter(|same| *same).count()
}

#[test]
fn every_file_belongs_to_a_scenario() {
    let scenarios = scenarios();
    let mut failures = Vec::new();
    for file in files() {
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("yaml") => {}
            Some("golden") if file.with_extension("yaml").exists() => {}
            Some("golden") => failures.push(at(&file, 1, "no scenario has this golden file")),
            _ => failures.push(at(&file, 1, "neither a scenario nor a golden file")),
        }
    }
    for file in list(&root()).into_iter().filter(|file| file.extension().is_some_and(|e| e == "yaml")) {
        let is = |base: &str| file.file_name().is_some_and(|name| name == base);
        if !scenarios.iter().any(|scenario| is(&scenario.header.base)) {
            failures.push(at(&file, 1, "no scenario starts from it"));
        }
    }
    let names: BTreeSet<&str> = scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
    for known in KNOWN {
        let scenario = scenarios.iter().find(|scenario| scenario.name == known.scenario);
        let step = scenario.and_then(|scenario| scenario.steps.get(known.step.wrapping_sub(1)));
        let there = step.is_some_and(|step| step.expect.iter().any(|e| e.flow == known.flow));
        if known.why.is_empty() || !there {
            failures.push(format!("KNOWN: there is no {} in {}", known.flow, known.scenario));
        }
    }
    for (name, why) in ONE_SIDED {
        if why.is_empty() || !names.contains(name) {
            failures.push(format!("ONE_SIDED: there is no {name}"));
        }
    }
    for scenario in &scenarios {
        let header = &scenario.header;
        let texts = [&header.title, &header.sentence, &header.source];
        let mut texts = texts.into_iter().chain(&header.note).chain(&header.differs);
        if texts.any(|text| text.trim().is_empty()) {
            failures.push(at(&scenario.path, 1, "one of title, sentence, source, note and differs is empty"));
        }
    }
    none(&failures);
}

/// Fields of both kinds of policy, as paths without indices; each is in some scenario.
const FIELDS: &[&str] = &[
    "EgressGatewayPolicy spec.enforcement",
    "EgressGatewayPolicy spec.subjects.namespaces",
    "EgressGatewayPolicy spec.subjects.pods",
    "EgressGatewayPolicy spec.subjects.serviceAccounts",
    "EgressGatewayPolicy spec.subjects.systemNamespaces",
    "EgressGatewayPolicy spec.proxy.containers",
    "EgressGatewayPolicy spec.proxy.scope",
    "EgressGatewayPolicy spec.gateways.name",
    "EgressGatewayPolicy spec.gateways.namespaces",
    "EgressGatewayPolicy spec.gateways.pods",
    "EgressGatewayPolicy spec.gateways.addresses",
    "EgressGatewayPolicy spec.gateways.ports.protocol",
    "EgressGatewayPolicy spec.gateways.ports.port",
    "EgressGatewayPolicy spec.gateways.ports.endPort",
    "EgressGatewayPolicy spec.gateways.clients.namespaces",
    "EgressGatewayPolicy spec.gateways.clients.pods",
    "EgressGatewayPolicy spec.gateways.clients.serviceAccounts",
    "EgressGatewayPolicy spec.gateways.destinations.cidr",
    "EgressGatewayPolicy spec.gateways.destinations.except",
    "EgressGatewayPolicy spec.gateways.destinations.ports.port",
    "EgressGatewayPolicy spec.allow.dns",
    "EgressGatewayPolicy spec.allow.inCluster",
    "EgressGatewayPolicy spec.allow.apiServer",
    "EgressGatewayPolicy spec.allow.node",
    "EgressGatewayPolicy spec.allow.to.namespaces",
    "EgressGatewayPolicy spec.allow.to.pods",
    "EgressGatewayPolicy spec.allow.to.cidr",
    "EgressGatewayPolicy spec.allow.to.except",
    "EgressGatewayPolicy spec.allow.to.service.namespace",
    "EgressGatewayPolicy spec.allow.to.service.name",
    "EgressGatewayPolicy spec.allow.to.ports.port",
    "NetworkPolicy metadata.annotations.egress-enforcer.io/enforcement",
    "NetworkPolicy spec.podSelector",
    "NetworkPolicy spec.policyTypes",
    "NetworkPolicy spec.ingress",
    "NetworkPolicy spec.egress.to.podSelector",
    "NetworkPolicy spec.egress.to.namespaceSelector",
    "NetworkPolicy spec.egress.to.ipBlock.cidr",
    "NetworkPolicy spec.egress.to.ipBlock.except",
    "NetworkPolicy spec.egress.ports.protocol",
    "NetworkPolicy spec.egress.ports.port",
    "NetworkPolicy spec.egress.ports.endPort",
];

fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    found.insert(path.to_owned());
    match value {
        Value::Array(items) => items.iter().for_each(|item| paths(item, path, found)),
        Value::Object(fields) => {
            for (field, value) in fields {
                paths(value, &format!("{path}.{field}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_field_has_a_scenario() {
    let mut found = BTreeSet::new();
    for object in scenarios().iter().flat_map(|scenario| &scenario.steps).flat_map(|step| &step.apply) {
        let kind = object["kind"].as_str().unwrap_or_default();
        for part in ["metadata", "spec"] {
            paths(&object[part], &format!("{kind} {part}"), &mut found);
        }
    }
    let missing: Vec<_> = FIELDS.iter().filter(|field| !found.contains(**field)).copied().collect();
    assert!(missing.is_empty(), "no scenario has {missing:?}");
}

#[test]
fn what_is_no_expectation_is_refused() {
    let reads = |flow: &str, verdict: &str| expectation(1, flow, verdict).is_some();
    for flow in [
        "a/b -> 10.0.0.1:80/TCP",
        "a/b -> 10.0.0.1/ICMP",
        "a/b -> [fd00::1]:80/SCTP",
        "a/b -> fd00::1/ICMP",
        "a/b -> c/d:53/UDP",
        "a/b -> svc:c/d:53/UDP",
        "a/b -> c/d/ICMP",
        "a/b/c -> c/d/ICMP",
    ] {
        assert!(reads(flow, "allow") && reads(flow, "deny NotAllowed"), "{flow}");
        assert!(!reads(flow, "pass") && !reads(flow, "deny Whatever"), "{flow}");
    }
    for flow in [
        "a/b 10.0.0.1:80/TCP",
        "a -> 10.0.0.1:80/TCP",
        "a/b -> 10.0.0.1/TCP",
        "a/b -> 10.0.0.1:80",
        "a/b -> 10.0.0.1:80/tcp",
        "a/b -> 10.0.0:80/TCP",
        "a/b -> 10.0.0.1:66000/TCP",
        "a/b -> svc:d:53/UDP",
        "a/b -> c/d/e:53/UDP",
        "a/b/c/d -> c/d:53/UDP",
        "a/b/ -> c/d:53/UDP",
    ] {
        assert!(!reads(flow, "allow"), "{flow}");
    }
}
