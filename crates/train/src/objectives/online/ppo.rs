//! Proximal Policy Optimization (arXiv 1707.06347) of language models (2203.02155; details of 2403.17031).
//!
//! Each prompt is answered once. A token is rewarded with `-kl_coef` times its log-ratio to the reference, the last one with the answer's
//! score on top. Generalised advantages over the critic's values ([`super::advantages`]), whitened over the batch, and returns
//! `R = A + V` are learned from for `num_ppo_epochs` rounds of `num_mini_batches` steps:
//! `max(-A c, -A clip(c, 1 - cliprange, 1 + cliprange)) + vf_coef 0.5 max((v - R)^2, (clip(v, V - cliprange_value, V + cliprange_value) - R)^2)`,
//! a mean over tokens, `c = exp(new - old)`. Names and defaults are those of TRL.
//!
//! Deviations: the score stands at the last token, where TRL puts it on the padding behind it; the critic ([`super::critic`]) starts
//! from the policy, not from a reward model; statistics of a batch are those of each batch of an accumulated step. Recipe: `online.toml`.

use burn::tensor::Tensor;
use espalier_data::packing::Row;
use espalier_kernels::readback::ReadFloats;
use espalier_models::{model::LanguageModel, parameter::Parameters};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    COMMON, Method, Online,
    advantages::{self, KlEstimator, apart, generalised, steered, whitened},
    column, common_metrics,
    critic::{Critic, CriticKind},
    log_probabilities,
    policy_loss::{Clip, clipped},
    rollout::{ADVANTAGE, Actor, ENDED, OLD, REFERENCE, RolloutOptions, Written, batch_of},
    unreadable, with_common,
};
use crate::{
    Result,
    batch::{Sample, TokenBatch},
    error::{at_least, not_negative, positive, within},
    metrics::MetricDescription,
    objectives::{Batch, Loss, Metric, registry::Entry},
};

/// The options of PPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PpoOptions {
    /// How answers are written and scored.
    pub rollout: RolloutOptions,
    /// Rounds of learning from the same answers.
    #[schemars(range(min = 1))]
    pub num_ppo_epochs: usize,
    /// Optimiser steps of a round.
    #[schemars(range(min = 1))]
    pub num_mini_batches: usize,
    /// What a token costs for leaving the reference.
    #[schemars(range(min = 0.0))]
    pub kl_coef: f64,
    /// How that is estimated.
    pub kl_estimator: KlEstimator,
    /// The distance of an answer from the reference towards which `kl_coef` is steered; it stays as it is when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub kl_target: Option<f64>,
    /// Answers in which the steering takes effect.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub kl_horizon: f64,
    /// How far a ratio counts.
    #[schemars(range(min = 0.0))]
    pub cliprange: f64,
    /// How far a value may move from the one that it had.
    #[schemars(range(min = 0.0))]
    pub cliprange_value: f64,
    /// Weight of the critic's loss.
    #[schemars(range(min = 0.0))]
    pub vf_coef: f64,
    /// What a later reward is worth a token earlier.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub gamma: f64,
    /// How far advantages look ahead: 0 one token, 1 to the end.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lam: f64,
    /// Bring the rewards of tokens to variance 1.
    pub whiten_rewards: bool,
    /// What an answer loses that has no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_eos_penalty: Option<f64>,
    /// What the critic reads.
    pub critic: CriticKind,
    /// Optimiser steps at the beginning in which the critic alone learns.
    pub critic_warmup: usize,
}

impl Default for PpoOptions {
    fn default() -> Self {
        Self {
            rollout: RolloutOptions::default(),
            num_ppo_epochs: 4,
            num_mini_batches: 1,
            kl_coef: 0.05,
            kl_estimator: KlEstimator::default(),
            kl_target: None,
            kl_horizon: 10_000.0,
            cliprange: 0.2,
            cliprange_value: 0.2,
            vf_coef: 0.1,
            gamma: 1.0,
            lam: 0.95,
            whiten_rewards: false,
            missing_eos_penalty: None,
            critic: CriticKind::default(),
            critic_warmup: 0,
        }
    }
}

