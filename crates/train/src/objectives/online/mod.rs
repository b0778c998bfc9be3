//! Objectives that learn from what the policy itself writes: PPO, GRPO and its variants, RLOO, online DPO.
//!
//! [`Online`] is all that they have in common: prompts are answered by the policy as it is ([`rollout`]), the answers are scored
//! ([`crate::rewards`]), a [`Method`] makes something to learn from of them, and that is learned from for one or several steps
//! ([`buffer`]). A method is one file here and one line in the registry. The reference, of which each run logs how far it has moved away, is
//! the model as it was before the first step unless another is named; where an adapter is trained, that is the base, which is in memory once.

pub mod advantages;
pub mod answers;
pub mod buffer;
pub mod critic;
pub mod grpo;
pub mod online_dpo;
pub mod policy_loss;
pub mod ppo;
pub mod rloo;
pub mod rollout;

use burn::tensor::{Device, Tensor};
use espalier_data::{random::Random, tokenizer::Tokenizer};
use espalier_kernels::readback::ReadFloats;
use espalier_models::{model::LanguageModel, parameter::Parameters};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    buffer::Buffer,
    policy_loss::LogProbabilities,
    rollout::{Actor, ENDED, EQUAL, REFERENCE, REWARD, RolloutOptions, SPREAD, Written},
};
use super::{
    Batch, Growth, Loss, Metric, Objective, ObjectiveState, OtherPasses, PackedRows, check_causal,
};
use crate::{
    Error, Result, batch::Sample, metrics::MetricDescription, named_tensors::SavedTensors,
    options::TrainOptions,
};

/// What a method of learning from one's own answers decides.
pub trait Method: std::fmt::Debug {
    /// The objective's name in recipes.
    fn name(&self) -> &'static str;

    /// Answers to each prompt.
    fn answers(&self) -> usize;

    /// Into how many parts answers are cut, each for a step, and how often all of them are learned from.
    fn reuse(&self) -> [usize; 2] {
        [1, 1]
    }

    /// Whether it asks for the log-probabilities of the policy that wrote the answers before it learns from them.
    fn needs_old(&self) -> bool {
        false
    }

    /// Whether it trains a model of the policy's size beside the policy.
    fn trains_critic(&self) -> bool {
        false
    }

    /// Looks at the starting model, and builds parameters of its own.
    ///
    /// # Errors
    /// When the model does not suit.
    fn start(&mut self, model: &LanguageModel, seed: u64) -> Result<()> {
        let _ = (model, seed);
        Ok(())
    }

    /// Parameters of its own by the name of the part.
    fn parameters(&self) -> Vec<(&'static str, &dyn Parameters)> {
        Vec::new()
    }

    /// The same for change.
    fn parameters_mut(&mut self) -> Vec<(&'static str, &mut dyn Parameters)> {
        Vec::new()
    }

    /// What is learned from, made of answers by `policy`.
    ///
    /// # Errors
    /// When an answer does not fit the model.
    fn judge(&self, actor: &Actor, policy: &LanguageModel, written: Written)
    -> Result<Vec<Sample>>;

    /// A batch of what was judged.
    ///
    /// # Errors
    /// When the samples have different columns.
    fn batch(&self, judged: &[&Sample]) -> Result<Batch>;

    /// The loss of a batch.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    fn loss(&self, actor: &Actor, model: &LanguageModel, batch: &Batch) -> Result<Loss>;

    /// Told of the end of an optimiser step, and of all answers that were written for it: none where it learned from earlier ones. A step
    /// that fails on its way does not come here, so that what it would have changed is changed once when it is taken again.
    fn after_step(&mut self, written: &[&Sample]) {
        let _ = written;
    }

    /// Numbers that a resumed run needs, by their bits.
    fn state(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Puts back what [`Method::state`] gave.
    ///
    /// # Errors
    /// When there are other numbers.
    fn restore(&mut self, bits: &[u64]) -> Result<()> {
        match bits {
            [] => Ok(()),
            _ => Err(unreadable("numbers that this objective does not know")),
        }
    }
}

/// Bytes of a number of a critic that is trained: the weight, its gradient, and two moments.
const CRITIC_BYTES: u64 = 16;

/// A method at work: the objective.
#[derive(Debug)]
pub struct Online<M> {
    method: M,
    actor: Actor,
    buffer: Buffer,
}

/// What a checkpoint keeps beside parameters.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    method: Vec<u64>,
    buffer: Value,
}

impl<M: Method> Online<M> {
    /// A method whose answers are written and scored as `rollout` says.
    pub fn new(method: M, rollout: RolloutOptions) -> Self {
        let [parts, rounds] = method.reuse();
        Self {
            method,
            actor: Actor::new(rollout),
            buffer: Buffer::new(parts, rounds),
        }
    }

