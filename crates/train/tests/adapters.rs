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

use burn::tensor::Device;
use espalier_data::encode::Example;
use espalier_engine::{
    beam::{BeamOptions, beam_search},
    decode::{DecodeOptions, decode},
    sampler::SamplerOptions,
};
use espalier_models::{
    adapter::Adapter,
    families,
    model::{Input, LanguageModel},
    source::Seed,
    spec::ModelSpec,
};
use espalier_train::{
    batch::{Sample, TokenBatch},
    objectives::{ObjectiveOptions, symbols::Symbols},
    options::TrainOptions,
    trainer::{Event, Outcome, Run, train},
};
use made_up_kinds::{KINDS, disturb, output_scale::OutputScale, steering::Steering};

fn base() -> LanguageModel {
    let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
    spec.initializer_range = 0.3;
    LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
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

fn adapted(adapter: &Adapter) -> LanguageModel {
    let mut model = base();
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
        Sample::example(Example::new(ids, targets))
    };
    (0..8).map(sample).collect()
}

fn trained(model: LanguageModel, steps: usize, folder: &Path) -> (Outcome, Vec<f64>) {
    let objective = ObjectiveOptions::Sft.build(&Symbols::default()).unwrap();
    let run = Run {
        model,
        objective: objective.as_ref(),
        samples: samples(),
        validation: Vec::new(),
        options: TrainOptions {
            steps: Some(steps),
            learning_rate: 0.02,
            warmup: 0.0,
            ..TrainOptions::default()
        },
        folder: folder.to_owned(),
        fingerprint: "test".into(),
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
        let start = adapted(&adapter);
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
fn what_is_trained_is_what_is_generated() {
    let mut model = adapted(&steering());
    disturb(&mut model, "default");
    let model = model.frozen();
    let sampler = SamplerOptions {
        temperature: 0.0,
        ..SamplerOptions::default()
    };
    let options = DecodeOptions {
        max_new_tokens: 6,
        sampler,
        end: vec![],
        forbidden: vec![],
    };
    let prompts = [vec![5, 9, 2, 7, 7], vec![3], vec![8, 8, 4]];
    let together = decode(&model, &prompts, &options, &mut |_, _| true).unwrap();
    for (prompt, generated) in prompts.iter().zip(together) {
        let beams = BeamOptions {
            beams: 1,
            max_new_tokens: 6,
            length_penalty: 1.0,
            end: vec![],
        };
        let beam = beam_search(&model, prompt, &beams).unwrap();
        assert_eq!(beam[0].ids, generated.ids, "{prompt:?}");
        // Every token that was generated is the first choice of a batch as training has it.
        let ids = [prompt.as_slice(), &generated.ids].concat();
        let targets = (0..ids.len()).map(|t| t >= prompt.len()).collect();
        let Sample::Row(row) = Sample::example(Example::new(ids, targets)) else {
            panic!("an example is a row")
        };
        let longer = Example::new(vec![1; 20], vec![true; 20]);
        let longer = espalier_train::batch::single(&longer);
        let batch = TokenBatch::new(&[&row, &longer]);
        let (_, right) = batch.loss_and_choices(&model).unwrap();
        assert!(right[..6].iter().all(|right| *right), "{prompt:?}");
    }
}
