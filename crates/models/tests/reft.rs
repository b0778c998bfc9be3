//! Edited hidden states: what they compute is what plain PyTorch and pyreft compute, and what is saved is read again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};
use espalier_models::{
    adapter::{
        Adapter, ReftConfig,
        reft::{Method, Positions, Start},
    },
    checkpoint::TensorFile,
    folder::{self, LoadedModel},
    model::{Input, LanguageModel},
    parameter::Parameters,
};
use fixture_lists::{fixture, outputs::gap};

/// What was made by `make/reft.py`, found by looking.
fn cases() -> Vec<String> {
    let entries = fs::read_dir(fixture("reft")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 9);
    names
}

fn load(folder: &Path) -> LoadedModel {
    folder::load(folder, &Device::flex()).unwrap()
}

/// A case's inputs and what PyTorch made of them.
struct Expected {
    file: TensorFile,
    input: Input,
    labels: Vec<i64>,
    is_causal: bool,
}

impl Expected {
    fn read(name: &str) -> Self {
        let path = fixture("reft").join(name).join("expected.safetensors");
        let file = TensorFile::open(&path).unwrap();
        let whole = |name: &str| -> Vec<u32> {
            let values = file.read_i64(name).unwrap();
            values.into_iter().map(|value| value as u32).collect()
        };
        let ids = whole("input_ids");
        let prompts = whole("prompts");
        let time = ids.len() / prompts.len();
        let is_causal = file.info("position_ids").is_some();
        let input = Input {
            batch: prompts.len(),
            positions: is_causal.then(|| whole("position_ids")),
            segments: Some(whole("attention_mask")),
            prompts: Some(prompts.iter().flat_map(|p| vec![*p; time]).collect()),
            ids,
            ..Input::default()
        };
        let labels = file.read_i64("labels").unwrap();
        Self {
            file,
            input,
            labels,
            is_causal,
        }
    }

    /// Logits of all tokens but padding, in order.
    fn real(&self, logits: &[f32]) -> Vec<f32> {
        let segments = self.input.segments.as_ref().unwrap();
        let width = logits.len() / segments.len();
        let rows = logits.chunks(width).zip(segments);
        rows.filter(|(_, segment)| **segment != 0)
            .flat_map(|(row, _)| row.to_vec())
            .collect()
    }

    fn logits(&self) -> Vec<f32> {
        self.real(&self.file.read_f32("logits", None).unwrap())
    }

    fn ours(&self, model: &LanguageModel) -> Vec<f32> {
        let logits = model.logits(&self.input).unwrap();
        self.real(&logits.into_data().try_into_vec::<f32>().unwrap())
    }

    /// The mean cross-entropy of the labels.
    fn loss(&self, model: &LanguageModel) -> Tensor<1> {
        let logits = model.logits(&self.input).unwrap();
        let [batch, time, width] = logits.dims();
        let shift = usize::from(self.is_causal);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (place, label) in self
            .labels
            .iter()
            .enumerate()
            .filter(|(_, label)| **label >= 0)
        {
            rows.push((place - shift) as i32);
            targets.push(*label as i32);
        }
        let count = rows.len();
        let device = logits.device().inner();
        let index = |values: Vec<i32>| {
            Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &device)
        };
        let scores = log_softmax(logits.reshape([batch * time, width]), 1).select(0, index(rows));
        let own = scores.gather(1, index(targets).reshape([count, 1]));
        own.sum().neg() / count as f64
    }
}

#[test]
fn edits_compute_what_they_compute_in_pytorch() {
    for name in cases() {
        let expected = Expected::read(&name);
        let mut loaded = load(&fixture("reft").join(&name));
        let theirs = expected.logits();
        let difference = gap(&expected.ours(&loaded.model), &theirs);
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
        loaded.model.set_active_adapters(&[]).unwrap();
        assert!(
            gap(&expected.ours(&loaded.model), &theirs) > 1e-2,
            "{name}: no effect"
        );
    }
}

