//! One attack: what is tried, by whom, and how one recognizes what came of it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use egress_probe::Attempt;
use egress_probe::packet::to_hex;
use egress_topology::{Capabilities, Container, Exec, OUTSIDE_V4, OUTSIDE_V6, Pod, Process};
use serde_json::Value;

/// The hardware address of the pods' bridge on the node.
pub(crate) const BRIDGE_MAC: &str = "02:00:0a:f4:01:01";
/// What containers have by default, and an administrator's rights over the pod's network.
pub(crate) const NET_ADMIN: Capabilities = Capabilities::RUNTIME_DEFAULT.with(Capabilities::NET_ADMIN);
/// And those that make namespaces.
pub(crate) const SYS_ADMIN: Capabilities = NET_ADMIN.with(Capabilities::SYS_ADMIN);

/// The source port of what is forged.
pub(crate) const SOURCE_PORT: u16 = 40_000;

/// One attempt to get bytes out of one pod. Its tag is in the payload, or its port is the destination port; no other shot
/// has either.
pub(crate) struct Shot<'a> {
    pub(crate) container: &'a Container,
    pub(crate) peer: &'a Pod,
    pub(crate) tag: String,
    pub(crate) port: u16,
    pub(crate) v6: bool,
    capabilities: Capabilities,
    user: Option<u32>,
    probe: &'a Path,
}

impl Shot<'_> {
    fn either(&self, v4: impl Into<IpAddr>, v6: impl Into<IpAddr>) -> IpAddr {
        if self.v6 { v6.into() } else { v4.into() }
    }

    /// The pod's own address, with a port.
    pub(crate) fn from(&self) -> SocketAddr {
        let pod = self.container.pod();
        SocketAddr::new(self.either(pod.v4(), pod.v6()), SOURCE_PORT)
    }

    /// The address outside, with the shot's port.
    pub(crate) fn to(&self) -> SocketAddr {
        SocketAddr::new(self.either(OUTSIDE_V4, OUTSIDE_V6), self.port)
    }

    /// An address in the cluster that the pod may send to.
    pub(crate) fn lawful(&self) -> IpAddr {
        self.either(self.peer.v4(), self.peer.v6())
    }

    /// An address that is nobody's.
    pub(crate) fn foreign(&self) -> IpAddr {
        let v4: IpAddr = [192, 0, 2, 7].into();
        self.either(v4, [0x2001, 0xdb8, 0x7, 0, 0, 0, 0, 7])
    }

    fn exec(&self, exec: Exec) -> Exec {
        let exec = exec.capabilities(self.capabilities);
        match self.user {
            Some(user) => exec.user(user),
            None => exec,
        }
    }

    /// Starts a program as the attacker.
    pub(crate) fn spawn(&self, exec: Exec) -> Process {
        self.container.spawn(&self.exec(exec)).unwrap()
    }

    /// Runs an attempt as the attacker, whatever comes of it.
    pub(crate) fn probe(&self, words: &[&str]) -> Attempt {
        self.spawn(Exec::probe(words)).output_json(Duration::from_secs(10)).unwrap()
    }

    /// Injects a packet by a way of `egress-probe inject`.
    pub(crate) fn inject(&self, via: &str, packet: &[u8], more: &[&str]) -> Attempt {
        let packet = to_hex(packet);
        let words = ["inject", &packet, "--via", via, "--destination-mac", BRIDGE_MAC];
        self.probe(&[&words, more].concat())
    }

    /// Runs a script of the shell as the attacker. It finds `$PROBE`, `$TAG`, `$PORT`, `$OUT`, `$OWN` and `$PEER` (addresses), and
    /// `$FAMILY` (for `ip`: `-4`, `-6`). What it leaves behind ends with it.
    pub(crate) fn shell(&self, script: &str) -> (bool, String) {
        let family = if self.v6 { "-6" } else { "-4" };
        let exec = Exec::new("/bin/sh", ["-ec", script])
            .environment("PROBE", self.probe)
            .environment("TAG", &self.tag)
            .environment("PORT", self.port.to_string())
            .environment("OUT", self.to().ip().to_string())
            .environment("OWN", self.from().ip().to_string())
            .environment("PEER", self.lawful().to_string())
            .environment("FAMILY", family);
        let finished = self.spawn(exec).finish(Duration::from_secs(15)).unwrap();
        (finished.status.success(), format!("{}{}", finished.stdout, finished.stderr))
    }
}

