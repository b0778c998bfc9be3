//! RWKV: states, long sequences, padding, the authors' files without a configuration, and how fresh models start.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_models::{
    Result,
    checkpoint::{Checkpoint, Dtype, TensorFile, TensorPlan, TensorWriter},
    families::{self, Config},
    folder::{self, Description},
    model::{Input, LanguageModel},
    recurrent::RecurrentState,
    source::{CheckpointSource, Initial, ParameterSource, Seed, Values},
    spec::ModelSpec,
    state::SequenceState,
    state_file::Prefix,
};
use serde_json::json;

const GENERATIONS: [&str; 4] = ["rwkv4", "rwkv5-eagle", "rwkv6-finch", "rwkv7"];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

fn load(name: &str) -> LanguageModel {
    folder::load(&fixture(name), &Device::flex()).unwrap().model
}

/// Logits of `rows` from a state, `[batch * time * vocabulary]`.
fn logits(model: &LanguageModel, input: &Input, state: Option<&mut SequenceState>) -> Vec<f32> {
    let hidden = model.hidden(input, state).unwrap();
    model
        .head(hidden)
        .into_data()
        .try_into_vec::<f32>()
        .unwrap()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// The largest of some numbers, at least one.
fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(1.0, |most, x| most.max(x.abs()))
}

/// Ids without a pattern.
fn ids(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * i * 7 + i * 13 + i / 5) % vocabulary) as u32)
        .collect()
}

/// A part of a block's state.
fn part(parts: &RecurrentState, name: &str) -> Vec<f32> {
    let (_, part) = parts.parts().find(|(known, _)| *known == name).unwrap();
    part.clone().into_data().try_into_vec::<f32>().unwrap()
}

#[test]
fn states_are_those_of_the_authors() {
    for name in ["rwkv5-eagle", "rwkv6-finch", "rwkv7"] {
        let model = load(name);
        let expected = TensorFile::open(&fixture(name).join("expected.safetensors")).unwrap();
        let ids: Vec<u32> = expected
            .read_i64("input_ids")
            .unwrap()
            .into_iter()
            .map(|id| id as u32)
            .collect();
        for step in [ids.len(), 5, 1] {
            let mut state = SequenceState::new(model.spec());
            for ids in ids.chunks(step) {
                model
                    .hidden(&Input::rows(&[ids.to_vec()]).unwrap(), Some(&mut state))
                    .unwrap();
            }
            for i in 0..model.spec().blocks.len() {
                let [mixer, channel] = state.recurrent(i).unwrap();
                let ours = [
                    part(mixer, "shift"),
                    part(mixer, "memory"),
                    part(channel, "shift"),
                ];
                for (number, ours) in (3 * i..).zip(ours) {
                    let theirs = expected.read_f32(&format!("state.{number}"), None).unwrap();
                    let gap = gap(&ours, &theirs);
                    assert!(
                        gap < 1e-4,
                        "{name}: state {number} in steps of {step} differs by {gap}"
                    );
                }
            }
        }
    }
}

#[test]
fn parts_of_any_length_join() {
    for name in GENERATIONS {
        let model = load(name);
        let ids = ids(201, model.spec().vocabulary);
        let whole = logits(
            &model,
            &Input::rows(std::slice::from_ref(&ids)).unwrap(),
            None,
        );
        for cuts in [
            vec![0, 1, 201],
            vec![0, 63, 64, 130, 201],
            vec![0, 17, 50, 200, 201],
        ] {
            let mut state = SequenceState::new(model.spec());
            let parts = cuts
                .windows(2)
                .map(|cut| Input::rows(&[ids[cut[0]..cut[1]].to_vec()]).unwrap());
            let joined: Vec<f32> = parts
                .flat_map(|part| logits(&model, &part, Some(&mut state)))
                .collect();
            let (gap, scale) = (gap(&joined, &whole), largest(&whole));
            assert!(
                gap < 1e-5 * scale,
                "{name}, cut at {cuts:?}: {gap}, logits up to {scale}"
            );
        }
    }
}

#[test]
fn states_in_files_go_on() {
    let folder = tempfile::tempdir().unwrap();
    for name in GENERATIONS {
        let model = load(name);
        let ids = ids(30, model.spec().vocabulary);
        let whole = logits(
            &model,
            &Input::rows(std::slice::from_ref(&ids)).unwrap(),
            None,
        );
        let path = folder.path().join(name);
        Prefix::read(&model, &ids[..20])
            .unwrap()
            .save(&model, &path)
            .unwrap();
        let mut state = Prefix::load(&model, &path).unwrap().state;
        let rest = logits(
            &model,
            &Input::rows(&[ids[20..].to_vec()]).unwrap(),
            Some(&mut state),
        );
        let gap = gap(&rest, &whole[20 * model.spec().vocabulary..]);
        assert!(gap < 1e-5 * largest(&whole), "{name}: {gap}");
    }
}

