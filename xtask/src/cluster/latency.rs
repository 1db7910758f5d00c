//! From an object in the API to the first packet that is judged by it.
//!
//! Measured here: from before the write to when the line of the changed outcome has come from the pod. So the way of the
//! answer counts as well, and no clocks are compared: it is a bound from above.

use std::time::{Duration, Instant};

use egress_probe::Change;

use super::line;
use crate::tries::table::Line;
use crate::verify::live::Live;
use crate::verify::objects::Mode;
use crate::verify::stage::Stage as _;

/// How often the policy comes and goes.
const ROUNDS: usize = 10;
/// What is still taken for an answer to a change.
const LIMIT: Duration = Duration::from_secs(5);

/// Makes and removes the policy, and watches a pod that asks outside every two milliseconds.
pub(super) async fn latency(live: &Live) -> anyhow::Result<Vec<Line>> {
    eprintln!("    latency: {ROUNDS} times a policy, and none");
    live.policy(None).await?;
    live.set_free().await?;
    let mut probe = live.ask_outside(Duration::from_secs(120)).await?;
    let mut next = async |wanted: bool| -> anyhow::Result<Instant> {
        loop {
            let change: Change = serde_json::from_str(&probe.next(LIMIT).await?)?;
            if change.attempt.succeeded() == wanted {
                return Ok(Instant::now());
            }
        }
    };
    next(true).await?;
    let (mut denied, mut allowed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (mode, times) in [(Some(Mode::Enforce), &mut denied), (None, &mut allowed)] {
            let start = Instant::now();
            live.policy(mode).await?;
            times.push(next(mode.is_none()).await? - start);
            // The pod and everybody else get to rest.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let describe = |mut times: Vec<Duration>| -> Result<String, String> {
        times.sort();
        let of = |at: usize| times.get(at).map_or(0, Duration::as_millis);
        Ok(format!(
            "median {} ms, longest {} ms of {}",
            of(times.len() / 2),
            of(times.len().saturating_sub(1)),
            times.len()
        ))
    };
    let who = "productpage/productpage";
    Ok(vec![
        line(
            "latency",
            who,
            "from a policy's write to the first denied packet",
            "within 5 s",
            describe(denied),
        ),
        line("latency", who, "from its removal to the first allowed packet", "within 5 s", describe(allowed)),
    ])
}
