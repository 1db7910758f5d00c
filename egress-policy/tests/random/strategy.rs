//! How likely each thing is.

use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use super::{
    AllowData, Backend, Egp, Gw, Np, NpPort, Ns, PeerData, PodData, PortSpec, Prefix, RandomCluster,
    RuleData, Sel, Svc, SvcPort, ToData, Who,
};

fn sel() -> impl Strategy<Value = Sel> {
    let requirement = (0_u8..3, prop_oneof![3 => Just(0_u8), 1 => 1_u8..5], vec(0_u8..4, 1..3));
    prop_oneof![3 => Just(Vec::new()), 5 => vec(requirement.clone(), 1), 1 => vec(requirement, 2)]
        .prop_map(Sel)
}

fn prefix() -> impl Strategy<Value = Prefix> {
    let except = prop_oneof![2 => Just(Vec::new()), 1 => vec((any::<u8>(), any::<u8>()), 1..3)];
    (0_u8..30, any::<u8>(), except).prop_map(|(around, bits, except)| Prefix { around, bits, except })
}

fn labels() -> impl Strategy<Value = Vec<(u8, u8)>> {
    vec((0_u8..2, 0_u8..3), 0..3)
}

fn word() -> impl Strategy<Value = Option<u8>> {
    weighted(0.3, prop_oneof![4 => 0_u8..2, 1 => Just(2)])
}

fn namespace() -> impl Strategy<Value = Ns> {
    (prop_oneof![1 => Just(false), 8 => Just(true)], labels(), word())
        .prop_map(|(exists, labels, enforcement)| Ns { exists, labels, enforcement })
}

fn pod() -> impl Strategy<Value = PodData> {
    let flags = (
        weighted_flag(1, 4),
        weighted_flag(1, 8),
        prop_oneof![8 => Just(0_u8), 2 => 1_u8..4],
        weighted_flag(1, 6),
    );
    let addresses = (weighted(0.9, 0_u8..12), weighted(0.4, 0_u8..6));
    let ports = vec((0_u8..3, 0_u8..3, 0_u8..11, weighted(0.25, 0_u8..11)), 0..3);
    (0_u8..4, labels(), 0_u8..2, flags, addresses, ports).prop_map(
        |(ns, labels, account, (remote, host_network, phase, terminating), (v4, v6), ports)| PodData {
            ns,
            labels,
            account,
            remote,
            host_network,
            phase,
            terminating,
            v4,
            v6,
            ports,
        },
    )
}

fn weighted_flag(yes: u32, no: u32) -> impl Strategy<Value = bool> {
    prop_oneof![no => Just(false), yes => Just(true)]
}

fn service() -> impl Strategy<Value = Svc> {
    let protocol = prop_oneof![2 => Just(0_u8), 3 => 0_u8..3];
    let target = prop_oneof![2 => Just(0_u8), 3 => 0_u8..11];
    let port = (protocol, 0_u8..11, target, weighted(0.7, 0_u8..11), weighted(0.3, 0_u8..11)).prop_map(
        |(protocol, port, target, other_target, node_port)| SvcPort {
            protocol,
            port,
            target,
            other_target,
            node_port,
        },
    );
    let at = prop_oneof![6 => 0_u8..6, 1 => 6_u8..14];
    let backend = (at, prop_oneof![4 => Just(0_u8), 3 => 1_u8..6], weighted_flag(1, 3))
        .prop_map(|(at, condition, other_slice)| Backend { at, condition, other_slice });
    let vips = (
        weighted(0.8, 0_u8..6),
        weighted(0.4, 0_u8..4),
        weighted(0.2, 0_u8..6),
        weighted(0.2, (0_u8..6, any::<bool>())),
    );
    let odd = prop_oneof![6 => Just(0_u8), 3 => 1_u8..6];
    (0_u8..4, vips, vec(port, 0..4), vec(backend, 0..4), odd, any::<bool>()).prop_map(
        |(ns, (v4, v6, external, balancer), ports, backends, odd, dns_by_label)| Svc {
            ns,
            v4,
            v6,
            external,
            balancer,
            ports,
            backends,
            odd,
            dns_by_label,
        },
    )
}

fn who() -> impl Strategy<Value = Who> {
    (of(sel()), of(sel()), weighted(0.2, vec(0_u8..2, 0..2)), weighted(0.3, any::<bool>()))
        .prop_map(|(namespaces, pods, accounts, system)| Who { namespaces, pods, accounts, system })
}