#[test]
fn padded_rows_decode_as_they_do_alone() {
    for name in GENERATIONS {
        let model = load(name);
        let vocabulary = model.spec().vocabulary;
        let rows = [ids(12, vocabulary), ids(5, vocabulary), ids(1, vocabulary)];
        let more = [ids(6, vocabulary), ids(6, vocabulary), ids(6, vocabulary)];
        let padded = |row: &Vec<u32>, value: fn(usize) -> u32| {
            let empty = 12 - row.len();
            (0..12)
                .map(move |t| if t < empty { 0 } else { value(t - empty) })
                .collect::<Vec<u32>>()
        };
        let input = Input {
            ids: rows
                .iter()
                .flat_map(|row| [vec![3; 12 - row.len()], row.clone()].concat())
                .collect(),
            batch: 3,
            positions: Some(
                rows.iter()
                    .flat_map(|row| padded(row, |t| t as u32))
                    .collect(),
            ),
            segments: Some(rows.iter().flat_map(|row| padded(row, |_| 1)).collect()),
            ..Input::default()
        };
        let mut state = SequenceState::new(model.spec());
        let first = logits(&model, &input, Some(&mut state));
        let mut steps = vec![
            first
                .chunks(12 * vocabulary)
                .map(|row| row[11 * vocabulary..].to_vec())
                .collect::<Vec<_>>(),
        ];
        for t in 0..6 {
            let step = Input {
                ids: more.iter().map(|row| row[t]).collect(),
                batch: 3,
                positions: Some(rows.iter().map(|row| (row.len() + t) as u32).collect()),
                segments: Some(vec![1; 3]),
                ..Input::default()
            };
            steps.push(
                logits(&model, &step, Some(&mut state))
                    .chunks(vocabulary)
                    .map(<[f32]>::to_vec)
                    .collect(),
            );
        }
        for (number, row) in rows.iter().enumerate() {
            let all = [row.clone(), more[number].clone()].concat();
            let alone = logits(&model, &Input::rows(&[all]).unwrap(), None);
            for (t, step) in steps.iter().enumerate() {
                let start = (row.len() - 1 + t) * vocabulary;
                let gap = gap(&step[number], &alone[start..start + vocabulary]);
                assert!(
                    gap < 1e-5 * largest(&alone),
                    "{name}: row {number}, step {t}: {gap}"
                );
            }
        }
    }
}

#[test]
fn files_of_the_authors_need_no_configuration() {
    for (file, folder) in [("pth/rwkv7.pth", "rwkv7"), ("pth/rwkv4.pth", "rwkv4")] {
        assert!(folder::is_bare(&fixture(file)));
        let (bare, same) = (load(file), load(folder));
        assert_eq!(bare.spec().parameters(), same.spec().parameters());
        let input = Input::rows(&[ids(30, bare.spec().vocabulary)]).unwrap();
        assert_eq!(
            logits(&bare, &input, None),
            logits(&same, &input, None),
            "{file}"
        );
    }
    assert!(!folder::is_bare(&fixture("pth/kinds.pth")) && !folder::is_bare(&fixture("llama")));
    let error = folder::load(&fixture("pth/kinds.pth"), &Device::flex())
        .unwrap_err()
        .to_string();
    assert!(error.contains("do not say what model they are"), "{error}");
}

#[test]
fn saved_models_have_the_authors_names_and_explain_themselves() {
    for name in ["rwkv5-eagle", "rwkv6-finch", "rwkv7", "pth/rwkv4.pth"] {
        let loaded = folder::load(&fixture(name), &Device::flex()).unwrap();
        let saved = tempfile::tempdir().unwrap();
        folder::save(
            &loaded.model,
            saved.path(),
            Some(&loaded.config),
            Dtype::F32,
        )
        .unwrap();
        let (ours, theirs) = (
            Checkpoint::open(saved.path()).unwrap(),
            Checkpoint::open(&fixture(name)).unwrap(),
        );
        assert!(ours.names().eq(theirs.names()), "{name}");
        assert!(
            ours.names()
                .all(|tensor| ours.bytes(tensor).unwrap() == theirs.bytes(tensor).unwrap()),
            "{name}"
        );
        let described = Description::read(saved.path()).unwrap();
        std::fs::remove_file(saved.path().join("config.json")).unwrap();
        let inferred = Description::read(saved.path()).unwrap();
        assert_eq!(described.spec, inferred.spec, "{name}");
        assert_eq!(&inferred.spec, loaded.model.spec(), "{name}");
    }
}

