//! What is tried in which state. Pure.
//!
//! Invariant: a denial counts only if the same words got through without a policy, or if what was sent is unlawful by
//! itself (forged), which the flow log must say then. What could not be tried is a line that says why.

use std::net::{IpAddr, SocketAddr};

use egress_probe::packet::{ACK, PSH, Packet, SYN, to_hex};

use super::scene::{ECHO, GATEWAY, GATEWAY_SERVICE, HTTP, Place, Port, Scene};
use crate::tries::{Expect, Try, around, patience};

/// A try, and what it means if it cannot be made.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) one: Try<Place>,
    /// Without it nothing was verified; others are skipped where the cluster lacks what they need.
    pub(crate) core: bool,
    /// Why it is not tried.
    pub(crate) skip: Option<String>,
}

impl Item {
    fn core(one: Try<Place>) -> Self {
        Self { one, core: true, skip: None }
    }

    fn optional(one: Try<Place>) -> Self {
        Self { one, core: false, skip: None }
    }

    /// A try of something that may be missing.
    fn with<T>(
        found: Result<T, String>,
        who: Place,
        how: &'static str,
        make: impl FnOnce(T) -> Try<Place>,
    ) -> Self {
        match found {
            Ok(found) => Self::optional(make(found)),
            Err(why) => Self { one: Try::new(who, how, &[], Expect::Works), core: false, skip: Some(why) },
        }
    }

    /// Not core where the outside is somebody else's: then only what was asked for is.
    fn watched(mut self, scene: &Scene) -> Self {
        if !scene.outside.is_watched() {
            self.core = false;
            self.skip.get_or_insert_with(|| "servers named by --outside are asked by HTTP alone".to_owned());
        }
        self
    }
}

fn http(address: SocketAddr) -> String {
    format!("http://{address}/")
}

/// Every way past the proxy.
pub(crate) fn direct(scene: &Scene, expect: Expect) -> Vec<Item> {
    let (app, outside) = (Place::Productpage, &scene.outside);
    let mut items: Vec<Item> = around(&app, &Place::Debugger, &outside.plain(), expect)
        .into_iter()
        .map(|one| plain(scene, one))
        .collect();
    let reviews = outside.at(Port::ReviewsHttp);
    items.push(Item::core(Try::get(Place::Reviews, "direct", &http(reviews), expect).to(
        reviews.ip(),
        "TCP",
        reviews.port(),
    )));
    let echo = outside.at(Port::ReviewsUdp);
    let words = ["udp", &echo.to_string(), "--timeout-ms", patience(expect)];
    items.push(
        Item::core(Try::new(Place::Reviews, "direct by UDP", &words, expect).to(
            echo.ip(),
            "UDP",
            echo.port(),
        ))
        .watched(scene),
    );
    items.extend(frames(scene, expect).into_iter().map(|item| item.watched(scene)));
    items
}

/// A way of the demonstration: core where all goes that is tried once, the rest depends on the cluster.
fn plain(scene: &Scene, one: Try<Place>) -> Item {
    let first = scene.outside.at(Port::Http).ip();
    let besides = one.target.as_ref().is_some_and(|target| target.address != first);
    let tcp = one.target.as_ref().is_some_and(|target| target.protocol == "TCP");
    let mut item = Item { core: !besides && one.who != Place::Debugger, skip: None, one };
    if item.one.who == Place::Debugger {
        item.skip = scene.debugger.clone().err();
    }
    if besides {
        let there = scene.outside.at_v6(Port::Http);
        item.skip = there.and_then(|_| scene.address(Place::Productpage, true)).err();
    }
    if tcp { item } else { item.watched(scene) }
}