impl PpoOptions {
    /// # Errors
    /// The first option that makes no sense.
    fn check(&self) -> Result<()> {
        at_least("num_ppo_epochs", self.num_ppo_epochs, 1)?;
        at_least("num_mini_batches", self.num_mini_batches, 1)?;
        for (key, value) in [
            ("kl_coef", self.kl_coef),
            ("cliprange", self.cliprange),
            ("cliprange_value", self.cliprange_value),
            ("vf_coef", self.vf_coef),
            (
                "missing_eos_penalty",
                self.missing_eos_penalty.unwrap_or(0.0),
            ),
        ] {
            not_negative(key, value)?;
        }
        positive("kl_target", self.kl_target.unwrap_or(1.0))?;
        positive("kl_horizon", self.kl_horizon)?;
        within("gamma", self.gamma, 0.0, 1.0)?;
        within("lam", self.lam, 0.0, 1.0)?;
        self.rollout.check()
    }
}

const SCORES: &str = "objective/scores";
const NON_SCORE: &str = "objective/non_score_reward";
const RLHF: &str = "objective/rlhf_reward";

const OWN: [MetricDescription; 11] = [
    MetricDescription::number(
        SCORES,
        "reward: parts",
        "score of an answer, its missing end counted",
    ),
    MetricDescription::number(
        NON_SCORE,
        "reward: parts",
        "what an answer loses for leaving the reference",
    ),
    MetricDescription::number(RLHF, "reward: parts", "both together"),
    MetricDescription::number(
        "objective/entropy",
        "entropy: an answer",
        "negative log-probability of an answer",
    ),
    MetricDescription::number(
        "policy/approxkl_avg",
        "distance from the writing policy",
        "half the squared log-ratio, mean over tokens",
    ),
    MetricDescription::share(
        "policy/clipfrac_avg",
        "clipped",
        "share of the tokens whose ratio was clipped",
    ),
    MetricDescription::number(
        "loss/policy_avg",
        "loss: parts",
        "the policy's loss, mean over tokens",
    ),
    MetricDescription::number(
        "loss/value_avg",
        "loss: parts",
        "the critic's loss, mean over tokens, not weighted",
    ),
    MetricDescription::share(
        "val/clipfrac_avg",
        "clipped",
        "share of the tokens whose value was clipped",
    ),
    MetricDescription::number(
        "val/ratio",
        "ratio",
        "ratio of the policy to the one that wrote, mean over tokens",
    ),
    MetricDescription::number(
        "val/num_eos_tokens",
        "ends",
        "answers of a batch that ended by themselves",
    ),
];

const METRICS: [MetricDescription; COMMON.len() + OWN.len()] = with_common(&OWN);

/// The objective's registration.
pub const ENTRY: Entry<PpoOptions> = Entry::of_prompts(
    &METRICS,
    |options| options.rollout.reads(),
    PpoOptions::check,
    |options, _| {
        Ok(Box::new(Online::new(
            Ppo::new(options.clone()),
            options.rollout.clone(),
        )))
    },
);

/// Column of an answer: the critic's value before each token.
const VALUE: &str = "value";
/// Column of an answer: what is to be foreseen at each token.
const RETURN: &str = "return";

/// The method.
#[derive(Debug)]
pub struct Ppo {
    options: PpoOptions,
    critic: Critic,
    /// The penalty as it is now.
    kl_coef: f64,
    /// Optimiser steps that are done.
    steps: u64,
}

impl Ppo {
    /// PPO before its first step.
    fn new(options: PpoOptions) -> Self {
        Self {
            critic: Critic::new(options.critic),
            kl_coef: options.kl_coef,
            steps: 0,
            options,
        }
    }

    fn warms_up(&self) -> bool {
        self.steps < self.options.critic_warmup as u64
    }

    /// The rewards of an answer's tokens, and its score and penalty in columns.
    fn rewards(&self, answer: &mut Sample, reward: f64) -> Result<Vec<f64>> {
        let tokens = answer.rows[0].predictions().count();
        let columns = &mut answer.columns;
        let policy = columns.numbers(OLD, tokens)?;
        let reference = columns.numbers(REFERENCE, tokens)?;
        let cost = |(p, q): (&f64, &f64)| -self.kl_coef * self.options.kl_estimator.of(*p, *q);
        let mut rewards: Vec<f64> = policy.iter().zip(reference).map(cost).collect();
        let penalty = rewards.iter().sum::<f64>();
        let ended = columns.numbers(ENDED, 1)?[0] > 0.0;
        let missing = if ended {
            0.0
        } else {
            self.options.missing_eos_penalty.unwrap_or(0.0)
        };
        let score = reward - missing;
        if let Some(last) = rewards.last_mut() {
            *last += score;
        }
        for (name, value) in [
            (SCORES, score),
            (NON_SCORE, penalty),
            (RLHF, score + penalty),
        ] {
            columns.set_numbers(name, vec![value]);
        }
        Ok(rewards)
    }
}