/// A file with these tensors, all zeros.
fn file(folder: &Path, tensors: &[(&str, &[usize])]) -> PathBuf {
    let plan = |(name, shape): &(&str, &[usize])| TensorPlan {
        name: (*name).into(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    };
    let path = folder.join("bare.safetensors");
    let count = |name: &str| {
        tensors
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap()
            .1
            .iter()
            .product()
    };
    TensorWriter::new(tensors.iter().map(plan).collect())
        .unwrap()
        .write_file(&path, |name| Ok(vec![0.0; count(name)]))
        .unwrap();
    path
}

#[test]
fn what_is_no_whole_file_of_a_known_generation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let common: [(&str, &[usize]); 3] = [
        ("emb.weight", &[9, 4]),
        ("blocks.0.att.key.weight", &[4, 4]),
        ("blocks.0.ffn.key.weight", &[8, 4]),
    ];
    let error = |more: &[(&str, &[usize])]| {
        let path = file(folder.path(), &[&common, more].concat());
        folder::load(&path, &Device::flex())
            .unwrap_err()
            .to_string()
    };
    assert!(error(&[]).contains("another generation than"));
    assert!(
        error(&[
            ("blocks.0.att.time_first", &[2]),
            ("blocks.0.att.ln_x.weight", &[4])
        ])
        .contains("another generation")
    );
    assert!(error(&[("blocks.0.att.r_k", &[2, 2])]).contains("no matrix `blocks.0.att.w1`"));
    let time_first = error(&[("blocks.0.att.time_first", &[4])]);
    assert!(
        time_first.contains("tensor `blocks.0.ln0.weight` is missing"),
        "{time_first}"
    );
    let heads = error(&[
        ("blocks.0.att.time_faaaa", &[1, 3]),
        ("blocks.0.att.time_mix_g", &[1, 1, 4]),
    ]);
    assert!(
        heads.contains("heads of 3 do not divide the width 4"),
        "{heads}"
    );
}

#[test]
fn the_first_block_may_carry_values_that_no_one_reads() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&fixture("rwkv7")).unwrap();
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.extend(["blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"]);
    let stored = |name: &str| {
        if checkpoint.info(name).is_some() {
            name.into()
        } else {
            name.replace("s.0.", "s.1.")
        }
    };
    let plan = |name: &&str| TensorPlan {
        name: (*name).into(),
        dtype: Dtype::F32,
        shape: checkpoint.info(&stored(name)).unwrap().shape.clone(),
    };
    let writer = TensorWriter::new(names.iter().map(plan).collect()).unwrap();
    let path = folder.path().join("rwkv.safetensors");
    writer
        .write_file(&path, |name| checkpoint.read_f32(&stored(name), None))
        .unwrap();
    let (model, same) = (
        folder::load(folder.path(), &Device::flex()).unwrap().model,
        load("rwkv7"),
    );
    let input = Input::rows(&[ids(9, 50)]).unwrap();
    assert_eq!(logits(&model, &input, None), logits(&same, &input, None));
}

#[test]
fn blocks_that_read_the_first_one_are_not_run_again() {
    let error = load("rwkv7")
        .set_gradient_checkpointing(true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the first block's values"), "{error}");
    assert!(load("rwkv6-finch").set_gradient_checkpointing(true).is_ok());
}

/// Finch's weights from Eagle's, its maps from tokens to mixes and decays zero.
struct Still<'a>(CheckpointSource<'a>);

impl ParameterSource for Still<'_> {
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        let count = shape.iter().product();
        let part = name.rsplit_once("mixer.").map_or("", |(_, part)| part);
        if ["mix", "mix_decay", "mix_down.weight", "decay_down.weight"].contains(&part) {
            return Ok(vec![0.0; count].into());
        }
        if ["mix_up", "decay_up.weight"].contains(&part) {
            return Ok(vec![0.5; count].into());
        }
        if part == "decay" {
            return self.0.parameter(name, &[count / 8, 8], initial);
        }
        let values = self.0.parameter(name, shape, initial)?;
        Ok(if name.contains("mix_") {
            let values = values.into_floats().into_iter();
            values.map(|x| 1.0 - x).collect::<Vec<_>>().into()
        } else {
            values
        })
    }
}

