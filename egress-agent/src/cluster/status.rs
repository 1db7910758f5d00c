//! What became of each EgressGatewayPolicy, written to its status by the agent that leads.
//!
//! Invariants: only the leader writes, and a write under way is given up with the lead; what is there already is not
//! written again; a status never tells of an older generation than the one it tells of; conditions of others stay.
//! Tested by `tests/cluster/status.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use egress_policy::census::{Census, Counted};
use jiff::{Timestamp, Unit};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::service::{Deed, Pace, Refusal, Report, ask};

/// The least time from one census to the next. Counting takes a twentieth of the time at most.
const REST: Duration = Duration::from_secs(5);
const SHARE: u32 = 20;
/// From one write to the next.
const GAP: Duration = Duration::from_millis(100);
/// How often what stands in the cluster is compared again, in case somebody else has written it.
const AGAIN: Duration = Duration::from_mins(10);
/// How often a write is tried that others get in the way of.
const TRIES: usize = 3;
/// Most characters of an error that are shown.
const MESSAGE: usize = 2000;

const WITHOUT: &str = "the status of policies is not written";
const GET: Deed =
    Deed { verb: "get", resource: "egressgatewaypolicies.egress-enforcer.io", without: WITHOUT };
const PATCH: Deed =
    Deed { verb: "patch", resource: "egressgatewaypolicies/status (egress-enforcer.io)", without: WITHOUT };

/// The custom resource.
pub(super) fn resource() -> ApiResource {
    ApiResource {
        group: "egress-enforcer.io".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "egress-enforcer.io/v1alpha1".to_owned(),
        kind: "EgressGatewayPolicy".to_owned(),
        plural: "egressgatewaypolicies".to_owned(),
    }
}

/// Writes while it leads.
pub(super) struct Writer {
    policies: Api<DynamicObject>,
    report: Report,
    leading: watch::Receiver<bool>,
    census: watch::Receiver<Option<Arc<Census>>>,
    /// Asks the owner of the objects for a census.
    wanted: Arc<AtomicBool>,
    /// What stands in the cluster, as far as is known.
    stands: BTreeMap<Arc<str>, Counted>,
    pace: Pace,
}

impl Writer {
    pub(super) fn new(
        policies: Api<DynamicObject>,
        report: Report,
        leading: watch::Receiver<bool>,
        census: watch::Receiver<Option<Arc<Census>>>,
        wanted: Arc<AtomicBool>,
    ) -> Self {
        Self { policies, report, leading, census, wanted, stands: BTreeMap::new(), pace: Pace::default() }
    }

    /// Runs until nobody can lead or count any more.
    pub(super) async fn run(mut self) {
        let mut leading = self.leading.clone();
        loop {
            self.report.fine("Following");
            if leading.wait_for(|leading| *leading).await.is_err() {
                return;
            }
            // Others may have written meanwhile, and what was counted is old.
            self.stands.clear();
            self.census.mark_unchanged();
            self.report.fine("Leading");
            tokio::select! {
                biased;
                lost = leading.wait_for(|leading| !*leading) => if lost.is_err() { return },
                () = self.lead() => return,
            }
            self.wanted.store(false, Ordering::Relaxed);
        }
    }

    /// Counts and writes; ends when nobody can count any more.
    async fn lead(&mut self) {
        let mut compared = Instant::now();
        let mut rest = Duration::ZERO;
        let mut last: Option<(Arc<Census>, Vec<Counted>)> = None;
        loop {
            tokio::time::sleep(rest).await;
            self.wanted.store(true, Ordering::Relaxed);
            if self.census.changed().await.is_err() {
                return;
            }
            if compared.elapsed() > AGAIN {
                self.stands.clear();
                compared = Instant::now();
            }
            let Some(census) = self.census.borrow_and_update().clone() else {
                continue;
            };
            let begun = std::time::Instant::now();
            // Counting looks at every pod of the cluster: not where nothing has changed.
            let counted = match last.take().filter(|(of, _)| Arc::ptr_eq(of, &census)) {
                Some((_, counted)) => counted,
                None => {
                    let census = Arc::clone(&census);
                    let Ok(counted) = tokio::task::spawn_blocking(move || census.count()).await else {
                        continue;
                    };
                    counted
                }
            };
            rest = REST.max(begun.elapsed() * SHARE);
            self.stands.retain(|name, _| counted.iter().any(|one| one.name == *name));
            if let Err((deed, refusal)) = self.write_all(&counted).await {
                self.report.failed(&deed, &refusal);
                rest = rest.max(self.pace.after(&refusal));
            } else {
                self.pace.fine();
                self.report.fine("Leading");
            }
            last = Some((census, counted));
        }
    }

    async fn write_all(&mut self, counted: &[Counted]) -> Result<(), (Deed, Refusal)> {
        let mut trouble = Ok(());
        for one in counted {
            if self.stands.get(&one.name) == Some(one) {
                continue;
            }
            match self.write(one).await {
                // Others may go on better than one policy that is refused.
                Err((deed, Refusal::Never(why, code))) => trouble = Err((deed, Refusal::Never(why, code))),
                done => done?,
            }
        }
        trouble
    }

