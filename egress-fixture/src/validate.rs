//! What the real server refuses of the kinds that the agent writes: leases and events.
//!
//! After `pkg/apis/coordination/validation`, `pkg/apis/core/validation/events.go` and `metav1.MicroTime`. Held by
//! `tests/write.rs`.

use serde_json::Value;

use crate::answer::Failure;
use crate::resources::Resource;

/// Checks a new object, or a change of one. The namespace is that of the path.
pub(crate) fn validate(
    resource: &Resource,
    name: &str,
    old: Option<&Value>,
    new: &Value,
    namespace: &str,
) -> Result<(), Failure> {
    let mut errors = Vec::new();
    match (resource.group, resource.plural) {
        ("coordination.k8s.io", "leases") => {
            times(&[&new["spec"]["acquireTime"], &new["spec"]["renewTime"]])?;
            lease(&new["spec"], &mut errors);
        }
        ("events.k8s.io", "events") => {
            times(&[&new["eventTime"], &new["series"]["lastObservedTime"]])?;
            event(old, new, namespace, &mut errors);
        }
        ("", "events") => {
            let given = new["involvedObject"]["namespace"].as_str().unwrap_or_default();
            if given != namespace && !(given.is_empty() && namespace == "default") {
                errors.push(unlike(given));
            }
        }
        _ => {}
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid(resource.kind, resource.group, name, &errors))
}

type Errors = Vec<(&'static str, &'static str, String)>;

fn unlike(given: &str) -> (&'static str, &'static str, String) {
    ("involvedObject.namespace", "Invalid", format!("\"{given}\": does not match event.namespace"))
}

/// A `MicroTime` has exactly six digits after the point: Go's parser takes the layout at its word.
fn times(values: &[&Value]) -> Result<(), Failure> {
    for value in values.iter().filter(|value| !value.is_null()) {
        let text = value.as_str().unwrap_or_default();
        let fraction = text.split_once('.').map_or("", |(_, rest)| rest);
        let digits = fraction.chars().take_while(char::is_ascii_digit).count();
        if digits != 6 || text.parse::<jiff::Timestamp>().is_err() {
            let message = format!(
                "parsing time \"{text}\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"{text}\""
            );
            return Err(Failure::bad_request(message));
        }
    }
    Ok(())
}

fn lease(spec: &Value, errors: &mut Errors) {
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|seconds| *seconds <= 0) {
        let message = format!("{seconds}: must be greater than 0");
        errors.push(("spec.leaseDurationSeconds", "Invalid", message));
    }
    if let Some(count) = spec["leaseTransitions"].as_i64().filter(|count| *count < 0) {
        let message = format!("{count}: must be greater than or equal to 0");
        errors.push(("spec.leaseTransitions", "Invalid", message));
    }
}

/// `ValidateEventCreate` and `ValidateEventUpdate` for `events.k8s.io/v1`: the messages name the internal fields.
fn event(old: Option<&Value>, new: &Value, namespace: &str, errors: &mut Errors) {
    let text = |field: &str| new[field].as_str().unwrap_or_default();
    let given = new["regarding"]["namespace"].as_str().unwrap_or_default();
    if new["eventTime"].is_null() {
        if given != namespace {
            errors.push(unlike(given));
        }
    } else {
        if given.is_empty() && namespace != "default" && namespace != "kube-system" {
            errors.push(unlike(given));
        }
        for (field, most) in
            [("reportingController", 316), ("reportingInstance", 128), ("action", 128), ("reason", 128)]
        {
            if text(field).is_empty() {
                errors.push((field, "Required", String::new()));
            }
            if text(field).len() > most {
                errors.push((field, "Invalid", format!("\"\": can have at most {most} characters")));
            }
        }
        if text("note").len() > 1024 {
            errors.push(("message", "Invalid", "\"\": can have at most 1024 characters".to_owned()));
        }
    }
    let series = &new["series"];
    if !series.is_null() && old.is_none_or(|old| old["series"] != *series) {
        if series["count"].as_i64().unwrap_or(0) < 2 {
            errors.push(("series.count", "Invalid", "\"\": should be at least 2".to_owned()));
        }
        if series["lastObservedTime"].is_null() {
            errors.push(("series.lastObservedTime", "Required", String::new()));
        }
    }
    if let Some(old) = old {
        // Whatever is not the series stays as it was.
        for (field, internal) in [
            ("regarding", "involvedObject"),
            ("reason", "reason"),
            ("note", "message"),
            ("type", "type"),
            ("eventTime", "eventTime"),
            ("action", "action"),
            ("related", "related"),
            ("reportingController", "reportingController"),
            ("reportingInstance", "reportingInstance"),
        ] {
            if old[field] != new[field] {
                errors.push((internal, "Invalid", format!("{}: field is immutable", new[field])));
            }
        }
        return;
    }
    if new["eventTime"].is_null() {
        errors.push(("eventTime", "Required", String::new()));
    }
    if !["Normal", "Warning"].contains(&text("type")) {
        errors.push(("type", "Invalid", format!("\"\": has invalid value: {}", text("type"))));
    }
    for (field, internal) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("deprecatedSource", "source"),
    ] {
        if !new[field].is_null() {
            errors.push((internal, "Invalid", "\"\": needs to be unset".to_owned()));
        }
    }
}
