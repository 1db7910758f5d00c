//! The scripts, with programs in `PATH` that say what a cluster would and write down what they were asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::root;

/// A directory with programs that are not what they are called.
struct Stand {
    directory: tempfile::TempDir,
}

/// What became of a script.
struct Ended {
    well: bool,
    stderr: String,
    /// Every call of a program, with its name.
    calls: Vec<String>,
}

impl Stand {
    /// A `kubectl` that does what the arms of a `case` of its arguments say, and otherwise nothing, successfully.
    fn new(kubectl: &str) -> Self {
        let stand = Self { directory: tempfile::tempdir().unwrap() };
        stand.program("kubectl", &format!("case \"$*\" in\n{kubectl}\nesac"));
        stand
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self, name: &str, body: &str) {
        let file = self.path(name);
        let log = self.path("calls");
        let text = self.path("text");
        fs::write(&text, format!("#!/bin/bash\necho \"{name} $*\" >> {}\n{body}\n", log.display())).unwrap();
        // By another process: what this one had open for writing, another thread's child may have inherited, and could not be run.
        let installed = Command::new("install").arg("-m755").arg(&text).arg(&file).status().unwrap();
        assert!(installed.success());
    }

    fn run(&self, script: &Path, arguments: &[&str]) -> Ended {
        let path = format!("{}:{}", self.directory.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(script).args(arguments).env("PATH", path).env("UNINSTALL_TIMEOUT", "0");
        let output = command.output().unwrap();
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        Ended {
            well: output.status.success(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            calls: calls.lines().map(str::to_owned).collect(),
        }
    }
}

impl Ended {
    /// Where a call with these words stands among all.
    fn position(&self, words: &str) -> usize {
        let found = self.calls.iter().position(|call| call.contains(words));
        found.unwrap_or_else(|| panic!("no {words}: {:?}", self.calls))
    }
}

const OVERLAY: &str = "deploy/kustomize/overlays/enforce";

fn install(kubectl: &str) -> Ended {
    Stand::new(kubectl).run(&root().join("deploy/install.sh"), &[OVERLAY])
}

#[test]
fn installing_takes_fields_that_others_have_written() {
    let ended = install("");
    assert!(ended.well, "{}", ended.stderr);
    let applied: Vec<_> = ended.calls.iter().filter(|call| call.contains(" apply ")).collect();
    assert_eq!(applied.len(), 2, "{applied:?}");
    assert!(applied.iter().all(|call| call.contains("--server-side --force-conflicts -k")), "{applied:?}");
    assert!(ended.position("deploy/crd") < ended.position("--for=condition=Established"));
    assert!(ended.position("--for=condition=Established") < ended.position(OVERLAY));
    assert!(ended.position(OVERLAY) < ended.position("rollout status daemonset/egress-agent"));
}

#[test]
fn installing_leaves_to_helm_what_is_helms() {
    // In whichever namespace the release is, which the binding alone shows.
    for object in ["daemonset/egress-agent", "clusterrolebinding/egress-enforcer"] {
        let ended = install(&format!("*\"get {object}\"*release-name*) echo mine ;;"));
        assert!(!ended.well);
        assert!(ended.stderr.contains(&format!("{object} is of Helm's release mine")), "{}", ended.stderr);
        assert!(!ended.calls.iter().any(|call| call.contains(" apply ")), "{:?}", ended.calls);
    }
}

#[test]
fn installing_says_why_there_are_no_pods() {
    let refused =
        "*\"rollout status\"*) exit 1 ;;\n*reason=FailedCreate*) echo 'Error creating: no quota' ;;";
    let ended = install(refused);
    assert!(!ended.well);
    assert!(ended.stderr.contains("pods could not be made") && ended.stderr.contains("no quota"));
    let events = &ended.calls[ended.position("get events")];
    assert!(events.contains("involvedObject.kind=DaemonSet,involvedObject.name=egress-agent"), "{events}");
    // Also where nobody may read events.
    let ended = install("*\"rollout status\"*) exit 1 ;;\n*\"get events\"*) exit 1 ;;");
    assert!(!ended.well && !ended.stderr.contains("pods could not be made"), "{}", ended.stderr);
    ended.position("logs --selector");
}

/// Where the scripts that make a cluster run: a repository without anything but `deploy`, and programs that do nothing.
fn up(script: &str, kubectl: &str) -> Ended {
    let stand = Stand::new(kubectl);
    for program in ["kind", "docker", "vagrant"] {
        stand.program(program, "");
    }
    stand.program(
        "cargo",
        "mkdir -p target/image && touch target/image/egress-agent.tar target/image/egress-probe.tar",
    );
    let deploy = stand.path("repository/deploy");
    fs::create_dir_all(&deploy).unwrap();
    let copied = Command::new("cp").arg("-r").arg(root().join("deploy/.")).arg(&deploy).status().unwrap();
    assert!(copied.success());
    stand.run(&deploy.join(script), &[])
}

#[test]
fn a_second_run_starts_the_new_image() {
    let restart = "rollout restart daemonset/egress-agent";
    for script in ["kind/up.sh", "vagrant/up.sh"] {
        let first = up(script, "");
        assert!(first.well, "{script}: {}", first.stderr);
        assert!(!first.calls.iter().any(|call| call.contains(restart)), "{script}: {:?}", first.calls);
        let second = up(script, "*\"get daemonset\"*\"output name\"*) echo daemonset.apps/egress-agent ;;");
        assert!(second.well, "{script}: {}", second.stderr);
        // What waits for the pods comes after it, and what looks at them last.
        assert!(second.position("cargo xtask image") < second.position(restart), "{script}");
        assert!(second.position(restart) < second.position("rollout status"), "{script}");
        assert!(second.position("rollout status") < second.position("cargo xtask verify"), "{script}");
    }
}

fn uninstall(kubectl: &str) -> Ended {
    Stand::new(kubectl).run(&root().join("deploy/uninstall.sh"), &[])
}

/// What `kubectl` says of a DaemonSet that wants a number of pods, and of its pods.
fn cluster(wanted: u32, pods: &str) -> String {
    format!(
        "*\"get daemonset\"*Scheduled*) printf 2/2/{wanted} ;;\n*\"get daemonset\"*args*) printf cleanup ;;\n\
         *\"get pods\"*) printf '%s\\n' {pods} ;;"
    )
}

#[test]
fn uninstalling_ends_when_every_node_that_is_meant_is_clean() {
    let clean = "'n1 cleanup now=0 before=' 'n2 cleanup now= before=0'";
    let ended = uninstall(&cluster(2, clean));
    assert!(ended.well, "{}", ended.stderr);
    // A pod that waits for a node which takes none is meant by the DaemonSet as long as that has no affinity.
    let ended = uninstall(&cluster(3, &format!("{clean} ' cleanup now= before='")));
    assert!(!ended.well && ended.stderr.contains("2 of 3 nodes are clean"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("put the agent back"), "{}", ended.stderr);
}

#[test]
fn uninstalling_says_who_may_have_put_the_agent_back() {
    let again = cluster(1, "'n1 run now= before='").replace("printf cleanup", "printf run");
    let ended = uninstall(&again);
    assert!(!ended.well && ended.stderr.contains("0 of 1 nodes are clean"), "{}", ended.stderr);
    assert!(ended.stderr.contains("put the agent back") && ended.stderr.contains("suspend its sync"));
}
