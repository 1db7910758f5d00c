//! The list of metrics is what is served, what `docs/metrics.md` says, and all that dashboard and alert rules speak of.
//! `UPDATE_GOLDEN=1` writes the page anew.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/scrape.rs"]
mod scrape;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs};

use egress_agent::admin::server::Published;
use egress_agent::cluster::ServiceStatus;
use egress_agent::metrics::{Behaviour, Label, METRICS, Meters, Metric, Metrics, PREFIX, document};
use egress_agent::status::WatchStatus;
use scrape::{Kind, parse};
use serde_json::Value;
use tokio::sync::watch;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The metric that a query means by a name.
fn metric(series: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.series().iter().any(|name| name == series))
}

#[test]
fn the_page_is_what_the_list_says() {
    let path = root().join("docs/metrics.md");
    if env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(&path, document()).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap();
    assert!(page == document(), "docs/metrics.md is not what the list says: UPDATE_GOLDEN=1 writes it anew");
    for metric in METRICS {
        assert!(page.contains(&format!("{PREFIX}_{}", metric.name)), "{}", metric.name);
    }
}

#[test]
fn names_follow_the_rules_of_prometheus() {
    let mut names = BTreeSet::new();
    for metric in METRICS {
        let Metric { name, behaviour, labels, help } = *metric;
        assert!(names.insert(name), "{name} is there twice");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert!(
            !["total", "count", "sum", "bucket"].iter().any(|end| name.ends_with(&format!("_{end}"))),
            "{name}"
        );
        let duration =
            behaviour == Behaviour::Histogram || name.contains("_age") || name.contains("duration");
        assert!(!duration || name.ends_with("_seconds"), "{name}");
        assert!(!help.ends_with('.') && help.len() > 5 || help == "Always 1", "{name}: {help}");
        let own: BTreeSet<_> = labels.iter().map(|label| label.name()).collect();
        assert_eq!(own.len(), labels.len(), "{name}");
        assert!(!own.contains("pod") && !own.contains("namespace") && !own.contains("le"), "{name}");
    }
    for label in Label::ALL {
        let values = label.values().unwrap_or_default();
        assert_eq!(values.iter().collect::<BTreeSet<_>>().len(), values.len(), "{label:?}");
    }
}

#[test]
fn what_is_served_is_the_list_in_both_formats() {
    let mut published = Published::starting("n".to_owned());
    let watch = WatchStatus { kind: "Pod".to_owned(), state: "Failing".to_owned(), ..WatchStatus::default() };
    published.status.source.watches.push(watch);
    let service = |name: &str, state: &str, left_out| ServiceStatus {
        name: name.to_owned(),
        state: state.to_owned(),
        left_out,
        ..ServiceStatus::default()
    };
    published.status.services =
        vec![service("leader election", "Leading", 0), service("pod events", "Failing", 7)];
    published.measured.nodes = 3;
    let (_publish, published) = watch::channel(Arc::new(published));
    let meters = Arc::new(Meters::default());
    meters.arrived(std::time::Instant::now());
    meters.applied(std::time::Instant::now());
    let metrics = Metrics::new(published, meters);
    for openmetrics in [true, false] {
        let text = metrics.encode(openmetrics).unwrap();
        assert_eq!(text.ends_with("# EOF\n"), openmetrics);
        let scrape = parse(&text, openmetrics);
        let told: BTreeSet<&str> = scrape.families.keys().map(String::as_str).collect();
        let names: Vec<String> = METRICS
            .iter()
            .map(|metric| {
                let counts = metric.behaviour == Behaviour::Counter && !openmetrics;
                format!("{PREFIX}_{}{}", metric.name, if counts { "_total" } else { "" })
            })
            .collect();
        assert_eq!(told, names.iter().map(String::as_str).collect());
        for (series, labels, _) in &scrape.samples {
            let metric = metric(series).unwrap_or_else(|| panic!("{series} is not in the list"));
            let kind = match metric.behaviour {
                Behaviour::Counter => Kind::Counter,
                Behaviour::Gauge => Kind::Gauge,
                Behaviour::Histogram => Kind::Histogram,
            };
            let name = metric.series()[0].clone();
            let family =
                if openmetrics || kind != Kind::Counter { format!("{PREFIX}_{}", metric.name) } else { name };
            assert_eq!(scrape.families[&family], kind, "{series}");
            let own: BTreeSet<&str> = metric.labels.iter().map(|label| label.name()).collect();
            let told: BTreeSet<&str> =
                labels.keys().map(String::as_str).filter(|name| *name != "le").collect();
            assert_eq!(told, own, "{series}");
        }
        assert_eq!(scrape.value("watch_state", &[("kind", "Pod"), ("state", "Failing")]), Some(1.0));
        assert_eq!(scrape.value("watch_state", &[("kind", "Pod"), ("state", "Watching")]), Some(0.0));
        let is = |service: &str, state: &str| {
            scrape.value("service_state", &[("service", service), ("state", state)]).unwrap()
        };
        assert_eq!((is("leader election", "Leading"), is("leader election", "Following")), (1.0, 0.0));
        assert_eq!((is("pod events", "Failing"), is("pod events", "Working")), (1.0, 0.0));
        assert_eq!(scrape.value("service_left_out_total", &[("service", "pod events")]), Some(7.0));
        assert_eq!(scrape.value("nodes", &[]), Some(3.0));
        assert_eq!(scrape.value("event_to_enforced_seconds_count", &[]), Some(1.0));
        assert_eq!(scrape.value("ready", &[]), Some(0.0));
        assert_eq!(
            scrape.value("bypass_attempts_total", &[("action", "deny"), ("hook", "socket")]),
            Some(0.0)
        );
    }
}

