//! Adapters that PEFT made on every family: what they compute here is what PEFT computed, and they are saved under PEFT's names.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use burn::tensor::Device;
use espalier_models::{
    checkpoint::TensorFile,
    folder,
    model::{Input, LanguageModel},
};
use fixture_lists::{Kind, fixture, kind};

/// The models that have an adapter of PEFT's, found by looking.
fn adapted() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixture("adapters"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() > 20);
    names
}

/// What the expectations ask for: logits, or the hidden states of a model without a head.
fn computed(model: &LanguageModel, name: &str, expected: &TensorFile) -> (Vec<f32>, Vec<f32>) {
    let rows = |tensor: &str| {
        let info = expected.info(tensor).unwrap().shape.clone();
        let ids = expected.read_i64(tensor).unwrap();
        let rows = ids.chunks(info[1]);
        rows.map(|row| row.iter().map(|id| *id as u32).collect())
            .collect::<Vec<Vec<u32>>>()
    };
    let ids = rows("input_ids");
    let lengths: Vec<usize> = match expected.info("attention_mask") {
        Some(_) => rows("attention_mask")
            .iter()
            .map(|row| row.iter().filter(|seen| **seen == 1).count())
            .collect(),
        None => ids.iter().map(Vec::len).collect(),
    };
    let own: Vec<Vec<u32>> = ids
        .iter()
        .zip(&lengths)
        .map(|(row, length)| row[..*length].to_vec())
        .collect();
    let tensor = match expected.info("logits") {
        Some(_) => "logits",
        None => "last_hidden_state",
    };
    let input = match kind(name) {
        Some(Kind::EncoderDecoder) => {
            let encoder = model.spec().encoder.as_ref().unwrap();
            let start = |row: &[u32]| match encoder.starts_with_last {
                true => row[row.len() - 1],
                false => encoder.decoder_start,
            };
            let target =
                |row: Vec<u32>| [vec![start(&row)], row[..row.len() - 1].to_vec()].concat();
            Input {
                source: Some(Box::new(Input::padded(&own))),
                ..Input::rows(&rows("labels").into_iter().map(target).collect::<Vec<_>>()).unwrap()
            }
        }
        _ => Input::padded(&own),
    };
    let ours = match tensor {
        "logits" => model.logits(&input).unwrap(),
        _ => model.hidden(&input, None).unwrap(),
    };
    let [_, time, width] = ours.dims();
    let ours = ours.into_data().try_into_vec::<f32>().unwrap();
    let theirs = expected.read_f32(tensor, None).unwrap();
    assert_eq!(ours.len(), theirs.len(), "{name}");
    // Padding is nobody's business.
    let seen = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks(time * width).zip(&lengths);
        match kind(name) {
            Some(Kind::EncoderDecoder) => values.to_vec(),
            _ => rows
                .flat_map(|(row, length)| row[..length * width].to_vec())
                .collect(),
        }
    };
    (seen(&ours), seen(&theirs))
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn adapters_of_peft_compute_what_they_compute_there() {
    let mut wrong = Vec::new();
    for name in adapted() {
        let folder = fixture("adapters").join(&name);
        let expected = TensorFile::open(&folder.join("expected.safetensors")).unwrap();
        let loaded = match folder::load(&folder, &Device::flex()) {
            Ok(loaded) => loaded,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (ours, theirs) = computed(&loaded.model, &name, &expected);
        let base = folder::load(&fixture(&name), &Device::flex())
            .unwrap()
            .model;
        let (plain, _) = computed(&base, &name, &expected);
        assert!(
            gap(&plain, &theirs) > 1e-2,
            "{name}: the adapter does nothing"
        );
        let difference = gap(&ours, &theirs);
        if difference > 1e-4 {
            wrong.push(format!("{name}: differs by {difference}"));
        }
        // What is saved has PEFT's names and computes the same.
        let saved = tempfile::tempdir().unwrap();
        let family = loaded.family().unwrap();
        loaded
            .adapter
            .as_ref()
            .unwrap()
            .save(&loaded.model, family, saved.path())
            .unwrap();
        let names = |folder: &std::path::Path| {
            let file = TensorFile::open(&folder.join("adapter_model.safetensors")).unwrap();
            file.names().map(str::to_owned).collect::<Vec<String>>()
        };
        assert_eq!(names(saved.path()), names(&folder), "{name}");
        let path = saved.path().join("adapter_config.json");
        let mut config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["base_model_name_or_path"] = fixture(&name).to_string_lossy().into();
        std::fs::write(&path, config.to_string()).unwrap();
        let again = folder::load(saved.path(), &Device::flex()).unwrap();
        let (again, _) = computed(&again.model, &name, &expected);
        assert!(gap(&again, &ours) < 1e-5, "{name}: {}", gap(&again, &ours));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
