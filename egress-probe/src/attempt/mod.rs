//! The one-shot attempts.
//!
//! Invariant: whatever happens on the network becomes a value of [`Outcome`]; nothing here panics or gives up
//! without a line.

pub(crate) mod dns;
pub(crate) mod forged;
pub(crate) mod frame;
pub(crate) mod hold;
pub(crate) mod http;
pub(crate) mod inject;
mod next_hop;
pub(crate) mod ping;
pub(crate) mod repeat;
pub(crate) mod socket;
pub(crate) mod storm;
pub(crate) mod talk;
pub(crate) mod trick;
pub(crate) mod xdp;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use egress_probe::{Attempt, Outcome};

use crate::cli::AttemptCommand;

/// What an attempt that got through brings home.
#[derive(Debug, Default)]
pub(crate) struct Success {
    pub(crate) detail: String,
    pub(crate) status: Option<u16>,
    pub(crate) body: Option<String>,
}

/// Why an attempt did not get through.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) outcome: Outcome,
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn other(detail: impl Into<String>) -> Self {
        Self { outcome: Outcome::Error, detail: detail.into() }
    }

    fn timeout(step: &str) -> Self {
        Self { outcome: Outcome::Timeout, detail: format!("{step}: time is up") }
    }
}

/// Names the step in which an I/O error happened.
pub(crate) trait During<T> {
    fn during(self, step: &str) -> Result<T, Failure>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, step: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure { outcome: outcome_of(&error), detail: format!("{step}: {error}") })
    }
}

/// Sorts an I/O error.
pub(crate) fn outcome_of(error: &io::Error) -> Outcome {
    match (error.raw_os_error(), error.kind()) {
        (Some(libc::ECONNREFUSED), _) => Outcome::Refused,
        (Some(libc::EPERM | libc::EACCES), _) => Outcome::Denied,
        (_, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Outcome::Timeout,
        _ => Outcome::Error,
    }
}

/// The time an attempt has for all of its steps together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    end: Instant,
}

impl Budget {
    pub(crate) fn new(milliseconds: u64) -> Self {
        Self { end: Instant::now() + Duration::from_millis(milliseconds) }
    }

    /// What is left, or the failure that nothing is.
    pub(crate) fn left(self, step: &str) -> Result<Duration, Failure> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Failure::timeout(step)) } else { Ok(left) }
    }

    /// What is left, as a socket's time limit.
    pub(crate) fn left_io(self) -> io::Result<Duration> {
        self.left("").map_err(|_| io::ErrorKind::TimedOut.into())
    }
}

/// Runs one attempt.
pub(crate) fn run(command: &AttemptCommand) -> Attempt {
    let start = Instant::now();
    let result = match command {
        AttemptCommand::Get { url, timeout_ms, dns, via, from } => {
            http::get(url, &http::Way { dns: *dns, via: *via, from: *from }, Budget::new(*timeout_ms))
        }
        AttemptCommand::Udp { target, from, payload, source_port, timeout_ms } => {
            let from = from.map(|address| SocketAddr::new(address, *source_port));
            socket::udp(*target, from, *source_port, payload, Budget::new(*timeout_ms))
        }
        AttemptCommand::Ping { target, payload, timeout_ms } => {
            ping::ping(*target, payload, Budget::new(*timeout_ms))
        }
        AttemptCommand::Tcp { target, source_port, mptcp, timeout_ms } => {
            socket::tcp(*target, *source_port, *mptcp, Budget::new(*timeout_ms))
        }
        AttemptCommand::Sctp { target, from, payload, messages, timeout_ms } => {
            socket::sctp(*target, *from, (payload, *messages), Budget::new(*timeout_ms))
        }
        AttemptCommand::Volume { target, bytes, timeout_ms } => {
            socket::volume(*target, *bytes, Budget::new(*timeout_ms))
        }
        AttemptCommand::Inject(options) => inject::send(options),
        AttemptCommand::SelfAccept(options) => trick::self_accept(options),
        AttemptCommand::Repair { target, from, payload } => trick::repair(*target, *from, payload),
        AttemptCommand::Resolve { name, dns, timeout_ms } => {
            dns::resolve(name, *dns, Budget::new(*timeout_ms)).map(|addresses| Success {
                detail: format!("{} addresses", addresses.len()),
                status: None,
                body: Some(addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
            })
        }
        AttemptCommand::Raw { target, from, port, payload } => forged::send(*target, *from, *port, payload),
        AttemptCommand::Packet { target, interface, from, port, payload, destination_mac } => {
            let flow = frame::Flow { target: *target, from: *from, port: *port, payload };
            frame::send(interface, &flow, *destination_mac)
        }
    };
    finish(start, result)
}

/// The line of an attempt that began at `start`.
pub(crate) fn finish(start: Instant, result: Result<Success, Failure>) -> Attempt {
    let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(Success { detail, status, body }) => {
            Attempt { outcome: Outcome::Ok, detail, status, body, elapsed_ms }
        }
        Err(Failure { outcome, detail }) => Attempt { outcome, detail, status: None, body: None, elapsed_ms },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_who_said_no() {
        let of = |number| outcome_of(&io::Error::from_raw_os_error(number));
        assert_eq!(of(libc::EPERM), Outcome::Denied);
        assert_eq!(of(libc::EACCES), Outcome::Denied);
        assert_eq!(of(libc::ECONNREFUSED), Outcome::Refused);
        assert_eq!(of(libc::EAGAIN), Outcome::Timeout);
        assert_eq!(of(libc::ETIMEDOUT), Outcome::Timeout);
        assert_eq!(of(libc::EHOSTUNREACH), Outcome::Error);
    }
}
