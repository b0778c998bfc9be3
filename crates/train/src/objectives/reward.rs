//! Reward models: a score for a prompt with its answer, learned from which of two answers is the better one.
//!
//! With `d = s_w - s_l - margin`, the scores at the last tokens, `loss = -log sigmoid(d)`, a mean over pairs (Bradley-Terry, as in
//! arXiv 2203.02155; the margin from arXiv 2307.09288). `center_rewards_coefficient` adds `c (s_w + s_l)^2` (arXiv 2312.09244, Eq. 2),
//! without which scores are determined up to a constant. InternLM2's loss (arXiv 2403.17297, section 4.2) is `focal`:
//! `-(1 - 2 max(0, p - 1/2))^2 log p`, `p = sigmoid(d)`, which passes over easy pairs, and `barrier` times
//! `-(log(5 + s) + log(5 - s))` of both scores, which keeps them within -5 and 5. Recipe: `reward-model.toml`.

use burn::tensor::{Tensor, TensorData, activation::log_sigmoid};
use espalier_data::{random::Random, readers::Wanted};
use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    model::LanguageModel,
    spec::{ClassifierSpec, Subject},
};
use serde::{Deserialize, Serialize};

use super::{
    Batch, Loss, Metric, Objective, PackedRows, classification::class_scores, pairs,
    registry::Entry, wrong,
};
use crate::{
    Result,
    batch::{MARGIN, Sample, TokenBatch},
    error::not_negative,
    metrics::MetricDescription,
    options::TrainOptions,
};

/// Scores stay within this of zero where there is a barrier.
const BOUND: f64 = 5.0;
/// How near to the barrier a score is taken to be at most.
const GAP: f64 = 1e-3;

/// The options of reward models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RewardOptions {
    /// What a pair costs.
    pub loss: PairLoss,
    /// Weight of the square of the scores' sum, which keeps their mean at zero; 0.01 is usual.
    #[schemars(range(min = 0.0))]
    pub center_rewards_coefficient: f64,
    /// Weight of the barrier that keeps scores between -5 and 5; InternLM2 has 0.02.
    #[schemars(range(min = 0.0))]
    pub barrier: f64,
    /// How a fresh head starts.
    pub head: HeadStart,
}

impl Default for RewardOptions {
    fn default() -> Self {
        Self {
            loss: PairLoss::BradleyTerry,
            center_rewards_coefficient: 0.0,
            barrier: 0.0,
            head: HeadStart::Normal,
        }
    }
}

/// What a pair costs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PairLoss {
    /// The negative log-probability that the better answer wins.
    #[default]
    BradleyTerry,
    /// The same, less the surer it is.
    Focal,
}

/// How a fresh head starts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum HeadStart {
    /// Normal with the deviation of the model's other fresh weights (`initializer_range`).
    #[default]
    Normal,
    /// Normal with deviation `1 / sqrt(width + 1)`.
    InverseRoot,
    /// All zero, so that the first scores are.
    Zeros,
}

impl HeadStart {
    /// Standard deviation of the head of a model so wide; nothing where it is the model's own.
    pub fn deviation(self, width: usize) -> Option<f64> {
        match self {
            Self::Normal => None,
            Self::InverseRoot => Some(1.0 / (width as f64 + 1.0).sqrt()),
            Self::Zeros => Some(0.0),
        }
    }
}

impl RewardOptions {
    fn check(&self) -> Result<()> {
        not_negative(
            "center_rewards_coefficient",
            self.center_rewards_coefficient,
        )?;
        not_negative("barrier", self.barrier)
    }
}

/// The objective's registration.
pub const ENTRY: Entry<RewardOptions> = Entry::of_classes(
    &[
        MetricDescription::share(
            "accuracy",
            "pair accuracy",
            "share of the pairs whose better answer has the larger score",
        ),
        MetricDescription::number(
            "margin",
            "scores",
            "score of the better answer less that of the worse",
        ),
        MetricDescription::number("mean_reward", "scores", "mean score of all answers"),
        MetricDescription::number("min_reward", "scores", "smallest score of a batch"),
        MetricDescription::number("max_reward", "scores", "largest score of a batch"),
    ],
    Wanted::Pairs,
    RewardOptions::check,
    |options, _| Ok(Box::new(Reward::new(options.clone())?)),
);

