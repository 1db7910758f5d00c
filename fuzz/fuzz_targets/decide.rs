//! The verdict on any maps, sender and packet.
#![no_main]

#[path = "../checks/mod.rs"]
mod checks;
#[path = "../../egress-common/tests/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::decide::check(data));