/// A metric in a query, with the conditions on its labels.
#[derive(Debug)]
struct Selector {
    series: String,
    matchers: Vec<(String, String, String)>,
}

/// Labels that Prometheus gives to everything it scrapes, and that of histograms.
const SCRAPED: [&str; 3] = ["instance", "job", "le"];

/// Words of the query language that are used; anything else that is no metric is a mistake.
const WORDS: &[&str] = &[
    "absent",
    "sum",
    "max",
    "count",
    "topk",
    "by",
    "on",
    "unless",
    "and",
    "max_over_time",
    "min_over_time",
    "or",
    "vector",
    "rate",
    "increase",
    "resets",
    "histogram_quantile",
    "label_values",
];

/// Takes a query apart: the metrics, and the labels that are grouped by. Words that are neither fail.
fn selectors(query: &str) -> (Vec<Selector>, BTreeSet<String>) {
    let (mut found, mut grouped) = (Vec::new(), BTreeSet::new());
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '$';
    let mut rest = query;
    while let Some(at) = rest.find(word) {
        let end = rest[at..].find(|c| !word(c)).map_or(rest.len(), |length| at + length);
        let name = &rest[at..end];
        rest = rest[end..].trim_start();
        if name.starts_with(|c: char| c.is_ascii_digit() || c == '$') {
            continue;
        }
        if name == "up" || name.starts_with(PREFIX) {
            let mut matchers = Vec::new();
            if let Some(inside) = rest.strip_prefix('{') {
                let (inside, after) = inside.split_once('}').unwrap();
                rest = after;
                for matcher in inside.split("\",").map(|one| one.trim_end_matches('"')) {
                    let (left, value) = matcher.split_once('"').unwrap();
                    let label: String = left.chars().take_while(|c| word(*c)).collect();
                    matchers.push((label.clone(), left[label.len()..].to_owned(), value.to_owned()));
                }
            }
            found.push(Selector { series: name.to_owned(), matchers });
        } else {
            assert!(WORDS.contains(&name), "{name} in {query}");
            if ["by", "on"].contains(&name) {
                let (inside, after) = rest.strip_prefix('(').unwrap().split_once(')').unwrap();
                grouped.extend(inside.split(',').map(|label| label.trim().to_owned()));
                rest = after;
            } else if name == "label_values" {
                let label = rest.rsplit_once(',').unwrap().1.trim().trim_end_matches(')');
                grouped.insert(label.to_owned());
                rest = &rest[..rest.rfind(',').unwrap()];
            }
        }
    }
    (found, grouped)
}