#[test]
fn gradients_are_those_of_pytorch() {
    for name in cases() {
        let expected = Expected::read(&name);
        let mut loaded = load(&fixture("reft").join(&name));
        loaded
            .adapter
            .as_ref()
            .unwrap()
            .mark_trainable(&mut loaded.model);
        let loss = expected.loss(&loaded.model);
        let theirs = expected.file.read_f32("loss", None).unwrap()[0];
        assert!(
            (loss.clone().into_scalar::<f32>() - theirs).abs() < 1e-4,
            "{name}"
        );
        let gradients = loss.backward();
        let (mut seen, mut moved) = (0, 0);
        loaded.model.visit(&mut |parameter| {
            if parameter.adapter().is_none() {
                assert!(!parameter.is_trainable());
                return;
            }
            // edits.0.adapter.default.prefix.directions
            let parts: Vec<&str> = parameter.name().split('.').collect();
            let [_, block, _, _, part, factor] = parts[..] else {
                panic!("{}", parameter.name());
            };
            let factor = match factor {
                "directions" => "R",
                "weight" => "W",
                _ => "b",
            };
            let key = format!("gradient.layers.{block}.{part}.{factor}");
            let theirs = expected.file.read_f32(&key, None).unwrap();
            let ours = parameter.leaf().unwrap().grad(&gradients).unwrap();
            let ours = ours.into_data().try_into_vec::<f32>().unwrap();
            let difference = gap(&ours, &theirs);
            assert!(difference < 1e-4, "{name}: {key} differs by {difference}");
            moved += usize::from(theirs.iter().any(|value| value.abs() > 1e-3));
            seen += 1;
        });
        let all = expected
            .file
            .names()
            .filter(|name| name.starts_with("gradient."));
        assert_eq!(seen, all.count(), "{name}");
        // Edits after the last block matter only where a target is predicted.
        assert!(moved >= 2, "{name}");
    }
}

/// Names and shapes of all tensors in a folder's files of weights, by file.
fn stored(folder: &Path) -> BTreeMap<String, Vec<(String, Vec<usize>)>> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let weights = entries.filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".bin") || name == "adapter_model.safetensors"
    });
    let named = |path: std::path::PathBuf| {
        let file = TensorFile::open(&path).unwrap();
        let shape = |name: &str| (name.to_owned(), file.info(name).unwrap().shape.clone());
        let tensors = file.names().map(shape).collect();
        (
            path.file_name().unwrap().to_str().unwrap().to_owned(),
            tensors,
        )
    };
    weights.map(named).collect()
}

