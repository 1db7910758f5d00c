//! The addresses of the topology: fixed, private or for documentation only, so that tests can name them.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The node's address on the pods' bridge: the gateway of every pod.
pub const BRIDGE_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// The node's IPv6 address on the pods' bridge.
pub const BRIDGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1);
/// The node's address towards the outside, its `InternalIP`.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The node's IPv6 address towards the outside.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
/// The server outside of the cluster.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The IPv6 address of the server outside of the cluster.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x10);
/// The node's pod network.
pub const POD_CIDR_V4: &str = "10.244.1.0/24";
/// The node's IPv6 pod network.
pub const POD_CIDR_V6: &str = "fd00:10:244:1::/64";

/// The address of the pod with this index. Indexes from 2 to 254 are within [`POD_CIDR_V4`]; higher ones go on behind
/// it, for benchmarks with many pods.
#[must_use]
pub fn pod_v4(index: u16) -> Ipv4Addr {
    let [high, low] = index.to_be_bytes();
    Ipv4Addr::new(10, 244, high.wrapping_add(1), low)
}

/// The IPv6 address of the pod with this index.
#[must_use]
pub fn pod_v6(index: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, index)
}