    /// Answers that were judged, and those to the first prompt for readers.
    fn rollout(
        &self,
        policy: &LanguageModel,
        samples: &[&Sample],
        random: &mut Random,
    ) -> Result<(Vec<Sample>, Vec<Value>)> {
        let Self { method, actor, .. } = self;
        let (group, old) = (method.answers(), method.needs_old());
        let written = actor.write(policy, samples, group, old, random)?;
        let shown = written.shown.clone();
        Ok((method.judge(actor, &policy.frozen(), written)?, shown))
    }
}

impl<M: Method> Objective for Online<M> {
    fn name(&self) -> &'static str {
        self.method.name()
    }

    fn packed_rows(&self) -> PackedRows {
        PackedRows::Refused
    }

    fn predicts_tokens(&self) -> bool {
        false
    }

    fn growth(&self) -> Option<Growth> {
        Some(Growth {
            rows: self.method.answers(),
            tokens: self.actor.options().max_completion_length,
            share: 1.0,
            key: "max_completion_length",
        })
    }

    fn kept_bytes(&self, model: &LanguageModel) -> u64 {
        let mut trained = 0;
        model.visit(&mut |p| trained += if p.is_trainable() { p.len() as u64 } else { 0 });
        let critic = if self.method.trains_critic() {
            trained
        } else {
            0
        };
        self.actor.reference().kept_bytes(model, true) + CRITIC_BYTES * critic
    }

    fn other_passes(&self, model: &LanguageModel) -> OtherPasses {
        self.actor.reference().passes(model, true)
    }

    fn equip(&mut self, tokenizer: &Tokenizer, device: &Device) -> Result<()> {
        self.actor.equip(tokenizer, device)
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], o: &TrainOptions) -> Result<()> {
        check_causal(self.name(), model)?;
        let [parts, _] = self.method.reuse();
        let answers = o.batch * self.method.answers();
        if answers < parts {
            return Err(Error::Option {
                key: "batch",
                reason: format!("{answers} answers cannot be cut into {parts} parts; raise it"),
            });
        }
        let name = self.name();
        let reason = format!(
            "`{name}` compares the policy with the one that wrote the answers, which nothing disturbed; leave it 0"
        );
        let noises = [
            ("dropout", o.dropout),
            ("embedding_noise", o.embedding_noise),
            ("dropout", model.adapter_dropout()),
        ];
        if let Some((key, _)) = noises.into_iter().find(|(_, noise)| *noise > 0.0) {
            return Err(Error::Option { key, reason });
        }
        self.actor.reference().check(model)
    }

    fn start(&mut self, model: &LanguageModel, seed: u64) -> Result<()> {
        self.actor.start(model)?;
        self.method.start(model, seed)
    }

    fn parameters(&self) -> Vec<(&'static str, &dyn Parameters)> {
        self.method.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<(&'static str, &mut dyn Parameters)> {
        self.method.parameters_mut()
    }

    fn collate(&self, model: &LanguageModel, samples: &[&Sample], r: &mut Random) -> Result<Batch> {
        let (judged, _) = self.rollout(model, samples, r)?;
        self.method.batch(&judged.iter().collect::<Vec<_>>())
    }

    fn batch(&mut self, policy: &LanguageModel, of: &[&Sample], r: &mut Random) -> Result<Batch> {
        if self.buffer.is_due() {
            let (judged, shown) = self.rollout(policy, of, r)?;
            self.buffer.put(judged, shown, r.next_u64());
        }
        self.method.batch(&self.buffer.take())
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        self.method.loss(&self.actor, model, batch)
    }

    fn after_step(&mut self, model: &LanguageModel, step: usize) -> Result<()> {
        self.actor.reference_mut().after_step(model, step)?;
        self.method.after_step(&self.buffer.written());
        self.buffer.after_step();
        Ok(())
    }

    fn shown(&self) -> &[Value] {
        self.buffer.shown()
    }

    fn state(&self) -> ObjectiveState<'_> {
        ObjectiveState {
            tensors: self.actor.reference().state(),
            value: json!(Kept {
                method: self.method.state(),
                buffer: self.buffer.state(),
            }),
        }
    }

    fn restore(&mut self, tensors: &SavedTensors, value: &Value) -> Result<()> {
        self.actor.reference_mut().restore(tensors)?;
        let kept: Kept = serde_json::from_value(value.clone())
            .map_err(|error| unreadable(&error.to_string()))?;
        self.method.restore(&kept.method)?;
        self.buffer.restore(&kept.buffer)
    }
}

