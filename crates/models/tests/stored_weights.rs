//! Weights that stay as their file holds them: every family against the same numbers in f32, adapters over them, training, saving.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::path::Path;

use burn::tensor::Device;
use espalier_kernels::linear::Precision;
use espalier_models::{
    adapter::Adapter,
    checkpoint::{Checkpoint, Dtype, PeftConfig, TensorFile, peft_config::Targets},
    folder::{self, LoadedModel},
    model::{Input, LanguageModel},
    parameter::{Parameter, Parameters},
    state::SequenceState,
};
use fixture_lists::{EVERY, Kind, fixture, fixtures, kind};

fn load(folder: &Path) -> LoadedModel {
    folder::load(folder, &Device::flex()).unwrap()
}

/// The fixture, saved in `dtype`.
fn saved(name: &str, dtype: Dtype) -> tempfile::TempDir {
    let loaded = load(&fixture(name));
    let folder = tempfile::tempdir().unwrap();
    folder::save(&loaded.model, folder.path(), Some(&loaded.config), dtype).unwrap();
    folder
}

/// The same model with every weight in f32.
fn expanded(model: &LanguageModel) -> LanguageModel {
    let mut copy = model.clone();
    copy.visit_mut(&mut |parameter| parameter.set_flat(parameter.flat()));
    assert!(copy.parameters().iter().all(|p| p.as_stored().is_none()));
    copy
}

/// `rows` rows of `time` tokens, with sources where the model has an encoder.
fn input(name: &str, rows: usize, time: usize) -> Input {
    let row = |row: usize| {
        (0..time)
            .map(|i| ((i * 7 + row * 11) % 40) as u32)
            .collect()
    };
    let source = || {
        Box::new(Input::padded(
            &[(3..20).collect(), (5..12).collect()][..rows],
        ))
    };
    Input {
        source: (kind(name) == Some(Kind::EncoderDecoder)).then(source),
        ..Input::rows(&(0..rows).map(row).collect::<Vec<_>>()).unwrap()
    }
}

fn logits(model: &LanguageModel, input: &Input) -> Vec<f32> {
    let logits = match model.spec().headless {
        true => model.hidden(input, None).unwrap(),
        false => model.logits(input).unwrap(),
    };
    logits.into_data().try_into_vec::<f32>().unwrap()
}

/// The logits of one token after another.
fn steps(model: &LanguageModel, input: &Input) -> Vec<f32> {
    let mut state = SequenceState::new(model.spec());
    let mut all = Vec::new();
    for id in &input.ids {
        let step = Input::rows(&[vec![*id]]).unwrap();
        let hidden = model.hidden(&step, Some(&mut state)).unwrap();
        all.extend(
            model
                .head(hidden)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap(),
        );
    }
    all
}

#[test]
fn stored_weights_give_the_logits_of_the_expanded_ones() {
    for name in &fixtures(&EVERY) {
        for (dtype, format) in [(Dtype::BF16, "bf16"), (Dtype::F16, "f16")] {
            let folder = saved(name, dtype);
            let mut model = load(folder.path()).model;
            let mut twin = expanded(&model);
            let stored = model.parameters();
            let stored = stored.iter().filter_map(|p| p.as_stored());
            assert!(
                stored
                    .clone()
                    .all(|stored| stored.format().name() == format)
            );
            assert!(stored.count() > 2, "{name}");
            for precision in [Precision::F32, Precision::Bf16] {
                model.set_precision(precision);
                twin.set_precision(precision);
                for input in [input(name, 1, 3), input(name, 2, 9)] {
                    assert!(
                        logits(&model, &input) == logits(&twin, &input),
                        "{name} in {format}, products in {precision}"
                    );
                }
            }
            if kind(name) == Some(Kind::Decoder) {
                let input = input(name, 1, 6);
                assert!(
                    steps(&model, &input) == steps(&twin, &input),
                    "{name} in {format}"
                );
            }
        }
    }
}

#[test]
fn what_lies_in_rows_stays_in_the_file_and_clones_share_it() {
    for (name, mapped) in [
        ("llama", true),
        ("phi3", true),
        ("gpt2", false),
        ("bloom-alibi", false),
    ] {
        let folder = saved(name, Dtype::BF16);
        let model = load(folder.path()).model;
        let query = |model: &LanguageModel| {
            let all = model.parameters();
            let query = all
                .iter()
                .find(|p| p.name() == "blocks.0.mixer.query.weight");
            query.unwrap().as_stored().unwrap().bytes().clone()
        };
        assert_eq!(query(&model).is_mapped(), mapped, "{name}");
        assert_eq!(query(&model).as_ptr(), query(&model.frozen()).as_ptr());
        // Two bytes each; norms and biases four.
        let bytes: usize = model.parameters().iter().map(|p| p.bytes()).sum();
        let numbers: usize = model.parameters().iter().map(|p| p.len()).sum();
        let small: usize = model
            .parameters()
            .iter()
            .filter(|p| p.as_stored().is_none())
            .map(|p| p.len())
            .sum();
        assert_eq!(bytes, 2 * numbers + 2 * small);
    }
}

