//! What a saved folder keeps of the folder that the model came from.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{fs, path::Path};

use burn::tensor::Device;
use espalier_models::{checkpoint::Dtype, folder};
use serde_json::{Map, Value, json};

fn object(path: &Path) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A fixture with keys of its two configurations changed, loaded and saved again: the two as they are then.
fn saved(name: &str, config: Value, generation: Value) -> [Map<String, Value>; 2] {
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name);
    let (folder, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |file: &str, changes: Value| {
        let mut map = object(&source.join(file));
        map.extend(changes.as_object().unwrap().clone());
        fs::write(folder.path().join(file), Value::Object(map).to_string()).unwrap();
    };
    write("config.json", config);
    write("generation_config.json", generation);
    let weights = "model.safetensors";
    fs::copy(source.join(weights), folder.path().join(weights)).unwrap();
    let loaded = folder::load(folder.path(), &Device::flex()).unwrap();
    folder::save_from(
        &loaded.model,
        again.path(),
        Some(&loaded.config),
        &loaded.generation,
        Dtype::F32,
    )
    .unwrap();
    ["config.json", "generation_config.json"].map(|file| object(&again.path().join(file)))
}

#[test]
fn how_a_model_generates_is_kept() {
    let said = json!({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": true, "repetition_penalty": 1.05,
        "eos_token_id": [2, 5], "pad_token_id": 7, "max_new_tokens": 99});
    let [config, generation] = saved("qwen2", json!({}), said.clone());
    for (key, value) in said.as_object().unwrap() {
        assert_eq!(&generation[key], value, "{key}");
    }
    // The end tokens are the model's, for readers of either file.
    assert_eq!(config["eos_token_id"], json!([2, 5]));
}

#[test]
fn numbers_keep_their_form() {
    let [config, _] = saved(
        "gemma2",
        json!({"rms_norm_eps": 1e-6, "attn_logit_softcapping": 50}),
        json!({}),
    );
    assert!(config["query_pre_attn_scalar"].is_u64());
    assert_eq!(config["attn_logit_softcapping"].to_string(), "50");
    let [config, _] = saved(
        "llama",
        json!({"rope_parameters": {"rope_type": "default", "rope_theta": 10000}}),
        json!({}),
    );
    assert_eq!(config["rope_parameters"]["rope_theta"].to_string(), "10000");
}

#[test]
fn tokens_of_generation_come_before_those_of_the_configuration() {
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures"));
    let read = |name: &str, config: Value, generation: Value| {
        let (source, folder) = (source.join(name), tempfile::tempdir().unwrap());
        let mut map = object(&source.join("config.json"));
        map.extend(config.as_object().unwrap().clone());
        map.retain(|_, value| !value.is_null());
        fs::write(
            folder.path().join("config.json"),
            Value::Object(map).to_string(),
        )
        .unwrap();
        let path = folder.path().join("generation_config.json");
        fs::write(path, generation.to_string()).unwrap();
        let weights = "model.safetensors";
        fs::copy(source.join(weights), folder.path().join(weights)).unwrap();
        folder::Description::read(folder.path()).map(|read| read.spec)
    };
    let nothing = json!({"decoder_start_token_id": null, "forced_eos_token_id": null});
    let said =
        json!({"decoder_start_token_id": 9, "forced_bos_token_id": 44, "forced_eos_token_id": 7});
    for name in ["bart", "t5"] {
        for config in [&nothing, &json!({})] {
            let spec = read(name, config.clone(), said.clone()).unwrap();
            let encoder = spec.encoder.unwrap();
            assert_eq!(
                (
                    encoder.decoder_start,
                    encoder.forced_first,
                    encoder.forced_last
                ),
                (9, Some(44), Some(7)),
                "{name}"
            );
        }
    }
    // A model without an encoder has no use for them, and is read all the same.
    assert!(read("llama", json!({}), said).unwrap().encoder.is_none());
    for key in [
        "eos_token_id",
        "forced_bos_token_id",
        "decoder_start_token_id",
    ] {
        let error = read("bart", json!({}), json!({ key: "2" })).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("generation_config.json") && said.contains(key),
            "{said}"
        );
    }
}

#[test]
fn what_is_changed_by_hand_wins_over_both_files() {
    let source = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/llama"
    ));
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(source.join(file), folder.path().join(file)).unwrap();
    }
    let said = json!({"eos_token_id": [2, 5]}).to_string();
    fs::write(folder.path().join("generation_config.json"), said).unwrap();
    let ends = |changes: Value| {
        let changes = changes.as_object().unwrap();
        let loaded = folder::load_changed(folder.path(), changes, &Device::flex()).unwrap();
        loaded.model.spec().eos.clone()
    };
    assert_eq!(ends(json!({})), [2, 5]);
    assert_eq!(ends(json!({"eos_token_id": 7})), [7]);
}