#[test]
fn what_is_saved_is_loaded_and_loreft_lies_as_pyreft_has_it() {
    for name in cases() {
        let expected = Expected::read(&name);
        let folder = fixture("reft").join(&name);
        let loaded = load(&folder);
        let saved = tempfile::tempdir().unwrap();
        let base = fixture(
            Path::new(loaded.adapter.as_ref().unwrap().base_model().unwrap())
                .file_name()
                .unwrap()
                .to_str()
                .unwrap(),
        );
        let adapter = loaded
            .adapter
            .clone()
            .unwrap()
            .based_on(base.to_str().unwrap());
        adapter
            .save(&loaded.model, loaded.family().unwrap(), saved.path())
            .unwrap();
        let again = load(saved.path());
        assert_eq!(
            expected.ours(&again.model),
            expected.ours(&loaded.model),
            "{name}"
        );
        let files = stored(saved.path());
        match name.as_str() {
            "pyreft-loreft" | "pyreft-loreft-tied" => {
                assert_eq!(files, stored(&folder));
                let config = |folder: &Path| -> serde_json::Value {
                    let text = fs::read_to_string(folder.join("config.json")).unwrap();
                    serde_json::from_str(&text).unwrap()
                };
                let (ours, theirs) = (config(saved.path()), config(&folder));
                for key in [
                    "intervention_types",
                    "intervention_dimensions",
                    "intervention_constant_sources",
                    "sorted_keys",
                    "mode",
                ] {
                    assert_eq!(ours[key], theirs[key], "{name}: {key}");
                }
                // What follows there is null.
                for (ours, theirs) in ours["representations"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .zip(theirs["representations"].as_array().unwrap())
                {
                    let ours = ours.as_array().unwrap();
                    assert_eq!(ours[..], theirs.as_array().unwrap()[..ours.len()]);
                }
            }
            "loreft-distilbert" => assert!(files.keys().all(|file| file.starts_with("intkey_"))),
            _ => assert_eq!(
                files.keys().collect::<Vec<_>>(),
                ["adapter_model.safetensors"]
            ),
        }
    }
}

fn fresh(name: &str, config: ReftConfig) -> (LanguageModel, LanguageModel) {
    let loaded = load(&fixture(name));
    let mut model = loaded.model.clone();
    Adapter::new(config)
        .attach(&mut model, loaded.family().unwrap(), 3)
        .unwrap();
    (loaded.model, model.frozen())
}

fn logits(model: &LanguageModel, rows: &[Vec<u32>]) -> Vec<f32> {
    let logits = model.logits(&Input::rows(rows).unwrap()).unwrap();
    logits.into_data().try_into_vec().unwrap()
}

const TEXT: [u32; 9] = [7, 3, 9, 12, 5, 8, 4, 11, 6];

#[test]
fn an_identity_changes_nothing_and_a_random_start_something() {
    let positions: Positions = "f2+l2".parse().unwrap();
    for (method, name) in Method::ALL {
        for start in [Start::Random, Start::Identity] {
            let config = ReftConfig {
                method,
                start,
                ..ReftConfig::new(3, positions)
            };
            if (method, start) == (Method::Consreft, Start::Identity) {
                assert!(
                    config
                        .check_start()
                        .unwrap_err()
                        .contains("choose `random`")
                );
                continue;
            }
            let (base, edited) = fresh("llama", config);
            let difference = gap(
                &logits(&base, &[TEXT.to_vec()]),
                &logits(&edited, &[TEXT.to_vec()]),
            );
            assert_eq!(
                difference < 1e-5,
                start == Start::Identity,
                "{name}: {difference}"
            );
        }
    }
}

#[test]
fn what_stands_before_an_edit_is_unchanged() {
    for (positions, first_edited) in [("l1", 8), ("l3", 6), ("f1", 0)] {
        let config = ReftConfig::new(2, positions.parse().unwrap());
        let (base, edited) = fresh("llama", config);
        let [before, after] = [base, edited].map(|model| logits(&model, &[TEXT.to_vec()]));
        let width = before.len() / TEXT.len();
        let differs = |place: usize| {
            let row = place * width..(place + 1) * width;
            before[row.clone()] != after[row]
        };
        let changed: Vec<usize> = (0..TEXT.len()).filter(|place| differs(*place)).collect();
        assert_eq!(
            changed,
            (first_edited..TEXT.len()).collect::<Vec<_>>(),
            "{positions}"
        );
    }
}

#[test]
fn an_encoder_decoder_is_edited_where_it_reads_the_prompt() {
    let (base, edited) = fresh("t5", ReftConfig::new(2, "f2+l2".parse().unwrap()));
    let input = |source: &[u32]| Input {
        source: Some(Box::new(Input::rows(&[source.to_vec()]).unwrap())),
        ..Input::rows(&[vec![0, 5, 6]]).unwrap()
    };
    let compute = |model: &LanguageModel, source: &[u32]| -> Vec<f32> {
        let logits = model.logits(&input(source)).unwrap();
        logits.into_data().try_into_vec().unwrap()
    };
    assert!(gap(&compute(&base, &TEXT), &compute(&edited, &TEXT)) > 1e-3);
    // A prompt of one token has no half.
    assert_eq!(compute(&base, &TEXT[..1]), compute(&edited, &TEXT[..1]));
}

#[test]
fn wrong_configurations_and_files_are_refused_with_a_sentence() {
    let case = |change: &dyn Fn(&Path, &mut serde_json::Value)| {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixture("reft/pyreft-loreft")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let path = folder.path().join("adapter_config.json");
        let mut config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["base_model_name_or_path"] = fixture("llama").to_str().unwrap().into();
        change(folder.path(), &mut config);
        match config.is_null() {
            true => fs::remove_file(&path).unwrap(),
            false => fs::write(&path, config.to_string()).unwrap(),
        }
        folder::load(folder.path(), &Device::flex())
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(case(&|_, _| ()), None);
    let key = |key: &'static str, value: serde_json::Value| {
        case(&move |_, config| config[key] = value.clone()).unwrap()
    };
    for (found, expected) in [
        (key("positions", "f0".into()), "names no tokens of a prompt"),
        (key("positions", serde_json::Value::Null), "such as `f7+l7`"),
        (key("method", "lorefft".into()), "loreft"),
        (key("layers", serde_json::json!([0, 0])), "twice"),
        (key("layers", serde_json::json!([9])), "blocks are 0 to"),
        (key("r", 4.into()), "does not fit"),
        (key("r", 4000.into()), "choose less"),
        (key("dropout", 1.into()), "outside 0 to below 1"),
        (key("act_fn", "swoosh".into()), "unknown activation"),
        (
            key("lora_alpha", 16.into()),
            "no key of edited hidden states",
        ),
        // Files for edits that the configuration does not have.
        (key("tied", true.into()), "fits no part"),
        (key("layers", serde_json::json!([0])), "fits no part"),
    ] {
        assert!(found.contains(expected), "{found}");
    }
    let without = |file: &'static str| {
        case(&move |folder, _| fs::remove_file(folder.join(file)).unwrap()).unwrap()
    };
    assert!(without("config.json").contains("config.json"));
    let alone = case(&|_, config| *config = serde_json::Value::Null).unwrap();
    assert!(
        alone.contains("put an adapter_config.json beside it"),
        "{alone}"
    );
    let missing = without("intkey_layer_0_comp_block_output_unit_pos_nunit_1#1.bin");
    assert!(missing.contains("missing"), "{missing}");
    let changed = |from: &'static str, to: &'static str| {
        case(&move |folder, _| {
            let path = folder.join("config.json");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            fs::write(&path, text.replace(from, to)).unwrap();
        })
        .unwrap()
    };
    let found = changed("LoreftIntervention", "DireftIntervention");
    assert!(
        found.contains("`DireftIntervention` is not read"),
        "{found}"
    );
    let found = changed("block_output\",\n      \"pos", "mlp_output\",\n      \"pos");
    assert!(found.contains("only outputs of blocks"), "{found}");
}
