//! The fixtures of all families, found by looking: a new one is tested by lying in its folder.
#![allow(dead_code, reason = "every test needs some of it")]

pub mod adapter_folders;
pub mod outputs;

use std::path::PathBuf;

use espalier_models::checkpoint::TensorFile;

/// What a fixture's model reads and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Predicts the next token.
    Decoder,
    /// Reads a source, predicts the next token.
    EncoderDecoder,
    /// Reads texts both ways.
    Encoder,
}

/// All kinds.
pub const EVERY: [Kind; 3] = [Kind::Decoder, Kind::EncoderDecoder, Kind::Encoder];

/// The folder of the fixture `name`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

/// The kind of the fixture `name`, by what its expectations hold; adapters and odd files have none.
pub fn kind(name: &str) -> Option<Kind> {
    let folder = fixture(name);
    if folder.join("adapter_config.json").exists() {
        return None;
    }
    let expected = TensorFile::open(&folder.join("expected.safetensors")).ok()?;
    let has = |tensor| expected.info(tensor).is_some();
    Some(match (has("generated"), has("labels")) {
        (true, true) => Kind::EncoderDecoder,
        (true, false) => Kind::Decoder,
        // RWKV's own package gives states and no continuation.
        (false, _) if has("logits") && !has("attention_mask") => Kind::Decoder,
        (false, _) => Kind::Encoder,
    })
}

/// The names of the fixtures of these kinds, in order.
pub fn fixtures(kinds: &[Kind]) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixture(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| kind(name).is_some_and(|kind| kinds.contains(&kind)))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names
}
