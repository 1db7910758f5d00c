//! Asking in plain HTTP, where kube's client would hide what is answered.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its own part")]

use std::time::Duration;

use egress_fixture::Fixture;
use futures::StreamExt as _;
use http::Request;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

pub(crate) struct Said {
    pub code: u16,
    pub text: String,
    pub retry_after: Option<String>,
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

pub(crate) async fn send(client: &Client, method: &str, path: &str, media: &str, body: &Value) -> Said {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder().method(method).uri(path).header("content-type", media);
    let answer = client.send(request.body(Body::from(text.into_bytes())).unwrap()).await.unwrap();
    let retry_after = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let code = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    Said { code, text: String::from_utf8(bytes.to_vec()).unwrap(), retry_after }
}

pub(crate) async fn get(client: &Client, path: &str) -> Said {
    send(client, "GET", path, "application/json", &Value::Null).await
}

/// The lines of a watch: events, and how it ended.
pub(crate) struct Lines {
    body: http_body_util::BodyDataStream<Body>,
    buffer: Vec<u8>,
}

/// What comes next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Event(Value),
    /// Ended well; with what was left of a line.
    Ended(String),
    /// Broke off; with what was left of a line.
    Broken(String),
    /// Nothing for so long.
    Silence,
}

impl Next {
    pub(crate) fn event(self) -> Value {
        match self {
            Self::Event(value) => value,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn watch(client: &Client, path: &str) -> Lines {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let answer = client.send(request).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    Lines { body: answer.into_body().into_data_stream(), buffer: Vec::new() }
}

impl Lines {
    pub(crate) async fn next_within(&mut self, time: Duration) -> Next {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Next::Event(serde_json::from_slice(&line).unwrap());
            }
            let rest = |buffer: &[u8]| String::from_utf8_lossy(buffer).into_owned();
            match tokio::time::timeout(time, self.body.next()).await {
                Err(_) => return Next::Silence,
                Ok(None) => return Next::Ended(rest(&self.buffer)),
                Ok(Some(Err(_))) => return Next::Broken(rest(&self.buffer)),
                Ok(Some(Ok(chunk))) => self.buffer.extend_from_slice(&chunk),
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Next {
        self.next_within(Duration::from_secs(10)).await
    }

    /// Type, name and resource version of the next event.
    pub(crate) async fn short(&mut self) -> (String, String, String) {
        let event = self.next().await.event();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &event["object"]["metadata"];
        (text(&event["type"]), text(&metadata["name"]), text(&metadata["resourceVersion"]))
    }
}

pub(crate) fn pod(n: u64) -> Value {
    json!({ "spec": { "nodeName": "a" }, "status": { "podIP": format!("10.0.0.{n}") } })
}

/// A fixture with so many pods in `default`, named p0 and so on.
pub(crate) fn with_pods(number: u64) -> Fixture {
    let fixture = Fixture::start().unwrap();
    for n in 0..number {
        fixture.apply("pods", "default", &format!("p{n}"), &pod(n));
    }
    fixture
}
