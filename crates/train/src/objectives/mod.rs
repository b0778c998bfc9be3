//! Objectives: what a training step minimises.
//!
//! An objective is one file here and one line in [`registry`]. It sums its loss over units (tokens, pairs) and says how many
//! units a batch has before the forward pass, so that accumulation divides by the units of the whole step. It may own
//! parameters, make its batches from the policy's own rollouts, be notified of every step, and keep state between steps.

pub mod classification;
pub mod distillation;
pub mod infilling;
pub mod language;
pub mod masked;
pub mod online;
pub mod preference;
pub mod process_reward;
pub mod reference;
pub mod registry;
pub mod reward;
pub mod selective;
pub mod seq2seq;
pub mod simcse;
pub mod span_corruption;
pub mod symbols;

use burn::tensor::{Device, Tensor};
use espalier_data::{packing::Row, random::Random, tokenizer::Tokenizer};
use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    auxiliary_losses::AuxiliaryLosses, model::LanguageModel, parameter::Parameters,
};
use serde_json::Value;

pub use self::registry::{OBJECTIVES, ObjectiveOptions};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
    columns::Columns,
    named_tensors::{NamedTensor, SavedTensors},
    options::TrainOptions,
};

/// A batch as the objective that made it reads it.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The tokens of all rows.
    pub tokens: TokenBatch,
    /// Units over which the loss is a mean.
    pub units: f64,
    /// Units over which a second term of the loss is a mean, such as tokens where `units` are pairs; 0 where there is none.
    pub second_units: f64,
    /// How many `units` the whole step has for each of its `second_units`. The second term's sum times this number belongs
    /// into [`Loss::sum`], so that it becomes a mean over the step however the step is cut into batches.
    pub exchange: f64,
    /// The samples' columns, one after the other.
    pub columns: Columns,
    /// Further rows that the objective reads, in which nothing is learned.
    pub beside: Option<TokenBatch>,
}

impl Batch {
    /// A batch of samples over `units` units.
    ///
    /// # Errors
    /// When the samples have different columns.
    pub fn new(tokens: TokenBatch, units: usize, samples: &[&Sample]) -> Result<Self> {
        Ok(Self {
            tokens,
            units: units as f64,
            second_units: 0.0,
            exchange: 0.0,
            columns: Columns::joined(samples.iter().map(|sample| &sample.columns))?,
            beside: None,
        })
    }

    /// A batch whose units are its target tokens.
    ///
    /// # Errors
    /// When the samples have different columns.
    pub fn of_targets(tokens: TokenBatch, samples: &[&Sample]) -> Result<Self> {
        let units = tokens.targets.len();
        Self::new(tokens, units, samples)
    }

    /// The units of a whole step, of which these are the batches; each of them is told how its second units exchange for them.
    pub(crate) fn of_step(batches: &mut [Self]) -> f64 {
        let sum = |of: fn(&Self) -> f64| batches.iter().map(of).sum::<f64>();
        let (units, second) = (sum(|batch| batch.units), sum(|batch| batch.second_units));
        for batch in batches {
            batch.exchange = units / second.max(1.0);
        }
        units.max(1.0)
    }
}

/// The loss of one batch, summed over its units.
#[derive(Debug)]
pub struct Loss {
    /// `[1]`.
    pub sum: Tensor<1>,
    /// Named values to be averaged for the log.
    pub metrics: Vec<Metric>,
}

impl Loss {
    /// A loss over `units` units, with the losses that the model brings along added to its mean.
    pub fn new(sum: Tensor<1>, units: f64, auxiliary: AuxiliaryLosses) -> Self {
        let metric = |name, value: f64| Metric {
            name,
            sum: value,
            units: 1.0,
        };
        let mut metrics: Vec<Metric> = auxiliary
            .losses
            .iter()
            .map(|loss| metric(loss.name, scalar(&loss.value)))
            .collect();
        metrics.extend(
            auxiliary
                .measures
                .iter()
                .map(|(name, value)| metric(name, *value)),
        );
        let sum = match auxiliary.total() {
            Some(total) => sum + total * units,
            None => sum,
        };
        Self { sum, metrics }
    }

    /// The sum as a number.
    pub fn value(&self) -> f64 {
        scalar(&self.sum)
    }
}

