//! `BPF_PROG_TEST_RUN`, three ways. The time is what the kernel measures around the runs of a call, in nanoseconds a run.

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use aya::programs::{TestRun, TestRunOptions, TestRunResult};

/// Runs of denied packets between two looks at the events: all of them fit into the ring buffer.
const DENIED: u32 = 4_000;

/// A program that runs on packets.
pub trait OnPackets: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult> {}

impl<P> OnPackets for P where P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult> {}

/// Many packets of one socket; tells whether they passed, too.
pub fn again(
    program: &impl OnPackets,
    frame: &[u8],
    context: &[u8],
    repeat: u32,
) -> anyhow::Result<(f64, bool)> {
    let options =
        TestRunOptions { data_in: Some(frame), ctx_in: Some(context), repeat, ..TestRunOptions::new() };
    let result = program.test_run(options).context("BPF_PROG_TEST_RUN")?;
    Ok((result.duration.as_nanos() as f64, result.return_value != 0))
}

/// One packet of each of many sockets, the frames taking turns; the median.
pub fn apart(
    program: &impl OnPackets,
    frames: &[Vec<u8>],
    context: &[u8],
    times: u32,
) -> anyhow::Result<(f64, bool)> {
    let mut all = Vec::new();
    let mut passed = true;
    for frame in frames.iter().cycle().take(times as usize) {
        let (time, this) = again(program, frame, context, 1)?;
        all.push(time);
        passed &= this;
    }
    Ok((median(&all), passed))
}

/// Many packets of few sockets, while somebody takes the events.
pub fn with_events(
    program: &impl OnPackets,
    frame: &[u8],
    context: &[u8],
    repeat: u32,
    events: &mut RingBuf<MapData>,
) -> anyhow::Result<(f64, bool)> {
    let mut all = Vec::new();
    let mut passed = true;
    for _ in 0..repeat.div_ceil(DENIED) {
        let (time, this) = again(program, frame, context, DENIED)?;
        all.push(time);
        passed &= this;
        while events.next().is_some() {}
    }
    Ok((median(&all), passed))
}

/// The median.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
