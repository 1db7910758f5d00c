//! What `demo` and `verify` share: a try, what shall come of it, the ways past a sidecar, and the table.
//!
//! Invariant: a line is as expected only when everybody who can tell agrees: the client, an observer outside, and the
//! agent's flow log. What was not tried is never as expected. Tested in [`judge`] and [`table`].

pub(crate) mod judge;
pub(crate) mod table;

use std::net::{IpAddr, SocketAddr};

use egress_probe::Captured;
use serde_json::Value;

/// The user as which a sidecar runs, and which its redirect lets pass.
pub(crate) const SIDECAR_USER: u32 = 1337;

/// A connection that is denied ends by running out of this.
pub(crate) const DENIED_MS: &str = "1000";

/// What works may take its time on a busy machine.
const WORKS_MS: &str = "5000";

/// What shall come of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// It gets through, and nothing is reported.
    Works,
    /// A proxy answers with this HTTP status that it cannot get there.
    Refused(u16),
    /// Nothing arrives, and it is reported.
    Denied,
    /// It gets through, and it is reported.
    Audited,
}

/// Where the packets of a try go that are not taken by a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: IpAddr,
    /// As the probe and the flow log call it.
    pub(crate) protocol: &'static str,
    /// 0 for protocols without ports.
    pub(crate) port: u16,
}

/// A try by somebody: a container.
#[derive(Clone, Debug)]
pub(crate) struct Try<C> {
    pub(crate) who: C,
    /// Another user than root.
    pub(crate) user: Option<u32>,
    pub(crate) how: &'static str,
    /// The words of `egress-probe`.
    pub(crate) words: Vec<String>,
    pub(crate) expect: Expect,
    /// Known where the packets go there themselves, not by the sidecar.
    pub(crate) target: Option<Target>,
    /// The client awaits no answer and cannot tell what came of it.
    pub(crate) blind: bool,
}

impl<C> Try<C> {
    /// A try of these words.
    pub(crate) fn new(who: C, how: &'static str, words: &[&str], expect: Expect) -> Self {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Self { who, user: None, how, words, expect, target: None, blind: false }
    }

    /// An HTTP request.
    pub(crate) fn get(who: C, how: &'static str, url: &str, expect: Expect) -> Self {
        Self::new(who, how, &["get", url, "--timeout-ms", patience(expect)], expect)
    }

    /// As this user.
    pub(crate) fn user(self, user: u32) -> Self {
        Self { user: Some(user), ..self }
    }

    /// With these words more.
    pub(crate) fn words(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// Its packets go there.
    pub(crate) fn to(self, address: IpAddr, protocol: &'static str, port: u16) -> Self {
        Self { target: Some(Target { address, protocol, port }), ..self }
    }

    /// The client cannot tell what came of it.
    pub(crate) fn blind(self) -> Self {
        Self { blind: true, ..self }
    }

    /// Whether its packet is this one, seen outside. `sources` are the addresses of its pod, where packets of other pods may
    /// look the same.
    pub(crate) fn is(&self, packet: &Captured, sources: Option<&[IpAddr]>) -> bool {
        self.target.as_ref().is_some_and(|target| {
            sources.is_none_or(|sources| sources.contains(&packet.src))
                && packet.dst == target.address
                && packet.protocol == target.protocol
                && packet.dport.unwrap_or(0) == target.port
        })
    }

    /// The action and reason of this try's line in the flow log. `pod` is NS/POD.
    pub(crate) fn reported(&self, pod: &str, flows: &[Value]) -> Option<String> {
        let target = self.target.as_ref()?;
        let address = SocketAddr::new(target.address, target.port).to_string();
        let action = if self.expect == Expect::Audited { "audit" } else { "deny" };
        let flow = flows.iter().find(|flow| {
            flow["pod"] == pod
                && flow["destination"] == address.as_str()
                && flow["protocol"] == target.protocol
                && flow["action"] == action
        })?;
        Some(format!("{} {}", action, flow["reason"].as_str().unwrap_or("?")))
    }
}

/// How long a try may take, as a word of the probe.
pub(crate) fn patience(expect: Expect) -> &'static str {
    if expect == Expect::Denied { DENIED_MS } else { WORKS_MS }
}

