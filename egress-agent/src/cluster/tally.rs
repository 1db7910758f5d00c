//! From flows to events of pods: which flows are one event, when an event is told, and what is left out. Pure.
//!
//! Invariants: what is kept is bounded, per pod and in all; a pod that floods uses up its own share alone, and pods take
//! turns, so that no pod's event hides another's. Tested below.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::flow::Flow;

/// Pods that are kept.
const PODS: usize = 1024;
/// Events of one pod that are kept, besides those for the rest of what it sends.
const EVENTS: usize = 16;
/// How long after its last flow an event is over; the next flow is another event.
const OVER: Duration = Duration::from_mins(10);
/// How often the count of an event is written.
const COUNT: Duration = Duration::from_secs(30);
/// Writes of one pod: so many at once, then one in each time.
const OF_POD: (u32, Duration) = (8, Duration::from_secs(30));
/// Writes of the node.
const OF_NODE: (u32, Duration) = (30, Duration::from_secs(1));
/// Longest text of an event (`NoteLengthLimit`).
const TEXT: usize = 1000;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PodName {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// What makes flows of a pod one event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// The reason of the event.
    pub(super) reason: &'static str,
    /// What was denied, in words.
    pub(super) text: String,
    /// The container, where it is known.
    pub(super) container: Option<String>,
}

/// An event to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) pod: PodName,
    pub(super) kind: Kind,
    /// The number of the event; the same one is written again with another count.
    pub(super) number: u64,
    /// Whether it is there already.
    pub(super) again: bool,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    pub(super) count: u64,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It is there with this count.
    Written,
    /// It is there, perhaps with another count.
    There,
    /// It is not there any more.
    Gone,
    /// It can never be written.
    Never,
    /// It may be written another time.
    Later,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    first: Timestamp,
    last: Timestamp,
    count: u64,
    /// Count as it was last written; `None` where the event is not there.
    told: Option<u64>,
    told_at: Instant,
    at: Instant,
}

/// Writes that may be made: some at once, then one in each time.
#[derive(Debug)]
struct Bucket {
    left: u32,
    most: u32,
    each: Duration,
    at: Instant,
}

impl Bucket {
    fn new((most, each): (u32, Duration), now: Instant) -> Self {
        Self { left: most, most, each, at: now }
    }

    fn fill(&mut self, now: Instant) {
        while self.left < self.most && self.at + self.each <= now {
            self.left += 1;
            self.at += self.each;
        }
        if self.left == self.most {
            self.at = now;
        }
    }

    /// When it has one more.
    fn next(&self) -> Instant {
        if self.left > 0 { self.at } else { self.at + self.each }
    }
}

#[derive(Debug)]
struct PodEvents {
    events: BTreeMap<Kind, Entry>,
    bucket: Bucket,
}

/// The events of a node.
#[derive(Debug)]
pub(super) struct Tally {
    pods: BTreeMap<PodName, PodEvents>,
    bucket: Bucket,
    numbers: u64,
    /// Whose turn was last.
    last: Option<PodName>,
    /// Flows that no event tells of, since this was last asked.
    left_out: u64,
}

impl Tally {
    /// Numbers of events begin at `first`, which should be nobody else's.
    pub(super) fn new(now: Instant, first: u64) -> Self {
        Self {
            pods: BTreeMap::new(),
            bucket: Bucket::new(OF_NODE, now),
            numbers: first,
            last: None,
            left_out: 0,
        }
    }

