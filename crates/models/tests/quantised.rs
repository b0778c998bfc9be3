//! Bases of four bits: read from files of bitsandbytes, and rounded while they are read; adapters over them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::{fs, path::Path};

use burn::tensor::Device;
use espalier_kernels::stored::{Code, Constants, FourBit};
use espalier_models::{
    adapter::Adapter,
    checkpoint::{Checkpoint, Dtype, PeftConfig, TensorFile, peft_config::Targets},
    folder::{self, LoadedModel},
    model::{Input, LanguageModel},
    parameter::{Parameter, Parameters},
    state::SequenceState,
};
use fixture_lists::{EVERY, Kind, fixture, fixtures, kind};
use serde_json::{Map, Value, json};

const FILES: [(&str, Code, bool); 2] = [
    ("llama-nf4", Code::Nf4, true),
    ("gpt2-fp4", Code::Fp4, false),
];

fn quantised(folder: &Path, format: &'static FourBit) -> LoadedModel {
    folder::load_quantised(folder, &Map::new(), Some(format), &Device::flex()).unwrap()
}

fn nf4() -> &'static FourBit {
    FourBit::of(Code::Nf4, true)
}

/// The same model with every weight in f32.
fn expanded(model: &LanguageModel) -> LanguageModel {
    let mut copy = model.clone();
    copy.visit_mut(&mut |parameter| parameter.set_flat(parameter.flat()));
    copy
}

fn logits(model: &LanguageModel, input: &Input) -> Vec<f32> {
    let logits = match model.spec().headless {
        true => model.hidden(input, None).unwrap(),
        false => model.logits(input).unwrap(),
    };
    logits.into_data().try_into_vec::<f32>().unwrap()
}

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

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn outputs(name: &str) -> TensorFile {
    TensorFile::open(&fixture(name).join("outputs.safetensors")).unwrap()
}

#[test]
fn files_of_bitsandbytes_give_the_logits_of_their_expanded_weights() {
    for (name, code, double) in FILES {
        let loaded = folder::load(&fixture(name), &Device::flex()).unwrap();
        let model = &loaded.model;
        let format = FourBit::of(code, double);
        let rounded = model.parameters();
        let rounded = rounded.iter().filter_map(|p| p.as_stored());
        assert!(
            rounded
                .clone()
                .all(|stored| format!("{:?}", stored.format()) == format!("{format:?}"))
        );
        assert_eq!(
            rounded.count(),
            if name == "llama-nf4" { 14 } else { 12 },
            "{name}"
        );
        assert!(
            !loaded.config.contains_key("quantization_config")
                || loaded.config["quantization_config"].is_null()
        );
        let expected = outputs(name);
        let time = expected.info("input_ids").unwrap().shape[1];
        let ids = expected.read_i64("input_ids").unwrap();
        let row = |row: &[i64]| row.iter().map(|id| *id as u32).collect();
        let input = Input::rows(&ids.chunks(time).map(row).collect::<Vec<Vec<u32>>>()).unwrap();
        let gap = gap(
            &logits(model, &input),
            &expected.read_f32("logits", None).unwrap(),
        );
        assert!(gap < 1e-5, "{name}: {gap}");
    }
}

/// The byte that bitsandbytes' code for CPUs has for a share of the largest magnitude: it looks shares up in a table of 65536, so that each
/// is rounded to one of these first. Its code for GPUs takes the nearest byte, as is done here.
fn looked_up(share: f32) -> u8 {
    const LAST: f32 = 65535.0;
    let index = ((share.clamp(-1.0, 1.0) + 1.0) * 0.5 * LAST + 0.5) as u16;
    let rounded = -1.0 + 2.0 * f32::from(index) / LAST;
    let map = Constants::map();
    let middles = map.windows(2).map(|pair| 0.5 * (pair[0] + pair[1]));
    middles.take_while(|middle| *middle < rounded).count() as u8
}