/// What is sent past the socket layer.
fn frames(scene: &Scene, expect: Expect) -> Vec<Item> {
    let app = Place::Productpage;
    let outside = &scene.outside;
    let udp = |how, words: &[&str], at: SocketAddr| {
        Try::new(app, how, words, expect).to(at.ip(), "UDP", at.port()).blind()
    };
    let (raw, frame) = (outside.at(Port::Raw), outside.at(Port::Frame));
    let v6 = outside.at_v6(Port::Frame6).and_then(|at| scene.address(app, true).map(|_| at));
    vec![
        Item::with(scene.first(app), app, "by a raw IP socket", |from| {
            let words = [
                "raw",
                &raw.ip().to_string(),
                "--from",
                &from.to_string(),
                "--port",
                &raw.port().to_string(),
            ];
            udp("by a raw IP socket", &words, raw)
        }),
        Item::optional(udp(
            "by a frame (AF_PACKET)",
            &["packet", &frame.ip().to_string(), "--port", &frame.port().to_string()],
            frame,
        )),
        Item::with(v6, app, "by an IPv6 frame", |at| {
            let words = ["packet", &at.ip().to_string(), "--port", &at.port().to_string()];
            udp("by an IPv6 frame", &words, at)
        }),
    ]
}

/// The gateway: who may use it, and what it may reach itself.
fn gateway(scene: &Scene, deny: Expect) -> Vec<Item> {
    let service = scene.gateway_service.first().copied();
    let pod = scene.addresses(Place::Gateway).first().copied();
    let missing = || "the gateway has no address".to_owned();
    let ways = [
        (
            service.map(|ip| SocketAddr::new(ip, GATEWAY_SERVICE)),
            "the gateway by its service",
            "gateway by its service, no client",
        ),
        (
            pod.map(|ip| SocketAddr::new(ip, GATEWAY)),
            "the gateway by its pod address",
            "gateway by its pod address, no client",
        ),
    ];
    let (declared, undeclared) = (scene.outside.at(Port::Declared), scene.outside.at(Port::Undeclared));
    let mut items = Vec::new();
    for (at, how, not_client) in ways {
        let through = Item::with(at.ok_or_else(missing), Place::Productpage, how, |at| {
            Try::get(Place::Productpage, how, &http(declared), Expect::Works)
                .words(&["--via", &at.to_string()])
        });
        let not_client = Item::with(at.ok_or_else(missing), Place::Reviews, not_client, |at| {
            let words = ["tcp", &at.to_string(), "--timeout-ms", patience(deny)];
            Try::new(Place::Reviews, not_client, &words, deny).to(at.ip(), "TCP", at.port())
        });
        items.extend([through, not_client].map(|item| Item { core: true, ..item }));
    }
    items.push(Item::core(Try::get(Place::Gateway, "what it may reach", &http(declared), Expect::Works)));
    if scene.outside.is_watched() {
        let refused = if deny == Expect::Denied { Expect::Refused(502) } else { Expect::Works };
        items.push(Item::with(
            service.ok_or_else(missing),
            Place::Productpage,
            "the gateway, to what it may not reach",
            |ip| {
                let via = SocketAddr::new(ip, GATEWAY_SERVICE).to_string();
                Try::get(
                    Place::Productpage,
                    "the gateway, to what it may not reach",
                    &http(undeclared),
                    refused,
                )
                .words(&["--via", &via])
            },
        ));
        items.push(Item::core(
            Try::get(Place::Gateway, "what it may not reach", &http(undeclared), deny).to(
                undeclared.ip(),
                "TCP",
                undeclared.port(),
            ),
        ));
    }
    items
}

