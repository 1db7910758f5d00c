//! What came of a try against what should have.

use egress_probe::{Attempt, Outcome};

use super::{Expect, Try};

/// What everybody saw of one try.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// What the client says.
    pub(crate) attempt: Attempt,
    /// Whether something arrived outside; nothing where nobody looks.
    pub(crate) arrived: Option<bool>,
    /// What the flow log says.
    pub(crate) report: Option<String>,
    /// Whether there is anybody who could report.
    pub(crate) reporter: bool,
}

/// A judgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) expected: String,
    pub(crate) got: String,
    pub(crate) as_expected: bool,
}

/// What the client says, in a word or two.
pub(crate) fn client(attempt: &Attempt) -> String {
    match (attempt.outcome, attempt.status) {
        (Outcome::Ok, Some(status)) => status.to_string(),
        (Outcome::Ok, None) => "answered".to_owned(),
        (Outcome::Denied, _) => "not permitted".to_owned(),
        (Outcome::Refused, _) => "connection refused".to_owned(),
        (Outcome::Timeout, _) => "no answer".to_owned(),
        (Outcome::Error, _) => attempt.detail.clone(),
    }
}

/// Compares.
pub(crate) fn judge<C>(one: &Try<C>, evidence: &Evidence) -> Judgement {
    let Evidence { attempt, arrived, report, reporter } = evidence;
    // Who awaits nothing says nothing by being content.
    let silent =
        matches!(attempt.outcome, Outcome::Denied | Outcome::Timeout) || one.blind && attempt.succeeded();
    let through = attempt.succeeded() && (!one.blind || *arrived != Some(false));
    let stopped = silent && *arrived != Some(true);
    let (expected, as_expected) = match one.expect {
        Expect::Works => ("works".to_owned(), through && report.is_none()),
        Expect::Refused(status) => {
            (format!("refused by the proxy: {status}"), attempt.status == Some(status))
        }
        Expect::Denied if *reporter => ("denied, reported".to_owned(), stopped && report.is_some()),
        Expect::Denied => ("denied".to_owned(), stopped),
        Expect::Audited => ("passes, reported".to_owned(), through && report.is_some()),
    };
    let mut got = match (one.blind, attempt.outcome) {
        (true, Outcome::Ok) => vec!["sent".to_owned()],
        _ => vec![client(attempt)],
    };
    if matches!(one.expect, Expect::Denied | Expect::Audited) || one.blind {
        got.extend(
            arrived.map(|arrived| if arrived { "seen outside" } else { "nothing outside" }.to_owned()),
        );
    }
    if matches!(one.expect, Expect::Denied | Expect::Audited) {
        got.extend(report.clone().or_else(|| reporter.then(|| "not reported".to_owned())));
    } else if let Some(report) = report {
        got.push(report.clone());
    }
    Judgement { expected, got: got.join(", "), as_expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(outcome: Outcome, arrived: Option<bool>, report: Option<&str>) -> Evidence {
        let attempt = Attempt { outcome, detail: "why".to_owned(), status: None, body: None, elapsed_ms: 1 };
        Evidence { attempt, arrived, report: report.map(str::to_owned), reporter: true }
    }

    fn ok(expect: Expect, blind: bool, evidence: &Evidence) -> bool {
        let one = Try { blind, ..Try::new((), "", &[], expect) };
        judge(&one, evidence).as_expected
    }

    #[test]
    fn a_denial_needs_every_witness() {
        let all = evidence(Outcome::Timeout, Some(false), Some("deny NotAllowed"));
        assert!(ok(Expect::Denied, false, &all));
        assert!(ok(Expect::Denied, false, &evidence(Outcome::Denied, None, Some("deny NotAllowed"))));
        assert!(!ok(Expect::Denied, false, &Evidence { report: None, ..all.clone() }));
        assert!(!ok(Expect::Denied, false, &Evidence { arrived: Some(true), ..all.clone() }));
        for outcome in [Outcome::Ok, Outcome::Refused, Outcome::Error] {
            assert!(!ok(Expect::Denied, false, &evidence(outcome, Some(false), Some("deny NotAllowed"))));
        }
        // Without an agent nobody reports.
        assert!(ok(Expect::Denied, false, &Evidence { report: None, reporter: false, ..all }));
    }

    #[test]
    fn who_awaits_nothing_is_believed_no_success() {
        let sent = evidence(Outcome::Ok, Some(false), Some("deny NotAllowed"));
        assert!(ok(Expect::Denied, true, &sent));
        assert!(!ok(Expect::Denied, true, &Evidence { arrived: Some(true), ..sent.clone() }));
        assert!(!ok(Expect::Denied, true, &evidence(Outcome::Error, Some(false), Some("deny NotAllowed"))));
        assert!(!ok(Expect::Works, true, &Evidence { report: None, ..sent.clone() }));
        assert!(ok(Expect::Works, true, &Evidence { report: None, arrived: Some(true), ..sent.clone() }));
        assert!(!ok(Expect::Audited, true, &sent));
    }

    #[test]
    fn what_works_is_not_reported_and_what_is_audited_is() {
        let quiet = evidence(Outcome::Ok, Some(true), None);
        let told = evidence(Outcome::Ok, Some(true), Some("audit NotAllowed"));
        assert!(ok(Expect::Works, false, &quiet) && !ok(Expect::Works, false, &told));
        assert!(ok(Expect::Audited, false, &told) && !ok(Expect::Audited, false, &quiet));
        assert!(!ok(Expect::Works, false, &evidence(Outcome::Timeout, None, None)));
    }

    #[test]
    fn a_proxy_refuses_with_its_own_status() {
        let mut answered = evidence(Outcome::Ok, None, None);
        answered.attempt.status = Some(502);
        assert!(ok(Expect::Refused(502), false, &answered) && !ok(Expect::Refused(503), false, &answered));
        assert!(!ok(Expect::Works, false, &answered));
    }
}