/// The numbers that bitsandbytes makes of a weight are ours, and so are the bytes of its constants, but for those where its table rounds a share
/// past the middle between two bytes.
#[test]
fn weights_are_rounded_as_bitsandbytes_rounds_them() {
    for (name, code, double) in FILES {
        let (file, packed) = (outputs(name), Checkpoint::open(&fixture(name)).unwrap());
        let tensors: Vec<&str> = file
            .names()
            .filter_map(|n| n.strip_prefix("original."))
            .collect();
        assert!(!tensors.is_empty());
        for tensor in tensors {
            let shape = file
                .info(&format!("original.{tensor}"))
                .unwrap()
                .shape
                .clone();
            let read = |of: &str| file.read_f32(&format!("{of}.{tensor}"), None).unwrap();
            let original = read("original");
            let stored = FourBit::of(code, double).quantised(&shape, &original);
            let (found, expected) = (stored.unwrap().expanded(), read("expanded"));
            let largest = |block: &[f32]| block.iter().fold(0f32, |most, x| most.max(x.abs()));
            let constants: Vec<f32> = original.chunks(64).map(largest).collect();
            let others = match Constants::rounded(&constants) {
                Constants::Double {
                    codes,
                    constants: of_groups,
                    mean,
                } if double => {
                    let theirs = packed.bytes(&format!("{tensor}.absmax")).unwrap();
                    let shares = constants.iter().enumerate();
                    let shares = shares.map(|(i, x)| (x - mean) / of_groups[i / 256]);
                    let expected: Vec<u8> = shares.map(looked_up).collect();
                    assert!(theirs == expected, "{name} {tensor}");
                    (0..codes.len())
                        .filter(|i| codes[*i] != theirs[*i])
                        .collect()
                }
                _ => Vec::new(),
            };
            let blocks = found.chunks(64).zip(expected.chunks(64)).enumerate();
            for (block, (found, expected)) in blocks {
                let same = gap(found, expected) < 1e-6;
                assert_eq!(
                    same,
                    !others.contains(&block),
                    "{name} {tensor}: block {block}"
                );
            }
        }
    }
}

#[test]
fn linear_maps_of_blocks_alone_are_rounded_and_compute_as_their_expanded_selves() {
    for name in &fixtures(&EVERY) {
        let model = quantised(&fixture(name), nf4()).model;
        let mut count = 0;
        for parameter in model.parameters() {
            count += usize::from(parameter.is_quantised());
            let in_block = parameter.name().contains("blocks.");
            assert!(
                in_block || !parameter.is_quantised(),
                "{}",
                parameter.name()
            );
        }
        assert!(count > 2, "{name}: {count}");
        let twin = expanded(&model);
        for input in [input(name, 1, 3), input(name, 2, 9)] {
            assert!(logits(&model, &input) == logits(&twin, &input), "{name}");
        }
        if kind(name) == Some(Kind::Decoder) {
            let steps = |model: &LanguageModel| {
                let mut state = SequenceState::new(model.spec());
                let step = |id: u32| {
                    let step = Input::rows(&[vec![id]]).unwrap();
                    model.hidden(&step, Some(&mut state)).unwrap().into_data()
                };
                [3, 9, 4].map(step)
            };
            assert!(steps(&model) == steps(&twin), "{name}");
        }
    }
}

fn with_adapter(folder: &Path) -> (LoadedModel, Adapter) {
    let mut loaded = quantised(folder, nf4());
    let family = loaded.family().unwrap();
    let adapter = Adapter::new(PeftConfig::new(2, 4.0, Targets::AllLinear));
    adapter.attach(&mut loaded.model, family, 5).unwrap();
    loaded.model.visit_mut(&mut |p| {
        if p.adapter().is_some() && p.name().ends_with(".up") {
            let values = (0..p.len())
                .map(|i| 0.05 * ((i % 7) as f32 - 3.0))
                .collect();
            p.set_data(values, &Device::flex());
        }
    });
    (loaded, adapter)
}

fn gradients(model: &LanguageModel, name: &str) -> Vec<(String, Vec<f32>)> {
    let hidden = model.hidden(&input(name, 2, 9), None).unwrap();
    let gradients = hidden.powi_scalar(2).sum().backward();
    let gradient = |p: &&Parameter| Some((p.name().to_owned(), p.leaf()?.grad(&gradients)?));
    let found = model.parameters();
    let found = found.iter().filter_map(gradient);
    found
        .map(|(name, gradient)| (name, gradient.into_data().try_into_vec().unwrap()))
        .collect()
}

#[test]
fn adapters_over_a_rounded_base_have_the_gradients_of_those_over_its_numbers() {
    for name in ["llama", "gpt2", "mixtral", "phi3", "t5"] {
        let (loaded, _) = with_adapter(&fixture(name));
        let mut twin = expanded(&loaded.model);
        twin.set_trainable(|p| p.adapter().is_some());
        assert!(loaded.model.parameters().iter().any(|p| p.is_quantised()));
        let (found, expected) = (gradients(&loaded.model, name), gradients(&twin, name));
        assert!(found.len() > 4 && found == expected, "{name}");
    }
}

