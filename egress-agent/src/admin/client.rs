//! The commands' end of the admin socket: asks, and prints tables or JSON.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::Table;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::time::Instant;

use super::{FlowLine, Question, Request, Unreachable};
use crate::cli::{FlowsArgs, Output, Probe, ProbeArgs, ReadArgs, SocketArgs};
use crate::datapath::ENDPOINTS;
use crate::flow::Flow;
use crate::health::Health;
use crate::offline::Told;
use crate::status::{EndpointStatus, Status};
use crate::table::{print, table};

/// How often who follows tries to reach an agent that went away.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a probe waits; kubelet's own patience with it is longer.
const PROBE: Duration = Duration::from_secs(8);
/// How often it looks meanwhile whether the agent is ready.
const LOOK: Duration = Duration::from_millis(250);

/// Lines of answer to a request.
struct Answer {
    lines: Lines<BufReader<OwnedReadHalf>>,
    _writer: tokio::net::unix::OwnedWriteHalf,
}

async fn ask(socket: &Path, request: &Request) -> anyhow::Result<Answer> {
    let unreachable =
        |error: std::io::Error| Unreachable { socket: socket.to_owned(), reason: error.to_string() };
    let (reader, mut writer) = UnixStream::connect(socket).await.map_err(unreachable)?.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await.map_err(unreachable)?;
    Ok(Answer { lines: BufReader::new(reader).lines(), _writer: writer })
}

impl Answer {
    async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        match self.lines.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_str(&line).context("the agent is of another version")?)),
            None => Ok(None),
        }
    }
}

fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// `explain`, `simulate`, `plan` and `lint`, of a running agent.
///
/// # Errors
/// The agent cannot be reached, or says why it has no answer.
pub async fn told(socket: &SocketArgs, question: Question) -> anyhow::Result<Told> {
    let mut answer = ask(&socket.socket, &Request::Ask(question)).await?;
    let told: Result<Told, String> =
        answer.next().await?.context("the agent gave no answer; it may be of another version")?;
    told.map_err(anyhow::Error::msg)
}

/// `probe`: tells whether all is well, now or, of being ready, soon.
///
/// # Errors
/// The agent cannot be reached.
pub async fn probe(args: &ProbeArgs) -> anyhow::Result<bool> {
    let until = Instant::now() + PROBE;
    // Kubelet shows what is said in the pod's events.
    let say = |text: &str| std::io::stdout().write_all(text.as_bytes());
    loop {
        let health = tokio::time::timeout_at(until, health(&args.socket.socket)).await;
        let health = health.context("the agent gave no answer in time").flatten();
        let said = match (args.what, &health) {
            (_, Err(_)) => None,
            (Probe::Alive, Ok(health)) => Some(health.alive()),
            (Probe::Ready, Ok(health)) => Some(health.ready_in(args.pod_name.as_deref())),
        };
        let again = args.what == Probe::Ready && Instant::now() + LOOK < until;
        match said {
            Some(Ok(text)) => {
                say(text)?;
                return Ok(true);
            }
            _ if again => tokio::time::sleep(LOOK).await,
            Some(Err(text)) => {
                say(&text)?;
                return Ok(false);
            }
            None => return health.map(|_| false),
        }
    }
}

async fn health(socket: &Path) -> anyhow::Result<Health> {
    let mut answer = ask(socket, &Request::Health).await?;
    answer.next().await?.context("the agent gave no answer; it may be of another version")
}

/// `status`.
///
/// # Errors
/// The agent cannot be reached.
pub async fn status(args: &ReadArgs) -> anyhow::Result<()> {
    let mut answer = ask(&args.socket.socket, &Request::Status).await?;
    let status: Status = answer.next().await?.context("the agent gave no answer")?;
    match args.output {
        Output::Json => json(&status),
        Output::Table => print(&status_table(&status)),
    }
}

