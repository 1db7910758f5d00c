//! The same stage on this machine, without a cluster: the demonstration's kind of pods, the agent as a process.
//!
//! Invariant: whatever is tried in a cluster is tried here with the same words, by the same containers, and judged by the
//! same code, so that what is wrong with `verify` itself shows before there is a cluster.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use egress_topology::{
    Agent, Container, ContainerKind, Exec, NODE_V4, Pod, PodSpec, Process, Protocol, Qos, Service, Topology,
    kubernetes,
};
use serde_json::Value;

use super::objects::{Mode, Run};
use super::scene::{GATEWAY, GATEWAY_SERVICE, HTTP, Outside, Part, Place, Scene};
use super::stage::Stage;
use crate::demo::ground::Ground;
use crate::tries::SIDECAR_USER;

const DNS_VIP: &str = "10.96.0.10";
const REVIEWS_VIP: &str = "10.96.0.20";
const GATEWAY_VIP: &str = "10.96.0.30";
/// A name that the stage's DNS knows.
const NAME: &str = "kubernetes.default.svc.cluster.local";
/// Stands in for kubelet's.
const KUBELET: u16 = 10_250;

/// A run on this machine.
pub(crate) struct Here {
    topology: Arc<Topology>,
    agent: RefCell<Agent>,
    containers: BTreeMap<Place, Container>,
    servers: RefCell<Vec<Process>>,
    /// Containers that nothing is tried in; they end when they are dropped.
    others: RefCell<Vec<Container>>,
    objects: PathBuf,
    run: Run,
    scene: Scene,
    patience: Duration,
}

impl Here {
    /// Sets the stage and starts the agent.
    pub(crate) fn new(
        ground: &Ground,
        run: Run,
        outside: Outside,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let topology = Arc::new(Topology::new(&ground.probe)?);
        let pod = |place: Place, key: &str, value: &str, qos| {
            let spec = PodSpec::new(&run.namespace(place.part()), place.pod()).label(key, value).qos(qos);
            topology.add_pod(if place.part() == Part::Mesh {
                spec.service_account(place.pod())
            } else {
                spec
            })
        };
        let page = pod(Place::Productpage, "app", "productpage", Qos::Burstable)?;
        let reviews = pod(Place::Reviews, "app", "reviews", Qos::Guaranteed)?;
        let gateway = pod(Place::Gateway, "istio", "egressgateway", Qos::BestEffort)?;
        let free = pod(Place::Free, "app", "free", Qos::BestEffort)?;
        let dns = topology.add_pod(PodSpec::new("kube-system", "coredns").label("k8s-app", "kube-dns"))?;
        services(&topology, &run, &dns, &reviews, &gateway)?;
        let containers = BTreeMap::from([
            (Place::Productpage, page.add_container(Place::Productpage.container())?),
            (Place::ProductpageProxy, page.add_container(Place::ProductpageProxy.container())?),
            (
                Place::Debugger,
                page.add_container_of_kind(Place::Debugger.container(), ContainerKind::Ephemeral)?,
            ),
            (Place::Reviews, reviews.add_container(Place::Reviews.container())?),
            (Place::Gateway, gateway.add_container(Place::Gateway.container())?),
            (Place::Free, free.add_container(Place::Free.container())?),
        ]);
        let of = |pod: &Pod| vec![IpAddr::from(pod.v4()), IpAddr::from(pod.v6())];
        let scene = Scene {
            namespaces: run.namespaces(),
            pods: [&page, &reviews, &gateway, &free]
                .into_iter()
                .zip(["productpage", "reviews", "istio-egressgateway", "free"])
                .map(|(pod, name)| (name, of(pod)))
                .collect(),
            reviews_service: vec![REVIEWS_VIP.parse()?],
            gateway_service: vec![GATEWAY_VIP.parse()?],
            outside,
            dns: Ok((DNS_VIP.parse()?, NAME.to_owned())),
            api: Err("there is no API server on this machine's stage".to_owned()),
            node: Ok(SocketAddr::new(NODE_V4.into(), KUBELET)),
            debugger: Ok(()),
        };
        let objects = ground.dir.path().join("objects");
        kubernetes::write(&objects, &kubernetes::objects(&topology))?;
        kubernetes::write(&objects, &run.namespace_objects())?;
        let here = Self {
            agent: RefCell::new(ground.agent()),
            topology,
            containers,
            servers: RefCell::default(),
            others: RefCell::new(vec![reviews.add_container(Place::ProductpageProxy.container())?]),
            objects,
            run,
            scene,
            patience,
        };
        here.serve(&dns, &gateway)?;
        here.agent.borrow_mut().start(&here.topology)?;
        Ok(here)
    }