/// Holds a query against the list; gives the metrics that it uses.
fn check(query: &str) -> BTreeSet<&'static str> {
    let (found, grouped) = selectors(query);
    let mut labels: BTreeSet<&str> = SCRAPED.into();
    let mut used = BTreeSet::new();
    for Selector { series, matchers } in &found {
        if series == "up" {
            continue;
        }
        let metric = metric(series).unwrap_or_else(|| panic!("there is no metric {series}, in {query}"));
        used.insert(metric.name);
        labels.extend(metric.labels.iter().map(|label| label.name()));
        for (name, operator, value) in matchers {
            if SCRAPED.contains(&name.as_str()) {
                continue;
            }
            let label = metric.labels.iter().find(|label| label.name() == name);
            let label = label.unwrap_or_else(|| panic!("{series} has no label {name}, in {query}"));
            let regular = operator.ends_with('~');
            for one in value.split(|c| regular && c == '|') {
                let known = label.values().is_none_or(|values| values.contains(&one));
                assert!(known, "{series} never has {name}={one}, in {query}");
            }
        }
    }
    assert!(!found.is_empty(), "no metric in {query}");
    for label in &grouped {
        assert!(labels.contains(label.as_str()), "no metric has the label {label}, in {query}");
    }
    used
}

/// Labels of templates: `{{ $labels.x }}` of alerts, `{{x}}` of legends.
fn templated(text: &str) -> BTreeSet<String> {
    let inside = text.split("{{").skip(1).map(|one| one.split_once("}}").unwrap().0.trim());
    inside
        .filter_map(|one| match one.split_once("$labels.") {
            Some((_, label)) => label.split_whitespace().next(),
            None => (!one.starts_with('$')).then_some(one),
        })
        .map(str::to_owned)
        .collect()
}

/// The labels that the result of a query can have.
fn labels_of(query: &str) -> BTreeSet<String> {
    let (found, grouped) = selectors(query);
    if query.contains(" by (") {
        return grouped.into_iter().filter(|label| label != "le").collect();
    }
    let own = found.iter().filter_map(|one| metric(&one.series)).flat_map(|metric| metric.labels);
    own.map(|label| label.name().to_owned()).chain(["instance".to_owned(), "job".to_owned()]).collect()
}

#[test]
fn the_dashboard_speaks_of_metrics_that_there_are() {
    let text = fs::read_to_string(root().join("deploy/dashboards/egress-enforcer.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut used = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().unwrap().len() > 5, "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            used.extend(check(query));
            assert!(query.contains(r#"instance=~"$instance""#), "the choice of nodes counts in {query}");
            let labels = labels_of(query);
            for label in templated(target["legendFormat"].as_str().unwrap()) {
                assert!(labels.contains(&label), "{label} in the legend of {query}");
            }
        }
    }
    check(dashboard["annotations"]["list"][0]["expr"].as_str().unwrap());
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            check(variable["query"].as_str().unwrap());
        }
    }
    assert!(used.len() > 20, "{used:?}");
}

#[test]
fn the_alert_rules_speak_of_metrics_that_there_are_and_say_what_to_do() {
    let text = fs::read_to_string(root().join("deploy/alerts/egress-enforcer.yaml")).unwrap();
    let rules: Value = serde_saphyr::from_str(&text).unwrap();
    let mut names = BTreeSet::new();
    let mut used = BTreeSet::new();
    for group in rules["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            let name = rule["alert"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} is there twice");
            let query = rule["expr"].as_str().unwrap();
            used.extend(check(query));
            let severity = rule["labels"]["severity"].as_str().unwrap();
            assert!(["critical", "warning", "info"].contains(&severity), "{name}");
            let labels = labels_of(query);
            for key in ["summary", "description", "runbook"] {
                let text = rule["annotations"][key].as_str().unwrap_or_else(|| panic!("{name} has no {key}"));
                assert!(text.len() > 20, "{name}: {key}");
                for label in templated(text) {
                    assert!(labels.contains(&label), "{name}: {label} in {text}");
                }
            }
        }
    }
    for metric in [
        "bypass_attempts",
        "ready",
        "map_entries",
        "watch_state",
        "behind_seconds",
        "lost_events",
        "invalid_policies",
        "service_state",
        "nodes",
    ] {
        assert!(used.contains(metric), "no rule is about {metric}");
    }
}

#[test]
fn a_query_with_a_mistake_is_found() {
    let wrong = |query: &str| std::panic::catch_unwind(|| check(query)).is_err();
    let right =
        r#"sum by (reason) (rate(egress_enforcer_verdicts_total{action="deny",instance=~"$instance"}[5m]))"#;
    assert!(!wrong(right));
    let mistakes = BTreeMap::from([
        ("verdicts_total", "verdicts"),
        ("reason", "raeson"),
        ("action=", "verb="),
        ("\"deny\"", "\"denied\""),
        ("rate(", "rat("),
    ]);
    for (good, bad) in mistakes {
        assert!(wrong(&right.replace(good, bad)), "{bad}");
    }
}
