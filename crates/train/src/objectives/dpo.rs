//! Direct Preference Optimization (arXiv 2305.18290, Eq. 7).
//!
//! With `a = log pi(y_w) - log ref(y_w)` and `b` likewise for the worse answer (sums over the answer's tokens),
//! `loss = -log sigmoid(beta (a - b))`, a mean over pairs. The reference is the model as it was before the first step;
//! its log-probabilities are computed once. `sft_weight` adds the negative log-likelihood of the better answers, a mean over
//! the tokens of the whole step (RPO), which keeps their likelihood from falling. Recipe: `dpo.toml`.

use burn::tensor::{Tensor, TensorData, activation::log_sigmoid};
use espalier_data::random::Random;
use espalier_kernels::readback::ReadFloats;
use espalier_models::{auxiliary_losses::AuxiliaryLosses, model::LanguageModel, taps::Unobserved};
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, Metric, Objective, PackedRows, check_causal, pairs, registry::Entry};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch, integers},
    metrics::MetricDescription,
    options::TrainOptions,
};

/// The options of DPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DpoOptions {
    /// How far the model may leave the reference: the smaller, the further.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub beta: f64,
    /// Weight of the negative log-likelihood of the better answers.
    #[schemars(range(min = 0.0))]
    pub sft_weight: f64,
}

impl Default for DpoOptions {
    fn default() -> Self {
        Self {
            beta: 0.1,
            sft_weight: 0.0,
        }
    }
}

impl DpoOptions {
    /// # Errors
    /// When `beta` is not positive or `sft_weight` is negative.
    fn check(&self) -> Result<()> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(Error::Option {
                key: "beta",
                reason: format!("{} is not a positive number", self.beta),
            });
        }
        if !(self.sft_weight >= 0.0 && self.sft_weight.is_finite()) {
            return Err(Error::Option {
                key: "sft_weight",
                reason: format!("{} is negative", self.sft_weight),
            });
        }
        Ok(())
    }
}

/// The objective's registration.
pub const ENTRY: Entry<DpoOptions> = Entry::of_pairs(
    &[
        MetricDescription::number(
            "rewards/chosen",
            "rewards",
            "beta times the log-ratio of the better answers to the reference",
        ),
        MetricDescription::number(
            "rewards/rejected",
            "rewards",
            "beta times the log-ratio of the worse answers to the reference",
        ),
        MetricDescription::number("rewards/margins", "rewards", "the first less the second"),
        MetricDescription::share(
            "rewards/accuracies",
            "preference accuracy",
            "share of the pairs whose better answer has the larger reward",
        ),
    ],
    PackedRows::Refused,
    DpoOptions::check,
    |options, _| Ok(Box::new(Dpo::new(options.clone())?)),
);

/// The column of the reference's log-probabilities: of each pair the better answer's, then the worse one's.
const REFERENCE: &str = "reference_log_probability";

/// The objective.
#[derive(Debug, Clone)]
pub struct Dpo {
    options: DpoOptions,
}

impl Dpo {
    /// Checks the options.
    ///
    /// # Errors
    /// When `beta` is not positive or `sft_weight` is negative.
    pub fn new(options: DpoOptions) -> Result<Self> {
        options.check()?;
        Ok(Self { options })
    }
}

/// Pairs that are scored by the reference at once.
const REFERENCE_BATCH: usize = 16;

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn predicts_tokens(&self) -> bool {
        false
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], _: &TrainOptions) -> Result<()> {
        check_causal(self.name(), model)
    }

    fn prepare(&self, model: &LanguageModel, samples: &mut [Sample]) -> Result<()> {
        let reference = model.frozen();
        for chunk in samples.chunks_mut(REFERENCE_BATCH) {
            let random = &mut Random::new(0);
            let batch = self.collate(&reference, &chunk.iter().collect::<Vec<_>>(), random)?;
            let scores = sequence_log_probabilities(&reference, &batch.tokens)?.by_row;
            let scores: Vec<f64> = scores.floats().into_iter().map(f64::from).collect();
            let (chosen, rejected) = scores.split_at(chunk.len());
            for (i, sample) in chunk.iter_mut().enumerate() {
                let both = vec![chosen[i], rejected[i]];
                sample.columns.set_numbers(REFERENCE, both);
            }
        }
        Ok(())
    }

    /// All better answers come first, then all worse ones.
    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        let rows = pairs(self.name(), samples)?.concat();
        let mut batch = Batch::new(TokenBatch::new(&rows), samples.len(), samples)?;
        batch.second_units = better_tokens(&batch) as f64;
        Ok(batch)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let count = batch.units as usize;
        let references = batch.columns.numbers(REFERENCE, 2 * count)?;
        let Scores {
            by_row: scores,
            by_target: tokens,
            auxiliary,
        } = sequence_log_probabilities(model, &batch.tokens)?;
        let reference = |side: usize| {
            let of_side = references.iter().skip(side).step_by(2);
            let values: Vec<f32> = of_side.map(|reference| *reference as f32).collect();
            Tensor::<1>::from_data(TensorData::new(values, [count]), model.device())
        };
        let chosen = scores.clone().narrow(0, 0, count) - reference(0);
        let rejected = scores.narrow(0, count, count) - reference(1);
        let metrics = metrics(chosen.clone(), rejected.clone(), self.options.beta);
        let mut sum = preference_loss(chosen, rejected, self.options.beta);
        if self.options.sft_weight > 0.0 {
            let better = -tokens.narrow(0, 0, better_tokens(batch)).sum();
            sum = sum + better * (self.options.sft_weight * batch.exchange);
        }
        let mut loss = Loss::new(sum, count as f64, auxiliary);
        loss.metrics.extend(metrics);
        Ok(loss)
    }
}

