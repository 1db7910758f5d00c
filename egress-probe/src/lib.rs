//! What `egress-probe` prints: one JSON object a line, in the types of this library.
//!
//! Invariant: an attempt that was made always ends in exactly one [`Attempt`] line, whatever the network or the
//! enforcer did to it; only a wrong command line ends without one.

pub mod packet;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The other side answered (or, for `raw` and `packet`, the kernel took the packet).
    Ok,
    /// `ECONNREFUSED`: somebody said no.
    Refused,
    /// `EPERM` or `EACCES` from a socket call: this kernel said no.
    Denied,
    /// Nothing came back in time. A TCP connection whose SYN a `cgroup_skb` program drops ends here too: TCP hides
    /// the error of a single segment from `connect(2)`.
    Timeout,
    /// Anything else; the detail says what.
    Error,
}

/// The one line an attempt prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// How it ended. For `get`, `ok` means that an HTTP answer came, with whatever status.
    pub outcome: Outcome,
    /// For people: what happened, with the system call and error if one failed.
    pub detail: String,
    /// The HTTP status, if an HTTP answer came.
    pub status: Option<u16>,
    /// The answer: the HTTP body, the echoed payload, or the resolved addresses separated by commas.
    pub body: Option<String>,
    /// How long the attempt took.
    pub elapsed_ms: u64,
}

impl Attempt {
    /// Whether the attempt got through: `ok`, and for HTTP a status from 200 to 299.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.outcome == Outcome::Ok && self.status.is_none_or(|status| (200..300).contains(&status))
    }

    /// The addresses that `resolve` found.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.body.as_deref().unwrap_or_default().split(',').filter_map(|part| part.parse().ok()).collect()
    }

    /// The body of an answer of `serve-http`.
    #[must_use]
    pub fn http_reply(&self) -> Option<HttpReply> {
        serde_json::from_str(self.body.as_deref()?).ok()
    }
}

/// The line that every server and `capture` print once they take traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Always true.
    pub ready: bool,
}

/// The body with which `serve-http` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpReply {
    /// The `--name` of the server.
    pub server: String,
    /// Address and port from which the server was called.
    pub peer: String,
    /// The path of the request.
    pub path: String,
}

/// One IP packet that `capture` received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or the number of the protocol (for IPv6, of the first next header).
    pub protocol: String,
    /// Source port of TCP, UDP and SCTP, unless the packet is a later fragment.
    pub sport: Option<u16>,
    /// Destination port of TCP, UDP and SCTP, unless the packet is a later fragment.
    pub dport: Option<u16>,
    /// Length of the IP packet in bytes.
    pub len: usize,
}

/// One frame that `sniff` received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sniffed {
    /// Its bytes from the Ethernet header on, as hexadecimal digits.
    pub frame: String,
}

/// One line of `hold`: number 0 is the connection itself, the others are the lines sent over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The number of the line.
    pub sequence: u64,
    /// `ok` when its echo came back before the interval was over.
    pub outcome: Outcome,
    /// For people: what happened.
    pub detail: String,
    /// Milliseconds since the start of the program.
    pub at_ms: u64,
    /// How long the echo took.
    pub elapsed_ms: u64,
}

/// What came of a `load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Bytes of a stream, datagrams, connections, or requests.
    pub count: u64,
    /// How long they took together, in nanoseconds.
    pub elapsed: u64,
    /// Nanoseconds of the processor that this process used for them.
    pub cpu: u64,
    /// Datagrams that the server got.
    pub arrived: Option<u64>,
    /// Median nanoseconds of a connection or request.
    pub p50: Option<u64>,
    /// Nanoseconds that one of a hundred connections or requests exceeds.
    pub p99: Option<u64>,
}

/// What came of a `storm` or a `flood` so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storm {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams that it refused with `EPERM`.
    pub refused: u64,
    /// Datagrams that failed for another reason, such as no route yet.
    pub failed: u64,
    /// TCP connections that were begun; whether their SYN left, only an observer sees.
    pub connects: u64,
    /// Frames that a packet socket took.
    pub frames: u64,
    /// Milliseconds from the start to the first answer of the lawful server.
    pub lawful_after_ms: Option<u64>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// An attempt of `repeat` that ended in another way than the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When it began, in milliseconds since the start.
    pub at_ms: u64,
    /// How it ended.
    pub attempt: Attempt,
}

/// What came of a `repeat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeated {
    /// Attempts.
    pub count: u64,
    /// Those that did not succeed.
    pub failed: u64,
    /// Why the last of them did not.
    pub last_failure: Option<String>,
    /// How long the longest took.
    pub longest_ms: u64,
    /// How long all took.
    pub elapsed_ms: u64,
}

/// The last line of `arrived`, after the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrivals {
    /// Packets since the start, told of or not.
    pub total: usize,
    /// Those that found no room to be remembered.
    pub forgotten: usize,
}

impl Storm {
    /// Counts a datagram by what came of it.
    pub fn count(&mut self, result: &std::io::Result<()>) {
        match result {
            Ok(()) => self.sent += 1,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => self.refused += 1,
            Err(_) => self.failed += 1,
        }
    }
}

impl Load {
    /// Nanoseconds of the processor for each.
    #[must_use]
    pub fn cpu_each(&self) -> f64 {
        self.cpu as f64 / self.count.max(1) as f64
    }

    /// Per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.count as f64 * 1e9 / self.elapsed.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_round_trips_with_the_documented_field_names() {
        let line = r#"{"outcome":"ok","detail":"","status":200,"body":"{\"server\":\"a\",\"peer\":\"b\",\"path\":\"/\"}","elapsed_ms":3}"#;
        let attempt: Attempt = serde_json::from_str(line).unwrap();
        assert!(attempt.succeeded());
        assert_eq!(attempt.http_reply().unwrap().server, "a");
        assert_eq!(serde_json::to_string(&attempt).unwrap(), line);
    }

    #[test]
    fn a_bad_status_is_no_success() {
        let attempt = Attempt {
            outcome: Outcome::Ok,
            detail: String::new(),
            status: Some(503),
            body: None,
            elapsed_ms: 0,
        };
        assert!(!attempt.succeeded());
        assert!(attempt.addresses().is_empty());
    }
}
