//! Rows 4, 5 and 6: what an administrator of the pod's network can build: tunnels, routers and rewrites. The socket hook sees
//! a packet to a lawful destination, or none at all.

use std::net::SocketAddr;

use egress_probe::packet::Packet;
use serde_json::json;

use crate::attack::{Attack, NET_ADMIN, SOURCE_PORT, SYS_ADMIN, Shot, attack};
use crate::frames::{frames, injected, raw};
use crate::plain::{plain, proxy};
use crate::range::{At, Range};

/// An attack that a script of the shell makes.
fn script(name: &str, text: &'static str) -> Attack {
    attack(name, move |shot| shot.shell(text)).with(NET_ADMIN)
}

/// Outer headers of tunnels of every kind, around a datagram.
fn outer(via: &'static str) -> Vec<Attack> {
    let header = |name: &str, protocol: u8| {
        let inner = |shot: &Shot<'_>| {
            let to = SocketAddr::new(shot.lawful(), shot.port);
            Packet::udp(shot.from(), to, shot.tag.as_bytes()).bytes().unwrap()
        };
        injected(name, via, &[], move |shot| {
            let inner = match protocol {
                47 => [
                    &[0, 0, if shot.v6 { 0x86 } else { 0x08 }, if shot.v6 { 0xdd } else { 0 }],
                    &inner(shot)[..],
                ]
                .concat(),
                _ => inner(shot),
            };
            Packet::new(shot.from().ip(), shot.to().ip(), protocol, &inner)
        })
    };
    let reason = (via != "frame").then_some("Tunnel");
    [header("IP in IP", 4), header("IPv6 in IP", 41), header("GRE", 47), header("ESP", 50)]
        .into_iter()
        .map(|attack| attack.reason_if(reason))
        .collect()
}

/// The inner packet is for a pod, to whom it may go; the kernel wraps it for somebody outside.
const VXLAN: &str = r#"
link=vx$PORT
trap 'ip link del $link' EXIT
ip link add $link type vxlan id 42 remote $OUT dstport $PORT dev eth0
ip link set $link up
ip $FAMILY route add $PEER/$([ $FAMILY = -4 ] && echo 32 || echo 128) dev $link src $OWN
ip $FAMILY neigh add $PEER lladdr 02:00:00:00:00:01 dev $link nud permanent
target=$([ $FAMILY = -4 ] && echo $PEER || echo "[$PEER]")
$PROBE udp $target:9 --payload $TAG --timeout-ms 10
"#;

/// A device of the pod's own on top of the interface, with a hardware address of its own.
const MACVLAN: &str = "
link=mv$PORT
trap 'ip link del $link' EXIT
ip link add $link link eth0 type macvlan mode bridge
ip link set $link up
$PROBE packet $OUT --interface $link --from $OWN --port $PORT --payload $TAG --destination-mac 02:00:0a:f4:01:01
";

fn tunnels() -> Vec<Attack> {
    let mut attacks = vec![script("VXLAN", VXLAN), script("a macvlan device", MACVLAN)];
    for via in ["raw", "protocol", "frame"] {
        attacks.extend(outer(via));
    }
    attacks
}

#[test]
fn row_4_tunnels() {
    Range::new(json!({})).prove(&tunnels());
}

