//! The API server: connecting, and the few verbs that are needed, on objects that are JSON.
//!
//! Invariant: an error is one sentence that names the verb and the object, and says what to do where that is known.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    ApiResource, AttachParams, AttachedProcess, DeleteParams, DynamicObject, GroupVersionKind, Patch,
    PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// How long the API server may take to answer anything but a watch or an exec.
const ANSWER: Duration = Duration::from_secs(30);

/// Which cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Access {
    /// The kubeconfig; otherwise $KUBECONFIG, ~/.kube/config, then the service account of the pod that this runs in.
    #[arg(long, env = "EGRESS_KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context in it; otherwise the current one.
    #[arg(long, env = "EGRESS_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
}

impl Access {
    /// Connects, and asks for the version to see whether somebody answers.
    pub(crate) async fn connect(&self) -> anyhow::Result<(Client, String)> {
        let config = self.config().await?;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config)
            .map_err(|error| anyhow!("cannot use the kubeconfig: {}", text(&error)))?;
        let version = tokio::time::timeout(ANSWER, client.apiserver_version())
            .await
            .map_err(|_| anyhow!("the API server {server} gave no answer within {} s", ANSWER.as_secs()))?
            .map_err(|error| anyhow!("cannot reach the API server {server}: {}", text(&error)))?;
        Ok((client, format!("{server}, version {}", version.git_version)))
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let loaded = match (&self.kubeconfig, &self.context) {
            (Some(path), _) => {
                let read = Kubeconfig::read_from(path)
                    .map_err(|error| anyhow!("cannot read the kubeconfig {}: {error}", path.display()))?;
                Config::from_custom_kubeconfig(read, &options).await.map_err(anyhow::Error::from)
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(anyhow::Error::from),
            (None, None) => Config::infer().await.map_err(anyhow::Error::from),
        };
        loaded
            .context("no cluster to talk to: give --kubeconfig FILE, and --context NAME where it has several")
    }
}

/// What an error says, to its last cause.
pub(crate) fn text(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if !text.contains(&cause.to_string()) {
            let _ = write!(text, ": {cause}");
        }
        next = cause.source();
    }
    text
}

/// Whether the server says that there is no such thing.
pub(crate) fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn is_there(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// An object by kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    api_version: String,
    kind: String,
    plural: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl Named {
    /// Of an object that has all of it. The plural of a kind is regular for all kinds that are used here.
    pub(crate) fn of(object: &Value) -> anyhow::Result<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let kind = text("/kind").context("an object without a kind")?;
        Ok(Self {
            api_version: text("/apiVersion").with_context(|| format!("a {kind} without an apiVersion"))?,
            plural: plural(&kind),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name").with_context(|| format!("a {kind} without a name"))?,
            kind,
        })
    }

    fn api(&self, client: &Client) -> Api<DynamicObject> {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        let kind = GroupVersionKind::gvk(group, version, &self.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &self.plural);
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        }
    }

    fn failed(&self, verb: &str, error: &kube::Error) -> anyhow::Error {
        let place = self.namespace.as_ref().map_or_else(String::new, |namespace| format!(" in {namespace}"));
        anyhow!("cannot {verb} {} {}{place}: {}", self.kind, self.name, text(error))
    }
}

/// The resource of a kind in lower case.
fn plural(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind.ends_with('s') => format!("{kind}es"),
        None => format!("{kind}s"),
    }
}

/// Makes an object that is not there yet.
pub(crate) async fn create(client: &Client, object: &Value) -> anyhow::Result<()> {
    let named = Named::of(object)?;
    let dynamic: DynamicObject = serde_json::from_value(object.clone())?;
    named
        .api(client)
        .create(&PostParams::default(), &dynamic)
        .await
        .map(drop)
        .map_err(|error| named.failed("create", &error))
}

/// Makes an object be as written, whoever wrote it before (server-side apply).
pub(crate) async fn apply(client: &Client, object: &Value) -> anyhow::Result<()> {
    let named = Named::of(object)?;
    let params = PatchParams::apply("egress-xtask").force();
    named
        .api(client)
        .patch(&named.name, &params, &Patch::Apply(object))
        .await
        .map(drop)
        .map_err(|error| named.failed("apply", &error))
}

/// Removes an object and what depends on it; one that is not there is no error.
pub(crate) async fn delete(client: &Client, named: &Named) -> anyhow::Result<()> {
    match named.api(client).delete(&named.name, &DeleteParams::background()).await {
        Err(error) if !is_absent(&error) && !is_there(&error) => Err(named.failed("delete", &error)),
        _ => Ok(()),
    }
}

/// An object as it is now, if it is there.
pub(crate) async fn get(client: &Client, named: &Named) -> anyhow::Result<Option<Value>> {
    let found = named.api(client).get_opt(&named.name).await.map_err(|error| named.failed("get", &error))?;
    Ok(found.map(serde_json::to_value).transpose()?)
}

