//! Adapters of any kind: named, switched, summed, merged, saved and loaded; interventions in cached, padded and packed passes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod made_up_kinds;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_models::{
    adapter::{Adapter, FirstStateConfig},
    checkpoint::{Dtype, PeftConfig, TensorFile, peft_config::Targets},
    families, folder,
    model::{Input, LanguageModel},
    parameter::{Parameter, Parameters},
    source::Seed,
    spec::ModelSpec,
    state::SequenceState,
    state_file::Prefix,
};
use made_up_kinds::{KINDS, disturb, output_scale::OutputScale, steering::Steering};
use serde_json::json;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

/// A fixture's model; `llama` makes effects large enough to be seen.
fn model(name: &str) -> LanguageModel {
    match name {
        "llama" => {
            let mut spec = ModelSpec::llama(61, 16, 3, 4, 2, 32, 64);
            spec.initializer_range = 0.3;
            LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
        }
        _ => folder::load(&fixture(name), &Device::flex()).unwrap().model,
    }
}

fn attach(adapter: &Adapter, model: &mut LanguageModel) {
    let family = families::by_name(&model.spec().family).unwrap();
    adapter.attach(model, family, 7).unwrap();
}

fn low_rank(targets: &[&str]) -> PeftConfig {
    let targets = targets.iter().map(|name| (*name).to_owned()).collect();
    PeftConfig::new(2, 4.0, Targets::List(targets))
}

fn hidden(model: &LanguageModel, input: &Input) -> Vec<f32> {
    let hidden = model.frozen().hidden(input, None).unwrap();
    hidden.into_data().try_into_vec().unwrap()
}

fn logits(model: &LanguageModel) -> Vec<f32> {
    let rows = [vec![5, 9, 2, 7, 1], vec![3, 3, 8, 4, 6]];
    let logits = model.frozen().logits(&Input::rows(&rows).unwrap()).unwrap();
    logits.into_data().try_into_vec().unwrap()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let gaps = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    gaps.fold(0.0, f32::max)
}

fn save(adapter: &Adapter, model: &LanguageModel, folder: &Path) {
    let family = families::by_name(&model.spec().family).unwrap();
    adapter.save(model, family, folder).unwrap();
}

/// Reads a folder of any kind and puts it on the model under a name.
fn load(folder: &Path, name: &str, model: &mut LanguageModel) -> Adapter {
    let family = families::by_name(&model.spec().family).unwrap();
    let kinds = [espalier_models::adapter::KINDS, KINDS].concat();
    let adapter = Adapter::read_among(&kinds, folder).unwrap();
    let adapter = adapter.named(name).unwrap();
    adapter.load(model, family, folder).unwrap();
    adapter
}

