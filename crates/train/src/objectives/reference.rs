//! The reference of preference objectives: the model against whose log-probabilities the policy's are measured.
//!
//! One that stays is asked once, before the first step, and is gone then: its log-probabilities are a column of the samples. One that
//! moves (Trust Region, arXiv 2404.09656) is kept and asked in every step. After step `s`, where `every` divides it,
//! `reference <- mix * policy + (1 - mix) * reference` over all weights; of a policy with adapters the merged weights are mixed, for the mix of
//! `A` and of `B` is not that of their products. `mix = 1` is the paper's hard update. Recipe: `preferences.toml`.

use std::{collections::BTreeSet, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_models::{
    folder,
    model::LanguageModel,
    parameter::{Parameter, Parameters},
};
use serde::{Deserialize, Serialize};

use super::{Batch, OtherPasses};
use crate::{
    Error, Result,
    batch::Sample,
    choice,
    error::within,
    named_tensors::{NamedTensor, SavedTensors},
    rewards::Read,
};

/// Whose log-probabilities the policy's are measured against.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceOptions {
    /// The model as it is before the first step.
    #[default]
    Start,
    /// The model without its adapters, whatever these say before the first step.
    WithoutAdapter,
    /// Nobody's: log-probabilities count as they are.
    None,
    /// A model or adapter folder, or the name of an earlier stage; over the same vocabulary.
    Folder(String),
    /// A model that follows the policy (TR-DPO).
    Moving(MovingOptions),
}

/// How a reference follows the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MovingOptions {
    /// Optimiser steps from one update to the next (`ref_model_sync_steps`).
    #[schemars(range(min = 1))]
    pub every: usize,
    /// Share of the policy in the new reference (`ref_model_mixup_alpha`); 1 replaces it.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mix: f64,
}

impl Default for MovingOptions {
    fn default() -> Self {
        Self {
            every: 512,
            mix: 0.6,
        }
    }
}

/// Reads a reference's bare name or table.
///
/// # Errors
/// When the name is unknown or an option wrong.
pub(super) fn named<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<ReferenceOptions, D::Error> {
    choice::name_or_table(deserializer)
}

impl ReferenceOptions {
    /// Whether the options make sense, whatever the model.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
        let Self::Moving(moving) = self else {
            return Ok(());
        };
        if moving.every == 0 {
            return Err(wrong("`every` must be at least 1"));
        }
        within("reference", moving.mix, 0.0, 1.0)
    }

    /// The model that it names.
    pub fn reads(&mut self) -> Vec<Read<'_>> {
        match self {
            Self::Folder(path) => vec![Read::Peer(path)],
            _ => Vec::new(),
        }
    }
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::Option {
        key: "reference",
        reason: reason.into(),
    }
}

/// A model of a folder, frozen, whose tokens are the policy's.
///
/// # Errors
/// When it cannot be read, or has another vocabulary.
pub fn load(path: &str, policy: &LanguageModel) -> Result<LanguageModel> {
    let mut model = open(path, policy.device())?;
    check_tokens(path, &model, policy)?;
    model.set_precision(policy.precision());
    Ok(model)
}

/// A model of a folder, frozen.
///
/// # Errors
/// When it cannot be read.
pub fn open(path: &str, device: &Device) -> Result<LanguageModel> {
    Ok(folder::load(Path::new(path), device)?.model.frozen())
}

/// Whether the model that was read from `path` has as many tokens as the policy.
///
/// # Errors
/// When it has not.
pub fn check_tokens(path: &str, model: &LanguageModel, policy: &LanguageModel) -> Result<()> {
    let [own, other] = [policy, model].map(|model| model.spec().vocabulary);
    match own == other {
        true => Ok(()),
        false => Err(wrong(format!(
            "`{path}` has {other} tokens and the model {own}; only models over the same vocabulary can be compared"
        ))),
    }
}

/// The column of log-probabilities of a reference that stays: of every sample as many as it has rows.
const COLUMN: &str = "reference_log_probability";

/// Samples that are scored by the reference at once, and about so many tokens of them: a pass before training should not take more memory
/// than training.
const AT_ONCE: usize = 16;
const TOKENS_AT_ONCE: usize = 2048;

/// How many of the first samples are scored together: at least one.
fn at_once(samples: &[Sample]) -> usize {
    let mut tokens = 0;
    let fits = |sample: &&Sample| {
        tokens += sample.tokens();
        tokens <= TOKENS_AT_ONCE
    };
    samples.iter().take(AT_ONCE).take_while(fits).count().max(1)
}

