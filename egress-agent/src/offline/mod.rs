//! Commands that judge from objects: `explain`, `simulate`, `plan`, `lint`; by themselves, or in the words of a running agent that was
//! asked for the same.
//!
//! Invariant: with `--source` they touch neither kernel nor agent, and verdicts are given by the code that the kernel runs. Tested by
//! `tests/offline.rs`, `tests/lint.rs` and, of a running agent, `tests/operate.rs`.

mod explain;
mod lint;
mod plan;
mod simulate;

pub use explain::explain;
pub(crate) use explain::{Kernel, Place, in_maps, judge, tell as tell_flow};
pub(crate) use lint::tell as tell_findings;
pub use lint::{checks, lint};
pub use plan::plan;
pub(crate) use plan::tell as tell_plan;
pub(crate) use simulate::tell as tell_flows;
pub use simulate::{SimulatedFlow, flows, simulate};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use egress_common::packet::protocol;
use egress_policy::compile::Doubt;
use egress_policy::explain::{Judged, Target};
use egress_policy::index::Index;
use egress_policy::object::Workload;
use serde::{Deserialize, Serialize};

use crate::cli::{SourceArgs, Unknown};
use crate::source::{Objects, SourceError};

/// What a command says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The flow passes; there are no findings.
    pub fine: bool,
    /// For standard output.
    pub out: String,
    /// For standard error, a sentence each.
    pub notes: Vec<String>,
}

impl Told {
    /// Prints it; tells whether all is fine.
    ///
    /// # Errors
    /// Nobody reads.
    pub fn print(&self) -> anyhow::Result<bool> {
        for note in &self.notes {
            eprintln!("egress-agent: {note}");
        }
        let mut out = std::io::stdout().lock();
        out.write_all(self.out.as_bytes())?;
        out.flush()?;
        Ok(self.fine)
    }
}

/// A sender, as in `NS/POD` or `NS/POD/CONTAINER`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sender {
    /// Namespace.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Container; without it, one that is no proxy of a lock.
    pub container: Option<String>,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)?;
        self.container.iter().try_for_each(|container| write!(f, "/{container}"))
    }
}

impl FromStr for Sender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, pod, container) = match parts[..] {
            [namespace, pod] => (namespace, pod, None),
            [namespace, pod, container] => (namespace, pod, Some(container)),
            _ => return Err(format!("{text:?} is not NS/POD or NS/POD/CONTAINER")),
        };
        // A destination of `simulate` is no sender.
        if namespace.is_empty() || namespace.contains(':') || pod.is_empty() || container == Some("") {
            return Err(format!("{text:?} is not NS/POD or NS/POD/CONTAINER"));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.map(str::to_owned),
        })
    }
}

/// The number of a protocol's name, for an address of this family.
fn protocol_number(name: &str, v4: bool) -> Result<u8, String> {
    match name.to_ascii_uppercase().as_str() {
        "TCP" => Ok(protocol::TCP),
        "UDP" => Ok(protocol::UDP),
        "SCTP" => Ok(protocol::SCTP),
        "ICMP" | "ICMPV6" => Ok(if v4 { protocol::ICMP } else { protocol::ICMPV6 }),
        _ => Err(format!("{name:?} is not TCP, UDP, SCTP or ICMP")),
    }
}

/// Reads `ADDR:PORT/PROTO`, or `ADDR/ICMP`.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn target(text: &str) -> Result<Target, String> {
    let (address, name) = text.rsplit_once('/').ok_or_else(|| format!("{text:?} is not ADDR:PORT/PROTO"))?;
    let (address, port) = match address.parse::<SocketAddr>() {
        Ok(socket) => (socket.ip(), socket.port()),
        Err(_) => {
            let no = || format!("{address:?} is not ADDR:PORT, as 198.51.100.7:443 or [2001:db8::7]:443");
            (destination(address).ok_or_else(no)?, 0)
        }
    };
    let address = sent_to(address);
    let protocol = protocol_number(name, address.is_ipv4())?;
    if matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) && port == 0 {
        let how = if address.is_ipv6() { "; an IPv6 address with a port is [ADDR]:PORT" } else { "" };
        return Err(format!("{text:?} has no port{how}"));
    }
    Ok(Target { address, protocol, port, behind: false })
}

/// Reads an address, with or without brackets, as where a packet to it goes.
fn destination(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().map(sent_to)
}

