//! Any bytes as a data set: errors or records, never a panic.
#![no_main]

use std::io::Write;

use espalier::data::readers::{Source, read_all};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for suffix in [".jsonl", ".json", ".txt"] {
        let mut file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let _ = read_all(&Source::new(file.path()), true);
        let _ = read_all(&Source::new(file.path()), false);
    }
});