#[test]
fn trained_weights_are_f32_and_stay_so() {
    let folder = saved("llama", Dtype::BF16);
    let mut model = load(folder.path()).model;
    let before = logits(&model, &input("llama", 2, 9));
    let is_chosen = |p: &Parameter| p.name().contains("mixer.query");
    model.set_trainable(is_chosen);
    for parameter in model.parameters() {
        let is_norm = parameter.shape().len() == 1;
        assert_eq!(
            parameter.as_stored().is_none(),
            is_norm || is_chosen(parameter)
        );
        assert_eq!(parameter.is_trainable(), is_chosen(parameter));
    }
    let hidden = model.hidden(&input("llama", 2, 9), None).unwrap();
    let gradients = hidden.powi_scalar(2).sum().backward();
    for parameter in model.parameters() {
        let gradient = parameter.leaf().and_then(|leaf| leaf.grad(&gradients));
        assert_eq!(
            gradient.is_some(),
            is_chosen(parameter),
            "{}",
            parameter.name()
        );
    }
    let frozen = model.frozen();
    let query = frozen
        .parameters()
        .into_iter()
        .find(|p| is_chosen(p))
        .unwrap();
    assert!(query.as_stored().is_none());
    assert_eq!(logits(&frozen, &input("llama", 2, 9)), before);
}

#[test]
fn what_is_f32_in_the_file_is_f32_in_memory() {
    let folder = saved("llama", Dtype::F32);
    let model = load(folder.path()).model;
    assert!(model.parameters().iter().all(|p| p.as_stored().is_none()));
}

/// The gradients of every trained parameter, by name.
fn gradients(model: &LanguageModel, name: &str) -> Vec<(String, Vec<f32>)> {
    let hidden = model.hidden(&input(name, 2, 9), None).unwrap();
    let [batch, time, width] = hidden.dims();
    let targets: Vec<u32> = (0..18).map(|i| i * 3 % 40).collect();
    let loss = model
        .cross_entropy(hidden.reshape([batch * time, width]), &targets)
        .unwrap();
    let gradients = loss.backward();
    let gradient = |p: &&Parameter| Some((p.name().to_owned(), p.leaf()?.grad(&gradients)?));
    let found = model.parameters();
    let found = found.iter().filter_map(gradient);
    found
        .map(|(name, gradient)| (name, gradient.into_data().try_into_vec().unwrap()))
        .collect()
}

#[test]
fn adapters_over_stored_weights_have_the_gradients_of_those_over_f32() {
    for name in ["llama", "gpt2", "mixtral", "rwkv7", "phi3"] {
        let folder = saved(name, Dtype::BF16);
        let mut loaded = load(folder.path());
        let family = loaded.family().unwrap();
        let peft = PeftConfig::new(2, 4.0, Targets::AllLinear);
        Adapter::new(peft)
            .attach(&mut loaded.model, family, 5)
            .unwrap();
        loaded.model.visit_mut(&mut |p| {
            if p.adapter().is_some() && p.name().ends_with(".up") {
                let values = (0..p.len())
                    .map(|i| 0.05 * ((i % 7) as f32 - 3.0))
                    .collect();
                p.set_data(values, &Device::flex());
            }
        });
        let mut twin = expanded(&loaded.model);
        twin.set_trainable(|p| p.adapter().is_some());
        assert!(
            loaded
                .model
                .parameters()
                .iter()
                .any(|p| p.as_stored().is_some())
        );
        let (found, expected) = (gradients(&loaded.model, name), gradients(&twin, name));
        assert!(found.len() > 4 && found == expected, "{name}");
        if loaded.model.set_gradient_checkpointing(true).is_ok() {
            let again = gradients(&loaded.model, name);
            assert!(again.iter().zip(&expected).all(|(a, b)| a.0 == b.0));
            let gap = again
                .iter()
                .zip(&expected)
                .flat_map(|(a, b)| a.1.iter().zip(&b.1));
            assert!(
                gap.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-5,
                "{name}"
            );
        }
        let mut merged = loaded.model.frozen();
        merged.merge_adapters().unwrap();
        let (merged, adapted) = (
            logits(&merged, &input(name, 2, 9)),
            logits(&loaded.model.frozen(), &input(name, 2, 9)),
        );
        let gap = merged
            .iter()
            .zip(&adapted)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(gap < 1e-4, "{name}: merged differs by {gap}");
    }
}

