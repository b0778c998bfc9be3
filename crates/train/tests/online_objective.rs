//! An objective that uses all that an objective may: a head of its own, rollouts, a buffer, a moving reference. A run that
//! was stopped or killed goes on bit for bit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, panic_any},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use burn::tensor::{Device, Tensor};
use espalier_data::{encode::Example, packing::Row, random::Random};
use espalier_engine::{
    decode::{DecodeOptions, decode},
    sampler::SamplerOptions,
};
use espalier_models::{
    checkpoint::TensorFile,
    model::LanguageModel,
    parameter::{Parameter, Parameters},
    source::Seed,
    spec::ModelSpec,
    taps::Unobserved,
};
use espalier_train::{
    Result,
    batch::{Sample, TokenBatch},
    checkpoint,
    named_tensors::{self, NamedTensor, SavedTensors, Values},
    objectives::{Batch, Loss, Metric, Objective, ObjectiveState, PackedRows},
    options::TrainOptions,
    trainer::{self, Event, Outcome, Run},
};
use serde_json::Value;

/// Rewards every odd token. A value head foresees the reward, and a reference that follows slowly holds the policy back. A
/// batch is what the policy wrote in this step and in the last one.
#[derive(Default)]
struct Parity {
    value: Vec<Parameter>,
    reference: Vec<LanguageModel>,
    buffer: Vec<Vec<u32>>,
}

impl Objective for Parity {
    fn name(&self) -> &'static str {
        "parity"
    }

    fn packed_rows(&self) -> PackedRows {
        PackedRows::Refused
    }

    fn start(&mut self, model: &LanguageModel, _: u64) -> Result<()> {
        let zeros = Tensor::zeros([WIDTH], model.device());
        self.value = vec![Parameter::new("weight", vec![WIDTH, 1], zeros)];
        self.value[0].set_trainable(true);
        self.reference = vec![model.frozen()];
        Ok(())
    }

    fn parameters(&self) -> Vec<(&'static str, &dyn Parameters)> {
        vec![("value", &self.value)]
    }

    fn parameters_mut(&mut self) -> Vec<(&'static str, &mut dyn Parameters)> {
        vec![("value", &mut self.value)]
    }

    fn collate(&self, model: &LanguageModel, of: &[&Sample], random: &mut Random) -> Result<Batch> {
        learned(&rollouts(model, of, random)?)
    }

    fn batch(&mut self, policy: &LanguageModel, of: &[&Sample], r: &mut Random) -> Result<Batch> {
        let fresh = rollouts(policy, of, r)?;
        let earlier = std::mem::replace(&mut self.buffer, fresh.clone());
        learned(&[fresh, earlier].concat())
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let tokens = &batch.tokens;
        let (hidden, auxiliary) = tokens.predicting(model, &mut Unobserved)?;
        let (reference, _) = tokens.log_probabilities(&self.reference[0], &mut Unobserved)?;
        let own = model.log_probabilities(hidden.clone(), &tokens.targets)?;
        let value = hidden.matmul(self.value[0].value::<2>()).flatten::<1>(0, 1);
        let rewards: Vec<f32> = tokens.targets.iter().map(|id| (id % 2) as f32).collect();
        let error = value - Tensor::from_floats(&rewards[..], model.device());
        let policy = own.clone() * error.clone().inner() + (own - reference).powi_scalar(2) * 0.1;
        let sum = (policy + error.powi_scalar(2)).sum();
        let mut loss = Loss::new(sum, batch.units, auxiliary);
        loss.metrics.push(Metric {
            name: "reward",
            sum: rewards.iter().map(|reward| f64::from(*reward)).sum(),
            units: batch.units,
        });
        Ok(loss)
    }

    fn after_step(&mut self, model: &LanguageModel, _: usize) -> Result<()> {
        let mut policy = model.parameters().into_iter().map(Parameter::flat);
        let mut follow = |old: Tensor<1>| old * 0.75 + policy.next().unwrap() * 0.25;
        self.reference
            .visit_mut(&mut |p| p.set_flat(follow(p.flat())));
        Ok(())
    }

    fn state(&self) -> ObjectiveState<'_> {
        let tensors = NamedTensor::parameters("reference", &self.reference);
        let value = serde_json::json!(self.buffer);
        ObjectiveState { tensors, value }
    }

    fn restore(&mut self, tensors: &SavedTensors, value: &Value) -> Result<()> {
        self.buffer = serde_json::from_value(value.clone()).unwrap();
        tensors.restore_parameters("reference", &mut self.reference)
    }
}

