//! The container of GGUF files: what is written reads the same, and hostile files are clear errors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use espalier_data::gguf::{Metadata, TensorEntry, Value, header_bytes, read_header};
use proptest::prelude::*;

fn metadata() -> Metadata {
    let list = Value::List(9, vec![Value::integers([1, -2]), Value::integers([])]);
    let values = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::Text("träumt".into()),
        list,
        Value::U64(4),
        Value::I64(-4),
        Value::F64(0.25),
        Value::texts(["a".into(), String::new()]),
        Value::floats([1.5, -0.0]),
    ];
    let named = values
        .into_iter()
        .enumerate()
        .map(|(i, value)| (format!("key.{i:02}"), value));
    named
        .chain([("general.architecture".into(), Value::Text("llama".into()))])
        .collect()
}

fn tensors() -> Vec<TensorEntry> {
    let tensor = |name: &str, axes: Vec<u64>, kind, offset| TensorEntry {
        name: name.into(),
        axes,
        kind,
        offset,
    };
    vec![tensor("a", vec![2, 3], 0, 0), tensor("b", vec![32], 8, 32)]
}

fn error(bytes: &[u8]) -> String {
    read_header(bytes, bytes.len() as u64)
        .unwrap_err()
        .to_string()
}

#[test]
fn what_is_written_reads_the_same() {
    let mut bytes = header_bytes(&metadata(), &tensors());
    assert!(bytes.len().is_multiple_of(32));
    bytes.extend([0; 96]);
    let header = read_header(&bytes[..], bytes.len() as u64).unwrap();
    assert_eq!((header.metadata, header.tensors), (metadata(), tensors()));
    assert_eq!(
        (header.data + 96, header.alignment),
        (bytes.len() as u64, 32)
    );
    assert_eq!(bytes[24..52], *b"\x14\0\0\0\0\0\0\0general.architecture");
}

#[test]
fn a_header_by_its_bytes() {
    let metadata = Metadata::from([("a".into(), Value::U32(7))]);
    let mut expected =
        b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a\x04\0\0\0\x07\0\0\0"
            .to_vec();
    expected.resize(64, 0);
    assert_eq!(header_bytes(&metadata, &[]), expected);
}

/// The header with some bytes replaced.
fn with(place: usize, bytes: &[u8]) -> Vec<u8> {
    let metadata = Metadata::from([("key".into(), Value::texts(["piece".into()]))]);
    let mut file = [header_bytes(&metadata, &tensors()), vec![0; 96]].concat();
    file[place..place + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn hostile_files_are_told_what_is_wrong() {
    let many = u64::MAX.to_le_bytes();
    let cases = [
        (with(0, b"GGML"), "does not begin with GGUF"),
        (with(4, &[1]), "of version 1"),
        (with(4, &[0, 0, 0, 3]), "big-endian"),
        (with(4, &[9]), "of version 9; versions 2 and 3 are read"),
        (with(8, &many), "tensors; at most 131072 are read"),
        (
            with(8, &100_000u64.to_le_bytes()),
            "100000 tensors, but only",
        ),
        (with(16, &many), "18446744073709551615 keys, but only"),
        (
            with(24, &many),
            "a key is said to have 18446744073709551615 bytes",
        ),
        (with(35, &[77]), "`key` has the type 77"),
        (with(39, &[13]), "`key` lists the type 13"),
        (
            with(43, &many),
            "18446744073709551615 elements of `key`, but only",
        ),
        (
            with(51, &many),
            "key is said to have 18446744073709551615 bytes",
        ),
        // The tensor `a`: its name, axes, type and offset.
        (with(64, &many), "the name of a tensor is said to have"),
        (with(73, &[5]), "tensor `a` has 5 axes; at most 4 are read"),
        (
            with(77, &(1u64 << 60).to_le_bytes()),
            "tensor `a` is said to have the impossible shape",
        ),
        (
            with(97, &[8]),
            "tensor `a` begins at 8, which is no multiple of 32",
        ),
        (with(113, b"a"), "has the tensor `a` twice"),
    ];
    for (file, expected) in cases {
        let found = error(&file);
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let twice = header_bytes(
        &Metadata::from([("k".into(), Value::U8(0)), ("l".into(), Value::U8(0))]),
        &[],
    );
    let twice: Vec<u8> = twice
        .iter()
        .map(|byte| if *byte == b'l' { b'k' } else { *byte })
        .collect();
    assert!(error(&twice).contains("has the key `k` twice"));
    for alignment in [0, 12, 1 << 30] {
        let file = header_bytes(
            &Metadata::from([("general.alignment".into(), Value::U32(alignment))]),
            &[],
        );
        assert!(error(&file).contains("expected a multiple of 8"));
    }
    let whole = with(0, b"G");
    for length in 0..whole.len() - 96 {
        assert!(!error(&whole[..length]).is_empty());
    }
}

#[test]
fn lists_do_not_nest_for_ever() {
    let mut value = Value::integers([1]);
    for _ in 0..4 {
        value = Value::List(9, vec![value]);
    }
    assert!(
        error(&header_bytes(&Metadata::from([("k".into(), value)]), &[])).contains("deeper than 3")
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_header(&bytes[..], bytes.len() as u64);
    }

    #[test]
    fn flipped_bits_never_panic(flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0u8..8), 1..6)) {
        let mut bytes = header_bytes(&metadata(), &tensors());
        for (place, bit) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
        }
        let _ = read_header(&bytes[..], bytes.len() as u64);
    }
}
