//! The command line. Every word that can be an attempt is in [`AttemptCommand`], so `script` takes the same words.

use std::net::{IpAddr, SocketAddr};

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
    /// Keep one TCP connection to an echo server and report on every line sent over it.
    Hold(HoldOptions),
    /// Take what `load` sends: requests and datagrams on the port, streams on the next.
    ServeLoad(ServeLoadOptions),
    /// Send as much of one kind of traffic as goes, for a time, and report how much it was.
    Load(LoadOptions),
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
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
    },
    /// ICMP or ICMPv6 echo by a raw socket, or by a ping socket where raw sockets are not allowed.
    Ping {
        target: IpAddr,
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
    },
    /// Connect by TCP and close.
    Tcp {
        target: SocketAddr,
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
