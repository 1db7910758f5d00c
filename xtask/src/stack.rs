//! How much of the stack the programs may use, as kernels count that.
//!
//! Invariant: what is built is accepted by the verifier of every kernel as far as its stack goes. Kernels up to 6.7 or so round each frame
//! up to 32 bytes, later ones to 16 (`round_up_stack_depth`, `kernel/bpf/verifier.c`), and all allow 512 bytes for a function with
//! those that it calls: what fits here may be refused there. Tested by its unit tests, and by `test --vm 6.1`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;

/// `MAX_BPF_STACK`.
const LIMIT: u32 = 512;
/// What frames are rounded up to by the kernels that round most.
const ROUND: u32 = 32;

/// `BPF_CALL | BPF_JMP`.
const CALL: u8 = 0x85;
/// Of a call: another function of the program (`BPF_PSEUDO_CALL`).
const OWN: u8 = 1;
/// `mov64` of a register, `add64` of a number.
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
/// The frame's upper end.
const FRAME: u8 = 10;

/// The bytes of stack that each program may use with everything that it calls, by name.
///
/// # Errors
/// A program may use more than every kernel allows, or cannot be linked.
pub(crate) fn depths(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut object = Object::parse(bytes).context("the built object cannot be read")?;
    let text = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&text).context("the built object cannot be linked")?;
    let mut depths = BTreeMap::new();
    for (name, program) in &object.programs {
        let function = object.functions.get(&program.function_key());
        let frames = deepest(&function.context("a program without instructions")?.instructions);
        let depth = frames.iter().sum();
        if depth > LIMIT {
            let frames = frames.iter().map(u32::to_string).collect::<Vec<_>>().join(" + ");
            bail!(
                "{name} may use {depth} bytes of stack ({frames}) where frames are rounded up to {ROUND} (6.1); {LIMIT} are allowed"
            );
        }
        depths.insert(name.clone(), depth);
    }
    Ok(depths)
}

/// The frames of the chain of calls from the first instruction on that may use the most.
fn deepest(program: &[bpf_insn]) -> Vec<u32> {
    let mut starts = BTreeSet::from([0]);
    starts.extend(program.iter().enumerate().filter_map(|(at, one)| called(at, one)));
    let starts: Vec<usize> = starts.into_iter().collect();
    let ends = starts.iter().skip(1).copied().chain([program.len()]);
    let functions: BTreeMap<usize, (u32, BTreeSet<usize>)> = starts
        .iter()
        .zip(ends)
        .map(|(start, end)| {
            let calls = (*start..end).filter_map(|at| called(at, program.get(at)?)).collect();
            (*start, (frame(program.get(*start..end).unwrap_or_default()), calls))
        })
        .collect();
    chain(&functions, 0, 0)
}

/// The deepest chain from a function on; `above` many functions called it, and no program calls as deep as it has functions.
fn chain(functions: &BTreeMap<usize, (u32, BTreeSet<usize>)>, start: usize, above: usize) -> Vec<u32> {
    let Some((frame, calls)) = functions.get(&start).filter(|_| above < functions.len()) else {
        return Vec::new();
    };
    let chains = calls.iter().map(|call| chain(functions, *call, above + 1));
    let below = chains.max_by_key(|frames| frames.iter().sum::<u32>()).unwrap_or_default();
    [vec![frame.max(&1).next_multiple_of(ROUND)], below].concat()
}

/// Where an instruction calls another function of the program.
fn called(at: usize, one: &bpf_insn) -> Option<usize> {
    (one.code == CALL && one.src_reg() == OWN).then(|| at.checked_add_signed(one.imm as isize + 1))?
}

/// The lowest byte of its frame that a function reads, writes, or makes an address of.
fn frame(function: &[bpf_insn]) -> u32 {
    let mut lowest = 0;
    // Registers that hold the frame's upper end.
    let mut ends = [false; 16];
    for one in function {
        let (to, from) = (one.dst_reg(), one.src_reg());
        // Loads are of class 1, stores of 2 and 3.
        let base = match one.code & 7 {
            1 => Some(from),
            2 | 3 => Some(to),
            _ => None,
        };
        if base == Some(FRAME) {
            lowest = lowest.min(i32::from(one.off));
        }
        let holds = &mut ends[usize::from(to)];
        match one.code {
            MOVE => *holds = from == FRAME,
            ADD if *holds => {
                lowest = lowest.min(one.imm);
                *holds = false;
            }
            // Stores and jumps leave the register as it is.
            code if matches!(code & 7, 0 | 1 | 4 | 7) => *holds = false,
            _ => {}
        }
    }
    lowest.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
        let registers = bpf_insn::new_bitfield_1(to, from);
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off, imm }
    }

    /// `*(u64 *)(r10 - bytes) = 0`.
    fn store(bytes: i16) -> bpf_insn {
        instruction(0x7a, FRAME, 0, -bytes, 0)
    }

    fn exit() -> bpf_insn {
        instruction(0x95, 0, 0, 0, 0)
    }

    fn call(over: i32) -> bpf_insn {
        instruction(CALL, 0, OWN, 0, over)
    }

    #[test]
    fn frames_are_what_is_read_written_or_named() {
        assert_eq!(frame(&[store(8), store(24), exit()]), 24);
        assert_eq!(frame(&[instruction(0x79, 1, FRAME, -40, 0), exit()]), 40);
        let named = [instruction(MOVE, 2, FRAME, 0, 0), store(8), instruction(ADD, 2, 0, 0, -56), exit()];
        assert_eq!(frame(&named), 56);
        // Another register's sum, and one that was overwritten, are no addresses of the frame.
        let other = [instruction(MOVE, 2, 1, 0, 0), instruction(ADD, 2, 0, 0, -56), exit()];
        assert_eq!(frame(&other), 0);
    }

    #[test]
    fn frames_of_a_chain_add_up_and_those_beside_it_do_not() {
        // main (40) calls a (8) and b (100); b calls c (none).
        let program =
            [store(40), call(2), call(3), exit(), store(8), exit(), store(100), call(1), exit(), exit()];
        assert_eq!(deepest(&program), [64, 128, 32]);
    }

    #[test]
    fn the_programs_fit_every_kernels_stack() {
        // As `build-ebpf` left it, which the agent has in itself.
        let object = crate::command::root().join("target/bpf/egress-ebpf.o");
        let depths = depths(&std::fs::read(object).unwrap()).unwrap();
        assert!(depths.len() >= 9 && depths["egress_socket"] > 312, "{depths:?}");
    }
}