#[test]
fn a_made_up_kind_attaches_saves_loads_and_merges() {
    for (name, targets) in [
        ("llama", vec!["q_proj", "down_proj"]),
        // One module of the checkpoint is three of our maps, with a bias.
        ("gpt2", vec!["c_attn", "c_fc"]),
    ] {
        let plain = model(name);
        let mut adapted = plain.clone();
        let targets = targets.into_iter().map(str::to_owned).collect();
        let adapter = Adapter::new(OutputScale { targets });
        attach(&adapter, &mut adapted);
        assert!(gap(&logits(&adapted), &logits(&plain)) < 1e-6, "{name}");
        let trained: Vec<_> = adapted.parameters();
        let trained: Vec<_> = trained.iter().filter(|p| p.is_trainable()).collect();
        assert!(!trained.is_empty() && trained.iter().all(|p| p.adapter() == Some("default")));
        disturb(&mut adapted, "default");
        let expected = logits(&adapted);
        assert!(gap(&expected, &logits(&plain)) > 1e-3, "{name}");

        let saved = tempfile::tempdir().unwrap();
        save(&adapter, &adapted, saved.path());
        let mut again = plain.clone();
        load(saved.path(), "other", &mut again);
        assert_eq!(logits(&again), expected, "{name}");

        adapted.merge_adapters().unwrap();
        assert!(adapted.adapters().is_empty());
        let difference = gap(&logits(&adapted), &expected);
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}

#[test]
fn adapters_are_switched_by_name_and_summed() {
    let plain = model("llama");
    let mut all = plain.clone();
    let adapters = [
        Adapter::new(low_rank(&["q_proj", "up_proj"])),
        Adapter::new(low_rank(&["q_proj", "down_proj"]))
            .named("second")
            .unwrap(),
        Adapter::new(OutputScale {
            targets: vec!["q_proj".into()],
        })
        .named("third")
        .unwrap(),
    ];
    for adapter in &adapters {
        attach(adapter, &mut all);
        disturb(&mut all, adapter.name());
    }
    assert_eq!(all.active_adapters(), ["default", "second", "third"]);
    all.set_active_adapters(&[]).unwrap();
    assert_eq!(logits(&all), logits(&plain));
    for names in [
        vec!["second"],
        vec!["default", "second"],
        vec!["default", "third"],
    ] {
        all.set_active_adapters(&names).unwrap();
        let expected = logits(&all);
        assert!(gap(&expected, &logits(&plain)) > 1e-3);
        let mut merged = all.clone();
        merged.merge_adapters().unwrap();
        assert!(merged.active_adapters().is_empty());
        assert_eq!(merged.adapters().len() + names.len(), adapters.len());
        let difference = gap(&logits(&merged), &expected);
        assert!(difference < 1e-5, "{names:?}: {difference}");
        // Each has a folder of its own, from which it comes back under any name.
        let mut again = plain.clone();
        for adapter in adapters.iter().filter(|a| names.contains(&a.name())) {
            let saved = tempfile::tempdir().unwrap();
            save(adapter, &all, saved.path());
            load(
                saved.path(),
                &format!("{}-again", adapter.name()),
                &mut again,
            );
        }
        let difference = gap(&logits(&again), &expected);
        assert!(difference < 1e-6, "{names:?}: {difference}");
    }
    let error = all.set_active_adapters(&["secnd"]).unwrap_err().to_string();
    assert!(error.contains("did you mean `second`?"), "{error}");
    let family = families::by_name("llama").unwrap();
    let twice = adapters[0].attach(&mut all, family, 0).unwrap_err();
    assert!(
        twice
            .to_string()
            .contains("has an adapter `default` already")
    );
    assert!(adapters[0].clone().named("a.b").is_err());
}

#[test]
fn whole_modules_go_back_to_the_base_when_their_adapter_is_switched_off() {
    for name in ["qwen2", "gpt2"] {
        let plain = model(name);
        let mut adapted = plain.clone();
        let (head, inner) = match name {
            "gpt2" => ("lm_head", "mlp.c_proj"),
            _ => ("lm_head", "mlp.down_proj"),
        };
        let mut config = low_rank(&[if name == "gpt2" { "c_attn" } else { "q_proj" }]);
        config.modules_to_save = vec![head.into(), inner.into()];
        let adapter = Adapter::new(config);
        attach(&adapter, &mut adapted);
        let device = Device::flex();
        adapted.visit_mut(&mut |p| {
            if p.is_trainable() && p.adapter().is_none() {
                let old = p.to_vec().into_iter().enumerate();
                let new = old
                    .map(|(i, x)| x + 0.01 * ((i % 7) as f32 - 3.0))
                    .collect();
                p.set_data(new, &device);
            }
        });
        let expected = logits(&adapted);
        assert!(gap(&expected, &logits(&plain)) > 1e-3, "{name}");
        adapted.set_active_adapters(&[]).unwrap();
        assert_eq!(logits(&adapted), logits(&plain), "{name}");
        adapted.set_active_adapters(&["default"]).unwrap();
        assert_eq!(logits(&adapted), expected, "{name}");

        let saved = tempfile::tempdir().unwrap();
        save(&adapter, &adapted, saved.path());
        let mut again = plain.clone();
        load(saved.path(), "default", &mut again);
        assert_eq!(logits(&again), expected, "{name}");
        // Two adapters cannot replace the same module at once.
        let family = families::by_name(&plain.spec().family).unwrap();
        let other = adapter.clone().named("other").unwrap();
        let error = other.load(&mut again, family, saved.path()).unwrap_err();
        assert!(error.to_string().contains("both replace"), "{error}");
        assert_eq!(again.adapters(), ["default"]);
        assert_eq!(logits(&again), expected, "{name}");
        again.detach_adapter("default");
        assert_eq!(logits(&again), logits(&plain), "{name}");
        adapted.merge_adapters().unwrap();
        assert!(gap(&logits(&adapted), &expected) < 1e-5);
    }
}

#[test]
fn experts_sum_low_rank_adapters_and_refuse_others() {
    let mut adapted = model("mixtral");
    for (name, targets) in [("first", &["w1", "w2"][..]), ("second", &["w1"])] {
        let mut config = low_rank(targets);
        config.rank += name.len() % 2;
        let adapter = Adapter::new(config).named(name).unwrap();
        attach(&adapter, &mut adapted);
        disturb(&mut adapted, name);
    }
    let expected = logits(&adapted);
    let mut merged = adapted.clone();
    merged.merge_adapters().unwrap();
    let difference = gap(&logits(&merged), &expected);
    assert!(difference < 1e-4, "{difference}");
    let family = families::by_name("mixtral").unwrap();
    let scale = Adapter::new(OutputScale {
        targets: vec!["w1".into()],
    });
    let error = scale.attach(&mut adapted, family, 0).unwrap_err();
    assert!(error.to_string().contains("leave experts out"), "{error}");
    assert_eq!(adapted.adapters(), ["first", "second"]);
}

#[test]
fn first_states_are_summed_and_stay_when_others_are_merged() {
    let mut tuned = model("mamba");
    let plain = logits(&tuned);
    for name in ["a", "b"] {
        let adapter = Adapter::new(FirstStateConfig {}).named(name).unwrap();
        attach(&adapter, &mut tuned);
        disturb(&mut tuned, name);
    }
    let both = logits(&tuned);
    tuned.set_active_adapters(&["a"]).unwrap();
    let one = logits(&tuned);
    assert!(gap(&both, &one) > 1e-4 && gap(&one, &plain) > 1e-4);
    let error = tuned.merge_adapters().unwrap_err().to_string();
    assert!(error.contains("first states are no part"), "{error}");
    assert_eq!(logits(&tuned), one);
    tuned.set_active_adapters(&[]).unwrap();
    assert_eq!(logits(&tuned), plain);
}

#[test]
fn unknown_kinds_list_the_known_ones() {
    let folder = tempfile::tempdir().unwrap();
    let write = |config: serde_json::Value| {
        let path = folder.path().join("adapter_config.json");
        std::fs::write(path, config.to_string()).unwrap();
        Adapter::read(folder.path()).unwrap_err().to_string()
    };
    for (config, part) in [
        (json!({ "peft_type": "LORE" }), "did you mean `LORA`?"),
        (
            json!({ "peft_type": "ADALORA" }),
            "known: `LORA`, `FIRST_STATE`",
        ),
        (json!({}), "key `peft_type`: missing; known: `LORA`"),
        (json!({ "peft_type": "FIRST_STATE", "r": 3 }), "key `r`"),
    ] {
        let error = write(config);
        assert!(error.contains(part), "{error}");
    }
}

/// A model that is steered at the first two and the last tokens of its prompts, and its adapter.
fn steered(name: &str) -> (LanguageModel, Adapter) {
    let mut model = model(name);
    let last = model.spec().blocks.len() - 1;
    let adapter = Adapter::new(Steering {
        vectors: vec![0],
        edits: vec![last],
        rank: 2,
        ends: [2, 1],
    });
    let plain = logits(&model);
    attach(&adapter, &mut model);
    assert_eq!(logits(&model), plain, "{name}: not yet trained");
    disturb(&mut model, "default");
    assert!(gap(&logits(&model), &plain) > 1e-3, "{name}");
    (model, adapter)
}

const STEERED: [&str; 3] = ["llama", "mamba", "jamba"];

/// One text whose prompt ends before it.
fn text(ids: &[u32], prompt: usize) -> Input {
    Input {
        prompts: Some(vec![prompt as u32; ids.len()]),
        ..Input::rows(&[ids.to_vec()]).unwrap()
    }
}

#[test]
fn steered_texts_are_the_same_step_by_step() {
    for name in STEERED {
        let (model, _) = steered(name);
        let (model, ids) = (model.frozen(), [5, 9, 2, 7, 1, 4, 4, 8, 3]);
        let whole = hidden(&model, &text(&ids, 5));
        assert!(gap(&whole, &hidden(&model, &text(&ids, 9))) > 1e-3);
        let width = model.spec().width;
        let mut state = SequenceState::new(model.spec());
        let mut found = Vec::new();
        for part in [&ids[..5], &ids[5..6], &ids[6..9]] {
            let input = Input::rows(&[part.to_vec()]).unwrap();
            let part = model.hidden(&input, Some(&mut state)).unwrap();
            found.extend(part.into_data().try_into_vec::<f32>().unwrap());
        }
        assert_eq!(found.len(), ids.len() * width);
        let difference = gap(&whole, &found);
        assert!(difference < 1e-4, "{name}: {difference}");
        // A prompt that is read in parts says how long it will be.
        let mut state = SequenceState::new(model.spec());
        let mut found = Vec::new();
        for part in [&ids[..2], &ids[2..5], &ids[5..]] {
            let part = model.hidden(&text(part, 5), Some(&mut state)).unwrap();
            found.extend(part.into_data().try_into_vec::<f32>().unwrap());
        }
        let difference = gap(&whole, &found);
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn steered_rows_do_not_depend_on_padding_packing_or_beams() {
    for name in STEERED {
        let (model, _) = steered(name);
        let (model, width) = (model.frozen(), model.spec().width);
        let rows = [vec![5, 9, 2, 7, 1], vec![3, 8], vec![6, 6, 1, 4]];
        let alone: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| hidden(&model, &Input::rows(std::slice::from_ref(row)).unwrap()))
            .collect();
        let close = |found: &[f32], row: usize, what: &str| {
            let difference = gap(found, &alone[row]);
            assert!(difference < 1e-4, "{name}, {what}, row {row}: {difference}");
        };
        let right = hidden(&model, &Input::padded(&rows));
        for (row, values) in right.chunks(5 * width).enumerate() {
            close(&values[..rows[row].len() * width], row, "right");
        }
        let left = left_padded(&rows);
        for (row, values) in hidden(&model, &left).chunks(5 * width).enumerate() {
            close(&values[(5 - rows[row].len()) * width..], row, "left");
        }
        let number = |(row, ids): (usize, &Vec<u32>)| vec![row as u32 + 1; ids.len()];
        let packed = Input {
            ids: rows.concat(),
            batch: 1,
            positions: Some(rows.iter().flat_map(|row| 0..row.len() as u32).collect()),
            segments: Some(rows.iter().enumerate().flat_map(number).collect()),
            ..Input::default()
        };
        let packed = hidden(&model, &packed);
        let mut start = 0;
        for (row, ids) in rows.iter().enumerate() {
            close(&packed[start..start + ids.len() * width], row, "packed");
            start += ids.len() * width;
        }
        // Rows of a state change places, as beams do, and go on.
        let mut state = SequenceState::new(model.spec());
        model.hidden(&left, Some(&mut state)).unwrap();
        let order = [1, 2, 1, 0];
        let mut state = state.selected(&order);
        let next = Input {
            positions: Some(order.iter().map(|row| rows[*row].len() as u32).collect()),
            ..Input::rows(&[[11]; 4].map(|row| row.to_vec())).unwrap()
        };
        let found = model.hidden(&next, Some(&mut state)).unwrap();
        let found: Vec<f32> = found.into_data().try_into_vec().unwrap();
        for (beam, row) in found.chunks(width).zip(order) {
            let ids = [&rows[row][..], &[11]].concat();
            let whole = hidden(&model, &text(&ids, rows[row].len()));
            let difference = gap(beam, &whole[whole.len() - width..]);
            assert!(difference < 1e-4, "{name}, beam of row {row}: {difference}");
        }
    }
}

/// Rows on the right of a rectangle, as they are decoded.
fn left_padded(rows: &[Vec<u32>]) -> Input {
    let longest = rows.iter().map(Vec::len).max().unwrap();
    let each = |value: &dyn Fn(usize, &Vec<u32>) -> u32| -> Vec<u32> {
        let row = |row: &Vec<u32>| {
            let padding = longest - row.len();
            let token = |t: usize| {
                if t < padding {
                    0
                } else {
                    value(t - padding, row)
                }
            };
            (0..longest).map(token).collect::<Vec<u32>>()
        };
        rows.iter().flat_map(row).collect()
    };
    Input {
        ids: each(&|t, row| row[t]),
        batch: rows.len(),
        positions: Some(each(&|t, _| t as u32)),
        segments: Some(each(&|_, _| 1)),
        ..Input::default()
    }
}

#[test]
fn steering_is_saved_loaded_and_never_merged() {
    for name in STEERED {
        let (mut steered, adapter) = steered(name);
        let expected = logits(&steered);
        let saved = tempfile::tempdir().unwrap();
        save(&adapter, &steered, saved.path());
        let mut again = model(name);
        load(saved.path(), "again", &mut again);
        assert_eq!(logits(&again), expected, "{name}");
        assert!(steered.merge_adapters().is_err() && adapter.merge_refusal().is_some());
        assert_eq!(logits(&steered), expected, "{name}");
        let error = Prefix::read(&steered, &[1, 2]).unwrap_err().to_string();
        assert!(error.contains("give the prompt as a whole"), "{error}");
        steered.set_active_adapters(&[]).unwrap();
        assert_eq!(logits(&steered), logits(&model(name)), "{name}");
        assert!(Prefix::read(&steered, &[1, 2]).is_ok());
    }
}

#[test]
fn steering_and_scales_are_learned_with_and_without_gradient_checkpointing() {
    let (mut model, _) = steered("llama");
    let scale = Adapter::new(OutputScale {
        targets: vec!["q_proj".into()],
    });
    attach(&scale.named("scale").unwrap(), &mut model);
    disturb(&mut model, "scale");
    model.set_trainable(|parameter| parameter.adapter().is_some());
    let mut gradients = |recomputed: bool| -> Vec<Vec<f32>> {
        model.set_gradient_checkpointing(recomputed).unwrap();
        let input = Input::rows(&[vec![5, 9, 2, 7, 1], vec![3, 8, 8, 1, 6]]).unwrap();
        let hidden = model.hidden(&input, None).unwrap();
        let mut found = (hidden.clone() * hidden).sum().backward();
        let mut gradient = |p: &&Parameter| p.leaf()?.grad_remove(&mut found);
        let parameters = model.parameters();
        let trained = parameters.iter().filter(|p| p.is_trainable());
        trained
            .map(|p| gradient(p).unwrap().into_data().try_into_vec().unwrap())
            .collect()
    };
    let (kept, again) = (gradients(false), gradients(true));
    // A vector, two factors, a scale for each of three blocks.
    assert_eq!(kept.len(), 1 + 2 + 3);
    for (kept, again) in kept.iter().zip(&again) {
        let scale = kept.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert!(scale > 0.0 && gap(kept, again) <= 1e-5 * scale.max(1.0));
    }
}

#[test]
fn whole_modules_are_stored_as_the_checkpoint_stores_them() {
    let mut model = model("gpt2");
    let mut config = low_rank(&["c_attn"]);
    config.modules_to_save = vec!["h.1.mlp.c_fc".into()];
    let adapter = Adapter::new(config);
    attach(&adapter, &mut model);
    let (adapted, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save(&adapter, &model, adapted.path());
    folder::save(&model.frozen(), whole.path(), None, Dtype::F32).unwrap();
    let ours = TensorFile::open(&adapted.path().join("adapter_model.safetensors")).unwrap();
    let theirs = TensorFile::open(&whole.path().join("model.safetensors")).unwrap();
    let name = "transformer.h.1.mlp.c_fc.weight";
    let saved = format!("base_model.model.{name}");
    assert_eq!(
        ours.info(&saved).unwrap().shape,
        theirs.info(name).unwrap().shape
    );
    assert_eq!(
        ours.read_f32(&saved, None).unwrap(),
        theirs.read_f32(name, None).unwrap()
    );
}
