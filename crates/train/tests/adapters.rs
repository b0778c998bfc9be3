//! Adapters of any kind in the trainer and in generation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

#[path = "../../models/tests/made_up_kinds/mod.rs"]
mod made_up_kinds;

use std::path::Path;

use burn::tensor::{Device, Tensor};
use espalier_data::{encode::Example, packing::Row};
use espalier_engine::{
    beam::{BeamOptions, beam_search},
    decode::{DecodeOptions, decode},
    sampler::SamplerOptions,
};
use espalier_models::{
    adapter::{Adapter, ReftConfig, reft::Method},
    families, folder,
    model::{Input, LanguageModel},
    parameter::Parameters,
    source::Seed,
    spec::{MixerSpec, ModelSpec, RotaryScaling, RotarySpec},
    taps::Unobserved,
};
use espalier_train::{
    adapters::{AdapterOptions, lora::LoraOptions},
    averaging::Average,
    batch::{Sample, TokenBatch},
    objectives::{ObjectiveOptions, language::SftOptions, symbols::Symbols},
    options::TrainOptions,
    trainer::{Event, Outcome, Run, train},
};
use made_up_kinds::{KINDS, disturb, output_scale::OutputScale, steering::Steering};

fn base() -> LanguageModel {
    build(|_| {})
}

fn build(change: impl Fn(&mut RotarySpec)) -> LanguageModel {
    let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
    spec.initializer_range = 0.3;
    for block in &mut spec.blocks {
        if let MixerSpec::Attention(attention) = &mut block.mixer {
            attention.rotary.iter_mut().for_each(&change);
        }
    }
    LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
}

/// A model whose keys are computed anew when a text outgrows eight tokens.
fn with_two_frequencies() -> LanguageModel {
    build(|rotary| {
        rotary.scaling = RotaryScaling::LongRope {
            short: vec![1.0, 1.5],
            long: vec![3.0, 40.0],
            original_context: 8,
            attention_factor: 1.2,
        }
    })
}

fn scale() -> Adapter {
    let targets = vec!["q_proj".into(), "up_proj".into(), "down_proj".into()];
    Adapter::new(OutputScale { targets })
}

fn steering() -> Adapter {
    Adapter::new(Steering {
        vectors: vec![0],
        edits: vec![1],
        rank: 2,
        ends: [2, 1],
    })
}

fn reft(method: Method) -> Adapter {
    Adapter::new(ReftConfig {
        method,
        ..ReftConfig::new(3, "f2+l2".parse().unwrap())
    })
}

fn adapted(mut model: LanguageModel, adapter: &Adapter) -> LanguageModel {
    let family = families::by_name("llama").unwrap();
    adapter.attach(&mut model, family, 0).unwrap();
    model
}

/// Answers that follow their questions, of different lengths.
fn samples() -> Vec<Sample> {
    let sample = |i: u32| {
        let question = 2 + i as usize % 3;
        let ids: Vec<u32> = (0..question as u32 + 3)
            .map(|t| (7 * i + 5 * t) % 61)
            .collect();
        let targets = (0..ids.len()).map(|t| t >= question).collect();
        Sample::example(&Example::new(ids, targets))
    };
    (0..8).map(sample).collect()
}

fn trained(model: LanguageModel, steps: usize, folder: &Path) -> (Outcome, Vec<f64>) {
    trained_with(model, steps, folder, &|_| ())
}

fn trained_with(
    model: LanguageModel,
    steps: usize,
    folder: &Path,
    change: &dyn Fn(&mut TrainOptions),
) -> (Outcome, Vec<f64>) {
    let mut options = TrainOptions {
        steps: Some(steps),
        learning_rate: 0.02,
        warmup: 0.0,
        ..TrainOptions::default()
    };
    change(&mut options);
    let mut objective = ObjectiveOptions::Sft(SftOptions::default())
        .build(&Symbols::default())
        .unwrap();
    let run = Run {
        model,
        objective: objective.as_mut(),
        samples: samples(),
        validation: Vec::new(),
        options,
        folder: folder.to_owned(),
        fingerprint: "test".into(),
        interrupted: || false,
    };
    let mut losses = Vec::new();
    let mut note = |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    let outcome = train(run, &mut note).unwrap();
    (outcome, losses)
}

fn logits(model: &LanguageModel) -> Vec<f32> {
    let input = Input::rows(&[vec![5, 9, 2, 7, 1]]).unwrap();
    let logits = model.frozen().logits(&input).unwrap();
    logits.into_data().try_into_vec().unwrap()
}

#[test]
fn made_up_kinds_are_trained_saved_and_loaded() {
    let family = families::by_name("llama").unwrap();
    for adapter in [scale(), steering()] {
        let folder = tempfile::tempdir().unwrap();
        let start = adapted(base(), &adapter);
        let (outcome, losses) = trained(start.clone(), 12, folder.path());
        assert!(losses[11] < losses[0] - 0.05, "{losses:?}");
        // The base is as it was, all of the adapter has moved.
        for (before, after) in start.parameters().iter().zip(outcome.model.parameters()) {
            let moved = before.to_vec() != after.to_vec();
            assert_eq!(moved, before.adapter().is_some(), "{}", before.name());
        }
        let saved = tempfile::tempdir().unwrap();
        adapter.save(&outcome.model, family, saved.path()).unwrap();
        let mut again = base();
        let read = Adapter::read_among(KINDS, saved.path()).unwrap();
        read.load(&mut again, family, saved.path()).unwrap();
        assert_eq!(logits(&again), logits(&outcome.model));
    }
}

