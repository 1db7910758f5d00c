//! The programs on the pod root, and those on single pods of the node's network.
//!
//! Invariant: the socket hook is loaded or nothing is; what else the kernel refuses is named, with what is not done without it.

use std::fs::File;

use anyhow::{Context as _, anyhow};
use aya::maps::Array;
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Lsm, LsmCgroup, Program, ProgramError,
    SockOps,
};
use aya::{Btf, Ebpf};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::pins::Pins;

/// Name of the socket hook's program, in the object and in the kernel.
pub const SOCKET_PROGRAM: &str = "egress_socket";
/// Witnesses what comes in to pods of the node's network.
pub(super) const ARRIVAL_PROGRAM: &str = "egress_arrival";
const CONNECTION_PROGRAM: &str = "egress_connection";
/// Refuses packet sockets where no hook would judge their frames.
const CREATE_PROGRAM: &str = "egress_create";
/// Tells whether the kernel asks security modules of BPF at all.
const ASKED_PROGRAM: &str = "egress_lsm";
const ASKED: &str = "egress_asked";
/// The hook of security modules on new sockets.
const SOCKET_CREATE: &str = "socket_create";
const PROCESS_PROGRAMS: [&str; 4] =
    ["egress_connect4", "egress_connect6", "egress_sendmsg4", "egress_sendmsg6"];

/// A program of the object, by its name.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Loads the programs; gives what the kernel lacks.
pub(super) fn load(ebpf: &mut Ebpf, btf: &Btf) -> anyhow::Result<Vec<String>> {
    program::<CgroupSkb>(ebpf, SOCKET_PROGRAM)?
        .load()
        .context("the kernel refuses the BPF program of the socket hook")?;
    let mut lacks = Vec::new();
    let mut note = |name: &str, without: &str, result: Result<(), ProgramError>| {
        if let Err(error) = result {
            lacks.push(format!("the kernel refuses {name}: {without} ({})", first_line(&error)));
        }
    };
    let result = program::<SockOps>(ebpf, CONNECTION_PROGRAM)?.load();
    note(
        CONNECTION_PROGRAM,
        "TCP servers in locked-down pods cannot answer clients that are not allowed",
        result,
    );
    let result = program::<CgroupSkb>(ebpf, ARRIVAL_PROGRAM)?.load();
    note(ARRIVAL_PROGRAM, "servers in locked-down pods of the node's network cannot answer", result);
    for name in PROCESS_PROGRAMS {
        let result = program::<CgroupSockAddr>(ebpf, name)?.load();
        note(name, "events do not name the process, and TCP that is denied waits for its time-out", result);
    }
    let result = program::<LsmCgroup>(ebpf, CREATE_PROGRAM)?.load(SOCKET_CREATE, btf);
    note(CREATE_PROGRAM, FRAMES, result);
    if program::<LsmCgroup>(ebpf, CREATE_PROGRAM)?.fd().is_ok() && !asks(ebpf, btf).unwrap_or(false) {
        // It would be attached, and never run.
        program::<LsmCgroup>(ebpf, CREATE_PROGRAM)?.unload()?;
        lacks.push(format!(
            "the kernel does not ask BPF about sockets (`bpf` is not in its list of `lsm`): {FRAMES}"
        ));
    }
    Ok(lacks)
}

/// What is not done without [`CREATE_PROGRAM`].
const FRAMES: &str = "packet sockets of pods whose veth is not covered are not refused";

/// Whether the kernel asks BPF about new sockets: it may have all that it takes and not do it, and nothing but trying tells.
fn asks(ebpf: &mut Ebpf, btf: &Btf) -> anyhow::Result<bool> {
    let program: &mut Lsm = program(ebpf, ASKED_PROGRAM)?;
    program.load(SOCKET_CREATE, btf)?;
    program.attach()?;
    let _socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    program.unload()?;
    let asked: Array<_, u64> = ebpf.map(ASKED).context("the BPF object has no such map")?.try_into()?;
    Ok(asked.get(&0, 0)? > 0)
}

/// Attaches to the pod root what is loaded, the socket hook last: by then the others see what it relies on.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    cgroup: &File,
) -> anyhow::Result<Vec<(&'static str, u32)>> {
    // Links allow several programs by themselves; the flag for that is refused with them.
    let mode = CgroupAttachMode::Single;
    let mut attached = Vec::new();
    for name in PROCESS_PROGRAMS {
        let program: &mut CgroupSockAddr = program(ebpf, name)?;
        if program.fd().is_ok() {
            let id = program.info()?.id();
            let link = program.attach(cgroup, mode)?;
            let link: FdLink = program.take_link(link)?.try_into()?;
            pins.replace_link(name, link)?;
            attached.push((name, id));
        }
    }
    let create: &mut LsmCgroup = program(ebpf, CREATE_PROGRAM)?;
    if create.fd().is_ok() {
        let id = create.info()?.id();
        let link = create.attach(cgroup)?;
        let link: FdLink = create.take_link(link)?.into();
        pins.replace_link(CREATE_PROGRAM, link)?;
        attached.push((CREATE_PROGRAM, id));
    }
    let connection: &mut SockOps = program(ebpf, CONNECTION_PROGRAM)?;
    if connection.fd().is_ok() {
        let id = connection.info()?.id();
        let link = connection.attach(cgroup, mode)?;
        let link: FdLink = connection.take_link(link)?.try_into()?;
        pins.replace_link(CONNECTION_PROGRAM, link)?;
        attached.push((CONNECTION_PROGRAM, id));
    }
    let socket: &mut CgroupSkb = program(ebpf, SOCKET_PROGRAM)?;
    let id = socket.info().context("cannot ask for the program's id")?.id();
    let link = socket.attach(cgroup, CgroupSkbAttachType::Egress, mode)?;
    let link: FdLink = socket
        .take_link(link)?
        .try_into()
        .context("the kernel has no BPF links for cgroups (5.7 and later do)")?;
    pins.replace_link(SOCKET_PROGRAM, link)?;
    attached.insert(0, (SOCKET_PROGRAM, id));
    Ok(attached)
}

/// Attaches the witness of arrivals to a pod's cgroup.
pub(super) fn attach_arrival(ebpf: &mut Ebpf, pins: &Pins, pod: &File, cgroup: u64) -> anyhow::Result<()> {
    let program: &mut CgroupSkb = program(ebpf, ARRIVAL_PROGRAM)?;
    let link = program.attach(pod, CgroupSkbAttachType::Ingress, CgroupAttachMode::Single)?;
    let link: FdLink = program.take_link(link)?.try_into()?;
    pins.replace_link(&Pins::numbered(ARRIVAL_PROGRAM, cgroup), link)
}

/// The first line of what the kernel says: the verifier's log goes on for pages, where there is one.
pub(super) fn first_line(error: &ProgramError) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim_end();
    line.strip_suffix("Verifier output:").unwrap_or(line).trim_end().to_owned()
}
