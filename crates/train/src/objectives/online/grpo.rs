//! Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300, Eq. 3) and its variants.
//!
//! Each prompt is answered `num_generations` times; an answer's advantage is its reward relative to the others' ([`super::advantages`]). The
//! loss of a token is the clipped importance ratio times the advantage, plus `beta` times the divergence from the reference (k3, times the
//! ratio, which makes its gradient that of the reverse KL; [`super::policy_loss`]):
//! `-min(c A, clip(c, 1 - epsilon, 1 + epsilon_high) A) + beta c (exp(ref - new) - (ref - new) - 1)`.
//!
//! Variants: DAPO (arXiv 2503.14476: `epsilon_high`, mean over tokens), Dr. GRPO (2503.20783: `loss_type`, `scale_rewards = "none"`), GSPO
//! (2507.18071: `importance_sampling_level = "sequence"`), CISPO (2506.13585), SAPO (2511.20347), LUSPO (2602.05261). Names and defaults are
//! those of TRL. Deviations: deviations of rewards over the `batch` are those of each batch of an accumulated step; with
//! `num_iterations` or `steps_per_generation` above 1, the prompts of the steps between are passed over. Recipe: `online.toml`.

use espalier_kernels::readback::ReadFloats;
use espalier_models::model::LanguageModel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    COMMON, Method, Online,
    advantages::{self, Scale},
    answers::Answers,
    column, common_metrics, log_probabilities,
    policy_loss::{Clip, ImportanceLevel, LossType, TokenLosses, clipped_shares, k3, token_losses},
    rollout::{ADVANTAGE, Actor, ENDED, RolloutOptions, Written, batch_of},
    with_common,
};
use crate::{
    Error, Result,
    batch::Sample,
    error::{at_least, not_negative, positive},
    metrics::MetricDescription,
    objectives::{Batch, Loss, Metric, preference::scores::lengths, registry::Entry},
};

/// The options of GRPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GrpoOptions {
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
    /// The loss of a token and the mean that is taken.
    pub loss_type: LossType,
    /// Whether ratios are a token's or an answer's.
    pub importance_sampling_level: ImportanceLevel,
    /// What advantages are divided by.
    pub scale_rewards: Scale,
    /// How far below 1 a ratio counts, 0.2 when absent; not of `cispo` and `sapo`, which have no such bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub epsilon: Option<f64>,
    /// How far above 1 a ratio counts; as `epsilon` when absent. Of `cispo` the largest weight itself, 5 when absent; not of `sapo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub epsilon_high: Option<f64>,
    /// The largest ratio that counts where the advantage is negative, none when absent; not of `cispo` and `sapo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 1.0))]
    pub delta: Option<f64>,
    /// Weight of the divergence from the reference.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// Multiply the divergence by the ratio, so that its gradient is that of the reverse KL.
    pub use_bias_correction_kl: bool,
    /// Learn nothing from answers that were cut at `max_completion_length`.
    pub mask_truncated_completions: bool,
}

impl Default for GrpoOptions {
    fn default() -> Self {
        Self {
            rollout: RolloutOptions::default(),
            num_generations: 8,
            num_iterations: 1,
            steps_per_generation: 1,
            loss_type: LossType::default(),
            importance_sampling_level: ImportanceLevel::default(),
            scale_rewards: Scale::default(),
            epsilon: None,
            epsilon_high: None,
            delta: None,
            beta: 0.0,
            use_bias_correction_kl: true,
            mask_truncated_completions: false,
        }
    }
}

/// How far from 1 a ratio counts where nothing else is said.
const USUAL_RANGE: f64 = 0.2;

/// The largest weight of CISPO where nothing else is said.
const USUAL_WEIGHT: f64 = 5.0;

impl GrpoOptions {
    /// # Errors
    /// The first option that makes no sense.
    fn check(&self) -> Result<()> {
        at_least("num_generations", self.num_generations, 2)?;
        at_least("num_iterations", self.num_iterations, 1)?;
        at_least("steps_per_generation", self.steps_per_generation, 1)?;
        not_negative("beta", self.beta)?;
        not_negative("epsilon", self.epsilon.unwrap_or(USUAL_RANGE))?;
        positive("epsilon_high", self.epsilon_high.unwrap_or(1.0))?;
        self.check_unread()?;
        let bound = 1.0 + self.clip().high;
        // What is no number is not above either.
        let above = |delta: f64| delta > bound && delta.is_finite();
        match self.delta {
            Some(delta) if !above(delta) => Err(Error::Option {
                key: "delta",
                reason: format!(
                    "{delta} must be above 1 + `epsilon_high` = {bound}, where it bounds what clipping leaves free"
                ),
            }),
            _ => self.rollout.check(),
        }
    }

