//! `outside`: stands in, on a node, for what is outside of the cluster; `arrived` asks it what came.
//!
//! It takes addresses that nobody has, so that packets for them leave the pod and end at the node, answers there, and
//! remembers every packet that arrives for them: read by raw sockets, which get a copy of what the kernel delivers, behind
//! the hooks on the pods' veths and behind the node's own rules.
//!
//! Invariants: the addresses go with the process: taken back when it is told to end, and by the kernel, [`LIFETIME`] seconds
//! after it was killed. Whatever had arrived when somebody asks is in the answer.

use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use egress_probe::{Arrivals, Captured};
use socket2::{Domain, Protocol, Socket, Type};

use super::{address, capture, echo, http};
use crate::cli::OutsideOptions;
use crate::{net, user};

/// Seconds for which the kernel keeps the addresses, unless we renew them.
const LIFETIME: u32 = 60;
/// How often they are renewed.
const RENEWAL: Duration = Duration::from_secs(15);
/// How often the raw sockets are read, so that they do not run full.
const READ: Duration = Duration::from_millis(20);
/// Bytes of packets that may wait to be read.
const ROOM: usize = 16 << 20;
/// Packets that are remembered.
const MEMORY: usize = 1 << 16;

/// The protocols that are looked for: what pods send by themselves, and the usual tunnels.
const V4: [i32; 7] = [
    libc::IPPROTO_TCP,
    libc::IPPROTO_UDP,
    libc::IPPROTO_ICMP,
    libc::IPPROTO_SCTP,
    libc::IPPROTO_IPIP,
    libc::IPPROTO_GRE,
    libc::IPPROTO_IPV6,
];
/// The same for IPv6.
const V6: [i32; 7] = [
    libc::IPPROTO_TCP,
    libc::IPPROTO_UDP,
    libc::IPPROTO_ICMPV6,
    libc::IPPROTO_SCTP,
    libc::IPPROTO_IPIP,
    libc::IPPROTO_GRE,
    libc::IPPROTO_IPV6,
];

/// What has arrived.
#[derive(Debug)]
struct Observer {
    sockets: Vec<(IpAddr, i32, Socket)>,
    seen: Vec<Captured>,
    forgotten: usize,
}

impl Observer {
    fn new(addresses: &[IpAddr]) -> anyhow::Result<Self> {
        let mut sockets = Vec::new();
        for address in addresses {
            let (domain, protocols) = if address.is_ipv4() { (Domain::IPV4, V4) } else { (Domain::IPV6, V6) };
            for protocol in protocols {
                let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))
                    .context("cannot open a raw socket: NET_RAW is needed")?;
                socket.bind(&SocketAddr::new(*address, 0).into())?;
                socket.set_nonblocking(true)?;
                // What finds no room is not seen: an observer that misses something proves nothing.
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &ROOM)?;
                sockets.push((*address, protocol, socket));
            }
        }
        Ok(Self { sockets, seen: Vec::new(), forgotten: 0 })
    }

    /// Reads everything that waits.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
        for (address, protocol, socket) in &self.sockets {
            loop {
                let (count, from) = match socket.recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                // SAFETY: the kernel has written so many bytes from the beginning on.
                let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), count) };
                let packet = match (address, from.as_socket()) {
                    (IpAddr::V4(_), _) => capture::read_v4(bytes),
                    (IpAddr::V6(_), _) if capture::is_link_chatter(*protocol, bytes) => None,
                    (to, Some(from)) => {
                        Some(capture::describe((from.ip(), *to), *protocol, bytes, 40 + count))
                    }
                    (_, None) => None,
                };
                let packet = packet.map(|packet| named(packet, address, *protocol, bytes));
                match packet {
                    Some(packet) if self.seen.len() < MEMORY => self.seen.push(packet),
                    Some(_) => self.forgotten += 1,
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn arrivals(&self) -> Arrivals {
        Arrivals { total: self.seen.len() + self.forgotten, forgotten: self.forgotten }
    }
}

/// ICMP that is no question bears its type, so that the kernel's complaint about an answer is not taken for a ping.
fn named(mut packet: Captured, to: &IpAddr, protocol: i32, bytes: &[u8]) -> Captured {
    let (question, at) = match (to, protocol) {
        (IpAddr::V4(_), libc::IPPROTO_ICMP) => {
            (8, bytes.first().map_or(0, |first| usize::from(first & 0x0f) * 4))
        }
        (IpAddr::V6(_), libc::IPPROTO_ICMPV6) => (128, 0),
        _ => return packet,
    };
    match bytes.get(at) {
        Some(&kind) if kind != question => packet.protocol = format!("{} type {kind}", packet.protocol),
        _ => {}
    }
    packet
}

/// The abstract socket at which an address's observer answers.
fn socket_of(address: IpAddr) -> io::Result<UnixAddr> {
    UnixAddr::from_abstract_name(format!("egress-probe/outside/{address}"))
}

/// Takes the addresses, serves, and observes, until told to end.
pub(crate) fn run(options: &OutsideOptions) -> anyhow::Result<()> {
    let signals = user::hold_signals()?;
    let first = options.addresses.first().copied().context("no address is given")?;
    let questions = UnixListener::bind_addr(&socket_of(first)?)
        .with_context(|| format!("somebody stands in for {first} already"))?;
    let taken = Taken { addresses: options.addresses.clone(), device: options.device.clone() };
    taken.renew()?;
    let taken = Arc::new(Mutex::new(Some(taken)));
    let served = serve(options, questions, &taken).and_then(|()| {
        net::announce_ready()?;
        signals.wait()?;
        Ok(())
    });
    // Nobody renews them after this.
    lock(&taken).take().map_or(Ok(()), |taken| taken.give_back())?;
    served
}

