//! From a request to its answer, and from a socket to a request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};

use crate::answer::{Answer, Failure, body, json, nothing_here, too_many_requests, whole};
use crate::fault::{Fault, Verb};
use crate::read::{self, Query};
use crate::resources::{Path, parse};
use crate::state::{Recorded, Shared};
use crate::{watch, write};

/// What is no JSON.
const GARBAGE: &[u8] = b"\x00\xff\xfe{\"type\":<html>502 Bad Gateway</html>\n\n]}{\"\n";

/// Answers a request; an error closes its connection without one.
pub(crate) async fn answer(shared: Arc<Shared>, request: Request<Bytes>) -> io::Result<Answer> {
    let (parts, sent) = request.into_parts();
    let query: Query = parts
        .uri
        .query()
        .map(|text| form_urlencoded::parse(text.as_bytes()).into_owned().collect())
        .unwrap_or_default();
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = header(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
    let path = parse(parts.uri.path());
    let verb = path.as_ref().and_then(|path| verb(&parts.method, path, &query));
    let (settings, fault) = {
        let mut state = shared.lock();
        if state.down {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        state.requests.push(Recorded {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: query.clone(),
            body: serde_json::from_slice(&sent).unwrap_or_default(),
            content_type: media.clone(),
            resource: path.as_ref().map(|path| path.resource.plural.to_owned()).unwrap_or_default(),
            verb,
        });
        let strike = path.as_ref().zip(verb);
        let fault = strike.and_then(|(path, verb)| state.fault(path.resource, path.status, verb));
        (state.settings.clone(), fault)
    };
    shared.tell();
    if settings.token.is_some_and(|token| header(header::AUTHORIZATION) != format!("Bearer {token}")) {
        return Ok(Failure::unauthorized().answer());
    }
    let Some((path, verb)) = path.zip(verb) else {
        return Ok(elsewhere(parts.uri.path()).unwrap_or_else(|| nothing_here(settings.newer_not_found)));
    };
    if let Some(fault) = &fault
        && let Some(instead) = instead(fault, &path, verb, &settings.user, settings.newer_not_found).await
    {
        return instead;
    }
    if !shared.lock().serves(path.resource) {
        return Ok(nothing_here(settings.newer_not_found));
    }
    let name = path.name.unwrap_or_default();
    let stale = match fault {
        Some(Fault::Stale(version)) => Some(version),
        _ => None,
    };
    let answer = match verb {
        Verb::Get => read::get(&shared, &path, name),
        Verb::List => read::list(&shared, &path, &query, stale).await,
        Verb::Watch => watch::watch(&shared, &path, &query, fault.as_ref()).await,
        Verb::Create => write::create(&shared, &path, &sent),
        Verb::Update => write::update(&shared, &path, name, &sent),
        Verb::Patch => write::patch(&shared, &path, name, (&media, &query, &sent)),
        Verb::Delete => write::delete(&shared, &path, name, &sent),
    };
    let answer = answer.unwrap_or_else(|failure| failure.answer());
    match fault {
        Some(fault) => spoil(fault, answer, verb).await,
        None => Ok(answer),
    }
}

/// What a request does; `None` for what is not served, such as deleting a whole collection.
fn verb(method: &Method, path: &Path<'_>, query: &Query) -> Option<Verb> {
    let watches = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    Some(match (method.as_str(), path.name.is_some()) {
        ("GET", true) => Verb::Get,
        ("GET", false) if watches => Verb::Watch,
        ("GET", false) => Verb::List,
        ("POST", false) => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) if !path.status => Verb::Delete,
        _ => return None,
    })
}

/// Paths that are no resources.
fn elsewhere(path: &str) -> Option<Answer> {
    match path {
        "/version" => {
            let version =
                r#"{"major":"1","minor":"34","gitVersion":"v1.34.0+fixture","platform":"linux/amd64"}"#;
            Some(json(StatusCode::OK, version))
        }
        "/readyz" | "/livez" | "/healthz" => Some(whole(StatusCode::OK, "text/plain; charset=utf-8", "ok")),
        _ => None,
    }
}

/// The answer of faults that come before what is asked for.
async fn instead(
    fault: &Fault,
    path: &Path<'_>,
    verb: Verb,
    user: &str,
    newer_not_found: bool,
) -> Option<io::Result<Answer>> {
    let name = path.name.unwrap_or_default();
    Some(Ok(match fault {
        Fault::Unauthorized => Failure::unauthorized().answer(),
        Fault::Forbidden => {
            Failure::forbidden(user, verb.name(), path.resource, path.namespace, name, path.status).answer()
        }
        Fault::NothingHere => nothing_here(newer_not_found),
        Fault::Expired => Failure::too_old(1, 2).answer(),
        Fault::TooManyRequests(seconds) => too_many_requests(*seconds),
        Fault::Initializing => Failure::initializing().answer(),
        Fault::Internal => Failure::internal("etcdserver: request timed out").answer(),
        Fault::Unavailable => Failure::unavailable().answer(),
        Fault::Failure(failure) => failure.answer(),
        Fault::Refused => return Some(Err(watch::broken())),
        Fault::Silent => std::future::pending().await,
        Fault::Garbage => json(StatusCode::OK, GARBAGE),
        Fault::Stalled
        | Fault::Delay(_)
        | Fault::Dribble(..)
        | Fault::CutAfter(_)
        | Fault::CutInside(_)
        | Fault::EndAfter(_)
        | Fault::Duplicate
        | Fault::Stale(_)
        | Fault::Lost => return None,
    }))
}

/// What faults make of an answer.
async fn spoil(fault: Fault, answer: Answer, verb: Verb) -> io::Result<Answer> {
    let (head, sent) = answer.into_parts();
    match fault {
        Fault::Lost => Err(watch::broken()),
        Fault::Delay(time) => {
            tokio::time::sleep(time).await;
            Ok(Answer::from_parts(head, sent))
        }
        Fault::Stalled => {
            // What was asked for stays open behind it, so that a stalled watch still stands.
            let stalled = stream::once(async move {
                let _open = sent;
                std::future::pending().await
            });
            Ok(Answer::from_parts(head, body(stalled)))
        }
        Fault::Dribble(most, pause) => {
            let pieces = sent.into_data_stream().flat_map(move |chunk| {
                let pieces: Vec<io::Result<Bytes>> = match chunk {
                    Ok(chunk) => {
                        chunk.chunks(most.max(1)).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect()
                    }
                    Err(error) => vec![Err(error)],
                };
                stream::iter(pieces).then(move |piece| async move {
                    tokio::time::sleep(pause).await;
                    piece
                })
            });
            Ok(Answer::from_parts(head, body(pieces)))
        }
        Fault::CutAfter(_) | Fault::CutInside(_) if verb != Verb::Watch => {
            let text = http_body_util::BodyExt::collect(sent).await?.to_bytes();
            let half = text.slice(..text.len() / 2);
            let broken = stream::once(async { Err(watch::break_off().await) });
            Ok(Answer::from_parts(head, body(stream::iter([Ok(half)]).chain(broken))))
        }
        _ => Ok(Answer::from_parts(head, sent)),
    }
}

/// The listening side. Dropping it closes every connection.
pub(crate) struct Server {
    /// The address, which stays the same over restarts.
    pub address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
    /// Keeps the port while nothing listens there, so that connections are refused.
    reserved: Option<TcpSocket>,
}

impl Server {
    pub(crate) fn start(shared: &Arc<Shared>) -> anyhow::Result<Self> {
        let socket = reserve(([127, 0, 0, 1], 0).into())?;
        let address = socket.local_addr().context("a bound socket has an address")?;
        let mut server = Self { address, accepting: None, reserved: Some(socket) };
        server.up(shared)?;
        Ok(server)
    }

    /// Listens again.
    pub(crate) fn up(&mut self, shared: &Arc<Shared>) -> anyhow::Result<()> {
        let Some(socket) = self.reserved.take() else {
            return Ok(());
        };
        let listener = socket.listen(1024).context("cannot listen")?;
        self.accepting = Some(tokio::spawn(accept(listener, Arc::clone(shared))));
        Ok(())
    }

    /// Closes every connection, and refuses new ones.
    pub(crate) async fn down(&mut self) -> anyhow::Result<()> {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // Only then are listener and connections closed.
            let _ = accepting.await;
            self.reserved = Some(reserve(self.address)?);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

fn reserve(address: SocketAddr) -> anyhow::Result<TcpSocket> {
    let socket = TcpSocket::new_v4().context("cannot make a socket")?;
    socket.set_reuseaddr(true).context("cannot share the port with connections that end")?;
    socket.bind(address).with_context(|| format!("cannot bind {address}"))?;
    Ok(socket)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // The connections go with the set, and the set with this task.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let shared = Arc::clone(&shared);
                async move {
                    let (parts, sent) = request.into_parts();
                    let sent = sent.collect().await.map_err(io::Error::other)?.to_bytes();
                    answer(shared, Request::from_parts(parts, sent)).await
                }
            });
            // A client that goes away is no error of ours.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The same without a socket: for tests that stop the clock, which runs on while sockets are waited for.
pub(crate) fn client(shared: &Arc<Shared>) -> kube::Client {
    let shared = Arc::clone(shared);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let shared = Arc::clone(&shared);
        async move {
            let (parts, sent) = request.into_parts();
            let sent = sent.collect_bytes().await.map_err(io::Error::other)?;
            answer(shared, Request::from_parts(parts, sent)).await
        }
    });
    kube::Client::new(service, "default")
}