/// Targets of the better answers, which come first.
fn better_tokens(batch: &Batch) -> usize {
    let better = |row: &&usize| (**row as f64) < batch.units;
    batch.tokens.rows.iter().filter(better).count()
}

/// Eq. 7 summed over pairs; `chosen` and `rejected` are log-ratios to the reference, `[pairs]`.
pub fn preference_loss(chosen: Tensor<1>, rejected: Tensor<1>, beta: f64) -> Tensor<1> {
    -log_sigmoid((chosen - rejected) * beta).sum()
}

/// What a model says of a batch.
#[derive(Debug)]
pub struct Scores {
    /// Log-probability of every row's targets together, `[rows]`.
    pub by_row: Tensor<1>,
    /// Log-probability of every target, `[targets]`.
    pub by_target: Tensor<1>,
    /// Losses that the model brings along.
    pub auxiliary: AuxiliaryLosses,
}

/// The log-probabilities of a batch's targets.
///
/// # Errors
/// When a token id is outside the vocabulary.
pub fn sequence_log_probabilities(model: &LanguageModel, batch: &TokenBatch) -> Result<Scores> {
    let (by_target, auxiliary) = batch.log_probabilities(model, &mut Unobserved)?;
    let rows = integers(batch.rows.iter().map(|row| *row as i32), model.device());
    let zeros = Tensor::<1>::zeros([batch.input.batch], model.device());
    let sums = zeros.select_assign(
        0,
        rows,
        by_target.clone(),
        burn::tensor::IndexingUpdateOp::Add,
    );
    Ok(Scores {
        by_row: sums,
        by_target,
        auxiliary,
    })
}

fn metrics(chosen: Tensor<1>, rejected: Tensor<1>, beta: f64) -> Vec<Metric> {
    let (chosen, rejected) = (chosen.floats(), rejected.floats());
    let units = chosen.len() as f64;
    let sum = |values: &[f32]| values.iter().map(|v| beta * f64::from(*v)).sum::<f64>();
    let right = chosen.iter().zip(&rejected).filter(|(c, r)| c > r).count() as f64;
    vec![
        Metric {
            name: "rewards/chosen",
            sum: sum(&chosen),
            units,
        },
        Metric {
            name: "rewards/rejected",
            sum: sum(&rejected),
            units,
        },
        Metric {
            name: "rewards/margins",
            sum: sum(&chosen) - sum(&rejected),
            units,
        },
        Metric {
            name: "rewards/accuracies",
            sum: right,
            units,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// Loss and gradients of the log-probabilities for one pair.
    fn worked(chosen: f32, rejected: f32, beta: f64) -> (f32, f32, f32) {
        let leaf = |value: f32| {
            Tensor::<1>::from_floats([value], &Device::flex())
                .autodiff()
                .require_grad()
        };
        let (a, b) = (leaf(chosen), leaf(rejected));
        let loss = preference_loss(a.clone(), b.clone(), beta);
        let gradients = loss.backward();
        let read = |tensor: Tensor<1>| tensor.into_data().try_into_vec::<f32>().unwrap()[0];
        (
            read(loss.inner()),
            read(a.grad(&gradients).unwrap()),
            read(b.grad(&gradients).unwrap()),
        )
    }

    #[test]
    fn worked_example() {
        // log-probabilities -12 and -15, reference -13 and -14.5, beta 0.1
        let (loss, chosen, rejected) = worked(1.0, -0.5, 0.1);
        assert!((loss - 0.620957).abs() < 2e-6, "{loss}");
        assert!(
            (chosen + 0.046257).abs() < 2e-6 && (rejected - 0.046257).abs() < 2e-6,
            "{chosen} {rejected}"
        );
    }

    #[test]
    fn a_model_equal_to_its_reference_costs_ln_2() {
        let (loss, chosen, rejected) = worked(0.0, 0.0, 0.1);
        assert!((loss - 2f32.ln()).abs() < 1e-6);
        assert!((chosen + 0.05).abs() < 1e-6 && (rejected - 0.05).abs() < 1e-6);
    }

    #[test]
    fn the_log_sigmoid_stays_finite_for_hopeless_pairs() {
        let (loss, chosen, _) = worked(-5000.0, 5000.0, 0.1);
        assert!((loss - 1000.0).abs() < 1e-3 && (chosen + 0.1).abs() < 1e-6);
    }

    #[test]
    fn senseless_options_are_refused() {
        assert!(
            Dpo::new(DpoOptions {
                beta: 0.0,
                ..Default::default()
            })
            .is_err()
        );
        assert!(
            Dpo::new(DpoOptions {
                sft_weight: -1.0,
                ..Default::default()
            })
            .is_err()
        );
    }
}
