//! Models without a head, of every family whose files usually have one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::path::PathBuf;

use burn::tensor::Device;
use espalier_models::{
    checkpoint::{Checkpoint, Dtype, TensorFile, TensorPlan, TensorWriter},
    families::{self, Config},
    folder,
    model::{Input, LanguageModel},
};
use serde_json::json;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");

/// The folders within a folder of fixtures that hold a model.
fn folders(within: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(PathBuf::from(FIXTURES).join(within)).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("config.json").exists());
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

fn rows(file: &TensorFile, tensor: &str) -> Input {
    let batch = file.info(tensor).unwrap().shape[0];
    let ids = file.read_i64(tensor).unwrap();
    Input {
        ids: ids.into_iter().map(|id| id as u32).collect(),
        batch,
        ..Input::default()
    }
}

/// What the model reads of its expectations.
fn input(file: &TensorFile) -> Input {
    match file.info("decoder_input_ids") {
        None => rows(file, "input_ids"),
        Some(_) => Input {
            source: Some(Box::new(rows(file, "input_ids"))),
            ..rows(file, "decoder_input_ids")
        },
    }
}

fn logits(model: &LanguageModel, input: &Input) -> Vec<f32> {
    let logits = model.logits(input).unwrap();
    logits.into_data().try_into_vec().unwrap()
}

#[test]
fn their_hidden_states_are_those_of_transformers_and_their_embedding_is_the_head() {
    for folder in folders("base-models") {
        let name = folder.display();
        let expected = TensorFile::open(&folder.join("expected.safetensors")).unwrap();
        let input = input(&expected);
        let loaded = folder::load(&folder, &Device::flex()).unwrap();
        let hidden = loaded.model.hidden(&input, None).unwrap();
        let hidden: Vec<f32> = hidden.into_data().try_into_vec().unwrap();
        let theirs = expected.read_f32("last_hidden_state", None).unwrap();
        assert_eq!(hidden.len(), theirs.len(), "{name}");
        let gap = |(a, b): (&f32, &f32)| (a - b).abs();
        let gap = hidden.iter().zip(&theirs).map(gap).fold(0.0, f32::max);
        assert!(gap < 1e-4, "{name}: {gap}");
        assert!(loaded.model.spec().tied_head, "{name}");
        // It is saved with its head, and is the same then.
        let saved = tempfile::tempdir().unwrap();
        let config = Some(&loaded.config);
        folder::save(&loaded.model, saved.path(), config, Dtype::F32).unwrap();
        let again = folder::load(saved.path(), &Device::flex()).unwrap();
        assert!(again.remarks.is_empty(), "{name}: {:?}", again.remarks);
        let family = again.family().unwrap();
        assert_eq!(again.config["architectures"], json!([family.architecture]));
        assert_eq!(
            logits(&again.model, &input),
            logits(&loaded.model, &input),
            "{name}"
        );
    }
}

/// Every family's base model loads: the fixture's file without its head, and without what base models leave out of their names.
#[test]
fn every_family_loads_without_its_head() {
    let mut tried = 0;
    for folder in folders("") {
        let Ok(config) = Config::load(&folder) else {
            continue;
        };
        let family = families::family(&config).unwrap();
        let named = |end: &str| family.architecture.strip_suffix(end);
        let base = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"];
        let (Some(stem), Ok(checkpoint)) =
            (base.into_iter().find_map(named), Checkpoint::open(&folder))
        else {
            continue;
        };
        // Packed weights are not written again as numbers.
        let is_packed = config.map().contains_key("quantization_config");
        if config.map()["architectures"] != json!([family.architecture]) || is_packed {
            continue;
        }
        let stem = if stem == "Gemma3" { "Gemma3Text" } else { stem };
        let config = config.with("architectures", json!([format!("{stem}Model")]));
        let bare = |name: &str| name.strip_prefix(family.prefix).unwrap_or(name).to_owned();
        let is_head = |name: &str| {
            ["lm_head.", "embed_out.", "final_logits_bias"]
                .iter()
                .any(|head| name.starts_with(head))
        };
        let names: Vec<&str> = checkpoint.names().filter(|name| !is_head(name)).collect();
        let plans = names.iter().map(|name| TensorPlan {
            name: bare(name),
            dtype: Dtype::F32,
            shape: checkpoint.info(name).unwrap().shape.clone(),
        });
        let copy = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(config.map()).unwrap();
        std::fs::write(copy.path().join("config.json"), text).unwrap();
        TensorWriter::new(plans.collect())
            .unwrap()
            .write_file(&copy.path().join("model.safetensors"), |name| {
                let full = names.iter().find(|full| bare(full) == name).unwrap();
                checkpoint.read_f32(full, None)
            })
            .unwrap();
        let [whole, alone] = [folder.as_path(), copy.path()].map(|folder| {
            let loaded = folder::load(folder, &Device::flex());
            let model = loaded.unwrap_or_else(|error| panic!("{error}")).model;
            let source = Input::rows(&[vec![7, 8, 9]]).unwrap();
            let source = model.spec().encoder.is_some().then(|| Box::new(source));
            let row = Input::rows(&[vec![3, 4, 5, 6]]).unwrap();
            let hidden = model.hidden(&Input { source, ..row }, None).unwrap();
            folder::check_savable(model.spec(), None).unwrap();
            hidden.into_data().try_into_vec::<f32>().unwrap()
        });
        assert_eq!(whole, alone, "{}", folder.display());
        tried += 1;
    }
    assert!(tried > 70, "{tried}");
}
