//! The agent's end of the admin socket.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::{FlowLine, Question, Request};
use crate::flow::Flow;
use crate::health::Health;
use crate::metrics::{Measured, Meters};
use crate::offline::Told;
use crate::status::{EndpointStatus, Status};

/// Flows kept for those who ask later.
const REMEMBERED: usize = 4096;
/// How long a reader may take to ask, and to take a line.
const PATIENCE: Duration = Duration::from_secs(10);
/// Readers at a time; more wait until one has gone.
const READERS: usize = 64;
/// Most of those who ask, or wait for a place.
const WAITING: usize = 64;
/// Longest request: `simulate` brings its flows along.
const REQUEST_BYTES: u64 = 16 << 20;
/// How long an answer may take that has to be thought about.
const THOUGHT: Duration = Duration::from_secs(60);

/// What is published for readers: replaced as a whole, never changed.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Answer to [`Request::Status`].
    pub status: Status,
    /// Answer to [`Request::Endpoints`].
    pub endpoints: Vec<EndpointStatus>,
    /// What only metrics tell.
    pub measured: Measured,
}

impl Published {
    /// What there is to say before the first look.
    #[must_use]
    pub fn starting(node: String) -> Self {
        let pending = vec!["the agent is starting: its first look is not done".to_owned()];
        Self { status: Status { node, pending, ..Status::default() }, ..Self::default() }
    }
}

/// What tells how the agent does, beside what is published.
#[derive(Clone, Debug)]
pub struct Vitals {
    /// When the loop turned last.
    pub meters: Arc<Meters>,
    /// The pod that the agent runs in.
    pub pod: Option<String>,
}

/// A question to the owner task.
#[derive(Debug)]
pub struct Asked {
    /// The question.
    pub question: Question,
    /// Where the answer goes: what there is to tell, or why there is nothing.
    pub reply: oneshot::Sender<Result<Told, String>>,
}

/// Flows on their way to whoever asked.
#[derive(Clone, Debug)]
pub struct FlowLog {
    recent: Arc<Mutex<VecDeque<Arc<Flow>>>>,
    live: broadcast::Sender<Arc<Flow>>,
}

impl Default for FlowLog {
    fn default() -> Self {
        Self { recent: Arc::default(), live: broadcast::channel(REMEMBERED).0 }
    }
}

impl FlowLog {
    /// Remembers a flow and hands it to those who follow, and back.
    pub fn push(&self, flow: Flow) -> Arc<Flow> {
        let flow = Arc::new(flow);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&flow));
        // Without followers nobody takes it; sent under the lock, so that a new follower misses none and sees none twice.
        let _ = self.live.send(Arc::clone(&flow));
        flow
    }

    /// The flows from now on, for readers inside the agent.
    #[must_use]
    pub fn live(&self) -> broadcast::Receiver<Arc<Flow>> {
        self.live.subscribe()
    }

    fn subscribe(&self) -> (Vec<Arc<Flow>>, broadcast::Receiver<Arc<Flow>>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        (recent.iter().cloned().collect(), self.live.subscribe())
    }
}

