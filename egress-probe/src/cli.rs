//! The command line. Every word that can be an attempt is in [`AttemptCommand`], so `script` takes the same words.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::serve::dns::Record;

/// Servers and one-shot network attempts for tests of egress enforcement; prints JSON lines.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One line of a script: the words of an attempt, without the program's name.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
pub(crate) struct ScriptLine {
    #[command(subcommand)]
    pub(crate) command: AttemptCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer any HTTP request with 200 and {"server","peer","path"}.
    ServeHttp {
        #[command(flatten)]
        listen: Listen,
        /// What the answers call this server.
        #[arg(long)]
        name: String,
    },
    /// Echo UDP datagrams.
    ServeUdp {
        #[command(flatten)]
        listen: Listen,
    },
    /// Echo TCP bytes.
    ServeEcho {
        #[command(flatten)]
        listen: Listen,
        /// Take one connection, listen no more, and end with it.
        #[arg(long)]
        once: bool,
    },
    /// Answer A and AAAA queries over UDP from the given records; everything else does not exist.
    ServeDns {
        #[command(flatten)]
        listen: Listen,
        /// NAME=ADDR[,ADDR]...
        #[arg(long)]
        record: Vec<Record>,
    },
    /// Stand in for the sidecar: take redirected TCP, connect to the mesh directly, to the rest by the gateway.
    Proxy(ProxyOptions),
    /// HTTP CONNECT forward proxy.
    Gateway(GatewayOptions),
    /// Print a line for each IP packet that comes in on an interface (no ARP, neighbour or multicast discovery).
    Capture {
        #[arg(long, default_value = "eth0")]
        interface: String,
        /// Stop after this time instead of running until killed.
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// Print every frame that comes in on an interface, whatever it is.
    Sniff {
        #[arg(long, default_value = "eth0")]
        interface: String,
    },
    /// Wait for one UDP datagram and answer whoever it claims to be from.
    Answer {
        #[command(flatten)]
        listen: Listen,
        #[arg(long, default_value = "probe")]
        payload: String,
    },
    /// Keep one UDP socket and send each line of standard input by it; nothing is awaited.
    Talk(TalkOptions),
    /// Keep one TCP connection to an echo server and report on every line sent over it.
    Hold(HoldOptions),
    /// Take what `load` sends: requests and datagrams on the port, streams on the next.
    ServeLoad(ServeLoadOptions),
    /// Send as much of one kind of traffic as goes, for a time, and report how much it was.
    Load(LoadOptions),
    /// Send datagrams and SYNs to where they may not go, from the first instruction on, and report what came of it.
    Storm(StormOptions),
    /// Send datagrams as fast as it goes, and report how many were refused.
    Flood(FloodOptions),
    /// Run attempts given as JSON argv arrays on standard input, one a line.
    Script,
    #[command(flatten)]
    Attempt(AttemptCommand),
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    #[arg(long)]
    pub(crate) port: u16,
    /// The unspecified IPv6 address takes IPv4 as well.
    #[arg(long, default_value = "::")]
    pub(crate) bind: IpAddr,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyOptions {
    /// Port on which redirected connections arrive.
    #[arg(long, default_value_t = 15001)]
    pub(crate) listen: u16,
    /// Networks that are connected to directly.
    #[arg(long, num_args = 1..)]
    pub(crate) mesh: Vec<IpNet>,
    /// The egress gateway for everything else.
    #[arg(long)]
    pub(crate) gateway: SocketAddr,
    #[arg(long, default_value_t = 2000)]
    pub(crate) connect_timeout_ms: u64,
}

#[derive(Debug, Args)]
pub(crate) struct GatewayOptions {
    #[arg(long, default_value_t = 15443)]
    pub(crate) port: u16,
    #[arg(long, default_value = "::")]
    pub(crate) bind: IpAddr,
    #[arg(long, default_value_t = 2000)]
    pub(crate) connect_timeout_ms: u64,
    /// Where names in CONNECT requests are resolved; without it only addresses are served.
    #[arg(long, value_parser = dns_server)]
    pub(crate) dns: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct HoldOptions {
    pub(crate) target: SocketAddr,
    /// The port to connect from; by default any.
    #[arg(long, default_value_t = 0)]
    pub(crate) source_port: u16,
    /// How long to go on after the connection stands.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) for_ms: u64,
    /// Time between lines, and the time an echo has to come back.
    #[arg(long, default_value_t = 500)]
    pub(crate) interval_ms: u64,
    #[arg(long, default_value_t = 2000)]
    pub(crate) timeout_ms: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ServeLoadOptions {
    #[command(flatten)]
    pub(crate) listen: Listen,
    /// Stay on this CPU.
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
}

/// What a load is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadKind {
    /// The bytes of one TCP connection.
    Stream,
    /// Small datagrams of one socket.
    Packets,
    /// TCP connections with one request each, one after the other.
    Connections,
    /// HTTP requests on one connection, one after the other.
    Requests,
}

#[derive(Debug, Args)]
pub(crate) struct LoadOptions {
    pub(crate) kind: LoadKind,
    /// Where `serve-load` is.
    pub(crate) target: SocketAddr,
    #[arg(long, default_value_t = 1000)]
    pub(crate) for_ms: u64,
    /// Stay on this CPU.
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct StormOptions {
    /// Where datagrams and SYNs go.
    pub(crate) targets: Vec<SocketAddr>,
    /// A UDP echo that is asked again and again until it answers.
    #[arg(long)]
    pub(crate) lawful: Option<SocketAddr>,
    /// Sends frames to this port of the targets as well, by a packet socket.
    #[arg(long)]
    pub(crate) frames: Option<u16>,
    /// The hardware address that frames go to.
    #[arg(long, value_parser = hardware_address, default_value = "02:00:0a:f4:01:01")]
    pub(crate) gateway: [u8; 6],
    /// How long to go on, counted from the lawful answer where one is waited for.
    #[arg(long, default_value_t = 1000)]
    pub(crate) for_ms: u64,
    #[arg(long, default_value_t = 5)]
    pub(crate) interval_ms: u64,
}

#[derive(Debug, Args)]
pub(crate) struct FloodOptions {
    pub(crate) target: SocketAddr,
    #[arg(long, default_value_t = 200_000)]
    pub(crate) count: u64,
    #[arg(long, default_value_t = 3000)]
    pub(crate) for_ms: u64,
}

#[derive(Debug, Args)]
pub(crate) struct TalkOptions {
    /// Where the datagrams go.
    #[arg(required_unless_present = "take")]
    pub(crate) target: Option<SocketAddr>,
    /// Wait at this path for one process that takes the socket, before anything is sent (SCM_RIGHTS).
    #[arg(long)]
    pub(crate) give: Option<PathBuf>,
    /// Take the socket of the one that gives it at this path.
    #[arg(long, conflicts_with = "target")]
    pub(crate) take: Option<PathBuf>,
}

/// By which way an injected packet is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// A raw IP socket with the header included.
    Raw,
    /// A raw IP socket of the packet's protocol, for which the kernel makes the header.
    Protocol,
    /// A raw packet socket.
    Frame,
    /// A raw packet socket past the queueing discipline.
    Bypass,
    /// A packet socket's transmit ring.
    Ring,
    /// An AF_XDP socket.
    Xdp,
    /// A packet socket for which the kernel makes the Ethernet header.
    Cooked,
    /// A tun device, as if the packet had come in there.
    Tun,
}

#[derive(Debug, Args)]
pub(crate) struct InjectOptions {
    /// The IP packet as hexadecimal digits.
    #[arg(value_parser = packet_bytes)]
    pub(crate) packet: Bytes,
    #[arg(long, value_enum)]
    pub(crate) via: Via,
    #[arg(long, default_value = "eth0")]
    pub(crate) interface: String,
    /// The type of the frame; by default that of the packet's IP version.
    #[arg(long)]
    pub(crate) ethertype: Option<u16>,
    /// With an 802.1Q tag of this number.
    #[arg(long)]
    pub(crate) vlan: Option<u16>,
    /// Where the frame goes.
    #[arg(long, value_parser = hardware_address, default_value = "ff:ff:ff:ff:ff:ff")]
    pub(crate) destination_mac: [u8; 6],
}

/// Bytes given as hexadecimal digits.
#[derive(Debug, Clone)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

fn packet_bytes(text: &str) -> Result<Bytes, String> {
    egress_probe::packet::from_hex(text)
        .map(Bytes)
        .ok_or_else(|| format!("{text:?} are no hexadecimal digits"))
}

#[derive(Debug, Args)]
pub(crate) struct SelfAcceptOptions {
    /// What the client's half is bound to.
    pub(crate) from: SocketAddr,
    /// Where the server's half listens, and the client's connects to.
    pub(crate) listen: SocketAddr,
    /// Run by the shell once the connection stands, before anything is sent.
    #[arg(long)]
    pub(crate) then: Option<String>,
    #[arg(long, default_value = "probe")]
    pub(crate) payload: String,
    #[arg(long, default_value_t = 1000)]
    pub(crate) timeout_ms: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AttemptCommand {
    /// HTTP GET.
    Get {
        /// http://HOST[:PORT][/PATH]; HOST is a name, an IPv4 address or a bracketed IPv6 address.
        url: String,
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
        /// DNS server for names, ADDR or ADDR:PORT.
        #[arg(long, value_parser = dns_server)]
        dns: Option<SocketAddr>,
    },
    /// Send a datagram and wait for its echo.
    Udp {
        target: SocketAddr,
        #[arg(long, default_value = "probe")]
        payload: String,
        /// The port to send from; by default any.
        #[arg(long, default_value_t = 0)]
        source_port: u16,
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
    },
    /// ICMP or ICMPv6 echo by a raw socket, or by a ping socket where raw sockets are not allowed.
    Ping {
        target: IpAddr,
        #[arg(long, default_value = "egress-probe ping")]
        payload: String,
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
    },
    /// Connect by TCP and close.
    Tcp {
        target: SocketAddr,
        /// The port to connect from; by default any.
        #[arg(long, default_value_t = 0)]
        source_port: u16,
        /// By MPTCP, whose connections are sockets that the kernel makes.
        #[arg(long)]
        mptcp: bool,
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
    },
    /// Ask a DNS server for the A and AAAA records of a name.
    Resolve {
        name: String,
        #[arg(long, value_parser = dns_server)]
        dns: SocketAddr,
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
    },
    /// Send bytes to a TCP echo server and read all of them back.
    Volume {
        target: SocketAddr,
        #[arg(long, default_value_t = 4 * 1024 * 1024)]
        bytes: usize,
        #[arg(long, default_value_t = 8000)]
        timeout_ms: u64,
    },
    /// Send an IP packet as it is given; nothing is awaited.
    Inject(InjectOptions),
    /// Connect to ourselves from an address that is made ours for that, then send by the accepted half.
    SelfAccept(SelfAcceptOptions),
    /// Declare a TCP socket connected without a packet (TCP_REPAIR) and send by it; nothing is awaited.
    Repair {
        target: SocketAddr,
        /// Our own address and port.
        #[arg(long)]
        from: SocketAddr,
        #[arg(long, default_value = "probe")]
        payload: String,
    },
    /// Send an IPv4 UDP packet with a header of our own making (IP_HDRINCL); nothing is awaited.
    Raw {
        target: std::net::Ipv4Addr,
        /// The source address to claim.
        #[arg(long)]
        from: std::net::Ipv4Addr,
        #[arg(long, default_value_t = 9999)]
        port: u16,
        #[arg(long, default_value = "probe")]
        payload: String,
    },
    /// Send a UDP packet as an Ethernet frame (AF_PACKET); nothing is awaited.
    Packet {
        target: IpAddr,
        #[arg(long, default_value = "eth0")]
        interface: String,
        /// The source address to claim; by default the interface's own.
        #[arg(long)]
        from: Option<IpAddr>,
        #[arg(long, default_value_t = 9999)]
        port: u16,
        #[arg(long, default_value = "probe")]
        payload: String,
        /// Where the frame goes; by default the hardware address of the IPv4 gateway, asked by ARP.
        #[arg(long, value_parser = hardware_address)]
        destination_mac: Option<[u8; 6]>,
    },
}

fn dns_server(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)))
        .map_err(|_| format!("{text:?} is neither an address nor an address with a port"))
}

fn hardware_address(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes
        .ok()
        .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
        .ok_or_else(|| format!("{text:?} is no hardware address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        ScriptLine::command().debug_assert();
    }

    #[test]
    fn dns_servers_have_port_53_unless_told() {
        assert_eq!(dns_server("10.0.0.1").unwrap(), "10.0.0.1:53".parse().unwrap());
        assert_eq!(dns_server("fd00::1").unwrap(), "[fd00::1]:53".parse().unwrap());
        assert_eq!(dns_server("[fd00::1]:5353").unwrap(), "[fd00::1]:5353".parse().unwrap());
        assert!(dns_server("name").is_err());
    }

    #[test]
    fn script_lines_have_no_program_name() {
        let line = ScriptLine::try_parse_from(["tcp", "10.0.0.1:80"]).unwrap();
        assert!(matches!(line.command, AttemptCommand::Tcp { .. }));
        assert!(ScriptLine::try_parse_from(["serve-udp", "--port", "1"]).is_err());
    }
}
