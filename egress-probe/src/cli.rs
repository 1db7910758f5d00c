//! The command line. Every word that can be an attempt is in [`AttemptCommand`], so `script` takes the same words.

mod attempt;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

pub(crate) use self::attempt::{AttemptCommand, InjectOptions, SelfAcceptOptions, Via};
use self::attempt::{dns_server, hardware_address};
use crate::serve::dns::Record;

/// Servers and one-shot network attempts for tests of egress enforcement; prints JSON lines.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// Become this user and group first, without supplementary groups (the sidecar is 1337).
    #[arg(long, global = true, value_name = "UID")]
    pub(crate) user: Option<u32>,
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
    /// Echo SCTP messages.
    ServeSctp {
        #[command(flatten)]
        listen: Listen,
        /// By one socket for all associations, instead of one for each.
        #[arg(long)]
        many: bool,
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
    /// Keep raw sockets of UDP, of both IP families, without reading what they are shown, until told to end.
    KeepRaw,
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
    /// Do nothing until told to end: what a container runs that others are to look around in.
    Pause,
    /// Several servers of one pod: HTTP, and echoes of UDP and TCP.
    Serve(ServeOptions),
    /// Stand in for the outside on a node: take addresses that nobody has, answer there, and remember what arrives.
    Outside(OutsideOptions),
    /// Ask the `outside` of this address, on the same node, what has arrived.
    Arrived {
        #[arg(long)]
        of: IpAddr,
        /// Leave out this many packets, which were told of before.
        #[arg(long, default_value_t = 0)]
        since: usize,
    },
    /// Make one attempt again and again: a line whenever it ends in another way than the last one, and a sum at the end.
    Repeat {
        /// Time from the beginning of one to that of the next.
        #[arg(long, default_value_t = 10)]
        every_ms: u64,
        #[arg(long, default_value_t = 1000)]
        for_ms: u64,
        #[command(subcommand)]
        command: AttemptCommand,
    },
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
pub(crate) struct ServeOptions {
    /// What the HTTP answers call this server.
    #[arg(long)]
    pub(crate) name: String,
    #[arg(long, value_name = "PORT")]
    pub(crate) http: Option<u16>,
    #[arg(long, value_name = "PORT")]
    pub(crate) udp: Option<u16>,
    #[arg(long, value_name = "PORT")]
    pub(crate) echo: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct OutsideOptions {
    /// An address to take. May be given once for each family.
    #[arg(long = "address", required = true)]
    pub(crate) addresses: Vec<IpAddr>,
    /// The device that gets the addresses.
    #[arg(long, default_value = "lo")]
    pub(crate) device: String,
    /// The first of the ports that answer HTTP, and echo UDP.
    #[arg(long, default_value_t = 18_000)]
    pub(crate) first_port: u16,
    /// How many ports.
    #[arg(long, default_value_t = 1)]
    pub(crate) ports: u16,
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
    fn script_lines_have_no_program_name() {
        let line = ScriptLine::try_parse_from(["tcp", "10.0.0.1:80"]).unwrap();
        assert!(matches!(line.command, AttemptCommand::Tcp { .. }));
        assert!(ScriptLine::try_parse_from(["serve-udp", "--port", "1"]).is_err());
    }

    #[test]
    fn an_attempt_may_be_repeated_and_made_as_another_user() {
        let words = ["egress-probe", "--user", "1337", "repeat", "--for-ms", "5", "tcp", "10.0.0.1:80"];
        let cli = Cli::try_parse_from(words).unwrap();
        assert_eq!(cli.user, Some(1337));
        assert!(matches!(cli.command, Command::Repeat { for_ms: 5, .. }));
        assert!(Cli::try_parse_from(["egress-probe", "tcp", "10.0.0.1:80", "--user", "0"]).is_ok());
    }
}