    /// Flows that no event tells of, since this was last asked.
    pub(super) fn left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }

    /// Takes a flow of a pod in.
    pub(super) fn take(&mut self, pod: PodName, flow: &Flow, now: Instant) {
        let Some(kind) = kind(flow) else { return };
        if self.pods.len() >= PODS && !self.pods.contains_key(&pod) {
            self.sweep(now);
            if self.pods.len() >= PODS {
                self.left_out += 1;
                return;
            }
        }
        let fresh = || PodEvents { events: BTreeMap::new(), bucket: Bucket::new(OF_POD, now) };
        let events = &mut self.pods.entry(pod).or_insert_with(fresh).events;
        let kind = if events.len() >= EVENTS && !events.contains_key(&kind) { rest(&kind) } else { kind };
        let numbers = &mut self.numbers;
        let entry = events.entry(kind).or_insert_with(|| {
            *numbers = numbers.wrapping_add(1);
            Entry {
                number: *numbers,
                first: flow.time,
                last: flow.time,
                count: 0,
                told: None,
                told_at: now,
                at: now,
            }
        });
        entry.count += 1;
        entry.last = entry.last.max(flow.time);
        entry.at = now;
    }

    /// The next event to be written now, of the pods in turn. It counts as one of the writes of its pod and of the node.
    pub(super) fn next(&mut self, now: Instant) -> Option<Write> {
        self.bucket.fill(now);
        if self.bucket.left == 0 {
            return None;
        }
        let after = self.last.clone();
        let turn = |(name, _): &(&PodName, &mut PodEvents)| after.as_ref().is_none_or(|last| *name > last);
        let mut pods: Vec<_> = self.pods.iter_mut().collect();
        let (later, sooner): (Vec<_>, Vec<_>) = pods.drain(..).partition(turn);
        for (name, pod) in later.into_iter().chain(sooner) {
            pod.bucket.fill(now);
            if pod.bucket.left == 0 {
                continue;
            }
            // What was not told of at all comes before counts.
            let new = pod.events.iter().find(|(_, entry)| entry.told.is_none());
            let due = |entry: &Entry| entry.told != Some(entry.count) && entry.told_at + COUNT <= now;
            let Some((kind, entry)) = new.or_else(|| pod.events.iter().find(|(_, entry)| due(entry))) else {
                continue;
            };
            let write = Write {
                pod: name.clone(),
                kind: kind.clone(),
                number: entry.number,
                again: entry.told.is_some(),
                first: entry.first,
                last: entry.last,
                count: entry.count,
            };
            pod.bucket.left -= 1;
            self.bucket.left -= 1;
            self.last = Some(write.pod.clone());
            return Some(write);
        }
        None
    }

    /// When [`next`](Self::next) may have something, as far as is known now.
    pub(super) fn due(&self) -> Option<Instant> {
        let of_pod = |pod: &PodEvents| {
            let of_entry = |entry: &Entry| match entry.told {
                None => Some(entry.told_at),
                Some(told) if told != entry.count => Some(entry.told_at + COUNT),
                Some(_) => None,
            };
            let entry = pod.events.values().filter_map(of_entry).min()?;
            Some(entry.max(pod.bucket.next()))
        };
        let soonest = self.pods.values().filter_map(of_pod).min()?;
        Some(soonest.max(self.bucket.next()))
    }

    /// Takes note of how a write ended.
    pub(super) fn done(&mut self, write: &Write, done: Done, now: Instant) {
        let Some(pod) = self.pods.get_mut(&write.pod) else { return };
        let Some(entry) = pod.events.get_mut(&write.kind).filter(|entry| entry.number == write.number) else {
            return;
        };
        match done {
            Done::Written => (entry.told, entry.told_at) = (Some(write.count), now),
            Done::There => (entry.told, entry.told_at) = (Some(entry.told.unwrap_or(1)), now),
            Done::Gone => {
                // The server forgets events after an hour: what goes on is another one, of what was not told of yet.
                self.numbers = self.numbers.wrapping_add(1);
                entry.number = self.numbers;
                entry.count = entry.count.saturating_sub(entry.told.unwrap_or(0)).max(1);
                entry.first = entry.last;
                (entry.told, entry.told_at) = (None, now);
            }
            Done::Never => {
                self.left_out += entry.count.saturating_sub(entry.told.unwrap_or(0));
                pod.events.remove(&write.kind);
            }
            Done::Later => {}
        }
    }

    /// Forgets events that are over.
    pub(super) fn sweep(&mut self, now: Instant) {
        let mut untold = 0;
        for pod in self.pods.values_mut() {
            pod.events.retain(|_, entry| {
                let over = entry.at + OVER <= now;
                if over {
                    untold += entry.count.saturating_sub(entry.told.unwrap_or(0));
                }
                !over
            });
        }
        self.pods.retain(|_, pod| {
            pod.bucket.fill(now);
            !pod.events.is_empty() || pod.bucket.left < pod.bucket.most
        });
        self.left_out += untold;
    }
}

