//! Our own BPF object: whether the verifier takes each program, and how long it looks.

use std::path::Path;

use aya::programs::{Program, ProgramError};
use aya::{Btf, EbpfLoader};

use super::Table;

const GROUP: &str = "our programs";

/// Loads each program of the object, without attaching any.
pub(crate) fn programs(object: &Path, table: &mut Table<'_>) -> anyhow::Result<()> {
    let bytes = std::fs::read(object)?;
    let btf = Btf::from_sys_fs().ok();
    let loaded = EbpfLoader::new().btf(btf.as_ref()).load(&bytes);
    let mut ebpf = match loaded {
        Ok(ebpf) => {
            table.tell(GROUP, "the object and its maps", Ok(()))?;
            ebpf
        }
        Err(error) => {
            let error = anyhow::Error::from(error);
            return table.tell(GROUP, "the object and its maps", Err(format!("{error:#}")));
        }
    };
    let mut programs: Vec<_> = ebpf.programs_mut().collect();
    programs.sort_by_key(|(name, _)| *name);
    for (name, program) in programs {
        match load(program, btf.as_ref()) {
            Ok(instructions) => table.found(GROUP, name, format!("yes, {instructions} verified"))?,
            Err(error) => table.tell(GROUP, name, Err(words(&error)))?,
        }
    }
    Ok(())
}

/// Gives how many instructions the verifier followed.
fn load(program: &mut Program, btf: Option<&Btf>) -> Result<u32, ProgramError> {
    /// What ours are for.
    const HOOK: &str = "socket_create";
    let kind = program.prog_type();
    match (&mut *program, btf) {
        (Program::CgroupSkb(program), _) => program.load()?,
        (Program::CgroupSockAddr(program), _) => program.load()?,
        (Program::CgroupSock(program), _) => program.load()?,
        (Program::SchedClassifier(program), _) => program.load()?,
        (Program::SockOps(program), _) => program.load()?,
        (Program::Lsm(program), Some(btf)) => program.load(HOOK, btf)?,
        (Program::LsmCgroup(program), Some(btf)) => program.load(HOOK, btf)?,
        _ => {
            let what =
                format!("programs of type {kind:?} are not loaded here: xtask/src/vm/features/object.rs");
            return Err(ProgramError::IOError(std::io::Error::other(what)));
        }
    }
    Ok(program.info()?.verified_instruction_count().unwrap_or(0))
}

/// The verifier's last words, where there are some.
fn words(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.to_string() };
    let log = verifier_log.to_string();
    let last: Vec<_> = log
        .lines()
        .rev()
        .filter(|line| !line.is_empty() && !line.starts_with("processed "))
        .take(3)
        .collect();
    let last: Vec<_> = last.into_iter().rev().map(str::trim).collect();
    format!("{io_error}: {}", last.join("; "))
}
