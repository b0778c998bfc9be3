//! Objectives: what a training step minimises.
//!
//! An objective is one file here and one variant of [`ObjectiveOptions`]. It sums its loss over units (tokens, pairs) and
//! says how many units a batch has before the forward pass, so that accumulation divides by the units of the whole step.

pub mod dpo;
pub mod infilling;
pub mod language;
pub mod masked;
pub mod seq2seq;
pub mod simcse;
pub mod span_corruption;
pub mod symbols;

use burn::tensor::Tensor;
use espalier_data::{packing::Row, random::Random};
use espalier_kernels::readback::ReadFloats;
use espalier_models::{auxiliary_losses::AuxiliaryLosses, model::LanguageModel};
use serde::{Deserialize, Serialize};

use self::symbols::Symbols;
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
};

/// A batch as the objective that collated it reads it.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The tokens of all rows.
    pub tokens: TokenBatch,
    /// Units over which the loss is a mean.
    pub units: f64,
    /// Reference log-probabilities of chosen and rejected answers, for objectives on pairs.
    pub reference: Vec<[f64; 2]>,
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
        let value = |tensor: &Tensor<1>| {
            let values = tensor.clone().floats();
            values.first().map_or(f64::NAN, |value| f64::from(*value))
        };
        let mut metrics: Vec<Metric> = auxiliary
            .losses
            .iter()
            .map(|loss| metric(loss.name, value(&loss.value)))
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

/// What a training step minimises.
pub trait Objective {
    /// The objective's name in recipes.
    fn name(&self) -> &'static str;

    /// Computes, once and before training, what depends on the starting model alone.
    ///
    /// # Errors
    /// When a sample does not fit the model.
    fn prepare(&self, model: &LanguageModel, samples: &mut [Sample]) -> Result<()> {
        let _ = (model, samples);
        Ok(())
    }

    /// Whether the objective compares passes that differ in dropout alone.
    fn needs_dropout(&self) -> bool {
        false
    }

    /// Whether the objective is a cross-entropy of tokens, whose targets can be smoothed.
    fn predicts_tokens(&self) -> bool {
        true
    }

    /// Makes a batch of samples; what it draws comes from `random`, so that a step can be repeated.
    ///
    /// # Errors
    /// When the samples are of another kind than the objective learns from.
    fn collate(&self, samples: &[&Sample], random: &mut Random) -> Result<Batch>;

    /// The loss of a batch.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss>;
}

/// The objectives by name, with their options: `objective = "sft"` or `objective = { dpo = { beta = 0.1 } }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveOptions {
    /// Every token of every document.
    Pretrain,
    /// The assistant's tokens.
    Sft,
    /// Better against worse answers, with default options where none are given.
    Dpo(dpo::DpoOptions),
    /// Masked tokens, by an encoder.
    Mlm(masked::MaskingOptions),
    /// Masked tokens, by a decoder without its mask, each from the place before.
    Mntp(masked::MaskingOptions),
    /// What stands before the first target is read by the encoder, the rest written by the decoder.
    Seq2seq,
    /// Removed spans, by an encoder-decoder (T5).
    SpanCorruption(span_corruption::SpanOptions),
    /// Texts with masked spans, by an encoder-decoder (BART).
    Infilling(infilling::InfillingOptions),
    /// Two encodings of a text find each other.
    Simcse(simcse::SimcseOptions),
}

impl ObjectiveOptions {
    /// Special tokens that a fresh vocabulary needs for the objective.
    pub fn special_tokens(&self) -> Vec<String> {
        match self {
            Self::Mlm(_) | Self::Mntp(_) | Self::Infilling(_) => vec!["<mask>".into()],
            Self::SpanCorruption(_) => (0..FRESH_SENTINELS)
                .map(|i| format!("<extra_id_{i}>"))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The objective itself; `symbols` are the tokens that it may write.
    ///
    /// # Errors
    /// When an option makes no sense or a token is missing.
    pub fn build(&self, symbols: &Symbols) -> Result<Box<dyn Objective>> {
        Ok(match self {
            Self::Pretrain => Box::new(language::NextToken { name: "pretrain" }),
            Self::Sft => Box::new(language::NextToken { name: "sft" }),
            Self::Dpo(options) => Box::new(dpo::Dpo::new(options.clone())?),
            Self::Mlm(options) => {
                Box::new(masked::Masked::new("mlm", options.clone(), symbols, 0)?)
            }
            Self::Mntp(options) => {
                Box::new(masked::Masked::new("mntp", options.clone(), symbols, 1)?)
            }
            Self::Seq2seq => Box::new(seq2seq::SequenceToSequence::new(symbols)?),
            Self::SpanCorruption(options) => Box::new(span_corruption::SpanCorruption::new(
                options.clone(),
                symbols,
            )?),
            Self::Infilling(options) => {
                Box::new(infilling::Infilling::new(options.clone(), symbols)?)
            }
            Self::Simcse(options) => Box::new(simcse::Simcse::new(options.clone())?),
        })
    }
}

/// Sentinels of a fresh vocabulary.
const FRESH_SENTINELS: usize = 32;

/// The rows of samples; preference pairs are an error of the objective `name`.
fn rows<'a>(name: &str, samples: &[&'a Sample]) -> Result<Vec<&'a Row>> {
    let row = |sample: &&'a Sample| match sample {
        Sample::Row(row) => Ok(row),
        Sample::Pair(..) => Err(Error::Option {
            key: "objective",
            reason: format!(
                "`{name}` learns from texts and conversations, not from preference pairs"
            ),
        }),
    };
    samples.iter().map(row).collect()
}
