//! Services and endpoint slices of which something cannot be read lead nowhere: kube-proxy may read what we do not.

mod common;

use common::{Value, World, json, labels, lock, mesh, np, pod, service, set, slice};
use egress_policy::compile::chain;
use egress_policy::object::{Read, read};

const VIP: &str = "10.96.0.66";
const NODE: &str = "192.168.0.1";

/// `app/t` at [`VIP`], port 443, and at port 30443 of every node.
fn front() -> Value {
    service("app/t", VIP, json!([{"name": "x", "port": 443, "nodePort": 30443}]))
}

fn ports() -> Value {
    json!([{"name": "x", "port": 443}])
}

/// A further slice of `app/t` with these endpoints and ports.
fn further(endpoints: Value, ports: Value) -> Value {
    let mut out = slice("app/t", &[], ports);
    out["metadata"]["name"] = json!("further");
    out["endpoints"] = endpoints;
    out
}

/// `app/web` may reach the cluster and its node; `app/t` has a pod behind it that is read.
fn cluster() -> World {
    let to = json!({"node": true, "to": [{"cidr": "10.96.0.0/12"}, {"service": {"namespace": "app", "name": "t"}}]});
    let world = mesh().with(lock(json!({"allow": to}))).with(front());
    world.with(slice("app/t", &["10.0.1.3"], ports()))
}

/// Whether the service's address and its port of the node are open.
fn open(world: &World) -> (bool, bool) {
    (world.allows("app/web", VIP, "tcp/443"), world.allows("app/web", NODE, "tcp/30443"))
}

fn is_read(object: &Value) -> bool {
    matches!(read(object.clone()).as_deref(), Ok([Read::Object(_)]))
}

#[test]
fn a_slice_that_cannot_be_read_closes_its_service() {
    let good = |ip: &str| json!([{"addresses": [ip]}]);
    assert_eq!(open(&cluster().with(further(good("10.0.1.2"), ports()))), (true, true));
    let port = |port: Value| json!([{"name": "y", "port": port}, {"name": "x", "port": 443}]);
    for slice in [
        further(good("10.0.1.x"), ports()),
        further(json!([{"addresses": ["10.0.1.2", "198.51.100.1000"]}]), ports()),
        further(json!([{"addresses": [7]}]), ports()),
        further(json!([{"addresses": ["10.0.1.2"], "conditions": {"ready": "yes"}}]), ports()),
        further(json!(["10.0.1.2"]), ports()),
        further(json!("10.0.1.2"), ports()),
        further(good("10.0.1.2"), port(json!(70000))),
        further(good("10.0.1.2"), port(json!(-1))),
        further(good("10.0.1.2"), port(json!("https"))),
        further(good("10.0.1.2"), json!([{"name": "x", "port": 443, "protocol": "DCCP"}])),
        further(good("fd00::2"), ports()),
        set(further(good("10.0.1.2"), ports()), "/addressType", json!("IPv6")),
        set(further(good("10.0.1.2"), ports()), "/addressType", json!(4)),
        set(further(good("10.0.1.2"), ports()), "/apiVersion", json!("discovery.k8s.io/v1beta1")),
        set(further(good("10.0.1.2"), ports()), "/metadata/annotations", json!("none")),
        set(further(good("10.0.1.2"), ports()), "/metadata/labels/other", json!(7)),
    ] {
        assert!(!is_read(&slice), "{slice}");
        let world = cluster().with(slice.clone());
        assert_eq!(open(&world), (false, false), "{slice}");
        assert!(
            world.diagnostics().contains("EndpointSlice app/further: some of it cannot be read"),
            "{slice}"
        );
        // Nothing else is closed: not the pods behind it, other services, the node.
        assert!(
            world.allows("app/web", "10.0.1.3", "tcp/443") && world.allows("app/web", "10.96.0.9", "tcp/443")
        );
        assert!(world.allows("app/web", NODE, "tcp/30444") && world.allows("app/web", NODE, "icmp"));
        assert!(world.allows("other/free", VIP, "tcp/443"), "no policy selects it");
        // Not even who may go anywhere: not by this address.
        let all = np("app/all", json!({"podSelector": labels("app", "db"), "egress": [{}]}));
        let world = world.with(all).with(lock(json!({"subjects": [{"pods": labels("app", "web")}]})));
        assert!(
            !world.allows("app/db", VIP, "tcp/443") && world.allows("app/db", "198.51.100.10", "tcp/443")
        );
    }
}

/// As the API server took it until 1.35: IPv4 in IPv6 form, with zeros in front.
#[test]
fn an_address_is_read_as_kube_proxy_reads_it() {
    let behind = |ip: &str| further(json!([{"addresses": [ip]}]), ports());
    for (ip, is_open) in
        [("::ffff:10.000.001.002", true), ("::ffff:198.051.100.10", false), ("010.0.01.02", true)]
    {
        let mut slice = behind(ip);
        slice.as_object_mut().unwrap().remove("addressType");
        assert!(is_read(&slice), "{ip}");
        assert_eq!(open(&cluster().with(slice)), (is_open, is_open), "{ip}");
        // Of another type than it says, it is behind the service's IPv6 address.
        let slice = set(behind(ip), "/addressType", json!("IPv6"));
        assert_eq!((is_read(&slice), open(&cluster().with(slice))), (false, (false, false)));
    }
    for ip in ["10..0.1", "::ffff:10.0.1", "10.0.1.2.3", "::1.2.3.400", ".", ":"] {
        assert!(!is_read(&behind(ip)), "{ip}");
    }
}

