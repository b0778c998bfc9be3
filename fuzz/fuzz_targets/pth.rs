//! Any bytes as a checkpoint of PyTorch, and as the pickle inside one: an error or tensors, never a panic.
#![no_main]

use std::io::Write;
use std::path::Path;

use espalier::models::checkpoint::TensorFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for whole in [bytes.to_vec(), archive(bytes)] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&whole).unwrap();
        read(file.path());
    }
});

fn read(path: &Path) {
    let Ok(tensors) = TensorFile::open(path) else {
        return;
    };
    let names: Vec<String> = tensors.names().map(str::to_owned).collect();
    for name in names {
        let _ = tensors.read_f32(&name, None);
        let _ = tensors.read_f32(&name, Some(1..3));
        let _ = tensors.read_i64(&name);
    }
}

/// A zip archive with this pickle and a storage of eight bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[0; 8])] {
        let sizes = [bytes.len() as u32; 2].map(u32::to_le_bytes).concat();
        let length = (name.len() as u16).to_le_bytes();
        directory.extend([b"PK\x01\x02", &[0; 16][..], &sizes, &length, &[0; 12]].concat());
        directory.extend([&(file.len() as u32).to_le_bytes()[..], name.as_bytes()].concat());
        file.extend(
            [
                b"PK\x03\x04",
                &[0; 14][..],
                &sizes,
                &length,
                &[0; 2],
                name.as_bytes(),
                bytes,
            ]
            .concat(),
        );
    }
    let places = [directory.len() as u32, file.len() as u32]
        .map(u32::to_le_bytes)
        .concat();
    file.extend(directory);
    file.extend([b"PK\x05\x06", &[0; 4][..], &[2, 0, 2, 0], &places, &[0; 2]].concat());
    file
}