#[test]
fn a_model_is_saved_over_the_file_that_it_is_mapped_from() {
    for name in ["llama", "phi3", "gpt2"] {
        let folder = saved(name, Dtype::BF16);
        let loaded = load(folder.path());
        let before = logits(&loaded.model, &input(name, 2, 9));
        let bytes = |folder: &Path| -> Vec<Vec<u8>> {
            let file = Checkpoint::open(folder).unwrap();
            file.names()
                .map(|name| file.bytes(name).unwrap().into_owned())
                .collect()
        };
        let old = bytes(folder.path());
        folder::save(
            &loaded.model,
            folder.path(),
            Some(&loaded.config),
            Dtype::BF16,
        )
        .unwrap();
        assert!(old == bytes(folder.path()), "{name}");
        folder::save(
            &loaded.model,
            folder.path(),
            Some(&loaded.config),
            Dtype::F32,
        )
        .unwrap();
        assert_eq!(logits(&loaded.model, &input(name, 2, 9)), before);
        assert_eq!(
            logits(&load(folder.path()).model, &input(name, 2, 9)),
            before
        );
    }
}

const PACKED: &str = "gpt-oss-mxfp4";

#[test]
fn packed_experts_are_those_that_transformers_expands() {
    let model = load(&fixture(PACKED)).model;
    let packed = |p: &&Parameter| p.as_stored().is_some_and(|s| s.format().name() == "mxfp4");
    let parameters = model.parameters();
    assert_eq!(parameters.iter().copied().filter(|p| packed(p)).count(), 4);
    let expected = TensorFile::open(&fixture(PACKED).join("outputs.safetensors")).unwrap();
    let time = expected.info("input_ids").unwrap().shape[1];
    let ids = expected.read_i64("input_ids").unwrap();
    let rows: Vec<Vec<u32>> = ids
        .chunks(time)
        .map(|row| row.iter().map(|id| *id as u32).collect())
        .collect();
    let input = Input::rows(&rows).unwrap();
    let (found, expected) = (
        logits(&model, &input),
        expected.read_f32("logits", None).unwrap(),
    );
    let gap = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    assert!(gap.fold(0.0, f32::max) < 1e-5);
    assert!(found == logits(&expanded(&model), &input));
}

#[test]
fn packed_experts_decode_and_carry_adapters_as_expanded_ones_do() {
    let mut loaded = load(&fixture(PACKED));
    let row = input(PACKED, 1, 9);
    assert!(steps(&loaded.model, &row) == steps(&expanded(&loaded.model), &row));
    let family = loaded.family().unwrap();
    let peft = PeftConfig::new(2, 4.0, Targets::AllLinear);
    Adapter::new(peft)
        .attach(&mut loaded.model, family, 5)
        .unwrap();
    let mut twin = expanded(&loaded.model);
    twin.set_trainable(|p| p.adapter().is_some());
    let (found, expected) = (gradients(&loaded.model, PACKED), gradients(&twin, PACKED));
    assert!(found.len() > 20 && found == expected);
}

#[test]
fn packed_experts_are_saved_expanded() {
    let folder = saved(PACKED, Dtype::F32);
    let again = load(folder.path());
    assert!(!again.config.contains_key("quantization_config"));
    let input = input(PACKED, 2, 9);
    let before = logits(&load(&fixture(PACKED)).model, &input);
    assert!(logits(&again.model, &input) == before);
    let file = Checkpoint::open(folder.path()).unwrap();
    let shape = |name: &str| {
        file.info(&format!("model.layers.0.mlp.experts.{name}"))
            .unwrap()
            .shape
            .clone()
    };
    assert_eq!(shape("gate_up_proj"), [3, 32, 128]);
    assert_eq!(shape("down_proj"), [3, 64, 32]);
}

/// The packed fixture with another width of its experts, so that nothing fits.
#[test]
fn blocks_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| std::fs::copy(fixture(PACKED).join(name), folder.path().join(name));
    copy("model.safetensors").unwrap();
    let config = std::fs::read_to_string(fixture(PACKED).join("config.json")).unwrap();
    for width in [96, 65] {
        let other = config.replace(
            "\"intermediate_size\": 64",
            &format!("\"intermediate_size\": {width}"),
        );
        assert!(other != config);
        std::fs::write(folder.path().join("config.json"), other).unwrap();
        let error = folder::load(folder.path(), &Device::flex()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("experts."), "{error}");
    }
}
