//! What stands during a run: pods, addresses, what is there to be tried and what is not. Pure.
//!
//! Invariant: what the cluster lacks is a reason, never an absent value; the line it belongs to says it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::tries;

/// Where a try is made: a container of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The application that may use the gateway by its proxy.
    Productpage,
    /// Its proxy.
    ProductpageProxy,
    /// An ephemeral container that somebody added to it.
    Debugger,
    /// The application that may not.
    Reviews,
    /// Beside the egress gateway, in its pod.
    Gateway,
    /// A pod that no policy selects.
    Free,
    /// What stands in for the outside, in the node's network.
    Outside,
}

impl Place {
    /// Every one of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Productpage,
        Self::ProductpageProxy,
        Self::Debugger,
        Self::Reviews,
        Self::Gateway,
        Self::Free,
        Self::Outside,
    ];

    /// The name of its pod.
    pub(crate) fn pod(self) -> &'static str {
        match self {
            Self::Productpage | Self::ProductpageProxy | Self::Debugger => "productpage",
            Self::Reviews => "reviews",
            Self::Gateway => "istio-egressgateway",
            Self::Free => "free",
            Self::Outside => "outside",
        }
    }

    /// The name of the container.
    pub(crate) fn container(self) -> &'static str {
        match self {
            Self::Productpage => "productpage",
            Self::ProductpageProxy => "istio-proxy",
            Self::Gateway => "probe",
            Self::Debugger => "debugger",
            Self::Reviews => "reviews",
            Self::Free => "app",
            Self::Outside => "outside",
        }
    }

    /// The part of the run that its namespace is.
    pub(crate) fn part(self) -> Part {
        match self {
            Self::Productpage | Self::ProductpageProxy | Self::Debugger | Self::Reviews => Part::Mesh,
            Self::Gateway => Part::Exit,
            Self::Free | Self::Outside => Part::Beside,
        }
    }

    /// As the table has it.
    pub(crate) fn who(self) -> String {
        format!("{}/{}", self.pod(), self.container())
    }
}

/// The namespaces of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Locked down.
    Mesh,
    /// The gateway's.
    Exit,
    /// Of pods that no policy selects.
    Beside,
}

impl Part {
    /// Every one of them.
    pub(crate) const ALL: [Self; 3] = [Self::Mesh, Self::Exit, Self::Beside];

    /// The value of the label that tells them apart, and the end of the namespace's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Exit => "exit",
            Self::Beside => "beside",
        }
    }
}

/// The ports outside: every try has its own, so that what arrives there, and what is reported, is surely its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Port {
    Http,
    Debug,
    Udp,
    Raw,
    Frame,
    Frame6,
    ReviewsHttp,
    ReviewsUdp,
    /// What the gateway may reach.
    Declared,
    Undeclared,
    Free,
    Storm,
    ForgedSource,
    ForgedFrame,
    ForgedReply,
    ForgedSynAck,
    ForgedAck,
    /// How many there are.
    Number,
}

/// The first port of a stand-in.
pub(crate) const FIRST_PORT: u16 = 18_000;
/// Where productpage and reviews answer HTTP, and echo TCP and UDP.
pub(crate) const HTTP: u16 = 9080;
/// See [`HTTP`].
pub(crate) const ECHO: u16 = 9081;
/// The gateway's own port.
pub(crate) const GATEWAY: u16 = 15_443;
/// The port of the gateway's service.
pub(crate) const GATEWAY_SERVICE: u16 = 443;

/// What is outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outside {
    /// Our own stand-in: it answers on every port, and remembers what arrives. `only_v6`: pods have no IPv4 address to reach the other
    /// one from.
    StandIn { v4: Ipv4Addr, v6: Result<Ipv6Addr, String>, only_v6: bool },
    /// Servers that somebody named, which answer HTTP.
    Named { first: SocketAddr, v6: Option<SocketAddr> },
}

impl Outside {
    /// Where tries go that are there once: by IPv4, but where pods have IPv6 alone; of a named server, whatever it is.
    pub(crate) fn at(&self, port: Port) -> SocketAddr {
        match self {
            Self::StandIn { v6: Ok(v6), only_v6: true, .. } => numbered((*v6).into(), port),
            Self::StandIn { v4, .. } => numbered((*v4).into(), port),
            Self::Named { first, .. } => *first,
        }
    }

    /// The same by IPv6 besides, or why there is none.
    pub(crate) fn at_v6(&self, port: Port) -> Result<SocketAddr, String> {
        match self {
            Self::StandIn { only_v6: true, .. } => Err("all that is tried once is tried by IPv6".to_owned()),
            Self::StandIn { v6, .. } => v6.clone().map(|v6| numbered(v6.into(), port)),
            Self::Named { v6, .. } => (*v6).ok_or_else(|| "no IPv6 server is named by --outside".to_owned()),
        }
    }

    /// The stand-in's address of a family, `None` where it is somebody else's.
    pub(crate) fn own(&self, of_v6: bool) -> Option<Result<IpAddr, String>> {
        match self {
            Self::StandIn { v6, .. } if of_v6 => Some(v6.clone().map(IpAddr::from)),
            Self::StandIn { v4, .. } => Some(Ok((*v4).into())),
            Self::Named { .. } => None,
        }
    }

