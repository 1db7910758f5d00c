//! Network namespaces that only file descriptors hold.
//!
//! Invariant: a namespace has no name in the file system, so it goes with the last descriptor and the last process in
//! it, whatever way they end.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// An anonymous network namespace with its loopback interface up. Clones share it.
#[derive(Debug, Clone)]
pub struct Netns {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Netns {
    /// Makes a namespace; the name is for messages only.
    ///
    /// No interface in it waits for duplicate address detection, listens to router advertisements or redirects, or
    /// checks where packets come from.
    pub fn new(name: &str) -> Result<Self> {
        let made = on_thread(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let fd = made.with_context(|| format!("make network namespace {name} (needs root)"))?;
        let netns = Self { name: name.into(), fd: Arc::new(fd) };
        netns.set_sysctls(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/dad_transmits", "0"),
            ("net/ipv6/conf/all/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/default/autoconf", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
            ("net/ipv6/conf/all/accept_redirects", "0"),
            ("net/ipv6/conf/default/accept_redirects", "0"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/default/accept_redirects", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        netns.ip(&["link set lo up"])?;
        Ok(netns)
    }

    /// The name used in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which other programs can open the namespace as long as we live.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }

    /// Runs the closure on a thread within the namespace. Sockets that it opens stay there; programs that it starts
    /// are born there, but die with nothing (for those that must, see [`crate::Exec`]).
    pub fn run<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            setns(&*self.fd, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter network namespace {}", self.name))?;
            body()
        })
    }

    /// Writes one setting below `/proc/sys`, such as `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.set_sysctls(&[(key, value)])
    }

    fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        // What is below /proc/sys/net depends on the namespace of the thread that opens it.
        self.run(|| {
            for (key, value) in settings {
                fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("{}: write {value} to /proc/sys/{key}", self.name))?;
            }
            Ok(())
        })
    }

    /// Reads one setting below `/proc/sys`.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        self.run(|| {
            let text = fs::read_to_string(format!("/proc/sys/{key}"))
                .with_context(|| format!("{}: read /proc/sys/{key}", self.name))?;
            Ok(text.trim().to_owned())
        })
    }

    /// Runs lines of `ip`, each without the word `ip`, in one batch; the first that fails ends it.
    pub fn ip<L: AsRef<str>>(&self, lines: &[L]) -> Result<()> {
        let mut batch = String::new();
        for line in lines {
            batch.push_str(line.as_ref());
            batch.push('\n');
        }
        self.command("ip", &["-batch", "-"], &batch).map(drop)
    }

    /// Runs `ip -json` and returns what it prints.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let output = self.command("ip", &[&["-json"], arguments].concat(), "")?;
        let text = if output.stdout.trim_ascii().is_empty() { b"[]" } else { output.stdout.as_slice() };
        serde_json::from_slice(text).with_context(|| format!("{}: ip {}", self.name, arguments.join(" ")))
    }

    /// Applies an nftables rule set as one transaction.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.command("nft", &["-f", "-"], rules).map(drop)
    }

    /// The number of an interface.
    pub fn interface_index(&self, interface: &str) -> Result<u32> {
        self.run(|| {
            nix::net::if_::if_nametoindex(interface)
                .with_context(|| format!("{}: interface {interface}", self.name))
        })
    }

    /// Adds an address that is usable at once.
    pub fn add_address(&self, interface: &str, address: IpAddr, prefix_length: u8) -> Result<()> {
        let flags = if address.is_ipv6() { " nodad" } else { "" };
        self.ip(&[format!("addr add {address}/{prefix_length} dev {interface}{flags}")])
    }

    /// Runs a program to its end within the namespace; failing, the error has the command, its input and its words.
    pub fn command(&self, program: &str, arguments: &[&str], input: &str) -> Result<Output> {
        let run = || -> Result<Output> {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // A program that ends before it has read everything says why on standard error.
                let _broken_pipe = stdin.write_all(input.as_bytes());
            }
            let output = child.wait_with_output()?;
            if output.status.success() {
                return Ok(output);
            }
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}{}", output.status, said.trim(), numbered(input))
        };
        self.run(run).with_context(|| format!("in {}: {program} {}", self.name, arguments.join(" ")))
    }
}

/// The input with line numbers, as the programs' messages name them.
fn numbered(input: &str) -> String {
    input.lines().enumerate().map(|(index, line)| format!("\n  {:>3}  {line}", index + 1)).collect()
}

/// Runs the closure on a thread of its own, which ends with it, so that no other thread sees what it unshares.
fn on_thread<T: Send>(body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, body)?;
        thread.join().map_err(|_| anyhow!("a thread within a network namespace has panicked"))?
    })
}

/// Fails with a clear message when we are not root.
pub(crate) fn require_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces, veths and cgroups need root: run this as root"
    );
    Ok(())
}
