//! The words of attempts, which `script` and `repeat` take as well.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, Subcommand, ValueEnum};

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
        /// Through this forward proxy, by CONNECT.
        #[arg(long, value_name = "ADDR:PORT")]
        via: Option<SocketAddr>,
        /// The local address to connect from.
        #[arg(long, value_name = "ADDR")]
        from: Option<IpAddr>,
    },
    /// Send a datagram and wait for its echo.
    Udp {
        target: SocketAddr,
        /// The local address to send from.
        #[arg(long, value_name = "ADDR")]
        from: Option<IpAddr>,
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
    /// Make an association by SCTP, send messages and wait for the echo of each.
    Sctp {
        target: SocketAddr,
        /// The only local address of the association; by default it has all of them.
        #[arg(long, value_name = "ADDR")]
        from: Option<IpAddr>,
        #[arg(long, default_value = "probe")]
        payload: String,
        #[arg(long, default_value_t = 4)]
        messages: u32,
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
    /// Send a UDP packet with an IP header of our own making by a raw socket; nothing is awaited.
    Raw {
        target: IpAddr,
        /// The source address to claim, of the target's family.
        #[arg(long)]
        from: IpAddr,
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
        /// Where the frame goes; by default the hardware address of the IPv4 gateway, as the kernel knows it, or asked by ARP.
        #[arg(long, value_parser = hardware_address)]
        destination_mac: Option<[u8; 6]>,
    },
}

pub(super) fn dns_server(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)))
        .map_err(|_| format!("{text:?} is neither an address nor an address with a port"))
}

pub(super) fn hardware_address(text: &str) -> Result<[u8; 6], String> {
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
    fn dns_servers_have_port_53_unless_told() {
        assert_eq!(dns_server("10.0.0.1").unwrap(), "10.0.0.1:53".parse().unwrap());
        assert_eq!(dns_server("fd00::1").unwrap(), "[fd00::1]:53".parse().unwrap());
        assert_eq!(dns_server("[fd00::1]:5353").unwrap(), "[fd00::1]:5353".parse().unwrap());
        assert!(dns_server("name").is_err());
    }
}
