//! Devices, protocols and tables that a pod or a node may use: what the kernel can make.

use std::fs;

use egress_topology::Netns;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::Table;
use super::bpf::Try;

/// What makes each of them. A veth `v0` is there and up.
const LINKS: [(&str, &str); 16] = [
    ("bridge", "link add t0 type bridge"),
    ("tun", "tuntap add dev t0 mode tun"),
    ("dummy", "link add t0 type dummy"),
    ("macvlan", "link add t0 link v0 type macvlan"),
    ("ipvlan", "link add t0 link v0 type ipvlan"),
    ("vlan", "link add t0 link v0 type vlan id 7"),
    ("vxlan", "link add t0 type vxlan id 7 dstport 4789 dev v0"),
    ("geneve", "link add t0 type geneve id 7 remote 192.0.2.1"),
    ("ipip", "link add t0 type ipip local 192.0.2.1 remote 192.0.2.2"),
    ("gre", "link add t0 type gre local 192.0.2.1 remote 192.0.2.2"),
    ("sit", "link add t0 type sit local 192.0.2.1 remote 192.0.2.2"),
    ("ip6tnl", "link add t0 type ip6tnl local 2001:db8::1 remote 2001:db8::2"),
    ("wireguard", "link add t0 type wireguard"),
    ("vrf", "link add t0 type vrf table 7"),
    ("netkit", "link add t0 type netkit"),
    ("seg6 route", "route add 2001:db8:9::/64 encap seg6 mode encap segs 2001:db8::7 dev v0"),
];

/// Tries each in a namespace of its own.
pub(crate) fn devices(table: &mut Table<'_>) -> anyhow::Result<()> {
    let group = "devices and protocols";
    for (name, line) in LINKS {
        let netns = Netns::new("devices")?;
        let made = netns.ip(&["link add v0 type veth peer name v1", "link set v0 up", line]);
        table.tell(group, name, made.map_err(last_line))?;
    }
    let netns = Netns::new("devices")?;
    table.tell(group, "SCTP sockets", netns.run(|| Ok(sctp()))?)?;
    let rules = [
        ("nftables: redirect", "tcp dport 80 redirect to :81"),
        ("nftables: dnat", "tcp dport 80 dnat to 192.0.2.1"),
        ("nftables: numgen", "tcp dport 80 dnat to numgen random mod 2 map { 0 : 192.0.2.1, 1 : 192.0.2.2 }"),
    ];
    for (name, rule) in rules {
        let text = format!(
            "table ip features {{ chain out {{ type nat hook output priority 0; {rule}; }}; }}; delete table ip features"
        );
        table.tell(group, name, netns.nft(&text).map_err(last_line))?;
    }
    netns.ip(&["link add v0 type veth peer name v1"])?;
    let tc = |words: &str| -> Try {
        let words: Vec<_> = words.split(' ').collect();
        netns.command("tc", &words, "").map(drop).map_err(last_line)
    };
    table.tell(group, "clsact", tc("qdisc add dev v0 clsact"))?;
    let pedit = "filter add dev v0 egress matchall action pedit ex munge ip dst set 192.0.2.9";
    table.tell(group, "act_pedit", tc(pedit))
}

/// Whether sockets of SCTP can be made, or what the kernel answers.
pub(crate) fn sctp() -> Result<(), String> {
    let made = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), SockProtocol::Sctp);
    made.map(drop).map_err(|error| format!("{error:?}"))
}

/// What a program said last.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn last_line(error: anyhow::Error) -> String {
    let text = format!("{error:#}");
    let said = text.lines().find(|line| line.contains("Error") || line.contains("RTNETLINK"));
    let said = said.or_else(|| text.lines().next()).unwrap_or_default();
    // The command and how it ended are no news.
    let said = said.rsplit_once("exit status: ").map_or(said, |(_, said)| said);
    said.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':' || c == ' ').trim().to_owned()
}

/// Settings of the kernel.
pub(crate) fn settings(table: &mut Table<'_>) -> anyhow::Result<()> {
    let group = "settings";
    let btf = fs::metadata("/sys/kernel/btf/vmlinux").map(drop).map_err(|_| "no such file".to_owned());
    table.tell(group, "BTF of the kernel", btf)?;
    let modules = fs::read_dir("/sys/kernel/btf").map_or(0, Iterator::count);
    table.found(group, "BTF objects shown", modules.to_string())?;
    table.found(group, "active LSMs", security_modules().unwrap_or_else(|_| "not shown".to_owned()))?;
    for (name, path) in [
        ("net.core.bpf_jit_enable", "/proc/sys/net/core/bpf_jit_enable"),
        ("kernel.unprivileged_bpf_disabled", "/proc/sys/kernel/unprivileged_bpf_disabled"),
    ] {
        let text = fs::read_to_string(path).unwrap_or_else(|_| "not shown".to_owned());
        table.found(group, name, text.trim().to_owned())?;
    }
    Ok(())
}

/// The active security modules, by a securityfs of our own.
fn security_modules() -> anyhow::Result<String> {
    let directory = tempfile::tempdir()?;
    let none: Option<&str> = None;
    mount(Some("securityfs"), directory.path(), Some("securityfs"), MsFlags::MS_RDONLY, none)?;
    let text = fs::read_to_string(directory.path().join("lsm"));
    umount2(directory.path(), MntFlags::MNT_DETACH)?;
    Ok(text?.trim().replace(',', ", "))
}
