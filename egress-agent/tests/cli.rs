//! The command line: every exit code is provoked, and help is there for every command.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Command, Output};

use clap::CommandFactory as _;
use common::{Stand, eventually, outside};
use egress_agent::cli::Cli;
use egress_topology::{CgroupDriver, PodSpec};
use serde_json::{Value, json};

fn agent(words: &[&str]) -> Output {
    Command::new(common::agent_binary()).args(words).env_clear().output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_command_line_is_sound_and_helps() {
    Cli::command().debug_assert();
    for command in
        ["run", "status", "endpoints", "flows", "explain", "simulate", "plan", "lint", "probe", "cleanup"]
    {
        let output = agent(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("EGRESS_"), "{command}: every flag has a variable");
    }
    assert!(stdout(&agent(&["--help"])).contains("77"), "exit codes are documented");
}

#[test]
fn wrong_usage_is_2() {
    for words in [
        &["run"][..],
        &["run", "--source", "nonsense"],
        &["nonsense"],
        &["status", "--output", "xml"],
        &["explain"],
        &["plan", "--source", "file:x"],
        &["lint", "--source", "nonsense"],
    ] {
        assert_eq!(agent(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn no_agent_is_3_and_says_what_to_do() {
    let explain = ["explain", "--from", "a/b", "--to", "192.0.2.1:1/TCP"];
    for command in
        [&["status"][..], &["endpoints"], &["flows"], &explain, &["plan"], &["lint"], &["probe", "alive"]]
    {
        let output = agent(&[command, &["--socket", "/nonexistent/socket"]].concat());
        assert_eq!(output.status.code(), Some(3), "{command:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("egress-agent run"), "{command:?}");
    }
}

#[test]
fn tables_and_json_say_the_same() {
    let mut stand = Stand::new(CgroupDriver::Systemd);
    stand.lock_down(json!({}));
    let pod = stand.pod(PodSpec::new("a", "pod"));
    stand.start();
    common::denied(&pod, &outside()[0]);
    eventually("the flow is there", || !stand.agent.flows().unwrap().is_empty());

    let status = stand.agent.status().unwrap();
    assert_eq!((&status["node"], &status["ready"]), (&json!("node-1"), &json!(true)));
    let table = stdout(&stand.agent.ask(&["status"]).unwrap());
    let hook = status["hooks"][0]["target"].as_str().unwrap();
    assert!(table.contains(hook) && table.contains("1 Isolated"), "{table}");

    let line = stdout(&stand.agent.ask(&["endpoints", "--output", "json"]).unwrap());
    let endpoint: Value = serde_json::from_str(&line).unwrap();
    let table = stdout(&stand.agent.ask(&["endpoints"]).unwrap());
    for field in ["namespace", "name", "state", "coverage"] {
        assert!(table.contains(endpoint[field].as_str().unwrap()), "{field}: {table}");
    }

    let flows = stand.agent.flows().unwrap();
    let text = stdout(&stand.agent.ask(&["flows"]).unwrap());
    assert_eq!(text.lines().count(), flows.len());
    for word in ["deny", "NotAllowed", "a/pod", "198.51.100.10:9999", "UDP", "EgressGatewayPolicy lock"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let of_pod = |words: &[&str]| stdout(&stand.agent.ask(words).unwrap()).lines().count();
    assert_eq!(of_pod(&["flows", "--pod", "a/pod"]), flows.len());
    assert_eq!(of_pod(&["flows", "--pod", "a/other"]), 0);
    assert_eq!(of_pod(&["flows", "--to", "198.51.100.10:1"]), 0);
}