type Run = Box<dyn Fn(&Shot<'_>) -> String>;

/// A way out: its name, what the attacker may do, and how it goes. What it returns is for the one who reads a failure.
pub(crate) struct Attack {
    name: String,
    capabilities: Capabilities,
    user: Option<u32>,
    families: &'static [bool],
    reason: Option<&'static str>,
    by_tag: bool,
    run: Run,
}

/// An attack of both families by a container with the default capabilities.
pub(crate) fn attack<D: std::fmt::Debug>(name: &str, run: impl Fn(&Shot<'_>) -> D + 'static) -> Attack {
    Attack {
        name: name.to_owned(),
        capabilities: Capabilities::RUNTIME_DEFAULT,
        user: None,
        families: &[false, true],
        reason: None,
        by_tag: false,
        run: Box::new(move |shot| format!("{:?}", run(shot))),
    }
}

impl Attack {
    pub(crate) fn with(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    pub(crate) fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    pub(crate) fn only_v4(mut self) -> Self {
        self.families = &[false];
        self
    }

    pub(crate) fn only_v6(mut self) -> Self {
        self.families = &[true];
        self
    }

    /// The flow log names this reason for it.
    pub(crate) fn reason(self, reason: &'static str) -> Self {
        self.reason_if(Some(reason))
    }

    pub(crate) fn reason_if(mut self, reason: Option<&'static str>) -> Self {
        self.reason = reason;
        self
    }

    /// Known by its tag alone, because something lawful goes to its port.
    pub(crate) fn by_tag(mut self) -> Self {
        self.by_tag = true;
        self
    }

    /// Without a look into the flow log, for instance where no agent runs.
    pub(crate) fn quiet(self) -> Self {
        self.reason_if(None)
    }

    /// Runs it once for each family.
    pub(crate) fn fire(&self, container: &Container, peer: &Pod, probe: &Path) -> Vec<Fired> {
        let fire = |&v6: &bool| {
            let (tag, port) = unique();
            let (capabilities, user) = (self.capabilities, self.user);
            let shot = Shot { container, peer, tag: tag.clone(), port, v6, capabilities, user, probe };
            let report = (self.run)(&shot);
            let name = format!("{} by IPv{}", self.name, if v6 { 6 } else { 4 });
            Fired { name, tag, port, reason: self.reason, by_tag: self.by_tag, report }
        };
        self.families.iter().map(fire).collect()
    }
}

/// A tag and a port that no other shot of this program has.
pub(crate) fn unique() -> (String, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    (format!("shot{number:05}."), number)
}

/// A shot that was fired.
pub(crate) struct Fired {
    name: String,
    tag: String,
    pub(crate) port: u16,
    pub(crate) reason: Option<&'static str>,
    by_tag: bool,
    report: String,
}

impl Fired {
    /// Whether a line of the flow log is about this. What has no ports there is told by its reason alone.
    pub(crate) fn is_told_by(&self, flow: &Value, pod: &str) -> bool {
        let destination: SocketAddr = flow["destination"].as_str().unwrap().parse().unwrap();
        flow["pod"] == pod
            && flow["action"] == "deny"
            && flow["reason"].as_str() == self.reason
            && [self.port, 0].contains(&destination.port())
    }

    /// For the one who reads a failure.
    pub(crate) fn explain(&self) -> String {
        format!("  {} (port {}): {}", self.name, self.port, self.report)
    }

    /// Whether a frame is part of it.
    pub(crate) fn is_in(&self, frame: &[u8]) -> bool {
        let has = |bytes: &[u8]| frame.windows(bytes.len()).any(|part| part == bytes);
        let forged = [SOURCE_PORT.to_be_bytes(), self.port.to_be_bytes()].concat();
        has(self.tag.as_bytes()) || !self.by_tag && (has(&forged) || goes_to(frame, self.port))
    }
}

/// Whether a frame is plain TCP or UDP to this port.
fn goes_to(frame: &[u8], port: u16) -> bool {
    let at = match frame.get(12..15) {
        Some([0x08, 0x00, first]) if matches!(frame[23], 6 | 17) => 14 + usize::from(first & 0x0f) * 4,
        Some([0x86, 0xdd, _]) if matches!(frame[20], 6 | 17) => 54,
        _ => return false,
    };
    frame.get(at + 2..at + 4) == Some(&port.to_be_bytes()[..])
}
