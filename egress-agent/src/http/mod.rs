//! The port of `run --listen`: `/metrics`, `/healthz`, `/readyz`.
//!
//! Invariant: who asks reads what is published and changes nothing; who is slow, or many, takes nothing from others, because a
//! connection has one request, little room, one deadline, and its address few places. Tested below and by `tests/operate.rs`.

mod places;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::admin::server::Published;
use crate::health::Health;
use crate::metrics::{Meters, Metrics, OPENMETRICS, PLAIN};
use places::Places;

/// How long a client may take to say what it wants,
const HEAD: Duration = Duration::from_secs(5);
/// and for everything together.
const WHOLE: Duration = Duration::from_secs(15);
/// Room for the head of a request, and for what waits to be sent; the least that the library takes.
const ROOM: usize = 8192;
/// Most lines in the head of a request.
const HEADERS: usize = 64;

/// What the answers are made of.
#[derive(Clone)]
struct Answers {
    published: watch::Receiver<Arc<Published>>,
    meters: Arc<Meters>,
    metrics: Arc<Metrics>,
}

impl Answers {
    fn health(&self) -> Health {
        Health::of(&self.published.borrow(), &self.meters, None)
    }
}

/// The listening port.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
}

impl Http {
    /// Listens at an address.
    ///
    /// # Errors
    /// It is taken, or none of this node's.
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen at {address}, as --listen says"))?;
        Ok(Self { listener })
    }

    /// Answers until dropped.
    pub async fn serve(self, published: watch::Receiver<Arc<Published>>, meters: Arc<Meters>) {
        let router = router(published, Arc::clone(&meters));
        let places = Places::default();
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let local = stream.local_addr().map(|local| local.ip());
                    let Some(place) = local.ok().and_then(|local| places.take(peer.ip(), local)) else {
                        meters.refuse();
                        continue;
                    };
                    let router = router.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        // Who is not done by then has had the time.
                        let _ = tokio::time::timeout(WHOLE, answer(stream, router)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept at the port of --listen");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(ROOM)
        .max_headers(HEADERS)
        // A connection kept open would be a place kept.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a client of the port of --listen went away");
    }
}

fn router(published: watch::Receiver<Arc<Published>>, meters: Arc<Meters>) -> Router {
    let metrics = Arc::new(Metrics::new(published.clone(), Arc::clone(&meters)));
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Answers { published, meters, metrics })
}

async fn metrics_text(State(answers): State<Answers>, headers: HeaderMap) -> Response {
    let accepts = |value: &axum::http::HeaderValue| {
        value.to_str().is_ok_and(|value| value.contains("application/openmetrics-text"))
    };
    let openmetrics = headers.get_all(ACCEPT).iter().any(accepts);
    match answers.metrics.encode(openmetrics) {
        Ok(text) => ([(CONTENT_TYPE, if openmetrics { OPENMETRICS } else { PLAIN })], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn healthz(State(answers): State<Answers>) -> (StatusCode, String) {
    said(answers.health().alive())
}

async fn readyz(State(answers): State<Answers>) -> (StatusCode, String) {
    said(answers.health().ready())
}

fn said(health: Result<&'static str, String>) -> (StatusCode, String) {
    match health {
        Ok(text) => (StatusCode::OK, text.to_owned()),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

#[cfg(test)]
mod tests {
    use super::{Answers, Http};
    use crate::admin::server::Published;
    use crate::metrics::{Meters, Metrics};
    use crate::status::Status;
    use axum::extract::State;
    use axum::http::StatusCode;
    use std::sync::Arc;
    use std::time::{Duration, Instant};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::watch;

    #[tokio::test]
    async fn who_is_not_ready_is_alive() {
        let pending = vec!["the source".to_owned()];
        let status = Status { pending, ..Status::default() };
        let (_publish, published) = watch::channel(Arc::new(Published { status, ..Published::default() }));
        let meters = Arc::new(Meters::default());
        let metrics = Arc::new(Metrics::new(published.clone(), meters.clone()));
        let answers = Answers { published, meters, metrics };
        let (code, text) = super::readyz(State(answers.clone())).await;
        assert_eq!((code, &*text), (StatusCode::SERVICE_UNAVAILABLE, "not ready\n- the source\n"));
        assert_eq!(super::healthz(State(answers)).await, (StatusCode::OK, "ok\n".to_owned()));
    }

    async fn serve() -> std::net::SocketAddr {
        let http = Http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = http.listener.local_addr().unwrap();
        let (publish, published) = watch::channel(Arc::new(Published::default()));
        tokio::spawn(async move {
            let _publish = publish;
            http.serve(published, Arc::default()).await;
        });
        address
    }

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn slow_clients_are_cut_off_and_others_are_answered_meanwhile() {
        let address = serve().await;
        let begun = Instant::now();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /healthz HT").await.unwrap();
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(begun.elapsed() < Duration::from_secs(2), "nobody waits for the slow one");
        let drip = tokio::spawn(async move {
            let (mut reader, mut writer) = slow.into_split();
            let write = async {
                while writer.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            };
            let read = async { reader.read_to_end(&mut Vec::new()).await.map_err(drop) };
            tokio::select! { () = write => {}, _ = read => {} }
        });
        tokio::time::timeout(super::HEAD + Duration::from_secs(3), drip).await.unwrap().unwrap();
        assert!(begun.elapsed() > Duration::from_secs(3), "it had its time");
    }

    #[tokio::test]
    async fn requests_that_are_too_large_or_of_another_kind_are_refused() {
        let address = serve().await;
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
        assert!(get(address, "/metrics").await.starts_with("HTTP/1.1 200"));
        let long = get(address, &format!("/{}", "a".repeat(20_000))).await;
        assert!(!long.contains(" 200 ") && !long.contains(" 404 "), "{long}");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 405"), "{text}");
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let address = serve().await;
        let error = format!("{:#}", Http::bind(address).await.unwrap_err());
        assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
        assert!(error.contains("in use"), "{error}");
    }
}