    /// Starts what the containers of a cluster's pods would run.
    fn serve(&self, dns: &Pod, gateway: &Pod) -> anyhow::Result<()> {
        let node = |words: &[String]| -> anyhow::Result<Process> {
            let mut process = self.topology.node_exec(&Exec::probe(words))?;
            process.wait_ready(Duration::from_secs(5))?;
            Ok(process)
        };
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let record = format!("{NAME}=10.96.0.1");
        let dns = dns.add_container("coredns")?;
        let gateway = gateway.add_container("istio-proxy")?;
        let mut servers = vec![
            dns.serve(&Exec::probe(["serve-dns", "--port", "53", "--record", &record]))?,
            gateway.serve(
                &Exec::probe(["gateway".to_owned(), format!("--port={GATEWAY}")]).user(SIDECAR_USER),
            )?,
            node(&words(&["serve-http", "--port", &KUBELET.to_string(), "--name", "kubelet"]))?,
        ];
        // With the words of the pods' own objects.
        for pod in self.run.pods(&self.scene.outside) {
            for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
                let list = container["args"].as_array().into_iter().flatten();
                let argv: Vec<String> = list.filter_map(|one| Some(one.as_str()?.to_owned())).collect();
                if argv.first().map(String::as_str) == Some("outside") {
                    servers.push(node(&argv)?);
                }
                let name = |place: &&Place| {
                    pod["metadata"]["name"] == place.pod() && container["name"] == place.container()
                };
                let place = Place::ALL.iter().find(name);
                if let Some(found) = place.and_then(|place| self.containers.get(place)) {
                    servers.push(found.serve(&Exec::probe(&argv))?);
                }
            }
        }
        self.servers.replace(servers);
        self.others.borrow_mut().extend([dns, gateway]);
        // The containers of the servers are new to the agent.
        kubernetes::write(&self.objects, &kubernetes::objects(&self.topology))?;
        kubernetes::write(&self.objects, &self.run.namespace_objects())
    }

    /// Ends the agent, removes what it left, and sees whether the servers ran to the end.
    pub(crate) fn finish(&self) -> anyhow::Result<()> {
        for (number, server) in self.servers.borrow_mut().iter_mut().enumerate() {
            if !server.is_running()? {
                let status = server.wait(Duration::ZERO)?;
                bail!("server {number} ended with {status}: {}", server.stderr());
            }
        }
        self.agent.borrow_mut().stop()?;
        self.agent.borrow().cleanup(&self.topology)
    }
}

fn services(topology: &Topology, run: &Run, dns: &Pod, reviews: &Pod, gateway: &Pod) -> anyhow::Result<()> {
    let vip = |text: &str| -> anyhow::Result<[IpAddr; 1]> { Ok([text.parse()?]) };
    topology.set_services(&[
        Service::new("kube-system", "kube-dns", &vip(DNS_VIP)?)
            .port(Protocol::Udp, 53, 53)
            .selects("k8s-app", "kube-dns")
            .backend(dns),
        Service::new(&run.namespace(Part::Mesh), "reviews", &vip(REVIEWS_VIP)?)
            .port(Protocol::Tcp, HTTP, HTTP)
            .selects("app", "reviews")
            .backend(reviews),
        Service::new(&run.namespace(Part::Exit), "istio-egressgateway", &vip(GATEWAY_VIP)?)
            .port(Protocol::Tcp, GATEWAY_SERVICE, GATEWAY)
            .selects("istio", "egressgateway")
            .backend(gateway),
    ])
}

impl Stage for Here {
    fn scene(&self) -> &Scene {
        &self.scene
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    async fn probe(
        &self,
        place: Place,
        user: Option<u32>,
        words: &[String],
        within: Duration,
    ) -> anyhow::Result<Vec<String>> {
        let mut argv: Vec<String> = user.map(|user| format!("--user={user}")).into_iter().collect();
        argv.extend_from_slice(words);
        let (topology, container) = (Arc::clone(&self.topology), self.containers.get(&place).cloned());
        let run = move || -> anyhow::Result<Vec<String>> {
            let exec = Exec::probe(&argv);
            let process = match container {
                Some(container) => container.spawn(&exec)?,
                None => topology.node_exec(&exec)?,
            };
            let finished = process.finish(within)?;
            if !finished.status.success() {
                bail!("{} ended with {}: {}", argv.join(" "), finished.status, finished.stderr);
            }
            Ok(finished.stdout.lines().map(str::to_owned).collect())
        };
        tokio::task::spawn_blocking(run).await.context("a program could not be waited for")?
    }

    async fn agent(&self, words: &[&str]) -> anyhow::Result<Option<String>> {
        let output = self.agent.borrow().ask(words)?;
        if !output.status.success() {
            return Ok(None);
        }
        Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    async fn policy(&self, mode: Option<Mode>) -> anyhow::Result<()> {
        let policy: Value = self.run.policy(mode.unwrap_or(Mode::Enforce), &self.scene.outside);
        match mode {
            Some(_) => kubernetes::write(&self.objects, &[policy]),
            None => kubernetes::remove(&self.objects, &policy),
        }
    }

    async fn accepted(&self) -> anyhow::Result<Option<Result<String, String>>> {
        // Objects in files have no status.
        Ok(None)
    }

    async fn kill_agent(&self) -> anyhow::Result<()> {
        self.agent.borrow_mut().kill()
    }

    async fn revive_agent(&self) -> anyhow::Result<()> {
        self.agent.borrow_mut().start(&self.topology)
    }

    async fn probes(&self) -> anyhow::Result<Option<Result<(), String>>> {
        // No kubelet probes here.
        Ok(None)
    }
}