/// An error of a checkpoint that holds something else.
fn unreadable(what: &str) -> Error {
    super::wrong(format!(
        "the checkpoint's state cannot be read ({what}); give another output folder"
    ))
}

/// The mean distance of an answer from the reference, which reports set against the reward.
pub const DIVERGENCE: MetricDescription = MetricDescription::number(
    "objective/kl",
    "distance from the reference",
    "log-ratio of policy and reference, summed over an answer",
);

/// The mean reward.
pub const MEAN_REWARD: MetricDescription = MetricDescription::number(
    REWARD,
    "reward",
    "weighted sum of the rewards, mean over answers",
);

/// The metrics that every method logs, each a [`MetricDescription`].
pub const COMMON: [MetricDescription; 8] = [
    MEAN_REWARD,
    MetricDescription::number(
        SPREAD,
        "reward: spread",
        "deviation of the rewards of a prompt's answers, mean over prompts",
    ),
    MetricDescription::share(
        EQUAL,
        "prompts whose answers all have one reward",
        "share of the prompts whose answers all have the same reward",
    ),
    DIVERGENCE,
    MetricDescription::number(
        "kl",
        "distance from the reference: a token",
        "estimate k3 of the divergence from the reference, mean over tokens",
    ),
    MetricDescription::number(
        "entropy",
        "entropy",
        "negative log-probability of the drawn tokens, mean over tokens: an estimate of the entropy",
    ),
    MetricDescription::number(
        "completions/mean_length",
        "length",
        "tokens of an answer, its end included",
    ),
    MetricDescription::share(
        "completions/clipped_ratio",
        "answers without an end",
        "share of the answers that were cut at `max_completion_length`",
    ),
];

/// The metrics of [`COMMON`] and a method's own; `N` is the number of both.
const fn with_common<const N: usize>(own: &[MetricDescription]) -> [MetricDescription; N] {
    assert!(N == COMMON.len() + own.len());
    let mut all = [COMMON[0]; N];
    let mut index = 0;
    while index < N {
        all[index] = match index < COMMON.len() {
            true => COMMON[index],
            false => own[index - COMMON.len()],
        };
        index += 1;
    }
    all
}

/// The numbers of a batch's column as a constant, `[count]`.
fn column(batch: &Batch, name: &str, count: usize, device: &Device) -> Result<Tensor<1>> {
    let values = batch.columns.numbers(name, count)?;
    Ok(answers::constant(values.iter().copied(), device))
}

/// The scores of a batch's tokens under the policy, the one that wrote them and the reference; where there is no `old` column, the
/// policy is the one that wrote them.
fn log_probabilities(
    batch: &Batch,
    new: Tensor<1>,
    with_old: bool,
    device: &Device,
) -> Result<LogProbabilities> {
    let count = batch.tokens.targets.len();
    let old = match with_old {
        true => column(batch, rollout::OLD, count, device)?,
        false => new.clone().inner(),
    };
    let reference = column(batch, REFERENCE, count, device)?;
    Ok(LogProbabilities {
        new,
        old,
        reference,
    })
}

/// The metrics of [`COMMON`], and those of the sources of rewards.
fn common_metrics(batch: &Batch, scores: &LogProbabilities) -> Result<Vec<Metric>> {
    let answers = batch.tokens.input.batch;
    let tokens = batch.tokens.targets.len() as f64;
    let mut metrics = Vec::new();
    let mut add = |name: &'static str, sum: f64, units: f64| {
        metrics.push(Metric { name, sum, units });
    };
    for (name, values) in batch.columns.all_numbers() {
        if [REWARD, SPREAD, EQUAL].contains(&name) || name.starts_with("rewards/") {
            let known = values.iter().filter(|value| !value.is_nan());
            let name = crate::rewards::interned(name.to_owned());
            add(name, known.clone().sum(), known.count() as f64);
        }
    }
    let ended: f64 = batch.columns.numbers(ENDED, answers)?.iter().sum();
    let count = answers as f64;
    add("completions/mean_length", tokens, count);
    add("completions/clipped_ratio", count - ended, count);
    let sum = |tensor: Tensor<1>| -> f64 { tensor.floats().iter().map(|v| f64::from(*v)).sum() };
    let new = scores.new.clone().inner();
    add(
        DIVERGENCE.name,
        sum(scores.old.clone() - scores.reference.clone()),
        count,
    );
    add(
        "kl",
        sum(policy_loss::k3(&LogProbabilities {
            new: new.clone(),
            ..scores.clone()
        })),
        tokens,
    );
    add("entropy", -sum(new), tokens);
    Ok(metrics)
}