/// The listening socket; removed when dropped, unless it is another agent's by then, which has taken the lock.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|now| now.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Server {
    /// Listens at `path`. What a killed agent left there is removed: the caller holds the node's lock.
    ///
    /// # Errors
    /// The directory or the socket cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot restrict {}", path.display()))?;
        let inode = fs::metadata(path).with_context(|| format!("cannot see {}", path.display()))?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Answers until dropped. What only the owner task can answer is handed to it, one question at a time.
    pub async fn serve(
        self,
        published: watch::Receiver<Arc<Published>>,
        vitals: Vitals,
        flows: FlowLog,
        owner: mpsc::Sender<Asked>,
    ) {
        let owner = Arc::new(tokio::sync::Mutex::new(owner));
        let places = Arc::new(Semaphore::new(READERS));
        let waiting = Arc::new(Semaphore::new(WAITING));
        loop {
            let Ok(waits) = Arc::clone(&waiting).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let places = Arc::clone(&places);
                    let (published, flows, owner) = (published.clone(), flows.clone(), owner.clone());
                    let vitals = vitals.clone();
                    tokio::spawn(async move {
                        if let Err(error) =
                            answer(stream, (waits, &places), &published, &vitals, &flows, &owner).await
                        {
                            tracing::debug!(%error, "a reader of the admin socket went away");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept at the admin socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn answer(
    stream: UnixStream,
    (waits, places): (OwnedSemaphorePermit, &Semaphore),
    published: &watch::Receiver<Arc<Published>>,
    vitals: &Vitals,
    flows: &FlowLog,
    owner: &tokio::sync::Mutex<mpsc::Sender<Asked>>,
) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES));
    let mut line = String::new();
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let request: Request = serde_json::from_str(&line).context("not a request")?;
    // Who follows flows has a place for as long as it likes: kubelet, who asks for nothing but this, needs none.
    let _place = match request {
        Request::Health => None,
        _ => Some(timeout(PATIENCE, places.acquire()).await.context("too many readers")??),
    };
    drop(waits);
    let now = Arc::clone(&published.borrow());
    match request {
        Request::Health => {
            let Vitals { meters, pod } = vitals;
            send(&mut writer, &Health::of(&now, meters, pod.clone())).await?;
        }
        Request::Status => send(&mut writer, &now.status).await?,
        Request::Endpoints => {
            for endpoint in &now.endpoints {
                send(&mut writer, endpoint).await?;
            }
        }
        Request::Ask(question) => {
            let told = timeout(THOUGHT, ask(owner, question)).await;
            let told = told.unwrap_or_else(|_| Err(format!("no answer within {} s", THOUGHT.as_secs())));
            send(&mut writer, &told).await?;
        }
        Request::Flows { follow } => {
            let (recent, mut live) = flows.subscribe();
            for flow in recent {
                send(&mut writer, &*flow).await?;
            }
            if !follow {
                return Ok(());
            }
            loop {
                let next = tokio::select! {
                    next = live.recv() => next,
                    // The reader says nothing more; that it can be read from means that it went.
                    _ = reader.fill_buf() => return Ok(()),
                };
                match next {
                    Ok(flow) => send(&mut writer, &*flow).await?,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        send(&mut writer, &FlowLine::Missed { missed }).await?;
                    }
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
        }
    }
    Ok(())
}

async fn ask(owner: &tokio::sync::Mutex<mpsc::Sender<Asked>>, question: Question) -> Result<Told, String> {
    let owner = owner.lock().await;
    let (reply, told) = oneshot::channel();
    let gone = |_| "the agent is ending".to_owned();
    owner.send(Asked { question, reply }).await.map_err(|_| gone(()))?;
    told.await.map_err(|_| gone(()))?
}

async fn send<T: Serialize + Sync>(writer: &mut OwnedWriteHalf, value: &T) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(timeout(PATIENCE, writer.write_all(&line)).await??)
}

#[cfg(test)]
mod tests {
    use super::{FlowLog, Published, READERS, Server, Vitals};
    use crate::admin::Request;
    use crate::health::Health;
    use crate::metrics::Meters;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixStream;
    use tokio::sync::{mpsc, watch};

    async fn ask(path: &Path, request: &Request) -> UnixStream {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let line = serde_json::to_string(request).unwrap() + "\n";
        stream.write_all(line.as_bytes()).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn who_follows_flows_keeps_kubelet_from_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let server = Server::bind(&path).unwrap();
        let (_publish, published) = watch::channel(Arc::new(Published::default()));
        let vitals = Vitals { meters: Arc::new(Meters::default()), pod: Some("p".to_owned()) };
        let (owner, _questions) = mpsc::channel(1);
        let serving = tokio::spawn(server.serve(published, vitals, FlowLog::default(), owner));
        let mut followers = Vec::new();
        for _ in 0..READERS + 20 {
            followers.push(ask(&path, &Request::Flows { follow: true }).await);
        }
        // They have their places now, and nobody else has one.
        let mut status = BufReader::new(ask(&path, &Request::Status).await).lines();
        assert!(tokio::time::timeout(Duration::from_secs(1), status.next_line()).await.is_err());
        let mut health = BufReader::new(ask(&path, &Request::Health).await).lines();
        let line = tokio::time::timeout(Duration::from_secs(5), health.next_line()).await.unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Health>(&line.unwrap()).unwrap().alive(), Ok("ok\n"));
        serving.abort();
    }

    #[tokio::test]
    async fn the_socket_of_who_took_over_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = Server::bind(&path).unwrap();
        let second = Server::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
