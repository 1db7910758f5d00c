//! A connection to one runtime.
//!
//! Invariant: every question ends: with an answer, or with an error after [`DEADLINE`]. Only a socket of root is asked. Tested by
//! `tests/cri/`, with runtimes that hang, end, lie and talk nonsense.

use std::error::Error;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::api::{
    Container, ContainerFilter, LIST_CONTAINERS, ListContainersRequest, ListContainersResponse, VERSION,
    VersionRequest, VersionResponse,
};

/// How long a runtime may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// The most bytes of an answer, as kubelet has it: the list of all containers of a node.
const LARGEST: usize = 16 * 1024 * 1024;
/// The most of a runtime's words that is repeated.
const WORDS: usize = 200;

/// Why a runtime gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silent {
    /// Nothing is there.
    #[error("there is no such socket")]
    Absent,
    /// Something else is there.
    #[error("it is not a socket of root's")]
    Foreign,
    /// Nobody takes the connection, or it broke.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// It says no.
    #[error("it answers {0}")]
    Refused(String),
    /// It took too long.
    #[error("no answer within {} seconds", DEADLINE.as_secs())]
    Slow,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    grpc: Grpc<Channel>,
}

impl Client {
    /// Connects; gives back who answers, too.
    pub(super) async fn connect(socket: &Path) -> Result<(Self, String), Silent> {
        let about = match tokio::fs::metadata(socket).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Silent::Absent),
            about => about.map_err(|error| Silent::Unreachable(error.to_string()))?,
        };
        // Who can put a socket there could name containers.
        if !about.file_type().is_socket() || about.uid() != 0 {
            return Err(Silent::Foreign);
        }
        let told = |error: tonic::transport::Error| Silent::Unreachable(root_cause(&error));
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(told)?;
        let channel = within(async { endpoint.connect().await.map_err(told) }).await?;
        let mut client = Self { grpc: Grpc::new(channel).max_decoding_message_size(LARGEST) };
        let name = client.name().await?;
        Ok((client, name))
    }

    /// Who answers.
    pub(super) async fn name(&mut self) -> Result<String, Silent> {
        let request = VersionRequest { version: "v1".to_owned() };
        let version: VersionResponse = self.call(VERSION, request).await?;
        Ok(plain(&format!("{} {}", version.runtime_name, version.runtime_version)))
    }

    /// All containers.
    pub(super) async fn containers(&mut self) -> Result<Vec<Container>, Silent> {
        self.list(None).await
    }

    /// The container with this id, or those whose sandbox has it.
    pub(super) async fn containers_of(&mut self, id: &str) -> Result<Vec<Container>, Silent> {
        let by_id = ContainerFilter { id: id.to_owned(), ..ContainerFilter::default() };
        let found = self.list(Some(by_id)).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        self.list(Some(ContainerFilter { pod_sandbox_id: id.to_owned(), ..ContainerFilter::default() })).await
    }

    async fn list(&mut self, filter: Option<ContainerFilter>) -> Result<Vec<Container>, Silent> {
        let list: ListContainersResponse =
            self.call(LIST_CONTAINERS, ListContainersRequest { filter }).await?;
        Ok(list.containers)
    }

    async fn call<Q, A>(&mut self, path: &'static str, request: Q) -> Result<A, Silent>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let call = async {
            self.grpc.ready().await.map_err(|error| Silent::Unreachable(root_cause(&error)))?;
            let path = PathAndQuery::from_static(path);
            let answer = self.grpc.unary(tonic::Request::new(request), path, ProstCodec::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| {
                let words =
                    if status.message().is_empty() { root_cause(&status) } else { plain(status.message()) };
                Silent::Refused(format!("{:?}: {words}", status.code()))
            })
        };
        within(call).await
    }
}

async fn within<T>(work: impl Future<Output = Result<T, Silent>>) -> Result<T, Silent> {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Silent::Slow))
}

/// The last of an error's causes, which says what happened.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    plain(&cause.to_string())
}

/// What somebody else wrote, fit for a line of a log.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(WORDS)
        .collect::<String>()
        .trim()
        .to_owned()
}
