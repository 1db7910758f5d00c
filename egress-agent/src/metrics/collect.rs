//! From the published snapshot to the text of a scrape.
//!
//! Invariant: a scrape reads what was published and asks nobody, so that it costs the owner task nothing and cannot be made to
//! wait. Tested by `tests/metrics.rs` and `tests/operate.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeMetric as _, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use egress_common::{Action, Hook, Reason};
use egress_policy::compile::Severity;

use super::list::{self, Behaviour, Metric, PREFIX, SERVICE_STATES, SEVERITIES, STATES, WATCH_STATES};
use super::{Coverage, Meters, process};
use crate::admin::server::Published;

/// Media type of the `OpenMetrics` text, which who asks for it gets.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Media type of Prometheus' own text, which everybody else gets.
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything that is told.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Metrics of what is published and measured.
    #[must_use]
    pub fn new(published: watch::Receiver<Arc<Published>>, meters: Arc<Meters>) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Snapshot { published, meters }));
        Self { registry }
    }

    /// The text of a scrape, in the format of [`OPENMETRICS`] or of [`PLAIN`].
    ///
    /// # Errors
    /// None that is known: writing to a string does not fail.
    pub fn encode(&self, openmetrics: bool) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(if openmetrics { out } else { plain(&out) })
    }
}

/// Prometheus' own text says the type of a counter by the name that its samples have, and has no end mark.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF") {
        let counter = ["# HELP ", "# TYPE "].iter().find_map(|head| {
            let (name, rest) = line.strip_prefix(head)?.split_once(' ')?;
            let is =
                |one: &&Metric| name.strip_prefix(PREFIX).and_then(|n| n.strip_prefix('_')) == Some(one.name);
            let metric = list::METRICS.iter().find(is)?;
            (metric.behaviour == Behaviour::Counter).then(|| format!("{head}{name}_total {rest}"))
        });
        out.push_str(counter.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out
}

#[derive(Debug)]
struct Snapshot {
    published: watch::Receiver<Arc<Published>>,
    meters: Arc<Meters>,
}

/// Writes metrics that are in the list.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauges<'v, const N: usize>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = ([&'v str; N], f64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(metric.name, metric.help, None, MetricType::Gauge)?;
        for (values, number) in samples {
            if N == 0 {
                encoder.encode_gauge(&number)?;
            } else {
                encoder.encode_family(&labels(metric, values))?.encode_gauge(&number)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, metric: &Metric, number: f64) -> fmt::Result {
        self.gauges(metric, [([], number)])
    }

    fn counters<'v, const N: usize, V: EncodeCounterValue>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = ([&'v str; N], V)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(metric.name, metric.help, None, MetricType::Counter)?;
        for (values, number) in samples {
            if N == 0 {
                encoder.encode_counter::<NoLabelSet, _, u64>(&number, None)?;
            } else {
                let labels = labels(metric, values);
                encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&number, None)?;
            }
        }
        Ok(())
    }

    fn counter(&mut self, metric: &Metric, number: impl EncodeCounterValue) -> fmt::Result {
        self.counters(metric, [([], number)])
    }

    fn histogram(&mut self, metric: &Metric, histogram: &Histogram) -> fmt::Result {
        let encoder = self.0.encode_descriptor(metric.name, metric.help, None, MetricType::Histogram)?;
        histogram.encode(encoder)
    }
}

fn labels<'v, const N: usize>(metric: &Metric, values: [&'v str; N]) -> Vec<(&'static str, &'v str)> {
    metric.labels.iter().map(|label| label.name()).zip(values).collect()
}

#[expect(clippy::cast_precision_loss, reason = "numbers of things: far below 2^53")]
fn number(number: impl TryInto<u64>) -> f64 {
    number.try_into().map_or(f64::NAN, |number| number as f64)
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = Arc::clone(&self.published.borrow());
        let mut out = Out(encoder);
        self.agent(&mut out, &now)?;
        verdicts(&mut out, &now)?;
        out.counter(&list::FLOWS_LOST, self.meters.flows_lost())?;
        endpoints(&mut out, &now)?;
        self.maps(&mut out, &now)?;
        source(&mut out, &now)?;
        services(&mut out, &now)?;
        out.counter(&list::REFUSED, self.meters.refused())?;
        out.gauges(&list::MEMORY, process::memory().map(|bytes| ([], number(bytes))))?;
        out.counters(&list::CPU, process::cpu().map(|seconds| ([], seconds)))
    }
}

impl Snapshot {
    fn agent(&self, out: &mut Out<'_>, now: &Published) -> fmt::Result {
        let status = &now.status;
        let abi = status.abi.to_string();
        out.gauges(&list::BUILD, [([env!("CARGO_PKG_VERSION"), &abi], 1.0)])?;
        out.gauge(&list::READY, f64::from(u8::from(status.ready)))?;
        out.gauge(&list::PENDING, number(status.pending.len()))?;
        out.gauge(&list::TURN_AGE, self.meters.turn_age().as_secs_f64())?;
        out.gauges(&list::HOOKS, status.hooks.iter().map(|hook| ([&*hook.program], 1.0)))?;
        out.gauge(&list::LACKS, number(status.lacks.len()))?;
        out.gauge(&list::ERRORS, number(status.errors.len()))
    }

