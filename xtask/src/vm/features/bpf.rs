//! The system call `bpf`, as far as trying features asks for it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type};
use nix::errno::Errno;
use nix::libc;

/// Why something does not work, in a few words.
pub(crate) type Try<T = ()> = Result<T, String>;

/// The name of an error, such as `EINVAL`.
fn named(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| format!("{:?}", Errno::from_raw(number)))
}

fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the attributes are of the length that is given; whatever they point to lives in the caller's frame.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn descriptor(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn empty() -> bpf_attr {
    // SAFETY: all zero is the empty value of each of the union's members, which are plain numbers.
    unsafe { std::mem::zeroed() }
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// What a map is to be.
pub(crate) struct MapKind<'a> {
    pub(crate) kind: bpf_map_type,
    pub(crate) key: u32,
    pub(crate) value: u32,
    pub(crate) entries: u32,
    pub(crate) flags: u32,
    /// Types of key and value: the first and the second of this BTF.
    pub(crate) types: Option<&'a OwnedFd>,
}

/// Makes a map.
pub(crate) fn map(map: &MapKind<'_>) -> Try<OwnedFd> {
    let mut attr = empty();
    attr.__bindgen_anon_1.map_type = map.kind as u32;
    attr.__bindgen_anon_1.key_size = map.key;
    attr.__bindgen_anon_1.value_size = map.value;
    attr.__bindgen_anon_1.max_entries = map.entries;
    attr.__bindgen_anon_1.map_flags = map.flags;
    if let Some(types) = map.types {
        attr.__bindgen_anon_1.btf_fd = number(types);
        attr.__bindgen_anon_1.btf_key_type_id = 1;
        attr.__bindgen_anon_1.btf_value_type_id = 2;
    }
    descriptor(bpf_cmd::BPF_MAP_CREATE, &mut attr).map_err(|error| named(&error))
}

/// A BTF of two types: `int` (four bytes, the first) and `long` (eight bytes, the second).
pub(crate) fn types() -> Try<OwnedFd> {
    let names = b"\0int\0long\0";
    // Magic, version, flags, length of the header; offsets and lengths of types and names.
    let header: [u32; 6] = [0x0001_eb9f, 24, 0, 32, 32, 10];
    // Name, kind INT, size, signed with all bits.
    let ints: [u32; 8] = [1, 1 << 24, 4, 1 << 24 | 32, 5, 1 << 24, 8, 1 << 24 | 64];
    let mut bytes: Vec<u8> = header.iter().chain(&ints).flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(names);
    let mut attr = empty();
    attr.__bindgen_anon_7.btf = bytes.as_ptr() as u64;
    attr.__bindgen_anon_7.btf_size = bytes.len() as u32;
    descriptor(bpf_cmd::BPF_BTF_LOAD, &mut attr).map_err(|error| named(&error))
}

/// Loads a program; an error has the verifier's last words.
pub(crate) fn program(
    kind: bpf_prog_type,
    attach: Option<bpf_attach_type>,
    function: u32,
    code: &[u64],
) -> Try<OwnedFd> {
    let mut log = vec![0_u8; 64 * 1024];
    let mut attr = empty();
    attr.__bindgen_anon_3.prog_type = kind as u32;
    attr.__bindgen_anon_3.insn_cnt = code.len() as u32;
    attr.__bindgen_anon_3.insns = code.as_ptr() as u64;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    attr.__bindgen_anon_3.log_level = 1;
    attr.__bindgen_anon_3.log_size = log.len() as u32;
    attr.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
    attr.__bindgen_anon_3.expected_attach_type = attach.map_or(0, |attach| attach as u32);
    attr.__bindgen_anon_3.attach_btf_id = function;
    descriptor(bpf_cmd::BPF_PROG_LOAD, &mut attr).map_err(|error| {
        let text = String::from_utf8_lossy(&log).into_owned();
        let lines = text.trim_end_matches('\0').lines();
        let words = lines.rev().find(|line| !line.is_empty() && !line.starts_with("processed "));
        words.map_or_else(|| named(&error), |words| format!("{}, {}", named(&error), words.trim()))
    })
}

/// Where a link goes.
pub(crate) enum Target<'a> {
    File(&'a dyn HasFd),
    Interface(u32),
    Nothing,
}

/// Something open.
pub(crate) trait HasFd {
    fn raw(&self) -> u32;
}

impl<T: AsFd> HasFd for T {
    fn raw(&self) -> u32 {
        self.as_fd().as_raw_fd().unsigned_abs()
    }
}

/// Attaches a program by a link, which lasts as long as the descriptor.
pub(crate) fn link(program: &OwnedFd, target: &Target<'_>, attach: bpf_attach_type) -> Try<OwnedFd> {
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = number(program);
    match target {
        Target::File(file) => attr.link_create.__bindgen_anon_2.target_fd = file.raw(),
        Target::Interface(index) => attr.link_create.__bindgen_anon_2.target_ifindex = *index,
        Target::Nothing => {}
    }
    attr.link_create.attach_type = attach as u32;
    descriptor(bpf_cmd::BPF_LINK_CREATE, &mut attr).map_err(|error| named(&error))
}

/// Runs a program on a packet and gives what it returned.
pub(crate) fn test_run(program: &OwnedFd, packet: &[u8]) -> Try<u32> {
    let mut attr = empty();
    attr.test.prog_fd = number(program);
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_size_in = packet.len() as u32;
    attr.test.repeat = 1;
    call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map_err(|error| named(&error))?;
    // SAFETY: this member was set above, and the kernel has filled it in.
    Ok(unsafe { attr.test.retval })
}

/// Pins a program.
pub(crate) fn pin(program: &OwnedFd, path: &Path) -> Try {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = number(program);
    call(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop).map_err(|error| named(&error))
}

/// The first entry of an array of eight-byte values.
pub(crate) fn first(array: &OwnedFd) -> Try<u64> {
    let (key, mut value) = (0_u32, 0_u64);
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = number(array);
    attr.__bindgen_anon_2.key = &raw const key as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw mut value as u64;
    call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr).map_err(|error| named(&error))?;
    Ok(value)
}
