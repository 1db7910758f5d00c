//! `simulate`: the verdict of each of many flows, and what a policy that is not applied yet would change.
//!
//! Invariant: of a destination with several addresses the line has the verdict that lets least pass. Tested by `tests/offline.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, bail};
use egress_common::packet::protocol;
use egress_policy::compile::Doubt;
use egress_policy::explain::{Judge, Target};
use egress_policy::index::{Event, Index};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Sender, Told, Verdict, load, protocol_number};
use crate::cli::{Output, SimulateArgs, SourceArgs};
use crate::source::read_file;

/// A flow as it is written: a row of CSV or a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedFlow {
    /// NS/POD or NS/POD/CONTAINER.
    pub from: String,
    /// An address, NS/POD or svc:NS/NAME.
    pub to: String,
    /// Empty or absent for protocols without ports.
    #[serde(default)]
    pub port: Option<u16>,
    /// TCP, UDP, SCTP or ICMP.
    pub protocol: String,
}

/// A flow with its verdict, as it is printed.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    flow: &'a SimulatedFlow,
    /// Which of several addresses the verdict is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    #[serde(flatten)]
    verdict: &'a Verdict,
    /// The action without the objects of `--with`.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<&'static str>,
}

/// One line per flow, in their order; with `--with`, only those whose verdict would change.
///
/// # Errors
/// The source or the flows cannot be read; the line is named.
pub fn simulate(args: &SimulateArgs, source: &SourceArgs) -> anyhow::Result<Told> {
    let loaded = load(source)?;
    let flows = flows(&args.flows)?;
    let with = args.with.as_deref().map(read_file).transpose()?;
    let (doubt, note) = (loaded.doubt(args.unknown_pods), loaded.note());
    let mut told = tell(loaded.index, doubt, &flows, with, args.read.output)?;
    told.notes.extend(note);
    Ok(told)
}

/// Judges flows by these objects, and by what they would be with others.
pub(crate) fn tell(
    mut index: Index,
    doubt: Doubt,
    flows: &[SimulatedFlow],
    with: Option<Vec<Event>>,
    output: Output,
) -> anyhow::Result<Told> {
    let before = verdicts(&index, doubt, flows)?;
    let senders: Result<Vec<Sender>, _> = flows.iter().map(|flow| flow.from.parse()).collect();
    let mut notes = super::absent(&index, &senders.map_err(anyhow::Error::msg)?);
    let mut out = String::new();
    let Some(with) = with else {
        for (flow, verdicts) in flows.iter().zip(&before) {
            print(&mut out, output, &Line { was: None, ..Line::strictest(flow, verdicts, verdicts)? })?;
        }
        return Ok(Told { fine: true, out, notes });
    };
    for event in with {
        index.apply(event);
    }
    let after = verdicts(&index, doubt, flows)?;
    let mut changed = 0;
    for ((flow, before), after) in flows.iter().zip(&before).zip(&after) {
        let differs = |(address, verdict): &&(IpAddr, Verdict)| action_at(before, *address) != verdict.action;
        let changes: Vec<_> = after.iter().filter(differs).cloned().collect();
        if !changes.is_empty() {
            print(&mut out, output, &Line::strictest(flow, &changes, before)?)?;
            changed += 1;
        }
    }
    notes.push(format!("{changed} of {} flows would change", flows.len()));
    Ok(Told { fine: true, out, notes })
}

/// What the verdict at an address was; of one that is new, that of the others.
fn action_at(before: &[(IpAddr, Verdict)], address: IpAddr) -> &'static str {
    let at = before.iter().find(|(known, _)| *known == address).or_else(|| strictest(before));
    at.map_or("", |(_, verdict)| verdict.action)
}

/// The verdict that lets least pass, of several such the first.
fn strictest(verdicts: &[(IpAddr, Verdict)]) -> Option<&(IpAddr, Verdict)> {
    let rank =
        |(_, verdict): &&(IpAddr, Verdict)| ["deny", "audit"].iter().position(|one| *one == verdict.action);
    verdicts.iter().min_by_key(|one| rank(one).unwrap_or(usize::MAX))
}