/// What came of a program in a container.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// What the cluster says of its end, where that was no success.
    pub(crate) failure: Option<String>,
}

/// A container of a running pod.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
}

/// Runs a program in a container and waits for its end.
pub(crate) async fn exec(
    client: &Client,
    place: &Container,
    argv: &[String],
    within: Duration,
) -> anyhow::Result<Finished> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &place.namespace);
    let Container { namespace, pod, container } = place;
    let what = || format!("{} in {namespace}/{pod}/{container}", argv.join(" "));
    let params = AttachParams::default().container(container.clone()).stdin(false).stdout(true).stderr(true);
    let run = async {
        let mut attached = pods
            .exec(pod, argv.to_vec(), &params)
            .await
            .map_err(|error| anyhow!("cannot run {}: {}", what(), text(&error)))?;
        let status = attached.take_status();
        let (mut out, mut err) = (attached.stdout(), attached.stderr());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        // Both at once: whoever is not read blocks the other.
        let read_out = async {
            match &mut out {
                Some(out) => out.read_to_end(&mut stdout).await.map(drop),
                None => Ok(()),
            }
        };
        let read_err = async {
            match &mut err {
                Some(err) => err.read_to_end(&mut stderr).await.map(drop),
                None => Ok(()),
            }
        };
        let (read_out, read_err) = tokio::join!(read_out, read_err);
        read_out.and(read_err).with_context(what)?;
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        let failure = match status {
            Some(status) if status.status.as_deref() == Some("Success") => None,
            Some(status) => Some(status.message.or(status.reason).unwrap_or_else(|| "failed".to_owned())),
            None => Some("the connection ended before the program".to_owned()),
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        anyhow::Ok(Finished { stdout: text(stdout), stderr: text(stderr), failure })
    };
    tokio::time::timeout(within, run)
        .await
        .map_err(|_| anyhow!("{} took longer than {} s", what(), within.as_secs()))?
}

/// The lines of a program that runs in a container; dropping it ends the connection.
pub(crate) struct Lines {
    lines: tokio::io::Lines<BufReader<Box<dyn AsyncRead + Unpin>>>,
    _attached: AttachedProcess,
}

impl Lines {
    /// The next line; an error where the program has ended.
    pub(crate) async fn next(&mut self, within: Duration) -> anyhow::Result<String> {
        let line = tokio::time::timeout(within, self.lines.next_line()).await;
        line.context("the program in the pod says nothing")??.context("the program in the pod has ended")
    }
}

/// Starts a program in a container, to read its lines as they come.
pub(crate) async fn start(client: &Client, place: &Container, argv: &[String]) -> anyhow::Result<Lines> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &place.namespace);
    let params = AttachParams::default().container(place.container.clone()).stdin(false).stderr(false);
    let attached = pods.exec(&place.pod, argv.to_vec(), &params).await;
    let mut attached =
        attached.map_err(|error| anyhow!("cannot run {}: {}", argv.join(" "), text(&error)))?;
    let out: Box<dyn AsyncRead + Unpin> = Box::new(attached.stdout().context("no output is attached")?);
    Ok(Lines { lines: BufReader::new(out).lines(), _attached: attached })
}

/// Runs a program that must succeed, and gives what it printed.
pub(crate) async fn exec_ok(
    client: &Client,
    place: &Container,
    argv: &[String],
    within: Duration,
) -> anyhow::Result<String> {
    let finished = exec(client, place, argv, within).await?;
    if let Some(failure) = finished.failure {
        bail!(
            "{} in {}/{}/{}: {failure}: {}",
            argv.join(" "),
            place.namespace,
            place.pod,
            place.container,
            finished.stderr.trim()
        );
    }
    Ok(finished.stdout)
}

/// The objects of a text with one or more YAML documents; lists are taken apart, empty documents left out.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for document in serde_saphyr::from_multiple::<Value>(text)? {
        match document.get("items").and_then(Value::as_array) {
            Some(items) if document["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => {
                objects.extend(items.iter().cloned());
            }
            _ if document.is_null() => {}
            _ => objects.push(document),
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_regular_plurals() {
        for (kind, resource) in [
            ("Pod", "pods"),
            ("NetworkPolicy", "networkpolicies"),
            ("EgressGatewayPolicy", "egressgatewaypolicies"),
            ("PriorityClass", "priorityclasses"),
            ("Lease", "leases"),
        ] {
            assert_eq!(plural(kind), resource);
        }
    }

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let text = "---\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: A}\n- {kind: B}\n---\nkind: C\n";
        let kinds: Vec<String> = parse(text).unwrap().iter().map(|one| one["kind"].to_string()).collect();
        assert_eq!(kinds, ["\"A\"", "\"B\"", "\"C\""]);
        assert!(parse("a: [").is_err());
    }
}
