//! What the programs write: what they saw, what they keep with sockets, what they count and report.

use super::Addr;

/// A value of the per-CPU array `COUNTERS`, indexed by [`counter_slot`](crate::reason::counter_slot).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets that got this verdict.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// Most flows of one local address that are remembered as having come in; a later one takes the place of an earlier one
/// with the same slots, never of another address's.
pub const WITNESS_SLOTS: u32 = 16_384;
/// How long what came in may be answered where no socket keeps it in mind: two minutes, as RFC 4787 (REQ-5) asks of
/// translators for UDP, and more than a SYN-ACK is sent again (63 s with `tcp_synack_retries` at 5). Nanoseconds.
pub const WITNESS_TTL: u64 = 120_000_000_000;
/// How long it is remembered that the pod began to send datagrams, after one of either end was seen: longer than address
/// translators keep a flow that is silent (two minutes with `nf_conntrack_udp_timeout_stream`), after which the other end cannot
/// go on with it, by what may pass without being written down ([`DATAGRAM_TTL`], [`WITNESS_TTL`] / 8). No longer: every question to a
/// name server is such a flow. Nanoseconds.
pub const BEGAN_TTL: u64 = 180_000_000_000;
/// How long the verdict on datagrams is kept with their socket before it is given afresh, so that it stays known who began.
/// Nanoseconds.
pub const DATAGRAM_TTL: u64 = 30_000_000_000;
/// How long the later fragments of a datagram may follow the first one. Nanoseconds.
pub const FRAGMENT_TTL: u64 = 2_000_000_000;

/// Key of map `WITNESSES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct WitnessKey {
    /// The pod's address.
    pub local: Addr,
    /// Below [`WITNESS_SLOTS`]; made of the other half of the flow by [`slots`](crate::witness::slots).
    pub slot: u32,
    /// 1 where the pod began the flow, 2 for [`WITNESS_TRANSLATED`], 0 for all else that came in: the one never takes another's place.
    pub began: u32,
}

/// [`Witness::kind`]: a packet that begins something came in: a SYN, a datagram, an echo request.
pub const WITNESS_CAME_IN: u8 = 1;
/// [`Witness::kind`]: a connection stood when the enforcer was installed, and it had come in.
pub const WITNESS_STOOD: u8 = 2;
/// [`Witness::kind`]: a lawful connection was closed; what the kernel still says about it without a socket has no payload.
pub const WITNESS_CLOSED: u8 = 3;
/// [`Witness::kind`]: the first fragment of a datagram has passed; the ports are the halves of its identification.
pub const WITNESS_FRAGMENT: u8 = 4;

/// [`Witness::kind`]: the pod began to send these datagrams by its own right; what comes back is an answer and asks for none.
pub const WITNESS_BEGAN: u8 = 5;
/// [`Witness::kind`]: a connection that came in is led to another port within the pod, where a mesh's sidecar listens; told by its
/// SYN-ACK, which the listening socket sends from the port that the other end knows.
pub const WITNESS_TRANSLATED: u8 = 6;

/// A value of map `WITNESSES`: something that was seen where the pod cannot forge it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Witness {
    /// Id of the pod's cgroup; it speaks for no other pod.
    pub cgroup: u64,
    /// `CLOCK_MONOTONIC` nanoseconds when it was seen last.
    pub seen: u64,
    /// The other end's address.
    pub remote: Addr,
    /// The other end's port, host byte order; an echo's identifier.
    pub remote_port: u16,
    /// The pod's port, host byte order; 0 for an echo.
    pub local_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// One of the `WITNESS_` kinds; any other value witnesses nothing.
    pub kind: u8,
    /// The pod's port as its packets have it, host byte order, where that is another than its socket's; else 0.
    pub wire_port: u16,
}

impl Witness {
    /// How long it counts, in nanoseconds; of what stood before us, how long ago it was does not count.
    #[must_use]
    #[inline(always)]
    pub const fn limit(&self) -> u64 {
        match self.kind {
            WITNESS_FRAGMENT => FRAGMENT_TTL,
            WITNESS_BEGAN => BEGAN_TTL,
            _ => WITNESS_TTL,
        }
    }

    /// Whether both are of the same flow of the same pod.
    #[must_use]
    #[inline(always)]
    pub const fn is_of_flow(&self, other: &Self) -> bool {
        self.cgroup == other.cgroup
            && self.remote.same(&other.remote)
            && self.remote_port == other.remote_port
            && self.local_port == other.local_port
            && self.protocol == other.protocol
    }

    /// Whether it does not count any more at `now`, a time of the kernel's monotonic clock in nanoseconds, and will not again.
    #[must_use]
    pub const fn is_over(&self, now: u64) -> bool {
        // What stood before us is told once.
        self.kind != WITNESS_STOOD && now.saturating_sub(self.seen) >= self.limit()
    }
}