/// The objective.
#[derive(Debug, Clone)]
pub struct Reward {
    options: RewardOptions,
}

impl Reward {
    /// Checks the options.
    ///
    /// # Errors
    /// When a weight is negative.
    pub fn new(options: RewardOptions) -> Result<Self> {
        options.check()?;
        Ok(Self { options })
    }
}

impl Objective for Reward {
    fn name(&self) -> &'static str {
        "reward"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn predicts_tokens(&self) -> bool {
        false
    }

    fn needs_head(&self) -> bool {
        false
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], _: &TrainOptions) -> Result<()> {
        check_scorer(self.name(), model)
    }

    /// All better answers come first, then all worse ones.
    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        let rows = pairs(self.name(), samples)?.concat();
        Batch::new(TokenBatch::unasked(&rows), samples.len(), samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let count = batch.units as usize;
        let (scores, auxiliary) = class_scores(model, &batch.tokens)?;
        let [rows, _] = scores.dims();
        let scores = scores.reshape([rows]);
        let margins = batch.columns.numbers(MARGIN, count)?;
        let margins: Vec<f32> = margins.iter().map(|margin| *margin as f32).collect();
        let margins = Tensor::from_data(TensorData::new(margins, [count]), model.device());
        let chosen = scores.clone().narrow(0, 0, count);
        let rejected = scores.narrow(0, count, count);
        let metrics = metrics(&chosen.clone().floats(), &rejected.clone().floats());
        let sum = reward_loss(chosen, rejected, margins, &self.options);
        let mut loss = Loss::new(sum, count as f64, auxiliary);
        loss.metrics.extend(metrics);
        Ok(loss)
    }
}

/// Whether a model gives a text one score; another is an error of the objective `name`.
pub(super) fn check_scorer(name: &str, model: &LanguageModel) -> Result<()> {
    match model.spec().classifier {
        Some(ClassifierSpec {
            labels: 1,
            subject: Subject::Texts(_),
            ..
        }) => Ok(()),
        Some(classifier) => Err(wrong(format!(
            "`{name}` needs one score for a text, and the model has {} classes; take its base",
            classifier.labels
        ))),
        None => Err(wrong(format!(
            "`{name}` needs a model with one score for a text (`...ForSequenceClassification` with one label)"
        ))),
    }
}

/// What pairs cost together, from the scores of the better and the worse answers and their margins, `[pairs]` each: `[1]`.
pub fn reward_loss(
    chosen: Tensor<1>,
    rejected: Tensor<1>,
    margins: Tensor<1>,
    options: &RewardOptions,
) -> Tensor<1> {
    let likelihood = log_sigmoid(chosen.clone() - rejected.clone() - margins);
    let loss = match options.loss {
        PairLoss::BradleyTerry => -likelihood,
        PairLoss::Focal => {
            let excess: Tensor<1> = (likelihood.clone().exp() - 0.5).clamp_min(0.0);
            let weight: Tensor<1> = -(excess * 2.0) + 1.0;
            -(weight.clone() * weight * likelihood)
        }
    };
    let mut sum = loss.sum();
    if options.center_rewards_coefficient > 0.0 {
        let both = chosen.clone() + rejected.clone();
        sum = sum + (both.clone() * both).sum() * options.center_rewards_coefficient;
    }
    if options.barrier > 0.0 {
        sum = sum + (barrier(chosen) + barrier(rejected)).sum() * options.barrier;
    }
    sum
}

/// `-(log(5 + s) + log(5 - s))`, without a gradient beyond the barrier.
fn barrier(scores: Tensor<1>) -> Tensor<1> {
    let scores = scores.clamp(-BOUND + GAP, BOUND - GAP);
    -((scores.clone() + BOUND).log() + (-scores + BOUND).log())
}

