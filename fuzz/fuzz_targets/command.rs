#![no_main]

#[path = "../../nexus/tests/hostile/bodies.rs"]
#[allow(dead_code, reason = "each target runs one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::command(bytes));