    /// Whether every option that is given is one that the loss reads.
    fn check_unread(&self) -> Result<()> {
        let (softened, weighted) = (
            self.loss_type == LossType::Sapo,
            self.loss_type == LossType::Cispo,
        );
        let unclipped = softened || weighted;
        let loss = "`loss_type` does not clip ratios by it; leave it out, or choose another loss";
        let divergence = "there is no divergence while `beta` is 0; leave it out, or set `beta`";
        let unread = [
            ("epsilon", self.epsilon.is_some() && unclipped, loss),
            (
                "epsilon_high",
                self.epsilon_high.is_some() && softened,
                loss,
            ),
            ("delta", self.delta.is_some() && unclipped, loss),
            (
                "use_bias_correction_kl",
                !self.use_bias_correction_kl && self.beta == 0.0,
                divergence,
            ),
        ];
        match unread.into_iter().find(|(_, given, _)| *given) {
            Some((key, _, reason)) => Err(Error::Option {
                key,
                reason: reason.into(),
            }),
            None => Ok(()),
        }
    }

    fn clip(&self) -> Clip {
        let range = self.epsilon.unwrap_or(USUAL_RANGE);
        let usual = match self.loss_type {
            LossType::Cispo => USUAL_WEIGHT,
            _ => range,
        };
        Clip {
            low: range,
            high: self.epsilon_high.unwrap_or(usual),
            delta: self.delta,
        }
    }

    /// The ratios from which tokens count as clipped.
    fn bounds(&self) -> Clip {
        let clip = self.clip();
        match self.loss_type {
            LossType::Cispo => Clip {
                low: 1.0,
                high: clip.high - 1.0,
                ..clip
            },
            _ => clip,
        }
    }
}

const OWN: [MetricDescription; 3] = [
    MetricDescription::share(
        "clip_ratio/low_mean",
        "clipped ratios",
        "share of the tokens whose ratio was clipped below",
    ),
    MetricDescription::share(
        "clip_ratio/high_mean",
        "clipped ratios",
        "share of the tokens whose ratio was clipped above",
    ),
    MetricDescription::share(
        "clip_ratio/region_mean",
        "clipped ratios",
        "share of the tokens whose ratio was clipped",
    ),
];

const METRICS: [MetricDescription; COMMON.len() + OWN.len()] = with_common(&OWN);

/// The objective's registration.
pub const ENTRY: Entry<GrpoOptions> = Entry::of_prompts(
    &METRICS,
    |options| options.rollout.reads(),
    GrpoOptions::check,
    |options, _| {
        Ok(Box::new(Online::new(
            Grpo(options.clone()),
            options.rollout.clone(),
        )))
    },
);

/// The method.
#[derive(Debug, Clone)]
pub struct Grpo(GrpoOptions);

impl Method for Grpo {
    fn name(&self) -> &'static str {
        "grpo"
    }

    fn answers(&self) -> usize {
        self.0.num_generations
    }

    fn reuse(&self) -> [usize; 2] {
        [self.0.steps_per_generation, self.0.num_iterations]
    }

    /// Where answers serve one step, the policy of that step has written them.
    fn needs_old(&self) -> bool {
        self.reuse() != [1, 1]
    }

    fn judge(&self, _: &Actor, _: &LanguageModel, mut written: Written) -> Result<Vec<Sample>> {
        let (rewards, group) = (&written.rewards, written.group);
        let advantages = advantages::of_groups(rewards, group, self.0.scale_rewards);
        written.set_numbers(ADVANTAGE, &advantages);
        Ok(written.answers)
    }

    fn batch(&self, judged: &[&Sample]) -> Result<Batch> {
        let mut batch = batch_of(judged)?;
        batch.units = self.weights(&batch)?.1;
        Ok(batch)
    }

    fn loss(&self, actor: &Actor, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let (tokens, device) = (&batch.tokens, model.device());
        let (_, new, auxiliary) = actor.scores(model, tokens)?;
        let scores = log_probabilities(batch, new, self.needs_old(), device)?;
        let answers = Answers::new(&tokens.rows, tokens.input.batch, device);
        let advantages = column(batch, ADVANTAGE, tokens.input.batch, device)?;
        let advantages = answers.spread(advantages);
        let GrpoOptions {
            loss_type,
            importance_sampling_level: level,
            beta,
            ..
        } = self.0;
        let clip = self.0.clip();
        let TokenLosses { mut losses, ratios } = token_losses(
            loss_type,
            level,
            clip,
            &scores,
            advantages.clone(),
            &answers,
        );
        if beta > 0.0 {
            let divergence = match self.0.use_bias_correction_kl {
                true => k3(&scores) * ratios.clone(),
                false => k3(&scores),
            };
            losses = losses + divergence * beta;
        }
        let weights = answers.spread_constant(&self.weights(batch)?.0);
        let mut loss = Loss::new((losses * weights).sum(), batch.units, auxiliary);
        loss.metrics.extend(common_metrics(batch, &scores)?);
        let bounds = self.0.bounds();
        let shares = clipped_shares(&ratios.floats(), &advantages.floats(), bounds);
        let units = tokens.targets.len() as f64;
        let shares = OWN.iter().zip(shares);
        loss.metrics.extend(shares.map(|(metric, sum)| Metric {
            name: metric.name,
            sum,
            units,
        }));
        Ok(loss)
    }
}