fn metrics(chosen: &[f32], rejected: &[f32]) -> Vec<Metric> {
    let pairs = chosen.len() as f64;
    let all = || chosen.iter().chain(rejected).map(|score| f64::from(*score));
    let sum = |of: &[f32]| of.iter().map(|score| f64::from(*score)).sum::<f64>();
    let right = chosen.iter().zip(rejected).filter(|(w, l)| w > l).count();
    let metric = |name, sum, units| Metric { name, sum, units };
    vec![
        metric("accuracy", right as f64, pairs),
        metric("margin", sum(chosen) - sum(rejected), pairs),
        metric("mean_reward", all().sum(), 2.0 * pairs),
        metric("min_reward", all().fold(f64::INFINITY, f64::min), 1.0),
        metric("max_reward", all().fold(f64::NEG_INFINITY, f64::max), 1.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// Loss and gradients of the scores of one pair.
    fn worked(options: &RewardOptions, scores: [f32; 2], margin: f32) -> [f32; 3] {
        let leaf = |value: f32| {
            Tensor::<1>::from_floats([value], &Device::flex())
                .autodiff()
                .require_grad()
        };
        let (chosen, rejected) = (leaf(scores[0]), leaf(scores[1]));
        let margins = Tensor::from_floats([margin], &Device::flex());
        let loss = reward_loss(chosen.clone(), rejected.clone(), margins, options);
        let gradients = loss.backward();
        let read = |tensor: Tensor<1>| tensor.into_data().try_into_vec::<f32>().unwrap()[0];
        [
            read(loss.inner()),
            read(chosen.grad(&gradients).unwrap()),
            read(rejected.grad(&gradients).unwrap()),
        ]
    }

    fn assert_near(found: [f32; 3], expected: [f32; 3]) {
        for (found, expected) in found.into_iter().zip(expected) {
            assert!(
                (found - expected).abs() < 2e-6,
                "{found} against {expected}"
            );
        }
    }

    #[test]
    fn worked_examples_of_bradley_terry() {
        let plain = RewardOptions::default();
        assert_near(
            worked(&plain, [1.2, 0.3], 0.0),
            [0.341154, -0.289050, 0.289050],
        );
        assert_near(
            worked(&plain, [1.2, 0.3], 0.5),
            [0.513015, -0.401312, 0.401312],
        );
        let centred = RewardOptions {
            center_rewards_coefficient: 0.01,
            ..RewardOptions::default()
        };
        assert_near(
            worked(&centred, [1.2, 0.3], 0.0),
            [0.363654, -0.259050, 0.319050],
        );
        // A constant on all scores changes nothing but the centring.
        let moved = worked(&plain, [3.2, 2.3], 0.0);
        assert_near(moved, worked(&plain, [1.2, 0.3], 0.0));
        assert!(worked(&centred, [3.2, 2.3], 0.0)[0] > 0.6);
        // Equal scores say nothing.
        assert_near(
            worked(&plain, [0.7, 0.7], 0.0),
            [std::f32::consts::LN_2, -0.5, 0.5],
        );
    }

    #[test]
    fn worked_examples_of_the_focal_loss_and_the_barrier() {
        let focal = RewardOptions {
            loss: PairLoss::Focal,
            ..RewardOptions::default()
        };
        assert_near(
            worked(&focal, [1.2, 0.3], 0.0),
            [0.114014, -0.258717, 0.258717],
        );
        // A pair the wrong way round costs what it costs without focus.
        assert_near(
            worked(&focal, [0.3, 1.2], 0.0),
            [1.241154, -0.710950, 0.710950],
        );
        let both = RewardOptions {
            barrier: 0.02,
            ..focal
        };
        assert_near(
            worked(&both, [1.2, 0.3], 0.0),
            [-0.013483, -0.256680, 0.259199],
        );
        // Beyond the barrier there is a number, and no gradient but the pair's.
        let beyond = worked(&both, [90.0, 0.0], 0.0);
        assert!(beyond.iter().all(|value| value.is_finite()) && beyond[1].abs() < 1e-6);
    }

    #[test]
    fn metrics_count_ties_as_wrong() {
        let found = metrics(&[1.0, 2.0, 0.5], &[0.0, 2.0, 1.5]);
        let value = |name: &str| {
            let metric = found.iter().find(|metric| metric.name == name).unwrap();
            metric.sum / metric.units
        };
        assert!((value("accuracy") - 1.0 / 3.0).abs() < 1e-12);
        assert!(value("margin").abs() < 1e-12);
        assert!((value("mean_reward") - 7.0 / 6.0).abs() < 1e-12);
        assert_eq!([value("min_reward"), value("max_reward")], [0.0, 2.0]);
    }

    #[test]
    fn negative_weights_are_refused() {
        let wrong = RewardOptions {
            center_rewards_coefficient: -1.0,
            ..RewardOptions::default()
        };
        assert!(Reward::new(wrong).is_err());
    }
}