/// Starts the threads that serve, observe, answer questions, and renew the addresses.
fn serve(
    options: &OutsideOptions,
    questions: UnixListener,
    taken: &Arc<Mutex<Option<Taken>>>,
) -> anyhow::Result<()> {
    let observer = Arc::new(Mutex::new(Observer::new(&options.addresses)?));
    for address in &options.addresses {
        for port in options.first_port..options.first_port.saturating_add(options.ports) {
            let listener = net::listen_tcp(*address, port)?;
            let handler = http::handler("outside");
            thread::Builder::new().spawn(move || net::accept(&listener, &handler))?;
            let socket = net::listen_udp(*address, port)?;
            thread::Builder::new().spawn(move || echo::datagrams(&socket))?;
        }
    }
    let reader = Arc::clone(&observer);
    thread::Builder::new().spawn(move || {
        loop {
            complain(lock(&reader).read().map_err(anyhow::Error::from));
            thread::sleep(READ);
        }
    })?;
    thread::Builder::new().spawn(move || {
        for question in questions.incoming() {
            complain(question.map_err(anyhow::Error::from).and_then(|stream| tell(&stream, &observer)));
        }
    })?;
    let taken = Arc::clone(taken);
    thread::Builder::new().spawn(move || {
        loop {
            thread::sleep(RENEWAL);
            complain(lock(&taken).as_ref().map_or(Ok(()), Taken::renew));
        }
    })?;
    Ok(())
}

/// What it holds stays whole, whoever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn complain(result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("egress-probe: outside: {error:#}");
    }
}

/// Answers one question: a line with the number of packets that are known already.
fn tell(stream: &UnixStream, observer: &Mutex<Observer>) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let since: usize = line.trim().parse()?;
    let mut observer = lock(observer);
    observer.read()?;
    let mut out = BufWriter::new(stream);
    for packet in observer.seen.get(since..).unwrap_or_default() {
        serde_json::to_writer(&mut out, packet)?;
        out.write_all(b"\n")?;
    }
    serde_json::to_writer(&mut out, &observer.arrivals())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Prints what the observer of this address saw, and how much that is.
pub(crate) fn arrived(of: IpAddr, since: usize) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect_addr(&socket_of(of)?)
        .with_context(|| format!("nobody stands in for {of} in this network namespace"))?;
    stream.write_all(format!("{since}\n").as_bytes())?;
    let mut out = io::stdout().lock();
    if io::copy(&mut stream, &mut out)? == 0 {
        bail!("the observer of {of} gave no answer");
    }
    Ok(out.flush()?)
}

/// Addresses that are ours for a while.
#[derive(Debug)]
struct Taken {
    addresses: Vec<IpAddr>,
    device: String,
}

impl Taken {
    /// Takes them, or keeps them longer.
    fn renew(&self) -> anyhow::Result<()> {
        self.each(|address| address::take(*address, &self.device, LIFETIME), "take")
    }

    fn give_back(&self) -> anyhow::Result<()> {
        self.each(|address| address::give_back(*address, &self.device), "give back")
    }

    fn each(&self, act: impl Fn(&IpAddr) -> io::Result<()>, what: &str) -> anyhow::Result<()> {
        self.addresses.iter().try_for_each(|address| {
            act(address).with_context(|| format!("cannot {what} {address} on {}", self.device))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_questions_are_plain_icmp() {
        let name = |from: &str, to: &str, kind| {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let bytes = egress_probe::packet::Packet::icmp(from, to, kind, b"x").bytes().unwrap();
            // A raw socket gives the header of IPv4 alone.
            let (protocol, bytes) = if to.is_ipv4() {
                (libc::IPPROTO_ICMP, &bytes[..])
            } else {
                (libc::IPPROTO_ICMPV6, &bytes[40..])
            };
            named(capture::describe((from, to), protocol, bytes, 0), &to, protocol, bytes).protocol
        };
        assert_eq!(name("10.0.0.1", "10.0.0.2", 8), "ICMP");
        assert_eq!(name("10.0.0.1", "10.0.0.2", 3), "ICMP type 3");
        assert_eq!(name("fd00::1", "fd00::2", 128), "ICMPv6");
        assert_eq!(name("fd00::1", "fd00::2", 1), "ICMPv6 type 1");
    }

    #[test]
    fn an_observer_sees_what_arrives_before_it_is_asked() {
        // Needs NET_RAW: what tests run as is root.
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let observer = Mutex::new(Observer::new(&[loopback]).unwrap());
        let server = net::listen_udp(loopback, 0).unwrap();
        let port = server.local_addr().unwrap().port();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", ("127.0.0.1", port)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(b"0\n").unwrap();
        tell(&theirs, &observer).unwrap();
        drop(theirs);
        let lines: Vec<String> = BufReader::new(&ours).lines().map(Result::unwrap).collect();
        let (last, packets) = lines.split_last().unwrap();
        let packets: Vec<Captured> = packets.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let found = packets.iter().any(|packet| packet.protocol == "UDP" && packet.dport == Some(port));
        assert!(found, "{packets:?}");
        let arrivals: Arrivals = serde_json::from_str(last).unwrap();
        assert_eq!((arrivals.total, arrivals.forgotten), (packets.len(), 0));
    }
}