/// What a flow is told as; `None` for what needs no event.
fn kind(flow: &Flow) -> Option<Kind> {
    let reason = match (flow.action.as_str(), flow.reason.as_str()) {
        ("deny", "SidecarBypass") => "SidecarBypass",
        ("deny", _) => "EgressDenied",
        ("audit", _) => "EgressAudited",
        _ => return None,
    };
    let to = match flow.destination.port() {
        0 => format!("{}/{}", flow.destination.ip(), flow.protocol),
        _ => format!("{}/{}", flow.destination, flow.protocol),
    };
    let name = flow.destination_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let by =
        if flow.policies.is_empty() { String::new() } else { format!(" by {}", flow.policies.join(", ")) };
    let container = flow.container.as_ref().map(|name| format!(", container {name}")).unwrap_or_default();
    let verb = if flow.action == "audit" { "would be denied" } else { "denied" };
    let text = format!("egress to {to}{name} {verb}{by}: {}{container}", flow.reason);
    Some(Kind { reason, text: text.chars().take(TEXT).collect(), container: flow.container.clone() })
}

/// Flows of a pod that has too many events for one each.
fn rest(kind: &Kind) -> Kind {
    let text = "egress to many more destinations: `egress-agent flows` on the node shows them".to_owned();
    Kind { reason: kind.reason, text, container: None }
}

#[cfg(test)]
mod tests {
    use super::{COUNT, Done, Duration, EVENTS, Instant, OF_POD, OVER, PODS, PodName, Tally, Write};
    use crate::flow::Flow;
    use jiff::Timestamp;

    fn flow(to: &str, action: &str, reason: &str) -> Flow {
        Flow {
            time: Timestamp::from_second(100).unwrap(),
            node: "n".to_owned(),
            pod: Some("a/p".to_owned()),
            cgroup: 1,
            container: Some("app".to_owned()),
            source: "10.0.0.1:4000".parse().unwrap(),
            destination: to.parse().unwrap(),
            destination_name: None,
            destination_pod: None,
            destination_service: None,
            destination_node: None,
            uid: None,
            protocol: "TCP".to_owned(),
            action: action.to_owned(),
            reason: reason.to_owned(),
            policies: vec!["EgressGatewayPolicy mesh".to_owned()],
            rule: None,
            hook: "socket".to_owned(),
            process: None,
            suppressed: 0,
            length: 60,
            revision: 1,
        }
    }