/// What answers outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outside {
    /// Where all that is tried once goes.
    pub(crate) first: IpAddr,
    pub(crate) v6: IpAddr,
    /// Answers HTTP to the application.
    pub(crate) http: u16,
    /// Answers HTTP to the debug container.
    pub(crate) debug: u16,
    /// Echoes UDP.
    pub(crate) udp: u16,
}

/// Every plain way past a sidecar: by the application, and by a container that somebody added for debugging.
pub(crate) fn around<C: Clone>(app: &C, debug: &C, to: &Outside, expect: Expect) -> Vec<Try<C>> {
    let (first, v6) = (to.first, to.v6);
    let limit = patience(expect);
    let url = |address: IpAddr, port| format!("http://{}/", SocketAddr::new(address, port));
    let echo = SocketAddr::new(first, to.udp).to_string();
    let ping = |how, address: IpAddr| {
        let protocol = if address.is_ipv4() { "ICMP" } else { "ICMPv6" };
        let words = ["ping", &address.to_string(), "--timeout-ms", limit];
        Try::new(app.clone(), how, &words, expect).to(address, protocol, 0)
    };
    vec![
        Try::get(app.clone(), "direct, as UID 1337", &url(first, to.http), expect)
            .user(SIDECAR_USER)
            .to(first, "TCP", to.http),
        Try::get(app.clone(), "direct by IPv6, as UID 1337", &url(v6, to.http), expect)
            .user(SIDECAR_USER)
            .to(v6, "TCP", to.http),
        Try::get(debug.clone(), "direct, from a debug container", &url(first, to.debug), expect)
            .user(SIDECAR_USER)
            .to(first, "TCP", to.debug),
        Try::new(app.clone(), "direct by UDP", &["udp", &echo, "--timeout-ms", limit], expect)
            .to(first, "UDP", to.udp),
        ping("direct by ICMP", first),
        ping("direct by ICMPv6", v6),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn direct(expect: Expect) -> Try<()> {
        let outside = "198.51.100.10".parse().unwrap();
        Try::get((), "direct", "http://198.51.100.10:80/", expect).to(outside, "TCP", 80)
    }

    #[test]
    fn a_report_is_of_the_same_pod_destination_protocol_and_action() {
        let flow = json!({
            "pod": "a/b", "destination": "198.51.100.10:80", "protocol": "TCP",
            "action": "deny", "reason": "NotAllowed",
        });
        let with = |key: &str, value: &str| {
            let mut flow = flow.clone();
            flow[key] = value.into();
            direct(Expect::Denied).reported("a/b", &[flow])
        };
        assert_eq!(with("action", "deny").as_deref(), Some("deny NotAllowed"));
        for (key, value) in
            [("pod", "a/c"), ("destination", "198.51.100.10:81"), ("protocol", "UDP"), ("action", "audit")]
        {
            assert_eq!(with(key, value), None, "{key}");
        }
        assert_eq!(direct(Expect::Audited).reported("a/b", &[flow]), None);
    }

    #[test]
    fn a_packet_is_told_by_where_it_goes_and_by_its_source_where_that_is_asked() {
        let packet = Captured {
            src: "10.0.0.1".parse().unwrap(),
            dst: "198.51.100.10".parse().unwrap(),
            protocol: "TCP".to_owned(),
            sport: Some(1),
            dport: Some(80),
            len: 60,
        };
        let one = direct(Expect::Denied);
        assert!(one.is(&packet, None) && one.is(&packet, Some(&[packet.src])));
        assert!(!one.is(&packet, Some(&[])));
        assert!(!one.is(&Captured { dport: Some(81), ..packet.clone() }, None));
        assert!(!one.is(&Captured { protocol: "UDP".to_owned(), ..packet }, None));
    }
}