fn status_table(status: &Status) -> Table {
    let mut rows = table(&[]);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_owned(), value]);
    };
    row("node", status.node.clone());
    row("ready", if status.ready { "yes".to_owned() } else { format!("no: {}", status.pending.join("; ")) });
    row("version", format!("{}, maps v{}", status.version, status.abi));
    row("revision", status.revision.to_string());
    for hook in &status.hooks {
        row("hook", format!("{} (program {}) on {}", hook.program, hook.id, hook.target));
    }
    for lack in &status.lacks {
        row("lacks", lack.clone());
    }
    let endpoints: Vec<_> =
        status.endpoints.iter().map(|(state, number)| format!("{number} {state}")).collect();
    let left = status.maps.iter().find(|fill| fill.map == ENDPOINTS && fill.entries > 0 && !status.ready);
    let known = match left {
        _ if !endpoints.is_empty() => endpoints.join(", "),
        Some(left) => format!("none known yet: {} stand as an earlier agent left them", left.entries),
        None => "none".to_owned(),
    };
    row("endpoints", known);
    row("unknown pods", status.unknown_pods.to_string());
    for fill in &status.maps {
        let full = fill.full.as_ref().map_or_else(String::new, |full| format!(", full: {full}"));
        row("map", format!("{} {} of {}{full}", fill.map, fill.entries, fill.capacity));
    }
    for verdict in &status.verdicts {
        let text = format!(
            "{} {} by {}: {} packets, {} bytes",
            verdict.action, verdict.reason, verdict.hook, verdict.packets, verdict.bytes
        );
        row("verdicts", text);
    }
    row("lost events", status.lost_events.to_string());
    if status.lost_flows > 0 {
        row("lost flows", format!("{} lines that the flow log did not take", status.lost_flows));
    }
    if let Some(severed) = status.severed {
        row("severed", format!("{severed} connections"));
    }
    for watch in &status.source.watches {
        let relists =
            if watch.relists == 0 { String::new() } else { format!(", listed anew {} times", watch.relists) };
        let since = match watch.failing_seconds {
            0 => String::new(),
            seconds => format!(" for {seconds} s"),
        };
        let error = watch.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        let text =
            format!("{}: {}{since}, {} objects{relists}{error}", watch.kind, watch.state, watch.objects);
        row("watch", text);
    }
    for service in &status.services {
        let error = service.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        row("service", format!("{}: {}, {} written{error}", service.name, service.state, service.written));
    }
    let names = &status.containers;
    row(
        "containers",
        format!(
            "{} named by pod status, {} by the runtime, {} by nobody",
            names.by_status, names.by_runtime, names.unnamed
        ),
    );
    if let Some(none) = &names.no_runtime {
        row("runtime", none.clone());
    }
    for runtime in &names.runtimes {
        let what = runtime.runtime.as_deref().or(runtime.error.as_deref()).unwrap_or_default();
        row("runtime", format!("{} at {}", what, runtime.socket));
    }
    row("source", format!("{}, {} objects", status.source.name, status.source.objects));
    for (kind, number) in &status.source.ignored {
        row("ignored", format!("{number} {kind}"));
    }
    for error in &status.source.errors {
        row("source error", error.to_string());
    }
    for diagnostic in &status.diagnostics {
        row("diagnostic", diagnostic.clone());
    }
    for error in &status.errors {
        row("error", error.clone());
    }
    rows
}

/// `endpoints`.
///
/// # Errors
/// The agent cannot be reached.
pub async fn endpoints(args: &ReadArgs) -> anyhow::Result<()> {
    let mut answer = ask(&args.socket.socket, &Request::Endpoints).await?;
    let mut rows =
        table(&["NAMESPACE", "POD", "STATE", "COVERAGE", "ADDRESSES", "CGROUP", "PROXY", "POLICIES"]);
    while let Some(endpoint) = answer.next::<EndpointStatus>().await? {
        match args.output {
            Output::Json => json(&endpoint)?,
            Output::Table => {
                let proxy = match (endpoint.lock, &endpoint.proxies[..]) {
                    (false, _) => "-".to_owned(),
                    // Nothing that the lock covers gets out.
                    (true, []) => "none known".to_owned(),
                    (true, names) => names.join(" "),
                };
                let EndpointStatus { namespace, name, state, coverage, addresses, cgroup, policies, .. } =
                    endpoint;
                let (addresses, policies) = (addresses.join(" "), policies.join(", "));
                let cgroup = cgroup.to_string();
                rows.add_row([namespace, name, state, coverage, addresses, cgroup, proxy, policies]);
            }
        }
    }
    if args.output == Output::Table {
        print(&rows)?;
    }
    Ok(())
}

/// `flows`. Following goes on with the agent that comes after the one that went.
///
/// # Errors
/// The agent cannot be reached at the start.
pub async fn flows(args: &FlowsArgs) -> anyhow::Result<()> {
    let request = Request::Flows { follow: args.follow };
    let mut answer = ask(&args.read.socket.socket, &request).await?;
    if args.read.output == Output::Table && std::io::stdout().is_terminal() {
        writeln!(std::io::stdout(), "{HEAD}")?;
    }
    // Of what an agent remembers, what was shown before is not shown again.
    let mut last = None;
    loop {
        let shown = last;
        loop {
            let line = match answer.next().await {
                Ok(Some(line)) => line,
                Ok(None) => break,
                // Such as half of a line, of an agent that was killed.
                Err(_) if args.follow && last.is_some() => break,
                Err(error) => return Err(error),
            };
            match line {
                FlowLine::Missed { missed } => {
                    eprintln!(
                        "egress-agent: {missed} flows were missed: they came faster than they were read"
                    );
                }
                FlowLine::Flow(flow) if shown.is_some_and(|shown| flow.time <= shown) => {}
                FlowLine::Flow(flow) => {
                    last = Some(flow.time);
                    show(args, &flow)?;
                }
            }
        }
        if !args.follow {
            return Ok(());
        }
        eprintln!("egress-agent: the agent went away; waiting for it to come back");
        answer = loop {
            tokio::time::sleep(AGAIN).await;
            if let Ok(answer) = ask(&args.read.socket.socket, &request).await {
                break answer;
            }
        };
    }
}

