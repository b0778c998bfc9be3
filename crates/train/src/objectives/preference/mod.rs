//! Objectives that learn which answers are better: what they share is how answers are scored, and what is logged of them.

pub mod cpo;
pub mod dpo;
pub mod kto;
pub mod losses;
pub mod odds;
pub mod orpo;
pub mod scores;
pub mod weights;

use burn::tensor::Tensor;
use espalier_kernels::readback::ReadFloats;

use super::{Batch, Metric, pairs};
use crate::{
    Result,
    batch::{Sample, TokenBatch},
    metrics::MetricDescription,
};

/// Metric of objectives on answers: implicit rewards.
const CHOSEN: MetricDescription = MetricDescription::number(
    "rewards/chosen",
    "rewards",
    "implicit reward of the better answers: beta times their log-ratio to the reference",
);
/// Metric of objectives on answers: implicit rewards.
const REJECTED: MetricDescription = MetricDescription::number(
    "rewards/rejected",
    "rewards",
    "implicit reward of the worse answers",
);
/// Metric of objectives on answers: implicit rewards.
const MARGINS: MetricDescription =
    MetricDescription::number("rewards/margins", "rewards", "the first less the second");
/// Metric of objectives on pairs.
const ACCURACIES: MetricDescription = MetricDescription::share(
    "rewards/accuracies",
    "preference accuracy",
    "share of the pairs whose better answer has the larger reward",
);
/// Metric of objectives on answers.
const LOGPS_CHOSEN: MetricDescription = MetricDescription::number(
    "logps/chosen",
    "log-probability of answers",
    "log-probability of the better answers, a sum over their tokens",
);
/// Metric of objectives on answers.
const LOGPS_REJECTED: MetricDescription = MetricDescription::number(
    "logps/rejected",
    "log-probability of answers",
    "log-probability of the worse answers, a sum over their tokens",
);
/// Metric of objectives that read the better answers' likelihood.
const NLL_LOSS: MetricDescription = MetricDescription::number(
    "nll_loss",
    "negative log-likelihood",
    "negative log-likelihood of a token of the better answers",
);

/// All better answers, then all worse ones; the second units are the tokens of the better answers.
fn collate_pairs(name: &str, samples: &[&Sample]) -> Result<Batch> {
    let rows = pairs(name, samples)?.concat();
    let mut batch = Batch::new(TokenBatch::new(&rows), samples.len(), samples)?;
    batch.second_units = better_tokens(&batch) as f64;
    Ok(batch)
}

/// Targets of the better answers, which come first.
fn better_tokens(batch: &Batch) -> usize {
    let better = |row: &&usize| (**row as f64) < batch.units;
    batch.tokens.rows.iter().take_while(better).count()
}

/// The halves of a vector over all rows of a batch of pairs: of better and of worse answers.
fn halves(rows: Tensor<1>) -> [Tensor<1>; 2] {
    let count = rows.dims()[0] / 2;
    [
        rows.clone().narrow(0, 0, count),
        rows.narrow(0, count, count),
    ]
}

fn sum(name: &'static str, values: &[f64]) -> Metric {
    Metric {
        name,
        sum: values.iter().sum(),
        units: values.len() as f64,
    }
}

/// What is logged of pairs: their rewards, of better and of worse answers, and their log-probabilities.
fn metrics_of_pairs(rewards: [Tensor<1>; 2], logps: [Tensor<1>; 2]) -> Vec<Metric> {
    let floats = |tensor: Tensor<1>| tensor.floats().into_iter().map(f64::from).collect();
    let [chosen, rejected]: [Vec<f64>; 2] = rewards.map(floats);
    let [better, worse]: [Vec<f64>; 2] = logps.map(floats);
    let margins: Vec<f64> = chosen.iter().zip(&rejected).map(|(c, r)| c - r).collect();
    let right: Vec<f64> = margins
        .iter()
        .map(|m| f64::from(u8::from(*m > 0.0)))
        .collect();
    vec![
        sum(CHOSEN.name, &chosen),
        sum(REJECTED.name, &rejected),
        sum(MARGINS.name, &margins),
        sum(ACCURACIES.name, &right),
        sum(LOGPS_CHOSEN.name, &better),
        sum(LOGPS_REJECTED.name, &worse),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use burn::tensor::{Device, Tensor};

    /// A leaf of autodiff.
    pub fn leaf<const N: usize>(values: [f32; N]) -> Tensor<1> {
        Tensor::<1>::from_floats(values, &Device::flex())
            .autodiff()
            .require_grad()
    }

    /// A vector outside autodiff's leaves.
    pub fn constant<const N: usize>(values: [f32; N]) -> Tensor<1> {
        Tensor::<1>::from_floats(values, &Device::flex()).autodiff()
    }

    /// A loss `[1]`, and its gradients for some leaves; zeros where it does not depend on one.
    pub fn with_gradients(loss: Tensor<1>, leaves: &[&Tensor<1>]) -> (f32, Vec<Vec<f32>>) {
        let gradients = loss.backward();
        let gradient = |leaf: &&Tensor<1>| match leaf.grad(&gradients) {
            Some(gradient) => gradient.into_data().try_into_vec::<f32>().unwrap(),
            None => vec![0.0; leaf.dims()[0]],
        };
        let gradients = leaves.iter().map(gradient).collect();
        (loss.inner().into_scalar::<f32>(), gradients)
    }

    /// Whether numbers are those of a worked example.
    pub fn near(found: &[f32], expected: &[f32], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 2e-5,
                "{what}: {found} against {expected}"
            );
        }
    }
}
