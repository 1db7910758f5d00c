//! How the API server is reached: a kubeconfig, or the ServiceAccount of the agent's pod.
//!
//! Invariant: what is missing here is never the end of the agent: it is named, and looked for again.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::Mutex;

/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes the client that all watches share, when it is first asked for.
#[derive(Default)]
pub(crate) struct Connector {
    kubeconfig: Option<PathBuf>,
    /// The client, and how many there were before it.
    client: Mutex<(Option<Client>, u64)>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Connector {
    /// By this kubeconfig, or by what is found as kubectl finds it, and in a pod.
    pub(crate) fn new(kubeconfig: Option<PathBuf>) -> Self {
        Self { kubeconfig, ..Self::default() }
    }

    /// By this client, until it is refused.
    #[cfg(test)]
    pub(super) fn with(client: Client) -> Self {
        Self { client: Mutex::new((Some(client), 0)), ..Self::default() }
    }

    /// The client, with a number that [`refused`](Self::refused) takes.
    ///
    /// # Errors
    /// There is no configuration, or it cannot be used.
    pub(crate) async fn client(&self) -> anyhow::Result<(Client, u64)> {
        let mut place = self.client.lock().await;
        if place.0.is_none() {
            place.0 = Some(self.connect().await?);
        }
        let client = place.0.clone().context("no client")?;
        Ok((client, place.1))
    }

    /// The client, where it was made, with its number.
    pub(crate) fn made(&self) -> Option<(Client, u64)> {
        let place = self.client.try_lock().ok()?;
        Some((place.0.clone()?, place.1))
    }

    /// The server did not accept who we are, or has not been reached for long: the configuration is read anew, once for
    /// all who were refused with it. The token of a ServiceAccount is read anew by the client itself.
    pub(crate) async fn refused(&self, number: u64) {
        let mut place = self.client.lock().await;
        if place.1 == number {
            *place = (None, number + 1);
        }
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?
            }
            None => Config::infer().await.context(
                "found neither a kubeconfig (--kubeconfig, KUBECONFIG, ~/.kube/config) nor the ServiceAccount of a pod",
            )?,
        };
        config.connect_timeout = Some(CONNECT);
        // Each watch waits by itself, and says that it does.
        config.default_retry = false;
        Client::try_from(config).context("cannot set up the connection to the API server")
    }
}
