//! Addresses of pods and of services' backends, of which there are more than of anything else, in little memory.
//!
//! Invariant: what comes out is what went in, in the same order.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;

use super::Endpoint;

/// The addresses of a pod: nearly always one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Number);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Number {
    One(IpAddr),
    /// None, or several.
    Several(Box<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            Number::One(one) => std::slice::from_ref(one),
            Number::Several(several) => several,
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self(match addresses[..] {
            [one] => Number::One(one),
            _ => Number::Several(addresses.into()),
        })
    }
}

/// The backends of an endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// Where all have IPv4 addresses: those, with [`READY`] and [`LAST_RESORT`].
    V4(Box<[([u8; 4], u8)]>),
    Mixed(Box<[Endpoint]>),
}

const READY: u8 = 1;
const LAST_RESORT: u8 = 2;

impl Endpoints {
    /// The backends, in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> + Clone {
        let (v4, mixed): (&[([u8; 4], u8)], &[Endpoint]) = match &self.0 {
            Form::V4(v4) => (v4, &[]),
            Form::Mixed(mixed) => (&[], mixed),
        };
        let endpoint = |(address, flags): &([u8; 4], u8)| Endpoint {
            address: Ipv4Addr::from(*address).into(),
            ready: flags & READY != 0,
            last_resort: flags & LAST_RESORT != 0,
        };
        v4.iter().map(endpoint).chain(mixed.iter().copied())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::V4(v4) => v4.len(),
            Form::Mixed(mixed) => mixed.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self(Form::V4(Box::default()))
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let endpoints: Vec<Endpoint> = endpoints.into_iter().collect();
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let flags = |one: &Endpoint| flag(one.ready, READY) | flag(one.last_resort, LAST_RESORT);
        let v4 = |one: &Endpoint| match one.address {
            IpAddr::V4(ip) => Some((ip.octets(), flags(one))),
            IpAddr::V6(_) => None,
        };
        let v4: Option<Box<[_]>> = endpoints.iter().map(v4).collect();
        Self(v4.map_or_else(|| Form::Mixed(endpoints.into()), Form::V4))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Addresses, Endpoint, Endpoints};

    #[test]
    fn what_goes_in_comes_out() {
        let ips: Vec<IpAddr> =
            ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "10.0.0.1"].map(|ip| ip.parse().unwrap()).into();
        for ips in [&ips[..], &ips[..1], &ips[1..2], &ips[..0]] {
            assert_eq!(&*Addresses::from(ips.to_vec()), ips);
            let flags = [(true, false), (false, true), (true, true), (false, false)];
            let endpoint = |(address, (ready, last_resort)): (&IpAddr, _)| Endpoint {
                address: *address,
                ready,
                last_resort,
            };
            let mixed: Vec<Endpoint> = ips.iter().zip(flags).map(endpoint).collect();
            let v4: Vec<Endpoint> = mixed.iter().copied().filter(|one| one.address.is_ipv4()).collect();
            for wanted in [mixed, v4] {
                let held: Endpoints = wanted.iter().copied().collect();
                assert_eq!(held.iter().collect::<Vec<_>>(), wanted);
                assert_eq!((held.len(), held.is_empty()), (wanted.len(), wanted.is_empty()));
            }
        }
    }
}