impl Grpo {
    /// The weight of each answer's tokens in the sum, and the batch's units.
    fn weights(&self, batch: &Batch) -> Result<(Vec<f64>, f64)> {
        let count = batch.tokens.input.batch;
        let ended = batch.columns.numbers(ENDED, count)?.iter();
        let kept: Vec<bool> = ended
            .map(|ended| *ended > 0.0 || !self.0.mask_truncated_completions)
            .collect();
        let lengths = lengths(&batch.tokens.rows, count);
        let lengths: Vec<f64> = lengths.into_iter().map(f64::from).collect();
        let longest = self.0.rollout.max_completion_length;
        Ok(self.0.loss_type.weights(&lengths, &kept, longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        let options: GrpoOptions = serde_json::from_str(text).unwrap();
        options
            .check()
            .map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn senseless_options_are_refused() {
        let rewards = r#""rollout": {"rewards": "world"}"#;
        assert_eq!(complaint(&format!("{{{rewards}}}")), "");
        for (option, words) in [
            (
                r#""num_generations": 1"#,
                "`num_generations`: must be at least 2",
            ),
            (r#""num_iterations": 0"#, "`num_iterations`"),
            (r#""beta": -1"#, "`beta`"),
            (r#""delta": 1.1"#, "`delta`: 1.1 must be above"),
            (
                r#""delta": 1.25, "epsilon_high": 0.28"#,
                "above 1 + `epsilon_high` = 1.28",
            ),
            (
                r#""epsilon_high": 0"#,
                "`epsilon_high`: 0 is not a positive",
            ),
            (
                r#""loss_type": "sapo", "epsilon": 0.2"#,
                "`epsilon`: `loss_type`",
            ),
            (
                r#""loss_type": "cispo", "epsilon": 0.2"#,
                "`epsilon`: `loss_type`",
            ),
            (
                r#""loss_type": "sapo", "epsilon_high": 0.3"#,
                "`epsilon_high`: `loss_type`",
            ),
            (
                r#""loss_type": "cispo", "delta": 9"#,
                "`delta`: `loss_type`",
            ),
            (r#""loss_type": "sapo", "delta": 9"#, "`delta`: `loss_type`"),
            (
                r#""use_bias_correction_kl": false"#,
                "`use_bias_correction_kl`: there is no divergence",
            ),
        ] {
            let said = complaint(&format!("{{{option}, {rewards}}}"));
            assert!(said.contains(words), "{said}");
        }
        for fine in [
            r#""loss_type": "cispo", "epsilon_high": 3"#,
            r#""beta": 0.1, "use_bias_correction_kl": false"#,
            r#""epsilon": 0, "delta": 2"#,
        ] {
            assert_eq!(complaint(&format!("{{{fine}, {rewards}}}")), "");
        }
        assert!(complaint("{}").contains("`rewards`: nothing says"));
        let cold = complaint(r#"{"rollout": {"rewards": "world", "temperature": 0}}"#);
        assert!(cold.contains("greedy answers"), "{cold}");
    }

    #[test]
    fn the_largest_weight_of_cispo_is_its_own() {
        let clip = |text: &str| serde_json::from_str::<GrpoOptions>(text).unwrap().clip();
        assert_eq!(clip("{}").high, 0.2);
        assert_eq!(clip(r#"{"loss_type": "cispo"}"#).high, 5.0);
        assert_eq!(clip(r#"{"epsilon_high": 0.28}"#).high, 0.28);
    }
}
