//! What a guest says on its serial line: one JSON object a line.

use serde::{Deserialize, Serialize};

use super::features::Feature;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The kernel is up.
    Kernel { release: String },
    /// A feature was probed.
    Feature(Feature),
    /// A test began: a kernel that dies has died in one of these.
    Began { binary: String, test: String },
    /// A test ended.
    Test(Outcome),
    /// The guest cannot go on.
    Failed(String),
    /// Everything was run.
    Done,
}

/// How a test ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) binary: String,
    pub(crate) test: String,
    pub(crate) result: TestResult,
    pub(crate) seconds: f32,
    /// It failed beside others; this is how it ended alone.
    pub(crate) again: bool,
    /// The end of what it printed, where it did not pass: the first time.
    pub(crate) output: String,
}

/// The result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TestResult {
    Passed,
    Failed,
    /// It was killed after its time.
    TimedOut,
}