    /// Brings the status of one policy in step.
    async fn write(&mut self, counted: &Counted) -> Result<(), (Deed, Refusal)> {
        for _ in 0..TRIES {
            let found = match ask(self.policies.get(&counted.name)).await {
                Ok(found) => found,
                // It, or its kind, has just gone: the next census will not have it.
                Err(Refusal::NotFound(_)) => return Ok(()),
                Err(refusal) => return Err((GET, refusal)),
            };
            let uid = found.metadata.uid.unwrap_or_default();
            let status = found.data.get("status").cloned().unwrap_or_default();
            let told = status.get("observedGeneration").and_then(Value::as_i64).unwrap_or(0);
            // Another of the same name, or one that somebody knows better: the next census may.
            if *uid != *counted.uid || told > counted.generation {
                return Ok(());
            }
            let wanted = status_of(counted, &status, Timestamp::now());
            if contains(&status, &wanted) {
                self.stands.insert(counted.name.clone(), counted.clone());
                return Ok(());
            }
            let patch = Patch::Merge(json!({
                "metadata": { "resourceVersion": found.metadata.resource_version },
                "status": wanted,
            }));
            let params = PatchParams::default();
            match ask(self.policies.patch_status(&counted.name, &params, &patch)).await {
                Ok(_) => {
                    self.report.wrote();
                    self.stands.insert(counted.name.clone(), counted.clone());
                    tokio::time::sleep(GAP).await;
                    return Ok(());
                }
                Err(Refusal::Conflict) => {}
                Err(Refusal::NotFound(_)) => return Ok(()),
                Err(refusal) => return Err((PATCH, refusal)),
            }
        }
        Err((PATCH, Refusal::Conflict))
    }
}

/// Whether every field of `wanted` is in `status` as it should be.
fn contains(status: &Value, wanted: &Value) -> bool {
    let fields = wanted.as_object().into_iter().flatten();
    fields.into_iter().all(|(field, value)| status.get(field) == Some(value))
}

/// The fields of the status that are ours.
fn status_of(counted: &Counted, status: &Value, now: Timestamp) -> Value {
    let (accepted, reason, message) = match &counted.error {
        Some(error) => {
            let error: String = error.chars().take(MESSAGE).collect();
            ("False", "Invalid", format!("{error}; its subjects are closed until it is put right"))
        }
        None if counted.audit => ("True", "Accepted", "what it would deny is only reported".to_owned()),
        None => ("True", "Accepted", "it is enforced".to_owned()),
    };
    let none = Vec::new();
    let conditions = status.get("conditions").and_then(Value::as_array).unwrap_or(&none);
    let is_ours = |condition: &&Value| condition.get("type").and_then(Value::as_str) == Some("Accepted");
    let since = conditions.iter().find(is_ours).filter(|old| old.get("status") == Some(&accepted.into()));
    let since = since.and_then(|old| old.get("lastTransitionTime")).filter(|time| time.is_string()).cloned();
    let now = now.round(Unit::Second).unwrap_or(now).to_string();
    let condition = json!({
        "type": "Accepted",
        "status": accepted,
        "reason": reason,
        "message": message,
        "observedGeneration": counted.generation,
        "lastTransitionTime": since.unwrap_or_else(|| now.into()),
    });
    let mut all: Vec<Value> = conditions.iter().filter(|one| !is_ours(one)).cloned().collect();
    let place = conditions.iter().position(|one| is_ours(&one)).unwrap_or(all.len());
    all.insert(place.min(all.len()), condition);
    let mut fields = Map::new();
    fields.insert("observedGeneration".to_owned(), counted.generation.into());
    fields.insert("conditions".to_owned(), all.into());
    fields.insert("subjects".to_owned(), counted.subjects.into());
    fields.insert("gateways".to_owned(), counted.gateways.into());
    fields.insert("readyGatewayEndpoints".to_owned(), counted.ready_gateway_endpoints.into());
    fields.into()
}

#[cfg(test)]
mod tests {
    use super::{Counted, Timestamp, contains, json, status_of};

    fn counted(error: Option<&str>) -> Counted {
        Counted {
            name: "mesh".into(),
            uid: "u".into(),
            generation: 3,
            error: error.map(str::to_owned),
            audit: false,
            subjects: 2,
            gateways: 1,
            ready_gateway_endpoints: 1,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_time_of_a_condition_changes_with_its_status_alone() {
        let first = status_of(&counted(None), &json!({}), at(100));
        assert_eq!(first["conditions"][0]["lastTransitionTime"], "1970-01-01T00:01:40Z");
        let mut more = counted(None);
        more.subjects = 9;
        more.generation = 4;
        let second = status_of(&more, &first, at(200));
        assert_eq!(second["conditions"][0]["lastTransitionTime"], "1970-01-01T00:01:40Z");
        assert_eq!(second["conditions"][0]["observedGeneration"], 4);
        let third = status_of(&counted(Some("spec.subjects: must not be empty")), &second, at(300));
        let condition = &third["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Invalid")));
        assert_eq!(condition["lastTransitionTime"], "1970-01-01T00:05:00Z");
        assert!(condition["message"].as_str().unwrap().starts_with("spec.subjects: must not be empty"));
        assert!(contains(
            &third,
            &status_of(&counted(Some("spec.subjects: must not be empty")), &third, at(400))
        ));
    }

    #[test]
    fn conditions_of_others_stay_where_they_are() {
        let others = json!({"other": 1, "conditions": [
            {"type": "Audited", "status": "True"}, {"type": "Accepted", "status": "True"}, {"type": "Z"},
        ]});
        let ours = status_of(&counted(None), &others, at(0));
        let kinds: Vec<_> =
            ours["conditions"].as_array().unwrap().iter().map(|one| one["type"].clone()).collect();
        assert_eq!(kinds, ["Audited", "Accepted", "Z"]);
        assert_eq!(ours.get("other"), None);
    }

    #[test]
    fn the_fields_are_those_of_the_definition() {
        let ours = status_of(&counted(None), &json!({}), at(0));
        let fields: Vec<_> = ours.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected =
            ["observedGeneration", "conditions", "subjects", "gateways", "readyGatewayEndpoints"];
        expected.sort_unstable();
        assert_eq!(fields, expected);
    }
}
