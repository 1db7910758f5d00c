//! Small programs, instruction by instruction: what a compiler makes would say less about a kernel than about itself.

use std::os::fd::{AsRawFd as _, OwnedFd};

/// Registers.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R6: u8 = 6;
/// The stack's upper end.
const FP: u8 = 10;

/// Operations: load (8, 1 bytes), store an immediate (8, 4 bytes), add to memory, jump, move, add, call, exit.
const LOAD: u8 = 0x79;
const LOAD_BYTE: u8 = 0x71;
const STORE: u8 = 0x7a;
const STORE_WORD: u8 = 0x62;
const ADD_MEMORY: u8 = 0xdb;
const JUMP_IS: u8 = 0x15;
const JUMP_NOT: u8 = 0x55;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const ADD: u8 = 0x07;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_MAP: u8 = 0x18;

/// Helpers, by number (`include/uapi/linux/bpf.h`).
const MAP_LOOKUP: i32 = 1;
const LOAD_BYTES: i32 = 26;
const FULL_SOCKET: i32 = 95;
const STORAGE_GET: i32 = 107;

/// Where a context has its socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Socket {
    /// `__sk_buff.sk`, which may be no full socket.
    Packet,
    /// `bpf_sock_ops.sk`.
    Operations,
    /// `bpf_sock_addr.sk`, which is always there.
    Address,
}

const fn op(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

/// A map as a pointer: two instructions.
fn load_map(to: u8, map: &OwnedFd) -> [u64; 2] {
    [op(LOAD_MAP, to, 1, 0, map.as_raw_fd()), 0]
}

/// Returns a value.
pub(crate) fn constant(value: i32) -> Vec<u64> {
    vec![op(MOVE, R0, 0, 0, value), op(EXIT, 0, 0, 0, 0)]
}

/// Asks for the socket's storage and returns; `create` makes it. Where there is some and a counter is given, that goes
/// up by one.
pub(crate) fn storage(
    socket: Socket,
    storage: &OwnedFd,
    create: bool,
    counter: Option<&OwnedFd>,
    value: i32,
) -> Vec<u64> {
    let leave = constant(value);
    let offset = match socket {
        Socket::Packet => 168,
        Socket::Operations => 184,
        Socket::Address => 64,
    };
    let mut code = vec![op(LOAD, R1, R1, offset, 0)];
    let or_leave = |code: &mut Vec<u64>, register| {
        code.push(op(JUMP_NOT, register, 0, 2, 0));
        code.extend(&leave);
    };
    match socket {
        Socket::Packet => {
            or_leave(&mut code, R1);
            code.push(op(CALL, 0, 0, 0, FULL_SOCKET));
            or_leave(&mut code, R0);
            code.push(op(MOVE_REGISTER, R2, R0, 0, 0));
        }
        Socket::Operations => {
            or_leave(&mut code, R1);
            code.push(op(MOVE_REGISTER, R2, R1, 0, 0));
        }
        Socket::Address => code.push(op(MOVE_REGISTER, R2, R1, 0, 0)),
    }
    code.extend(load_map(R1, storage));
    code.extend([op(MOVE, R3, 0, 0, 0), op(MOVE, R4, 0, 0, create.into()), op(CALL, 0, 0, 0, STORAGE_GET)]);
    or_leave(&mut code, R0);
    if let Some(counter) = counter {
        count(&mut code, counter, &leave);
    }
    code.extend(leave);
    code
}

/// Adds one to the first entry of an array.
fn count(code: &mut Vec<u64>, counter: &OwnedFd, leave: &[u64]) {
    code.push(op(STORE_WORD, FP, 0, -16, 0));
    code.extend(load_map(R1, counter));
    code.extend([op(MOVE_REGISTER, R2, FP, 0, 0), op(ADD, R2, 0, 0, -16), op(CALL, 0, 0, 0, MAP_LOOKUP)]);
    code.push(op(JUMP_NOT, R0, 0, 2, 0));
    code.extend(leave);
    code.extend([op(MOVE, R1, 0, 0, 1), op(ADD_MEMORY, R0, R1, 0, 0)]);
}

/// Counts the answers to SYNs from a port, by IPv4 without options, and passes everything.
pub(crate) fn count_syn_acks(port: u16, counter: &OwnedFd) -> Vec<u64> {
    let leave = constant(1);
    let [high, low] = port.to_be_bytes();
    let mut code = vec![op(MOVE_REGISTER, R6, R1, 0, 0)];
    // Version and length of the IP header, protocol, source port, flags.
    for (at, value) in [(0, 0x45), (9, 6), (20, high), (21, low), (33, 0x12)] {
        code.extend([
            op(MOVE_REGISTER, R1, R6, 0, 0),
            op(STORE, FP, 0, -8, 0),
            op(MOVE, R2, 0, 0, at),
            op(MOVE_REGISTER, R3, FP, 0, 0),
            op(ADD, R3, 0, 0, -8),
            op(MOVE, R4, 0, 0, 1),
            op(CALL, 0, 0, 0, LOAD_BYTES),
            op(LOAD_BYTE, R1, FP, -8, 0),
            op(JUMP_IS, R1, 0, 2, value.into()),
        ]);
        code.extend(&leave);
    }
    count(&mut code, counter, &leave);
    code.extend(leave);
    code
}
