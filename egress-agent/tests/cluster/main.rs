//! What the agent writes to the API server, against a server in the test. Clocks are stopped, so that minutes take no time;
//! therefore requests take no sockets, which tokio's clock does not wait for.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod events;
mod lease;
mod status;
mod taint;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use egress_agent::admin::server::Published;
use egress_agent::cluster::{Cluster, ServiceStatus, Settings, TAINT, spawn};
use egress_agent::flow::Flow;
use egress_fixture::Fixture;
use kube::Client;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep};

const NODE: &str = "node-a";

/// An agent's services, and the ends that feed them.
struct Services {
    cluster: Cluster,
    published: watch::Sender<Arc<Published>>,
    flows: broadcast::Sender<Arc<Flow>>,
    connected: Arc<AtomicBool>,
}

/// Starts the services of an agent, with a connection of its own to the API server.
fn services(fixture: &Fixture, node: &str, lift_taint: bool) -> Services {
    let connected = Arc::new(AtomicBool::new(true));
    let client = cable(fixture.client_without_socket(), Arc::clone(&connected));
    let (published, receiver) = watch::channel(Arc::default());
    let flows = broadcast::channel(4096).0;
    let settings = Settings {
        node: node.to_owned(),
        namespace: "egress-enforcer".to_owned(),
        lift_taint: lift_taint.then(|| TAINT.to_owned()),
    };
    let cluster = spawn(client, &settings, receiver, flows.subscribe());
    Services { cluster, published, flows, connected }
}

/// A client whose requests are never answered while it is not connected.
fn cable(client: Client, connected: Arc<AtomicBool>) -> Client {
    let service = tower::service_fn(move |request| {
        let (client, connected) = (client.clone(), Arc::clone(&connected));
        async move {
            if !connected.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            client.send(request).await
        }
    });
    Client::new(service, "default")
}

impl Services {
    fn connect(&self, connected: bool) {
        self.connected.store(connected, Ordering::SeqCst);
    }

    fn service(&self, name: &str) -> ServiceStatus {
        self.cluster.services().into_iter().find(|one| one.name == name).unwrap()
    }

    async fn until_state(&self, name: &str, state: &str) -> ServiceStatus {
        until(state, || Some(self.service(name)).filter(|service| service.state == state)).await
    }
}

/// Waits until something is there.
async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_mins(30), "waited for: {what}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_plain_yes_is_the_usual_taint() {
    let lifted = |key: &str| Settings::new(NODE.to_owned(), None, Some(key.to_owned())).lift_taint;
    for (given, expected) in [("", None), ("false", None), ("true", Some(TAINT)), ("a/b", Some("a/b"))] {
        assert_eq!(lifted(given).as_deref(), expected, "{given}");
    }
    assert_eq!(Settings::new(NODE.to_owned(), Some("own".to_owned()), None).namespace, "own");
}
