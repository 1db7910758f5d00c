//! By which family what is tried goes.

use std::collections::BTreeMap;

use super::super::scene::{Outside, Part};
use super::*;

/// A scene whose pods have these addresses, by the node's standards with both families.
fn scene(pods: &[&str]) -> Scene {
    let pods: Vec<IpAddr> = pods.iter().map(|ip| ip.parse().unwrap()).collect();
    let first = |v6| pods.iter().copied().find(|ip| ip.is_ipv6() == v6);
    let outside = Outside::StandIn {
        v4: [198, 51, 100, 200].into(),
        v6: Ok("2001:db8::1".parse().unwrap()),
        only_v6: false,
    };
    let service: IpAddr = if first(false).is_some() { "10.96.0.1" } else { "fd96::1" }.parse().unwrap();
    Scene {
        namespaces: Part::ALL.iter().map(|part| (*part, part.name().to_owned())).collect(),
        pods: Place::ALL.iter().map(|place| (place.pod(), pods.clone())).collect::<BTreeMap<_, _>>(),
        reviews_service: vec![service],
        gateway_service: vec![service],
        outside: outside.seen_from(&pods),
        dns: Ok((service, "name".to_owned())),
        api: Ok(SocketAddr::new(service, 443)),
        node: Err("not looked at".to_owned()),
        debugger: Ok(()),
    }
}

/// What is core is tried by the family that pods have, and nothing is tried by one that they lack.
#[test]
fn a_cluster_of_either_family_is_verified() {
    let core = |scene: &Scene| -> Vec<&str> {
        let items = [baseline(scene), enforced(scene), locked(scene)].concat();
        for item in items.iter().filter(|item| item.skip.is_none()) {
            let lacks = |ip: &IpAddr| scene.address(item.one.who, ip.is_ipv6()).is_err();
            let target = item.one.target.as_ref().map(|target| target.address);
            assert!(!target.is_some_and(|ip| lacks(&ip)), "{item:?}");
            let other = if scene.outside.is_v6() { "198.51.100.200" } else { "nothing" };
            assert!(!item.one.words.iter().any(|word| word.contains(other)), "{item:?}");
        }
        items.iter().filter(|item| item.core).map(|item| item.one.how).collect()
    };
    let (both, v4, v6) = (scene(&["10.0.0.1", "fd00::1"]), scene(&["10.0.0.1"]), scene(&["fd00::1"]));
    assert_eq!(core(&both), core(&v4));
    let by_v6 = |names: Vec<&'static str>| {
        names.into_iter().map(|how| how.trim_end_matches(", IPv6")).collect::<Vec<_>>()
    };
    let sorted = |mut names: Vec<&'static str>| {
        names.sort_unstable();
        names
    };
    assert_eq!(sorted(by_v6(core(&v6))), sorted(core(&v4)));
    assert!(core(&v6).len() > 20);
    let skipped =
        |scene: &Scene| baseline(scene).iter().filter(|item| item.skip.is_some() && item.core).count();
    assert_eq!([skipped(&both), skipped(&v4), skipped(&v6)], [0; 3]);
}
