//! What can happen to a packet, and why: two closed enums shared by the kernel, metrics, flow log and docs.
//!
//! Invariant: each reason belongs to exactly one natural action ([`Reason::action`]); audit is the only way a
//! deny reason lets a packet pass. `tests/reason.rs` checks that numbers, names and actions are distinct and total.

use crate::view::Hook;

/// What the hook does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Action {
    /// The packet passes.
    Allow = 1,
    /// The packet is dropped. Where a call sends it itself (UDP, ICMP, raw sockets) the call gets `EPERM`; TCP tries again
    /// until its time-out.
    Deny = 2,
    /// The packet passes, and an event says which reason would have denied it.
    Audit = 3,
}

impl Action {
    /// Every action, in numeric order.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::Audit];

    /// The action of a number on the wire; `None` for a number that is not one.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Allow),
            2 => Some(Self::Deny),
            3 => Some(Self::Audit),
            _ => None,
        }
    }

    /// The word used in flow log, metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $action:ident;)+) => {
        /// Why a packet got its verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Reason {
            /// Every reason, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The reason of a number on the wire; `None` for a number that is not one.
            #[must_use]
            pub const fn from_wire(value: u8) -> Option<Self> {
                match value { $($number => Some(Self::$name),)+ _ => None }
            }

            /// The word used in flow log, metrics and JSON: the variant's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// What the hook does for this reason when the endpoint is enforced.
            #[must_use]
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$name => Action::$action,)+ }
            }
        }
    };
}

reasons! {
    /// A rule allows this destination, protocol and port.
    Allowed = 1, Allow;
    /// The packet stays inside the pod: it goes out of the loopback device to a loopback address or to the pod itself.
    Loopback = 2, Allow;
    /// No policy selects this pod.
    Unselected = 3, Allow;
    /// The pod is not known (yet), and the destination is one that unknown pods may reach.
    UnknownPodAllowed = 4, Allow;
    /// It answers what came in: a connection, a datagram or an echo request that was seen on the node's side of the pod's veth.
    WitnessedReply = 5, Allow;
    /// Address resolution on the pod's own link: ARP, IPv6 neighbour discovery, multicast listener reports.
    Neighbour = 6, Allow;
    /// A later fragment of a datagram whose first fragment has passed.
    FollowsFragment = 7, Allow;
    /// The maps are not written yet, or were written by another version.
    NotReady = 16, Deny;
    /// The pod is not known (yet), and the destination is not one that unknown pods may reach.
    UnknownPod = 17, Deny;
    /// A policy that selects this pod is invalid, or the pod is gone and its processes are not, so it fails closed.
    InvalidPolicy = 18, Deny;
    /// A map entry cannot be read, so the packet fails closed.
    BadEntry = 19, Deny;
    /// The packet ends inside a header.
    Truncated = 20, Deny;
    /// Neither IPv4 nor IPv6, or the header contradicts the frame's type.
    UnknownIpVersion = 21, Deny;
    /// The packet carries IPv4 options.
    Ipv4Options = 22, Deny;
    /// The packet carries an IPv6 extension header that is unknown, a routing header, or too many of them.
    Ipv6Extension = 23, Deny;
    /// A fragment other than the first one: its ports cannot be seen.
    Fragment = 24, Deny;
    /// A tunnelling protocol, which could carry anything to anywhere.
    Tunnel = 25, Deny;
    /// Not TCP, UDP, SCTP, ICMP or ICMPv6 of the right IP version.
    UnknownProtocol = 26, Deny;
    /// A destination that may not be on a wire: loopback, unspecified or an IPv4-mapped IPv6 address.
    MartianAddress = 27, Deny;
    /// The source is not one of the pod's own addresses.
    SpoofedSource = 28, Deny;
    /// No rule allows this destination, protocol and port.
    NotAllowed = 29, Deny;
    /// A container that is not the proxy sends what only the proxy may send.
    SidecarBypass = 30, Deny;
    /// A frame other than IPv4, IPv6 and ARP, or one with a VLAN tag.
    NotIp = 31, Deny;
    /// A packet socket (`AF_PACKET`, `AF_XDP`), past everything that sees sockets: a frame of one, or the making of one
    /// where no hook would see its frames.
    PacketSocket = 32, Deny;
}

/// Number of slots per action in the counter array; every reason's number is below it.
pub const REASON_SLOTS: u32 = 64;
/// Number of slots per hook in the counter array.
const HOOK_SLOTS: u32 = 4 * REASON_SLOTS;

/// Number of entries of the counter array.
pub const COUNTER_SLOTS: u32 = 4 * HOOK_SLOTS;

/// The slot of the counter array for a verdict of a hook.
#[must_use]
#[inline(always)]
pub const fn counter_slot(hook: Hook, action: Action, reason: Reason) -> u32 {
    hook as u32 * HOOK_SLOTS + action as u32 * REASON_SLOTS + reason as u32
}