    fn pod(name: &str) -> PodName {
        PodName { namespace: "a".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") }
    }

    fn denied(n: usize) -> Flow {
        flow(&format!("198.51.100.{}:{}", n % 250, 1 + n / 250), "deny", "NotAllowed")
    }

    /// Everything that may be written now, each going well.
    fn write_all(tally: &mut Tally, now: Instant) -> Vec<Write> {
        std::iter::from_fn(|| {
            let write = tally.next(now)?;
            tally.done(&write, Done::Written, now);
            Some(write)
        })
        .collect()
    }

    #[test]
    fn an_event_says_what_was_denied_by_what() {
        let now = Instant::now();
        let mut tally = Tally::new(now, 0);
        tally.take(pod("p"), &flow("198.51.100.7:443", "deny", "SidecarBypass"), now);
        let write = tally.next(now).unwrap();
        assert_eq!(write.kind.reason, "SidecarBypass");
        let text =
            "egress to 198.51.100.7:443/TCP denied by EgressGatewayPolicy mesh: SidecarBypass, container app";
        assert_eq!(write.kind.text, text);
        let mut ping = flow("[2001:db8::1]:0", "audit", "NotAllowed");
        (ping.protocol, ping.container) = ("ICMPv6".to_owned(), None);
        ping.policies.clear();
        ping.destination_name = Some("pod b/c".to_owned());
        tally.take(pod("q"), &ping, now);
        let write = tally.next(now).unwrap();
        assert_eq!(write.kind.reason, "EgressAudited");
        assert_eq!(write.kind.text, "egress to 2001:db8::1/ICMPv6 (pod b/c) would be denied: NotAllowed");
        tally.take(pod("p"), &flow("198.51.100.9:1", "allow", "Allowed"), now);
        assert_eq!(tally.pods.len(), 2);
        assert_eq!(tally.next(now).map(|write| write.kind.text), Some(text.to_owned()), "not written yet");
    }

    #[test]
    fn the_same_flow_is_counted_in_one_event() {
        let start = Instant::now();
        let mut tally = Tally::new(start, 0);
        for _ in 0..5 {
            tally.take(pod("p"), &denied(1), start);
        }
        let first = write_all(&mut tally, start);
        assert_eq!((first.len(), first[0].count, first[0].again), (1, 5, false));
        assert_eq!(tally.due(), None);
        tally.take(pod("p"), &denied(1), start);
        assert_eq!(tally.due(), Some(start + COUNT));
        assert_eq!(tally.next(start), None);
        let then = write_all(&mut tally, start + COUNT);
        assert_eq!((then[0].count, then[0].again, then[0].number), (6, true, first[0].number));
        // After a while it is another event.
        let late = start + COUNT + OVER;
        tally.sweep(late);
        assert!(tally.pods.is_empty());
        assert_eq!(tally.left_out(), 0);
        tally.take(pod("p"), &denied(1), late);
        let new = write_all(&mut tally, late);
        assert_ne!(new[0].number, first[0].number);
        assert_eq!(new[0].count, 1);
    }

    #[test]
    fn a_pod_that_floods_hides_no_other_pods_event() {
        let now = Instant::now();
        let mut tally = Tally::new(now, 0);
        for n in 0..100_000 {
            tally.take(pod("flood"), &denied(n), now);
        }
        tally.take(pod("zz-quiet"), &denied(1), now);
        let first = [tally.next(now).unwrap(), tally.next(now).unwrap()];
        assert_eq!(first.map(|write| write.pod.name), ["flood", "zz-quiet"]);
        let rest = write_all(&mut tally, now);
        assert!(rest.len() <= OF_POD.0 as usize + 1, "{}", rest.len());
        assert_eq!(tally.pods[&pod("flood")].events.len(), EVENTS + 1);
        let counted: u64 = tally.pods[&pod("flood")].events.values().map(|entry| entry.count).sum();
        assert_eq!(counted, 100_000);
        // What was not told of comes as its share allows, the rest of the destinations among it.
        let mut told = Vec::new();
        for step in 1..=40 {
            told.extend(write_all(&mut tally, now + OF_POD.1 * step));
        }
        assert!(told.iter().any(|write| write.kind.text.contains("many more destinations")));
        assert!(told.len() <= 41, "{}", told.len());
    }

    #[test]
    fn a_node_has_a_share_too() {
        let now = Instant::now();
        let mut tally = Tally::new(now, 0);
        for n in 0..200 {
            tally.take(pod(&format!("p{n}")), &denied(1), now);
        }
        assert_eq!(write_all(&mut tally, now).len(), 30);
        assert_eq!(tally.due(), Some(now + Duration::from_secs(1)));
        let more = write_all(&mut tally, now + Duration::from_secs(5));
        assert_eq!(more.len(), 5);
        assert!(more.iter().all(|write| !write.again), "nobody twice before everybody once");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let now = Instant::now();
        let mut tally = Tally::new(now, 0);
        for n in 0..PODS + 100 {
            tally.take(pod(&format!("p{n}")), &denied(1), now);
        }
        assert_eq!((tally.pods.len(), tally.left_out()), (PODS, 100));
        // Room is made when events are over; what nobody was told of is counted.
        tally.take(pod("new"), &denied(1), now + OVER);
        assert_eq!((tally.pods.len(), tally.left_out()), (1, PODS as u64));
    }

    #[test]
    fn how_a_write_ends_counts() {
        let now = Instant::now();
        let mut tally = Tally::new(now, 0);
        tally.take(pod("p"), &denied(1), now);
        let write = tally.next(now).unwrap();
        tally.done(&write, Done::Later, now);
        let again = tally.next(now).unwrap();
        assert_eq!(again, write, "the same name, so that an answer that was lost does no harm");
        tally.done(&again, Done::There, now);
        assert_eq!(tally.next(now), None);
        tally.take(pod("p"), &denied(1), now);
        let counted = tally.next(now + COUNT).unwrap();
        assert_eq!((counted.again, counted.count), (true, 2));
        tally.done(&counted, Done::Gone, now + COUNT);
        let anew = tally.next(now + COUNT).unwrap();
        assert_eq!((anew.again, anew.count), (false, 1));
        assert_ne!(anew.number, write.number);
        tally.done(&anew, Done::Never, now + COUNT);
        assert_eq!((tally.due(), tally.left_out()), (None, 1));
    }
}