/// What is kept with a socket: the verdict of the flow it sent last, and whether that flow came in. Never written in place
/// but for `revision`, `reason`, `flags` and `given`, so that no reader sees half of one flow and half of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Approval {
    /// The verdict holds while [`Config`](super::Config) has this revision.
    pub revision: u64,
    /// Id of the cgroup of the pod that sent it; 0 where none was approved.
    pub cgroup: u64,
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port, host byte order.
    pub source_port: u16,
    /// Destination port, host byte order.
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
    /// Why it passed, [`Reason`](crate::Reason) as a number.
    pub reason: u8,
    /// Union of the `APPROVAL_` constants.
    pub flags: u8,
    /// `CLOCK_MONOTONIC_COARSE` nanoseconds when the verdict was given.
    pub given: u64,
}

/// [`Approval::flags`]: a TCP connection that came in; what it sends is a reply.
pub const APPROVAL_CAME_IN: u8 = 1;
/// [`Approval::flags`]: it left by the loopback device.
pub const APPROVAL_LOOPBACK: u8 = 2;
/// [`Approval::flags`]: a container of a pod with a lock sent it.
pub const APPROVAL_LOCKED: u8 = 8;
/// [`Approval::flags`]: it passes because it is only audited; each packet is to be reported by the first hook.
pub const APPROVAL_AUDIT: u8 = 4;

impl Approval {
    /// Takes the verdict of the same flow under another revision, keeping whether it came in. Each field is written by itself,
    /// the revision last.
    #[inline(always)]
    pub fn renew(&mut self, new: &Self) {
        self.given = new.given;
        self.reason = new.reason;
        self.flags = (self.flags & APPROVAL_CAME_IN) | new.flags;
        self.revision = new.revision;
    }
}

/// What is kept with a socket about the process that used it last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// Its id in the node's first PID namespace; 0 where it is not known.
    pub pid: u32,
    /// Its user's id in the node's first user namespace.
    pub uid: u32,
    /// Its command, up to the first NUL (`TASK_COMM_LEN`).
    pub command: [u8; 16],
}

/// Key of map `DENIALS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct DenialKey {
    /// Id of the pod's cgroup.
    pub cgroup: u64,
    /// [`counter_slot`](crate::reason::counter_slot).
    pub slot: u32,
    /// Zero.
    pub reserved: u32,
}

/// Length of the window in which events of one pod and reason are counted, nanoseconds.
pub const EVENT_WINDOW: u64 = 1_000_000_000;
/// Most events of one pod and reason in a window; what is above is only counted.
pub const EVENT_LIMIT: u64 = 64;

/// A value of map `DENIALS`: what one pod was denied, or audited, for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Denial {
    /// Packets.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Packets that no event tells of: there were too many, or the last event of the window told of this flow.
    pub suppressed: u64,
    /// Those of them whose number an event has told.
    pub told: u64,
    /// `CLOCK_MONOTONIC` nanoseconds at which the window began.
    pub window: u64,
    /// Events in this window.
    pub events: u64,
    /// The flow that the last of them told of: where it went.
    pub destination: Addr,
    /// See [`FlowEvent::source_port`].
    pub source_port: u16,
    /// See [`FlowEvent::destination_port`].
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A record of ring buffer `EVENTS`: a packet that was denied or audited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowEvent {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub time: u64,
    /// Id of the pod's cgroup; of the deepest cgroup at pod level where the pod is not known.
    pub cgroup: u64,
    /// Id of the container's cgroup, 0 where the packet has no socket of the pod's.
    pub container: u64,
    /// The policy that applied, 0 for none.
    pub policy: u64,
    /// The destination's identity, 0 where the verdict came before it.
    pub identity: u64,
    /// The revision of [`Config`](super::Config) that applied.
    pub revision: u64,
    /// Packets of this pod and reason that no event told of so far.
    pub suppressed: u64,
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Index of the device: the one the packet was leaving by, in the sender's network namespace (socket hook), or the
    /// node's end of the pod's veth.
    pub ifindex: u32,
    /// Bytes from the IP header on.
    pub length: u32,
    /// Who used the socket, where that is known.
    pub process: Process,
    /// Source port, host byte order, 0 where there is none.
    pub source_port: u16,
    /// Destination port, host byte order, 0 where there is none.
    pub destination_port: u16,
    /// Index of the rule within the policy, `u16::MAX` for none.
    pub rule: u16,
    /// IANA protocol number, 0 where the parser did not come so far.
    pub protocol: u8,
    /// 4, 6, or 0 where the parser did not come so far.
    pub version: u8,
    /// [`Action`](crate::Action) as a number.
    pub action: u8,
    /// [`Reason`](crate::Reason) as a number.
    pub reason: u8,
    /// [`Hook`](crate::Hook) as a number.
    pub hook: u8,
    /// Zero.
    pub reserved: [u8; 5],
}
