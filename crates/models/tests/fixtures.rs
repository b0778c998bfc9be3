//! Loading, caching, merging and saving, on every fixture.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::path::Path;

use burn::tensor::Device;
use espalier_models::{
    adapter::{Adapter, FirstStateConfig},
    checkpoint::{Checkpoint, Dtype, PeftConfig, TensorFile, peft_config::Targets},
    folder,
    model::{Input, LanguageModel},
    parameter::{Parameter, Parameters},
    source::Seed,
    spec::{MixerSpec, ModelSpec, RotaryScaling},
    state::SequenceState,
};
use fixture_lists::{EVERY, Kind, fixture, fixtures, kind};

fn input(name: &str) -> Input {
    let file = TensorFile::open(&fixture(name).join("expected.safetensors")).unwrap();
    let batch = file.info("input_ids").unwrap().shape[0];
    let ids = file
        .read_i64("input_ids")
        .unwrap()
        .into_iter()
        .map(|id| id as u32)
        .collect();
    Input {
        ids,
        batch,
        ..Input::default()
    }
}

/// What the model gives: logits, scores of classes, or of a model alone its hidden states.
fn values(model: &LanguageModel, input: &Input) -> Vec<f32> {
    let spec = model.spec();
    let data = match (spec.classifier, spec.headless) {
        (None, false) => model.logits(input).unwrap().into_data(),
        (None, true) => model.hidden(input, None).unwrap().into_data(),
        (Some(_), _) => {
            let hidden = model.hidden(input, None).unwrap();
            model.class_scores(hidden, input).unwrap().into_data()
        }
    };
    data.try_into_vec::<f32>().unwrap()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Two rows, with sources where the model has an encoder.
fn sample(name: &str) -> Input {
    let source = || Box::new(Input::padded(&[(3..20).collect(), (5..12).collect()]));
    let source = (kind(name) == Some(Kind::EncoderDecoder)).then(source);
    Input {
        source,
        ..Input::rows(&[vec![0, 7, 9, 11, 4], vec![0, 8, 3, 3, 9]]).unwrap()
    }
}

/// How far apart two ways to the same logits may be: RWKV's fixtures have logits beyond 1, with fewer digits behind the point.
fn tolerance(name: &str, logits: &[f32]) -> f32 {
    let largest = || logits.iter().fold(1.0f32, |most, x| most.max(x.abs()));
    1e-5 * if name.starts_with("rwkv") {
        largest()
    } else {
        1.0
    }
}

#[test]
fn a_cached_pass_equals_the_whole_one() {
    for name in &fixtures(&[Kind::Decoder]) {
        // Keys that grew stale with the length are made anew, so that parts differ from the whole.
        if name == "phi3-longrope" {
            continue;
        }
        let model = folder::load(&fixture(name), &Device::flex()).unwrap().model;
        let input = input(name);
        let (batch, time, vocabulary) = (input.batch, input.time(), model.spec().vocabulary);
        let whole = values(&model, &input);
        let tolerance = tolerance(name, &whole);
        let mut state = SequenceState::new(model.spec());
        for (start, end) in std::iter::once((0, 5)).chain((5..time).map(|t| (t, t + 1))) {
            let part = |row: usize| input.ids[row * time + start..row * time + end].to_vec();
            let step = Input::rows(&(0..batch).map(part).collect::<Vec<_>>()).unwrap();
            let hidden = model.hidden(&step, Some(&mut state)).unwrap();
            let logits = model
                .head(hidden)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap();
            for row in 0..batch {
                let expected =
                    &whole[(row * time + start) * vocabulary..(row * time + end) * vocabulary];
                let width = (end - start) * vocabulary;
                let gap = gap(&logits[row * width..(row + 1) * width], expected);
                assert!(
                    gap < tolerance,
                    "{name}: positions {start} to {end} differ by {gap}"
                );
            }
        }
    }
}

#[test]
fn a_cached_decoder_equals_the_whole_one_and_reads_its_source_once() {
    for name in &fixtures(&[Kind::EncoderDecoder]) {
        let model = folder::load(&fixture(name), &Device::flex()).unwrap().model;
        let source = || {
            Some(Box::new(Input::padded(&[
                (3..20).collect(),
                (5..12).collect(),
            ])))
        };
        let rows = [vec![0, 7, 9, 11, 4], vec![0, 8, 3, 3, 9]];
        let whole = values(
            &model,
            &Input {
                source: source(),
                ..Input::rows(&rows).unwrap()
            },
        );
        let vocabulary = model.spec().vocabulary;
        let mut state = SequenceState::new(model.spec());
        for t in 0..5 {
            let step = Input::rows(&rows.clone().map(|row| vec![row[t]])).unwrap();
            let step = Input {
                source: source().filter(|_| t == 0),
                ..step
            };
            let hidden = model.hidden(&step, Some(&mut state)).unwrap();
            let logits = model
                .head(hidden)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap();
            for row in 0..2 {
                let expected = &whole[(row * 5 + t) * vocabulary..(row * 5 + t + 1) * vocabulary];
                let gap = gap(&logits[row * vocabulary..(row + 1) * vocabulary], expected);
                assert!(gap < 1e-5, "{name}: position {t} differs by {gap}");
            }
        }
        let alone = Input {
            source: Some(Box::new(Input::padded(&[(5..12).collect()]))),
            ..Input::rows(&rows[1..]).unwrap()
        };
        let gap = gap(&values(&model, &alone), &whole[5 * vocabulary..]);
        assert!(gap < 1e-5, "{name}: padding the source changes {gap}");
        let error = model
            .logits(&Input::rows(&rows).unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("source"), "{error}");
    }
}

#[test]
fn left_padding_changes_nothing() {
    for name in &fixtures(&[Kind::Decoder]) {
        // The longest row of a batch, padding included, decides which of its frequencies turn it.
        if name == "phi3-longrope" {
            continue;
        }
        let model = folder::load(&fixture(name), &Device::flex()).unwrap().model;
        let ids: Vec<u32> = input(name).ids[..9].to_vec();
        let plain = values(&model, &Input::rows(std::slice::from_ref(&ids)).unwrap());
        let padded = Input {
            ids: [vec![0; 4], ids].concat(),
            batch: 1,
            positions: Some([vec![0; 4], (0..9).collect()].concat()),
            segments: Some([vec![0; 4], vec![1; 9]].concat()),
            ..Input::default()
        };
        let padded = values(&model, &padded);
        let gap = gap(&padded[4 * model.spec().vocabulary..], &plain);
        assert!(gap < tolerance(name, &plain), "{name}: {gap}");
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    for name in &fixtures(&[Kind::Decoder]) {
        let model = folder::load(&fixture(name), &Device::flex()).unwrap().model;
        let ids = input(name).ids;
        let (first, second) = (ids[..7].to_vec(), ids[7..12].to_vec());
        let packed = Input {
            ids: [first.clone(), second.clone()].concat(),
            batch: 1,
            positions: Some((0..7).chain(0..5).collect()),
            segments: Some([vec![1; 7], vec![2; 5]].concat()),
            ..Input::default()
        };
        let apart = [first, second]
            .map(|row| values(&model, &Input::rows(&[row]).unwrap()))
            .concat();
        let gap = gap(&values(&model, &packed), &apart);
        assert!(gap < tolerance(name, &apart), "{name}: {gap}");
    }
}

/// Rotary frequencies that depend on a text's length do not depend on what it shares a batch or a row with.
#[test]
fn frequencies_are_those_of_the_own_text() {
    let dynamic = RotaryScaling::Dynamic {
        factor: 4.0,
        original_context: 5,
    };
    let long = RotaryScaling::LongRope {
        short: vec![1.0; 4],
        long: vec![3.0, 7.0, 20.0, 40.0],
        original_context: 6,
        attention_factor: 1.1,
    };
    for scaling in [dynamic, long] {
        let mut spec = ModelSpec::llama(61, 16, 2, 2, 1, 32, 64);
        spec.initializer_range = 0.5;
        for block in &mut spec.blocks {
            if let MixerSpec::Attention(attention) = &mut block.mixer
                && let Some(rotary) = &mut attention.rotary
            {
                rotary.scaling = scaling.clone();
            }
        }
        let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
        let texts: [Vec<u32>; 3] = [(1..10).collect(), vec![7, 3], vec![4, 4, 9, 1]];
        let alone =
            |text: &Vec<u32>| values(&model, &Input::rows(std::slice::from_ref(text)).unwrap());
        let apart: Vec<Vec<f32>> = texts.iter().map(alone).collect();
        let packed = Input {
            ids: texts.concat(),
            batch: 1,
            positions: Some(texts.iter().flat_map(|text| 0..text.len() as u32).collect()),
            segments: Some([vec![1; 9], vec![2; 2], vec![3; 4]].concat()),
            ..Input::default()
        };
        assert!(gap(&values(&model, &packed), &apart.concat()) < 1e-5);
        let together = values(&model, &Input::padded(&texts));
        for (row, expected) in together.chunks(9 * 61).zip(&apart) {
            assert!(gap(&row[..expected.len()], expected) < 1e-5);
        }
        // The frequencies do change with the length, or this would prove nothing.
        let shorter = values(&model, &Input::rows(&[(1..5).collect()]).unwrap());
        assert!(gap(&shorter, &apart[0][..4 * 61]) > 1e-3);
    }
}

/// Names and values of a model folder's tensors.
fn tensors(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let mut names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    names.sort();
    names
        .into_iter()
        .map(|name| (name.clone(), checkpoint.read_f32(&name, None).unwrap()))
        .collect()
}

/// The shapes in an adapter's file.
fn shapes(folder: &Path) -> Vec<(String, Vec<usize>)> {
    let file = TensorFile::open(&folder.join("adapter_model.safetensors")).unwrap();
    file.names()
        .map(|name| (name.to_owned(), file.info(name).unwrap().shape.clone()))
        .collect()
}

#[test]
fn saving_after_loading_gives_the_same_tensors() {
    for name in &fixtures(&EVERY) {
        let loaded = folder::load(&fixture(name), &Device::flex()).unwrap();
        let saved = tempfile::tempdir().unwrap();
        folder::save(
            &loaded.model,
            saved.path(),
            Some(&loaded.config),
            Dtype::F32,
        )
        .unwrap();
        assert_eq!(tensors(saved.path()), tensors(&fixture(name)), "{name}");
        let again = folder::load(saved.path(), &Device::flex()).unwrap();
        assert_eq!(again.model.spec(), loaded.model.spec(), "{name}");
    }
}

#[test]
fn running_blocks_again_changes_no_gradient() {
    for name in fixtures(&EVERY).iter().filter(|name| *name != "rwkv7") {
        let mut model = folder::load(&fixture(name), &Device::flex()).unwrap().model;
        model.set_trainable(|_| true);
        let input = sample(name);
        let mut gradients = |recomputed| -> Vec<Vec<f32>> {
            model.set_gradient_checkpointing(recomputed).unwrap();
            let hidden = model.hidden(&input, None).unwrap();
            let gradients = (hidden.clone() * hidden).sum().backward();
            let gradient = |p: &Parameter| {
                p.leaf()
                    .and_then(|leaf| leaf.grad(&gradients))
                    .map(|g| g.into_data().try_into_vec().unwrap())
            };
            model
                .parameters()
                .into_iter()
                .map(|p| gradient(p).unwrap_or_default())
                .collect()
        };
        let (kept, again) = (gradients(false), gradients(true));
        for ((kept, again), parameter) in kept.iter().zip(&again).zip(model.parameters()) {
            let scale = kept.iter().fold(1.0f32, |most, x| most.max(x.abs()));
            let difference = gap(kept, again);
            assert!(
                difference <= 1e-5 * scale,
                "{name}: {} of {difference}, up to {scale}",
                parameter.name()
            );
        }
    }
}

/// A text's scores and hidden states do not depend on the padding behind it, nor on what it shares a batch with.
#[test]
fn padding_behind_a_text_changes_nothing() {
    for name in &fixtures(&[Kind::Encoder]) {
        let model = folder::load(&fixture(name), &Device::flex()).unwrap().model;
        let texts: [Vec<u32>; 2] = [(3..20).collect(), (5..12).collect()];
        let together = values(&model, &Input::padded(&texts));
        let row = together.len() / 2;
        for (text, together) in texts.iter().zip(together.chunks(row)) {
            let alone = values(&model, &Input::rows(std::slice::from_ref(text)).unwrap());
            let difference = gap(&together[..alone.len()], &alone);
            assert!(difference < 2e-5, "{name}: {difference}");
        }
    }
}

/// A packed row of a model that reads both ways gives each text what it has alone.
#[test]
fn packed_texts_of_encoders_do_not_see_each_other() {
    for name in &fixtures(&[Kind::Encoder]) {
        let model = folder::load(&fixture(name), &Device::flex()).unwrap().model;
        let texts: [Vec<u32>; 2] = [(3..10).collect(), (5..10).collect()];
        let packed = Input {
            ids: texts.concat(),
            batch: 1,
            positions: Some((0..7).chain(0..5).collect()),
            segments: Some([vec![1; 7], vec![2; 5]].concat()),
            ..Input::default()
        };
        let hidden = |input: &Input| -> Vec<f32> {
            let hidden = model.hidden(input, None).unwrap();
            hidden.into_data().try_into_vec().unwrap()
        };
        let alone = texts.map(|text| hidden(&Input::rows(&[text]).unwrap()));
        let difference = gap(&hidden(&packed), &alone.concat());
        assert!(difference < 2e-5, "{name}: {difference}");
    }
}

#[test]
fn half_precision_files_load() {
    let loaded = folder::load(&fixture("llama"), &Device::flex()).unwrap();
    let exact = values(&loaded.model, &input("llama"));
    for (dtype, tolerance) in [(Dtype::BF16, 0.1), (Dtype::F16, 0.01)] {
        let saved = tempfile::tempdir().unwrap();
        folder::save(&loaded.model, saved.path(), Some(&loaded.config), dtype).unwrap();
        let again = folder::load(saved.path(), &Device::flex()).unwrap();
        assert_eq!(again.dtype, dtype);
        let gap = gap(&values(&again.model, &input("llama")), &exact);
        assert!(gap < tolerance && gap > 0.0, "{dtype:?}: {gap}");
    }
}

#[test]
fn merged_adapters_equal_peft_and_the_adapted_model() {
    for name in ["peft-lora", "peft-lora-head"] {
        let loaded = folder::load(&fixture(name), &Device::flex()).unwrap();
        let adapted = values(&loaded.model, &input("llama"));
        let mut merged = loaded.model.clone();
        merged.merge_adapters().unwrap();
        let difference = gap(&values(&merged, &input("llama")), &adapted);
        assert!(
            difference < 1e-5,
            "{name}: merged differs from adapted by {difference}"
        );
        let saved = tempfile::tempdir().unwrap();
        folder::save(&merged, saved.path(), Some(&loaded.config), Dtype::F32).unwrap();
        let expected = TensorFile::open(&fixture(name).join("merged.safetensors")).unwrap();
        for (tensor, ours) in tensors(saved.path()) {
            let difference = gap(&ours, &expected.read_f32(&tensor, None).unwrap());
            assert!(
                difference < 1e-4,
                "{name}: `{tensor}` differs by {difference}"
            );
        }
    }
}

#[test]
fn adapters_survive_saving() {
    for name in ["peft-lora", "peft-lora-head"] {
        let loaded = folder::load(&fixture(name), &Device::flex()).unwrap();
        let base = fixture("llama").to_string_lossy().into_owned();
        let adapter = loaded.adapter.clone().unwrap().based_on(base);
        let saved = tempfile::tempdir().unwrap();
        adapter
            .save(&loaded.model, loaded.family().unwrap(), saved.path())
            .unwrap();
        let file =
            |folder: &Path| TensorFile::open(&folder.join("adapter_model.safetensors")).unwrap();
        let (ours, theirs) = (file(saved.path()), file(&fixture(name)));
        assert_eq!(ours.names().count(), theirs.names().count());
        for tensor in theirs.names() {
            assert_eq!(
                ours.read_f32(tensor, None).unwrap(),
                theirs.read_f32(tensor, None).unwrap(),
                "{tensor}"
            );
        }
        let again = folder::load(saved.path(), &Device::flex()).unwrap();
        assert_eq!(
            values(&again.model, &input("llama")),
            values(&loaded.model, &input("llama"))
        );
    }
}

#[test]
fn adapters_on_every_family_merge_and_survive_saving() {
    use espalier_models::checkpoint::peft_config::Pattern;
    let some = |pattern: &str| Targets::Regex(Pattern::whole(pattern).unwrap());
    let names = fixtures(&EVERY);
    let all = names
        .iter()
        .map(|name| (name.as_str(), Targets::AllLinear, 0));
    for (name, targets, modules) in all.chain([
        ("mixtral", Targets::AllLinear, 3 * (4 + 2)),
        (
            "mixtral",
            Targets::List(vec!["w1".into(), "w2".into()]),
            3 * 2,
        ),
        ("mixtral", some(r".*experts\.[13]\.w3"), 3),
        (
            "jamba",
            Targets::List(vec!["up_proj".into(), "down_proj".into()]),
            0,
        ),
        (
            "jetmoe",
            Targets::List(vec!["input_linear".into(), "output_linear".into()]),
            3 * 4,
        ),
    ]) {
        let mut loaded = folder::load(&fixture(name), &Device::flex()).unwrap();
        let plain = values(&loaded.model.frozen(), &sample(name));
        let family = loaded.family().unwrap();
        let mut peft = PeftConfig::new(2, 4.0, targets);
        // One of the experts has a higher rank and the others' scale.
        let first = || Pattern::suffix(r"experts\.1\.w[12]").unwrap();
        peft.rank_pattern = vec![(first(), 3)];
        peft.alpha_pattern = vec![(first(), 6.0)];
        let adapter = Adapter::new(peft).based_on(fixture(name).to_string_lossy());
        adapter.attach(&mut loaded.model, family, 5).unwrap();
        assert!(
            gap(&values(&loaded.model.frozen(), &sample(name)), &plain) < 1e-6,
            "{name}: not yet trained"
        );
        loaded.model.visit_mut(&mut |p| {
            if p.name().ends_with("adapter.default.up") {
                let values = (0..p.len())
                    .map(|i| 0.05 * ((i % 7) as f32 - 3.0))
                    .collect();
                p.set_data(values, &Device::flex());
            }
        });
        let adapted = values(&loaded.model.frozen(), &sample(name));
        assert!(gap(&adapted, &plain) > 1e-3, "{name}");
        let mut merged = loaded.model.frozen();
        merged.merge_adapters().unwrap();
        let difference = gap(&values(&merged, &sample(name)), &adapted);
        assert!(
            difference < 1e-4,
            "{name}: merged differs from adapted by {difference}"
        );
        let saved = tempfile::tempdir().unwrap();
        adapter.save(&loaded.model, family, saved.path()).unwrap();
        let file = TensorFile::open(&saved.path().join("adapter_model.safetensors")).unwrap();
        assert!(
            modules == 0 || file.names().count() == 2 * modules,
            "{name}: {:?}",
            file.names().collect::<Vec<_>>()
        );
        let again = folder::load(saved.path(), &Device::flex()).unwrap();
        let difference = gap(&values(&again.model, &sample(name)), &adapted);
        assert!(difference < 1e-5, "{name}: {difference}");
        // What was loaded is saved with the same ranks, not as the whole of what was fused once more.
        let twice = tempfile::tempdir().unwrap();
        let adapter = again.adapter.as_ref().unwrap();
        adapter.save(&again.model, family, twice.path()).unwrap();
        let [once, again] = [saved.path(), twice.path()].map(shapes);
        assert_eq!(once, again, "{name}");
        let again = folder::load(twice.path(), &Device::flex()).unwrap();
        let difference = gap(&values(&again.model, &sample(name)), &adapted);
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}

#[test]
fn first_states_survive_saving_and_misfits_are_errors() {
    use espalier_models::parameter::Parameters;
    let mut loaded = folder::load(&fixture("mamba"), &Device::flex()).unwrap();
    let (adapter, family) = (Adapter::new(FirstStateConfig {}), loaded.family().unwrap());
    adapter.attach(&mut loaded.model, family, 0).unwrap();
    loaded.model.visit_mut(&mut |p| {
        if p.is_trainable() {
            let values = (0..p.len())
                .map(|i| 0.05 * ((i % 7) as f32 - 3.0))
                .collect();
            p.set_data(values, &Device::flex());
        }
    });
    let adapted = values(&loaded.model.frozen(), &input("mamba"));
    let saved = tempfile::tempdir().unwrap();
    let save = |base: &str| {
        let adapter = adapter.clone().based_on(fixture(base).to_string_lossy());
        adapter
            .save(&loaded.model, loaded.family().unwrap(), saved.path())
            .unwrap();
        folder::load(saved.path(), &Device::flex())
    };
    let again = save("mamba").unwrap();
    assert_eq!(values(&again.model, &input("mamba")), adapted);
    let error = save("mamba2").unwrap_err().to_string();
    assert!(
        error.contains("adapter_model.safetensors") && error.contains("blocks.0.mixer"),
        "{error}"
    );
    assert!(save("llama").unwrap_err().to_string().contains("recurrent"));
}

#[test]
fn wrong_inputs_are_errors() {
    let model = folder::load(&fixture("gpt2"), &Device::flex())
        .unwrap()
        .model;
    let outside = model
        .logits(&Input::rows(&[vec![1, 61]]).unwrap())
        .unwrap_err()
        .to_string();
    assert!(outside.contains("61"), "{outside}");
    let long = model
        .logits(&Input::rows(&[vec![1; 65]]).unwrap())
        .unwrap_err()
        .to_string();
    assert!(long.contains("position 64"), "{long}");
    assert!(Input::rows(&[vec![1, 2], vec![1]]).is_err());
    assert!(Input::rows(&[]).is_err());
}
