//! The file of `run --flow-log`: denied and audited packets as JSON lines.
//!
//! Invariant: the owner task never waits for the file: a thread writes it, what it cannot take in time or write is counted, and said
//! once until it goes right again; a line is written whole or not at all, as far as the file lets one; it and the one before it are no larger
//! than they may be. Tested below and by
//! `tests/operate.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::flow::Flow;
use crate::metrics::Meters;

/// Lines that wait while the file is slow.
const WAITING: usize = 8192;
/// Bytes that are written at once.
const BATCH: usize = 64 << 10;

/// The writing end.
#[derive(Debug)]
pub(crate) struct FlowFile {
    lines: SyncSender<Arc<Flow>>,
    thread: JoinHandle<()>,
    meters: Arc<Meters>,
    /// That lines were lost was said, and none was taken since.
    slow: bool,
}

impl FlowFile {
    /// Opens the file, or standard output for `-`; it is made where it is missing, for root alone. Before it grows beyond `limit` bytes it is
    /// renamed to have `.old` at its end, in place of the one that was so before; 0 is no limit.
    ///
    /// # Errors
    /// It cannot be opened for writing.
    pub(crate) fn open(path: &Path, limit: u64, meters: Arc<Meters>) -> anyhow::Result<Self> {
        let context = || format!("cannot write the flow log {}", path.display());
        let out = Out::open(path).with_context(context)?;
        let (lines, receiver) = sync_channel(WAITING);
        let mut writer = Writer { out, limit, rest: Vec::new(), meters: meters.clone(), failing: None };
        let thread = std::thread::Builder::new().name("flow-log".to_owned());
        let thread = thread.spawn(move || writer.run(&receiver)).with_context(context)?;
        Ok(Self { lines, thread, meters, slow: false })
    }