impl Method for Ppo {
    fn name(&self) -> &'static str {
        "ppo"
    }

    fn answers(&self) -> usize {
        1
    }

    fn reuse(&self) -> [usize; 2] {
        [self.options.num_mini_batches, self.options.num_ppo_epochs]
    }

    fn needs_old(&self) -> bool {
        true
    }

    fn trains_critic(&self) -> bool {
        self.options.critic == CriticKind::Model
    }

    fn start(&mut self, model: &LanguageModel, _: u64) -> Result<()> {
        self.critic.start(model)
    }

    fn parameters(&self) -> Vec<(&'static str, &dyn Parameters)> {
        self.critic.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<(&'static str, &mut dyn Parameters)> {
        self.critic.parameters_mut()
    }

    /// Answers with a reward, and with values, advantages and returns for each token.
    fn judge(&self, _: &Actor, policy: &LanguageModel, written: Written) -> Result<Vec<Sample>> {
        let Written {
            answers, rewards, ..
        } = written;
        let known = answers.into_iter().zip(rewards);
        let known = known.filter_map(|(answer, reward)| Some((answer, reward?)));
        let (mut answers, scores): (Vec<Sample>, Vec<f64>) = known.unzip();
        if answers.is_empty() {
            return Ok(answers);
        }
        let rewards = answers.iter_mut().zip(&scores);
        let rewards = rewards.map(|(answer, score)| self.rewards(answer, *score));
        let mut rewards = rewards.collect::<Result<Vec<_>>>()?;
        if self.options.whiten_rewards {
            rewards = apart(&whitened(&rewards.concat(), true), &rewards);
        }
        let rows: Vec<&Row> = answers.iter().flat_map(|answer| &answer.rows).collect();
        let values = self.critic.measured(&TokenBatch::new(&rows), policy)?;
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let values = apart(&values, &rewards);
        let PpoOptions { gamma, lam, .. } = self.options;
        let both = rewards.iter().zip(&values);
        let found: Vec<Vec<f64>> = both.map(|(r, v)| generalised(r, v, gamma, lam)).collect();
        let white = apart(&whitened(&found.concat(), false), &found);
        let columns = values.into_iter().zip(found).zip(white);
        for (answer, ((values, found), white)) in answers.iter_mut().zip(columns) {
            let returns = found.iter().zip(&values).map(|(a, v)| a + v).collect();
            answer.columns.set_numbers(RETURN, returns);
            answer.columns.set_numbers(VALUE, values);
            answer.columns.set_numbers(ADVANTAGE, white);
        }
        Ok(answers)
    }

    /// Steers the penalty by the answers that were written for this step, before others are.
    fn after_step(&mut self, written: &[&Sample]) {
        self.steps += 1;
        let target = self.options.kl_target.filter(|_| !written.is_empty());
        let Some(target) = target else {
            return;
        };
        let sum = |answer: &Sample, name: &str| -> f64 {
            let columns = answer.columns.all_numbers();
            let found = columns.filter(|(known, _)| *known == name);
            found.flat_map(|(_, values)| values).sum()
        };
        let distance = |answer: &&Sample| sum(answer, OLD) - sum(answer, REFERENCE);
        let distances: Vec<f64> = written.iter().map(distance).collect();
        let (kl, episodes) = (advantages::mean(&distances), written.len() as f64);
        self.kl_coef = steered(self.kl_coef, kl, target, episodes, self.options.kl_horizon);
    }

    fn batch(&self, judged: &[&Sample]) -> Result<Batch> {
        batch_of(judged)
    }

    fn loss(&self, actor: &Actor, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let (tokens, device) = (&batch.tokens, model.device());
        let count = tokens.targets.len();
        let (hidden, new, auxiliary) = actor.scores(model, tokens)?;
        let scores = log_probabilities(batch, new, true, device)?;
        let (values, of_critic) = self.critic.values(tokens, hidden, self.warms_up())?;
        let [advantages, returns, old_values] =
            [ADVANTAGE, RETURN, VALUE].map(|name| column(batch, name, count, device));
        let (old_values, returns) = (old_values?, returns?);
        let clip = Clip {
            low: self.options.cliprange,
            high: self.options.cliprange,
            delta: None,
        };
        let ratios = (scores.new.clone() - scores.old.clone()).exp();
        let policy = clipped(ratios.clone(), advantages?.clone(), clip).sum();
        let range = self.options.cliprange_value;
        let value = value_losses(values.clone(), old_values.clone(), returns, range).sum();
        let mut metrics = common_metrics(batch, &scores)?;
        let parts = Parts {
            ratios: ratios.floats(),
            moved: (values - old_values).floats(),
            policy: policy.clone(),
            value: value.clone(),
        };
        metrics.extend(self.metrics(batch, &scores, parts)?);
        let critic = value * self.options.vf_coef;
        let sum = match self.warms_up() {
            true => critic,
            false => policy + critic,
        };
        let sum = match of_critic.and_then(|auxiliary| auxiliary.total()) {
            Some(total) => sum + total * batch.units,
            None => sum,
        };
        let auxiliary = match self.warms_up() {
            // Nothing of the policy learns yet, its routers neither.
            true => auxiliary.untrained(),
            false => auxiliary,
        };
        let mut loss = Loss::new(sum, batch.units, auxiliary);
        loss.metrics.extend(metrics);
        Ok(loss)
    }

    fn state(&self) -> Vec<u64> {
        vec![self.kl_coef.to_bits(), self.steps]
    }

    fn restore(&mut self, bits: &[u64]) -> Result<()> {
        let [kl_coef, steps] = bits else {
            return Err(unreadable("not the numbers of PPO"));
        };
        (self.kl_coef, self.steps) = (f64::from_bits(*kl_coef), *steps);
        Ok(())
    }
}

