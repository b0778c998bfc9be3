//! Any bytes as a safetensors file: an error or tensors, never a panic.
#![no_main]

use std::io::Write;

use espalier::models::checkpoint::TensorFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    if let Ok(tensors) = TensorFile::open(file.path()) {
        let names: Vec<String> = tensors.names().map(str::to_owned).collect();
        for name in names {
            let _ = tensors.read_f32(&name, None);
            let _ = tensors.read_f32(&name, Some(1..3));
            let _ = tensors.read_i64(&name);
        }
    }
});