/// The cluster: what goes on, and what is not granted.
fn in_cluster(scene: &Scene, deny: Expect) -> Vec<Item> {
    let app = Place::Productpage;
    let works = |who, how, address: SocketAddr| Try::get(who, how, &http(address), Expect::Works);
    let service =
        scene.reviews_service.first().copied().ok_or_else(|| "reviews has no service address".to_owned());
    let reviews = |v6| scene.address(Place::Reviews, v6).map(|ip| SocketAddr::new(ip, HTTP));
    let closed = |found: &Result<SocketAddr, String>, how| {
        Item::with(found.clone(), app, how, |at| {
            let words = ["tcp", &at.to_string(), "--timeout-ms", patience(deny)];
            Try::new(app, how, &words, deny).to(at.ip(), "TCP", at.port())
        })
    };
    let free = scene.outside.at(Port::Free);
    vec![
        Item {
            core: true,
            ..Item::with(service, app, "in the cluster: reviews by service", |ip| {
                works(app, "in the cluster: reviews by service", SocketAddr::new(ip, HTTP))
            })
        },
        Item {
            core: true,
            ..Item::with(
                reviews(false).or_else(|_| reviews(true)),
                app,
                "in the cluster: reviews by pod address",
                |at| works(app, "in the cluster: reviews by pod address", at),
            )
        },
        Item::with(reviews(true), app, "in the cluster: reviews by IPv6", |at| {
            works(app, "in the cluster: reviews by IPv6", at)
        }),
        Item::with(scene.dns.clone(), app, "in the cluster: DNS", |(server, name)| {
            let words =
                ["resolve", &name, "--dns", &server.to_string(), "--timeout-ms", patience(Expect::Works)];
            Try::new(app, "in the cluster: DNS", &words, Expect::Works)
        }),
        closed(&scene.api, "the API server, not granted"),
        closed(&scene.node, "the node, not granted"),
        Item::core(works(Place::Free, "outside, as a pod without policy", free)),
    ]
}

/// Servers in locked-down pods go on answering.
fn answers(scene: &Scene) -> Vec<Item> {
    let mut items = Vec::new();
    for (v6, to_http, to_udp, to_ping) in [
        (false, "a locked-down server by HTTP", "a locked-down server by UDP", "a locked-down pod by ping"),
        (
            true,
            "a locked-down server by HTTP, IPv6",
            "a locked-down server by UDP, IPv6",
            "a locked-down pod by ping, IPv6",
        ),
    ] {
        let page = scene.address(Place::Productpage, v6);
        let ms = patience(Expect::Works);
        for who in [Place::Free, Place::Outside] {
            // Whose answers go outside is asked from there, by the address that is not the node's.
            let from = match (who, scene.outside.own(v6)) {
                (Place::Outside, Some(own)) => own.map(Some),
                (Place::Outside, None) => continue,
                _ => Ok(None),
            };
            let both = page.clone().and_then(|page| from.map(|from| (page, from)));
            let words = |(page, from): (IpAddr, Option<IpAddr>), how, words: &[&str], port| {
                let to = SocketAddr::new(page, port).to_string();
                let mut one = Try::new(who, how, words, Expect::Works).words(&["--timeout-ms", ms]);
                if let Some(word) = one.words.get_mut(1) {
                    *word = word.replace("{}", &to);
                }
                from.iter().for_each(|from| one.words.extend(["--from".to_owned(), from.to_string()]));
                one
            };
            let by_http =
                Item::with(both.clone(), who, to_http, |to| words(to, to_http, &["get", "http://{}/"], HTTP));
            let by_udp = Item::with(both, who, to_udp, |to| words(to, to_udp, &["udp", "{}"], ECHO));
            items.extend([by_http, by_udp].map(|item| Item { core: v6 == scene.outside.is_v6(), ..item }));
        }
        items.push(Item::with(page, Place::Free, to_ping, |page| {
            Try::new(Place::Free, to_ping, &["ping", &page.to_string(), "--timeout-ms", ms], Expect::Works)
        }));
    }
    items
}

