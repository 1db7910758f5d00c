//! The mesh's guide, standing: productpage and reviews with their sidecars, an egress gateway, DNS, and a server outside.
//!
//! Invariant: without an enforcer every way out of every pod works, so what does not arrive was stopped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;

use crate::{
    Container, ContainerKind, Exec, OUTSIDE_V4, OUTSIDE_V6, Pod, PodSpec, Process, Protocol, Qos, Service,
    Topology, kubernetes,
};

/// The user as which the sidecar runs, and which its redirect lets pass.
pub const SIDECAR_USER: u32 = 1337;
/// A name outside of the cluster.
pub const OUTSIDE_NAME: &str = "httpbin.example";
/// Ports outside that answer HTTP.
pub const OUTSIDE_HTTP: [u16; 2] = [80, 8080];
/// The port outside that echoes UDP.
pub const OUTSIDE_UDP: u16 = 9999;
/// Address of the cluster's DNS.
pub const DNS_VIP: &str = "10.96.0.10";
/// Address of the service `reviews`, port 9080.
pub const REVIEWS_VIP: &str = "10.96.0.20";
/// Address of the service of the egress gateway, port 443.
pub const GATEWAY_VIP: &str = "10.96.0.30";

/// The gateway's own port.
pub const GATEWAY_PORT: u16 = 15443;

/// A pod with an application, its sidecar, and a container that somebody added for debugging.
#[derive(Clone, Debug)]
pub struct App {
    /// The pod.
    pub pod: Pod,
    /// The application.
    pub app: Container,
    /// The sidecar.
    pub proxy: Container,
    /// An ephemeral container.
    pub debug: Container,
}

/// Everything of the guide.
#[derive(Debug)]
pub struct Bookinfo {
    /// May use the gateway.
    pub productpage: App,
    /// May not.
    pub reviews: App,
    /// The egress gateway.
    pub gateway: Container,
    /// The cluster's DNS.
    pub dns: Container,
    /// A pod of a namespace without sidecars, that no policy selects.
    pub free: Container,
    servers: Vec<Process>,
}

impl Bookinfo {
    /// Makes the pods and starts the servers in them.
    pub fn new(topology: &Topology) -> Result<Self> {
        let gateway_pod = topology.add_pod(
            PodSpec::new("istio-egress", "istio-egressgateway")
                .label("istio", "egressgateway")
                .qos(Qos::Burstable),
        )?;
        let dns_pod =
            topology.add_pod(PodSpec::new("kube-system", "coredns").label("k8s-app", "kube-dns"))?;
        let free = topology.add_pod(PodSpec::new("default", "free"))?.add_container("app")?;
        let productpage = app(topology, "productpage", Qos::Burstable)?;
        let reviews = app(topology, "reviews", Qos::Guaranteed)?;
        let vip = |text: &str| -> Result<[IpAddr; 1]> { Ok([text.parse()?]) };
        topology.set_services(&[
            Service::new("kube-system", "kube-dns", &vip(DNS_VIP)?)
                .port(Protocol::Udp, 53, 53)
                .selects("k8s-app", "kube-dns")
                .backend(&dns_pod),
            Service::new("bookinfo", "reviews", &vip(REVIEWS_VIP)?)
                .port(Protocol::Tcp, 9080, 9080)
                .selects("app", "reviews")
                .backend(&reviews.pod),
            Service::new("istio-egress", "istio-egressgateway", &vip(GATEWAY_VIP)?)
                .port(Protocol::Tcp, 443, GATEWAY_PORT)
                .selects("istio", "egressgateway")
                .backend(&gateway_pod),
        ])?;
        let gateway = gateway_pod.add_container("istio-proxy")?;
        let dns = dns_pod.add_container("coredns")?;
        let record = format!("{OUTSIDE_NAME}={OUTSIDE_V4},{OUTSIDE_V6}");
        let words = ["serve-dns", "--port", "53", "--record", record.as_str()];
        let mut servers = vec![
            dns.serve(&Exec::probe(words))?,
            gateway.serve(&Exec::probe(["gateway", "--port", &GATEWAY_PORT.to_string()]))?,
            reviews.app.serve(&Exec::probe(["serve-http", "--port", "9080", "--name", "reviews"]))?,
            topology.outside_serve(&Exec::probe(["serve-udp", "--port", &OUTSIDE_UDP.to_string()]))?,
        ];
        for port in OUTSIDE_HTTP {
            let words = ["serve-http", "--port", &port.to_string(), "--name", "outside"];
            servers.push(topology.outside_serve(&Exec::probe(words))?);
        }
        for app in [&productpage, &reviews] {
            let target = format!("{GATEWAY_VIP}:443");
            let words =
                ["proxy", "--gateway", &target, "--mesh", "10.244.0.0/16", "10.96.0.0/16", "fd00::/8"];
            servers.push(app.proxy.serve(&Exec::probe(words).user(SIDECAR_USER))?);
            topology.istio_redirect(&app.pod)?;
        }
        Ok(Self { productpage, reviews, gateway, dns, free, servers })
    }

    /// Writes the Kubernetes objects of everything that stands into a directory.
    pub fn write_objects(&self, topology: &Topology, directory: &Path) -> Result<()> {
        let injected = BTreeMap::from([("istio-injection".to_owned(), "enabled".to_owned())]);
        kubernetes::write(directory, &kubernetes::objects(topology))?;
        kubernetes::write(directory, &[kubernetes::namespace("bookinfo", &injected)])
    }

    /// Whether every server still runs; names the first that does not.
    pub fn check(&mut self) -> Result<()> {
        for server in &mut self.servers {
            anyhow::ensure!(server.is_running()?, "a server of the demonstration ended: {}", server.stderr());
        }
        Ok(())
    }
}

fn app(topology: &Topology, name: &str, qos: Qos) -> Result<App> {
    let account = format!("bookinfo-{name}");
    let pod = topology
        .add_pod(PodSpec::new("bookinfo", name).label("app", name).service_account(&account).qos(qos))?;
    Ok(App {
        app: pod.add_container(name)?,
        proxy: pod.add_container("istio-proxy")?,
        debug: pod.add_container_of_kind("debugger", ContainerKind::Ephemeral)?,
        pod,
    })
}
