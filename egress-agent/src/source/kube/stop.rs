//! What the answers of an API server mean to who follows a kind.
//!
//! Invariant: a kind counts as not installed only where the API server itself says that its definition is not there. Tested by
//! `tests.rs`.

use std::time::Duration;

use egress_policy::object::Kind;
use kube::Client;
use tokio::time::timeout;

use super::wire::Garbage;

/// The longest wait that a busy server may ask for, in seconds.
const MOST_ASKED: u32 = 60;
/// The name of our own kind's definition.
pub(super) const DEFINITION: &str = "egressgatewaypolicies.egress-enforcer.io";

/// Why following a kind stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error("the version is not kept any more")]
    Gone,
    #[error("the server has no streaming lists")]
    NoStreaming,
    #[error("not installed")]
    NotInstalled,
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Busy(String, Duration),
    #[error(transparent)]
    Garbage(#[from] Garbage),
}

/// Where objects of a kind are.
pub(super) fn path(kind: Kind) -> &'static str {
    match kind {
        Kind::Pod => "/api/v1/pods",
        Kind::Namespace => "/api/v1/namespaces",
        Kind::Service => "/api/v1/services",
        Kind::Node => "/api/v1/nodes",
        Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        Kind::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
        Kind::EgressGatewayPolicy => "/apis/egress-enforcer.io/v1alpha1/egressgatewaypolicies",
    }
}

/// The kind's resource and API group, as RBAC names them.
pub(super) fn resource(kind: Kind) -> (&'static str, &'static str) {
    let group = kind.api_version().split_once('/').map_or("", |(group, _)| group);
    (path(kind).rsplit_once('/').map_or("", |(_, resource)| resource), group)
}

/// The server does not answer.
pub(super) fn silent(kind: Kind, verb: &str) -> Stop {
    Stop::Failed(format!("the API server does not answer ({verb} {})", resource(kind).0))
}

/// What an error of the API server means.
pub(super) async fn meaning(
    kind: Kind,
    client: &Client,
    verb: &str,
    error: kube::Error,
    answer: Duration,
) -> Stop {
    let (resource, group) = resource(kind);
    let kube::Error::Api(status) = error else {
        let error = anyhow::Error::from(error);
        return Stop::Unreachable(format!("cannot reach the API server ({verb} {resource}): {error:#}"));
    };
    match status.code {
        410 => Stop::Gone,
        401 => Stop::Refused(format!(
            "the API server does not accept the agent's credentials (an expired token?): {}",
            status.message
        )),
        403 => Stop::Failed(format!(
            "the agent may not {verb} {resource}: its ClusterRole needs the verbs list and watch on {resource} in API group {group:?} ({})",
            status.message
        )),
        429 | 503 => {
            let asked = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            let text =
                format!("the API server is busy ({verb} {resource}): {} {}", status.code, status.message);
            Stop::Busy(text, Duration::from_secs(asked.min(MOST_ASKED).into()))
        }
        404 if kind == Kind::EgressGatewayPolicy => is_installed(client, answer).await,
        code => Stop::Failed(format!("cannot {verb} {resource}: {code} {}", status.message)),
    }
}

/// Whether the kind is really not installed, or not served yet: a server that starts answers 404 for a moment as well, and that
/// must not take policies away.
async fn is_installed(client: &Client, answer: Duration) -> Stop {
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{DEFINITION}");
    let request = match http::Request::get(path).body(Vec::new()) {
        Ok(request) => request,
        Err(error) => return Stop::Failed(error.to_string()),
    };
    match timeout(answer, client.request_text(request)).await {
        // In the API server's own words: what stands before it may answer 404 as well.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 && status.reason == "NotFound" => {
            Stop::NotInstalled
        }
        Ok(Ok(_)) => Stop::Failed(format!("{DEFINITION} is installed, but not served yet")),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Stop::Failed(format!(
            "{DEFINITION} is not served, and the agent may not see whether it is installed: its ClusterRole needs the verb get on customresourcedefinitions in API group \"apiextensions.k8s.io\" ({})",
            status.message
        )),
        Ok(Err(error)) => Stop::Failed(format!("cannot see whether {DEFINITION} is installed: {error}")),
        Err(_) => silent(Kind::EgressGatewayPolicy, "get"),
    }
}
