//! REINFORCE leave-one-out (arXiv 2402.14740, Eq. 7).
//!
//! Each prompt is answered `num_generations` times. What counts of an answer is its reward less `beta` times its log-ratio to the reference,
//! `R = r - beta sum_t (old - ref)`; the baseline of each is the mean of the others. An answer is one action, whose ratio is that of
//! the whole text: `c = exp(sum_t (new - old))`, loss `-min(c A, clip(c, 1 - epsilon, 1 + epsilon_high) A)`, a mean over answers. Names and
//! defaults are those of TRL, but for 4 answers in place of its 2. Recipe: `online.toml`.

use espalier_kernels::readback::ReadFloats;
use espalier_models::model::LanguageModel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    COMMON, Method, Online, advantages,
    answers::Answers,
    column, common_metrics, log_probabilities,
    policy_loss::{Clip, LogProbabilities, clipped, clipped_shares},
    rollout::{ADVANTAGE, Actor, OLD, REFERENCE, RolloutOptions, Written, batch_of},
    with_common,
};
use crate::{
    Error, Result,
    batch::Sample,
    error::{at_least, not_negative, positive},
    metrics::MetricDescription,
    objectives::{Batch, Loss, Metric, registry::Entry},
};

/// The options of RLOO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RlooOptions {
    /// How answers are written and scored.
    pub rollout: RolloutOptions,
    /// Answers to each prompt.
    #[schemars(range(min = 2))]
    pub num_generations: usize,
    /// Optimiser steps on the same answers.
    #[schemars(range(min = 1))]
    pub num_iterations: usize,
    /// Into how many steps the answers of a batch are cut.
    #[schemars(range(min = 1))]
    pub steps_per_generation: usize,
    /// What leaving the reference costs of the reward.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// How far below 1 a ratio counts.
    #[schemars(range(min = 0.0))]
    pub epsilon: f64,
    /// How far above 1 a ratio counts; as `epsilon` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub epsilon_high: Option<f64>,
    /// Bring the advantages of a batch to mean 0 and deviation 1.
    pub normalize_advantages: bool,
    /// The smallest and the largest reward that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_clip_range: Option<[f64; 2]>,
}

impl Default for RlooOptions {
    fn default() -> Self {
        Self {
            rollout: RolloutOptions::default(),
            num_generations: 4,
            num_iterations: 1,
            steps_per_generation: 1,
            beta: 0.05,
            epsilon: 0.2,
            epsilon_high: None,
            normalize_advantages: false,
            reward_clip_range: None,
        }
    }
}

impl RlooOptions {
    /// # Errors
    /// The first option that makes no sense.
    fn check(&self) -> Result<()> {
        at_least("num_generations", self.num_generations, 2)?;
        at_least("num_iterations", self.num_iterations, 1)?;
        at_least("steps_per_generation", self.steps_per_generation, 1)?;
        not_negative("beta", self.beta)?;
        not_negative("epsilon", self.epsilon)?;
        positive("epsilon_high", self.epsilon_high.unwrap_or(1.0))?;
        let is_range = |[low, high]: &[f64; 2]| low < high;
        if let Some([low, high]) = self.reward_clip_range.filter(|range| !is_range(range)) {
            return Err(Error::Option {
                key: "reward_clip_range",
                reason: format!("{low} is not below {high}"),
            });
        }
        self.rollout.check()
    }

    fn clip(&self) -> Clip {
        Clip {
            low: self.epsilon,
            high: self.epsilon_high.unwrap_or(self.epsilon),
            delta: None,
        }
    }
}

const OWN: [MetricDescription; 1] = [MetricDescription::share(
    "clip_ratio/region_mean",
    "clipped ratios",
    "share of the answers whose ratio was clipped",
)];

const METRICS: [MetricDescription; COMMON.len() + OWN.len()] = with_common(&OWN);

/// The objective's registration.
pub const ENTRY: Entry<RlooOptions> = Entry::of_prompts(
    &METRICS,
    |options| options.rollout.reads(),
    RlooOptions::check,
    |options, _| {
        Ok(Box::new(Online::new(
            Rloo(options.clone()),
            options.rollout.clone(),
        )))
    },
);

/// The method.
#[derive(Debug, Clone)]
pub struct Rloo(RlooOptions);

/// The rewards less what leaving the reference costs; `ratios` are the answers' log-ratios to it.
pub fn penalised(rewards: &[Option<f64>], ratios: &[f64], beta: f64) -> Vec<Option<f64>> {
    let both = rewards.iter().zip(ratios);
    both.map(|(reward, ratio)| reward.map(|reward| reward - beta * ratio))
        .collect()
}