/// Packets that are unlawful by themselves: in another pod's name, or as answers to what nobody asked.
fn forged(scene: &Scene) -> Vec<Item> {
    let app = Place::Productpage;
    let addresses = scene.first(app).and_then(|own| Ok((own, scene.first(Place::Reviews)?)));
    let at = |port| scene.outside.at(port);
    let blind = |how, words: &[&str], protocol, to: SocketAddr| {
        Try::new(app, how, words, Expect::Denied).to(to.ip(), protocol, to.port()).blind()
    };
    let inject = |how, protocol, packet: &Packet, to: SocketAddr| {
        let hex = packet.bytes().map(|bytes| to_hex(&bytes)).unwrap_or_default();
        blind(how, &["inject", &hex, "--via", "raw"], protocol, to)
    };
    let own = |port| addresses.clone().map(|(own, _)| SocketAddr::new(own, port));
    let segment = |how, port, flags| {
        Item::with(own(HTTP), app, how, |from| {
            inject(how, "TCP", &Packet::tcp(from, at(port), flags, b"forged"), at(port))
        })
    };
    let source = at(Port::ForgedSource);
    let frame = at(Port::ForgedFrame);
    let reply = at(Port::ForgedReply);
    let items = [
        Item::with(addresses.clone(), app, "in the name of reviews, by a raw socket", |(_, other)| {
            let words = [
                "raw",
                &source.ip().to_string(),
                "--from",
                &other.to_string(),
                "--port",
                &source.port().to_string(),
            ];
            blind("in the name of reviews, by a raw socket", &words, "UDP", source)
        }),
        Item::with(addresses.clone(), app, "in the name of reviews, by a frame", |(_, other)| {
            let words = [
                "packet",
                &frame.ip().to_string(),
                "--from",
                &other.to_string(),
                "--port",
                &frame.port().to_string(),
            ];
            blind("in the name of reviews, by a frame", &words, "UDP", frame)
        }),
        Item::with(own(ECHO), app, "as an answer by UDP that nobody asked for", |from| {
            inject(
                "as an answer by UDP that nobody asked for",
                "UDP",
                &Packet::udp(from, reply, b"forged"),
                reply,
            )
        }),
        segment("as a SYN-ACK that nobody asked for", Port::ForgedSynAck, SYN | ACK),
        segment("as data of a connection that is none", Port::ForgedAck, ACK | PSH),
    ];
    items.into_iter().map(|item| item.watched(scene)).collect()
}

/// Everything that gets through as long as there is no policy: what is denied later is tried here first.
pub(crate) fn baseline(scene: &Scene) -> Vec<Item> {
    lawful(scene, Expect::Works)
}

/// Everything, as it has to be while the policy enforces.
pub(crate) fn enforced(scene: &Scene) -> Vec<Item> {
    let mut items = lawful(scene, Expect::Denied);
    items.extend(forged(scene));
    items
}

fn lawful(scene: &Scene, deny: Expect) -> Vec<Item> {
    let mut items = direct(scene, deny);
    items.extend(gateway(scene, deny));
    items.extend(in_cluster(scene, deny));
    items.extend(answers(scene));
    items
}

/// What changes when only the proxy may use the gateway.
pub(crate) fn locked(scene: &Scene) -> Vec<Item> {
    let missing = || "the gateway has no service address".to_owned();
    let via =
        scene.gateway_service.first().map(|ip| SocketAddr::new(*ip, GATEWAY_SERVICE)).ok_or_else(missing);
    let declared = scene.outside.at(Port::Declared);
    let through = Item::with(via.clone(), Place::ProductpageProxy, "the gateway, as the proxy", |via| {
        Try::get(Place::ProductpageProxy, "the gateway, as the proxy", &http(declared), Expect::Works)
            .words(&["--via", &via.to_string()])
    });
    let around = |who, how| {
        Item::with(via.clone(), who, how, |via| {
            let words = ["tcp", &via.to_string(), "--timeout-ms", patience(Expect::Denied)];
            Try::new(who, how, &words, Expect::Denied).to(via.ip(), "TCP", via.port())
        })
    };
    let mut debugger = around(Place::Debugger, "the gateway, around the proxy");
    debugger.skip = debugger.skip.or_else(|| scene.debugger.clone().err());
    let http_port = scene.outside.at(Port::Http);
    let mut items =
        vec![
            Item { core: true, ..through },
            Item { core: true, ..around(Place::Productpage, "the gateway, around the proxy") },
            debugger,
            Item::core(
                Try::get(Place::ProductpageProxy, "direct, as the proxy", &http(http_port), Expect::Denied)
                    .to(http_port.ip(), "TCP", http_port.port()),
            ),
        ];
    items.extend(in_cluster(scene, Expect::Denied));
    items
}

#[cfg(test)]
mod tests;