impl<'a> Line<'a> {
    fn strictest(
        flow: &'a SimulatedFlow,
        verdicts: &'a [(IpAddr, Verdict)],
        before: &[(IpAddr, Verdict)],
    ) -> anyhow::Result<Self> {
        let (address, verdict) = strictest(verdicts).context("a flow was not judged")?;
        let named = super::destination(&flow.to).is_none();
        Ok(Self { flow, address: named.then_some(*address), verdict, was: Some(action_at(before, *address)) })
    }
}

fn print(out: &mut String, output: Output, line: &Line<'_>) -> anyhow::Result<()> {
    match output {
        Output::Json => *out += &serde_json::to_string(line)?,
        Output::Table => {
            let Line { flow, address, verdict, was } = line;
            let address = address.map_or_else(String::new, |address| format!(" ({address})"));
            let port = flow.port.map_or_else(String::new, |port| format!(" {port}"));
            let was = was.map_or_else(String::new, |was| format!(" (was {was})"));
            let by = [verdict.policy.as_deref(), verdict.rule.as_deref()].into_iter().flatten();
            let by: Vec<_> = by.collect();
            let SimulatedFlow { from, to, protocol, .. } = flow;
            let text = format!(
                "{:5} {:10}{was} {from} -> {to}{address}{port}/{protocol} {}",
                verdict.action,
                verdict.reason,
                by.join(" ")
            );
            out.push_str(text.trim_end());
        }
    }
    out.push('\n');
    Ok(())
}

/// Judges all flows at all their addresses, each sender's together.
fn verdicts(
    index: &Index,
    doubt: Doubt,
    flows: &[SimulatedFlow],
) -> anyhow::Result<Vec<Vec<(IpAddr, Verdict)>>> {
    let mut by_sender: BTreeMap<Sender, Vec<(usize, Target)>> = BTreeMap::new();
    for (number, flow) in flows.iter().enumerate() {
        let place = || format!("flow {}", number + 1);
        let sender: Sender = flow.from.parse().map_err(anyhow::Error::msg).with_context(place)?;
        let mut targets = targets(index, flow).map_err(anyhow::Error::msg).with_context(place)?;
        // What has a name is asked at the addresses that the sender can send to.
        let families = index.pod(&sender.namespace, &sender.pod).map(|pod| pod.addresses.clone());
        let can = |target: &Target| {
            families.iter().any(|own| own.iter().any(|ip| ip.is_ipv4() == target.address.is_ipv4()))
        };
        if super::destination(&flow.to).is_none() && targets.iter().any(can) {
            targets.retain(can);
        }
        by_sender.entry(sender).or_default().extend(targets.into_iter().map(|target| (number, target)));
    }
    let senders = by_sender.keys();
    let senders = senders.map(|sender| ((&*sender.namespace, &*sender.pod), sender.container.as_deref()));
    let judge = Judge::new(index, doubt, senders);
    let mut out = vec![Vec::new(); flows.len()];
    for (sender, targets) in &by_sender {
        let container = sender.container.as_deref();
        let only: Vec<Target> = targets.iter().map(|(_, target)| *target).collect();
        let judged = judge.judge((&sender.namespace, &sender.pod), container, &only);
        for ((number, target), judged) in targets.iter().zip(&judged) {
            out[*number].push((target.address, judged.into()));
        }
    }
    Ok(out)
}

/// Where a flow goes, at every address of a pod or a service; there is one at least.
fn targets(index: &Index, flow: &SimulatedFlow) -> Result<Vec<Target>, String> {
    let to = &flow.to;
    let name =
        |text: &str| text.split_once('/').map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let addresses = if let Some(address) = super::destination(to) {
        vec![address]
    } else if let Some((namespace, name)) = to.strip_prefix("svc:").and_then(name) {
        let service = index.service(&namespace, &name);
        service.ok_or_else(|| format!("there is no service {namespace}/{name}"))?.vips.to_vec()
    } else if to.split_once('/').is_some_and(|(address, _)| address.parse::<IpAddr>().is_ok()) {
        return Err(format!("{to} is a prefix: write one address of it"));
    } else if let Some((namespace, name)) = name(to) {
        let pod = index.pod(&namespace, &name);
        pod.ok_or_else(|| format!("there is no pod {namespace}/{name}"))?.addresses.to_vec()
    } else {
        return Err(format!("{to:?} is not an address, NS/POD or svc:NS/NAME"));
    };
    if addresses.is_empty() {
        return Err(format!("{to} has no address"));
    }
    let target = |address: IpAddr| {
        let number = protocol_number(&flow.protocol, address.is_ipv4())?;
        let has_ports = matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP);
        if has_ports && flow.port.is_none_or(|port| port == 0) {
            return Err(format!("{} needs a port", flow.protocol));
        }
        Ok(Target { address, protocol: number, port: flow.port.unwrap_or(0), behind: false })
    };
    addresses.into_iter().map(target).collect()
}

