//! Starting programs in a namespace and a cgroup.
//!
//! Invariants:
//! - A program is in its cgroup and its network namespace before its first instruction.
//! - It is killed when we die. `PR_SET_PDEATHSIG` acts when the *thread* that forked ends, so every program is forked
//!   by one thread that lives as long as the process.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread;

use anyhow::{Context as _, Result, anyhow};

use crate::capabilities::Capabilities;
use crate::netns::Netns;
use crate::process::Process;

/// What to start. Without more it is root with all of our capabilities; [`crate::Container`] gives the runtime's
/// default capabilities instead.
#[derive(Debug, Clone)]
pub struct Exec {
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    user: Option<u32>,
    capabilities: Option<Capabilities>,
    no_new_privileges: bool,
    stdin: bool,
}

impl Exec {
    /// A program with its arguments.
    pub fn new<A: AsRef<OsStr>>(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut exec = Self::probe(arguments);
        exec.program = Some(program.into());
        exec
    }

    /// The topology's `egress-probe` with these arguments.
    pub fn probe<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self {
            program: None,
            arguments: arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect(),
            environment: Vec::new(),
            user: None,
            capabilities: None,
            no_new_privileges: false,
            stdin: false,
        }
    }

    /// One argument more.
    #[must_use]
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn environment(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs as this user and group, without supplementary groups (the sidecar is 1337). A user other than root has no
    /// capabilities, and must be able to reach the program's file.
    #[must_use]
    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// Keeps only these capabilities.
    #[must_use]
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Some(capabilities);
        self
    }

    /// Lets it gain nothing by what it executes, as a container with `allowPrivilegeEscalation: false`.
    #[must_use]
    pub fn no_new_privileges(mut self) -> Self {
        self.no_new_privileges = true;
        self
    }

    /// Gives the program a standard input that [`Process::send_line`] writes to.
    #[must_use]
    pub fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// For messages.
    fn describe(&self, program: &Path, netns: &Netns) -> String {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        let words: Vec<_> = self.arguments.iter().map(|word| word.to_string_lossy()).collect();
        format!("{name} {} (in {})", words.join(" "), netns.name())
    }

    /// Starts it. `capabilities` are those for a program that did not ask for any.
    pub(crate) fn spawn(
        &self,
        probe: &Path,
        netns: &Netns,
        cgroup: &Path,
        capabilities: Capabilities,
    ) -> Result<Process> {
        let program = self.program.as_deref().unwrap_or(probe);
        let description = self.describe(program, netns);
        let mut command = Command::new(program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(if self.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let procs = OpenOptions::new()
            .write(true)
            .open(cgroup.join("cgroup.procs"))
            .with_context(|| format!("start {description}: cgroup {}", cgroup.display()))?;
        let child = Start {
            procs,
            netns: netns.clone(),
            user: self.user,
            capabilities: self.capabilities.unwrap_or(capabilities),
            no_new_privileges: self.no_new_privileges,
            parent: std::process::id(),
        };
        // SAFETY: `Start::prepare` makes system calls only; it neither allocates nor takes locks.
        unsafe { command.pre_exec(move || child.prepare()) };
        let child = spawn_on_lasting_thread(command).with_context(|| format!("start {description}"))?;
        Process::new(child, description)
    }
}

/// What the child needs between fork and exec.
struct Start {
    procs: File,
    netns: Netns,
    user: Option<u32>,
    capabilities: Capabilities,
    no_new_privileges: bool,
    parent: u32,
}

impl Start {
    fn prepare(&self) -> io::Result<()> {
        use std::os::fd::AsFd as _;
        // First: who looks at a pod's processes is not to see one in the network of the tests.
        // SAFETY: plain system call; the descriptor is open.
        check(unsafe { libc::setns(self.netns.as_fd().as_raw_fd(), libc::CLONE_NEWNET) })?;
        write_zero(self.procs.as_raw_fd())?;
        if self.capabilities != Capabilities::ALL {
            self.capabilities.bound()?;
        }
        if let Some(id) = self.user {
            // SAFETY: no groups are given, so the pointer is not read. The raw system calls act on this thread only,
            // and there is no other after a fork.
            check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) } as i32)?;
            // SAFETY: plain system call without pointers.
            check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) } as i32)?;
            // SAFETY: plain system call without pointers.
            check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) } as i32)?;
        }
        self.capabilities.limit()?;
        if self.no_new_privileges {
            // SAFETY: plain system call without pointers.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        }
        // After the change of user, which would clear it.
        // SAFETY: plain system call without pointers.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) })?;
        // Had the parent died before that, nobody would tell us any more.
        // SAFETY: plain system call.
        if unsafe { libc::getppid() } as u32 == self.parent {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ECHILD))
        }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Moves the calling process into the cgroup.
fn write_zero(procs: RawFd) -> io::Result<()> {
    // SAFETY: the buffer is one byte long and static.
    let written = unsafe { libc::write(procs, b"0".as_ptr().cast(), 1) };
    if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Job {
    command: Command,
    reply: SyncSender<io::Result<Child>>,
}

/// Forks on the one thread that ends only with the process.
fn spawn_on_lasting_thread(command: Command) -> Result<Child> {
    static THREAD: OnceLock<Result<Sender<Job>, String>> = OnceLock::new();
    let jobs = THREAD.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        let serve = move || {
            for mut job in queue {
                let spawned = job.command.spawn();
                if let Err(unwanted) = job.reply.send(spawned)
                    && let Ok(mut child) = unwanted.0
                {
                    // Nobody waits for it any more; it must not run on without an owner.
                    let _gone_already = child.kill();
                    let _status = child.wait();
                }
            }
        };
        let started = thread::Builder::new().name("spawner".to_owned()).spawn(serve);
        started.map(|_| jobs).map_err(|error| error.to_string())
    });
    let jobs = jobs.as_ref().map_err(|error| anyhow!("start the spawning thread: {error}"))?;
    let (reply, answer) = sync_channel(1);
    jobs.send(Job { command, reply }).map_err(|_| anyhow!("the spawning thread has ended"))?;
    Ok(answer.recv().context("the spawning thread has ended")??)
}
