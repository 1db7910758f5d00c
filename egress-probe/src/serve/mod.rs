//! The servers. Each runs until it is killed and prints a line once it takes traffic.

pub(crate) mod answer;
pub(crate) mod capture;
pub(crate) mod dns;
pub(crate) mod echo;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod proxy;