fn scalar(tensor: &Tensor<1>) -> f64 {
    let values = tensor.clone().floats();
    values.first().map_or(f64::NAN, |value| f64::from(*value))
}

/// A value to be averaged over batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// The name that users of other trainers know.
    pub name: &'static str,
    /// Sum over units.
    pub sum: f64,
    /// Number of units.
    pub units: f64,
}

/// State of an objective between steps, for a checkpoint.
#[derive(Debug, Default)]
pub struct ObjectiveState<'a> {
    /// A moving reference, averages, a buffer's numbers.
    pub tensors: Vec<NamedTensor<'a>>,
    /// Whatever else there is. JSON rounds the last bit of some numbers: those that must be exact are tensors or integers.
    pub value: Value,
}

/// How an objective takes rows that hold several texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedRows {
    /// By their segments: nothing is predicted across a border, and a packed row has the loss of its texts.
    Apart,
    /// Not at all: it takes a row for one text, so that rows of several are refused.
    Refused,
}

/// What becomes of a prompt that the policy answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// Rows of each prompt.
    pub rows: usize,
    /// Most tokens of an answer.
    pub tokens: usize,
    /// Share of the batches that the policy answers; the others are learned from as they are.
    pub share: f64,
    /// The option that says how long an answer may be.
    pub key: &'static str,
}

/// Forward passes of other models, or of the policy as it was: operations for each token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OtherPasses {
    /// Over all samples, before the first step.
    pub once: f64,
    /// Over what every step learns from.
    pub each: f64,
}

/// What a training step minimises.
///
/// A reference, a teacher, a buffer of rollouts are fields of the objective. Only the methods without a body must be written.
pub trait Objective {
    /// The objective's name in recipes.
    fn name(&self) -> &'static str;

    /// How rows of several texts are taken; the trainer refuses what the objective does not take.
    fn packed_rows(&self) -> PackedRows;

    /// Whether the objective compares passes that differ in dropout alone.
    fn needs_dropout(&self) -> bool {
        false
    }

    /// Whether the objective is a cross-entropy of tokens, whose targets can be smoothed.
    fn predicts_tokens(&self) -> bool {
        true
    }

    /// Whether the model has to have a head over its vocabulary.
    fn needs_head(&self) -> bool {
        true
    }

    /// What becomes of a sample whose prompt the policy answers: a plan counts on it, and writes no answers.
    fn growth(&self) -> Option<Growth> {
        None
    }

    /// Given before anything else where there is a tokenizer: objectives that read or write text keep it, and load further
    /// models onto the device.
    ///
    /// # Errors
    /// When something that the options name cannot be loaded.
    fn equip(&mut self, tokenizer: &Tokenizer, device: &Device) -> Result<()> {
        let _ = (tokenizer, device);
        Ok(())
    }

    /// Whether model, samples and options suit the objective; asked before anything is planned or started.
    ///
    /// # Errors
    /// When they do not.
    fn check(
        &self,
        model: &LanguageModel,
        samples: &[Sample],
        options: &TrainOptions,
    ) -> Result<()> {
        let _ = (model, samples, options);
        Ok(())
    }

    /// Bytes that it keeps besides its parameters once training has moved on from `model`, such as a reference's.
    fn kept_bytes(&self, model: &LanguageModel) -> u64 {
        let _ = model;
        0
    }

    /// What is computed besides the policy's own passes, such as a reference's, where the policy is `model`.
    fn other_passes(&self, model: &LanguageModel) -> OtherPasses {
        let _ = model;
        OtherPasses::default()
    }

    /// Called with the starting model before the first step, in a resumed run too: builds the objective's own parameters, keeps
    /// a reference ([`LanguageModel::frozen`]).
    ///
    /// # Errors
    /// When the model does not suit.
    fn start(&mut self, model: &LanguageModel, seed: u64) -> Result<()> {
        let _ = (model, seed);
        Ok(())
    }

    /// Adds columns that depend on the starting model alone to samples, once and before training.
    ///
    /// # Errors
    /// When a sample does not fit the model.
    fn prepare(&self, model: &LanguageModel, samples: &mut [Sample]) -> Result<()> {
        let _ = (model, samples);
        Ok(())
    }

