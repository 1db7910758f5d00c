//! What [`decide`](crate::decide()) is told: the maps, the sender, and the hook that asks.

use crate::decide::{Said, look_up};
use crate::neighbour;
use crate::packet::{Bytes, Flow};
use crate::wire::{Addr, Approval, Config, Endpoint, Row, RowKey, Witness, WitnessKey};
use crate::witness::{self, Found, Half};

/// Index of the loopback device, the same in every network namespace (`LOOPBACK_IFINDEX`, `include/net/flow.h`).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// The program that asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// `cgroup_skb/egress` on the pod root: sees packets of sockets, after the pod's netfilter.
    #[default]
    Socket = 1,
    /// tc ingress on the node's end of the pod's veth: sees every frame that leaves the pod, as it leaves.
    Veth = 2,
    /// `cgroup/connect4` and `connect6`, and `socket_create` of the kernel's security modules, on the pod root: sees what processes ask
    /// for, before there is a packet.
    Connect = 3,
}

impl Hook {
    /// Every hook, in numeric order.
    pub const ALL: [Self; 3] = [Self::Socket, Self::Veth, Self::Connect];
    /// Those that judge packets.
    pub const OF_PACKETS: [Self; 2] = [Self::Socket, Self::Veth];

    /// The hook of a number on the wire; `None` for a number that is not one.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Socket),
            2 => Some(Self::Veth),
            3 => Some(Self::Connect),
            _ => None,
        }
    }

    /// The word used in flow log, metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Veth => "veth",
            Self::Connect => "connect",
        }
    }
}

/// The maps, as [`decide()`](crate::decide()) reads them. A lookup that fails for any cause is `None`. What comes with its key may have
/// become another one's while it was read: see [`Keyed`](crate::wire::Keyed).
pub trait View {
    /// The one entry of `CONFIG`.
    fn config(&self) -> Option<&Config>;
    /// The pod of a cgroup id, with the key that it has.
    fn endpoint(&self, cgroup: u64) -> Option<(&u64, &Endpoint)>;
    /// The identity of exactly this address (`IPCACHE`).
    fn address(&self, addr: &Addr) -> Option<u64>;
    /// The identity of the longest prefix that holds this address (`CIDRS`).
    fn prefix(&self, addr: &Addr) -> Option<u64>;
    /// What a policy says about an identity, with the key that it has.
    fn row(&self, key: &RowKey) -> Option<(&RowKey, &Row)>;
    /// [`look_up`] in these maps. The kernel has a function of its own for it, so that its verifier follows it once only.
    #[inline(always)]
    fn said(&self, key: &RowKey, protocol: u8, port: u16) -> Said
    where
        Self: Sized,
    {
        look_up(self, key, protocol, port)
    }
    /// [`witness::find`] in these maps, as [`Self::said`].
    #[inline(always)]
    fn found(&self, half: &Half, cgroup: u64) -> Found
    where
        Self: Sized,
    {
        witness::find(self, half, cgroup)
    }
    /// The cgroup id of the pod behind this device of the node (`DEVICES`).
    fn device(&self, ifindex: u32) -> Option<u64>;
    /// Whose this address is, of those on this node (`OWNERS`): the cgroup id of a pod, [`OWNER_NODE`](crate::wire::OWNER_NODE), or 0
    /// for nobody's.
    fn owner(&self, addr: &Addr) -> u64;
    /// What was seen (`WITNESSES`).
    fn witness(&self, key: &WitnessKey) -> Option<&Witness>;
    /// `CLOCK_MONOTONIC_COARSE` nanoseconds, some milliseconds behind the exact time at most.
    fn now(&self) -> u64;
}

/// The kind of socket that a packet belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Socket {
    /// None, or none that is whole: what is forwarded, and what the kernel says for a connection that is not open.
    #[default]
    None,
    /// One that waits for TCP connections.
    Listening,
    /// One whose headers the kernel writes: a stream or datagrams.
    Inet,
    /// One that writes headers itself, or the kernel's own.
    Raw,
    /// One that writes frames (`AF_PACKET`, `AF_XDP`).
    Packet,
}

/// Who sends the packet.
pub trait Owner {
    /// Id of the ancestor at `level` of the sender's cgroup (or itself); 0 where it is not that deep or there is no socket.
    fn cgroup(&self, level: u32) -> u64;
    /// The kind of its socket.
    fn socket(&self) -> Socket;
    /// What is kept with the socket.
    fn approval(&self) -> Option<&Approval>;
    /// [`neighbour::claims`] of this frame, as [`View::said`].
    #[inline(always)]
    fn claims<V: View, B: Bytes + ?Sized>(
        &self,
        view: &V,
        packet: &B,
        flow: &Flow,
        meta: &Meta,
        endpoint: Option<&Endpoint>,
        cgroup: u64,
    ) -> bool {
        neighbour::claims(view, packet, flow, meta, endpoint, cgroup)
    }
    /// [`witness::reply`] of this sender, as [`View::said`].
    #[inline(always)]
    fn replies<V: View>(&self, view: &V, flow: &Flow, meta: &Meta, cgroup: u64) -> bool
    where
        Self: Sized,
    {
        witness::reply(view, self, flow, meta, cgroup)
    }
}

/// What the hook knows of the packet besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// The hook.
    pub hook: Hook,
    /// Type of the frame the packet will be sent in, host byte order.
    pub ethertype: u16,
    /// Index of the device: the one it leaves by, or the node's end of the veth.
    pub ifindex: u32,
    /// Bytes from the IP header on.
    pub length: u32,
    /// The frame has a VLAN tag that is not among its bytes.
    pub vlan: bool,
}
