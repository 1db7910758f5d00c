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
const KNOWN: [Known; 2] =
    [no_sctp("sctp_servers_answer"), no_sctp("sctp_clients_reach_what_is_allowed_by_sctp")];

/// A test of sockets that this machine's kernel may be built without.
const fn no_sctp(test: &'static str) -> Known {
    Known { kernel: "host", binary: "sctp", test, reason: "no SCTP sockets" }
}

/// The reason why a test is known not to pass.
pub(crate) fn reason(kernel: &str, binary: &str, test: &str) -> Option<&'static str> {
    KNOWN
        .iter()
        .find(|known| known.kernel == kernel && known.binary == binary && known.test == test)
        .map(|known| known.reason)
}
