//! What addresses are told apart for: grants that rules are made of, and not the rules themselves.
//!
//! Invariant: a grant leads where its terms say, of whatever policy it is. What many rules share is told apart once, so that neither the number
//! of rules over one prefix nor that of their exceptions makes more identities. Tested by `tests/reference.rs` and `tests/overlaps.rs`.

use std::sync::Arc;

use egress_common::wire::{Addr, Cidr};

use super::grant::{Grant, Peer};
use crate::object::{PodScope, Ports, Selector, masked};

/// What leads where a grant does, in grants that addresses are told apart for.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// This leads there,
    pub(super) of: Arc<Grant>,
    /// and this does,
    pub(super) within: Option<Arc<Grant>>,
    /// and none of these.
    pub(super) except: Vec<Arc<Grant>>,
}

impl Terms {
    /// The terms of a grant. Ports that the policy alone knows are left to it, and prefixes are whole ones.
    pub(super) fn new(grant: &Grant) -> Self {
        let mut except = Vec::new();
        let peer = match &grant.peer {
            Peer::Cidr(peer) => {
                let (wide, own): (Vec<Cidr>, Vec<Cidr>) = peer.except.iter().partition(|cidr| is_wide(cidr));
                except.extend(wide.into_iter().map(|cidr| within([cidr])));
                // One for all that nobody else has, or each would be told from the others.
                except.extend((!own.is_empty()).then(|| within(own)));
                within([peer.cidr])
            }
            peer => peer.clone(),
        };
        if grant.spare_gateways {
            except.push(Peer::GatewayPod);
            // A node may have a gateway's address, and the API server: what leads to that leads to a port of its own.
            except.extend((!matches!(peer, Peer::Dns | Peer::ApiServer)).then_some(Peer::GatewayAddress));
        }
        let by_peer = matches!(
            peer,
            Peer::Within(_) | Peer::Pods(..) | Peer::InCluster | Peer::Cluster | Peer::Node(_)
        );
        let ports = if by_peer && grant.named().next().is_none() { Ports::All } else { grant.ports.clone() };
        Self {
            of: plain(peer, ports),
            within: grant.inside.then(|| plain(Peer::Cluster, Ports::All)),
            except: except.into_iter().map(|peer| plain(peer, Ports::All)).collect(),
        }
    }

    /// All of them.
    pub(super) fn all(self) -> impl Iterator<Item = Arc<Grant>> {
        self.except.into_iter().chain(self.within).chain([self.of])
    }
}

/// What leads to all that a peer is.
fn plain(peer: Peer, ports: Ports) -> Arc<Grant> {
    Arc::new(Grant { peer, ports, spare_gateways: false, inside: false })
}

fn within(cidrs: impl IntoIterator<Item = Cidr>) -> Peer {
    Peer::Within(cidrs.into_iter().collect())
}

/// Prefixes that hold many addresses of many clusters, and that policies name or except: everything of each family, what is private
/// (RFC 1918, RFC 6598, RFC 4193), and what those who set clusters up give pods unless they are told otherwise: kubeadm's documents and kind,
/// k3s, OpenShift.
const WIDE: [(Addr, u32); 11] = [
    (Addr([0; 16]), 0),
    (Addr::v4([0; 4]), V4),
    (Addr::v4([10, 0, 0, 0]), V4 + 8),
    (Addr::v4([172, 16, 0, 0]), V4 + 12),
    (Addr::v4([192, 168, 0, 0]), V4 + 16),
    (Addr::v4([100, 64, 0, 0]), V4 + 10),
    (Addr([0xfc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 7),
    (Addr::v4([10, 244, 0, 0]), V4 + 16),
    (Addr([0xfd, 0, 0, 0x10, 0x02, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 56),
    (Addr::v4([10, 42, 0, 0]), V4 + 16),
    (Addr::v4([10, 128, 0, 0]), V4 + 14),
];

/// The length of the prefix that all of IPv4 is.
const V4: u32 = 96;

fn wide() -> impl Iterator<Item = Cidr> {
    WIDE.into_iter().map(|(addr, bits)| masked(addr, bits))
}

fn is_wide(cidr: &Cidr) -> bool {
    wide().any(|one| one == *cidr)
}

/// What every pod is, or most are, or that rules never mean. It is held from the start, with or without a policy: the first policy of a node
/// that has one of them would else have every address of the cluster judged and written anew, and the last one as it goes.
pub(super) fn standing() -> impl Iterator<Item = Arc<Grant>> {
    let every_pod = Peer::Pods(PodScope::Matching(Selector::default()), Selector::default());
    let others = [Peer::InCluster, Peer::Cluster, Peer::GatewayPod, Peer::GatewayAddress, every_pod];
    others.into_iter().chain(wide().map(|cidr| within([cidr]))).map(|peer| plain(peer, Ports::All))
}