/// Who connects to these is sent to the loopback address (RFC 1122, section 3.2.1.3), or by IPv4 (RFC 4291, section 2.5.5.2).
fn sent_to(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// How long a cluster may take to tell the next thing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The objects of a source, as far as they can be read.
struct Loaded {
    index: Index,
    /// What could not be read.
    unread: Vec<String>,
    /// A policy may be among that.
    incomplete: bool,
}

impl Loaded {
    /// What is assumed of pods, as an agent would.
    fn doubt(&self, unknown: Unknown) -> Doubt {
        Doubt { unknown_pods: unknown.into(), incomplete: self.incomplete }
    }

    /// What that means, to be said beside each answer.
    fn note(&self) -> Option<String> {
        self.incomplete.then(|| {
            "what could not be read may be a policy: pods that no other policy selects count as unknown, as to an agent".to_owned()
        })
    }
}

/// Reads all objects of a source. What cannot be read, and what does not count, is told on stderr; the rest counts.
fn load(source: &SourceArgs) -> anyhow::Result<Loaded> {
    let (loaded, aside) = read(source)?;
    tell_ignored(&aside.ignored);
    if loaded.index.is_empty() { Err(nothing_counts(source)) } else { Ok(loaded) }
}

/// What a source has beside objects that count.
struct Aside {
    /// Kinds that do not count, with their number.
    ignored: BTreeMap<String, usize>,
    /// What makes pods, which is among them, or what is wrong with it.
    workloads: Vec<Result<Workload, SourceError>>,
}

fn tell_ignored(ignored: &BTreeMap<String, usize>) {
    if !ignored.is_empty() {
        let kinds: Vec<_> = ignored.iter().map(|(kind, number)| format!("{number} {kind}")).collect();
        eprintln!("egress-agent: of no account here: {}", kinds.join(", "));
    }
}

fn nothing_counts(source: &SourceArgs) -> anyhow::Error {
    let hint = if source.source.is_read_once() {
        ""
    } else {
        " (files end in .yaml, .yml or .json; those of directories in it are not read)"
    };
    anyhow!("{} has no objects that count{hint}", source.source)
}

/// Reads all objects of a source. What cannot be read is told on stderr.
fn read(source: &SourceArgs) -> anyhow::Result<(Loaded, Aside)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let changes = runtime.block_on(async {
        let (mut objects, _) = Objects::open(source)?;
        if let Objects::Kube(watches) = &objects {
            watches.complete(PATIENCE).await?;
        }
        anyhow::Ok(objects.look())
    })?;
    for error in &changes.errors {
        eprintln!("egress-agent: {error}");
    }
    // Everything was listed: these say that there is no such kind, or that it could not be followed since.
    for reason in changes.watches.iter().filter_map(|watch| watch.error.as_ref()).collect::<BTreeSet<_>>() {
        eprintln!("egress-agent: {reason}");
    }
    let mut index = Index::default();
    for event in changes.events {
        index.apply(event);
    }
    let unread = changes.errors.iter().map(ToString::to_string).collect();
    let aside = Aside { ignored: changes.ignored, workloads: changes.workloads };
    Ok((Loaded { index, unread, incomplete: changes.incomplete }, aside))
}

/// Who of these senders is not among the objects, as one sentence each for pods and containers: somebody may have written a name wrongly.
fn absent<'s>(index: &Index, senders: impl IntoIterator<Item = &'s Sender>) -> Vec<String> {
    let (mut pods, mut containers) = (BTreeSet::new(), BTreeSet::new());
    for sender in senders {
        let Sender { namespace, pod, container } = sender;
        match (index.pod(namespace, pod), container) {
            (None, _) => _ = pods.insert(format!("{namespace}/{pod}")),
            (Some(known), Some(name)) if !known.spec.containers.iter().any(|one| *one.name == **name) => {
                _ = containers.insert(sender.to_string());
            }
            (Some(_), _) => {}
        }
    }
    let told = |names: BTreeSet<String>, what: &str| {
        let more = names.len().saturating_sub(3);
        let few: Vec<_> = names.into_iter().take(3).collect();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!few.is_empty()).then(|| format!("{what}: {}{more}", few.join(", ")))
    };
    let pods = told(pods, "not among the objects, and judged as unknown pods");
    pods.into_iter().chain(told(containers, "no such container is in the pod's spec")).collect()
}

/// A verdict, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Verdict {
    action: &'static str,
    reason: &'static str,
    /// The policy that allows, or those that select the sender and do not.
    policy: Option<String>,
    /// The rule that allows.
    rule: Option<String>,
    /// Whose address the destination is.
    destination: Option<String>,
}

impl From<&Judged<'_>> for Verdict {
    fn from(judged: &Judged<'_>) -> Self {
        let selecting =
            judged.endpoint.map(|endpoint| &endpoint.policies).filter(|policies| !policies.is_empty());
        let names =
            |policies: &Vec<_>| policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Self {
            action: judged.action.name(),
            reason: judged.reason.name(),
            // Rules of unknown pods are the node's, which has no name here.
            policy: judged
                .rule
                .filter(|rule| !rule.object.name.is_empty())
                .map(|rule| rule.object.to_string())
                .or_else(|| selecting.map(names)),
            rule: judged.rule.map(|rule| rule.path.clone()),
            destination: judged.destination.clone(),
        }
    }
}
