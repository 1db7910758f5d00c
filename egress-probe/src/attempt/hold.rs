//! `hold`: one TCP connection that is used again and again, to see when it stops or starts to work.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use egress_probe::{Beat, Outcome};
use socket2::Protocol;

use super::outcome_of;
use super::socket::connect;
use crate::cli::HoldOptions;
use crate::net;

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Connects, then sends a numbered line every interval and reports whether its echo came back within it.
pub(crate) fn run(options: &HoldOptions) -> anyhow::Result<()> {
    let start = Instant::now();
    let report = |sequence, began: Instant, result: &io::Result<()>| {
        net::print_line(&Beat {
            sequence,
            outcome: result.as_ref().map_or_else(outcome_of, |()| Outcome::Ok),
            detail: result.as_ref().map_or_else(ToString::to_string, |()| String::new()),
            at_ms: milliseconds(start.elapsed()),
            elapsed_ms: milliseconds(began.elapsed()),
        })
    };
    let connected = connect(
        options.target,
        options.source_port,
        Protocol::TCP,
        Duration::from_millis(options.timeout_ms),
    );
    let stream = match connected {
        Ok(stream) => {
            report(0, start, &Ok(()))?;
            stream
        }
        Err(error) => return report(0, start, &Err(error)),
    };
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    let interval = Duration::from_millis(options.interval_ms.max(1));
    let end = Instant::now() + Duration::from_millis(options.for_ms);
    let mut sequence = 0;
    while Instant::now() < end {
        sequence += 1;
        let began = Instant::now();
        let result = beat(&stream, &mut reader, &mut line, sequence, began + interval);
        report(sequence, began, &result)?;
        if result.as_ref().is_err_and(|error| outcome_of(error) != Outcome::Timeout) {
            return Ok(());
        }
        thread::sleep((began + interval).saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Sends line `sequence` and reads until its echo; echoes of earlier lines that come late are passed over.
fn beat(
    mut stream: &TcpStream,
    reader: &mut BufReader<TcpStream>,
    line: &mut String,
    sequence: u64,
    until: Instant,
) -> io::Result<()> {
    let sent = format!("beat {sequence}\n");
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(sent.as_bytes())?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        // After a time-out `line` keeps what has come of an unfinished line, and the next beat reads on from there.
        if reader.read_line(line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the other side"));
        }
        let ours = *line == sent;
        line.clear();
        if ours {
            return Ok(());
        }
    }
}
