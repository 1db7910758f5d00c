//! `storm`: sends to where it may not, from the first instruction on, without a pause; `flood`: as fast as it can.
//!
//! Invariant: every call that sends is counted by what came of it, so that nothing leaves unnoticed.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use egress_probe::Storm;
use socket2::{Domain, Protocol, Socket, Type};

use super::frame;
use crate::cli::{FloodOptions, StormOptions};
use crate::net;

/// TCP sockets that go on trying at the same time, for each target.
const SYNS: usize = 16;
/// Rounds of datagrams for each round of anything else.
const OTHERS: u64 = 4;

/// How long the lawful server may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends until the time is over, which begins with the first lawful answer where one is waited for. Prints a line when
/// the first lawful answer came, and one at the end.
pub(crate) fn run(options: &StormOptions) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut storm = Storm::default();
    let mut senders: Vec<Sender> = options.targets.iter().map(|target| Sender::new(*target)).collect();
    let lawful = options.lawful.map(|target| (udp(target), target));
    let mut round = 0_u64;
    loop {
        for sender in &mut senders {
            sender.datagram(&mut storm);
            if round.is_multiple_of(OTHERS) {
                sender.connect(&mut storm);
            }
        }
        if let Some((socket, target)) = &lawful
            && storm.lawful_after_ms.is_none()
        {
            let answered = socket.as_ref().is_ok_and(|socket| echoes(socket, *target));
            if answered {
                storm.lawful_after_ms = Some(milliseconds(start));
                net::print_line(&storm)?;
            }
        }
        if let Some(port) = options.frames
            && round.is_multiple_of(OTHERS)
        {
            for target in &options.targets {
                let flow = frame::Flow { target: target.ip(), from: None, port, payload: "storm" };
                if frame::send("eth0", &flow, Some(options.gateway)).is_ok() {
                    storm.frames += 1;
                }
            }
        }
        round += 1;
        let begin = storm.lawful_after_ms.map(Duration::from_millis);
        let end = match begin {
            None if lawful.is_some() => PATIENCE,
            begin => begin.unwrap_or_default() + Duration::from_millis(options.for_ms),
        };
        if start.elapsed() >= end {
            break;
        }
        thread::sleep(Duration::from_millis(options.interval_ms));
    }
    storm.elapsed_ms = milliseconds(start);
    net::print_line(&storm)
}

/// Sends datagrams on one socket until there were enough of them, or the time is over.
pub(crate) fn flood(options: &FloodOptions) -> anyhow::Result<()> {
    let socket = udp(options.target)?;
    socket.connect(options.target)?;
    let start = Instant::now();
    let mut storm = Storm::default();
    while storm.sent + storm.refused < options.count
        && start.elapsed() < Duration::from_millis(options.for_ms)
    {
        for _ in 0..64.min(options.count - storm.sent - storm.refused) {
            storm.count(&socket.send(b"flood").map(drop));
        }
    }
    storm.elapsed_ms = milliseconds(start);
    net::print_line(&storm)
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn udp(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sends a datagram, and looks whether an earlier one was answered.
fn echoes(socket: &UdpSocket, target: SocketAddr) -> bool {
    let _not_allowed_yet = socket.send_to(b"lawful", target);
    socket.recv_from(&mut [0; 64]).is_ok_and(|(_, from)| from == target)
}

struct Sender {
    target: SocketAddr,
    socket: io::Result<UdpSocket>,
    syns: VecDeque<Socket>,
}

impl Sender {
    fn new(target: SocketAddr) -> Self {
        Self { target, socket: udp(target), syns: VecDeque::new() }
    }

    fn datagram(&self, storm: &mut Storm) {
        if let Ok(socket) = &self.socket {
            storm.count(&socket.send_to(b"storm", self.target).map(drop));
        }
    }

    /// Begins one connection more; a SYN that is dropped is sent again by the kernel as long as the socket is open.
    fn connect(&mut self, storm: &mut Storm) {
        let begin = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            match socket.connect(&self.target.into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                _ => Ok(socket),
            }
        };
        storm.connects += 1;
        if let Ok(socket) = begin() {
            self.syns.push_back(socket);
        }
        if self.syns.len() > SYNS {
            self.syns.pop_front();
        }
    }
}