/// A nested namespace whose way out is the pod: `n1` within, `n0` in the pod. What follows runs with `$IN` before what is to be
/// done within.
const NESTED: &str = r#"
unshare -n sleep 20 &
nest=$!
trap 'kill $nest; ip link del n0 2>/dev/null; nft delete table inet nest 2>/dev/null; true' EXIT
while [ "$(readlink /proc/$nest/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
IN="nsenter --net=/proc/$nest/ns/net"
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
echo 1 > /proc/sys/net/ipv4/conf/all/accept_local
ip link add n0 address 02:00:00:00:01:00 type veth peer name n1 netns $nest
ip link set n0 up
ip addr add 192.0.2.1/24 dev n0
ip addr add 2001:db8:7::1/64 dev n0 nodad
$IN sh -c 'echo 0 > /proc/sys/net/ipv6/conf/n1/accept_dad'
$IN ip link set n1 up
$IN ip addr add 192.0.2.7/24 dev n1
$IN ip addr add 2001:db8:7::7/64 dev n1 nodad
$IN ip route add default via 192.0.2.1 dev n1
$IN ip -6 route add default via 2001:db8:7::1 dev n1
"#;

fn nested(name: &str, then: &str) -> Attack {
    let text = format!("{NESTED}{then}");
    attack(name, move |shot| shot.shell(&text)).with(SYS_ADMIN)
}

/// Frames within the nested namespace, so that no socket hook sees them there either.
const NESTED_FRAME: &str = "
$IN $PROBE packet $OUT --interface n1 --port $PORT --payload $TAG --destination-mac 02:00:00:00:01:00
";
/// The pod gives what it forwards its own address.
const MASQUERADE: &str = "
nft -f - <<END
table inet nest {
 chain out {
  type nat hook postrouting priority 100; policy accept;
  masquerade
 }
}
END
";
/// The nested namespace sends to a pod, which it may; the pod forwards it to the outside.
const REDIRECT: &str = r#"
[ $FAMILY = -4 ] && f=ip || f=ip6
target=$([ $FAMILY = -4 ] && echo $PEER:$PORT || echo "[$PEER]:$PORT")
nft -f - <<END
table inet nest {
 chain in {
  type nat hook prerouting priority -100; policy accept;
  udp dport $PORT dnat $f to $OUT
 }
 chain out {
  type nat hook postrouting priority 100; policy accept;
  masquerade
 }
}
END
$IN $PROBE udp $target --payload $TAG --timeout-ms 10
"#;
/// The pod's own address within, for which the socket hook has nothing to object to.
const OWN_SOURCE: &str = r#"
[ $FAMILY = -4 ] && bits=32 via=192.0.2.1 || bits=128 via=2001:db8:7::1
$IN ip addr flush dev n1 scope global
$IN ip addr add $OWN/$bits dev n1 $([ $FAMILY = -4 ] || echo nodad)
$IN ip $FAMILY route replace default via $via dev n1 onlink src $OWN
$IN ip neigh replace $via lladdr 02:00:00:00:01:00 dev n1 nud permanent
"#;

/// A packet written to a tun device of the pod.
const TUN: &str = "
trap 'ip link del tun0; nft delete table inet nest 2>/dev/null; true' EXIT
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
ip tuntap add dev tun0 mode tun
ip link set tun0 up
";

fn tun(name: &str, before: &str, packet: fn(&Shot<'_>) -> Packet) -> Attack {
    let before = format!("{TUN}{before}");
    let run = move |shot: &Shot<'_>| {
        let hex = egress_probe::packet::to_hex(&packet(shot).bytes().unwrap());
        shot.shell(&format!("{before}$PROBE inject {hex} --via tun --interface tun0"))
    };
    attack(name, run).with(NET_ADMIN)
}

fn from_foreign(shot: &Shot<'_>) -> Packet {
    Packet::udp(SocketAddr::new(shot.foreign(), SOURCE_PORT), shot.to(), shot.tag.as_bytes())
}

fn routers() -> Vec<Attack> {
    vec![
        nested("a nested namespace", NESTED_FRAME),
        nested("a nested namespace, masqueraded", &format!("{MASQUERADE}{NESTED_FRAME}")),
        nested("a nested namespace, redirected", &format!("{OWN_SOURCE}{REDIRECT}")),
        tun("a tun device", "", from_foreign),
        tun("a tun device, masqueraded", MASQUERADE, from_foreign),
    ]
}

#[test]
fn row_5_forwarding() {
    Range::new(json!({})).prove(&routers());
}

/// A datagram to a pod, which becomes one to the outside behind the socket hook.
const REWRITE: &str = r#"
trap 'nft delete table netdev rewrite' EXIT
[ $FAMILY = -4 ] && f=ip || f=ip6
target=$([ $FAMILY = -4 ] && echo $PEER:$PORT || echo "[$PEER]:$PORT")
nft -f - <<END
table netdev rewrite {
 chain out {
  type filter hook egress device "eth0" priority 0; policy accept;
  $f daddr $PEER udp dport $PORT $f daddr set $OUT
 }
}
END
$PROBE udp $target --payload $TAG --timeout-ms 10
"#;
/// The same where the routing is done and the packet is not yet out: before the socket hook.
const POSTROUTING: &str = r#"
trap 'nft delete table inet rewrite' EXIT
[ $FAMILY = -4 ] && f=ip || f=ip6
target=$([ $FAMILY = -4 ] && echo $PEER:$PORT || echo "[$PEER]:$PORT")
nft -f - <<END
table inet rewrite {
 chain out {
  type filter hook postrouting priority 300; policy accept;
  $f daddr $PEER udp dport $PORT $f daddr set $OUT
 }
}
END
$PROBE udp $target --payload $TAG --timeout-ms 10
"#;
/// An allowed port outside, which becomes another.
const REWRITE_PORT: &str = r#"
trap 'nft delete table netdev rewrite' EXIT
target=$([ $FAMILY = -4 ] && echo $OUT:9999 || echo "[$OUT]:9999")
nft -f - <<END
table netdev rewrite {
 chain out {
  type filter hook egress device "eth0" priority 0; policy accept;
  udp dport 9999 udp dport set $PORT
 }
}
END
$PROBE udp $target --payload $TAG --timeout-ms 10
"#;
/// Not rewritten, but copied to another device and from there into the pod's device as if it were forwarded.
const TC_REDIRECT: &str = r#"
trap 'ip link del r0' EXIT
ip link add r0 type veth peer name r1
ip link set r0 up
ip link set r1 up
tc qdisc add dev r1 clsact
tc filter add dev r1 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev eth0
$PROBE packet $OUT --interface r0 --from $OWN --port $PORT --payload $TAG --destination-mac 02:00:0a:f4:01:01
"#;

fn rewrites() -> Vec<Attack> {
    vec![
        script("a rewrite at postrouting", POSTROUTING).reason("NotAllowed"),
        script("a rewrite at the device", REWRITE),
        script("a rewrite of the port at the device", REWRITE_PORT),
        script("a frame redirected by tc", TC_REDIRECT),
    ]
}

#[test]
fn row_6_rewrites_behind_the_socket_hook() {
    Range::new(json!({})).prove(&rewrites());
}

/// The headers alone are lawful here: the policy allows what the proxy sends there.
#[test]
fn row_1_under_a_proxy_lock_nothing_gets_out_past_the_sockets() {
    let mut range = Range::locked_to_proxy();
    range.stand.start();
    let proxy = proxy(&range.stand, range.locked.pod());
    let attacks = [raw(), frames(None), tunnels(), routers(), rewrites()];
    let attacks: Vec<_> = attacks.into_iter().flatten().map(Attack::quiet).collect();
    let app = range.locked.clone();
    range.prove_stopped(At::Outside, &app, &attacks);
    range.prove_arrives(At::Outside, &proxy, &plain(""));
}
