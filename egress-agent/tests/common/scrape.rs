//! Reads what `/metrics` serves, strictly: what Prometheus would refuse fails here.
#![allow(
    clippy::allow_attributes,
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part, and none is seen from outside"
)]
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A scrape.
#[derive(Debug, Default)]
pub struct Scrape {
    pub families: BTreeMap<String, Kind>,
    /// Name, labels, value.
    pub samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Scrape {
    /// The value of a series, by its name without the prefix and all of its labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let name = format!("egress_enforcer_{name}");
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut found = self.samples.iter().filter(|(of, own, _)| *of == name && *own == labels);
        let value = found.next().map(|(_, _, value)| *value);
        assert!(found.next().is_none(), "{name} is there twice");
        value
    }

    /// The sum of the series of a name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("egress_enforcer_{name}");
        let has = |own: &BTreeMap<String, String>| {
            labels.iter().all(|(key, value)| own.get(*key).is_some_and(|own| own == value))
        };
        self.samples.iter().filter(|(of, own, _)| *of == name && has(own)).map(|(_, _, value)| value).sum()
    }
}

/// Reads a scrape in one of the two formats.
#[track_caller]
pub fn parse(text: &str, openmetrics: bool) -> Scrape {
    let mut scrape = Scrape::default();
    let mut helped = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split_once(' ').expect(line).0.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert_eq!(name, helped, "{line}");
            let kind = match kind {
                "counter" => Kind::Counter,
                "gauge" => Kind::Gauge,
                "histogram" => Kind::Histogram,
                _ => panic!("{line}"),
            };
            assert!(scrape.families.insert(name.to_owned(), kind).is_none(), "{line}");
        } else if line == "# EOF" {
            assert!(openmetrics && text.ends_with("# EOF\n"));
        } else {
            sample(line, &helped, openmetrics, &mut scrape);
        }
    }
    scrape
}

fn sample(line: &str, family: &str, openmetrics: bool, scrape: &mut Scrape) {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let value: f64 = value.parse().expect(line);
    let (name, inside) = match series.split_once('{') {
        Some((name, inside)) => (name, inside.strip_suffix('}').expect(line)),
        None => (series, ""),
    };
    let suffix = name.strip_prefix(family).expect(line);
    let suffixes: &[&str] = match (scrape.families[family], openmetrics) {
        (Kind::Counter, true) => &["_total"],
        (Kind::Counter, false) | (Kind::Gauge, _) => &[""],
        (Kind::Histogram, _) => &["_bucket", "_sum", "_count"],
    };
    assert!(suffixes.contains(&suffix), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = inside;
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"").expect(line);
        let end = closing(after).expect(line);
        assert!(labels.insert(key.to_owned(), unescaped(&after[..end])).is_none(), "{line}");
        rest = after[end + 1..].trim_start_matches(',');
    }
    scrape.samples.push((name.to_owned(), labels, value));
}

/// Where a value ends.
fn closing(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends.then_some(at)
    })
}

fn unescaped(text: &str) -> String {
    text.replace("\\\"", "\"").replace("\\n", "\n").replace("\\\\", "\\")
}
