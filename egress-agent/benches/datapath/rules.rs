//! The same policy as rules of the node's netfilter.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context as _;
use egress_topology::Netns;

use crate::destinations::Destinations;

/// How long loading rules may take, in seconds.
const LIMIT: &str = "60";

/// Loads one set of destinations and two rules in nftables.
pub fn nftables(node: &Netns, pod: Ipv4Addr, destinations: &Destinations, dir: &Path) -> anyhow::Result<()> {
    let mut text = "table ip bench\ndelete table ip bench\ntable ip bench {\n\
        set allowed { type ipv4_addr; flags interval; elements = {"
        .to_owned();
    destinations.prefixes().try_for_each(|(prefix, bits)| write!(text, "{prefix}/{bits},"))?;
    write!(
        text,
        "}} }}\nchain forward {{ type filter hook forward priority 0; policy accept;\n\
         ip saddr {pod} ip daddr @allowed accept\nip saddr {pod} drop\n}}\n}}\n"
    )?;
    load(node, &["nft", "-f"], &dir.join("rules.nft"), &text)
}

/// Loads one rule of iptables for each destination. What belongs to a connection that stands passes before them, as in every
/// rule set of this kind that is in use.
pub fn iptables(node: &Netns, pod: Ipv4Addr, destinations: &Destinations, dir: &Path) -> anyhow::Result<()> {
    let mut text = "*filter\n:FORWARD ACCEPT [0:0]\n\
        -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n"
        .to_owned();
    for (prefix, bits) in destinations.prefixes() {
        writeln!(text, "-A FORWARD -s {pod}/32 -d {prefix}/{bits} -j ACCEPT")?;
    }
    write!(text, "-A FORWARD -s {pod}/32 -j DROP\nCOMMIT\n")?;
    load(node, &["iptables-restore"], &dir.join("rules.iptables"), &text)?;
    // Tens of thousands of connections are closed in a second: they are not to fill the table of connections.
    for state in ["time_wait", "close", "close_wait", "last_ack", "fin_wait"] {
        node.set_sysctl(&format!("net/netfilter/nf_conntrack_tcp_timeout_{state}"), "1")?;
    }
    Ok(())
}

fn load(node: &Netns, command: &[&str], path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let path = path.display().to_string();
    let arguments: Vec<&str> = [LIMIT].iter().chain(command).copied().chain([path.as_str()]).collect();
    node.command("timeout", &arguments, "").map(drop)
}