const WIDTH: usize = 8;

/// Tokens that are written after each prompt.
const WRITTEN: usize = 4;

fn rollouts(policy: &LanguageModel, of: &[&Sample], random: &mut Random) -> Result<Vec<Vec<u32>>> {
    let prompts: Vec<_> = of.iter().map(|sample| sample.rows[0].ids.clone()).collect();
    let options = DecodeOptions {
        max_new_tokens: WRITTEN,
        sampler: SamplerOptions {
            seed: random.next_u64(),
            ..Default::default()
        },
        end: vec![],
    };
    let written = decode(&policy.frozen(), &prompts, &options, &mut |_, _| true)?;
    let texts = prompts.into_iter().zip(written);
    Ok(texts
        .map(|(prompt, written)| [prompt, written.ids].concat())
        .collect())
}

fn learned(texts: &[Vec<u32>]) -> Result<Batch> {
    let row = |ids: &Vec<u32>| {
        let targets = (0..ids.len()).map(|t| t + WRITTEN >= ids.len()).collect();
        Row::from(&Example::new(ids.clone(), targets))
    };
    let rows: Vec<Row> = texts.iter().map(row).collect();
    Batch::of_targets(TokenBatch::new(&rows.iter().collect::<Vec<_>>()), &[])
}

fn samples(count: u32) -> Vec<Sample> {
    let sample = |i: u32| Sample::example(&Example::new(vec![1 + i, 2 + i % 3], vec![false; 2]));
    (0..count).map(sample).collect()
}

/// Everything that a run ends with.
#[derive(Debug, PartialEq)]
struct End {
    weights: Vec<Vec<f32>>,
    value: Vec<f32>,
    reference: Vec<Vec<f32>>,
    buffer: Value,
    metrics: String,
    validation: Option<f64>,
}

fn run(folder: &Path, objective: &mut Parity, events: &mut dyn FnMut(&Event)) -> Result<Outcome> {
    let spec = ModelSpec::llama(16, WIDTH, 2, 2, 1, 16, 32);
    let mut model = LanguageModel::build(spec, &mut Seed(3), &Device::flex())?;
    model.set_trainable(|_| true);
    let options = TrainOptions {
        steps: Some(9),
        batch: 3,
        accumulation: 2,
        learning_rate: 1e-2,
        weight_decay: 0.1,
        // Checkpoints fall between two lines of the log.
        log_every: 3,
        evaluate_every: 4,
        checkpoint_every: 2,
        ..TrainOptions::default()
    };
    let run = Run {
        model,
        objective,
        samples: samples(10),
        validation: samples(4),
        options,
        folder: folder.to_owned(),
        fingerprint: "parity".into(),
        interrupted: || false,
    };
    trainer::train(run, events)
}

fn end(folder: &Path) -> End {
    let mut objective = Parity::default();
    let outcome = run(folder, &mut objective, &mut |_| {}).unwrap();
    let vectors = |model: &LanguageModel| model.parameters().iter().map(|p| p.to_vec()).collect();
    End {
        weights: vectors(&outcome.model),
        value: objective.value[0].to_vec(),
        reference: vectors(&objective.reference[0]),
        buffer: objective.state().value,
        metrics: fs::read_to_string(folder.join("metrics.jsonl")).unwrap(),
        validation: outcome.validation_loss,
    }
}