/// Prints a flow, if it is one that was asked for.
fn show(args: &FlowsArgs, flow: &Flow) -> anyhow::Result<()> {
    let pod = args.pod.as_ref().is_none_or(|pod| flow.pod.as_ref() == Some(pod));
    let to = args.to.is_none_or(|to| flow.destination == to);
    let container = args.container.as_ref().is_none_or(|name| flow.container.as_ref() == Some(name));
    let action = args.action.as_ref().is_none_or(|action| flow.action == *action);
    let reason = args.reason.as_ref().is_none_or(|reason| flow.reason == *reason);
    if !(pod && to && container && action && reason) {
        return Ok(());
    }
    match args.read.output {
        Output::Json => json(flow),
        // One line as it comes: a table would have to wait for the last row.
        Output::Table => Ok(writeln!(std::io::stdout(), "{}", line(flow))?),
    }
}

/// The head of the lines of flows, for a screen.
const HEAD: &str = "TIME                     VERDICT REASON        HOOK    FROM -> TO, BY WHOM";

fn line(flow: &Flow) -> String {
    let from = flow.pod.clone().unwrap_or_else(|| format!("cgroup {}", flow.cgroup));
    let to = flow.destination_name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    let from = match &flow.container {
        Some(container) => format!("{from}/{container}"),
        None => from,
    };
    let process = flow.process.as_ref().map_or_else(String::new, |process| format!(" by {process}"));
    let more = if flow.suppressed > 0 { format!(" (and {} more)", flow.suppressed) } else { String::new() };
    let by = flow.rule.clone().unwrap_or_else(|| flow.policies.join(", "));
    // A connection that was refused before it had an address, and a frame that has none.
    let known = |at: &SocketAddr| at.port() != 0 || !at.ip().is_unspecified();
    let source = if known(&flow.source) { format!(" {}", flow.source) } else { String::new() };
    let destination = if known(&flow.source) || known(&flow.destination) {
        format!("{}{to} {}", flow.destination, flow.protocol)
    } else {
        "what is not IP".to_owned()
    };
    format!(
        "{:.3} {:7} {:13} {:7} {from}{source} -> {destination}{process}{more} {by}",
        flow.time, flow.action, flow.reason, flow.hook
    )
    .trim_end()
    .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{ENDPOINTS, Flow, Status, line, status_table};
    use crate::datapath::Fill;

    fn flow(source: &str, destination: &str, protocol: &str) -> Flow {
        serde_json::from_value(json!({
            "time": "2026-11-21T21:33:16.646Z", "node": "n", "pod": "shop/a", "uid": "u", "cgroup": 7,
            "container": "app", "source": source, "destination": destination, "destination_name": null,
            "destination_pod": null, "destination_service": null, "destination_node": null,
            "protocol": protocol, "action": "deny", "reason": "NotAllowed", "policies": ["NetworkPolicy shop/p"],
            "rule": null, "hook": "socket", "process": null, "suppressed": 0, "length": 40, "revision": 1,
        }))
        .unwrap()
    }

    #[test]
    fn what_an_earlier_agent_left_is_told_until_more_is_known() {
        let left = Fill { map: ENDPOINTS.to_owned(), entries: 12, capacity: 16_384, full: None };
        let mut status = Status { maps: vec![left], ..Status::default() };
        let told = |status: &Status| {
            let table = status_table(status).to_string();
            let row =
                table.lines().map(str::trim).find(|line| line.starts_with("endpoints")).unwrap().to_owned();
            row.strip_prefix("endpoints").unwrap().trim().to_owned()
        };
        assert_eq!(told(&status), "none known yet: 12 stand as an earlier agent left them");
        status.endpoints.insert("Isolated".to_owned(), 3);
        assert_eq!(told(&status), "3 Isolated");
        assert_eq!(told(&Status::default()), "none");
    }

    #[test]
    fn an_address_that_is_not_there_is_not_shown() {
        let told = |source, destination, protocol| {
            let line = line(&flow(source, destination, protocol));
            line.strip_prefix("2026-11-21T21:33:16.646Z deny    NotAllowed    socket  shop/a/app")
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            told("10.0.0.2:4000", "192.0.2.1:53", "UDP"),
            " 10.0.0.2:4000 -> 192.0.2.1:53 UDP NetworkPolicy shop/p"
        );
        assert_eq!(told("[::]:0", "192.0.2.1:443", "TCP"), " -> 192.0.2.1:443 TCP NetworkPolicy shop/p");
        assert_eq!(
            told("0.0.0.0:68", "192.0.2.1:67", "UDP"),
            " 0.0.0.0:68 -> 192.0.2.1:67 UDP NetworkPolicy shop/p"
        );
        assert_eq!(told("[::]:0", "[::]:0", "0"), " -> what is not IP NetworkPolicy shop/p");
    }
}
