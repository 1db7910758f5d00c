//! A container runtime, as far as the agent speaks to it: a real gRPC server at a real unix socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use egress_agent::cri::api::{
    Container, LIST_CONTAINERS, ListContainersRequest, ListContainersResponse, NAME, POD_NAME, POD_UID,
    VERSION, VersionRequest, VersionResponse,
};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::{Grpc, NamedService};
use tonic::transport::Server;
use tonic_prost::ProstCodec;
use tower::Service;

/// How it answers a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Answers,
    /// After a while.
    Slow(Duration),
    /// Never.
    Hangs,
    /// With an error.
    Refuses,
    /// With more than anybody should read.
    Floods,
}

#[derive(Debug)]
struct Shared {
    mood: Mutex<Mood>,
    containers: Mutex<BTreeMap<String, Container>>,
    lists: AtomicUsize,
}

/// It ends when it is dropped.
pub(crate) struct Runtime {
    socket: PathBuf,
    shared: Arc<Shared>,
    server: Option<tokio::runtime::Runtime>,
}

#[derive(Clone)]
struct Answering(Arc<Shared>);

impl NamedService for Answering {
    const NAME: &'static str = "runtime.v1.RuntimeService";
}

impl Service<Request<Body>> for Answering {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                VERSION => {
                    let codec: ProstCodec<VersionResponse, VersionRequest> = ProstCodec::default();
                    let answer = |_: tonic::Request<VersionRequest>| {
                        let (runtime_name, runtime_version) = ("fixture".to_owned(), "v1.2.3".to_owned());
                        let version = VersionResponse { runtime_name, runtime_version };
                        std::future::ready(Ok(tonic::Response::new(version)))
                    };
                    Grpc::new(codec).unary(tower::service_fn(answer), request).await
                }
                LIST_CONTAINERS => {
                    let codec: ProstCodec<ListContainersResponse, ListContainersRequest> =
                        ProstCodec::default();
                    let answer = move |request: tonic::Request<ListContainersRequest>| {
                        let shared = shared.clone();
                        async move { shared.list(&request.into_inner()).await.map(tonic::Response::new) }
                    };
                    Grpc::new(codec).unary(tower::service_fn(answer), request).await
                }
                other => tonic::Status::unimplemented(format!("unknown method {other}")).into_http(),
            })
        })
    }
}

impl Shared {
    async fn list(&self, request: &ListContainersRequest) -> Result<ListContainersResponse, tonic::Status> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Answers => {}
            Mood::Slow(delay) => tokio::time::sleep(delay).await,
            Mood::Hangs => std::future::pending().await,
            Mood::Refuses => return Err(tonic::Status::internal("the store\nis on fire")),
            Mood::Floods => {
                let id = "x".repeat(1 << 20);
                let one = Container { id, ..Container::default() };
                return Ok(ListContainersResponse { containers: vec![one; 20] });
            }
        }
        // As runtimes do: the beginning of an id is enough.
        let filter = request.filter.clone().unwrap_or_default();
        let all = self.containers.lock().unwrap();
        let containers = all
            .values()
            .filter(|one| {
                one.id.starts_with(&filter.id) && one.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
            })
            .cloned()
            .collect();
        Ok(ListContainersResponse { containers })
    }
}

impl Runtime {
    /// One that knows no containers yet.
    pub(crate) fn new(socket: &Path) -> Self {
        let shared = Arc::new(Shared {
            mood: Mutex::new(Mood::Answers),
            containers: Mutex::default(),
            lists: AtomicUsize::new(0),
        });
        let mut runtime = Self { socket: socket.to_owned(), shared, server: None };
        runtime.start();
        runtime
    }

    pub(crate) fn start(&mut self) {
        let server =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _inside = server.enter();
            tokio::net::UnixListener::bind(&self.socket).unwrap()
        };
        let incoming = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let answering = Answering(self.shared.clone());
        server.spawn(Server::builder().add_service(answering).serve_with_incoming(incoming));
        self.server = Some(server);
    }

    pub(crate) fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
        fs::remove_file(&self.socket).unwrap();
    }

    pub(crate) fn mood(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }

    /// How often it was asked for containers.
    pub(crate) fn lists(&self) -> usize {
        self.shared.lists.load(Ordering::SeqCst)
    }

    /// Makes it say that a container of this id is the one of this name in the pod of this UID, as kubelet told it.
    pub(crate) fn knows(&self, id: &str, name: &str, uid: &str) {
        self.knows_in("s", id, name, uid);
    }

    /// As [`Self::knows`], in the sandbox of this id.
    pub(crate) fn knows_in(&self, sandbox: &str, id: &str, name: &str, uid: &str) {
        self.knows_by(sandbox, id, &[(NAME, name), (POD_UID, uid), (POD_NAME, "any")]);
    }

    /// As [`Self::knows`], with all labels.
    pub(crate) fn knows_by(&self, sandbox: &str, id: &str, labels: &[(&str, &str)]) {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let container = Container { id: id.to_owned(), pod_sandbox_id: sandbox.to_owned(), labels };
        self.shared.containers.lock().unwrap().insert(id.to_owned(), container);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

/// Listens at a socket and says something that is no gRPC to whoever comes; nothing and never where `words` is empty.
pub(crate) fn babbles(socket: &Path, words: &'static [u8]) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // The test is over, or the agent is: nobody minds.
            let _ = stream.write_all(words);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
            let _ = stream.read(&mut [0; 64]);
            if words.is_empty() {
                kept.push(stream);
            }
        }
    });
}
