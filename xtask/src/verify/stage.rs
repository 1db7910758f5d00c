//! What a run needs of the place it is played on: a cluster, or this machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::objects::Mode;
use super::scene::{Place, Scene};

/// A place with pods, and an agent on their node.
pub(crate) trait Stage {
    /// What stands.
    fn scene(&self) -> &Scene;

    /// How long anything may take that has to come about.
    fn patience(&self) -> Duration;

    /// Runs the probe with these words in a container, and gives the lines that it prints. A place in the node's network
    /// is [`Place::Outside`].
    async fn probe(
        &self,
        place: Place,
        user: Option<u32>,
        words: &[String],
        within: Duration,
    ) -> anyhow::Result<Vec<String>>;

    /// Asks the agent of the node; nothing where none is there.
    async fn agent(&self, words: &[&str]) -> anyhow::Result<Option<String>>;

    /// Makes the policy be so; without a mode, takes it away.
    async fn policy(&self, mode: Option<Mode>) -> anyhow::Result<()>;

    /// What the policy's status says, where there is somebody who writes it.
    async fn accepted(&self) -> anyhow::Result<Option<Result<String, String>>>;

    /// Ends the agent without giving it a chance to do anything.
    async fn kill_agent(&self) -> anyhow::Result<()>;

    /// Waits until another agent is ready, or starts one.
    async fn revive_agent(&self) -> anyhow::Result<()>;

    /// Whether kubelet's probes of locked-down pods were answered all the time; nothing where nobody probes.
    async fn probes(&self) -> anyhow::Result<Option<Result<(), String>>>;
}

/// Every JSON value of a text, one after the other or in arrays.
pub(crate) fn values(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        match value? {
            Value::Array(items) => found.extend(items),
            value => found.push(value),
        }
    }
    Ok(found)
}

/// The last line of a program of the probe.
pub(crate) fn last<T: DeserializeOwned>(lines: &[String]) -> anyhow::Result<T> {
    let line = lines.last().context("the probe printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("the probe printed {line:?}"))
}

/// Tries again and again until something is there, or says what it waited for in vain. `look` gives what is missing.
pub(crate) async fn until<T, F>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Result<T, String>>>,
{
    let (start, mut told) = (Instant::now(), Duration::from_secs(5));
    loop {
        let missing = match look().await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(missing)) => missing,
            Err(error) => return Err(error.context(format!("while waiting: {what}"))),
        };
        let waited = start.elapsed();
        if waited > patience {
            bail!("waited in vain for {} s: {what}: {missing}", patience.as_secs());
        }
        if waited > told {
            eprintln!("    waiting: {what}: {missing}");
            told += Duration::from_secs(10);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_and_arrays_are_read_alike() {
        assert_eq!(values("{\"a\":1}\n{\"a\":2}\n").unwrap(), values("[{\"a\":1},{\"a\":2}]").unwrap());
        assert!(values("").unwrap().is_empty());
        assert!(values("{").is_err());
    }

    #[test]
    fn waiting_ends_with_what_is_missing() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut left = 2;
        let found = runtime.block_on(until("it is there", Duration::from_secs(60), || {
            left -= 1;
            let now = left;
            async move { Ok(if now == 0 { Ok(7) } else { Err("not yet".to_owned()) }) }
        }));
        assert_eq!(found.unwrap(), 7);
        let never = until("it comes", Duration::ZERO, || async { Ok(Err::<(), _>("nothing".to_owned())) });
        let error = runtime.block_on(never).unwrap_err().to_string();
        assert!(error.contains("it comes: nothing"), "{error}");
    }
}