/// Stops the trainer in the middle, behind the given step.
fn stopped(folder: &Path, after: usize) {
    let stop = &mut |event: &Event| match event {
        Event::Step { step, .. } if *step == after => panic_any(after),
        _ => {}
    };
    let run = AssertUnwindSafe(|| run(folder, &mut Parity::default(), stop));
    let stopped = catch_unwind(run).unwrap_err();
    assert_eq!(stopped.downcast_ref(), Some(&after));
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = end(whole.path());
    assert!(expected.value.iter().any(|value| *value != 0.0));
    assert!(expected.metrics.contains("\"eval_reward\""));
    for step in [1, 3, 6, 9] {
        stopped(parts.path(), step);
    }
    assert_eq!(end(parts.path()), expected);
}

/// The environment variable that tells a child process where to train.
const CHILD: &str = "ESPALIER_TEST_FOLDER";

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let slow = &mut |_: &Event| sleep(Duration::from_millis(50));
        run(Path::new(&folder), &mut Parity::default(), slow).unwrap();
        return;
    }
    let [whole, killed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_run_goes_on_bit_for_bit"])
        .env(CHILD, killed.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let checkpoints = killed.path().join("checkpoints");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !checkpoints.join("step-00000004").exists() {
        assert!(Instant::now() < deadline, "no checkpoint appeared");
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!checkpoints.join("step-00000009").exists());
    assert_eq!(end(killed.path()), end(whole.path()));
}

/// Rewrites a file of the newest checkpoint with other tensors, and gives what the next run says to it.
fn complaint(file: &str, change: impl Fn(&mut Vec<NamedTensor<'_>>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    stopped(folder.path(), 3);
    let newest = checkpoint::list(&folder.path().join("checkpoints")).unwrap();
    let path = newest.last().unwrap().join(file);
    let saved = TensorFile::open(&path).unwrap();
    let tensor = |name: &str| {
        let info = saved.info(name).unwrap();
        let bytes = saved.bytes(name).unwrap().into_owned().into();
        NamedTensor {
            name: name.to_owned(),
            shape: info.shape.clone(),
            values: Values::Bytes(info.dtype, bytes),
        }
    };
    let mut tensors: Vec<_> = saved.names().map(tensor).collect();
    change(&mut tensors);
    named_tensors::write(&path, &tensors).unwrap();
    checkpoint::seal(newest.last().unwrap()).unwrap();
    let error = run(folder.path(), &mut Parity::default(), &mut |_| {});
    error.unwrap_err().to_string()
}

#[test]
fn what_a_checkpoint_lacks_or_has_too_much_is_named() {
    let without = |name: &'static str| {
        move |tensors: &mut Vec<NamedTensor<'_>>| tensors.retain(|tensor| tensor.name != name)
    };
    for (file, name) in [
        ("weights.safetensors", "embedding.weight"),
        ("weights.safetensors", "objective.value.weight"),
        ("optimiser.safetensors", "second.embedding.weight"),
        ("optimiser.safetensors", "first.objective.value.weight"),
        ("objective.safetensors", "reference.embedding.weight"),
    ] {
        let error = complaint(file, without(name));
        let expected = format!("{file}: has no tensor `{name}`");
        assert!(error.contains(&expected), "{error}");
    }
    let error = complaint("optimiser.safetensors", |tensors| {
        let moment = NamedTensor::floats("more", Tensor::zeros([2], &Device::flex()));
        tensors.push(moment);
    });
    assert!(
        error.contains("has a tensor `more` that this run does not know"),
        "{error}"
    );
    let error = complaint("optimiser.safetensors", |tensors| {
        let name = "first.embedding.weight";
        tensors.retain(|tensor| tensor.name != name);
        tensors.push(NamedTensor::floats(
            name,
            Tensor::zeros([2], &Device::flex()),
        ));
    });
    assert!(
        error.contains(
            "`first.embedding.weight` holds F32 of shape [2], expected F32 of shape [128]"
        ),
        "{error}"
    );
}
