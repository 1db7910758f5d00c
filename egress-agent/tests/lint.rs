//! `lint` from the outside: exit codes, table and JSON.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

fn agent(dir: &Path, words: &[&str]) -> Output {
    let source = format!("file:{}", dir.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_egress-agent"));
    command.arg("lint").arg("--source").arg(source).args(words).env_clear().output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_owned()).unwrap()
}

/// A locked-down pod with its proxy and its gateway; `context` is that of its application.
fn objects(context: &Value) -> TempDir {
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let pod = |namespace: &str, name: &str, ip: &str, containers: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "n1", "containers": containers}, "status": {"phase": "Running", "podIP": ip},
        })
    };
    let named = |name: &str| json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    let policy = json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": "EgressGatewayPolicy", "metadata": {"name": "mesh"},
        "spec": {
            "subjects": [{"namespaces": named("shop")}],
            "gateways": [{"name": "out", "namespaces": named("egress"), "destinations": [{"cidr": "198.51.100.0/24"}]}],
        },
    });
    let app = json!([{"name": "app", "securityContext": context}, {"name": "istio-proxy"}]);
    let items = json!([
        namespace("shop"),
        namespace("egress"),
        pod("shop", "web", "10.1.0.1", app),
        pod("egress", "gate", "10.1.0.2", json!([{"name": "istio-proxy"}])),
        policy,
    ]);
    let dir = tempfile::tempdir().unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    fs::write(dir.path().join("all.json"), list.to_string()).unwrap();
    dir
}

#[test]
fn without_findings_it_says_so_in_one_line_and_ends_with_0() {
    let dir = objects(&json!({"runAsUser": 1000}));
    let output = agent(dir.path(), &[]);
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(0), "no findings in 2 pods, 1 policy\n")
    );
    assert_eq!(text(&output.stderr), "");
    let output = agent(dir.path(), &["--output", "json"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), ""));
}

#[test]
fn findings_are_a_table_or_json_lines_and_end_with_1() {
    let dir = objects(&json!({"runAsUser": 1337, "capabilities": {"add": ["NET_ADMIN"]}}));
    let table = agent(dir.path(), &[]);
    let json = agent(dir.path(), &["--output", "json"]);
    assert_eq!((table.status.code(), json.status.code()), (Some(1), Some(1)));
    let table = text(&table.stdout);
    assert!(table.ends_with("\n\n2 errors in 2 pods, 1 policy\n"), "{table}");
    let lines: Vec<Value> =
        text(&json.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let checks: Vec<_> = lines.iter().map(|line| line["check"].as_str().unwrap()).collect();
    assert_eq!(checks, ["proxy-user", "net-capability"]);
    for line in &lines {
        assert_eq!(line["object"], "Pod shop/web");
        assert_eq!(line.as_object().unwrap().len(), 5, "{line}");
        for key in ["check", "severity", "object", "detail", "advice"] {
            assert!(table.contains(line[key].as_str().unwrap()), "{key}: {table}");
        }
    }
}

#[test]
fn what_cannot_be_read_is_no_success() {
    let dir = objects(&json!({}));
    fs::write(dir.path().join("broken.yaml"), "kind: [").unwrap();
    let output = agent(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("broken.yaml") && stderr.contains("1 error above"), "{stderr}");
    // A program that reads JSON is told as well.
    let output = agent(dir.path(), &["--output", "json", "--errors-only"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &line["check"], &line["severity"]),
        (Some(1), &json!("unreadable"), &json!("error"))
    );
    assert!(line["detail"].as_str().unwrap().contains("broken.yaml:1"), "{line}");

    let output = agent(&dir.path().join("nowhere"), &[]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""));
    assert!(text(&output.stderr).contains("cannot read the source directory"), "{output:?}");
}