    /// Hands a flow on, unless too many wait.
    pub(crate) fn write(&mut self, flow: Arc<Flow>) {
        match self.lines.try_send(flow) {
            Ok(()) => self.slow = false,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.meters.lost_flows(1);
                if !std::mem::replace(&mut self.slow, true) {
                    tracing::error!("the flow log is too slow: lines are lost");
                }
            }
        }
    }

    /// Waits until what was handed on is written, but not for long.
    pub(crate) fn finish(self, patience: Duration) {
        drop(self.lines);
        let begun = Instant::now();
        while !self.thread.is_finished() && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where lines go.
enum Out {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Out {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let file = append(path)?;
        // A link stays one, to the file that is written.
        Ok(Self::File { path: fs::canonicalize(path)?, file })
    }

    /// Opens the file anew where another one, or none, has its name. Tells whether it did.
    fn follow(&mut self) -> io::Result<bool> {
        let Self::File { path, file } = self else { return Ok(false) };
        let is = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let named = match fs::metadata(&*path) {
            Ok(metadata) => Some(is(metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if named == Some(is(file.metadata()?)) {
            return Ok(false);
        }
        *file = append(path)?;
        Ok(true)
    }

    /// Makes room for some bytes more in a file that may not have them. What is no regular file has no size.
    fn rotate(&mut self, more: u64, limit: u64) -> io::Result<()> {
        let Self::File { path, file } = self else { return Ok(()) };
        let now = file.metadata()?;
        if limit == 0 || !now.is_file() || now.len() == 0 || now.len() + more <= limit {
            return Ok(());
        }
        let mut old = path.clone().into_os_string();
        // No name that logrotate gives.
        old.push(".old");
        fs::rename(&*path, old)?;
        *file = append(path)?;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout => io::stdout().write(bytes),
            Self::File { file, .. } => file.write(bytes),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The thread that writes.
struct Writer {
    out: Out,
    /// Most bytes of a file; 0 is no limit.
    limit: u64,
    /// What is missing of a line that was begun.
    rest: Vec<u8>,
    meters: Arc<Meters>,
    /// Lines lost since writing failed.
    failing: Option<u64>,
}

impl Writer {
    fn run(&mut self, lines: &Receiver<Arc<Flow>>) {
        let mut batch = Vec::with_capacity(BATCH);
        while let Ok(first) = lines.recv() {
            batch.clear();
            push(&mut batch, &first);
            while batch.len() < BATCH {
                let Ok(next) = lines.try_recv() else { break };
                push(&mut batch, &next);
            }
            self.write(&batch);
        }
    }

    /// Writes whole lines. What fails is said once, and what was not written is counted.
    fn write(&mut self, batch: &[u8]) {
        let followed = self.out.follow();
        match &followed {
            // A line that was begun in one file does not go on in another.
            Ok(true) => self.rest.clear(),
            Ok(false) => {}
            // The file that is open has another name now, but is better than none.
            Err(error) => self.fail(error, 0),
        }
        if self.rest.is_empty()
            && let Err(error) = self.out.rotate(batch.len() as u64, self.limit)
        {
            // The limit holds.
            return self.fail(&error, lines(batch));
        }
        let mut bytes = std::mem::take(&mut self.rest);
        let begun = bytes.len();
        bytes.extend_from_slice(batch);
        let mut written = 0;
        while written < bytes.len() {
            match self.out.write(&bytes[written..]) {
                Ok(0) => return self.cut(&bytes, begun, written, &io::ErrorKind::WriteZero.into()),
                Ok(some) => written += some,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.cut(&bytes, begun, written, &error),
            }
        }
        // Flushing is for what the standard library keeps back of standard output.
        if let (Out::Stdout, Err(error)) = (&self.out, io::stdout().flush()) {
            self.fail(&error, 0);
        } else if followed.is_ok()
            && let Some(lost) = self.failing.take()
        {
            tracing::info!(lost, "the flow log is written again");
        }
    }

    /// Keeps the rest of the line that was being written, and counts those after it as lost.
    fn cut(&mut self, bytes: &[u8], begun: usize, written: usize, error: &io::Error) {
        let inside = written < begun || (written > begun && bytes[written - 1] != b'\n');
        let end = bytes[written..]
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(bytes.len(), |at| written + at + 1);
        let kept = if inside { end } else { written };
        self.rest = bytes[written..kept].to_vec();
        self.fail(error, lines(&bytes[kept..]));
    }

    fn fail(&mut self, error: &io::Error, lost: u64) {
        if self.failing.is_none() {
            tracing::error!(%error, "cannot write the flow log: lines are lost");
        }
        self.failing = Some(self.failing.unwrap_or(0) + lost);
        self.meters.lost_flows(lost);
    }
}

/// How many lines end here.
fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

fn push(batch: &mut Vec<u8>, flow: &Flow) {
    // Writing to memory does not fail, and neither has the type a map with keys that are no text.
    if serde_json::to_writer(&mut *batch, flow).is_ok() {
        batch.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::{FlowFile, Out, Writer};
    use crate::flow::Flow;
    use crate::metrics::Meters;
    use nix::fcntl::OFlag;
    use serde_json::{Value, json};
    use std::fs::{self, File};
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn flow(length: u32) -> Arc<Flow> {
        let flow = json!({
            "time": "2026-01-01T00:00:00Z", "node": "n", "cgroup": 1, "source": "10.0.0.1:1", "length": length,
            "destination": "198.51.100.1:443", "protocol": "TCP", "action": "deny", "reason": "NotAllowed",
            "policies": ["EgressGatewayPolicy mesh"], "hook": "socket", "suppressed": 0, "revision": 3,
        });
        Arc::new(serde_json::from_value(flow).unwrap())
    }

    fn lengths(text: &str) -> Vec<u64> {
        let length = |line| serde_json::from_str::<Value>(line).unwrap()["length"].as_u64().unwrap();
        text.lines().map(length).collect()
    }

    #[track_caller]
    fn wait(what: impl Fn() -> bool) {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_file_that_is_renamed_or_removed_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("flows"), dir.path().join("flows.1"));
        let meters = Arc::new(Meters::default());
        let mut file = FlowFile::open(&path, 0, meters.clone()).unwrap();
        let lines = |path: &Path| fs::read_to_string(path).map(|text| lengths(&text)).unwrap_or_default();
        file.write(flow(1));
        wait(|| lines(&path) == [1]);
        fs::rename(&path, &old).unwrap();
        file.write(flow(2));
        wait(|| lines(&path) == [2]);
        fs::remove_file(&path).unwrap();
        file.write(flow(3));
        file.finish(Duration::from_secs(5));
        assert_eq!((lines(&path), lines(&old)), (vec![3], vec![1]));
        assert_eq!(meters.flows_lost(), 0);
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(FlowFile::open(&dir.path().join("none/flows"), 0, meters).is_err());
    }

    #[test]
    fn a_file_is_no_larger_than_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("flows"), dir.path().join("flows.old"));
        let mut line = Vec::new();
        super::push(&mut line, &flow(1));
        let (limit, meters) = (10 * line.len() as u64, Arc::new(Meters::default()));
        let open = || Out::open(&path).unwrap();
        let mut writer =
            Writer { out: open(), limit, rest: Vec::new(), meters: meters.clone(), failing: None };
        let sizes = || [&path, &old].map(|path| fs::metadata(path).map_or(0, |file| file.len()));
        (0..10).for_each(|_| writer.write(&line));
        assert_eq!(sizes(), [limit, 0]);
        (0..25).for_each(|_| writer.write(&line));
        assert_eq!(sizes(), [limit / 2, limit]);
        // Also one that an earlier agent had filled.
        let mut writer =
            Writer { out: open(), limit: 1, rest: Vec::new(), meters: meters.clone(), failing: None };
        writer.write(&line);
        assert_eq!(sizes(), [limit / 10, limit / 2]);
        assert_eq!(meters.flows_lost(), 0);
        // Where the old one cannot be replaced, nothing is written beyond the limit.
        fs::remove_file(&old).unwrap();
        fs::create_dir(&old).unwrap();
        (0..3).for_each(|_| writer.write(&line));
        assert_eq!((fs::metadata(&path).unwrap().len(), meters.flows_lost()), (limit / 10, 3));
        // No limit is none.
        let mut writer = Writer { out: open(), limit: 0, rest: Vec::new(), meters, failing: None };
        (0..25).for_each(|_| writer.write(&line));
        assert_eq!(fs::metadata(&path).unwrap().len(), limit / 10 * 26);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_keeps_nobody() {
        let meters = Arc::new(Meters::default());
        let mut file = FlowFile::open(Path::new("/dev/full"), 1, meters.clone()).unwrap();
        (0..100).for_each(|number| file.write(flow(number)));
        file.finish(Duration::from_secs(5));
        assert_eq!(meters.flows_lost(), 100);
    }

    #[test]
    fn a_reader_that_stops_keeps_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Open at both ends, and read by nobody.
        let _reader = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let meters = Arc::new(Meters::default());
        let mut file = FlowFile::open(&path, 1, meters.clone()).unwrap();
        let begun = Instant::now();
        (0..20_000).for_each(|number| file.write(flow(number)));
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(meters.flows_lost() > 5_000, "{}", meters.flows_lost());
        file.finish(Duration::from_millis(10));
    }

    #[test]
    fn a_line_that_was_cut_goes_on_where_it_was_cut() {
        let (reader, pipe) = nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap();
        let path = format!("/proc/self/fd/{}", pipe.as_raw_fd()).into();
        let meters = Arc::new(Meters::default());
        let out = Out::File { path, file: File::from(pipe) };
        let mut writer = Writer { out, limit: 1, rest: Vec::new(), meters: meters.clone(), failing: None };
        let mut reader = File::from(reader);
        let mut read = Vec::new();
        let mut sent: u64 = 0;
        for round in 1..6 {
            // Of different lengths, so that the pipe ends within a line.
            for number in 0..200 * round {
                let mut batch = Vec::new();
                super::push(&mut batch, &flow(10_u32.pow(number % 7)));
                writer.write(&batch);
                sent += 1;
            }
            // Until there is nothing more for now.
            let _would_block = reader.read_to_end(&mut read);
        }
        writer.write(b"");
        let _would_block = reader.read_to_end(&mut read);
        let lines = lengths(std::str::from_utf8(&read).unwrap()).len() as u64;
        assert!(meters.flows_lost() > 0, "the pipe was full");
        assert_eq!(lines + meters.flows_lost(), sent);
    }
}