/// Shows samples to `score`, few at a time.
///
/// # Errors
/// The first of `score`.
pub(super) fn in_turn(
    samples: &mut [Sample],
    score: &mut dyn FnMut(&mut [Sample]) -> Result<()>,
) -> Result<()> {
    let mut rest = samples;
    while !rest.is_empty() {
        let (chunk, others) = rest.split_at_mut(at_once(rest));
        rest = others;
        score(chunk)?;
    }
    Ok(())
}

/// A model that is asked in every step.
#[derive(Debug, Clone)]
struct Kept {
    model: LanguageModel,
    /// The names of the weights in which it comes to differ from the start.
    moving: BTreeSet<String>,
}

/// The reference of a run.
#[derive(Debug, Clone)]
pub struct Reference {
    options: ReferenceOptions,
    kept: Option<Kept>,
}

/// The log-probabilities of all rows of some samples under a model, row after row.
type Score<'a> = dyn Fn(&LanguageModel, &[&Sample]) -> Result<Vec<f64>> + 'a;

impl Reference {
    /// The reference that the options describe.
    pub fn new(options: ReferenceOptions) -> Self {
        Self {
            options,
            kept: None,
        }
    }

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.options != ReferenceOptions::None
    }

    /// Whether the model can have such a reference.
    ///
    /// # Errors
    /// When it has no adapter to be switched off, or one that cannot be merged into a moving reference.
    pub fn check(&self, policy: &LanguageModel) -> Result<()> {
        match &self.options {
            ReferenceOptions::WithoutAdapter if policy.adapters().is_empty() => Err(wrong(
                "`without_adapter` needs a model with an adapter, and this one has none; leave it out, for the start is the same",
            )),
            ReferenceOptions::Moving(_) => merged(policy).map(drop).map_err(|error| {
                wrong(format!(
                    "`moving` mixes merged weights, but {error}; choose another reference"
                ))
            }),
            _ => Ok(()),
        }
    }

    /// Looks at the starting model: a reference that moves starts there, and one that is to be asked in every step (`always`) is kept.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn start(&mut self, policy: &LanguageModel, always: bool) -> Result<()> {
        self.kept = match (&self.options, always) {
            (ReferenceOptions::Moving(_), _) => Some(Kept {
                model: merged(policy)?,
                moving: moving_weights(policy),
            }),
            (_, true) => self.fixed(policy)?.map(|model| Kept {
                model,
                moving: BTreeSet::new(),
            }),
            (_, false) => None,
        };
        Ok(())
    }

    /// Bytes of the weights in which a reference that is kept comes to differ from the policy: f32, one for each that moves. Whatever else
    /// both have they share, and what is asked once is gone before the first step.
    pub fn kept_bytes(&self, policy: &LanguageModel, always: bool) -> u64 {
        let (all, moving) = match (&self.options, always) {
            (ReferenceOptions::Moving(_), _) => (false, moving_weights(policy)),
            (ReferenceOptions::Start, true) => (false, trained_weights(policy)),
            (ReferenceOptions::Folder(_), true) => (true, BTreeSet::new()),
            _ => return 0,
        };
        let mut bytes = 0;
        policy.visit(&mut |p| {
            if all || moving.contains(p.name()) {
                bytes += 4 * p.len() as u64;
            }
        });
        bytes
    }

    /// What it computes, a forward pass of a model as large as the policy: once of each sample, or in every step where it moves or is
    /// `always` asked.
    pub fn passes(&self, policy: &LanguageModel, always: bool) -> OtherPasses {
        let pass = 2.0 * policy.spec().active_parameter_count();
        let (once, each) = match (&self.options, always) {
            (ReferenceOptions::None, _) => (0.0, 0.0),
            (ReferenceOptions::Moving(_), _) | (_, true) => (0.0, pass),
            (_, false) => (pass, 0.0),
        };
        OtherPasses { once, each }
    }

    /// The model that a reference which stays is asked of.
    fn fixed(&self, policy: &LanguageModel) -> Result<Option<LanguageModel>> {
        match &self.options {
            ReferenceOptions::None | ReferenceOptions::Moving(_) => Ok(None),
            ReferenceOptions::Start => Ok(Some(policy.frozen())),
            ReferenceOptions::WithoutAdapter => {
                let mut base = policy.frozen();
                base.set_active_adapters(&[])?;
                Ok(Some(base))
            }
            ReferenceOptions::Folder(path) => load(path, policy).map(Some),
        }
    }

    /// Adds the column of a reference that stays; `score` gives the log-probabilities of all rows of some samples, row after row.
    ///
    /// # Errors
    /// When a sample does not fit the model.
    pub fn prepare(
        &self,
        policy: &LanguageModel,
        samples: &mut [Sample],
        score: &Score<'_>,
    ) -> Result<()> {
        let Some(model) = self.fixed(policy)? else {
            return Ok(());
        };
        in_turn(samples, &mut |chunk| {
            let scores = score(&model, &chunk.iter().collect::<Vec<_>>())?;
            let mut scores = scores.into_iter();
            for sample in chunk {
                let of_sample = scores.by_ref().take(sample.rows.len()).collect();
                sample.columns.set_numbers(COLUMN, of_sample);
            }
            Ok(())
        })
    }

    /// The model that is asked in every step, where there is one.
    pub fn kept(&self) -> Option<&LanguageModel> {
        self.kept.as_ref().map(|kept| &kept.model)
    }

    /// The log-probabilities of a batch's `rows` rows, sample after sample, `[rows]`: from the column of a reference that stays, by
    /// `score` of one that moves, zeros where there is none.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn of_batch(
        &self,
        batch: &Batch,
        rows: usize,
        policy: &LanguageModel,
        score: &dyn Fn(&LanguageModel) -> Result<Vec<f64>>,
    ) -> Result<Tensor<1>> {
        let values: Vec<f32> = match (&self.options, &self.kept) {
            (ReferenceOptions::None, _) => vec![0.0; rows],
            (ReferenceOptions::Moving(_), Some(kept)) => narrowed(&score(&kept.model)?),
            _ => narrowed(batch.columns.numbers(COLUMN, rows)?),
        };
        Ok(Tensor::from_data(
            TensorData::new(values, [rows]),
            policy.device(),
        ))
    }

    /// Moves it after an optimiser step (from 1), where that is due.
    ///
    /// # Errors
    /// When an adapter cannot be merged.
    pub fn after_step(&mut self, policy: &LanguageModel, step: usize) -> Result<()> {
        let (ReferenceOptions::Moving(options), Some(kept)) = (&self.options, &mut self.kept)
        else {
            return Ok(());
        };
        if !step.is_multiple_of(options.every) || options.mix == 0.0 {
            return Ok(());
        }
        let policy = merged(policy)?;
        let mut of_policy = policy.parameters().into_iter();
        kept.model.visit_mut(&mut |own| {
            let Some(other) = of_policy.next() else {
                return;
            };
            if kept.moving.contains(own.name()) {
                mix(own, other, options.mix);
            }
        });
        Ok(())
    }

    /// The weights of a reference that moves, for a checkpoint.
    pub fn state(&self) -> Vec<NamedTensor<'_>> {
        let mut tensors = Vec::new();
        if let Some(kept) = &self.kept {
            kept.model.visit(&mut |p| {
                if kept.moving.contains(p.name()) {
                    tensors.push(NamedTensor::parameter(key(p), p));
                }
            });
        }
        tensors
    }

    /// Puts back what [`Reference::state`] gave.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn restore(&mut self, tensors: &SavedTensors) -> Result<()> {
        let mut restored = Ok(());
        if let Some(kept) = &mut self.kept {
            kept.model.visit_mut(&mut |p| {
                if restored.is_ok() && kept.moving.contains(p.name()) {
                    restored = tensors.restore_parameter(&key(p), p);
                }
            });
        }
        restored
    }
}