    fn maps(&self, out: &mut Out<'_>, now: &Published) -> fmt::Result {
        let maps = &now.status.maps;
        out.gauges(&list::MAP_ENTRIES, maps.iter().map(|fill| ([&*fill.map], number(fill.entries))))?;
        out.gauges(&list::MAP_CAPACITY, maps.iter().map(|fill| ([&*fill.map], number(fill.capacity))))?;
        out.gauge(&list::REVISION, number(now.status.revision))?;
        out.gauge(&list::REVISION_AGE, self.meters.revision_age().as_secs_f64())?;
        out.gauge(&list::BEHIND, self.meters.behind().as_secs_f64())?;
        out.histogram(&list::APPLY, &self.meters.apply)?;
        out.histogram(&list::ENFORCED, &self.meters.enforced)
    }
}

fn verdicts(out: &mut Out<'_>, now: &Published) -> fmt::Result {
    let verdicts = &now.status.verdicts;
    let by = |packets: bool| {
        verdicts.iter().map(move |one| {
            ([&*one.action, &*one.reason, &*one.hook], if packets { one.packets } else { one.bytes })
        })
    };
    out.counters(&list::VERDICTS, by(true))?;
    out.counters(&list::BYTES, by(false))?;
    // Told as zero as well, so that the first one is an increase.
    let kinds =
        Hook::ALL.into_iter().flat_map(|hook| [Action::Deny, Action::Audit].map(|action| (action, hook)));
    let bypasses = kinds.map(|(action, hook)| {
        let labels = [action.name(), hook.name()];
        let of = verdicts
            .iter()
            .filter(|one| one.reason == Reason::SidecarBypass.name() && [&*one.action, &*one.hook] == labels);
        (labels, of.map(|one| one.packets).sum::<u64>())
    });
    out.counters(&list::BYPASSES, bypasses)?;
    let by_policy = &now.measured.by_policy;
    let of_policy =
        by_policy.iter().map(|one| ([&*one.policy, one.action, one.reason, one.hook], one.packets));
    out.counters(&list::BY_POLICY, of_policy)?;
    let mut suppressed = BTreeMap::<[&str; 2], u64>::new();
    for one in by_policy {
        *suppressed.entry([one.reason, one.hook]).or_default() += one.suppressed;
    }
    out.counters(&list::SUPPRESSED, suppressed)?;
    out.counter(&list::LOST, now.status.lost_events)?;
    out.counters(&list::SEVERED, now.status.severed.map(|number| ([], number)))
}

fn endpoints(out: &mut Out<'_>, now: &Published) -> fmt::Result {
    let status = &now.status;
    let of = |state: &str| number(status.endpoints.get(state).copied().unwrap_or(0));
    out.gauges(&list::ENDPOINTS, STATES.map(|(state, label)| ([label], of(state))))?;
    let of = |coverage| number(now.measured.coverage.get(&coverage).copied().unwrap_or(0));
    out.gauges(&list::COVERED, Coverage::ALL.map(|coverage| ([coverage.name()], of(coverage))))?;
    out.gauge(&list::UNKNOWN, number(status.unknown_pods))
}

fn source(out: &mut Out<'_>, now: &Published) -> fmt::Result {
    let source = &now.status.source;
    out.gauge(&list::OBJECTS, number(source.objects))?;
    out.gauge(&list::SOURCE_ERRORS, number(source.errors.len()))?;
    let of = |severity| number(now.measured.diagnostics.get(&severity).copied().unwrap_or(0));
    let severities = SEVERITIES.into_iter().zip([Severity::Error, Severity::Warning]);
    out.gauges(&list::DIAGNOSTICS, severities.map(|(name, severity)| ([name], of(severity))))?;
    out.gauge(&list::INVALID, number(now.measured.invalid_policies))?;
    let states = source.watches.iter().flat_map(|watch| {
        let is = |state: &str| f64::from(u8::from(watch.state == state));
        WATCH_STATES.map(|state| ([&*watch.kind, state], is(state)))
    });
    out.gauges(&list::WATCH_STATE, states)?;
    let watches = || source.watches.iter();
    out.gauges(&list::WATCH_SYNCED, watches().map(|one| ([&*one.kind], f64::from(u8::from(one.synced)))))?;
    out.gauges(&list::WATCH_OBJECTS, watches().map(|one| ([&*one.kind], number(one.objects))))?;
    out.counters(&list::WATCH_EVENTS, watches().map(|one| ([&*one.kind], one.events)))?;
    out.counters(&list::WATCH_RELISTS, watches().map(|one| ([&*one.kind], one.relists)))?;
    out.gauge(&list::NODES, number(now.measured.nodes))
}

fn services(out: &mut Out<'_>, now: &Published) -> fmt::Result {
    let services = || now.status.services.iter();
    let states = services().flat_map(|service| {
        let is = |state: &str| f64::from(u8::from(service.state == state));
        SERVICE_STATES.map(|state| ([&*service.name, state], is(state)))
    });
    out.gauges(&list::SERVICE_STATE, states)?;
    out.counters(&list::SERVICE_WRITES, services().map(|one| ([&*one.name], one.written)))?;
    out.counters(&list::SERVICE_LEFT_OUT, services().map(|one| ([&*one.name], one.left_out)))
}
