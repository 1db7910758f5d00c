//! Tests that cannot pass on a kernel, each with the reason. They are run, and counted apart.

/// A test of which a kernel is known to be incapable.
pub(crate) struct Known {
    /// As given to `--vm`, or `host`.
    pub(crate) kernel: &'static str,
    pub(crate) binary: &'static str,
    pub(crate) test: &'static str,
    pub(crate) reason: &'static str,
}

/// All of them.
const KNOWN: [Known; 0] = [];

/// The reason why a test is known not to pass.
pub(crate) fn reason(kernel: &str, binary: &str, test: &str) -> Option<&'static str> {
    KNOWN
        .iter()
        .find(|known| known.kernel == kernel && known.binary == binary && known.test == test)
        .map(|known| known.reason)
}