/// A line of the flow log; what else it says is not asked for.
#[derive(Deserialize)]
struct Logged {
    pod: Option<String>,
    container: Option<String>,
    destination: SocketAddr,
    protocol: String,
}

/// A flow in JSON: as it is written for this, or as the agent's flow log has it, and whether it is the latter; that
/// cannot be asked about without a pod's name, or for a protocol that has none here.
fn json_line(line: &str) -> anyhow::Result<Option<(SimulatedFlow, bool)>> {
    let value: Value = serde_json::from_str(line).context("not JSON")?;
    // What the agent says beside its flows, where both are in the pod's log.
    if value.get("level").is_some() && value.get("target").is_some() && value.get("from").is_none() {
        return Ok(None);
    }
    if value.get("from").is_some() || value.get("destination").is_none() {
        return Ok(Some((serde_json::from_value(value)?, false)));
    }
    let Logged { pod, container, destination, protocol } = serde_json::from_value(value)?;
    let Some(pod) = pod.filter(|_| protocol_number(&protocol, true).is_ok()) else { return Ok(None) };
    let port = Some(destination.port()).filter(|port| *port != 0);
    let from = container.map_or_else(|| pod.clone(), |container| format!("{pod}/{container}"));
    let to = destination.ip().to_canonical().to_string();
    Ok(Some((SimulatedFlow { from, to, port, protocol }, true)))
}

/// What is wrong with a row, by the name of its column.
fn row_error(error: &csv::Error) -> anyhow::Error {
    let csv::ErrorKind::Deserialize { pos, err } = error.kind() else { return anyhow::anyhow!("{error}") };
    let line = pos.as_ref().map_or(0, csv::Position::line);
    let column = err.field().and_then(|at| ["from", "to", "port", "protocol"].get(usize::try_from(at).ok()?));
    let column = column.map_or_else(String::new, |column| format!(", column {column}"));
    anyhow::anyhow!("line {line}{column}: {}", err.kind())
}

/// Reads flows from a file, or from standard input for `-`: JSON lines where the first byte is `{`, else CSV. What the flow log has more
/// than once is one flow.
///
/// # Errors
/// The file or a line cannot be read, which is named; or there are none.
pub fn flows(path: &Path) -> anyhow::Result<Vec<SimulatedFlow>> {
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
    };
    let mut input = BufReader::new(input);
    let start = input.fill_buf().with_context(|| format!("cannot read {}", path.display()))?;
    let place = |line: u64| format!("{}:{line}", path.display());
    let (mut flows, mut left_out, mut again) = (Vec::new(), 0, 0);
    let mut logged = BTreeSet::new();
    if start.trim_ascii_start().first() == Some(&b'{') {
        for (number, line) in (1..).zip(input.lines()) {
            let line = line.with_context(|| place(number))?;
            if !line.trim().is_empty() {
                match json_line(&line).with_context(|| place(number))? {
                    // A log has each try.
                    Some((flow, true)) if !logged.insert(flow.clone()) => again += 1,
                    Some((flow, _)) => flows.push(flow),
                    None => left_out += 1,
                }
            }
        }
    } else {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
        for flow in reader.deserialize() {
            flows.push(flow.map_err(|error| row_error(&error)).with_context(|| path.display().to_string())?);
        }
    }
    if left_out > 0 {
        eprintln!(
            "egress-agent: {left_out} lines of the flow log left out: no flow, no pod's name, or no protocol that can be asked about"
        );
    }
    if again > 0 {
        eprintln!(
            "egress-agent: {again} lines of the flow log left out: they tell of flows that another line tells of"
        );
    }
    if flows.is_empty() {
        bail!(
            "{} has no flows: CSV needs the header from,to,port,protocol, JSON a line for each flow",
            path.display()
        );
    }
    Ok(flows)
}