/// As a repository has them, which has no pods.
#[test]
fn workloads_in_files_are_looked_at() {
    let dir = objects(&json!({}));
    let deployment = |user: Value| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "shop", "name": "cart"},
            "spec": {"template": {"spec": {"containers": [{"name": "app", "securityContext": {"runAsUser": user}}]}}},
        })
        .to_string()
    };
    let file = dir.path().join("cart.json");
    fs::write(&file, deployment(json!(1000))).unwrap();
    let output = agent(dir.path(), &[]);
    assert_eq!(text(&output.stdout), "no findings in 2 pods, 1 workload, 1 policy\n");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));

    fs::write(&file, deployment(json!(1337))).unwrap();
    let output = agent(dir.path(), &["--output", "json"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &line["check"], &line["object"]),
        (Some(1), &json!("proxy-user"), &json!("Deployment shop/cart"))
    );
    // Alone it is something to look at, and a template that cannot be read is told, not passed over.
    let output = agent(&file, &[]);
    assert_eq!(text(&output.stdout), "no findings in 1 workload, 0 policies\n", "{output:?}");
    fs::write(&file, deployment(json!("root"))).unwrap();
    let output = agent(dir.path(), &[]);
    let stderr = text(&output.stderr);
    assert!(
        output.status.code() == Some(1) && stderr.contains("Deployment cart: spec.template.spec"),
        "{stderr}"
    );
    // A verdict needs no template, so that it counts for nothing there.
    let source = format!("file:{}", dir.path().display());
    let mut explain = Command::new(env!("CARGO_BIN_EXE_egress-agent"));
    let explain =
        explain.args(["explain", "--source", &source, "--from", "shop/web", "--to", "10.1.0.2:443/TCP"]);
    let output = explain.env_clear().output().unwrap();
    let stderr = text(&output.stderr);
    assert!(output.status.success() && stderr.contains("of no account here: 1 Deployment"), "{output:?}");
}

#[test]
fn findings_that_are_not_asked_for_are_left_out() {
    let dir = objects(&json!({"runAsUser": 1337}));
    fs::write(
        dir.path().join("debug.json"),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "looked-into"},
            "spec": {"containers": [{"name": "istio-proxy"}], "ephemeralContainers": [{"name": "debugger"}]},
        })
        .to_string(),
    )
    .unwrap();
    let checks = |words: &[&str]| {
        let output = agent(dir.path(), &[&["--output", "json"], words].concat());
        let checks: Vec<String> = text(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["check"].as_str().unwrap().to_owned())
            .collect();
        (output.status.code(), checks.join(" "), text(&output.stderr))
    };
    assert_eq!(checks(&[]), (Some(1), "proxy-user debug-container".to_owned(), String::new()));
    let (code, told, left) = checks(&["--errors-only"]);
    assert_eq!((code, &*told), (Some(1), "proxy-user"));
    assert!(left.contains("1 finding left out"), "{left}");
    assert_eq!(checks(&["--errors-only", "--skip", "proxy-user"]).0, Some(0));
    assert_eq!(checks(&["--skip", "proxy-user,debug-container"]).0, Some(0));
    assert_eq!(checks(&["--skip", "no-such-check"]).0, Some(2));
}

/// As of `helm template`, which writes to standard output.
#[test]
fn one_file_or_standard_input_is_enough() {
    let dir = objects(&json!({"runAsUser": 1337}));
    let file = dir.path().join("all.json");
    let of_file = agent(&file, &["--output", "json"]);
    let of_dir = agent(dir.path(), &["--output", "json"]);
    assert_eq!((of_file.status.code(), &of_file.stdout), (Some(1), &of_dir.stdout));
    let mut command = Command::new(env!("CARGO_BIN_EXE_egress-agent"));
    let of_stdin = command
        .args(["lint", "--source", "file:-", "--output", "json"])
        .env_clear()
        .stdin(fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    assert_eq!((of_stdin.status.code(), &of_stdin.stdout), (Some(1), &of_dir.stdout), "{of_stdin:?}");
    let nothing = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(["lint", "--source", "file:-"])
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
}

#[test]
fn the_example_is_told_what_it_leaves_open() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let output = agent(&examples, &["--output", "json"]);
    let checks: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(checks.iter().all(|line| line["check"] == "gateway-unrestricted"), "{checks:?}");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("there are no pods"), "{output:?}");
}

#[test]
fn help_lists_every_check() {
    let help = Command::new(env!("CARGO_BIN_EXE_egress-agent")).args(["lint", "--help"]).output().unwrap();
    let help = text(&help.stdout);
    for check in egress_policy::lint::Check::ALL {
        assert!(help.contains(check.name()) && help.contains(check.describe()), "{check}: {help}");
    }
}