#[test]
fn an_adapter_is_not_merged_into_a_rounded_base() {
    for name in ["llama", "mixtral"] {
        let (loaded, _) = with_adapter(&fixture(name));
        let mut model = loaded.model.frozen();
        let before = logits(&model, &input(name, 2, 9));
        let error = model.merge_adapters().unwrap_err().to_string();
        assert!(
            error.contains("merge it into the full-precision base"),
            "{error}"
        );
        assert!(logits(&model, &input(name, 2, 9)) == before);
        assert!(model.parameters().iter().any(|p| p.is_quantised()));
    }
}

#[test]
fn what_an_adapter_over_a_rounded_base_leaves_is_read_over_one() {
    let name = "llama";
    let (loaded, adapter) = with_adapter(&fixture(name));
    let folder = tempfile::tempdir().unwrap();
    let family = loaded.family().unwrap();
    let adapter = adapter.based_on(fixture(name).to_string_lossy().into_owned());
    adapter.save(&loaded.model, family, folder.path()).unwrap();
    let again = quantised(folder.path(), nf4()).model;
    let computed = |model: &LanguageModel| logits(&model.frozen(), &input(name, 2, 9));
    assert!(computed(&again) == computed(&loaded.model));
    let full = folder::load(folder.path(), &Device::flex()).unwrap().model;
    assert!(computed(&full) != computed(&loaded.model));
}

#[test]
fn rounded_files_are_saved_expanded() {
    for (name, ..) in FILES {
        let loaded = folder::load(&fixture(name), &Device::flex()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        folder::save(
            &loaded.model,
            folder.path(),
            Some(&loaded.config),
            Dtype::F32,
        )
        .unwrap();
        let again = folder::load(folder.path(), &Device::flex()).unwrap();
        assert!(again.model.parameters().iter().all(|p| !p.is_quantised()));
        let input = input(name, 2, 9);
        assert!(
            gap(
                &logits(&again.model, &input),
                &logits(&loaded.model, &input)
            ) < 1e-5
        );
    }
}

/// A copy of a fixture with its configuration or the bytes of its header changed.
fn changed(name: &str, config: impl Fn(&mut Map<String, Value>), old: &str, new: &str) -> String {
    assert_eq!(old.len(), new.len());
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(fixture(name).join("config.json")).unwrap();
    let mut map: Map<String, Value> = serde_json::from_str(&text).unwrap();
    config(&mut map);
    fs::write(folder.path().join("config.json"), json!(map).to_string()).unwrap();
    let mut bytes = fs::read(fixture(name).join("model.safetensors")).unwrap();
    let places: Vec<usize> = (0..bytes.len() - old.len())
        .filter(|i| !old.is_empty() && bytes[*i..].starts_with(old.as_bytes()))
        .collect();
    assert!(old.is_empty() || !places.is_empty());
    for place in places {
        bytes[place..place + old.len()].copy_from_slice(new.as_bytes());
    }
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder::load(folder.path(), &Device::flex())
        .unwrap_err()
        .to_string()
}

#[test]
fn files_that_do_not_fit_are_refused_with_the_tensor() {
    let same = |_: &mut Map<String, Value>| {};
    let eight = |map: &mut Map<String, Value>| {
        map.insert(
            "quantization_config".into(),
            json!({ "quant_method": "bitsandbytes", "load_in_8bit": true }),
        );
    };
    let narrow = |map: &mut Map<String, Value>| {
        map.insert("intermediate_size".into(), json!(250));
    };
    let cases: [(String, &str); 6] = [
        (changed("llama-nf4", eight, "", ""), "load_in_8bit"),
        (changed("llama-nf4", narrow, "", ""), "mlp"),
        (
            changed("llama-nf4", same, "\"blocksize\": 64", "\"blocksize\": 32"),
            "blocks of 32 numbers",
        ),
        (
            changed(
                "llama-nf4",
                same,
                "\"quant_type\": \"nf4\"",
                "\"quant_type\": \"nf5\"",
            ),
            "`nf5`",
        ),
        (
            changed(
                "llama-nf4",
                same,
                "\"shape\": [40, 40]",
                "\"shape\": [80, 20]",
            ),
            "q_proj",
        ),
        (
            changed(
                "gpt2-fp4",
                same,
                "\"shape\": [64, 64]",
                "\"shape\": [65, 64]",
            ),
            "sizes of a weight of shape [65, 64]",
        ),
    ];
    for (error, part) in cases {
        assert!(error.contains(part), "{error}");
    }
}