fn key(parameter: &Parameter) -> String {
    format!("reference.{}", parameter.name())
}

fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

/// A frozen copy with its adapters in its weights, so that its parameters are the base's.
fn merged(policy: &LanguageModel) -> Result<LanguageModel> {
    let mut copy = policy.frozen();
    copy.merge_adapters()?;
    Ok(copy)
}

/// The names of the base's weights that training changes, itself or through adapters.
fn moving_weights(policy: &LanguageModel) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    policy.visit(&mut |p| {
        if p.is_trainable() && p.adapter().is_none() {
            names.insert(p.name().to_owned());
        }
    });
    policy.visit_linears(&mut |map| {
        if map.adapters.is_active() {
            names.insert(map.weight.to_owned());
        }
        let mut parts = map.adapters.active().filter_map(|part| part.low_rank());
        if parts.any(|part| part.bias.is_some()) {
            names.insert(format!("{}.bias", map.name));
        }
    });
    let embedding = policy.embedding();
    if embedding.adapters.is_active() {
        names.insert(embedding.weight.name().to_owned());
    }
    names
}

/// The names of all weights that are trained.
fn trained_weights(policy: &LanguageModel) -> BTreeSet<String> {
    let parameters = policy.parameters();
    let trained = parameters.iter().filter(|p| p.is_trainable());
    trained.map(|p| p.name().to_owned()).collect()
}

/// `own <- share * other + (1 - share) * own`.
fn mix(own: &mut Parameter, other: &Parameter, share: f64) {
    match share {
        1.0 => own.set_values_of(other),
        _ => own.update(|flat| flat * (1.0 - share) + other.flat() * share),
    }
}

#[cfg(test)]
mod tests;
