//! `load`: one kind of traffic for a bounded time, as much as goes; `serve-load` is the other side.
//!
//! Invariant: a load that does not get through is an error, not a number. The time on the processor is that of this process, with
//! what the kernel does for its packets on their way; it varies less than the rate on a machine that is not ours alone.

pub(crate) mod serve;

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use egress_probe::Load;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::cli::{LoadKind, LoadOptions};
use crate::net;

/// How long a single step may take before the load has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a write of the stream.
const CHUNK: usize = 128 * 1024;
/// Bytes of a small datagram.
const SMALL: usize = 32;
/// The datagram that asks how many came.
const HOW_MANY: &[u8] = b"how many?";
/// The request of connections that end with the answer.
const ASK_ONCE: &[u8] = b"GET / HTTP/1.1\r\nhost: outside\r\nconnection: close\r\n\r\n";
/// The request of a connection that stays.
const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: outside\r\n\r\n";
/// The answer to both.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 64\r\ncontent-type: text/plain\r\n\r\n\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Makes the load and prints what came of it.
pub(crate) fn run(options: &LoadOptions) -> anyhow::Result<()> {
    pin(options.cpu)?;
    let time = Duration::from_millis(options.for_ms);
    let load = match options.kind {
        LoadKind::Stream => stream(sink(options.target), time),
        LoadKind::Packets => packets(options.target, time),
        LoadKind::Connections => connections(options.target, time),
        LoadKind::Requests => requests(options.target, time),
    };
    net::print_line(&load.with_context(|| format!("{:?} to {}", options.kind, options.target))?)
}

/// Where streams end: the port after that of the requests.
fn sink(target: SocketAddr) -> SocketAddr {
    SocketAddr::new(target.ip(), target.port().saturating_add(1))
}

/// Keeps this process on one CPU, if one is given.
fn pin(cpu: Option<usize>) -> anyhow::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("stay on CPU {cpu}"))
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Measures from its making to each reading.
struct Watch {
    start: Instant,
    cpu: Duration,
}

impl Watch {
    fn start() -> io::Result<Self> {
        Ok(Self { start: Instant::now(), cpu: cpu()? })
    }

    fn load(&self, count: u64) -> io::Result<Load> {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let (elapsed, cpu) =
            (nanoseconds(self.start.elapsed()), nanoseconds(cpu()?.saturating_sub(self.cpu)));
        Ok(Load { count, elapsed, cpu, arrived: None, p50: None, p99: None })
    }
}

/// What this process has used of the processor.
fn cpu() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// Bytes that arrived.
fn stream(target: SocketAddr, time: Duration) -> anyhow::Result<Load> {
    let mut stream = connect(target)?;
    let chunk = vec![0x5a_u8; CHUNK];
    let watch = Watch::start()?;
    while watch.start.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    Ok(watch.load(u64::from_be_bytes(arrived))?)
}

/// Datagrams that this kernel took. How many of them came depends on whether the server has a processor for itself.
fn packets(target: SocketAddr, time: Duration) -> anyhow::Result<Load> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // Begins the count; and a filter that knows connections has seen an answer then.
    ask_how_many(&socket)?;
    let payload = [0x5a_u8; SMALL];
    let mut sent = 0_u64;
    let watch = Watch::start()?;
    while watch.start.elapsed() < time {
        for _ in 0..64 {
            match socket.send(&payload) {
                Ok(_) => sent += 1,
                // The device's queue is full: not sent.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error).context("a datagram was refused"),
            }
        }
    }
    let load = watch.load(sent)?;
    let arrived = ask_how_many(&socket)?;
    ensure!(arrived > 0, "of {sent} datagrams none arrived");
    Ok(Load { arrived: Some(arrived), ..load })
}

fn ask_how_many(socket: &UdpSocket) -> anyhow::Result<u64> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        socket.send(HOW_MANY)?;
        let mut answer = [0; 8];
        match socket.recv(&mut answer) {
            Ok(8) => return Ok(u64::from_be_bytes(answer)),
            Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    bail!("nobody says how many datagrams came")
}

/// Connections with one request each, which the server closes.
fn connections(target: SocketAddr, time: Duration) -> anyhow::Result<Load> {
    repeat(time, || {
        let mut stream = connect(target)?;
        stream.write_all(ASK_ONCE)?;
        let mut answer = Vec::with_capacity(ANSWER.len());
        stream.read_to_end(&mut answer)?;
        ensure!(answer == ANSWER, "another answer than expected");
        Ok(())
    })
}

/// Requests on one connection.
fn requests(target: SocketAddr, time: Duration) -> anyhow::Result<Load> {
    let mut stream = connect(target)?;
    let mut answer = [0; ANSWER.len()];
    repeat(time, || {
        stream.write_all(ASK)?;
        stream.read_exact(&mut answer)?;
        Ok(())
    })
}

/// Does something again and again, with the time each took.
fn repeat(time: Duration, mut once: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Load> {
    // The first one resolves addresses and fills caches.
    once()?;
    let mut times = Vec::with_capacity(100_000);
    let watch = Watch::start()?;
    let mut last = watch.start;
    while last.duration_since(watch.start) < time {
        once()?;
        let now = Instant::now();
        times.push(u64::try_from(now.duration_since(last).as_nanos()).unwrap_or(u64::MAX));
        last = now;
    }
    let count = times.len();
    let load = watch.load(count as u64)?;
    times.sort_unstable();
    let quantile = |percent: usize| times.get((count * percent / 100).min(count.saturating_sub(1))).copied();
    Ok(Load { p50: quantile(50), p99: quantile(99), ..load })
}