    /// For pods that have these addresses.
    pub(crate) fn seen_from(mut self, pod: &[IpAddr]) -> Self {
        if let Self::StandIn { v6: Ok(_), only_v6, .. } = &mut self {
            *only_v6 = !pod.is_empty() && pod.iter().all(IpAddr::is_ipv6);
        }
        self
    }

    /// Whether tries that are there once go by IPv6.
    pub(crate) fn is_v6(&self) -> bool {
        self.at(Port::Http).is_ipv6()
    }

    /// Whether somebody looks what arrives.
    pub(crate) fn is_watched(&self) -> bool {
        matches!(self, Self::StandIn { .. })
    }

    /// For the ways that the demonstration has as well.
    pub(crate) fn plain(&self) -> tries::Outside {
        let unspecified = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        tries::Outside {
            first: self.at(Port::Http).ip(),
            v6: self.at_v6(Port::Http).unwrap_or(unspecified).ip(),
            http: self.at(Port::Http).port(),
            debug: self.at(Port::Debug).port(),
            udp: self.at(Port::Udp).port(),
        }
    }
}

/// What stands.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// Namespaces by part.
    pub(crate) namespaces: BTreeMap<Part, String>,
    /// Addresses of pods by name.
    pub(crate) pods: BTreeMap<&'static str, Vec<IpAddr>>,
    /// Addresses of the services of reviews and of the gateway.
    pub(crate) reviews_service: Vec<IpAddr>,
    pub(crate) gateway_service: Vec<IpAddr>,
    pub(crate) outside: Outside,
    /// The cluster's DNS and a name that it knows.
    pub(crate) dns: Result<(IpAddr, String), String>,
    /// The API server's service.
    pub(crate) api: Result<SocketAddr, String>,
    /// A port of the node that something listens on.
    pub(crate) node: Result<SocketAddr, String>,
    /// Whether the debugger runs.
    pub(crate) debugger: Result<(), String>,
}

impl Scene {
    /// NS/POD of a place.
    pub(crate) fn pod(&self, place: Place) -> String {
        format!("{}/{}", self.namespace(place.part()), place.pod())
    }

    /// The name of a namespace.
    pub(crate) fn namespace(&self, part: Part) -> &str {
        self.namespaces.get(&part).map_or("", String::as_str)
    }

    /// The addresses of a place's pod.
    pub(crate) fn addresses(&self, place: Place) -> &[IpAddr] {
        self.pods.get(place.pod()).map_or(&[], Vec::as_slice)
    }

    /// The address of a place's pod by which it reaches [`Outside::at`], or why there is none.
    pub(crate) fn first(&self, place: Place) -> Result<IpAddr, String> {
        self.address(place, self.outside.is_v6())
    }

    /// An address of a place's pod, or why there is none.
    pub(crate) fn address(&self, place: Place, v6: bool) -> Result<IpAddr, String> {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let found = self.addresses(place).iter().find(|address| address.is_ipv6() == v6);
        found.copied().ok_or_else(|| format!("the cluster gives pods no {family} address"))
    }
}

/// A stand-in's port at an address of it.
fn numbered(address: IpAddr, port: Port) -> SocketAddr {
    SocketAddr::new(address, FIRST_PORT + port as u16)
}

/// The labels, names and addresses of a run, from its random suffix.
pub(crate) fn stand_in(random: u64) -> (Ipv4Addr, Ipv6Addr) {
    let [.., a, b, c, d] = random.to_be_bytes();
    // TEST-NET-2 and the documentation prefix: nobody's. The low half of the former is left to those who number machines, and so are its
    // first and its last address: who has numbers of it on a link sends what is for the last one to everybody there.
    let v4 = Ipv4Addr::new(198, 51, 100, 129 + a % 126);
    (v4, Ipv6Addr::new(0x2001, 0xdb8, 0x51e, 0, 0, u16::from(b), u16::from(c), 0x100 | u16::from(d)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_port_outside_is_another() {
        let v4 = Ipv4Addr::new(198, 51, 100, 200);
        let outside = Outside::StandIn { v4, v6: Err("no IPv6 here".to_owned()), only_v6: false };
        assert_eq!(outside.at(Port::Http).to_string(), "198.51.100.200:18000");
        assert_eq!(outside.at(Port::ForgedAck).port(), FIRST_PORT + Port::Number as u16 - 1);
        assert_eq!(outside.at_v6(Port::Http), Err("no IPv6 here".to_owned()));
        // Below the ports that kernels choose by themselves, so that no answer is taken for a try.
        assert!(FIRST_PORT + (Port::Number as u16) < 32_768);
    }

    #[test]
    fn stand_ins_are_documentation_addresses_that_differ() {
        let mut seen = BTreeSet::new();
        // Whatever the random number is: its four last bytes count.
        for random in (0..1_u64 << 16).map(|number| number << 16 | number) {
            let (v4, v6) = stand_in(random);
            assert_eq!(v4.octets()[..3], [198, 51, 100]);
            assert!((129..=254).contains(&v4.octets()[3]), "{v4}");
            assert_eq!(v6.segments()[..2], [0x2001, 0xdb8]);
            seen.insert((v4, v6));
        }
        assert_eq!(seen.len(), 1 << 16);
    }

    #[test]
    fn places_are_containers_that_differ() {
        let names: BTreeSet<String> = Place::ALL.into_iter().map(Place::who).collect();
        assert_eq!(names.len(), Place::ALL.len());
    }
}
