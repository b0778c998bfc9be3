//! Greedy decoding of GGUF files gives llama.cpp's tokens (`tests/fixtures/make/gguf_greedy.py`), from the file as it is and from one written
//! here; and with keys and values in fewer bits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_engine::{
    decode::{DecodeOptions, decode},
    sampler::SamplerOptions,
};
use espalier_models::{
    checkpoint::gguf::{self, Importance, Mixture},
    folder,
    model::LanguageModel,
    rounded_cache::CacheFormat,
};
use serde_json::Value;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/gguf");

/// What llama.cpp said: the model, a prompt, and the tokens that follow as long as no two were about equally likely.
fn said() -> Vec<(String, Vec<u32>, Vec<u32>)> {
    let text = std::fs::read_to_string(format!("{FIXTURES}/greedy.jsonl")).unwrap();
    let ids = |value: &Value| -> Vec<u32> {
        let ids = value.as_array().unwrap().iter();
        ids.map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            (
                line["model"].as_str().unwrap().to_owned(),
                ids(&line["prompt"]),
                ids(&line["tokens"]),
            )
        })
        .collect()
}

fn load(path: &Path) -> LanguageModel {
    folder::load(path, &Device::flex()).unwrap().model
}

fn greedy(model: &LanguageModel, prompt: &[u32], count: usize) -> Vec<u32> {
    let options = DecodeOptions {
        max_new_tokens: count,
        sampler: SamplerOptions {
            temperature: 0.0,
            ..SamplerOptions::default()
        },
        end: Vec::new(),
    };
    let mut generated = decode(model, &[prompt.to_vec()], &options, &mut |_, _| true).unwrap();
    generated.remove(0).ids
}

#[test]
fn tokens_are_llama_cpps() {
    let (said, mut checked) = (said(), 0);
    let mut names: Vec<&String> = said.iter().map(|(name, ..)| name).collect();
    names.dedup();
    assert!(names.len() >= 10, "{names:?}");
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        let path: PathBuf = format!("{FIXTURES}/models/{name}.gguf").into();
        let model = load(&path);
        let written = folder.path().join(format!("{name}.gguf"));
        let tokenizer = gguf::no_tokenizer(model.spec());
        gguf::write(
            &model,
            tokenizer,
            name,
            &written,
            Mixture::F32,
            &Importance::default(),
        )
        .unwrap();
        let again = load(&written);
        for (_, prompt, tokens) in said.iter().filter(|(own, ..)| own == name) {
            assert_eq!(
                &greedy(&model, prompt, tokens.len()),
                tokens,
                "{name}: {prompt:?}"
            );
            assert_eq!(
                &greedy(&again, prompt, tokens.len()),
                tokens,
                "{name}: {prompt:?}"
            );
            checked += tokens.len();
        }
    }
    assert!(checked > 400, "{checked}");
}

#[test]
fn caches_in_fewer_bits_say_nearly_the_same() {
    let mut model = load(format!("{FIXTURES}/models/qwen3.gguf").as_ref());
    let whole = greedy(&model, &[5, 9, 11, 20], 12);
    model.set_cache_format(CacheFormat::Bf16).unwrap();
    let halved = greedy(&model, &[5, 9, 11, 20], 12);
    let same = whole
        .iter()
        .zip(&halved)
        .take_while(|(a, b)| a == b)
        .count();
    assert!(same >= 6, "{whole:?} {halved:?}");
    let mut narrow = load(format!("{FIXTURES}/models/llama.gguf").as_ref());
    let refused = narrow
        .set_cache_format(CacheFormat::Q8_0)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("the 12 numbers of a position are no whole blocks of 32"),
        "{refused}"
    );
}