#[test]
fn finch_without_its_maps_is_eagle() {
    let Description {
        family,
        spec,
        checkpoint,
        config,
        ..
    } = Description::read(&fixture("rwkv5-eagle")).unwrap();
    let mut map = config.clone();
    map.insert("model_type".into(), json!("rwkv6"));
    map.extend([
        ("mix_rank".into(), json!(4)),
        ("decay_rank".into(), json!(4)),
    ]);
    let finch = spec_of(map);
    let mut source = Still(CheckpointSource::new(&checkpoint, family, &spec));
    let finch = LanguageModel::build(finch, &mut source, &Device::flex()).unwrap();
    let input = Input::rows(&[ids(40, spec.vocabulary)]).unwrap();
    let gap = gap(
        &logits(&finch, &input, None),
        &logits(&load("rwkv5-eagle"), &input, None),
    );
    assert!(gap < 1e-5, "{gap}");
}

fn spec_of(map: serde_json::Map<String, serde_json::Value>) -> ModelSpec {
    let config = Config::from_map("config.json".as_ref(), map);
    let spec = (families::family(&config).unwrap().read)(&config).unwrap();
    config.refuse_unread().unwrap();
    spec
}

/// A fresh model of the fixture's sizes and its weights by our names.
fn fresh(name: &str) -> (LanguageModel, impl Fn(&str) -> Vec<f32>) {
    let spec = Description::read(&fixture(name)).unwrap().spec;
    let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
    let weights = model.clone();
    (model, move |name: &str| {
        weights
            .parameters()
            .into_iter()
            .find(|p| p.name() == name)
            .unwrap()
            .to_vec()
    })
}

#[test]
fn fresh_models_start_as_the_papers_say() {
    for name in GENERATIONS {
        let (model, weight) = fresh(name);
        let last = model.spec().blocks.len() - 1;
        // Nothing is added to the residual stream yet.
        for part in ["mixer.output.weight", "channel.value.weight"] {
            assert!(
                weight(&format!("blocks.{last}.{part}"))
                    .iter()
                    .all(|x| *x == 0.0),
                "{name}"
            );
        }
        let close = |part: &str, layer: usize, at: usize, expected: f64| {
            let found = weight(&format!("blocks.{layer}.mixer.{part}"))[at];
            assert!(
                (f64::from(found) - expected).abs() < 1e-5,
                "{name}: {part}[{at}] of block {layer} is {found}"
            );
        };
        let width = model.spec().width;
        let dd = 5.0 / width as f64;
        // The first block mixes by channel, the last has no depth left but its share.
        let rest = 1.0 - last as f64 / (last + 1) as f64;
        match name {
            "rwkv4" => {
                close("decay", 0, 0, -5.0);
                close("decay", last, width - 1, 3.0);
                close("bonus", 0, 1, 0.3f64.ln() + 0.5);
                close("mix_value", last, 5, dd.powf(rest) + 0.3);
                close("mix_receptance", 0, 5, dd.sqrt());
            }
            "rwkv5-eagle" => {
                close("decay", last, width - 1, -1.0);
                close("bonus", last, 0, 1.0);
                close("bonus", 0, 1, 0.1);
                close("mix_gate", 0, 5, dd.sqrt());
                close("norm.weight", 0, 3, (1.0 / (last + 1) as f64).powf(0.7));
            }
            "rwkv6-finch" => {
                close("mix", last, 5, 1.0 - dd.powf(rest));
                close("mix_value", last, 5, 1.0 - dd.powf(rest) - 0.3);
                close("mix_down.weight", 0, 0, 0.0);
                close("decay", 0, 0, -6.0);
                assert!(
                    weight("blocks.0.mixer.decay_up.weight")
                        .iter()
                        .all(|x| x.abs() <= 0.01)
                );
            }
            _ => {
                close("mix_decay", 0, 5, 1.0 - dd.powf(0.9));
                close("decay", 0, 0, -6.0 + 0.5 - 2.5);
                close("decay", last, width - 1, 0.0 + 0.5 + 2.5);
                close("rate", 0, 0, -0.19 - 0.3 - 0.2);
                close("first", 1, 0, 0.73 + 0.2);
                close("removed", 0, width - 1, 0.71 - 0.05);
                close("written", 0, 0, 1.02);
                close("bonus", 0, 0, -0.04);
            }
        }
        let key = weight("blocks.0.mixer.key.weight");
        let norm = key[..width].iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(
            if name == "rwkv7" {
                norm < 0.05
            } else {
                (norm - 0.1).abs() < 1e-6
            },
            "{name}: {norm}"
        );
        let input = Input::rows(&[ids(9, 50)]).unwrap();
        assert!(logits(&model, &input, None).iter().all(|x| x.is_finite()));
    }
}
