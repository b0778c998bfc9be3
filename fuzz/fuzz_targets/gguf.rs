//! Any bytes as a GGUF file: an error, or a header, tensors, a configuration and a tokenizer, never a panic.
#![no_main]

use std::io::Write;

use espalier::{
    data::{gguf::read_header, tokenizer::Tokenizer},
    models::checkpoint::Checkpoint,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bytes = [b"GGUF\x03\0\0\0", bytes].concat();
    if let Ok(header) = read_header(&bytes[..], bytes.len() as u64) {
        let _ = Tokenizer::from_gguf(&header.metadata);
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let Ok(checkpoint) = Checkpoint::open(file.path()) else {
        return;
    };
    let _ = checkpoint.configuration();
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    for name in names {
        let _ = checkpoint.read_f32(&name, None);
        let _ = checkpoint.read_f32(&name, Some(1..3));
    }
});
