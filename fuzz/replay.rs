//! What the fuzzer's bodies are run with where there is no fuzzer, in the tests of the crates that have them: the inputs that
//! were kept, and others for some seconds.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs a body over the inputs in `fuzz/corpus/NAME`, and for a time over mutations of them.
pub(crate) fn run(name: &str, time: Duration, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&folder).expect("the kept inputs") {
        inputs.push(fs::read(entry.expect("an entry").path()).expect("an input"));
    }
    assert!(!inputs.is_empty(), "no inputs are kept in {}", folder.display());
    inputs.iter().for_each(|input| body(input));

    // xorshift64
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let begin = Instant::now();
    let mut rounds = 0;
    while begin.elapsed() < time {
        let mut input = inputs[next() as usize % inputs.len()].clone();
        for _ in 0..=next() % 8 {
            let at = next() as usize % input.len().max(1);
            match next() % 4 {
                0 => input.extend(next().to_le_bytes()),
                1 => input.truncate(at.max(4)),
                2 => input[at..].iter_mut().take(4).for_each(|byte| *byte = next() as u8),
                _ => input[at] ^= 1 << (next() % 8),
            }
        }
        body(&input);
        rounds += 1;
    }
    assert!(rounds > 100, "only {rounds} inputs");
}