/// What a loss is made of, for metrics.
struct Parts {
    ratios: Vec<f32>,
    /// How far values have moved from those that advantages were made of.
    moved: Vec<f32>,
    policy: Tensor<1>,
    value: Tensor<1>,
}

impl Ppo {
    fn metrics(
        &self,
        batch: &Batch,
        scores: &super::policy_loss::LogProbabilities,
        parts: Parts,
    ) -> Result<Vec<Metric>> {
        let answers = batch.tokens.input.batch;
        let (count, tokens) = (answers as f64, batch.units);
        let of_answers =
            |name: &str| -> Result<f64> { Ok(batch.columns.numbers(name, answers)?.iter().sum()) };
        let beyond = |values: &[f32], center: f32, range: f64| {
            let far = values
                .iter()
                .filter(|v| f64::from((**v - center).abs()) > range);
            far.count() as f64
        };
        let total = |values: Vec<f32>| values.into_iter().map(f64::from).sum::<f64>();
        let distance = (scores.new.clone().inner() - scores.old.clone()).powi_scalar(2);
        let found = [
            (SCORES, of_answers(SCORES)?, count),
            (NON_SCORE, of_answers(NON_SCORE)?, count),
            (RLHF, of_answers(RLHF)?, count),
            (
                "objective/entropy",
                -total(scores.old.clone().floats()),
                count,
            ),
            (
                "policy/approxkl_avg",
                0.5 * total(distance.floats()),
                tokens,
            ),
            (
                "policy/clipfrac_avg",
                beyond(&parts.ratios, 1.0, self.options.cliprange),
                tokens,
            ),
            ("loss/policy_avg", total(parts.policy.floats()), tokens),
            ("loss/value_avg", total(parts.value.floats()), tokens),
            (
                "val/clipfrac_avg",
                beyond(&parts.moved, 0.0, self.options.cliprange_value),
                tokens,
            ),
            ("val/ratio", total(parts.ratios), tokens),
            ("val/num_eos_tokens", of_answers(ENDED)?, 1.0),
        ];
        let metric = |(name, sum, units)| Metric { name, sum, units };
        Ok(found.into_iter().map(metric).collect())
    }
}

/// `0.5 max((v - R)^2, (clip(v, V - range, V + range) - R)^2)` for each token, `[tokens]`.
fn value_losses(values: Tensor<1>, old: Tensor<1>, returns: Tensor<1>, range: f64) -> Tensor<1> {
    let near = old.clone() + (values.clone() - old).clamp(-range, range);
    let free = (values - returns.clone()).powi_scalar(2);
    let bounded = (near - returns).powi_scalar(2);
    free.max_pair(bounded) * 0.5
}

#[cfg(test)]
mod tests;