#[test]
fn what_kube_proxy_takes_no_backends_from_closes_nothing() {
    let unread = further(json!([{"addresses": ["10.0.1.x"]}]), ports());
    let mut other = unread.clone();
    other["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("mine");
    assert_eq!(open(&cluster().with(other)), (true, true));
    let names = set(unread.clone(), "/addressType", json!("FQDN"));
    assert_eq!(open(&cluster().with(names)), (true, true));
    // When it is read, or gone, the service is open again.
    let world = cluster().with(unread);
    assert_eq!(open(&world), (false, false));
    assert_eq!(open(&world.without("EndpointSlice app/further")), (true, true));
    assert_eq!(open(&world.with(further(json!([{"addresses": ["10.0.1.2"]}]), ports()))), (true, true));
}

#[test]
fn a_service_that_cannot_be_read_keeps_its_addresses_and_denies() {
    let cidr = |world: &World| world.allows("app/web", VIP, "tcp/80");
    // Nobody's, it is what the prefix says.
    assert!(cidr(&cluster().without("Service app/t")));
    assert_eq!((open(&cluster()), cidr(&cluster())), ((true, true), false));
    for (pointer, value) in [
        ("/spec/externalIPs", json!(["198.51.100.x"])),
        ("/spec/externalIPs", json!("198.51.100.1")),
        ("/spec/clusterIPs", json!([VIP, 7])),
        ("/spec/ports/0/port", json!("https")),
        ("/spec/ports/0/port", json!(70000)),
        ("/spec/ports/0/protocol", json!("DCCP")),
        ("/spec/type", json!(7)),
        ("/status", json!({"loadBalancer": {"ingress": "198.51.100.2"}})),
        ("/status", json!([])),
        ("/metadata/labels", json!([])),
    ] {
        let broken = set(front(), pointer, value.clone());
        assert!(!is_read(&broken), "{broken}");
        let world = cluster().with(broken);
        assert_eq!(open(&world), (false, false), "{pointer} {value}");
        assert!(!cidr(&world) && world.allows("app/web", "10.96.0.67", "tcp/80"));
        assert!(world.diagnostics().contains("Service app/t: some of it cannot be read"));
        assert!(world.allows("app/web", "10.0.1.3", "tcp/443"), "the pod behind it is one of the cluster");
    }
    // An address of its own choice is not one of the outside any more.
    let external = json!(["203.0.113.7", "203.0.113.x"]);
    let world = cluster().with(lock(json!({"allow": {"to": [{"cidr": "203.0.113.0/24"}]}})));
    assert!(world.allows("app/web", "203.0.113.7", "tcp/22"));
    let world = world.with(set(front(), "/spec/externalIPs", external));
    assert!(
        !world.allows("app/web", "203.0.113.7", "tcp/22") && world.allows("app/web", "203.0.113.8", "tcp/22")
    );
}

/// Whose backends the name servers and the gateway are, is told by what is read alone.
#[test]
fn what_cannot_be_read_opens_no_backend() {
    let only = json!({"allow": {"inCluster": false, "to": [{"service": {"namespace": "app", "name": "t"}}]}});
    let world = mesh().with(lock(only)).with(front()).with(pod("app/t1", "10.0.1.8", json!({})));
    let behind = |other: &str| slice("app/t", &["10.0.1.8", other], ports());
    assert!(world.with(behind("10.0.1.3")).allows("app/web", "10.0.1.8", "tcp/443"));
    assert!(!world.with(behind("10.0.1.x")).allows("app/web", "10.0.1.8", "tcp/443"));
}

#[test]
fn what_closes_is_named() {
    let of = |world: &World, to: &str, port| {
        let chain = chain(&world.index, ("app", "web"), None, to.parse().unwrap(), (6, port));
        (chain.unread.iter().map(ToString::to_string).collect::<Vec<_>>(), chain.backends.len())
    };
    let unread = cluster().with(further(json!([{"addresses": ["10.0.1.x"]}]), ports()));
    for (to, port) in [(VIP, 443), (NODE, 30443)] {
        assert_eq!(of(&unread, to, port), (vec!["EndpointSlice app/further".to_owned()], 0));
    }
    assert_eq!(of(&cluster(), VIP, 443), (Vec::new(), 1));
    assert_eq!(of(&unread, VIP, 80), (Vec::new(), 0));
    let unread = cluster().with(set(front(), "/spec/externalIPs", json!([7])));
    assert_eq!(of(&unread, VIP, 80), (vec!["Service app/t".to_owned()], 0));
}