    /// Parameters of its own by the name of the part: a value head, a critic, a drafter. Those that are trainable
    /// ([`espalier_models::parameter::Parameter::set_trainable`]) are trained and kept as the model's are.
    fn parameters(&self) -> Vec<(&'static str, &dyn Parameters)> {
        Vec::new()
    }

    /// The same parts for change, in the same order.
    fn parameters_mut(&mut self) -> Vec<(&'static str, &mut dyn Parameters)> {
        Vec::new()
    }

    /// Makes a batch of samples, a function of the arguments and of the objective as it is; held-out data is measured on
    /// such batches. What it draws comes from `random`, so that a step can be repeated.
    ///
    /// # Errors
    /// When the samples are of another kind than the objective learns from.
    fn collate(
        &self,
        model: &LanguageModel,
        samples: &[&Sample],
        random: &mut Random,
    ) -> Result<Batch>;

    /// Makes a training batch, where it differs from [`Objective::collate`]'s: from rollouts of the policy
    /// ([`LanguageModel::frozen`] generates without gradients), or from a buffer of earlier ones.
    ///
    /// # Errors
    /// As [`Objective::collate`].
    fn batch(
        &mut self,
        policy: &LanguageModel,
        samples: &[&Sample],
        random: &mut Random,
    ) -> Result<Batch> {
        self.collate(policy, samples, random)
    }

    /// The loss of a batch.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss>;

    /// Called after every optimiser step (from 1): moving references and weight averages are updated here.
    ///
    /// # Errors
    /// When the update fails; the run stops.
    fn after_step(&mut self, model: &LanguageModel, step: usize) -> Result<()> {
        let _ = (model, step);
        Ok(())
    }

    /// Something of the last step for readers: lines of the run's `samples.jsonl`, each an object.
    fn shown(&self) -> &[Value] {
        &[]
    }

    /// State beside [`Objective::parameters`] that a resumed run needs to be bit-exact.
    fn state(&self) -> ObjectiveState<'_> {
        ObjectiveState::default()
    }

    /// Puts back what [`Objective::state`] gave. A tensor that is not read is an error of the trainer.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, or the value does not fit.
    fn restore(&mut self, tensors: &SavedTensors, value: &Value) -> Result<()> {
        let _ = tensors;
        match value {
            Value::Null => Ok(()),
            _ => Err(wrong(format!(
                "`{}` has no state, but the checkpoint keeps some; give another output folder",
                self.name()
            ))),
        }
    }
}

/// An error of the key `objective`.
fn wrong(reason: impl Into<String>) -> Error {
    Error::Option {
        key: "objective",
        reason: reason.into(),
    }
}

/// Whether a model reads its text from left to right and predicts each token from those before it; another is an error of the
/// objective `name`.
fn check_causal(name: &str, model: &LanguageModel) -> Result<()> {
    let reason = match (model.spec().encoder.is_some(), model.spec().bidirectional) {
        (true, _) => "an encoder-decoder learns by `seq2seq`, `span_corruption` or `infilling`",
        (false, true) => {
            "a model that sees the whole text would only learn to copy the next token; take `mlm`, `mntp` or `simcse`"
        }
        (false, false) => return Ok(()),
    };
    Err(wrong(format!("`{name}`: {reason}")))
}

/// The rows of samples of one row each; preference pairs are an error of the objective `name`.
fn rows<'a>(name: &str, samples: &[&'a Sample]) -> Result<Vec<&'a Row>> {
    let row = |sample: &&'a Sample| match sample.rows.as_slice() {
        [row] => Ok(row),
        _ => Err(wrong(format!(
            "`{name}` learns from texts and conversations, not from preference pairs"
        ))),
    };
    samples.iter().map(row).collect()
}

/// The rows of preference pairs, the better ones and the worse ones; other samples are an error of the objective `name`.
fn pairs<'a>(name: &str, samples: &[&'a Sample]) -> Result<[Vec<&'a Row>; 2]> {
    let pair = |sample: &&'a Sample| match sample.rows.as_slice() {
        [chosen, rejected] => Ok((chosen, rejected)),
        _ => Err(wrong(format!("`{name}` learns from preference pairs"))),
    };
    let pairs = samples.iter().map(pair).collect::<Result<Vec<_>>>()?;
    let (chosen, rejected) = pairs.into_iter().unzip();
    Ok([chosen, rejected])
}