#[test]
fn all_forms_are_trained_saved_and_loaded() {
    let family = families::by_name("llama").unwrap();
    for (method, name) in Method::ALL {
        let adapter = reft(method);
        let folder = tempfile::tempdir().unwrap();
        let start = adapted(base(), &adapter);
        let (outcome, losses) = trained(start.clone(), 12, folder.path());
        assert!(losses[11] < losses[0] - 0.02, "{name}: {losses:?}");
        for (before, after) in start.parameters().iter().zip(outcome.model.parameters()) {
            let moved = before.to_vec() != after.to_vec();
            // No target is predicted where the last block has read the start of the prompt.
            if !before.name().starts_with("edits.1.adapter.default.prefix") {
                assert_eq!(moved, before.adapter().is_some(), "{}", before.name());
            }
        }
        let saved = tempfile::tempdir().unwrap();
        adapter.save(&outcome.model, family, saved.path()).unwrap();
        let mut again = base();
        let read = Adapter::read(saved.path()).unwrap();
        read.load(&mut again, family, saved.path()).unwrap();
        assert_eq!(logits(&again), logits(&outcome.model), "{name}");
    }
}

#[test]
fn weights_and_their_averages_stay_orthonormal() {
    let folder = tempfile::tempdir().unwrap();
    let start = adapted(base(), &reft(Method::Loreft));
    let change = |options: &mut TrainOptions| {
        options.average = Some(Average::Moving { decay: 0.9 });
    };
    let (outcome, _) = trained_with(start, 100, folder.path(), &change);
    let mut seen = 0;
    outcome.model.visit(&mut |parameter| {
        if parameter.name().ends_with(".directions") {
            let directions = parameter.flat().reshape([3, 16]);
            let gram = directions.clone().matmul(directions.transpose());
            let gap = (gram - Tensor::<2>::eye(3, &Device::flex())).abs();
            assert!(gap.max().into_scalar::<f32>() < 1e-6);
            seen += 1;
        }
    });
    assert_eq!(seen, 4);
}

fn steered(model: LanguageModel) -> LanguageModel {
    let mut model = adapted(model, &steering());
    disturb(&mut model, "default");
    model.frozen()
}

const NEW_TOKENS: usize = 6;

/// Greedy continuations of prompts of different lengths, together.
fn continued(model: &LanguageModel) -> Vec<(Vec<u32>, Vec<u32>)> {
    let sampler = SamplerOptions {
        temperature: 0.0,
        ..SamplerOptions::default()
    };
    let options = DecodeOptions {
        max_new_tokens: NEW_TOKENS,
        sampler,
        end: vec![],
    };
    let prompts = [vec![5, 9, 2, 7, 7], vec![3], vec![8, 8, 4]];
    let generated = decode(model, &prompts, &options, &mut |_, _| true).unwrap();
    let ids = generated.into_iter().map(|generated| generated.ids);
    prompts.into_iter().zip(ids).collect()
}

#[test]
fn steered_decoding_is_uncached_decoding() {
    let edited = |method| adapted(base(), &reft(method)).frozen();
    for model in [
        steered(base()),
        steered(with_two_frequencies()),
        edited(Method::Loreft),
        edited(Method::Direft),
    ] {
        for (prompt, ids) in continued(&model) {
            let beams = BeamOptions {
                beams: 1,
                max_new_tokens: NEW_TOKENS,
                ..BeamOptions::default()
            };
            let beam = beam_search(&model, &prompt, &beams, &mut |_| Ok(false)).unwrap();
            assert_eq!(beam[0].ids, ids, "{prompt:?}");
            for count in 0..NEW_TOKENS {
                let history = [&prompt[..], &ids[..count]].concat();
                let input = Input {
                    prompts: Some(vec![prompt.len() as u32; history.len()]),
                    ..Input::rows(std::slice::from_ref(&history)).unwrap()
                };
                let hidden = model.hidden(&input, None).unwrap();
                let last = hidden.narrow(1, history.len() - 1, 1).reshape([1, 16]);
                let scores = model.target_scores(last, &ids[count..=count]).unwrap();
                assert!(scores[0].first_choice, "{prompt:?}, token {count}");
            }
        }
    }
}

#[test]
fn training_knows_the_prompts_that_generation_has() {
    for model in [
        steered(base()),
        adapted(base(), &reft(Method::Loreft)).frozen(),
    ] {
        prompts_are_known(&model);
    }
}

fn prompts_are_known(model: &LanguageModel) {
    for (prompt, generated) in continued(model) {
        let ids = [prompt.as_slice(), &generated].concat();
        let targets = (0..ids.len()).map(|t| t >= prompt.len()).collect();
        let row = Row::from(&Example::new(ids, targets));
        let longer = Row::from(&Example::new(vec![1; 20], vec![true; 20]));
        let batch = TokenBatch::new(&[&row, &longer]);
        let (_, right) = batch.loss_and_choices(model, &mut Unobserved).unwrap();
        assert!(right[..NEW_TOKENS].iter().all(|right| *right), "{prompt:?}");
    }
}

#[test]
fn experts_have_no_dropout_of_their_own() {
    let attach = |dropout: f64, target_modules: Option<Vec<String>>| {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        let path = Path::new(fixtures).join("mixtral");
        let loaded = folder::load(&path, &Device::flex()).unwrap();
        let (family, mut model) = (loaded.family().unwrap(), loaded.model);
        let options = LoraOptions {
            dropout,
            target_modules,
            ..LoraOptions::default()
        };
        let adapter = AdapterOptions::Lora(options).attach(&mut model, family, 0)?;
        adapter.check_kept(&model, family)?;
        Ok::<(), espalier_train::Error>(())
    };
    assert!(attach(0.0, None).is_ok());
    assert!(attach(0.1, Some(vec!["q_proj".into()])).is_ok());
    let error = attach(0.1, None).unwrap_err().to_string();
    assert!(error.contains("is an expert of a stack"), "{error}");
}
