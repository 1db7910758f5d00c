//! What a pod may reach: half of it pods, half of it addresses and prefixes outside of the cluster.

use std::net::Ipv4Addr;

use egress_topology::OUTSIDE_V4;

/// Reachable, and not allowed.
pub const FORBIDDEN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// A prefix with its length.
pub type Prefix = (Ipv4Addr, u8);

/// Allowed destinations.
#[derive(Clone, Debug)]
pub struct Destinations {
    /// Pods of other nodes.
    pub pods: Vec<Ipv4Addr>,
    /// Outside: three of four are single addresses, the others have 24 to 28 bits. The server is in the middle.
    pub outside: Vec<Prefix>,
}

impl Destinations {
    /// So many.
    pub fn new(size: usize) -> Self {
        let pods = (0..size / 2).map(pod).collect();
        let mut outside: Vec<Prefix> = (0..size - size / 2).map(prefix).collect();
        let middle = outside.len() / 2;
        if let Some(place) = outside.get_mut(middle) {
            *place = (OUTSIDE_V4, 32);
        }
        Self { pods, outside }
    }

    /// All of them, pods and others in turn: the server is in the middle.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        let mut pods = self.pods.iter().map(|pod| (*pod, 32));
        let mut outside = self.outside.iter().copied();
        std::iter::from_fn(move || Some([outside.next(), pods.next()]))
            .map_while(|pair| {
                let some: Vec<Prefix> = pair.into_iter().flatten().collect();
                (!some.is_empty()).then_some(some)
            })
            .flatten()
    }
}

/// An address as a network plugin gives it out: in no order. An odd factor makes a permutation of 17 bits.
fn pod(number: usize) -> Ipv4Addr {
    let at = number * 61_681 % 131_072;
    Ipv4Addr::from_bits(0x0a40_0000 | at as u32)
}

/// Each in a network of 24 bits of its own, in no order, all in 198.0.0.0/8: the server has neighbours like any other.
fn prefix(number: usize) -> Prefix {
    let network = 0xc600_0000 | ((number * 40_503 % 65_536) as u32 * 256);
    match number % 4 {
        3 => (Ipv4Addr::from_bits(network), 24 + (number / 4 % 5) as u8),
        _ => (Ipv4Addr::from_bits(network | (number * 37 % 254 + 1) as u32), 32),
    }
}
