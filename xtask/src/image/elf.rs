//! Whether a program stands alone.

use anyhow::{Context as _, bail};

/// `PT_INTERP`, `include/uapi/linux/elf.h`: a program that needs a loader, and with it a system.
const INTERPRETER: u32 = 3;

/// Checks that a program for a 64-bit little-endian machine needs no loader.
pub(crate) fn check_static(program: &[u8]) -> anyhow::Result<()> {
    if !program.starts_with(b"\x7fELF\x02\x01") {
        bail!("not a program for a 64-bit little-endian machine");
    }
    let number = |at: usize, length: usize| {
        let bytes = program.get(at..at + length).context("the program's headers are cut off")?;
        anyhow::Ok(bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let (start, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for header in 0..count {
        let at = usize::try_from(start + header * size)?;
        if number(at, 4)? == u64::from(INTERPRETER) {
            bail!("it is linked dynamically, and an image from scratch has no libraries");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_static;

    #[test]
    fn a_program_that_needs_a_loader_is_found() {
        // This test is such a program.
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert!(check_static(&program).unwrap_err().to_string().contains("dynamically"));
        assert!(check_static(b"#!/bin/sh").is_err() && check_static(&program[..100]).is_err());
    }
}