impl Method for Rloo {
    fn name(&self) -> &'static str {
        "rloo"
    }

    fn answers(&self) -> usize {
        self.0.num_generations
    }

    fn reuse(&self) -> [usize; 2] {
        [self.0.steps_per_generation, self.0.num_iterations]
    }

    fn needs_old(&self) -> bool {
        true
    }

    fn judge(&self, _: &Actor, _: &LanguageModel, mut written: Written) -> Result<Vec<Sample>> {
        let ratio = |answer: &Sample| -> Result<f64> {
            let tokens = answer.rows[0].predictions().count();
            let policy = answer.columns.numbers(OLD, tokens)?;
            let reference = answer.columns.numbers(REFERENCE, tokens)?;
            Ok(policy.iter().zip(reference).map(|(p, q)| p - q).sum())
        };
        let ratios = written.answers.iter().map(ratio);
        let ratios = ratios.collect::<Result<Vec<_>>>()?;
        let clipped = |reward: &Option<f64>| match self.0.reward_clip_range {
            Some([low, high]) => reward.map(|reward| reward.clamp(low, high)),
            None => *reward,
        };
        let rewards: Vec<_> = written.rewards.iter().map(clipped).collect();
        let rewards = penalised(&rewards, &ratios, self.0.beta);
        let mut found = advantages::leave_one_out(&rewards, written.group);
        if self.0.normalize_advantages {
            found = advantages::normalised(&found);
        }
        written.set_numbers(ADVANTAGE, &found);
        Ok(written.answers)
    }

    fn batch(&self, judged: &[&Sample]) -> Result<Batch> {
        let mut batch = batch_of(judged)?;
        batch.units = judged.len() as f64;
        Ok(batch)
    }

    fn loss(&self, actor: &Actor, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let (tokens, device) = (&batch.tokens, model.device());
        let (_, new, auxiliary) = actor.scores(model, tokens)?;
        let scores = log_probabilities(batch, new, true, device)?;
        let answers = Answers::new(&tokens.rows, tokens.input.batch, device);
        let advantages = column(batch, ADVANTAGE, tokens.input.batch, device)?;
        let ratios = ratios(&scores, &answers);
        let losses = clipped(ratios.clone(), advantages.clone(), self.0.clip());
        let mut loss = Loss::new(losses.sum(), batch.units, auxiliary);
        loss.metrics.extend(common_metrics(batch, &scores)?);
        let [_, _, share] = clipped_shares(&ratios.floats(), &advantages.floats(), self.0.clip());
        loss.metrics.push(Metric {
            name: OWN[0].name,
            sum: share,
            units: batch.units,
        });
        Ok(loss)
    }
}

/// The ratio of each whole answer, `[answers]`.
fn ratios(scores: &LogProbabilities, answers: &Answers<'_>) -> burn::tensor::Tensor<1> {
    answers.sums(scores.new.clone() - scores.old.clone()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};

    const OLD: [f32; 5] = [-1.0, -2.0, -0.5, -1.5, -0.7];
    const REFERENCE: [f32; 5] = [-1.1, -2.0, -0.6, -1.4, -0.8];

    /// Loss and gradients of two answers of three and two tokens with advantages 1 and -0.5.
    fn worked(new: [f32; 5]) -> (f32, Vec<f32>) {
        let device = Device::flex();
        let answers = Answers::new(&[0, 0, 0, 1, 1], 2, &device);
        let leaf = Tensor::<1>::from_floats(new, &device)
            .autodiff()
            .require_grad();
        let scores = LogProbabilities {
            new: leaf.clone(),
            old: Tensor::from_floats(OLD, &device),
            reference: Tensor::from_floats(REFERENCE, &device),
        };
        let advantages = Tensor::from_floats([1.0, -0.5], &device);
        let clip = RlooOptions::default().clip();
        let loss = clipped(ratios(&scores, &answers), advantages, clip).sum() / 2.0;
        let gradients = loss.backward();
        (
            loss.inner().floats()[0],
            leaf.grad(&gradients).unwrap().floats(),
        )
    }

    #[test]
    fn ratios_of_whole_answers_leave_the_range_quickly() {
        let (loss, gradients) = worked([-0.7, -2.1, -0.45, -1.9, -0.6]);
        assert!((loss + 0.4).abs() < 2e-5, "{loss}");
        assert_eq!(gradients, [0.0; 5]);
        let (loss, gradients) = worked([-0.95, -2.05, -0.42, -1.55, -0.65]);
        assert!((loss + 0.291_644).abs() < 2e-5, "{loss}");
        let expected = [-0.541_644, -0.541_644, -0.541_644, 0.25, 0.25];
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 2e-5;
        assert!(gradients.iter().zip(&expected).all(near), "{gradients:?}");
    }

    #[test]
    fn the_distance_from_the_reference_is_part_of_the_reward() {
        let sum = |rows: std::ops::Range<usize>| -> f64 {
            rows.map(|t| f64::from(OLD[t] - REFERENCE[t])).sum()
        };
        let found = penalised(&[Some(1.0), Some(0.0)], &[sum(0..3), sum(3..5)], 0.05);
        let near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-6;
        assert!(near(found[0], 0.99) && near(found[1], 0.0), "{found:?}");
        assert_eq!(penalised(&[None], &[1.0], 0.05), [None]);
    }

    #[test]
    fn senseless_options_are_refused() {
        for text in [
            r#"{"num_generations": 1}"#,
            r#"{"beta": -0.1}"#,
            r#"{"reward_clip_range": [1, 0]}"#,
        ] {
            let options: RlooOptions = serde_json::from_str(text).unwrap();
            let error = options.check().unwrap_err().to_string();
            assert!(!error.contains("rewards`:"), "{error}");
        }
    }
}