fn ports() -> impl Strategy<Value = Option<Vec<PortSpec>>> {
    weighted(0.6, vec((weighted(0.6, 0_u8..3), 0_u8..11, weighted(0.3, 0_u16..5)), 0..4))
}

fn gateway() -> impl Strategy<Value = Gw> {
    let destinations = weighted(0.4, vec((prefix(), ports()), 0..3));
    let clients = weighted(0.4, vec(who(), 0..2));
    (of(sel()), weighted(0.9, sel()), vec(prefix(), 0..2), ports(), clients, destinations).prop_map(
        |(namespaces, pods, addresses, ports, clients, destinations)| Gw {
            namespaces,
            pods,
            addresses,
            ports,
            clients,
            destinations,
        },
    )
}

fn allow() -> impl Strategy<Value = AllowData> {
    let to = prop_oneof![
        2 => (of(sel()), sel()).prop_map(|(namespaces, pods)| ToData::Pods(namespaces, pods)),
        3 => prefix().prop_map(ToData::Cidr),
        2 => (0_u8..6).prop_map(ToData::Service),
    ];
    let flag = || of(any::<bool>());
    let in_cluster = prop_oneof![1 => Just(None), 4 => Just(Some(false)), 1 => Just(Some(true))];
    (flag(), in_cluster, flag(), flag(), of(vec((to, ports()), 0..3))).prop_map(
        |(dns, in_cluster, api_server, node, to)| AllowData { dns, in_cluster, api_server, node, to },
    )
}

fn lock_down() -> impl Strategy<Value = Egp> {
    let broken = weighted(0.07, 0_u8..7);
    let subjects = prop_oneof![1 => Just(Vec::new()), 12 => vec(who(), 1..3)];
    let proxy = weighted(0.35, (vec(0_u8..3, 0..3), of(any::<bool>())));
    let rules = (vec(gateway(), 0..3), weighted(0.8, allow()));
    (weighted(0.4, any::<bool>()), subjects, proxy, rules, broken).prop_map(
        |(audit, subjects, proxy, (gateways, allow), broken)| Egp {
            audit,
            subjects,
            proxy,
            gateways,
            allow,
            broken,
        },
    )
}

fn network_policy() -> impl Strategy<Value = Np> {
    let peer = prop_oneof![
        sel().prop_map(PeerData::Pods),
        sel().prop_map(PeerData::Namespaces),
        (sel(), sel()).prop_map(|(namespaces, pods)| PeerData::Both(namespaces, pods)),
        prefix().prop_map(PeerData::Block),
    ];
    let port = prop_oneof![
        1 => Just(NpPort::Protocol),
        4 => (0_u8..11, weighted(0.3, 0_u16..5)).prop_map(|(port, range)| NpPort::Number(port, range)),
        2 => (0_u8..3).prop_map(NpPort::Name),
    ];
    let to = weighted(0.8, vec(peer, 0..3));
    let rule = (to, of(vec((of(0_u8..3), port), 0..3))).prop_map(|(to, ports)| RuleData { to, ports });
    let types = prop_oneof![2 => Just(0_u8), 6 => Just(1), 3 => 2_u8..5];
    (0_u8..4, sel(), types, weighted(0.8, vec(rule, 0..3)), word(), weighted(0.05, 0_u8..4)).prop_map(
        |(ns, pods, types, egress, enforcement, broken)| Np { ns, pods, types, egress, enforcement, broken },
    )
}

/// A cluster with up to this many of each kind of policy.
pub fn cluster(policies: usize) -> impl Strategy<Value = RandomCluster> {
    let policies = (vec(lock_down(), 0..=policies), vec(network_policy(), 0..=policies));
    let services = (vec(service(), 0..4), weighted(0.6, service()), weighted(0.6, service()));
    (
        vec(namespace(), 4),
        vec(pod(), 1..7),
        services,
        weighted_flag(6, 1),
        policies,
        0_u8..3,
        any::<u64>().no_shrink(),
    )
        .prop_map(
            |(
                namespaces,
                pods,
                (services, dns, api_server),
                nodes,
                (lock_downs, network_policies),
                unknown,
                seed,
            )| {
                RandomCluster {
                    namespaces,
                    pods,
                    services,
                    dns,
                    api_server,
                    nodes,
                    lock_downs,
                    network_policies,
                    unknown,
                    seed,
                }
            },
        )
}
